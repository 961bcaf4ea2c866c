from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from commands import run
from dicom_files import CAPTURE, write_dicom, write_enhanced, write_series, write_slice
from PIL import Image
from region_images import HEIGHT, WIDTH, texture, write_dicom_slide

from shared.data import Region, case_name, dicom_series, list_images, list_inputs, read_rgb, source_digest, zipped
from shared.transforms import LoadVolumed
from shared.utils import DataError, write_json


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def cases(path: object) -> list[str]:
    return [item["case"] for item in list_inputs(path)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two volumes, one DICOM folder (without file extensions), and things that are no CT."""
    touch(tmp_path / "b.nii.gz")
    touch(tmp_path / "a.MHA")
    touch(tmp_path / "notes.txt")
    touch(tmp_path / ".hidden.nii")
    touch(tmp_path / "series" / "IM0001", b"\0" * 128 + b"DICM" + b"\0" * 9)
    touch(tmp_path / "papers" / "paper.pdf")
    return tmp_path


def test_names() -> None:
    assert [case_name(p) for p in ("x/a.b.nii.gz", "a.nrrd", "plain", "A.NII.GZ")] == ["a.b", "a", "plain", "A"]


def test_folder_of_volumes_and_dicom_folders(folder: Path) -> None:
    assert list_inputs(folder) == [
        {"image": str(folder / "a.MHA"), "case": "a"},
        {"image": str(folder / "b.nii.gz"), "case": "b"},
        {"image": str(folder / "series"), "case": "series"},
    ]


def test_one_file_one_dicom_folder_a_pattern_and_a_list(folder: Path) -> None:
    assert cases(str(folder / "b.nii.gz")) == ["b"]
    assert cases(folder / "series") == ["series"]
    assert cases(str(folder / "*.nii.gz")) == ["b"]
    assert cases([folder / "series", str(folder / "*.[nM]*")]) == ["series", "a", "b"]
    assert cases([folder / "b.nii.gz", folder]) == ["b", "a", "series"]


def test_datalist_gives_its_test_split(folder: Path) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps({"training": [{"image": "a.MHA"}], "test": [{"image": "b.nii.gz"}, "series"]}))
    assert list_inputs(path)[0] == {"image": str(folder / "b.nii.gz"), "case": "b"}
    assert cases(path) == ["b", "series"]
    path.write_text(json.dumps({"training": []}))
    with pytest.raises(DataError, match=r"dataset\.json: the list 'test' is missing"):
        list_inputs(path)
    for test, message in [
        ([], "'test' is empty"),
        ("abc", "'test' is not a list"),
        ({"a": "b"}, "'test' is not a list"),
        (["b.nii.gz", {"image": 5}], "entry 1 of 'test': image is 5, expected the path"),
        (["", {}], "entry 0 of 'test': image is '', expected the path"),
        ([{"image": "b.nii.gz", "mpp": "abc"}], "mpp of entry 0 of 'test' is 'abc', expected a number from 0.05 to 4"),
    ]:
        path.write_text(json.dumps({"test": test}))
        for find in (list_inputs, list_images):
            with pytest.raises(DataError, match=message):
                find(path)


def test_names_hold_the_folders_from_the_wild_card_on(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        touch(tmp_path / patient / "scan" / "ct.nii.gz")
    touch(tmp_path / "p2" / "scan" / "other.nii.gz")
    assert cases(str(tmp_path / "*" / "scan" / "*.nii.gz")) == ["p1_scan_ct", "p2_scan_ct", "p2_scan_other"]
    assert cases(str(tmp_path / "p2" / "scan" / "*.nii.gz")) == ["ct", "other"]
    assert cases([tmp_path / "p1" / "scan", tmp_path / "p2" / "scan" / "ct.nii.gz"]) == ["p1_scan_ct", "p2_scan_ct"]


def test_names_in_a_datalist_are_those_of_training(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        touch(tmp_path / patient / "ct.nii.gz")
    write_json(tmp_path / "one.json", {"test": ["p1/ct.nii.gz"]})
    assert cases(tmp_path / "one.json") == ["ct"]
    write_json(tmp_path / "two.json", {"test": ["p1/ct.nii.gz", {"image": "p2/ct.nii.gz", "case": "second"}]})
    assert cases(tmp_path / "two.json") == ["ct", "second"]
    write_json(tmp_path / "two.json", {"test": ["p1/ct.nii.gz", "p2/ct.nii.gz"]})
    assert cases(tmp_path / "two.json") == ["p1_ct", "p2_ct"]
    touch(tmp_path / "p1" / "ct.nrrd")
    write_json(tmp_path / "two.json", {"test": ["p1/ct.nii.gz", "p1/ct.nrrd", "p2/ct.nii.gz"]})
    assert cases(tmp_path / "two.json") == ["p1_ct.nii.gz", "p1_ct.nrrd", "p2_ct"]


def test_two_links_to_one_file_are_two_cases_and_one_that_leads_nowhere_is_no_secret(tmp_path: Path) -> None:
    touch(tmp_path / "store" / "0af3.nii.gz")
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.nii.gz").symlink_to(tmp_path / "store" / "0af3.nii.gz")
    (tmp_path / "in" / "lost.nii.gz").symlink_to("../gone.nii.gz")
    found = list_inputs([tmp_path / "in", tmp_path / "in/../in/a.nii.gz"])
    assert [item["case"] for item in found] == ["a", "b", "lost"]
    assert [item["image"] for item in found] == [str(tmp_path / "in" / f"{n}.nii.gz") for n in ("a", "b", "lost")]


def test_files_of_one_stem_are_told_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for name in ("ct.nii.gz", "ct.nii", "ct.mha", "other.nii", "a_b.nii", "a/b.nii", "c/a/b.nii"):
        touch(tmp_path / name)
    assert cases(tmp_path) == ["a_b", "ct.mha", "ct.nii", "ct.nii.gz", "other"]
    assert (
        caplog.records[-1].getMessage()
        == f"{tmp_path}/ct.nii.gz is the case ct.nii.gz, since others are called ct, too"
    )
    assert cases(str(tmp_path / "**/*b.nii")) == ["a_b.nii", "a_b.nii_2", "c_a_b"]
    for name in ("x.json", "y.json"):
        write_json(tmp_path / name, {"test": [{"image": f"ct.{'nii' if name < 'y' else 'mha'}", "case": "mine"}]})
    assert cases([tmp_path / "x.json", tmp_path / "y.json"]) == ["mine.nii", "mine.mha"]


def test_a_new_name_is_nobody_else_s(study: Path) -> None:
    write_series(study / "more", 3, SeriesInstanceUID="1.2.60", SeriesDescription="Abdomen")
    entries = [{"image": "ST0/SE0", "case": "a"}, {"image": "more", "case": "a_2"}]
    write_json(study / "dataset.json", {"test": entries})
    assert listed(study / "dataset.json", "Abdomen") == [("a", "1.2.2"), ("a_3", "1.2.5"), ("a_2", "1.2.60")]


def test_pairs_of_header_and_voxels_are_one_volume_each(tmp_path: Path) -> None:
    for name in ("ct.hdr", "ct.img", "B.HDR", "B.IMG", "envi.hdr", "alone.img"):
        touch(tmp_path / name)
    assert cases(tmp_path) == ["B", "ct"]
    assert cases(tmp_path / "ct.img") == ["ct"]
    assert cases([str(tmp_path / "ct.*"), str(tmp_path / "B.*")]) == ["ct", "B"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "No CT is given.*--input"),
        ([], "No CT is given"),
        (True, "No CT is given"),
        ("missing.nii.gz", r"missing\.nii\.gz: there is no such file or folder"),
        ("none*.nii", r"none\*\.nii: no file or folder fits this pattern"),
        ("papers", r"papers: holds no CT\. Looked for \.nii"),
    ],
)
def test_nothing_found(folder: Path, monkeypatch: pytest.MonkeyPatch, given: object, message: str) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(DataError, match=message):
        list_inputs(given)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """As a PACS exports it: two CT series in a folder, one in another, and what comes with them."""
    root = tmp_path / "study"
    for number, count in ((2, 4), (5, 3)):
        values = {"SeriesInstanceUID": f"1.2.{number}", "SeriesNumber": f"{number}"}
        values |= {"SeriesDescription": {2: "Abdomen nativ", 5: "Abdomen portal"}[number]}
        write_series(root / "ST0" / "SE0", count, name=f"{number}-{{}}", **values)
    write_series(root / "ST0" / "SE1" / "deep", 3, name="IM{}", SeriesInstanceUID="1.2.33", preamble=False)
    scout = {"SeriesInstanceUID": "1.2.40", "SeriesNumber": "1", "SeriesDescription": "Abdomen topo"}
    write_slice(root / "ST0" / "SE0" / "scout", 0, ImageType="ORIGINAL\\PRIMARY\\LOCALIZER", **scout)
    write_slice(root / "ST0" / "SE0" / "single", 0, SeriesInstanceUID="1.2.41", SeriesNumber="7")
    write_slice(root / "ST0" / "SE2" / "screen", 0, SeriesInstanceUID="1.2.42", SOPClassUID=CAPTURE)
    write_dicom(root / "ST0" / "SE3" / "dose", None, SeriesInstanceUID="1.2.43", Modality="SR")
    write_dicom(root / "DICOMDIR", None, SOPClassUID="1.2.840.10008.1.3.10")
    touch(root / "viewer" / "viewer.exe")
    return root


def listed(path: object, series: str | int = "") -> list[tuple[str, str]]:
    return [(item["case"], item["series"]) for item in list_inputs(path, series)]


def test_a_study_as_a_pacs_exports_it(study: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    whole = [("ST0_SE0_2", "1.2.2"), ("ST0_SE0_5", "1.2.5"), ("ST0_SE1_deep", "1.2.33")]
    assert listed(study) == whole
    for series, why in (
        ("1.2.40 with 1 slice (number 1, Abdomen topo)", "a scout (localizer)"),
        ("1.2.41 with 1 slice (number 7)", "a single slice beside other scans"),
        ("1.2.42 with 1 slice (number 2)", "no CT image but Secondary Capture Image Storage (its SOP class)"),
        ("1.2.43 with 1 file", "a report (modality SR)"),
    ):
        assert f"{series}: {why}" in caplog.text
    assert listed(study / "DICOMDIR") == whole
    assert listed([study, study / "ST0" / "SE1"]) == whole
    assert listed(str(study / "ST0" / "SE0" / "2-*")) == [("SE0_2", "1.2.2")]
    assert listed(study / "ST0" / "SE1" / "deep" / "IM1") == [("deep", "1.2.33")]
    assert list_inputs(study)[0]["image"] == str(study / "ST0" / "SE0")
    with pytest.raises(DataError, match=r"SE3: holds no CT(.|\n)*1\.2\.43 with 1 file: a report \(modality SR\)"):
        list_inputs(study / "ST0" / "SE3")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("1.2.5", [("ST0_SE0_5", "1.2.5")]),
        (5, [("ST0_SE0_5", "1.2.5")]),
        ("PORTAL", [("ST0_SE0_5", "1.2.5")]),
        (".33", [("ST0_SE1_deep", "1.2.33")]),
        ("Abdomen", [("ST0_SE0_2", "1.2.2"), ("ST0_SE0_5", "1.2.5")]),
        ("1.2.41", [("ST0_SE0_7", "1.2.41")]),
    ],
)
def test_a_series_is_chosen(study: Path, wanted: str | int, found: list[tuple[str, str]]) -> None:
    assert listed(study, wanted) == found


def test_a_series_that_is_not_there(study: Path) -> None:
    touch(study / "other.nii.gz")
    with pytest.raises(DataError, match=r"No DICOM series is 3, by"):
        list_inputs(study / "ST0" / "SE1", 3)
    with pytest.raises(DataError, match=r"No DICOM series is 'venous'.*(.|\n)*1\.2\.2 with 4 slices .number 2, Ab"):
        list_inputs(study, "venous")


def test_a_volume_is_no_series(study: Path) -> None:
    volume = touch(study / "other.nii.gz")
    write_json(study / "dataset.json", {"test": ["other.nii.gz"]})
    for given in (volume, study / "dataset.json"):
        with pytest.raises(DataError, match=r"No DICOM series is 'portal'(.|\n)*other\.nii\.gz: no DICOM series"):
            list_inputs(given, "portal")


def test_a_datalist_and_the_series_that_is_chosen(study: Path) -> None:
    write_json(study / "dataset.json", {"test": [{"image": "ST0/SE0", "case": "a"}]})
    assert list_inputs(study / "dataset.json") == [{"image": str(study / "ST0" / "SE0"), "case": "a"}]
    assert listed(study / "dataset.json", "portal") == [("a", "1.2.5")]
    assert listed(study / "dataset.json", "Abdomen") == [("a", "1.2.2"), ("a_2", "1.2.5")]


def test_a_single_slice_and_what_cannot_be_read_are_cases_of_their_own(tmp_path: Path) -> None:
    write_slice(tmp_path / "a" / "1.dcm", 0)
    assert listed(tmp_path) == [("a", "1.2.3")]
    touch(tmp_path / "b" / "2.dcm")
    assert cases(tmp_path) == ["b"]
    assert cases([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]


def test_patients_whose_series_share_a_uid(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        write_series(tmp_path / patient)
    assert listed(tmp_path) == [("p1", "1.2.3"), ("p2", "1.2.3")]
    for k in range(4):  # one series in two folders
        write_slice(tmp_path / "p3" / f"DIR{k % 2}" / f"IM{k}", k, SeriesInstanceUID="1.2.8")
    assert listed(tmp_path)[2:] == [("p3", "1.2.8")]


def test_an_enhanced_ct_is_a_volume(tmp_path: Path) -> None:
    file = write_enhanced(tmp_path / "e" / "1.dcm", [0, 5, 10])
    assert list_inputs(file) == [{"image": str(file), "case": "1"}]
    assert listed(tmp_path) == [("e", "1.2.3")]


def test_what_is_looked_through_has_an_end(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_series, "MOST_FILES", 5)
    with pytest.raises(DataError, match=r"study: holds more files than are looked through for DICOM series \(5 in"):
        list_inputs(study)
    (study / "ST0" / "SE1" / "circle").symlink_to(study / "ST0" / "SE1", target_is_directory=True)
    assert listed(study / "ST0" / "SE1") == [("deep", "1.2.33")]


def test_a_study_in_a_zip(study: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "in" / "export"), "zip", study)
    with zipfile.ZipFile(tmp_path / "in" / "export.zip", "a") as archive:
        archive.writestr("../outside", "none")
        archive.writestr("/absolute", "kept inside")
        archive.writestr("__MACOSX/._IM1", "none")
    found = list_inputs(tmp_path / "in" / "export.zip")
    assert [item["case"] for item in found] == ["export_ST0_SE0_2", "export_ST0_SE0_5", "export_ST0_SE1_deep"]
    assert found[2]["origin"] == str(tmp_path / "in" / "export.zip" / "ST0" / "SE1" / "deep")
    unpacked = Path(found[2]["image"])
    assert sorted(p.name for p in unpacked.iterdir()) == ["IM0", "IM1", "IM2"]
    names = {p.name for folder in unpacked.parents[2:4] for p in folder.iterdir() if p.name != ".lock"}
    assert names == {"export", "ST0", "viewer", "DICOMDIR", "absolute"}
    with pytest.raises(DataError, match=r"in: holds no CT(.|\n)*export\.zip: to be given itself"):
        list_inputs(tmp_path / "in")


def test_zips_are_called_by_their_own_names(study: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In cases, in what is said, and where the CTs are in a zip in it."""
    caplog.set_level(logging.INFO)
    archive = Path(shutil.make_archive(str(tmp_path / "in" / "a"), "zip", study)).rename(tmp_path / "in" / "A.ZIP")
    found = list_inputs(archive)
    assert [item["case"] for item in found] == ["A_ST0_SE0_2", "A_ST0_SE0_5", "A_ST0_SE1_deep"]
    assert f"passed over: {archive}/ST0/SE2: 1.2.42 with" in caplog.text
    assert ".writing" not in caplog.text
    (Path(found[2]["image"]) / "IM1").write_bytes(b"")
    with pytest.raises(DataError, match=rf"^{archive}/ST0/SE1/deep: 1 of 3 files(.|\n)*IM1: it is empty"):
        LoadVolumed("image")(found[2])
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as outer:
        outer.write(archive, "inner/A.ZIP")
    with pytest.raises(DataError, match=r"outer\.zip: holds no CT(.|\n)*inner/A\.ZIP: to be given itself"):
        list_inputs(tmp_path / "outer.zip")


def test_of_what_a_pattern_fits_the_rest_goes_on(study: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found = ["SE0_2", "SE0_5", "SE1_deep"]
    assert cases(str(study / "ST0" / "*")) == found
    assert f"passed over: {study}/ST0/SE3: holds no CT." in caplog.text
    assert cases(str(study / "ST0" / "*" / "[2s]*")) == ["SE0_2", "SE0_7"]  # by its name a single slice is meant
    assert "1.2.42 with 1 slice (number 2): no CT image but Secondary Capture" in caplog.text
    for none in ("SE3", "SE3/*"):
        with pytest.raises(DataError, match=r"(.|\n)*No CT is found|SE3: holds no CT"):
            list_inputs(str(study / "ST0" / none).replace("SE3", "SE[3]"))


def test_what_is_unpacked_is_removed_at_the_end(study: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "export"), "zip", study)
    (tmp_path / "tmp").mkdir()
    code = "import sys; from shared.data import list_inputs; print(*list_inputs(sys.argv[1]))"
    done = run(
        "-c", code, tmp_path / "export.zip", env={**os.environ, "TMPDIR": str(tmp_path / "tmp")}, python=sys.executable
    )
    assert f"{tmp_path / 'tmp'}/.writing-" in done.stdout, done.stderr
    assert list((tmp_path / "tmp").glob(".writing-*")) == []


def test_zips_that_cannot_be_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = touch(tmp_path / "study.zip")
    with pytest.raises(DataError, match=r"study\.zip: cannot be unpacked \(File is not a zip file\)"):
        list_inputs(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("IM1", "a" * 99)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"a" * 99, b"a" * 98 + b"b"))
    with pytest.raises(DataError, match=r"study\.zip: cannot be unpacked \(Bad CRC-32 for file 'IM1'\)"):
        list_inputs(path)
    path.write_bytes(content[:6] + b"\1" + content[7:].replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"))
    with pytest.raises(DataError, match=r"study\.zip: is encrypted"):
        list_inputs(path)
    path.write_bytes(content)
    monkeypatch.setattr(zipped, "MOST_MEMBERS", 0)
    with pytest.raises(DataError, match=r"study\.zip: holds 1 files of 0\.0 GB, .* has room for 0 of"):
        list_inputs(path)


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    """Three patches in two folders, one above them, and what is no patch."""
    for name in ("XR/b.png", "XR/a.JPG", "CS/deep/c.tiff", "d.webp"):
        touch(tmp_path / "patches" / name)
    for name in ("notes.txt", ".hidden.png", "XR/._a.png", ".cache/e.png", "CS/mask.nii.gz", "CS/table.csv"):
        touch(tmp_path / "patches" / name)
    (tmp_path / "patches" / "folder.png").mkdir()
    return tmp_path / "patches"


def image_cases(path: object) -> list[str]:
    return [item["case"] for item in list_images(path)]


def test_images_of_a_folder_and_those_below_it(patches: Path) -> None:
    found = list_images(patches)
    assert [item["case"] for item in found] == ["CS/deep/c.tiff", "XR/a.JPG", "XR/b.png", "d.webp"]
    for item in found:
        assert item["image"] == item["file"] == str(patches / item["case"])
    assert image_cases(str(patches / "XR")) == ["a.JPG", "b.png"]
    assert image_cases(patches / "CS") == ["deep/c.tiff"]


def test_one_image_a_pattern_and_a_list(patches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list_images(patches / "XR" / "b.png") == [
        {"image": str(patches / "XR/b.png"), "file": str(patches / "XR/b.png"), "case": "b.png"}
    ]
    assert image_cases(str(patches / "*" / "*.png")) == ["XR/b.png"]
    assert image_cases(str(patches / "**" / "[a-c].*[gfG]")) == ["CS/deep/c.tiff", "XR/a.JPG", "XR/b.png"]
    assert image_cases(str(patches / "[CX]*")) == ["CS/deep/c.tiff", "XR/a.JPG", "XR/b.png"]
    # what is found twice comes once, where it was found first
    assert image_cases([patches / "XR" / "b.png", str(patches / "XR"), patches / "CS"]) == [
        "XR/b.png",
        "XR/a.JPG",
        "CS/deep/c.tiff",
    ]
    monkeypatch.chdir(patches / "XR")
    assert list_images("../d.webp")[0]["file"] == str(patches / "d.webp")
    assert image_cases(["b.png", "../XR/b.png"]) == ["b.png"]


def test_a_file_that_is_named_is_taken_at_its_word(patches: Path) -> None:
    assert image_cases(patches / "notes.txt") == ["notes.txt"]  # reading it says what is wrong with it


def test_images_of_a_datalist(patches: Path) -> None:
    path = patches / "dataset.json"
    path.write_text(json.dumps({"training": [{"image": "d.webp"}], "test": [{"image": "XR/b.png"}, "CS/deep/c.tiff"]}))
    assert image_cases(path) == ["XR/b.png", "CS/deep/c.tiff"]
    path.write_text(json.dumps({"test": []}))
    with pytest.raises(DataError, match="'test' is empty"):
        list_images(path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", r"No image is given.*--input.*PNG"),
        ([], "No image is given"),
        (["d.webp", ""], "No image is given"),
        (True, "No image is given"),
        ("missing.png", r"missing\.png: there is no such file or folder"),
        ("none*.png", r"none\*\.png: no file or folder fits this pattern"),
        (".cache/none", "there is no such file"),
        ("folder.png", r"folder\.png: holds no image\. Looked for \.png, .*below it"),
    ],
)
def test_no_images_found(patches: Path, monkeypatch: pytest.MonkeyPatch, given: object, message: str) -> None:
    monkeypatch.chdir(patches)
    with pytest.raises(DataError, match=message):
        list_images(given)


def test_links_keep_their_names(tmp_path: Path) -> None:
    store = tmp_path / "store" / "0.png"
    store.parent.mkdir()
    store.touch()
    (tmp_path / "shown").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "shown" / name).symlink_to(store)
    assert [item["case"] for item in list_images(tmp_path / "shown")] == ["a.png", "b.png"]


@pytest.mark.parametrize("slides", [False, True])
def test_a_link_that_leads_nowhere_is_listed_and_fails_by_name(slides: bool, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.tif")
    (tmp_path / "b.tif").symlink_to(tmp_path / "nowhere.tif")
    for given in (tmp_path, tmp_path / "*.tif", [tmp_path / "a.tif", tmp_path / "b.tif"]):
        found = list_images(given, slides=slides)
        assert [Path(item["case"]).stem for item in found] == ["a", "b"]
    for read in (Region, read_rgb):
        with pytest.raises(DataError, match=r"b\.tif: is a link to .*nowhere\.tif, where there is no file"):
            read(found[1]["image"])


def test_the_files_of_a_dicom_slide_are_one(tmp_path: Path) -> None:
    image = texture()
    for name, series in (("1.2.840.7", "1.2.3.4"), ("both", "1.2.3.5")):
        write_dicom_slide(tmp_path / "in" / name, image, series=series)
    write_dicom_slide(tmp_path / "other", image, series="1.2.3.6")
    for file in (tmp_path / "other").iterdir():
        file.rename(tmp_path / "in" / "both" / f"x{file.name}")
    Image.fromarray(image).save(tmp_path / "in" / "c.png")
    (tmp_path / "in" / "1.2.840.7" / "notes").touch()
    found = list_images(tmp_path / "in", slides=True)
    assert [item["case"] for item in found] == ["1.2.840.7", "both/0", "both/x0", "c"]
    region = Region(found[0]["image"])
    assert (region.mpp, region.size, region.coarsest()) == (0.25, (WIDTH, HEIGHT), 4)
    assert (region.read(0, 0, WIDTH, HEIGHT) == image).all()
    slide = tmp_path / "in" / "1.2.840.7"
    for given in (slide, slide / "*.dcm", slide / "1.dcm", [slide / "0.dcm", slide]):
        (one,) = list_images(given, slides=True)
        assert (one["case"], one["image"]) == ("1.2.840.7", found[0]["image"])
    (tmp_path / "list.json").write_text(json.dumps({"test": [{"image": "in/1.2.840.7", "mpp": 0.5}]}))
    (one,) = list_images(tmp_path / "list.json", slides=True)
    assert (one["case"], one["image"], one["mpp"]) == ("in/1.2.840.7", found[0]["image"], 0.5)
    before = source_digest(found[0]["image"])
    (slide / "1.dcm").write_bytes((slide / "1.dcm").read_bytes()[:-1] + b"x")
    assert source_digest(found[0]["image"]) != before
    assert [item["case"] for item in list_images(tmp_path / "in")] == ["c.png"]


def test_slides_are_taken_for_detection_alone(patches: Path) -> None:
    for name in ("XR/g.svs", "slides/e.MRXS", "slides/e/Data0000.dat", "slides/f.ndpi"):
        touch(patches / name)
    assert image_cases(patches / "slides" / "f.ndpi") == ["f.ndpi"]
    with pytest.raises(DataError, match="holds no image"):
        list_images(patches / "slides")
    found = list_images(patches, slides=True)
    # results are called by the case: without the extension
    assert [item["case"] for item in found] == [
        "CS/deep/c",
        "XR/a",
        "XR/b",
        "XR/g",
        "d",
        "slides/e",
        "slides/f",
    ]
    assert found[1] == {"image": str(patches / "XR/a.JPG"), "file": str(patches / "XR/a.JPG"), "case": "XR/a"}
    with pytest.raises(DataError, match=r"holds no image\. Looked for .*\.svs"):
        list_images(patches / "slides" / "e", slides=True)


def test_names_do_not_change_when_a_file_joins_the_folder(patches: Path) -> None:
    for slides in (False, True):
        for given in (patches, [patches / "CS", patches / "d.webp"], str(patches / "C*")):
            before = {image["file"]: image["case"] for image in list_images(given, slides)}
            new = [touch(patches / "CS" / f"{slides}.png"), touch(patches / "CS" / str(slides) / "c.png")]
            after = {image["file"]: image["case"] for image in list_images(given, slides)}
            assert after.items() >= before.items()
            assert len(after) == len(before) + 2
            for file in new:
                file.unlink()
    touch(patches / "XR" / "b.svs")
    with pytest.raises(DataError, match=r"XR/b\.png and .*XR/b\.svs would both be the case XR/b, .*by a pattern"):
        list_images(patches, slides=True)
    assert len(list_images(patches)) == 4


def test_a_datalist_names_images_from_its_own_folder(patches: Path, tmp_path: Path) -> None:
    write_json(patches / "CS" / "dataset.json", {"test": ["deep/c.tiff", "../d.webp", str(patches / "XR/b.png")]})
    assert image_cases(patches / "CS" / "dataset.json") == ["deep/c.tiff", "d.webp", "b.png"]


def test_pixel_size_that_a_datalist_states(patches: Path) -> None:
    path = patches / "dataset.json"
    test = [{"image": "XR/b.png", "mpp": 0.23}, "CS/deep/c.tiff", {"image": "d.webp", "mpp": None}]
    path.write_text(json.dumps({"test": test}))
    assert [item.get("mpp") for item in list_images(path, slides=True)] == [0.23, None, None]
    path.write_text(json.dumps({"test": test, "mpp": 0.25}))
    assert [item.get("mpp") for item in list_images([path, patches], slides=True)] == [0.23, 0.25, 0.25, None]
    assert "mpp" not in list_images(path)[0]
