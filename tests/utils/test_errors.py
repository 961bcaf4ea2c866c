from __future__ import annotations

import os
import signal
import subprocess
import textwrap
import time

import pytest
from commands import PYTHON, run

from shared.utils import DataError, fault_list, is_disk_full
from shared.utils.errors import data_error_message, innermost, no_memory_message


def run_code(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    program = "from shared.utils import DataError, show_errors_briefly\nshow_errors_briefly()\n" + textwrap.dedent(code)
    return run("-c", program, env=os.environ | env)


NESTED = """
try:
    try:
        raise DataError("scan.nii.gz: is empty")
    except DataError as e:
        raise RuntimeError("applying transform") from e
except RuntimeError as e:
    raise RuntimeError("Failed to evaluate")
"""


def test_a_data_error_below_others_is_printed_as_one_line() -> None:
    result = run_code(NESTED)
    assert result.returncode == 1
    assert result.stderr == "\nError: scan.nii.gz: is empty\n"


def test_the_message_that_takes_the_place_of_another_is_printed() -> None:
    result = run_code("try:\n    raise DataError('inner')\nexcept DataError:\n    raise DataError('of use') from None")
    assert result.stderr == "\nError: of use\n"


def test_the_traceback_is_a_setting_away() -> None:
    assert "Traceback" in run_code(NESTED, SHOW_TRACEBACK="1").stderr


UNFORESEEN = """
try:
    {raised}
except Exception as e:
    raise RuntimeError("Failed to instantiate component") from e
"""


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero (<string>, line 5). With SHOW_TRACEBACK=1 in the environment"),
        ("raise ValueError", "ValueError (<string>"),
        ("raise ValueError('two\\n  lines')", "ValueError: two lines (<string>"),
        ("open('/nowhere/scan.nii.gz')", "/nowhere/scan.nii.gz: No such file or directory (<string>"),
    ],
)
def test_of_what_nobody_foresaw_the_innermost_exception_is_the_last_line(raised: str, said: str) -> None:
    result = run_code(UNFORESEEN.format(raised=raised))
    assert result.returncode == 1
    assert result.stderr.startswith(f"\nError: {said}")
    assert result.stderr.count("\n") == 2


def test_an_exception_that_was_only_being_handled_is_not_the_innermost() -> None:
    result = run_code("try:\n    {}['a']\nexcept KeyError:\n    raise ValueError('of more use')")
    assert "Error: ValueError: of more use" in result.stderr


@pytest.mark.parametrize(
    "raised",
    [
        "raise MemoryError",
        "import torch; torch.empty(1 << 50)",
        "import errno; raise OSError(errno.ENOMEM, 'Cannot allocate memory')",
        "raise RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed.')",
    ],
)
def test_a_lack_of_memory_is_named_with_what_to_lower(raised: str) -> None:
    result = run_code(UNFORESEEN.format(raised=raised))
    assert result.returncode == 1
    assert "memory" in result.stderr
    assert "Lower --num_workers, --batch_size or --sw_batch_size" in result.stderr
    assert "Traceback" not in result.stderr


CUDA_SAYS = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.92 GiB of which 1.19 GiB is free. "
    "Including non-PyTorch memory, this process has 6.70 GiB memory in use."
)


@pytest.mark.parametrize(
    ("settings", "lower"),
    [
        ([], "--batch_size, --num_samples, --sw_batch_size, --roi_size, --tile_size, as far as there are such; --amp"),
        (["batch_size", "tile_size", "max_epochs", "seed"], "--batch_size, --tile_size; --amp"),
        (
            ["batch_size", "max_epochs", "save_seconds"],
            "--batch_size, or give --save_seconds 0, which keeps no copy of the training's state there; --amp",
        ),
        (["sw_batch_size", "roi_size", "stitching_device"], "--sw_batch_size, or choose --stitching_device cpu; --amp"),
    ],
)
def test_a_lack_of_the_gpus_memory_is_named_with_the_bundles_settings(settings: list[str], lower: str) -> None:
    known = f"from shared.utils import errors\nerrors.settings_at_hand.update({settings})\n"
    raised = f"import torch; raise torch.OutOfMemoryError({CUDA_SAYS!r})"
    result = run_code(known + UNFORESEEN.format(raised=raised))
    assert result.returncode == 1
    said, found = "Error: the GPU's memory is not enough (", "of which 1.19 GiB is free). Lower "
    assert said + CUDA_SAYS.partition(" of which")[0] + " " + found + lower in result.stderr
    assert result.stderr.count("\n") == 2


@pytest.mark.parametrize(
    ("before", "said", "behind"),
    [
        ("", "CUDA error: out of memory", "\nCUDA kernel errors might be asynchronously reported. For debugging"),
        ("", "CUDA driver error: out of memory", ""),
        ("", "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", ""),
        ("NCCL error in: a.cpp:3268, unhandled cuda error\nLast error:\n", "Cuda failure 2 'out of memory'", ""),
        ("", "Cuda failure 'out of memory'", "\n"),
    ],
)
def test_whoever_says_it_the_gpus_memory_is_not_mistaken_for_the_machines(before: str, said: str, behind: str) -> None:
    message = no_memory_message(RuntimeError(before + said + behind))
    assert message is not None
    assert message.startswith(f"the GPU's memory is not enough ({said}). Lower --batch_size")


def test_a_worker_process_that_is_killed_is_named() -> None:
    result = run_code(
        """
        import os, signal
        from torch.utils.data import DataLoader
        class Bad:
            def __len__(self): return 1
            def __getitem__(self, i): os.kill(os.getpid(), signal.SIGKILL)
        list(DataLoader(Bad(), num_workers=1))
        """
    )
    assert result.returncode == 1
    assert "Error: a process that loads data has ended, probably for want of memory" in result.stderr


def test_a_worker_process_that_gives_nothing_is_named_and_not_waited_for() -> None:
    start = time.monotonic()
    result = run_code(
        """
        import os, signal
        from torch.utils.data import DataLoader
        class Bad:
            def __len__(self): return 1
            def __getitem__(self, i): os.kill(os.getpid(), signal.SIGSTOP)
        list(DataLoader(Bad(), num_workers=1, timeout=2))
        """
    )
    assert time.monotonic() - start < 20
    assert result.returncode == 1
    assert result.stderr.startswith("\nError: no process that loads data has given anything for 2 s: they hang, their ")
    assert "set --worker_timeout higher" in result.stderr
    assert result.stderr.count("\n") == 2


def test_a_full_disk_is_named_whoever_writes() -> None:
    result = run_code("import errno\nraise OSError(errno.ENOSPC, 'No space left on device')")
    assert result.returncode == 1
    assert result.stderr.startswith("\nError: the disk is full. Free space, or choose another folder, and run")


@pytest.mark.parametrize(("kind", "said"), [("DataError", "scan.nii.gz"), ("ValueError", "ValueError: scan.nii.gz")])
def test_an_error_of_a_worker_process_is_as_short(kind: str, said: str) -> None:
    result = run_code(
        f"""
        from torch.utils.data import DataLoader
        class Bad:
            def __len__(self): return 1
            def __getitem__(self, i): raise {kind}("scan.nii.gz: is empty")
        list(DataLoader(Bad(), num_workers=1))
        """
    )
    assert result.returncode == 1
    assert result.stderr.startswith(f"\nError: {said}: is empty")
    assert result.stderr.count("\n") == 2


@pytest.mark.parametrize("kind", ["DataError", "DiskFullError"])
def test_what_a_transform_of_a_worker_process_says_is_not_lost(kind: str) -> None:
    """MONAI puts an exception of its own around it, and a worker sends only the last of a chain, with its traceback."""
    result = run_code(
        f"""
        from monai.transforms import Compose
        from torch.utils.data import DataLoader
        from shared.utils.errors import DiskFullError
        def bad(item):
            try:
                raise OSError("below")
            except OSError as e:
                raise {kind}("scan.nii.gz: is empty\\n  (second line)") from e
        class Bad:
            def __len__(self): return 1
            def __getitem__(self, i): return Compose([bad])(i)
        list(DataLoader(Bad(), num_workers=1))
        """
    )
    assert result.returncode == 1
    assert result.stderr.endswith("\nError: scan.nii.gz: is empty\n  (second line)\n")


def test_sigterm_ends_a_program_as_ctrl_c_does() -> None:
    code = (
        "from shared.utils import show_errors_briefly\nshow_errors_briefly()\nimport time\n"
        "try:\n    print('ready', flush=True)\n    time.sleep(30)\nfinally:\n    print('cleaned up')\n"
    )
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([PYTHON, "-c", code], **options) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=40)
    assert out == "cleaned up\n"
    assert "Traceback" not in err
    assert "interrupted" in err
    assert process.returncode in (130, -signal.SIGINT)


@pytest.mark.parametrize("told", ["SIGTERM", "SIGINT"])
def test_an_interrupt_while_an_object_is_cleared_away_is_not_lost(told: str) -> None:
    """As the iterator of a loader is at the end of a validation: Python drops what is raised there."""
    code = f"""
import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what runs behind its back ignore it

class Slow:
    def __del__(self):
        os.kill(os.getpid(), signal.{told})
        time.sleep(0.3)

Slow()
for _ in range(100):
    time.sleep(0.1)
print("went on")
"""
    result = run_code(code)
    assert "went on" not in result.stdout
    assert f"Error: interrupted{' SIGTERM' * (told == 'SIGTERM')}\n" in result.stderr
    assert result.returncode in (130, -signal.SIGINT)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("KeyboardInterrupt('SIGTERM')", "rank 1 of 2 stops, because another process of this run has ended"),
        ("RuntimeError('[gloo/pair.cc:1] Connection closed by peer [::1]:9')", "--resume true"),
        ("DataError('scan.nii.gz: is empty')", "Error: scan.nii.gz: is empty\n"),
    ],
)
def test_a_rank_says_why_it_stops(error: str, expected: str) -> None:
    result = run_code(f"try:\n    raise {error}\nfinally:\n    pass", RANK="1", WORLD_SIZE="2")
    assert expected in result.stderr
    assert "Traceback" not in result.stderr


def test_an_error_of_a_rank_itself_is_named() -> None:
    assert "Error: ZeroDivisionError" in run_code("1 / 0", RANK="1", WORLD_SIZE="2").stderr


def test_of_very_many_faults_the_first_are_listed() -> None:
    assert fault_list(["a: bad", "b: worse"]) == "\n  a: bad\n  b: worse"
    assert fault_list([str(i) for i in range(9)], most=2) == "\n  0\n  1\n  (and 7 more)"


def test_an_exception_that_is_its_own_cause_has_an_end() -> None:
    first, second = DataError("here"), ValueError("there")
    second.__cause__ = first
    for cause in (second, first):
        first.__cause__ = cause
        assert data_error_message(first) == "here"
        assert innermost(first) in (first, second)
        assert not is_disk_full(first)
        assert no_memory_message(first) is None
