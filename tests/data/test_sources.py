from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from shared.data import check_source, made_with, source_digest
from shared.utils import DataError


def test_a_digest_is_of_all_files_of_an_image(tmp_path: Path) -> None:
    """Of a DICOM series all slices, of a header what belongs to it, and nothing else that lies beside it."""
    (tmp_path / "ct.nii.gz").write_bytes(b"voxels")
    assert source_digest(tmp_path / "ct.nii.gz") == hashlib.sha256(b"voxels").hexdigest()
    for image, part, other in (
        ("series", "series/2.dcm", "series.txt"),
        ("a.mhd", "a.raw", "b.raw"),
        ("slide.mrxs", "slide/Data0.dat", "slides/Data0.dat"),
        ("c.nhdr", "voxels.zraw", "other.zraw"),
        ("slide.vms", "slide-1.opt", "slide-2.opt"),
    ):
        for name in (part, other):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"1")
        if image != "series":
            (tmp_path / image).write_text(f"file={part}\n" if image in ("c.nhdr", "slide.vms") else "header")
        before = source_digest(tmp_path / image)
        (tmp_path / other).write_bytes(b"2")
        assert source_digest(tmp_path / image) == before
        (tmp_path / part).write_bytes(b"2")
        assert source_digest(tmp_path / image) != before


def test_results_of_an_older_version_are_known_by_their_path(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("same")
    os.symlink(tmp_path / "a.png", tmp_path / "link.png")
    check_source(tmp_path, {}, tmp_path / "a.png")
    check_source(tmp_path, {"file": str(tmp_path / "a.png")}, tmp_path / "link.png")
    with pytest.raises(DataError, match=r"a\.png, another image than .*b\.png"):
        check_source(tmp_path, {"file": str(tmp_path / "a.png")}, tmp_path / "b.png")
    earlier = {"file": str(tmp_path / "a.png"), "source_digest": source_digest(tmp_path / "a.png")}
    with pytest.raises(DataError, match=r"a\.png, another image than .*b\.png"):  # whose copy it may be
        check_source(tmp_path, earlier, tmp_path / "b.png")
    (tmp_path / "a.png").unlink()
    check_source(tmp_path, earlier, tmp_path / "b.png")


def test_what_results_were_made_with_is_json(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"weights")
    found = made_with(tmp_path / "model.pt", spacing=(1.5, 1.5, 2.0), labels={"liver": 1}, mpp=None)
    assert found["weights"] == hashlib.sha256(b"weights").hexdigest()
    assert found["settings"] == {"spacing": [1.5, 1.5, 2.0], "labels": {"liver": 1}, "mpp": None}
    assert made_with(tmp_path / "none.pt")["weights"] is None
