from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from shared.data import load_datalist
from shared.datasets.ct_cases import (
    BTCV_LABELS,
    PAPER_VOXEL_SHARES,
    CtCase,
    check_ct_case,
    check_ct_cases,
    classes_of,
    count_organs,
    map_cases,
    match_cases,
    organ_table,
    write_ct_datalist,
)
from shared.transforms import LoadVolumed
from shared.utils import DataError, DiskFullError

GRID = np.diag([10.0, 10, 10, 1])
LABELS = {"spleen": 1, "tumour": 2, "liver": 3}


def write_pair(
    folder: Path,
    name: str,
    labels: np.ndarray,
    affine: np.ndarray | None = None,
) -> CtCase:
    folder.mkdir(exist_ok=True)
    image, label = folder / f"{name}.nii.gz", folder / f"{name}_label.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros(labels.shape, np.int16), GRID), image)
    nib.save(nib.Nifti1Image(labels, GRID if affine is None else affine), label)
    return CtCase(name, image, label)


def cases_of(*voxels: Mapping[int, int]) -> list[CtCase]:
    return [CtCase(f"case{k}", Path(f"/a/{k}.nii"), Path(f"/b/{k}.nii"), v) for k, v in enumerate(voxels)]


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32, np.float64])
def test_voxels_of_each_label_are_counted(tmp_path: Path, kind: type) -> None:
    labels = np.random.default_rng(0).choice([0, 1, 3], (5, 6, 7)).astype(kind)
    case = check_ct_case(write_pair(tmp_path, "a", labels), LABELS)
    assert case.voxels == {i: sum(v == i for v in labels.ravel().tolist()) for i in (1, 3)}
    assert case.overlap is None


def test_an_affine_may_differ_by_a_thousandth(tmp_path: Path) -> None:
    labels = np.ones((4, 4, 4), np.uint8)
    for difference, fits in ((0.0009, True), (0.002, False)):
        affine = GRID.copy()
        affine[1, 3] = difference
        case = write_pair(tmp_path, "a", labels, affine)
        if fits:
            assert check_ct_case(case, LABELS).voxels == {1: 64}
        else:
            with pytest.raises(DataError, match=r"a_label.nii.gz: its affine is"):
                check_ct_case(case, LABELS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.int16([1, 4]), r"holds the label values 4 in 1 voxels, expected whole numbers from 0 to 3\."),
        (np.int16([1, -1]), r"holds the label values -1 in"),
        (np.int16([1, 257]), r"holds the label values 257 in"),
        (np.float32([1, 1.5]), r"holds the label values 1\.5 in"),
        (np.float32([1, np.nan]), r"holds the label values nan in"),
    ],
)
def test_wrong_labels_are_named(tmp_path: Path, values: np.ndarray, message: str) -> None:
    labels = np.zeros((4, 4, 4), values.dtype)
    labels[0, 0, :2] = values
    with pytest.raises(DataError, match=message):
        check_ct_case(write_pair(tmp_path, "a", labels), LABELS)


def test_all_faults_are_listed_at_once(tmp_path: Path) -> None:
    good = np.ones((4, 4, 4), np.uint8)
    cases = [write_pair(tmp_path, f"c{k}", good if k < 2 else 9 * good) for k in range(9)]
    with pytest.raises(DataError) as error:
        check_ct_cases("the source", {"training": cases[5:], "test": cases[:5]}, LABELS)
    assert "the source: 7 of 9 cases cannot be used." in str(error.value)
    assert str(error.value).count("holds the label values 9 in 64 voxels") == 7  # not the first few alone
    assert "add them to --exclude: c2,c3,c4,c5,c6,c7,c8\n" in str(error.value)
    checked = check_ct_cases("", {"training": cases[1:2], "validation": [], "test": cases[:1]}, LABELS)
    assert {split: [c.name for c in part] for split, part in checked.items()} == {
        "training": ["c1"], "validation": [], "test": ["c0"]
    }  # fmt: skip
    assert [case.voxels for part in checked.values() for case in part] == [{1: 64}, {1: 64}]
    cases[0].image.unlink()
    cases[1].label.write_bytes(cases[1].label.read_bytes()[:-30])
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.uint8), GRID), cases[2].label)
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 3), np.uint8), GRID), cases[3].label)
    with pytest.raises(DataError) as error:
        check_ct_cases("the source", {"training": cases[:4]}, LABELS)
    assert "c0.nii.gz: cannot be read" in str(error.value)
    assert "c1_label.nii.gz: cannot be read" in str(error.value)
    assert "c2_label.nii.gz: a 4D volume (4 × 4 × 4 × 2), expected 3D" in str(error.value)
    assert "c3_label.nii.gz: a grid of 4 × 4 × 3 voxels, expected 4 × 4 × 4 as in" in str(error.value)


def test_label_maps_in_another_order_of_axes_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0, 1, 2:] = 1
    cases = [write_pair(tmp_path, f"c{k}", labels) for k in range(3)]
    for case in cases[1:]:
        turned = nib.load(case.label).as_reoriented(np.array([[2, -1], [0, 1], [1, 1]]))
        nib.save(nib.Nifti1Image(np.asanyarray(turned.dataobj)[..., None], turned.affine), case.label)
    checked = check_ct_cases("the source", {"training": cases}, LABELS)["training"]
    assert [case.voxels for case in checked] == [{1: 2}] * 3
    said = "2 of 3 label maps have their voxels in another order than their scan and are reoriented"
    assert caplog.messages == [f"the source: {said}"]


SIDED = {"left_kidney": 1, "liver": 2}


def test_ids_and_orientation_are_taken_as_training_takes_them(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).choice(np.uint16([0, 5, 300, 7, 9]), (5, 6, 7))
    case = write_pair(tmp_path, "a", labels)
    for path in (case.image, case.label):
        stored = nib.load(path)
        stored = type(stored)(np.asanyarray(stored.dataobj), None, stored.header)
        stored.header["sform_code"] = stored.header["qform_code"] = 0
        nib.save(stored, path)
    ids = {"liver": [5, 300], "left_kidney": 7}
    with pytest.raises(DataError, match=r"a.nii.gz: its header says nothing of its orientation .*left_kidney cannot"):
        check_ct_case(case, SIDED, ids)
    found = check_ct_case(case, SIDED, ids, "RAS").voxels
    assert found == {1: (labels == 7).sum(), 2: np.isin(labels, (5, 300)).sum()}
    load = LoadVolumed(["image", "label"], "label", SIDED, label_ids=ids, assume_orientation="RAS")
    loaded = load({"image": case.image, "label": case.label})["label"].numpy()
    assert found == {i: (loaded == i).sum() for i in (1, 2)}
    nib.save(nib.Nifti1Image(np.zeros(labels.shape, np.int16), GRID), case.image)
    with pytest.raises(DataError, match=r"a_label.nii.gz: its header says nothing"):
        check_ct_case(case, SIDED, ids)


def test_classes_are_numbered_as_btcv_does_where_they_are_its_organs() -> None:
    ids = {name: 100 + i for name, i in reversed(BTCV_LABELS.items())}
    assert classes_of(ids) == BTCV_LABELS
    assert classes_of({"tumour": [3, 4], "liver": 1}) == {"tumour": 1, "liver": 2}
    for wrong, message in (({"a": 1, "b": [2, 1]}, r"the id 1 more than once, for a and b"), ({"a": 65536}, "65536")):
        with pytest.raises(DataError, match=message):
            classes_of(wrong)


def test_what_training_has_to_be_told_is_said_and_taken(tmp_path: Path) -> None:
    splits = {split: cases_of({1: 3}) for split in ("training", "validation")}
    case = write_pair(tmp_path / "data", "a", np.zeros((2, 2, 2), np.uint8))
    splits = {split: [case] for split in splits}
    facts = {"name": "made up", "split": "hand"}
    text = write_ct_datalist(tmp_path / "btcv", facts, BTCV_LABELS, splits)
    assert "Training" not in text
    text = write_ct_datalist(tmp_path / "gaps", facts, {"liver": 300, "spleen": 5}, splits)
    said = """ need --labels "{'spleen': 1, 'liver': 2}" --label_ids "{'spleen': 5, 'liver': 300}"."""
    assert text.endswith(f"\nTraining and evaluation{said}")
    how = {"label_ids": {"left_kidney": 7, "liver": [5, 300]}, "assume_orientation": "LPS"}
    text = write_ct_datalist(tmp_path / "out", facts, SIDED, splits, **how)
    assert text.endswith(
        """need --labels "{'left_kidney': 1, 'liver': 2}" --label_ids "{'left_kidney': 7, 'liver': [5, 300]}" """
        "--assume_orientation LPS."
    )
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    assert content["labels"] == {"0": "background", "5": "liver", "7": "left_kidney", "300": "liver"}
    load_datalist(tmp_path / "out/dataset.json", "training", labels=SIDED, label_ids=how["label_ids"])
    with pytest.raises(DataError) as error:
        load_datalist(tmp_path / "out/dataset.json", "training", labels=SIDED)
    assert """(--label_ids "{'left_kidney': 7, 'liver': [5, 300]}")""" in str(error.value)


def patched(path: Path, **header: object) -> None:
    """A file of ones whose header is not what nibabel would write."""
    image = nib.Nifti1Image(np.ones((4, 4, 20), np.uint8), np.eye(4))
    for key, value in ({"sform_code": 1, "vox_offset": 352} | header).items():
        image.header[key] = value
    with nib.openers.ImageOpener(path, "wb") as file:
        file.write(image.header.binaryblock + b"\0" * 4 + bytes([1]) * 320)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({f"srow_{axis}": [0, 0, 0, 0] for axis in "xyz"}, "the spacing in its header is 0 × 0 × 0 mm"),
        ({"srow_y": [1, 0, 0, 0]}, r"the spacing in its header is 1.41421 × 0 × 1 mm"),
        ({"srow_x": [1, 1, 0, 0], "srow_y": [1, 1, 0, 0]}, "the axes of its grid are not perpendicular"),
        ({"srow_x": [1, 0, 0.5, 0]}, "the axes of its grid are not perpendicular"),
        ({"srow_x": [1, 0, np.nan, 0]}, "the spacing in its header is 1 × 1 × nan mm"),
        ({"pixdim": [1, 1, 0, 1, 0, 0, 0, 0]}, "the spacing in its header is 1 × 0 × 1 mm"),
    ],
    ids=["zero", "singular", "parallel axes", "sheared", "NaN", "zero spacing"],
)
def test_a_grid_that_training_refuses_is_refused(tmp_path: Path, header: dict[str, object], message: str) -> None:
    case = CtCase("a", tmp_path / "a.nii.gz", tmp_path / "a_label.nii.gz")
    for path in (case.image, case.label):  # both alike: comparing them finds nothing
        patched(path)
    assert check_ct_case(case, LABELS).voxels == {1: 320}
    for path in (case.image, case.label):
        patched(path, **header)
    with pytest.raises(DataError, match=message):
        check_ct_case(case, LABELS)
    with pytest.raises(DataError, match=message):
        LoadVolumed("image")({"image": case.image})


def test_a_coloured_label_map_is_refused(tmp_path: Path) -> None:
    case = write_pair(tmp_path, "a", np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]))
    with pytest.raises(DataError, match=r"a_label.nii.gz: a colour or multi-channel picture \(4 × 4 × 4, 3 values"):
        check_ct_case(case, LABELS)


def test_a_full_disk_is_not_taken_for_a_fault_of_the_case(tmp_path: Path) -> None:
    def write(case: CtCase) -> None:
        raise DiskFullError(f"{case.name}: could not be written, the disk is full.")

    cases = [CtCase(str(k), tmp_path / "image", tmp_path / "label") for k in range(2)]
    with pytest.raises(DiskFullError):
        map_cases(tmp_path, write, cases, 1, "writing")


def test_pairs_and_what_is_left_out() -> None:
    images, labels = ({n: Path(k, n) for n in names} for k, names in (("i", "abc"), ("l", "bcd")))
    with pytest.raises(DataError) as error:
        match_cases("the source", images, labels)
    assert "the source: 2 of 4 cases cannot be used." in str(error.value)
    assert str(error.value).endswith(
        "--exclude: a,d\n  i/a: has no label map. Unpack it again.\n  l/d: has no image. Unpack it again."
    )
    cases = match_cases("", images, labels, ["a", "d"])
    assert cases == [CtCase(n, Path("i", n), Path("l", n)) for n in "bc"]
    with pytest.raises(DataError, match=r"the source: has no case e\. Its 4 cases are called as a, b, c, .*--exclude"):
        match_cases("the source", images, labels, ["a", "d", "e"])


def test_organs_are_counted_beside_the_paper() -> None:
    first, second, third = cases_of({1: 10, 3: 60}, {1: 20}, {3: 110})
    rows = count_organs(LABELS, {"training": [first, second], "test": [third]})
    assert rows == [
        {"organ": "spleen", "id": 1, "training": 2, "test": 0, "voxels": 30, "share_percent": 15.0,
         "paper_percent": 9.1},
        {"organ": "tumour", "id": 2, "training": 0, "test": 0, "voxels": 0, "share_percent": 0.0,
         "paper_percent": None},
        {"organ": "liver", "id": 3, "training": 1, "test": 1, "voxels": 170, "share_percent": 85.0,
         "paper_percent": 55.2},
    ]  # fmt: skip
    lines = organ_table(rows).splitlines()
    assert lines[0].split() == list(rows[0])
    assert lines[1].split() == ["spleen", "1", "2", "0", "30", "15.0", "9.1"]
    assert lines[2].split() == ["tumour", "2", "0", "0", "0", "0.0"]
    assert count_organs(LABELS, {"training": []})[0]["share_percent"] == 0
    assert PAPER_VOXEL_SHARES.keys() == BTCV_LABELS.keys()
    assert sum(PAPER_VOXEL_SHARES.values()) == pytest.approx(100, abs=0.1)


def test_datalist_and_tables(tmp_path: Path) -> None:
    pairs = [write_pair(tmp_path / "data", f"c{k}", np.full((2, 2, 2), k % 4, np.uint8)) for k in range(5)]
    cases = check_ct_cases("", {"test": pairs}, LABELS)["test"]
    splits = {"training": cases[:2], "validation": cases[2:3], "test": []}
    facts = {"name": "made up", "split": "hand", "modality": {"0": "CT"}}
    text = write_ct_datalist(tmp_path / "out", facts, LABELS, splits, left_out=cases[4:])
    rows = count_organs(LABELS, splits)
    assert text.startswith(organ_table(rows) + "\nSplit by hand: 2 training, 1 validation, 0 test.\n")
    organs = list(csv.DictReader((tmp_path / "out/organs.csv").read_text().splitlines()))
    assert organs == [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    assert content == {
        "synthetic": False,
        "name": "made up",
        "split": "hand",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "spleen", "2": "tumour", "3": "liver"},
        "training": [
            {"case": f"c{k}", "image": f"../data/c{k}.nii.gz", "label": f"../data/c{k}_label.nii.gz"} for k in (0, 1)
        ],
        "validation": [{"case": "c2", "image": "../data/c2.nii.gz", "label": "../data/c2_label.nii.gz"}],
    }  # fmt: skip
    assert len(load_datalist(tmp_path / "out/dataset.json", "training", labels=LABELS)) == 2
    table = list(csv.DictReader((tmp_path / "out/cases.csv").read_text().splitlines()))
    assert [(row["case"], row["split"], row["organs"], row["spleen"]) for row in table] == [
        ("c0", "training", "0", "0"),
        ("c1", "training", "1", "8"),
        ("c2", "validation", "1", "0"),
        ("c4", "left_out", "0", "0"),
    ]
    assert table[1]["lacking"] == "tumour liver"
    write_ct_datalist(tmp_path / "out", facts, LABELS, splits)
    with pytest.raises(DataError, match="holds another datalist"):
        write_ct_datalist(tmp_path / "out", {**facts, "name": "b"}, LABELS, splits)
    write_ct_datalist(tmp_path / "out", {**facts, "name": "b"}, LABELS, splits, overwrite=True)
    with pytest.raises(DataError, match="no case is left for training"):
        write_ct_datalist(tmp_path / "none", facts, LABELS, {"training": [], "test": cases})
    assert not (tmp_path / "none").exists()
