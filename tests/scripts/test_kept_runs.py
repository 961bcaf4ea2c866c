from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from experiments.kept_runs import kept_runs

from shared.utils import DataError

ADD = """
import sys
from experiments.kept_runs import kept_runs

kept = kept_runs(sys.argv[1], {"data": "a"}, ["seed"])
print("ready", flush=True)
sys.stdin.readline()
for i in range(40):
    kept.add({"seed": f"{sys.argv[2]} {i}"})
"""


def test_two_commands_add_to_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "scripts"))
    file = tmp_path / "runs.jsonl"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    commands = [subprocess.Popen([sys.executable, "-c", ADD, str(file), name], **pipes) for name in "ab"]
    assert [command.stdout.readline() for command in commands] == ["ready\n"] * 2
    for command in commands:
        command.stdin.write("\n")
        command.stdin.flush()
    for command in commands:
        command.communicate(timeout=120)
    assert [command.returncode for command in commands] == [0, 0]
    assert len(kept_runs(file, {"data": "a"}, ["seed"]).read()) == 80
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_written_is_told_of_before_the_first_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"is a folder, expected a file for the results\. Give another --results"):
        kept_runs(tmp_path, {})
    with pytest.raises(DataError, match=r"file"):
        kept_runs(tmp_path / "file" / "runs.jsonl", {})
