from __future__ import annotations

import csv
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest
from commands import run

from shared.data import load_datalist
from shared.datasets.ct_cases import CtCase
from shared.datasets.nnunet import read_nnunet, split_nnunet
from shared.transforms import LoadVolumed
from shared.utils import DataError

GRID = np.diag([5.0, 5, 5, 1])
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "prepare_nnunet.py"
VERSION_2 = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "spleen": 1, "liver": 2}}
VERSION_2 |= {"file_ending": ".nii.gz"}
VERSION_1 = {"name": "Abdomen", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "spleen", "2": "liver"}}
NAMES = tuple(f"case_{k:03d}" for k in range(10))


def write_case(folder: Path, name: str, part: str = "Tr", channel: str = "_0000", ending: str = ".nii.gz") -> None:
    for kind in ("images", "labels"):
        (folder / f"{kind}{part}").mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(len(name)).integers(0, 3, (4, 5, 6)).astype(np.uint8)
    nib.save(
        nib.Nifti1Image(voxels.astype(np.int16), GRID),
        folder / f"images{part}/{name}{channel}{ending}",
    )
    nib.save(nib.Nifti1Image(voxels, GRID), folder / f"labels{part}/{name}{ending}")


def write_tree(folder: Path, content: dict[str, Any], names: Sequence[str] = NAMES, **how: str) -> Path:
    for name in names:
        write_case(folder, name, **how)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return importlib.import_module("prepare_nnunet")


@pytest.mark.parametrize(
    ("content", "how"),
    [
        (VERSION_2, {}),
        (VERSION_1, {}),
        (VERSION_1, {"channel": ""}),  # the Medical Segmentation Decathlon
        ({**VERSION_2, "file_ending": ".nii"}, {"ending": ".nii"}),
    ],
)
def test_both_versions_are_read(tmp_path: Path, content: dict[str, Any], how: dict[str, str]) -> None:
    folder = write_tree(tmp_path / "Dataset001_Abdomen", content, **how)
    (folder / "imagesTr/._case_000.nii.gz").write_bytes(b"")  # as macOS leaves them in archives
    (folder / "labelsTr/._case_000.nii.gz").write_bytes(b"")
    facts, labels, cases, test = read_nnunet(folder)
    assert facts == {"name": content.get("name", "Dataset001_Abdomen"), "modality": {"0": "CT"}}
    assert labels == {"spleen": 1, "liver": 2}
    assert [case.name for case in cases] == list(NAMES)
    assert all(case.image.is_file() and case.label.is_file() for case in cases)
    assert test == []


def test_files_listed_in_dataset_json(tmp_path: Path) -> None:
    listed = {n: {"images": [f"imagesTr/{n}_0000.nii.gz"], "label": f"labelsTr/{n}.nii.gz"} for n in NAMES[:4]}
    folder = write_tree(tmp_path, {**VERSION_2, "dataset": listed})
    _, _, cases, _ = read_nnunet(folder)
    assert [(case.name, case.image.name) for case in cases] == [(n, f"{n}_0000.nii.gz") for n in NAMES[:4]]
    listed["case_001"]["images"] *= 2
    (folder / "dataset.json").write_text(json.dumps({**VERSION_2, "dataset": listed}))
    with pytest.raises(DataError, match=r"the case case_001 is .* with one channel"):
        read_nnunet(folder)


def test_a_data_set_and_its_datalist(tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_tree(tmp_path / "data", VERSION_2)
    before = state(folder)
    script.main(str(folder), str(tmp_path / "out"))
    assert state(folder) == before
    assert "Split by seed 0: 6 training, 2 validation, 2 test." in capsys.readouterr().out
    for split, count in (("training", 6), ("validation", 2), ("test", 2)):
        assert len(load_datalist(tmp_path / "out/dataset.json", split, labels={"spleen": 1, "liver": 2})) == count

    folds = [{"train": NAMES[:5], "val": NAMES[5:]}, {"train": NAMES[3:9], "val": NAMES[:2]}]
    (folder / "splits_final.json").write_text(json.dumps(folds))
    script.main(str(folder), str(tmp_path / "out"), fold=1, overwrite=True)
    printed = capsys.readouterr().out
    assert "Split by fold 1 of splits_final.json (its val is test)" in printed
    assert "2 cases are in no part of the fold and are left out." in printed
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    names = {
        s: [Path(entry["label"]).name[:8] for entry in content[s]] for s in ("training", "validation", "test")
    }  # fmt: skip
    assert names["test"] == list(NAMES[:2])
    assert sorted(names["training"] + names["validation"]) == list(NAMES[3:9])
    assert len(names["validation"]) == 1
    assert content["labels"] == {"0": "background", "1": "spleen", "2": "liver"}

    write_case(folder, "held_out", part="Ts")
    script.main(str(folder), str(tmp_path / "out2"))
    assert "5 training, 5 validation, 1 test." in capsys.readouterr().out
    write_case(folder, "case_003")  # now with one value too many
    nib.save(nib.Nifti1Image(np.full((4, 5, 6), 3, np.uint8), GRID), folder / "labelsTr/case_003.nii.gz")
    with pytest.raises(DataError, match=r"case_003.nii.gz: holds the label values 3 in 120 .* 0 to 2\."):
        script.main(str(folder), str(tmp_path / "out3"))
    assert not (tmp_path / "out3").exists()


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nii"])
def test_other_formats_and_ids_with_gaps(tmp_path: Path, script: ModuleType, ending: str) -> None:
    """As nnU-Net allows them; the datalist has the ids of the files, which training takes by `label_ids`."""
    labels = {"background": 0, "spleen": 5, "liver": 300}
    (tmp_path / "data").mkdir()
    folder = write_tree(tmp_path / "data", {**VERSION_2, "labels": labels, "file_ending": ending}, [])
    for name in NAMES[:5]:
        for kind in ("imagesTr", "labelsTr"):
            (folder / kind).mkdir(exist_ok=True)
        voxels = np.zeros((6, 5, 4), np.uint16)  # z, y, x
        voxels[1:3, 2, 2] = 300
        voxels[4, 4, 0] = 5
        for kind, channel in (("imagesTr", "_0000"), ("labelsTr", "")):
            image = itk.image_from_array(voxels)
            image.SetSpacing([5.0, 5, 5])
            itk.imwrite(image, str(folder / kind / f"{name}{channel}{ending}"))
    script.main(str(folder), str(tmp_path / "out"))
    rows = list(csv.DictReader((tmp_path / "out/organs.csv").read_text().splitlines()))
    assert [(row["organ"], row["id"], row["voxels"]) for row in rows] == [("spleen", "5", "5"), ("liver", "300", "10")]
    how = {"labels": {"liver": 1, "spleen": 2}, "label_ids": {"spleen": 5, "liver": 300}}
    (case, *_) = load_datalist(tmp_path / "out/dataset.json", "training", **how)
    load = LoadVolumed(["image", "label"], "label", **how)
    assert np.bincount(load(case)["label"].numpy().ravel()).tolist() == [117, 2, 1]


def test_classes_are_made_of_chosen_labels(
    tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of regions, which overlap in dataset.json; what is not named is background."""
    regions = {"background": 0, "organs": [1, 2], "liver": [2]}
    folder = write_tree(tmp_path / "data", {**VERSION_2, "labels": regions}, NAMES[:5])
    for number, ids in enumerate(({"both": [1, 2]}, {"liver": 2})):
        script.main(str(folder), str(tmp_path / f"out{number}"), label_ids=ids)
        assert f'need --labels "{dict.fromkeys(ids, 1)}" --label_ids "{ids}".' in capsys.readouterr().out
    rows = [list(csv.DictReader((tmp_path / f"out{k}/organs.csv").read_text().splitlines())) for k in (0, 1)]
    files = sorted((folder / "labelsTr").iterdir())
    counts = sum(np.bincount(np.asanyarray(nib.load(path).dataobj).ravel()) for path in files)
    assert [(row["organ"], row["voxels"]) for (row,) in rows] == [
        ("both", str(counts[1] + counts[2])),
        ("liver", str(counts[2])),
    ]
    with pytest.raises(DataError, match=r"has no label 3 for liver, 4 for liver of --label_ids. Its labels are {"):
        read_nnunet(folder, label_ids={"liver": [2, 3, 4]})


def test_split(tmp_path: Path) -> None:
    cases = [CtCase(name, tmp_path, tmp_path) for name in NAMES]
    held_out = [CtCase("held_out", tmp_path, tmp_path)]
    splits, origin = split_nnunet(cases, held_out)
    assert origin == "seed 0 and labelsTs"
    assert [len(part) for part in splits.values()] == [8, 2, 1]
    assert splits["test"] == held_out
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps([{"train": NAMES[:8][::-1], "val": NAMES[8:]}]))
    splits, _ = split_nnunet(cases, held_out, path)
    assert splits == {"training": cases[:8], "validation": cases[8:], "test": held_out}
    for fold in (1, -1, "a"):
        with pytest.raises(DataError, match=f"splits_final.json: has no fold {fold}"):
            split_nnunet(cases, [], path, fold)
    path.write_text(json.dumps([{"train": ["a", *NAMES], "val": NAMES[8:]}]))
    with pytest.raises(DataError, match=r"1 of the cases of fold 0 are not there: a\."):
        split_nnunet(cases, [], path)
    path.write_text(json.dumps([{"train": NAMES, "val": NAMES[8:]}]))
    with pytest.raises(DataError, match=r"fold 0 has case_008, case_009 twice in train or val"):
        split_nnunet(cases, [], path)
    path.write_text(json.dumps([{"train": NAMES, "val": []}]))
    with pytest.raises(DataError, match=r"fold 0 has no case in train or val"):
        split_nnunet(cases, [], path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channel_names": {"0": "T1", "1": "T2"}}, r'the channels are {"0": "T1", "1": "T2"}. Only images of one'),
        ({"file_ending": ".png"}, r"file_ending is '.png'. Expected one of \.nii, \.nii\.gz, \.nrrd"),
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2}}, r"whole has several labels: a region.*--label_ids"),
        ({"labels": None}, r"'labels' is null"),
        ({"labels": {"background": 0, "spleen": 1, "ignore": 2}}, r"label 2 is to be ignored"),
        ({"labels": {"background": 0, "spleen": 1, "liver": 1}}, r"Expected 0 \(background\) and 1 to 255 names, each"),
        ({"labels": {"0": "background", "1": "liver", "2": "liver"}}, r"liver has several labels"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_nnunet(write_tree(tmp_path, {**VERSION_2, **change}, NAMES[:1]))


def test_missing_and_further_files(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"dataset.json: no such file\. .* Check --data_dir: the folder of one data set"
    ):
        read_nnunet(tmp_path)
    folder = write_tree(tmp_path, VERSION_2, NAMES[:3])
    (folder / "imagesTr/case_001_0001.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"case_001_0001.nii.gz: is a second channel"):
        read_nnunet(folder)
    (folder / "imagesTr/case_001_0001.nii.gz").unlink()
    (folder / "imagesTr/case_002_0000.nii.gz").unlink()
    (folder / "labelsTr/case_000.nii.gz").unlink()
    with pytest.raises(DataError) as error:
        read_nnunet(folder)
    assert "2 of 3 cases cannot be used." in str(error.value)
    assert "--exclude: case_000,case_002\n" in str(error.value)
    assert f"{folder / 'imagesTr/case_000_0000.nii.gz'}: has no label map" in str(error.value)
    assert f"{folder / 'labelsTr/case_002.nii.gz'}: has no image" in str(error.value)
    assert [case.name for case in read_nnunet(folder, ["case_000", "case_002"])[2]] == ["case_001"]
    with pytest.raises(
        DataError, match=r"has no case case_003\. Its 3 cases are called as case_000, case_001, case_002"
    ):
        read_nnunet(folder, ["case_003"])
    for path in (folder / "labelsTr").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"labelsTr: holds no .nii.gz file"):
        read_nnunet(folder)


def test_number_of_cases(tmp_path: Path) -> None:
    folder = write_tree(tmp_path, {**VERSION_2, "numTraining": 4}, NAMES[:4])
    assert len(read_nnunet(folder)[2]) == 4
    assert len(read_nnunet(folder, NAMES[:1])[2]) == 3
    for kind in ("images", "labels"):
        next((folder / f"{kind}Tr").glob("case_003*")).unlink()
    with pytest.raises(DataError, match=r"dataset.json: numTraining is 4, and 3 cases are there. Unpack the data set"):
        read_nnunet(folder)


def test_a_name_of_one_case_in_both_parts_is_refused(tmp_path: Path) -> None:
    folder = write_tree(tmp_path, VERSION_2, NAMES[:4])
    write_case(folder, "case_002", part="Ts")
    with pytest.raises(DataError, match=r"case_002 are in labelsTr and in labelsTs"):
        read_nnunet(folder)


def test_images_for_testing_need_no_labels_and_names_may_end_as_a_channel(tmp_path: Path) -> None:
    folder = write_tree(tmp_path, {**VERSION_1, "dataset": "BTCV"}, ["a_0000", "a_0001", "b"], channel="")
    write_case(folder, "c", part="Ts")
    write_case(folder, "d", part="Ts")
    (folder / "labelsTs/c.nii.gz").unlink()
    _, _, cases, test = read_nnunet(folder)
    assert [(case.name, case.image.name) for case in cases] == [(n, f"{n}.nii.gz") for n in ("a_0000", "a_0001", "b")]
    assert [case.name for case in test] == ["d"]


def test_a_bad_case_can_be_left_out(tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_tree(tmp_path / "data", {**VERSION_2, "numTraining": 10})
    folds = [{"train": NAMES[:7], "val": NAMES[7:]}]
    (folder / "splits_final.json").write_text(json.dumps(folds))
    (folder / "labelsTr/case_004.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 10 cases cannot be used.*--exclude: case_004\n"):
        script.main(str(folder), str(tmp_path / "out"))
    script.main(str(folder), str(tmp_path / "out"), exclude=["case_009", "case_004"])
    assert "2 cases were left out with --exclude." in capsys.readouterr().out
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    assert content["excluded"] == ["case_004", "case_009"]
    assert [entry["case"] for entry in content["test"]] == ["case_007", "case_008"]


def test_command_line(tmp_path: Path) -> None:
    done = run(SCRIPT, "--data_dir", tmp_path, "--output_dir", tmp_path / "out", python=sys.executable)
    assert done.returncode == 1
    assert "is inside of --data_dir, which stays as it is." in done.stderr
    assert "Traceback" not in done.stderr
