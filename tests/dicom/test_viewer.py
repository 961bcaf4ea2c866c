"""Our segmentation as a viewer of others shows it: OHIF in a browser, in front of Orthanc."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from commands import PYTHON
from ct_phantom import ORIGIN, structures
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from orthanc import PLUGIN, Orthanc, program
from PIL import Image
from view_ohif import INSTALLS, OHIF

from shared.datasets.dicom_ct import write_ct_series
from shared.datasets.synthetic_ct import synthetic_ct_case
from shared.dicom import identify, make_segmentation, read_source, store

ROOT = Path(__file__).resolve().parents[2]
MODULES = OHIF.parents[1] / "node_modules"
CODES = structures()


def missing() -> list[str]:
    names = [name for name in ("Orthanc", "chromium", "node") if program(name) is None]
    paths = {"orthanc-dicomweb": PLUGIN, "OHIF": OHIF, "puppeteer-core": MODULES / "puppeteer-core"}
    return names + [name for name, path in paths.items() if not path.exists()]


pytestmark = [
    pytest.mark.viewer,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"{', '.join(missing())} missing: `{INSTALLS}` installs what is"),
]

SEED = 0  # of the made-up body


@dataclass(frozen=True)
class Shown:
    """What OHIF shows, and what it should.

    Attributes:
        segments: the names in the panel.
        images: (rows, columns, 3), the part of the picture where the images are, 0 to 255.
        label_map: (rows, columns) of the slice that is shown, from the patient's right and front.
        spacing: mm between its rows and columns.
        outside: addresses of elsewhere that the browser was to ask.
    """

    segments: list[str]
    images: np.ndarray
    label_map: np.ndarray
    spacing: tuple[float, float]
    outside: list[str]


def store_case(url: str, folder: Path) -> tuple[str, nib.Nifti1Image]:
    """Put a made-up CT and its organs as a segmentation into a PACS: the study, and the organs as the CT is stored."""
    image, organs = synthetic_ct_case(SEED)
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt("LPS"))
    image, organs = (volume.as_reoriented(turn).slicer[::2, ::2, ::2] for volume in (image, organs))
    files = write_ct_series(folder, np.asanyarray(image.dataobj), image.affine, "SYNTHETIC")
    source = read_source(folder)
    placed = source.place(np.asanyarray(organs.dataobj), organs.affine, range(1, 14))
    segmentation = make_segmentation(source, placed, CODES, ORIGIN, identify(source, placed, CODES, ORIGIN))
    assert {outcome.state for outcome in store(url, [*files, segmentation])} == {"stored"}
    return segmentation.StudyInstanceUID, organs


def look(address: str, segment: str, folder: Path) -> tuple[dict, np.ndarray]:
    """What `tests/helpers/ohif.js` says, and the picture that it takes."""
    picture = folder / "viewer.png"
    command = [program("node"), ROOT / "tests/helpers/ohif.js", program("chromium"), folder / "profile"]
    command += [address, segment, picture]
    environment = os.environ | {"NODE_PATH": str(MODULES)}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    with Image.open(picture) as image:
        return json.loads(done.stdout), np.asarray(image.convert("RGB"))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    folder = tmp_path_factory.mktemp("viewer")
    orthanc = Orthanc(folder / "orthanc").start()
    try:
        study, organs = store_case(orthanc.url, folder / "ct")
        command = [PYTHON, str(ROOT / "scripts/view_ohif.py"), "--url", orthanc.url, "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                address = server.stdout.readline().partition(" is shown at ")[2].partition(";")[0]
                said, picture = look(f"{address}/viewer?StudyInstanceUIDs={study}", "liver", folder)
            finally:
                server.terminate()
    finally:
        orthanc.kill()
    left, top, width, height = (round(x) for x in said["box"])
    number = int(re.search(r"I: ?(\d+)", " ".join(said["overlay"]))[1])  # of the image, from 1
    label_map = np.asanyarray(organs.dataobj)[:, :, number - 1].T
    names = [text.splitlines()[-1] for text in said["segments"]]
    images = picture[top : top + height, left : left + width]
    return Shown(names, images, label_map, organs.header.get_zooms()[1::-1], said["outside"])


def coloured(images: np.ndarray, name: str) -> np.ndarray:
    """Where a picture has an organ's colour, mixed with the grey of the images."""
    (colour,) = (np.array(code.colour, float) for code in CODES if code.name == name)
    tint, tints = colour - colour.mean(), images - images.mean(-1, keepdims=True)
    strength = np.linalg.norm(tints, axis=-1)
    return (strength > 10) & (tints @ tint > 0.995 * strength * np.linalg.norm(tint))


def test_the_segments_have_their_names(shown: Shown) -> None:
    assert shown.segments == [code.title for code in CODES]


def test_nothing_of_elsewhere_is_asked_for(shown: Shown) -> None:
    assert shown.outside == []


def test_the_liver_lies_where_it_is(shown: Shown) -> None:
    """In place and on its side, as far as the middle of the picture is that of the images."""
    expected, found = shown.label_map == 6, coloured(shown.images, "liver")
    pixel = np.sqrt(expected.sum() * np.prod(shown.spacing) / found.sum())  # mm
    offset = (np.argwhere(found) + 0.5 - np.array(found.shape) / 2) * pixel
    rows, columns = np.floor(offset / shown.spacing + np.array(expected.shape) / 2).astype(int).T
    assert found.sum() > 2000
    assert expected[rows, columns].mean() > 0.95
    assert found[:, : found.shape[1] // 2].sum() > 0.75 * found.sum()  # the patient's right is the picture's left
