from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path

import monai.transforms as mt
import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_files import write_series
from monai.data import MetaTensor

import shared.transforms.save as save_module
from shared.data import list_inputs, source_digest
from shared.reports import save_preview
from shared.reports.organs import measure_organs, write_label_names
from shared.transforms import LoadVolumed, SaveSegmentationd
from shared.transforms.save import _on_grid_of, _replace
from shared.utils import DataError, DiskFullError

LABELS = {"spleen": 1, "liver": 2, "aorta": 3}
AFFINE = np.array([[0, -0.8, 0, 10], [0.9, 0, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1.0]])
FILES = ["ct_seg.nii.gz", "ct_seg_ColorTable.ctbl", "ct_seg_labels.txt", "organs.json", "preview.png"]


def make_case(folder: Path, qform: int = 1, sform: int = 2) -> dict:
    """A preprocessed CT and a label map (100 voxels spleen, 40 liver) on the native grid."""
    path = folder / "ct.nii.gz"
    native = nib.Nifti1Image(np.random.default_rng(0).integers(-200, 200, (30, 28, 20)).astype(np.int16), AFFINE)
    native.set_qform(AFFINE, qform)
    native.set_sform(AFFINE, sform)
    native.header.set_xyzt_units("mm", "sec")
    nib.save(native, path)
    chain = [
        LoadVolumed("image", hu_key="hu"),
        mt.Orientationd("image", axcodes="RAS", labels=None),
        mt.Spacingd("image", pixdim=(1.5, 1.5, 2.0)),
        mt.ScaleIntensityRanged("image", -175, 250, 0, 1, clip=True),
    ]
    d = mt.Compose(chain)({"image": str(path)})
    labels = torch.zeros(1, 30, 28, 20, dtype=torch.uint8)
    labels[0, 3:8, 5:10, 6:10] = 1
    labels[0, 15:20, 15:17, 10:14] = 2
    return {**d, "pred": MetaTensor(labels, affine=torch.from_numpy(AFFINE))}


@pytest.mark.parametrize(("qform", "sform"), [(1, 2), (0, 1), (1, 0), (0, 2)])
def test_label_map_lies_on_the_image(tmp_path: Path, qform: int, sform: int) -> None:
    d = make_case(tmp_path, qform, sform)
    SaveSegmentationd(output_dir=tmp_path / "out", labels=LABELS)(d)
    image, result = nib.load(tmp_path / "ct.nii.gz"), nib.load(tmp_path / "out/ct/ct_seg.nii.gz")
    assert result.get_data_dtype() == np.uint8
    assert np.array_equal(np.asanyarray(result.dataobj), d["pred"][0].numpy())
    np.testing.assert_allclose(result.affine, image.affine, atol=1e-5)
    for code in ("qform_code", "sform_code", "xyzt_units"):
        assert result.header[code] == image.header[code]


@pytest.mark.parametrize(("unit", "mm"), [("meter", 1000.0), ("micron", 0.001)])
def test_a_label_map_in_mm_says_so(tmp_path: Path, unit: str, mm: float) -> None:
    image = nib.Nifti1Image(np.zeros((30, 28, 20), np.int16), None)
    image.header.set_zooms(np.array([0.9, 0.8, 2.5]) / mm)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "ct.nii.gz")
    volume = LoadVolumed("image", assume_orientation="LAS")({"image": str(tmp_path / "ct.nii.gz")})
    labels = MetaTensor(torch.ones(1, 30, 28, 20, dtype=torch.uint8), affine=volume["image"].affine)
    SaveSegmentationd(output_dir=tmp_path / "out", labels=LABELS)({**volume, "pred": labels})
    header = nib.load(tmp_path / "out/ct/ct_seg.nii.gz").header
    size = np.array(header.get_zooms()) * {"mm": 1, "meter": 1000, "micron": 0.001}[header.get_xyzt_units()[0]]
    np.testing.assert_allclose(size, [0.9, 0.8, 2.5], rtol=1e-4)


def test_organs(tmp_path: Path) -> None:
    record = {"name": "made up", "synthetic": False, "epoch": 7, "labels": LABELS}
    SaveSegmentationd(output_dir=tmp_path / "out", labels=LABELS, record=record)(make_case(tmp_path))
    content = json.loads((tmp_path / "out/ct/organs.json").read_text())
    assert "warning" not in content
    assert content["model"] == {"name": "made up", "synthetic": False, "epoch": 7}
    assert list(content["organs"]) == ["spleen", "liver", "aorta"]
    voxels = nib.load(tmp_path / "ct.nii.gz").get_fdata()[3:8, 5:10, 6:10]
    assert content["organs"]["spleen"] == {
        "label": 1,
        "voxels": 100,
        "volume_ml": 0.18,  # 0.8 * 0.9 * 2.5 mm³ a voxel
        "hu_mean": round(voxels.mean(), 1),
        "hu_std": round(voxels.std(), 1),
        "at_edge": False,
    }
    none = {"voxels": 0, "volume_ml": 0.0, "hu_mean": None, "hu_std": None, "at_edge": False}
    assert content["organs"]["aorta"] == {"label": 3, **none}


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("end", [0, -1])
def test_organs_at_the_edge_are_marked_and_measures_need_no_hu(axis: int, end: int) -> None:
    label_map = np.zeros((6, 5, 4), np.uint8)
    label_map[2, 2, 2] = 1
    np.moveaxis(label_map, axis, 0)[end, 1, 1] = 2
    organs = measure_organs(label_map, LABELS, 1000.0)
    assert {name: organ["at_edge"] for name, organ in organs.items()} == {
        "spleen": False,
        "liver": True,
        "aorta": False,
    }
    assert [organ["volume_ml"] for organ in organs.values()] == [1, 1, 0]
    assert {organ["hu_mean"] for organ in organs.values()} == {None}


def test_some_structures_and_a_file_for_each(tmp_path: Path) -> None:
    d = make_case(tmp_path)
    save = SaveSegmentationd(
        output_dir=tmp_path / "out", labels=LABELS, structures=["liver", "aorta"], per_structure="true"
    )
    save(d)
    save(d)  # the masks are no strange files
    assert [p.name for p in sorted((tmp_path / "out/ct/structures").iterdir())] == ["liver.nii.gz"]
    whole, mask = (nib.load(tmp_path / "out/ct" / name) for name in ("ct_seg.nii.gz", "structures/liver.nii.gz"))
    expected = d["pred"][0].numpy() == 2
    assert np.array_equal(np.asanyarray(whole.dataobj), expected * 2)
    assert np.array_equal(np.asanyarray(mask.dataobj), expected)
    assert mask.header["sform_code"] == whole.header["sform_code"] == 2
    np.testing.assert_array_equal(mask.affine, whole.affine)
    assert list(json.loads((tmp_path / "out/ct/organs.json").read_text())["organs"]) == ["liver", "aorta"]
    with pytest.raises(DataError, match=r"structures has 'lever', expected names of the network's classes: spleen, l"):
        SaveSegmentationd(output_dir=tmp_path, labels=LABELS, structures=["lever"])
    with pytest.raises(DataError, match=r"names that make one file \(a_b.nii.gz, a_b.nii.gz\)"):
        SaveSegmentationd(output_dir=tmp_path, labels={"a b": 1, "a/b": 2}, per_structure=True)


def test_names_lie_where_viewers_take_them_from(tmp_path: Path) -> None:
    write_label_names(tmp_path, "x", {"left kidney": 2, "liver": 1})
    slicer, snap = ((tmp_path / name).read_text().splitlines() for name in ("x_ColorTable.ctbl", "x_labels.txt"))
    assert slicer[0] == "# Color table file"
    assert [line.split()[:2] for line in slicer[2:]] == [["0", "background"], ["1", "liver"], ["2", "left_kidney"]]
    assert all(len(line.split()) == 6 for line in slicer[2:])
    assert snap[0] == "# ITK-SnAP Label Description File"
    rows = [re.fullmatch(r'(\d+) (\d+) (\d+) (\d+) [01] [01] [01] "(.*)"', line).groups() for line in snap[2:]]
    assert [(row[0], row[4]) for row in rows] == [("0", "Clear Label"), ("1", "liver"), ("2", "left kidney")]
    assert [list(row[1:4]) for row in rows[1:]] == [line.split()[2:5] for line in slicer[3:]]  # the same colours


def ones(image: MetaTensor) -> MetaTensor:
    return MetaTensor(torch.ones(image.shape), affine=image.affine)


def test_a_dicom_series_is_named(tmp_path: Path) -> None:
    """Of two in a folder each has a result, and one's is not replaced by the other's."""
    write_series(tmp_path / "ct", 6)
    write_series(tmp_path / "ct", 5, name="b{}", SeriesInstanceUID="1.2.4", SeriesNumber="3")
    shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path / "ct")
    save = SaveSegmentationd(output_dir=tmp_path / "out", labels=LABELS)
    load = mt.Compose([LoadVolumed("image"), mt.ScaleIntensityRanged("image", -175, 250, 0, 1, clip=True)])
    for item in list_inputs([tmp_path / "ct", tmp_path / "zipped.zip"]):
        d = load(item)
        save({**d, "pred": ones(d["image"])})
        content = json.loads((tmp_path / "out" / d["case"] / "organs.json").read_text())
        assert (content["study_uid"], content["series_uid"]) == ("1.2.0", item["series"])
        assert content["image"] == item.get("origin", str(tmp_path / "ct"))
        assert content["source_digest"] == source_digest(item["image"], item["series"])
    assert len(list((tmp_path / "out").iterdir())) == 4
    with pytest.raises(
        DataError, match=r"results of .*ct \(series 1\.2\.3\), another image than .*ct \(series 1\.2\.4\)"
    ):
        save({**load({**list_inputs(tmp_path / "ct")[1], "case": "ct_2"}), "pred": ones(d["image"])})


@pytest.mark.parametrize(
    ("record", "warning"),
    [({"synthetic": True}, "trained on synthetic data: not for real scans"), ({}, "Nobody knows")],
)
def test_warning(tmp_path: Path, record: dict, warning: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def spy(*args: object, **kwargs: str) -> None:
        drawn.append(kwargs["warning"])
        save_preview(*args, **kwargs)

    monkeypatch.setattr(save_module, "save_preview", spy)
    SaveSegmentationd(output_dir=tmp_path / "out", labels=LABELS, record=record)(make_case(tmp_path))
    assert warning in json.loads((tmp_path / "out/ct/organs.json").read_text())["warning"]
    assert warning in drawn[0]


def test_earlier_result_is_replaced_and_nothing_is_left_over(tmp_path: Path) -> None:
    d = make_case(tmp_path)
    save = SaveSegmentationd(output_dir=tmp_path / "out", labels=LABELS)
    save(d)
    d["pred"] = torch.zeros_like(d["pred"])
    save(d)
    assert not np.asanyarray(nib.load(tmp_path / "out/ct/ct_seg.nii.gz").dataobj).any()
    assert sorted(p.name for p in (tmp_path / "out/ct").iterdir()) == FILES
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["ct"]


def test_all_three_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(save_module, "save_preview", fail)
    with pytest.raises(DiskFullError, match="out/ct: could not be written, the disk is full"):
        SaveSegmentationd(output_dir=tmp_path / "out", labels=LABELS)(make_case(tmp_path))
    assert list((tmp_path / "out").iterdir()) == []


def test_folder_with_other_files_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out/ct").mkdir(parents=True)
    (tmp_path / "out/ct/01.dcm").touch()
    with pytest.raises(DataError, match=r"holds other things \(01\.dcm\)"):
        SaveSegmentationd(output_dir=tmp_path / "out", labels=LABELS)(make_case(tmp_path))
    assert (tmp_path / "out/ct/01.dcm").exists()


def test_output_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(DataError, match="cannot be written to"):
        SaveSegmentationd(output_dir=tmp_path / "out", labels=LABELS)(make_case(tmp_path))


def test_label_map_of_the_preview_lies_where_the_image_does(tmp_path: Path) -> None:
    """The mean position in mm of an organ is the same on both grids."""
    d = make_case(tmp_path)
    taken = _on_grid_of(d["pred"][0].numpy(), AFFINE, d["image"])
    assert taken.shape == d["image"].shape[1:]
    for label in (1, 2):
        here = (
            np.argwhere(taken == label).mean(0) @ d["image"].affine[:3, :3].numpy().T + d["image"].affine[:3, 3].numpy()
        )
        there = np.argwhere(d["pred"][0].numpy() == label).mean(0) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
        np.testing.assert_allclose(here, there, atol=1.0)


def test_the_result_of_another_scan_is_not_replaced(tmp_path: Path) -> None:
    """The same path may have changed and the same scan have moved; another scan of the same name is refused."""
    d = make_case(tmp_path)
    save = SaveSegmentationd(output_dir=tmp_path / "out", labels=LABELS, made_with={"weights": "a1", "settings": {}})
    save(d)
    written = json.loads((tmp_path / "out/ct/organs.json").read_text())
    assert (written["image"], written["weights"]) == (str(tmp_path / "ct.nii.gz"), "a1")
    (tmp_path / "b").mkdir()
    shutil.move(tmp_path / "ct.nii.gz", tmp_path / "b")
    d["image"].meta["filename_or_obj"] = str(tmp_path / "b/ct.nii.gz")
    save(d)
    assert json.loads((tmp_path / "out/ct/organs.json").read_text())["image"] == str(tmp_path / "b/ct.nii.gz")
    make_case(tmp_path / "b", sform=1)
    save(d)
    before = (tmp_path / "out/ct/organs.json").read_bytes()
    d = make_case(tmp_path)
    with pytest.raises(DataError, match=r"out/ct: holds the results of .*/b/ct\.nii\.gz, another image than .*ct\.nii"):
        save(d)
    assert (tmp_path / "out/ct/organs.json").read_bytes() == before


def test_of_two_processes_that_write_the_same_case_the_later_one_wins(tmp_path: Path) -> None:
    """Each moves aside what the other has put there meanwhile."""
    for name in ("target", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "organs.json").write_text(name)
    (tmp_path / "aside").mkdir()
    replaced = []

    class Target(type(tmp_path)):
        def rename(self, target: Path) -> Path:
            moved = Path(self).rename(target)
            if not replaced:
                replaced.append(shutil.copytree(target, self))
            return moved

    _replace(Target(tmp_path / "target"), tmp_path / "new", tmp_path / "aside" / "target")
    assert (tmp_path / "target/organs.json").read_text() == "new"
    assert replaced


def test_an_interrupt_in_the_middle_of_replacing_leaves_what_was_there(tmp_path: Path) -> None:
    for name in ("target", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "organs.json").write_text(name)
    (tmp_path / "aside").mkdir()

    class Interrupted(type(tmp_path)):
        def rename(self, target: Path) -> Path:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _replace(tmp_path / "target", Interrupted(tmp_path / "new"), tmp_path / "aside" / "target")
    assert (tmp_path / "target/organs.json").read_text() == "target"
