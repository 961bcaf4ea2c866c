from __future__ import annotations

import importlib
import json
import shutil
import sys
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from command_line.parser import read_words
from commands import run

from shared.data import load_datalist
from shared.datasets.btcv import find_btcv, unpack_btcv
from shared.datasets.ct_cases import BTCV_LABELS
from shared.utils import DataError

GRID = np.diag([5.0, 5, 5, 1])
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "prepare_btcv.py"
NUMBERS = (*range(1, 11), *range(21, 41))  # those of the 30 labelled cases
TRAINING = "RawData/Training/img", "RawData/Training/label"


def write_tree(root: Path, images: str, labels: str, image: str = "img{:04d}", label: str = "label{:04d}") -> Path:
    for folder in (images, labels):
        (root / folder).mkdir(parents=True)
    for number in NUMBERS:
        voxels = np.random.default_rng(number).integers(0, 14, (4, 5, 6)).astype(np.uint8)
        nib.save(
            nib.Nifti1Image(voxels.astype(np.int16) - 1000, GRID),
            root / images / f"{image}.nii.gz".format(number),
        )
        nib.save(nib.Nifti1Image(voxels, GRID), root / labels / f"{label}.nii.gz".format(number))
    return root


def test_archives_that_swell_are_refused_before_anything_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "RawData.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("RawData/Training/img/img0001.nii.gz", bytes(10**6))
    with pytest.raises(DataError, match=r"RawData\.zip: .*img0001\.nii\.gz claims more than 100 times its size"):
        unpack_btcv(archive, tmp_path / "out")
    archive = write_archive(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(DataError, match=r"RawData\.zip: 0\.0 GB are to be unpacked, and .*out has 0\.0 GB free"):
        unpack_btcv(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def write_archive(folder: Path, prefix: str = "") -> Path:
    tree = write_tree(folder / "tree", *TRAINING)
    with zipfile.ZipFile(folder / "RawData.zip", "w") as file:
        for path in sorted(tree.rglob("*.gz")):
            file.write(path, prefix + path.relative_to(tree).as_posix())
        file.writestr(prefix + "RawData/Testing/img/img0061.nii.gz", b"not labelled")
        file.writestr("../../Training/img/../escape.nii.gz", b"out of the folder")
    return folder / "RawData.zip"


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return importlib.import_module("prepare_btcv")


@pytest.mark.parametrize(
    "arrangement",
    [
        TRAINING,
        ("Training/img", "Training/label"),
        ("img", "label"),
        ("imagesTr", "labelsTr"),
        ("RawData/imagesTr", "RawData/labelsTr"),
        ("imagesTr", "labelsTr", "BTCV_{:04d}_0000", "BTCV_{:04d}"),
    ],
)
def test_all_arrangements_give_the_same_cases(tmp_path: Path, arrangement: tuple[str, ...]) -> None:
    cases = find_btcv(write_tree(tmp_path, *arrangement))
    assert [case.name for case in cases] == [f"{number:04d}" for number in NUMBERS]
    for case in cases[::10]:
        assert np.array_equal(nib.load(case.image).get_fdata() + 1000, nib.load(case.label).get_fdata())


def test_other_ids_in_files_that_say_nothing_of_sides(
    tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = write_tree(tmp_path / "tree", *TRAINING)
    held = np.array([0, *range(40, 53)], np.uint8)
    for path in tree.rglob("*.nii.gz"):
        stored = nib.load(path)
        voxels = np.asanyarray(stored.dataobj)
        other = nib.Nifti1Image(held[voxels] if "label" in path.name else voxels, GRID)
        other.header["sform_code"] = other.header["qform_code"] = 0
        nib.save(nib.Nifti1Image(np.asanyarray(other.dataobj), None, other.header), path)
    with pytest.raises(DataError, match=r"30 of 30 cases .*\n.*sides?.*|right_kidney, left_kidney cannot be told"):
        script.main(str(tree), str(tmp_path / "out"))
    with pytest.raises(DataError, match=r"holds the label values 40, 41, .* expected whole numbers from 0 to 13"):
        script.main(str(tree), str(tmp_path / "out"), assume_orientation="RAS")
    ids = {name: 39 + i for name, i in BTCV_LABELS.items()}
    script.main(str(tree), str(tmp_path / "out"), assume_orientation="RAS", label_ids=ids)
    assert f'evaluation need --label_ids "{ids}" --assume_orientation RAS.' in capsys.readouterr().out
    (case, *_) = load_datalist(tmp_path / "out/dataset.json", "training", labels=BTCV_LABELS, label_ids=ids)
    assert case["case"] == "0001"


def test_from_the_archive_to_the_datalist(
    tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "source").mkdir()
    archive = write_archive(tmp_path).rename(tmp_path / "source/RawData.zip")
    before = state(tmp_path / "source")
    script.main(str(tmp_path / "source"), str(tmp_path / "out"), workers=2)
    assert state(tmp_path / "source") == before
    printed = capsys.readouterr().out
    assert "Split by seed 0: 18 training, 6 validation, 6 test." in printed
    assert "55.2" in printed
    assert "BTCV has 30" not in printed
    splits = {s: load_datalist(tmp_path / "out/dataset.json", s, labels=BTCV_LABELS) for s in ("training", "test")}
    assert [len(part) for part in splits.values()] == [18, 6]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"RawData", "dataset.json", "cases.csv", "organs.csv"}
    unpacked = state(tmp_path / "out/RawData")
    assert len(unpacked) == 60
    assert not list(tmp_path.rglob("escape*"))
    for name, (content, _) in unpacked.items():
        assert content == (tmp_path / "tree" / Path(name).relative_to(tmp_path / "out")).read_bytes()

    # the same split of the files as they were unpacked by someone else
    script.main(str(tmp_path / "tree"), str(tmp_path / "other"))
    names = [
        {split: [Path(entry["image"]).name for entry in json.loads(path.read_text())[split]] for split in splits}
        for path in (tmp_path / "out/dataset.json", tmp_path / "other/dataset.json")
    ]
    assert names[0] == names[1]
    # an interrupted run goes on with what is not there
    first = next(iter(unpacked))
    Path(first).write_bytes(b"half")
    script.main(str(archive), str(tmp_path / "out"))
    again = state(tmp_path / "out/RawData")
    assert [name for name in again if again[name][1] != unpacked[name][1]] == [first]
    assert again[first][0] == unpacked[first][0]


def test_archives_of_other_roots_and_damaged_ones(tmp_path: Path) -> None:
    archive = write_archive(tmp_path, prefix="Abdomen/")
    assert len(find_btcv(unpack_btcv(archive, tmp_path / "out"))) == 30
    content = bytearray(archive.read_bytes())
    at = content.index(b"label0001.nii.gz") + 60
    content[at] ^= 0xFF
    (tmp_path / "damaged.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"label0001.nii.gz is damaged .*Download the archive again"):
        unpack_btcv(tmp_path / "damaged.zip", tmp_path / "out2")
    assert not (tmp_path / "out2/RawData/Training/label/label0001.nii.gz").exists()
    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cannot be read as a zip file .*Download it again"):
        unpack_btcv(archive, tmp_path / "out3")
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", b"")
    with pytest.raises(DataError, match=r"holds no RawData/Training/img/img0001.nii.gz"):
        unpack_btcv(archive, tmp_path / "out3")


def test_incomplete_and_strange_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no BTCV. Expected RawData.zip, or the folders"):
        find_btcv(tmp_path)
    write_tree(tmp_path, *TRAINING)
    images, labels = (tmp_path / folder for folder in TRAINING)
    (labels / "label0023.nii.gz").unlink()
    with pytest.raises(DataError, match=r"add them to --exclude: 0023\n  .*img0023.nii.gz: has no label map"):
        find_btcv(tmp_path)
    (images / "img0023.nii.gz").unlink()
    assert len(find_btcv(tmp_path)) == 29
    (images / "img0022.nii.gz").unlink()
    with pytest.raises(DataError, match=r"--exclude: 0022\n  .*label0022.nii.gz: has no image"):
        find_btcv(tmp_path)
    (labels / "copy0021.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 files have the number 0021"):
        find_btcv(tmp_path)
    (labels / "copy0021.nii.gz").rename(labels / "copy.nii.gz")
    with pytest.raises(DataError, match=r"copy.nii.gz has no number"):
        find_btcv(tmp_path)


def test_half_an_unpacked_folder_beside_the_archive_is_not_taken(
    tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    write_archive(tmp_path)
    shutil.copytree(tmp_path / "tree/RawData", tmp_path / "RawData")
    script.main(str(tmp_path), str(tmp_path.parent / "whole"), workers=2)
    assert not (tmp_path.parent / "whole/RawData").exists()
    assert "is not all of" not in capsys.readouterr().out
    for folder in TRAINING:
        for path in sorted((tmp_path / folder).iterdir())[10:]:
            path.unlink()
    script.main(str(tmp_path), str(tmp_path.parent / "half"), workers=2)
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'RawData'} is not all of {tmp_path / 'RawData.zip'}, which is unpacked into" in printed
    assert "30 cases: " in printed


def test_a_bad_case_can_be_left_out(tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_tree(tmp_path / "data", *TRAINING), tmp_path / "out"
    (data / TRAINING[1] / "label0021.nii.gz").write_bytes(b"")
    (data / TRAINING[0] / "img0023.nii.gz").unlink()
    with pytest.raises(DataError, match=r"--exclude: 0023\n"):
        script.main(str(data), str(out))
    with pytest.raises(
        DataError, match=r"1 of 29 cases cannot be used.*--exclude: 0021\n.*label0021.nii.gz: cannot be read"
    ):
        script.main(str(data), str(out), exclude=["0023"])
    bound = read_words(script.main, ["--data_dir", str(data), "--output_dir", str(out), "--exclude", "0021,0023"], "")
    script.main(*bound.args, **bound.kwargs)
    assert "BTCV has 30 labelled cases: 28 are used, 2 were left out with --exclude." in capsys.readouterr().out
    content = json.loads((out / "dataset.json").read_text())
    assert content["excluded"] == ["0021", "0023"]
    names = [entry["case"] for split in ("training", "validation", "test") for entry in content[split]]
    assert sorted(names) == [f"{n:04d}" for n in NUMBERS if n not in (21, 23)]


def test_command_line(tmp_path: Path) -> None:
    done = run(SCRIPT, "--data_dir", tmp_path / "none", "--output_dir", tmp_path / "out", python=sys.executable)
    assert done.returncode == 1
    assert "none: there is no such file or folder. Check --data_dir." in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
