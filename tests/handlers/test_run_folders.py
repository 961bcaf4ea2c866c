from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from commands import is_locked

from shared.handlers import check_evaluation, claim_run
from shared.utils import DataError, unlock_folder, write_json


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    yield tmp_path / "models", tmp_path / "output"
    unlock_folder(tmp_path / "models")
    unlock_folder(tmp_path / "output")


def leave_run(folders: tuple[Path, Path], epoch: int = 3, run: str = "first") -> None:
    """What a run leaves."""
    for folder in folders:
        folder.mkdir()
    torch.save({"trainer": {"epoch": epoch}, "run": run}, folders[0] / "last.pt")
    if epoch:
        write_json(folders[1] / "run.json", {"run": run, "ckpt_dir": str(folders[0])})


def test_new_folders_are_made_and_taken(folders: tuple[Path, Path]) -> None:
    claim_run(*folders)
    assert all(map(is_locked, folders))


def test_where_there_is_nothing_to_resume_nothing_is_made(folders: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match=r"last\.pt: there is no run to resume"):
        claim_run(*folders, resume=True)
    assert not folders[0].exists()


def test_an_earlier_run_is_kept_unless_it_goes_on_or_is_given_up(folders: tuple[Path, Path]) -> None:
    leave_run(folders)
    with pytest.raises(DataError, match="an earlier run is kept here"):
        claim_run(*folders)
    assert not any(map(is_locked, folders))  # a process that lives on holds nobody off
    claim_run(*folders, resume="true")
    claim_run(*folders, overwrite=True)


def test_a_run_that_failed_in_its_first_epoch_stands_in_no_ones_way(folders: tuple[Path, Path]) -> None:
    leave_run(folders, epoch=0)
    claim_run(*folders)


def test_a_run_that_was_killed_at_its_first_save_stands_in_no_ones_way(folders: tuple[Path, Path]) -> None:
    """Its results have its note, its checkpoint is still that of before the first epoch."""
    leave_run(folders)
    torch.save({"trainer": {"epoch": 0}, "run": "first"}, folders[0] / "last.pt")
    claim_run(*folders, resume=True)
    claim_run(*folders)


def test_results_of_another_run_are_kept(folders: tuple[Path, Path], tmp_path: Path) -> None:
    leave_run(folders)
    with pytest.raises(DataError, match=rf"{folders[1]}: the results of another run .* are in {folders[0]}\."):
        claim_run(tmp_path / "others", folders[1])
    claim_run(tmp_path / "others", folders[1], overwrite=True)
    unlock_folder(tmp_path / "others")


def test_a_resumed_run_goes_on_with_its_own_results_alone(folders: tuple[Path, Path], tmp_path: Path) -> None:
    leave_run(folders)
    other = (tmp_path / "other_models", tmp_path / "other_output")
    leave_run(other, run="second")
    with pytest.raises(DataError, match="the results of another run"):
        claim_run(other[0], folders[1], resume=True)
    claim_run(*other, resume=True)
    for folder in other:
        unlock_folder(folder)


def test_results_without_a_note_are_those_of_a_run_that_leaves_none(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Of an older version, or one that failed in its first epoch."""
    for epoch, run in ((3, {}), (0, {"run": "first"})):
        leave_run(folders, epoch=0)
        torch.save({"trainer": {"epoch": epoch}, **run}, folders[0] / "last.pt")
        (folders[1] / "tensorboard").mkdir()
        (folders[1] / "tensorboard" / "events.out.tfevents.1").touch()
        claim_run(*folders, resume=True)
        for folder in folders:
            unlock_folder(folder)
        if run:
            break
        shutil.rmtree(folders[0])
        shutil.rmtree(folders[1])
    leave_run((tmp_path / "others", tmp_path / "others_output"))
    for place, resume in ((tmp_path / "others", True), (tmp_path / "new", False)):
        with pytest.raises(DataError, match=rf"{folders[1]}: the results of another run are kept here\. Choose"):
            claim_run(place, folders[1], resume=resume)


def test_a_damaged_checkpoint_is_an_earlier_run(folders: tuple[Path, Path]) -> None:
    leave_run(folders)
    (folders[0] / "last.pt").write_bytes(b"damaged")
    with pytest.raises(DataError, match="an earlier run is kept here"):
        claim_run(*folders)


def test_the_evaluation_of_other_weights_is_kept(tmp_path: Path) -> None:
    record = {"name": "a", "epoch": 3, "labels": {"liver": 1}}
    check_evaluation(tmp_path, record)
    write_json(tmp_path / "summary.json", {"model": record})
    for same in (record, {}):  # weights without a record cannot be told apart
        check_evaluation(tmp_path, same)
    with pytest.raises(DataError, match=r"keeps the evaluation of other weights \(epoch of their records differ\)"):
        check_evaluation(tmp_path, record | {"epoch": 4})
    check_evaluation(tmp_path, record | {"epoch": 4}, overwrite="true")
    check_evaluation(tmp_path, record, weights="a")
    write_json(tmp_path / "summary.json", {"model": record, "weights": "a"})
    check_evaluation(tmp_path, {}, weights="a")
    with pytest.raises(DataError, match=r"\(epoch, labels, name of their records differ\)"):
        check_evaluation(tmp_path, {}, weights="b")
    with pytest.raises(DataError, match=r"\(their files differ\)"):
        check_evaluation(tmp_path, record, weights="b")
