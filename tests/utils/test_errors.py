from __future__ import annotations

import os
import signal
import subprocess
import textwrap

import pytest
from commands import PYTHON, run

from shared.utils import fault_list


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


def test_the_traceback_is_a_setting_away() -> None:
    assert "Traceback" in run_code(NESTED, SHOW_TRACEBACK="1").stderr


def test_an_unexpected_error_keeps_its_traceback() -> None:
    result = run_code("1 / 0")
    assert result.returncode == 1
    assert "ZeroDivisionError" in result.stderr
    assert "Traceback" in result.stderr


def test_a_full_disk_is_named_whoever_writes() -> None:
    result = run_code("import errno\nraise OSError(errno.ENOSPC, 'No space left on device')")
    assert result.returncode == 1
    assert result.stderr.startswith("\nError: the disk is full. Free space, or choose another folder, and run")


def test_a_data_error_of_a_worker_process_is_as_short() -> None:
    result = run_code(
        """
        from torch.utils.data import DataLoader
        class Bad:
            def __len__(self): return 1
            def __getitem__(self, i): raise DataError("scan.nii.gz: is empty")
        list(DataLoader(Bad(), num_workers=1))
        """
    )
    assert result.returncode == 1
    assert result.stderr.strip() == "Error: scan.nii.gz: is empty"


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


def test_an_error_of_a_rank_itself_keeps_its_traceback() -> None:
    assert "Traceback" in run_code("1 / 0", RANK="1", WORLD_SIZE="2").stderr


def test_of_very_many_faults_the_first_are_listed() -> None:
    assert fault_list(["a: bad", "b: worse"]) == "\n  a: bad\n  b: worse"
    assert fault_list([str(i) for i in range(9)], most=2) == "\n  0\n  1\n  (and 7 more)"
