from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from commands import PYTHON, run
from experiments import faults
from experiments.bundle_trials import BUNDLE_TRIALS
from experiments.faults import PATCHES, UNETR, Trial, count, find_fault, run_trials, words
from experiments.input_trials import INPUT_TRIALS
from experiments.script_trials import SCRIPT_TRIALS
from experiments.timing import chosen_device, in_own_process

from shared.utils import DataError

TRIALS = [*BUNDLE_TRIALS, *SCRIPT_TRIALS, *INPUT_TRIALS]
TRIAL = Trial("training", f"train {UNETR}", "--max_epochs abc", r"^max_epochs is 'abc', expected a whole number")
CLEAR = "INFO reading\n\nError: max_epochs is 'abc', expected a whole number of 1 or above.\n"
TRACEBACK = "Traceback (most recent call last):\n  File ...\n"
LAUNCHER = "E1128 18:44:39.782000 1197 torch/distributed/elastic/multiprocessing/api.py:1002] failed\n" + TRACEBACK
SAMPLE = [
    f"train {UNETR} --max_epoch 3",
    f"train {UNETR} --max_epochs 0",
    f"train {UNETR} --spacing [1,2]",
    f"train {UNETR} --labels \"{{'liver': 1\"",
    f"train {UNETR} --args_file $FOLDER/file.json",
    f"train {UNETR} --config_file configs/variants/demo.json",
    f"train {PATCHES} --train_domains XR",
    f"help {PATCHES} --help",
    "make_synthetic.py histology --output_dir $FOLDER/out --slidez 3",
    "prepare_btcv.py --data_dir $FOLDER/in --output_dir $FOLDER/out --workers 0",
    "package_bundles.py --output_dir $FOLDER/out nonesuch",
    "reproduce.py nonesuch --output_dir $FOLDER",
    f"train {UNETR} --datalist $FOLDER/list.json (an image that is a number)",
    f"infer {PATCHES} --input $FOLDER/a.png (empty)",
]


@pytest.mark.parametrize(
    ("change", "status", "text", "written", "fault"),
    [
        ({}, 1, CLEAR, [], ""),
        ({}, 1, TRACEBACK + CLEAR, [], "a traceback"),
        ({}, 1, f"[rank1]: {TRACEBACK}{CLEAR}", [], "a traceback"),
        ({}, 1, CLEAR + LAUNCHER, [], ""),
        ({}, 1, CLEAR + LAUNCHER + CLEAR, [], "2 lines begin with Error:, expected one"),
        ({}, 0, "INFO done\n", ["models/model.pt"], "accepted in silence: it wrote 1 files"),
        ({}, None, "INFO epoch 1\n", [], "accepted in silence: it was stopped"),
        ({}, 1, "Error: this does not work\n", [], f"the message does not say {TRIAL.answer}"),
        ({}, 1, "Usage: max_epochs is 'abc', expected a whole number\n", [], "0 lines begin with Error:, expected one"),
        ({}, 1, CLEAR + "more\n" * 6, [], "6 lines follow the message"),
        ({}, 1, CLEAR + "  one of its list\n" * 6, [], ""),
        ({}, 1, CLEAR, ["out/scores.csv"], "left behind: out/scores.csv"),
        ({"late": True}, 1, CLEAR, ["out/scores.csv"], ""),
        ({"late": True}, 1, CLEAR, ["out/.writing-1/scores.csv"], "left behind: out/.writing-1/scores.csv"),
        ({"refused": False}, 1, CLEAR, [], "status 1"),
        ({"refused": False, "answer": "is left out"}, 0, "INFO it is left\n  out\n", ["out/x"], ""),
        ({"refused": False, "answer": "is left out"}, 0, "INFO done\n", [], "the output does not say is left out"),
        ({"by_monai": True, "answer": "demoo"}, 1, TRACEBACK + "FileNotFoundError: demoo.json\n", [], ""),
        ({"by_monai": True, "answer": "demoo"}, 1, TRACEBACK + "KeyError\n", [], "the last line does not say demoo"),
    ],
)
def test_what_a_clear_answer_is(
    change: dict[str, object], status: int | None, text: str, written: list[str], fault: str
) -> None:
    assert find_fault(replace(TRIAL, **change), status, text, written) == fault


def test_what_is_given_replaces_what_the_command_has() -> None:
    arguments, place = words(TRIAL)
    assert arguments.count("--max_epochs") == 1
    assert arguments[-2:] == ["--max_epochs", "abc"]
    assert place.name == UNETR
    assert words(Trial("scripts", "demo.py --epochs 3 --name x", "--epochs=0", ""))[0][1:] == [
        "--name",
        "x",
        "--epochs=0",
    ]


def test_trials_have_names_of_their_own_and_are_many() -> None:
    assert len({trial.name for trial in TRIALS}) == len(TRIALS) >= 85
    assert {trial.kind for trial in TRIALS} >= {"training", "evaluation", "inference", "labels", "scripts"}


def test_a_sample_of_wrong_options_is_answered_clearly(tmp_path: Path) -> None:
    chosen = [trial for trial in TRIALS if trial.name in SAMPLE]
    assert len(chosen) == len(SAMPLE)
    results = run_trials(chosen, tmp_path, python=PYTHON)
    assert [result for result in results if result["fault"]] == []
    assert count(results)[-1] == {"kind": "all", "tried": 14, "clear": 14}


def test_the_command_counts_and_lists(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "inject_faults.py"
    given = ("inputs", "--output_dir", tmp_path, "--only", "slidez|reproduce.py nonesuch")
    done = run(script, *given, python=sys.executable)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2].split() == ["all", "2", "2"]
    refused = run(script, "inputs", "--output_dir", tmp_path, "--only", "qqq")
    assert refused.returncode == 1
    assert "Error: --only is qqq, expected a part of a trial's name" in refused.stderr


def test_data_that_were_not_finished_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def make_data(folder: Path) -> None:
        folder.mkdir()
        (folder / "ct").touch()
        made.append(folder)
        if len(made) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(faults, "make_data", make_data)
    with pytest.raises(KeyboardInterrupt):
        faults.make_what_is_needed([], tmp_path / "data", "python")
    assert list(tmp_path.iterdir()) == []
    for _ in range(2):
        faults.make_what_is_needed([], tmp_path / "data", "python")
    assert len(made) == 2
    assert (tmp_path / "data" / "ct").exists()


def test_a_part_of_a_measurement_that_fails_is_told() -> None:
    with pytest.raises(DataError, match="chosen_device has ended with status 1"):
        in_own_process(chosen_device)
