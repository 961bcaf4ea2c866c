"""How a test runs a command.

    done = run("scripts/make_synthetic.py", "--task", "ct", cwd=ROOT)      # a script, or
    done = run("-m", "monai.bundle", "run", "--config_file", files, cwd=bundle)
    assert done.returncode == 0, done.stderr

    subprocess.Popen([PYTHON, ...])                     # what `run` does not offer
    monkeypatch.setattr(sys, "executable", PYTHON)      # where the code under test starts commands itself

`PYTHON` is a Python whose third-party packages are imported already (`fork_server.py` says what it can do): a command
takes a second less the time that it needs for its work, and not five to seven. A test that is about the start itself,
as which modules an import needs, locale or PYTHON* variables, uses `sys.executable`; and each command that the
documentation shows is run once so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

PYTHON = os.environ.get("TEST_PYTHON", sys.executable)  # set by conftest.py


def run(*arguments: object, python: str = PYTHON, **options: Any) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS`, with what it printed as text. The options are those of `subprocess.run`."""
    return subprocess.run([python, *map(str, arguments)], capture_output=True, text=True, check=False, **options)
