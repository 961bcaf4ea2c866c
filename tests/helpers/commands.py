"""How a test runs a command.

    done = run(ROOT / "scripts" / "make_synthetic.py", "ct", "--output_dir", folder)      # a script, or a module:
    done = run("-m", "monai.bundle", "run", "--config_file", files, cwd=bundle)
    assert done.returncode == 0, done.stderr

    subprocess.Popen([PYTHON, ...])                 # what `run` does not offer
    @pytest.mark.usefixtures("forked")              # where the code under test starts commands itself
    run(..., python=sys.executable)                 # in a Python of its own

`PYTHON` has the third-party packages imported already (`scripts/experiments/fork_server.py` says what it can do):
beside its own work a command takes a tenth of a second, and not five. A test that is about the start itself, as which
modules an import needs, locale or PYTHON* variables, takes a Python of its own, and so does one test of each script.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PYTHON = os.environ.get("TEST_PYTHON", sys.executable)  # set by conftest.py


def run(*arguments: object, python: str = PYTHON, **options: Any) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS`, with what it printed as text. The options are those of `subprocess.run`."""
    return subprocess.run([python, *map(str, arguments)], capture_output=True, text=True, check=False, **options)


def is_locked(folder: Path) -> bool:
    """Whether another process than this one would be held off, see `shared.utils.lock_folder`."""
    code = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    return run("-c", code, folder / ".lock").returncode != 0


def benchmark(name: str, folder: Path, **options: object) -> tuple[dict[str, Any], str]:
    """The result of `scripts/benchmark.py NAME`, and what it printed."""
    flags = [f"--{key}={value}" for key, value in (options | {"output": folder / "cost.json"}).items()]
    done = run(Path(__file__).parents[2] / "scripts" / "benchmark.py", name, *flags)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "cost.json").read_text()), done.stdout


# What `two_ranks` runs. `toy` is the test file.
RANK = """
import importlib.util, sys
import torch, torch.distributed as dist
from shared.utils import leave_process_group

rank, folder, test_file, code = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
spec = importlib.util.spec_from_file_location("toy", test_file)
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
exec(code)
leave_process_group()
"""


def two_ranks(test_file: str, code: str, folder: Path) -> list[str]:
    """Run code in two processes of a group.

    Args:
        test_file: it is imported as `toy`.
        code: it also finds `rank`, `folder`, `torch` and `dist`.
        folder: where the two meet.

    Returns:
        what each printed.
    """
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    ranks = [
        subprocess.Popen(
            [PYTHON, "-c", RANK, str(rank), str(folder), test_file, code],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=300)[0].strip() for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0]
    return printed
