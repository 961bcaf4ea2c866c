"""MONAI Label's real server in front of a real Orthanc: nothing is misnamed, and only what somebody submits is a label.

What is kept in a PACS, and how it is read, is in test_pacs_labels.py.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from commands import run
from ct_phantom import Phantom, structures, write_phantom
from monai_label.pacs_labels import PacsLabels
from monai_label_server import MISSING, Server, form, made, start, wanted
from orthanc import INSTALLS, Orthanc, missing, program
from view_ohif import INSTALLS as VIEWER
from view_ohif import OHIF
from workflows import BUNDLES, command, load_config

from shared.datasets.synthetic_ct import make_synthetic_ct
from shared.dicom import DicomWeb, store

MODULES = OHIF.parents[1] / "node_modules"
MODEL = "abdominal_unetr_cbs_segmentation"
pytestmark = [
    pytest.mark.monai_label,
    pytest.mark.pacs,
    pytest.mark.slow,
    pytest.mark.skipif(not (made or wanted), reason=MISSING),
    pytest.mark.skipif(bool(missing()), reason=f"{', '.join(missing())} missing: `{INSTALLS}` installs them"),
]


def viewer_lacks() -> list[str]:
    there = (MODULES / "puppeteer-core").exists()
    return [name for name in ("chromium", "node") if program(name) is None] + ["puppeteer-core"] * (not there)


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    theirs = {name: os.environ.pop(name) for name in [*os.environ] if name.startswith("DICOMWEB_")}
    found = Orthanc(tmp_path_factory.mktemp("orthanc") / "server").start()
    yield found
    found.kill()
    os.environ.update(theirs)


@pytest.fixture(scope="module")
def ct(orthanc: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Phantom:
    phantom = write_phantom(tmp_path_factory.mktemp("ct") / "ct", "LPI")
    store(orthanc.url, sorted(phantom.folder.iterdir()))
    return phantom


@pytest.fixture(scope="module")
def server(orthanc: Orthanc, ct: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with start(tmp_path_factory.mktemp("server"), orthanc.url, ["abdominal_unetr_cbs"]) as found:
        yield found


@pytest.fixture(scope="module")
def uid(ct: Phantom) -> str:
    return pydicom.dcmread(next(ct.folder.iterdir()), stop_before_pixels=True).SeriesInstanceUID


def opened(content: bytes, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The voxels of an answer, turned to RAS, and their affine."""
    (folder / "answer.nii.gz").write_bytes(content)
    image = nib.as_closest_canonical(nib.load(folder / "answer.nii.gz"))
    return np.asanyarray(image.dataobj), image.affine


def submit(server: Server, uid: str, ct: Phantom, folder: Path, **names: int) -> tuple[int, bytes]:
    """Submit the phantom's first organs under these names and ids, as 3D Slicer does."""
    label_map = np.zeros_like(ct.label_map)
    for organ, i in enumerate(names.values(), 1):
        label_map[ct.label_map == organ] = i
    nib.save(nib.Nifti1Image(label_map, ct.affine), folder / "label.nii.gz")
    info = [{"name": name, "idx": i, "color": [200, 100, 0]} for name, i in names.items()]
    sent = form("label", "label.nii.gz", (folder / "label.nii.gz").read_bytes(), params={"label_info": info})
    return server.answer(f"/datastore/label?image={uid}&tag=final", *sent, "PUT")


def test_images_are_those_of_the_pacs(server: Server, uid: str, ct: Phantom, tmp_path: Path) -> None:
    assert server.ask_json("/activelearning/first", {})["id"] == uid
    voxels, affine = opened(server.ask(f"/datastore/image?image={uid}"), tmp_path)
    np.testing.assert_array_equal(voxels, ct.hu)
    np.testing.assert_allclose(affine, ct.affine, atol=1e-5)
    assert server.answer("/datastore/image?image=1.2.3")[0] == 404
    answer = server.ask("/datastore/image?image=new", *form("file", "new.nii.gz", b""), "PUT")
    assert b"images come from the PACS" in answer
    assert b"images stay in the PACS" in server.ask(f"/datastore/image?id={uid}", method="DELETE")


def test_a_result_has_its_names_and_is_no_label(
    server: Server, uid: str, ct: Phantom, orthanc: Orthanc, tmp_path: Path
) -> None:
    before = orthanc.count()
    request = form("a", "a", b"", params={"device": "cpu", "save_label": True})
    label_map, affine = opened(server.ask(f"/infer/{MODEL}?image={uid}&output=image", *request), tmp_path)
    np.testing.assert_allclose(affine, ct.affine, atol=1e-4)
    wrong = [{"name": "liver", "idx": 1}]  # MONAI Label's own would call the first organ like that
    request = form("a", "a", b"", params={"device": "cpu", "label_info": wrong})
    found = pydicom.dcmread(io.BytesIO(server.ask(f"/infer/{MODEL}?image={uid}&output=dicom_seg", *request)))
    expected = [each for each in structures() if each.label in label_map]
    assert [item.TrackingID for item in found.SegmentSequence] == [each.name for each in expected]
    codes = [item.SegmentedPropertyTypeCodeSequence[0].CodeValue for item in found.SegmentSequence]
    assert codes == [each.concept.value for each in expected]
    assert found.ReferencedSeriesSequence[0].SeriesInstanceUID == uid
    status = server.ask_json("/datastore/")
    assert (status["completed"], status["label_tags"]) == (0, {"original": 1})
    kept, _ = opened(server.ask(f"/datastore/label?label={uid}&tag=original"), tmp_path)
    np.testing.assert_array_equal(kept, label_map)
    store(orthanc.url, [found])  # as somebody might who looks at it
    assert server.ask_json("/datastore/?output=train") == []
    assert orthanc.count() == before + 1


def test_a_label_is_kept_in_the_pacs_with_its_ids(
    server: Server, uid: str, ct: Phantom, orthanc: Orthanc, tmp_path: Path
) -> None:
    before = orthanc.count()
    status, content = submit(server, uid, ct, tmp_path, liver=3, tumour=9, spleen=1)
    assert (status, json.loads(content)["label"]) == (200, uid)
    assert orthanc.count() == before + 1
    expected = np.choose(np.where(ct.label_map > 3, 0, ct.label_map), [0, 3, 9, 1])
    for _ in range(2):
        label_map, affine = opened(server.ask(f"/datastore/label?label={uid}&tag=final"), tmp_path)
        np.testing.assert_array_equal(label_map, expected)
        np.testing.assert_allclose(affine, ct.affine, atol=1e-5)
        info = server.ask_json(f"/datastore/label/info?label={uid}&tag=final")["label_info"]
        assert {entry["name"]: entry["idx"] for entry in info} == {"liver": 3, "tumour": 9, "spleen": 1}
        shutil.rmtree(next((server.app / "pacs").iterdir()))  # all that it had fetched
    other = PacsLabels(DicomWeb(orthanc.url), tmp_path / "other", {each.name: code(each.name) for each in structures()})
    np.testing.assert_array_equal(
        np.asanyarray(nib.as_closest_canonical(nib.load(other.label(other.labels()[uid]))).dataobj), expected
    )


@pytest.mark.viewer
@pytest.mark.skipif(bool(viewer_lacks()), reason=f"{', '.join(viewer_lacks())} missing: `{VIEWER}` installs them")
def test_run_in_the_ohif_of_monai_label(server: Server, ct: Phantom, tmp_path: Path) -> None:
    study = pydicom.dcmread(next(ct.folder.iterdir()), stop_before_pixels=True).StudyInstanceUID
    script = Path(__file__).resolve().parents[1] / "helpers" / "monai_label_ohif.js"
    command = [program("node"), script, program("chromium"), tmp_path / "profile"]
    command += [f"{server.address}/ohif/monai-label?StudyInstanceUIDs={study}", server.address, tmp_path / "run.png"]
    environ = os.environ | {"NODE_PATH": str(MODULES)}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert said["status"] == 200
    assert said["before"] == 0
    assert said["after"] > 500  # pixels, of the edges of the overlay at least
    assert "Running Segmentation - Successful" in said["text"]
    assert [url for url in said["outside"] if not url.startswith("https://fonts.googleapis.com/")] == []


def code(name: str) -> dict:
    about = Path(__file__).resolve().parents[2] / "bundles" / "abdominal_unetr_cbs" / "configs" / "metadata.json"
    return json.loads(about.read_text())["dicom_codes"][name]


def test_training_takes_the_last_label(server: Server, uid: str, ct: Phantom, tmp_path: Path) -> None:
    assert submit(server, uid, ct, tmp_path, spleen=1, right_kidney=2)[0] == 200
    ((image, label),) = [each.values() for each in server.ask_json("/datastore/?output=train")]
    assert nib.load(image).shape == nib.load(label).shape
    assert [*np.unique(np.asanyarray(nib.load(label).dataobj))] == [0, 1, 2]
    assert server.ask_json("/datastore/")["completed"] == 1


def test_labels_that_are_refused(server: Server, uid: str, ct: Phantom, orthanc: Orthanc, tmp_path: Path) -> None:
    before = orthanc.count()
    for sent, message in (
        ({"label_info": [{"name": "liver", "idx": 6}]}, "holds the label values"),
        ({"label_info": [{"name": "liver"}]}, "label_info has"),
    ):
        nib.save(nib.Nifti1Image(ct.label_map, ct.affine), tmp_path / "label.nii.gz")
        content = (tmp_path / "label.nii.gz").read_bytes()
        answer = server.answer(f"/datastore/label?image={uid}", *form("label", "a.nii.gz", content, params=sent), "PUT")
        assert (answer[0], message in json.loads(answer[1])["detail"]) == (422, True), answer
    assert server.answer("/datastore/label?image=1.2.3", *form("label", "a.nii.gz", content), "PUT")[0] == 404
    assert orthanc.count() == before


def test_a_label_is_withdrawn(server: Server, uid: str, orthanc: Orthanc) -> None:
    before = orthanc.count()
    server.ask(f"/datastore/label?id={uid}&tag=final", method="DELETE")
    assert orthanc.count() == before - 2
    assert server.ask_json("/datastore/?output=train") == []


def stored_case(orthanc: Orthanc, folder: Path, case: dict[str, str]) -> tuple[str, Path]:
    """Put a CT of a datalist into the PACS; its UID, and the file of its labels."""
    files = sorted((folder / case["image"]).iterdir())
    store(orthanc.url, files)
    return pydicom.dcmread(files[0], stop_before_pixels=True).SeriesInstanceUID, folder / case["label"]


def voxels_of(file: str | Path) -> np.ndarray:
    return np.asanyarray(nib.as_closest_canonical(nib.load(file)).dataobj)


def test_training_from_labels_in_the_pacs(server: Server, uid: str, orthanc: Orthanc, tmp_path: Path) -> None:
    """From two labels that are submitted to weights that are served; what else the PACS has of CTs takes no part."""
    datalist = make_synthetic_ct(tmp_path / "cts", cases=3, processes=1, dicom=True)
    splits = json.loads(datalist.read_text())
    cases = [case for split in ("training", "validation", "test") for case in splits[split]]
    third, *two = (stored_case(orthanc, datalist.parent, case) for case in reversed(cases))
    request = form("a", "a", b"", params={"device": "cpu", "save_label": True})
    for image in (uid, third[0]):  # results of the network, which nobody has submitted
        server.ask(f"/infer/{MODEL}?image={image}&output=image", *request)
    labels = load_config(BUNDLES / "abdominal_unetr_cbs", "train")["labels"]
    sent = {"label_info": [{"name": name, "idx": i} for name, i in labels.items()]}
    for number, (image, file) in enumerate(two, 1):
        content = form("label", "label.nii.gz", file.read_bytes(), params=sent)
        assert server.answer(f"/datastore/label?image={image}&tag=final", *content, "PUT")[0] == 200
        if number == 1:
            failed = server.train(MODEL)
            assert failed["status"] == "ERROR"
            assert any("1 studies with a submitted label make" in line for line in failed["details"])
    listed = server.ask_json("/datastore/?output=train")
    found = {Path(each["image"]).name.removesuffix(".nii.gz"): each for each in listed}
    assert found.keys() == {image for image, _ in two}
    for image, file in two:
        np.testing.assert_array_equal(voxels_of(found[image]["label"]), voxels_of(file))

    models = server.bundle(MODEL) / "models"
    before, there = (models / "model.pt").read_bytes(), orthanc.count()
    task = server.train(MODEL)
    assert task["status"] == "DONE", "\n".join(task["details"])
    assert (models / "model.pt").read_bytes() != before
    record = json.loads((models / "model.json").read_text())
    assert (record["epoch"], record["name"], record["labels"]) == (1, "labels submitted to MONAI Label", labels)
    assert orthanc.count() == there

    image = two[0][0]
    request = form("a", "a", b"", params={"device": "cpu"})
    answer, _ = opened(server.ask(f"/infer/{MODEL}?image={image}&output=image", *request), tmp_path)
    options = {"input": found[image]["image"], "output_dir": tmp_path / "bundle"}
    done = run(*command(["configs/inference.json"], **options), cwd=server.bundle(MODEL))
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "bundle").rglob("*_seg.nii.gz")
    np.testing.assert_array_equal(answer, voxels_of(written))


def test_a_pacs_that_is_away(server: Server, uid: str, orthanc: Orthanc) -> None:
    orthanc.kill()
    status, content = server.answer(f"/datastore/image?image={uid}")
    assert (status, b"cannot be reached" in content) == (503, True)
    orthanc.start()
    assert server.answer(f"/datastore/image?image={uid}")[0] == 200
