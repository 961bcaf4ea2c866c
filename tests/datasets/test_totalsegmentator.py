from __future__ import annotations

import csv
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
from commands import run

from shared.data import load_datalist
from shared.datasets.ct_cases import BTCV_LABELS, CtCase
from shared.datasets.totalsegmentator import (
    TOTALSEGMENTATOR_ORGANS,
    find_totalsegmentator,
    merge_masks,
    merge_totalsegmentator,
    split_totalsegmentator,
)
from shared.utils import DataError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "prepare_totalsegmentator.py"
REAL = ROOT / "../shared/data/ct"
SHAPE = (12, 10, 8)
AFFINE = np.array([[-1.5, 0, 0, 40], [0, 1.5, 0, -30], [0, 0, 3, 7], [0, 0, 0, 1]])
FILES = {BTCV_LABELS[organ]: name for name, organ in TOTALSEGMENTATOR_ORGANS.items()}


def label_map(seed: int, organs: int = 13) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, organs + 1, SHAPE, dtype=np.uint8)


def write_case(folder: Path, labels: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    """A CT, and a mask for each organ, for absent ones too, as in the download."""
    (folder / "segmentations").mkdir(parents=True)
    ct = nib.Nifti1Image(np.full(labels.shape, -50, np.int16), affine)
    ct.header.set_xyzt_units("mm")
    nib.save(ct, folder / "ct.nii.gz")
    for i, name in FILES.items():
        nib.save(nib.Nifti1Image((labels == i).astype(np.uint8), affine), folder / f"segmentations/{name}.nii.gz")
    nib.save(nib.Nifti1Image(np.ones(labels.shape, np.uint8), affine), folder / "segmentations/heart.nii.gz")


def write_mask(folder: Path, name: str, mask: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    nib.save(nib.Nifti1Image(mask, affine), folder / f"segmentations/{name}.nii.gz")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Seven cases, of which s0005 has five of the organs; the table has the form of version 2."""
    for k in range(7):
        write_case(tmp_path / f"data/s000{k}", label_map(k, 5 if k == 5 else 13))
    parts = ["train", "val", "test", "train", "train", "test", "train"]
    lines = ["image_id;age;split;pathology", *(f"s000{k};5;{part};no" for k, part in enumerate(parts)), "s0900;4;val;"]
    (tmp_path / "data/meta.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return importlib.import_module("prepare_totalsegmentator")


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_file_names_cover_btcv() -> None:
    assert sorted(TOTALSEGMENTATOR_ORGANS.values()) == sorted(BTCV_LABELS)
    assert FILES[3] == "kidney_left"
    assert FILES[10] == "portal_vein_and_splenic_vein"
    assert FILES[12] == "adrenal_gland_right"


def test_a_data_set_from_the_archive_to_the_datalist(
    source: Path, tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(source)
    out = tmp_path / "out"
    script.main(str(source), str(out), workers=2)
    assert state(source) == before
    printed = capsys.readouterr().out
    assert "1 of 7 cases have fewer than 6 of the organs and are left out." in printed
    assert "Split by meta.csv: 4 training, 1 validation, 1 test." in printed
    assert "0 voxels in 0 cases were claimed by more than one mask." in printed

    splits = {s: load_datalist(out / "dataset.json", s, labels=BTCV_LABELS) for s in ("training", "validation", "test")}
    names = {s: [Path(case["image"]).parent.name for case in cases] for s, cases in splits.items()}
    assert names == {"training": ["s0000", "s0003", "s0004", "s0006"], "validation": ["s0001"], "test": ["s0002"]}
    for case in [case for cases in splits.values() for case in cases]:
        image, label = nib.load(case["image"]), nib.load(case["label"])
        assert label.get_data_dtype() == np.uint8
        assert np.array_equal(label.affine, image.affine)
        assert label.header.get_xyzt_units()[0] == "mm"
        expected = label_map(int(Path(case["image"]).parent.name[1:]))
        assert np.array_equal(np.asanyarray(label.dataobj), expected)
    content = json.loads((out / "dataset.json").read_text())
    assert content["training"][0] == {
        "case": "s0000",
        "image": "../data/s0000/ct.nii.gz",
        "label": "labels/s0000.nii.gz",
    }
    assert [case["case"] for case in splits["training"]] == names["training"]  # as in cases.csv
    assert content["labels"] == {"0": "background"} | {str(i): name for name, i in BTCV_LABELS.items()}

    maps = np.concatenate([label_map(k).ravel() for k in (0, 1, 2, 3, 4, 6)])
    organs = list(csv.DictReader((out / "organs.csv").read_text().splitlines()))
    liver = next(row for row in organs if row["organ"] == "liver")
    assert liver["paper_percent"] == "55.2"
    assert (liver["training"], liver["validation"], liver["test"]) == ("4", "1", "1")
    assert int(liver["voxels"]) == (maps == 6).sum()
    assert float(liver["share_percent"]) == pytest.approx(100 * (maps == 6).sum() / (maps > 0).sum(), abs=0.006)
    rows = {row["case"]: row for row in csv.DictReader((out / "cases.csv").read_text().splitlines())}
    assert (rows["s0005"]["split"], rows["s0005"]["organs"]) == ("left_out", "5")
    assert rows["s0005"]["lacking"].split() == [name for name, i in BTCV_LABELS.items() if i > 5]
    assert int(rows["s0002"]["pancreas"]) == (label_map(2) == 11).sum()

    script.main(str(source), str(out), min_organs=5, overwrite=True)
    assert "Split by meta.csv: 4 training, 1 validation, 2 test." in capsys.readouterr().out


def test_command_line(source: Path) -> None:
    done = run(SCRIPT, "--data_dir", source, "--output_dir", source / "out", python=sys.executable)
    assert done.returncode == 1
    assert "is inside of --data_dir, which stays as it is." in done.stderr
    assert "Traceback" not in done.stderr


def test_overlap_goes_to_the_organ_with_the_smaller_share(tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[:4] = BTCV_LABELS["liver"]
    write_case(tmp_path / "s0001", labels)
    every = np.ones(SHAPE, np.uint8)
    # The left adrenal gland is larger than the liver here, and still the smaller organ. Version 1 has masks as float.
    write_mask(tmp_path / "s0001", "adrenal_gland_left", every.astype(np.float32))
    merged, overlap, _ = merge_masks(tmp_path / "s0001/ct.nii.gz")
    assert (merged == 13).all()
    assert overlap == labels.astype(bool).sum()
    for name in FILES.values():
        write_mask(tmp_path / "s0001", name, every)
    write_mask(tmp_path / "s0001", "adrenal_gland_left", 0 * every)
    write_mask(tmp_path / "s0001", "adrenal_gland_right", 0 * every)
    merged, overlap, _ = merge_masks(tmp_path / "s0001/ct.nii.gz")
    assert (merged == BTCV_LABELS["oesophagus"]).all()
    assert overlap == every.size  # each voxel once, whatever the number of masks


def test_finished_label_maps_are_made_again_only_for_other_files(source: Path, tmp_path: Path) -> None:
    write_mask(source / "s0003", "liver", np.ones(SHAPE, np.uint8))
    cases = find_totalsegmentator(source, tmp_path / "out")
    first = merge_totalsegmentator(source, cases, 2)
    overlap = [case.overlap for case in first]
    inside = label_map(3)
    assert overlap == [0, 0, 0, (inside > 0).sum() - (inside == 6).sum(), 0, 0, 0]
    before = state(tmp_path / "out")
    assert merge_totalsegmentator(source, cases, 1) == first
    assert state(tmp_path / "out") == before
    write_mask(source / "s0003", "liver", np.zeros(SHAPE, np.uint8))
    (tmp_path / "out/labels/s0001.nii.gz").unlink()
    again = merge_totalsegmentator(source, cases, 1, overwrite=True)
    after = state(tmp_path / "out")
    changed = [Path(name).name for name in before if before[name][1] != after[name][1]]
    assert changed == ["s0001.nii.gz", "s0003.nii.gz"]
    assert again[3].overlap == 0
    assert 6 not in again[3].voxels
    assert again[1] == first[1]


def test_masks_in_another_order_are_counted_by_every_run(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for case, mask, turn in (
        ("s0002", "liver", [[1, 1], [0, 1], [2, 1]]),
        ("s0004", "spleen", [[0, -1], [1, 1], [2, 1]]),
    ):
        path = source / case / "segmentations" / f"{mask}.nii.gz"
        nib.save(nib.load(path).as_reoriented(np.array(turn)), path)
    cases = find_totalsegmentator(source, tmp_path / "out")
    for _ in range(2):  # the second finds them made
        merged = merge_totalsegmentator(source, cases)
        assert [case.voxels for case in merged[2:5:2]] == [
            {i: (label_map(k) == i).sum() for i in range(1, 14)} for k in (2, 4)
        ]
        (message,) = caplog.messages
        assert message.startswith(
            f"{source}: the masks of 2 of 7 cases have their voxels in another order than their scan"
        )
        assert "; 1 of these with left and right exchanged and nothing else: s0004. Look" in message
        caplog.clear()


def test_files_that_say_nothing_of_sides(source: Path, tmp_path: Path, script: ModuleType) -> None:
    for path in (source / "s0003").rglob("*.nii.gz"):
        stored = nib.load(path)
        stored = nib.Nifti1Image(np.asanyarray(stored.dataobj), None, stored.header)
        stored.header["sform_code"] = stored.header["qform_code"] = 0
        nib.save(stored, path)
    with pytest.raises(DataError, match=r"s0003/ct.nii.gz: its header says nothing .* --assume_orientation RAS"):
        script.main(str(source), str(tmp_path / "out"))
    script.main(str(source), str(tmp_path / "out"), assume_orientation="RAS")
    assert json.loads((tmp_path / "out/dataset.json").read_text())["assume_orientation"] == "RAS"
    with pytest.raises(DataError, match=r"s0003/ct.nii.gz: its header says nothing"):  # not: made of other files
        script.main(str(source), str(tmp_path / "out"))


def test_label_maps_of_another_version_are_kept_without_overwrite(
    source: Path, tmp_path: Path, script: ModuleType
) -> None:
    """Version 1 and 2 call different labels by the same case names."""
    script.main(str(source), str(tmp_path / "out"))
    before = state(tmp_path / "out")
    for k in range(1, 8):  # s0007 is new
        write_case(tmp_path / f"other/s000{k}", label_map(20 + k))
    with pytest.raises(DataError, match=r"out/labels: 6 label maps were made of other files .*s0001.nii.gz, .*--overw"):
        script.main(str(tmp_path / "other"), str(tmp_path / "out"))
    assert state(tmp_path / "out") == before
    (tmp_path / "out/labels/s0001.nii.gz").write_bytes(b"cut short")
    script.main(str(tmp_path / "other"), str(tmp_path / "out"), overwrite=True)
    for k in (1, 7):
        assert np.array_equal(
            np.asanyarray(nib.load(tmp_path / f"out/labels/s000{k}.nii.gz").dataobj), label_map(20 + k)
        )


def test_a_case_that_is_not_whole_is_named_and_can_be_left_out(
    source: Path, tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "s0001/ct.nii.gz").unlink()
    (source / "s0003/segmentations").rename(tmp_path / "segmentations")
    with pytest.raises(DataError) as error:
        script.main(str(source), str(tmp_path / "out"))
    assert "2 of 7 cases cannot be used." in str(error.value)
    assert "--exclude: s0001,s0003\n" in str(error.value)
    assert f"{source / 's0001/segmentations'}: has no ct.nii.gz" in str(error.value)
    assert f"{source / 's0003/ct.nii.gz'}: has no segmentations" in str(error.value)
    assert not (tmp_path / "out").exists()
    script.main(str(source), str(tmp_path / "out"), exclude=["s0001", "s0003"])
    assert "2 more were left out with --exclude." in capsys.readouterr().out
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    assert content["excluded"] == ["s0001", "s0003"]
    assert not {"s0001", "s0003"} & {e["case"] for split in ("training", "validation", "test") for e in content[split]}
    with pytest.raises(DataError, match=r"has no case s1\. Its 7 cases are called as s0000, s0001, s0002"):
        find_totalsegmentator(source, tmp_path / "out", ["s1"])


def test_what_meta_csv_has_and_the_folder_lacks_is_said(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cases = find_totalsegmentator(source, tmp_path)
    split_totalsegmentator(source, cases)
    assert caplog.messages == [
        f"{source / 'meta.csv'}: 1 of its 8 cases have no folder here: a part of the data set?"
    ]  # fmt: skip
    caplog.clear()
    splits, origin = split_totalsegmentator(
        source, [case for case in cases if case.name not in ("s0001", "s0002", "s0005")]
    )
    assert {split: len(part) for split, part in splits.items()} == {"training": 3, "validation": 1, "test": 0}
    assert origin == "meta.csv; validation is a fifth of its training cases, seed 0"
    assert [text.partition("meta.csv: ")[2] for text in caplog.messages[1:]] == [
        "none of its 2 cases of the split val is used. A fifth of its training cases is for validation.",
        "none of its 2 cases of the split test is used. There is no test split.",
    ]


def test_faults_are_named(source: Path, tmp_path: Path) -> None:
    (source / "s0000/segmentations/spleen.nii.gz").unlink()
    write_mask(source / "s0001", "liver", np.zeros((12, 10, 7), np.uint8))
    write_mask(source / "s0002", "liver", np.zeros(SHAPE, np.uint8), AFFINE + 0.01 * np.eye(4, k=3))
    write_mask(source / "s0003", "liver", np.full(SHAPE, 2, np.uint8))
    whole = (source / "s0004/segmentations/aorta.nii.gz").read_bytes()
    (source / "s0004/segmentations/aorta.nii.gz").write_bytes(whole[: len(whole) // 2])
    cases = find_totalsegmentator(source, tmp_path / "out")
    with pytest.raises(DataError) as error:
        merge_totalsegmentator(source, cases, 2)
    for text in (
        "5 of 7 cases cannot be used",
        "lacks 1 of the 13 masks: spleen.nii.gz",
        "s0001/segmentations/liver.nii.gz: a grid of 12 × 10 × 7 voxels, expected 12 × 10 × 8 as in",
        "s0002/segmentations/liver.nii.gz: its affine is",
        "s0003/segmentations/liver.nii.gz: holds the label values 2 in 960 voxels, expected whole numbers from 0 to 1",
        "s0004/segmentations/aorta.nii.gz: cannot be read",
    ):
        assert text in str(error.value)
    # the others are done, and nothing is left of the faulty ones
    assert sorted(p.name for p in (tmp_path / "out").rglob("*")) == ["labels", "s0005.nii.gz", "s0006.nii.gz"]
    with pytest.raises(DataError, match=r"holds no case. Expected a folder for each"):
        find_totalsegmentator(tmp_path / "out", tmp_path)


def test_split(tmp_path: Path) -> None:
    cases = [CtCase(f"s{k:04d}", tmp_path, tmp_path) for k in range(20)]
    splits, origin = split_totalsegmentator(tmp_path, cases[::-1])
    assert origin == "seed 0: a fifth for testing, a fifth for validation"
    assert [len(part) for part in splits.values()] == [12, 4, 4]
    assert splits == split_totalsegmentator(tmp_path, cases)[0]
    assert splits != split_totalsegmentator(tmp_path, cases, seed=1)[0]
    meta = tmp_path / "meta.csv"
    meta.write_text("image_id,age\n" + "\n".join(f"{case.name},5" for case in cases))
    assert splits == split_totalsegmentator(tmp_path, cases)[0]
    meta.write_text("image_id;split\n" + "\n".join(f"s{k:04d};{'test' if k < 5 else 'train'}" for k in range(20)))
    splits, origin = split_totalsegmentator(tmp_path, cases)
    assert origin == "meta.csv; validation is a fifth of its training cases, seed 0"
    assert [len(splits[split]) for split in ("training", "validation", "test")] == [12, 3, 5]
    assert splits["test"] == cases[:5]
    with pytest.raises(DataError, match=r"lacks 1 of 21 cases: s0100. Add their split."):
        split_totalsegmentator(tmp_path, [*cases, CtCase("s0100", tmp_path, tmp_path)])
    meta.write_text(meta.read_text().replace("s0001;test", "s0001;train1"))
    with pytest.raises(DataError, match=r"the split of a case is 'train1'. Expected one of train, val, test."):
        split_totalsegmentator(tmp_path, cases)


@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data is not here")
def test_label_map_of_a_real_ct_comes_back(tmp_path: Path) -> None:
    ct, label = nib.load(REAL / "ct_3mm.nii.gz"), nib.load(REAL / "ct_3mm_label_btcv13.nii.gz")
    expected = np.asanyarray(label.dataobj)
    write_case(tmp_path / "data/s0011", expected, ct.affine)
    (tmp_path / "data/s0011/ct.nii.gz").write_bytes((REAL / "ct_3mm.nii.gz").read_bytes())
    (case,) = merge_totalsegmentator(tmp_path / "data", find_totalsegmentator(tmp_path / "data", tmp_path / "out"))
    written = nib.load(case.label)
    assert np.array_equal(np.asanyarray(written.dataobj), expected)
    assert np.array_equal(written.affine, ct.affine)
    assert written.header["qform_code"] == ct.header["qform_code"]
    assert case.overlap == 0
    assert case.voxels[6] == 41602
    assert len(case.voxels) == 12
