from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from shared.data import check_leakage, dataset_info
from shared.utils import DataError


def write(folder: Path, **changes: Any) -> Path:
    """A datalist of CTs without anything in two lists, and its files."""
    content = {
        split: [{"image": f"{split}_{i}.nii.gz", "label": f"{split}_{i}_label.nii.gz"} for i in range(3)]
        for split in ("training", "validation", "test")
    }
    for name in (name for entries in content.values() for entry in entries for name in entry.values()):
        (folder / name).write_text(name)
    (folder / "dataset.json").write_text(json.dumps(content | changes))
    return folder / "dataset.json"


def slides(split: str, *names: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"image": f"{split}_{i}.png", "label": 0, "domain": "CS", "slide": s} | fields for i, s in enumerate(names)]


def test_lists_that_share_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path)
    assert [check_leakage(path, scored=split) for split in (None, "test", "validation", "gone")] == [[]] * 4
    assert not caplog.records
    assert "leakage" not in dataset_info(path, leakage=[])


def test_a_missing_datalist_is_not_said_to_be_one_of_cts(tmp_path: Path) -> None:
    """The check comes first in each bundle, and dataset_info in its reports."""
    for read in (check_leakage, dataset_info):
        with pytest.raises(
            DataError, match=r"gone\.json: no such file\. Expected a datalist: .*Check `dataset_dir`"
        ) as e:
            read(tmp_path / "gone.json")
        assert "spleen" not in str(e.value)


@pytest.mark.parametrize("link", ["same", "symbolic", "hard", "label"])
@pytest.mark.parametrize("split", ["test", "validation"])
def test_files_by_all_their_names(tmp_path: Path, link: str, split: str, caplog: pytest.LogCaptureFixture) -> None:
    entry = {"image": f"{split}_0.nii.gz", "label": f"{split}_0_label.nii.gz"}
    write(tmp_path)
    if link == "same":
        entry["image"] = "../" + tmp_path.name + "/training_1.nii.gz"
    elif link == "symbolic":
        (tmp_path / "other.nii.gz").symlink_to("training_1.nii.gz")
        entry["image"] = "other.nii.gz"
    elif link == "hard":
        os.link(tmp_path / "training_1.nii.gz", tmp_path / "other.nii.gz")
        entry["image"] = "other.nii.gz"
    else:
        entry["label"] = "training_1_label.nii.gz"
    path = write(tmp_path, **{split: [entry]})
    for scored in (None, split):
        with pytest.raises(DataError, match=r"1 file \(training_1.*\) of 'training' are in '" + split) as error:
            check_leakage(path, "false", scored)
        assert str(error.value).startswith(str(path))
        assert "--allow_leakage true" in str(error.value)
        (text,) = found = check_leakage(path, "true", scored)
        assert caplog.messages[-1] == f"{path}: {text}"
        assert dataset_info(path, leakage=found)["leakage"] == [text]
    assert check_leakage(path, scored="validation" if split == "test" else "test") == []


@pytest.mark.parametrize("key", ["slide", "patient"])
def test_slides_and_patients_of_one_domain(tmp_path: Path, key: str) -> None:
    lists = {"training": slides("a", "s1", "s2"), "validation": [], "test": slides("b", "s3", "s4")}
    lists["training"][0][key] = lists["test"][1][key] = "s9"
    with pytest.raises(DataError, match=rf"1 {key} \(s9\) of 'training' are in 'test'"):
        check_leakage(write(tmp_path, **lists))
    lists["test"][1]["domain"] = "XR"
    assert check_leakage(write(tmp_path, **lists)) == []


def test_slides_that_are_shared_by_intent_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lists: dict[str, Any] = {"training": slides("a", "s1", "s2"), "test": slides("b", "s1", "s3")}
    path = write(tmp_path, split_unit="patch", validation=[], **lists)
    assert check_leakage(path) == []  # of weights it says nothing
    assert "1 slide (s1) of 'training' are in 'test', too" in caplog.text
    assert check_leakage(path, scored="test") == [caplog.messages[-1].removeprefix(f"{path}: ")]
    lists["test"][1]["image"] = lists["training"][0]["image"]
    with pytest.raises(DataError, match=r"1 file \(a_0.png\) and 1 slide \(s1\) of 'training'"):
        check_leakage(write(tmp_path, split_unit="patch", **lists))


def test_what_validation_and_test_share_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path)
    path = write(tmp_path, validation=json.loads(path.read_text())["test"])
    assert check_leakage(path) == check_leakage(path, scored="test") == []
    assert len(caplog.records) == 1
    assert "6 files (test_0.nii.gz, test_0_label.nii.gz, test_1.nii.gz, ...) of 'validation'" in caplog.text


def test_the_list_that_chooses_the_epoch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = json.loads(write(tmp_path).read_text())
    path = write(tmp_path, ood_validation=other["training"][:1])
    assert check_leakage(path) == []
    with pytest.raises(DataError, match=r"of 'training' are in 'ood_validation'"):
        check_leakage(path, val_split="ood_validation")
    path = write(tmp_path, ood_validation=other["test"][:1], validation=other["training"])
    assert check_leakage(path, val_split="ood_validation") == []
    assert "2 files (test_0.nii.gz, test_0_label.nii.gz) of 'ood_validation' are in 'test', too" in caplog.text
    assert check_leakage(path, scored="test", val_split="ood_validation") == []
    (told,) = check_leakage(path, scored="ood_validation", val_split="ood_validation")
    assert told == "Scored is what the epoch was chosen by."


def test_the_list_of_the_training_may_be_scored(tmp_path: Path) -> None:
    assert check_leakage(write(tmp_path), scored="training") == ["Scored is what the network was trained on."]


@pytest.mark.parametrize("relative", [False, True])
def test_folds_share_nothing_and_the_test_is_compared_with_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    path = write(tmp_path)
    content = json.loads(path.read_text())
    path = write(tmp_path, test=content["training"][:1] + content["test"])
    if relative:
        monkeypatch.chdir(tmp_path.parent)
        path = path.relative_to(tmp_path.parent)
    leaks = []
    for fold in range(3):
        assert check_leakage(path, scored="validation", fold=fold, folds=3) == []
        leaks += check_leakage(path, True, "test", fold=fold, folds=3)
    assert len(leaks) == 2  # in the third, the case validates


def test_unlabelled_images_that_training_sees(tmp_path: Path) -> None:
    unlabelled = slides("unlabelled", "a", "z", labelled=False)
    path = write(tmp_path, training=slides("training", "b"), unlabelled=unlabelled, test=slides("test", "a"))
    assert check_leakage(path) == []
    for scored in (None, "test"):
        with pytest.raises(DataError, match=r"1 slide \(a\) of 'unlabelled' are in 'test', too"):
            check_leakage(path, scored=scored, unlabelled=True)


def test_slides_that_a_classifier_was_trained_on(tmp_path: Path) -> None:
    """By scanner and slide: of another scanner, the same name is another slide."""
    path = write(tmp_path, training=slides("training", "a"), test=slides("test", "b", "c"))
    domain = json.loads(path.read_text())["test"][0].get("domain")
    other = [[domain, "a"], ["another scanner", "b"]]
    assert check_leakage(path, scored="test", judged_by=other) == []
    with pytest.raises(DataError, match=r"1 slide \(b\) of 'test' are of those that the classifier was trained on"):
        check_leakage(path, scored="test", judged_by=[*other, [domain, "b"]])
    assert check_leakage(path, True, scored="test", judged_by=[[domain, "b"]])
    assert check_leakage(path, scored="training", judged_by=[[domain, "a"]])  # tells of the detector's own alone
