"""MONAI Label's real server with all bundles: its answers are those of `monai.bundle run`, and it trains.

What it does with a PACS is in test_monai_label_pacs.py.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pydicom
import pytest
import tifffile
from commands import is_locked, run
from ct_phantom import Phantom, write_phantom
from monai_label.guard import NAMED
from monai_label_server import MISSING, ROOT, THRESHOLD, Server, form, made, start, wanted
from PIL import Image
from workflows import command

from shared.datasets.synthetic_ct import make_synthetic_ct
from shared.datasets.synthetic_histology import make_synthetic_histology

TYPES = {
    "abdominal_unetr_cbs_segmentation": "segmentation",
    "mitosis_fusestyle_cls_classification": "classification",
    "abdominal_lambda3d_cbs_segmentation": "segmentation",
    "mitosis_retinanet_fusestyle_detection": "detection",
}
SEGMENTATION = [name for name, kind in TYPES.items() if kind == "segmentation"]
DETECTION = "mitosis_retinanet_fusestyle_detection"
CLASSIFICATION = "mitosis_fusestyle_cls_classification"
pytestmark = [
    pytest.mark.monai_label,
    pytest.mark.slow,
    pytest.mark.skipif(not (made or wanted), reason=MISSING),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_synthetic_ct(folder / "ct", cases=3, processes=1)
    make_synthetic_histology(folder / "histology", slides=3, patches_per_slide=2, tiles_per_slide=1, processes=1)
    return folder


def images(data: Path) -> dict[str, Path]:
    """An image that each model has to do with."""
    scan = data / "ct" / "imagesTr" / "ct_000.nii.gz"
    patch = sorted((data / "histology" / "patches").rglob("*.png"))[0]
    tile = sorted((data / "histology" / "tiles").rglob("*.png"))[0]
    return dict.fromkeys(SEGMENTATION, scan) | {CLASSIFICATION: patch, DETECTION: tile}


@pytest.fixture(scope="module")
def server(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With all bundles, and temporary files in a folder of its own."""
    folder = tmp_path_factory.mktemp("monai label")
    for name in ("studies", "temporary"):
        (folder / name).mkdir()
    pixels = np.asarray(Image.open(images(data)[DETECTION]))
    options = {"tile": (128, 128), "photometric": "rgb", "resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(folder / "studies" / "slide.tiff", np.tile(pixels, (2, 2, 1)), **options)  # 0.25 µm a pixel
    names = [model.removesuffix(f"_{kind}") for model, kind in TYPES.items()]
    with start(folder, folder / "studies", names, TMPDIR=str(folder / "temporary")) as found:
        yield found


def studies(server: Server) -> Path:
    return server.app.parent / "studies"


def bundle_run(server: Server, model: str, image: Path, output: Path) -> Path:
    """What `monai.bundle run` makes of an image with the same package, in the project's environment."""
    options = {"input": image, "output_dir": output} | ({"mpp": 0.25} if model == DETECTION else {})
    done = run(*command(["configs/inference.json"], **options), cwd=server.bundle(model))
    assert done.returncode == 0, done.stderr
    return output


def label_map(file: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(file)
    return np.asarray(image.dataobj), image.affine


def check_segmentation(server: Server, model: str, image: Path, expected: Path) -> None:
    file = expected.parent / "answer.nii.gz"
    file.write_bytes(server.send(f"/infer/{model}?output=image", "file", image, params={"device": "cpu"}))
    answer, affine = label_map(file)
    (written,) = expected.rglob("*_seg.nii.gz")
    labels, expected_affine = label_map(written)
    assert len(np.unique(labels)) > 5
    assert answer.dtype == labels.dtype
    np.testing.assert_array_equal(answer, labels)
    np.testing.assert_allclose(affine, expected_affine, atol=1e-4)


def check_classification(server: Server, image: Path, expected: Path) -> None:
    answer = json.loads(server.send(f"/infer/{CLASSIFICATION}?output=json", "file", image, params={"device": "cpu"}))
    content = json.loads((expected / "predictions.json").read_text())
    (prediction,) = content["predictions"]
    assert 0.001 < prediction["probability"] < 0.999
    assert answer["probability"] == pytest.approx(prediction["probability"], abs=1e-6)
    assert (answer["class"], answer["threshold"]) == (prediction["class"], content["threshold"])
    assert answer["prediction"] == [{"idx": 0, "label": "mitotic", "score": answer["probability"]}]


def check_detection(server: Server, image: Path, expected: Path) -> None:
    params = {"device": "cpu", "mpp": 0.25}
    answer = json.loads(server.send(f"/infer/{DETECTION}?output=json", "file", image, params=params))
    with (expected / f"{image.stem}.csv").open() as file:
        rows = list(csv.DictReader(file))
    boxes = np.array([[float(row[key]) for key in ("x1", "y1", "x2", "y2")] for row in rows])
    assert len(boxes) > 20
    np.testing.assert_allclose(answer["box"], boxes, atol=0.006)  # the table is rounded
    np.testing.assert_allclose(answer["score"], [float(row["score"]) for row in rows], atol=2e-6)
    assert [["non_mitotic", "mitotic"][label] for label in answer["label"]] == [row["class"] for row in rows]
    assert answer["label_names"] == {"non_mitotic": 0, "mitotic": 1}


def test_the_models_are_listed_by_what_they_do(server: Server) -> None:
    info = server.ask_json("/info/")
    assert {name: model["type"] for name, model in info["models"].items()} == TYPES
    assert list(info["models"][SEGMENTATION[0]]["labels"].values()) == list(range(1, 14))
    assert set(info["trainers"]) == set(SEGMENTATION)


def test_pages_from_elsewhere_may_not_ask(server: Server) -> None:
    request = urllib.request.Request(f"{server.address}/datastore/", headers={"Origin": "https://elsewhere.example"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.headers["access-control-allow-origin"] is None
    headers = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "DELETE"}
    request = urllib.request.Request(f"{server.address}/datastore/?id=slide", headers=headers, method="OPTIONS")
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request, timeout=60)


def test_answers_are_those_of_bundle_run_with_bundles_taking_turns(server: Server, data: Path, tmp_path: Path) -> None:
    inputs = images(data)
    expected = {model: bundle_run(server, model, image, tmp_path / model) for model, image in inputs.items()}
    for _ in range(2):
        for model in TYPES:
            if model in SEGMENTATION:
                check_segmentation(server, model, inputs[model], expected[model])
        check_classification(server, inputs[CLASSIFICATION], expected[CLASSIFICATION])
        check_detection(server, inputs[DETECTION], expected[DETECTION])


def outlines(answer: bytes) -> tuple[list[str], np.ndarray]:
    """Names and corners, (n, 4, 2), of what QuPath draws."""
    found = ElementTree.fromstring(answer).findall("Annotations/Annotation")
    corners = [[[float(c.get(axis, "")) for axis in "XY"] for c in a.findall("Coordinates/Coordinate")] for a in found]
    return [a.get("Name", "") for a in found], np.array(corners).reshape(-1, 4, 2)


def test_outlines_for_qupath_of_a_picture_that_it_sends(server: Server, data: Path) -> None:
    image = images(data)[DETECTION]
    wsi = {"location": [0, 0], "size": [0, 0], "tile_size": [1024, 1024], "params": {"mpp": 0.25}}
    plain = json.loads(server.send(f"/infer/{DETECTION}?output=json", "file", image, params={"mpp": 0.25}))
    names, corners = outlines(server.send(f"/infer/wsi_v2/{DETECTION}?output=asap", "file", image, wsi=wsi))
    figures = [i for i, score in enumerate(plain["score"]) if score >= THRESHOLD]
    assert 0 < len(figures) < len(plain["score"])
    called = [["non_mitotic", "mitotic"][plain["label"][i]] for i in figures]
    assert sorted(names) == sorted(called)
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    expected = np.array([plain["box"][i] for i in figures])
    np.testing.assert_allclose(np.sort(boxes, axis=0), np.sort(expected, axis=0), atol=1e-3)


def test_outlines_in_a_part_of_a_slide(server: Server) -> None:
    """What QuPath, and the Digital Slide Archive, ask of a slide that lies among the studies."""
    body = {"level": 0, "location": [300, 200], "size": [500, 600], "tile_size": [256, 256], "params": {}}
    names, corners = outlines(
        server.ask(f"/infer/wsi/{DETECTION}?output=asap&image=slide", json.dumps(body).encode(), "application/json")
    )
    centres = corners.mean(axis=1)
    assert len(names) > 5
    assert (centres >= (300, 200)).all()
    assert (centres < (800, 800)).all()
    assert np.ptp(centres, axis=0).min() > 300
    archive = server.ask_json(f"/infer/wsi/{DETECTION}?output=dsa&image=slide", body)
    assert sorted(element["group"] for element in archive["elements"]) == sorted(names)


def test_the_answer_says_what_is_wrong_with_an_image(server: Server, data: Path) -> None:
    tile, scan = images(data)[DETECTION], images(data)[SEGMENTATION[0]]
    refused = json.loads(server.send(f"/infer/{DETECTION}", "file", tile))["detail"]
    assert "does not say how many µm a pixel measures" in refused
    assert b"cannot be read as an image" in server.send(f"/infer/{DETECTION}", "file", scan)
    assert b"expected a CT volume" in server.send(f"/infer/{SEGMENTATION[0]}", "file", tile)
    assert b"gives no outlines" in server.ask(f"/infer/wsi/{CLASSIFICATION}?image=slide", b"{}", "application/json")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"mpp": "abc"}, "mpp is 'abc', expected a positive number"),
        ({"mpp": -1}, "mpp is -1, expected a positive number"),
        ({"mpp": 0.25, "size": [50]}, "size is [50], expected [width, height]"),
        ({"mpp": 0.25, "size": [50, -5]}, "size is [50, -5], expected"),
        ({"mpp": 0.25, "size": [0, 5]}, "size is [0, 5], expected"),
        ({"mpp": 0.25, "size": [50, 50], "location": "corner"}, "location is 'corner', expected [x, y]"),
    ],
)
def test_the_answer_says_what_is_wrong_with_a_request(
    server: Server, data: Path, params: dict[str, Any], message: str
) -> None:
    assert (
        message
        in json.loads(server.send(f"/infer/{DETECTION}", "file", images(data)[DETECTION], params=params))["detail"]
    )


@pytest.mark.parametrize("path", ["/infer", "/infer/wsi"])
def test_the_answer_says_that_there_is_no_such_model_or_image(server: Server, path: str) -> None:
    body = json.dumps({}).encode() if path.endswith("wsi") else b""
    refused = json.loads(server.ask(f"{path}/unet?image=slide", body, "application/json", "POST"))["detail"]
    assert refused.startswith("unet: there is no such model, expected one of abdominal_")
    refused = json.loads(server.ask(f"{path}/{DETECTION}?image=slide_9", body, "application/json", "POST"))["detail"]
    assert refused.startswith("slide_9: is not among the studies")


HIDDEN = [  # what the server's own list of its routes leaves out
    ("POST", "/infer/wsi/{}"),
    ("PUT", "/datastore/updatelabelinfo?label={}&tag=final"),
    ("DELETE", "/datastore/?id={}"),
    ("GET", "/ohif/{}"),
    ("GET", "/proxy/dicom/{}"),
    ("GET", "/proxy/dicom/wado/{}"),
]


def routes(server: Server) -> Iterator[tuple[str, str]]:
    """Method and address, with {} for a name, of each route for each name that it takes."""
    yield from HIDDEN
    for path, methods in server.ask_json("/openapi.json")["paths"].items():
        for method, about in methods.items():
            names = [(each["in"], each["name"]) for each in about.get("parameters", []) if each["name"] in NAMED]
            query = "&".join(f"{name}=a" for place, name in names if place == "query")
            for place, name in names:
                if place == "path":
                    yield method.upper(), path.replace(f"{{{name}}}", "{}")
                else:
                    yield method.upper(), f"{re.sub('{.+?}', 'a', path)}?{query}&{name}={{}}"


def test_ids_are_names_in_every_route(server: Server) -> None:
    asked = [*routes(server)]
    assert len(asked) > 35
    for method, address in asked:
        for text in ("..", "..%2F..%2Fx", "%2Fetc%2Fpasswd", "a%5Cb"):
            status, content = server.answer(address.format(text), None, "application/json", method)
            assert status == 400, (method, address, text, content)
            assert method == "HEAD" or "expected a name" in json.loads(content)["detail"]


@pytest.mark.parametrize(
    ("method", "address", "params", "message"),
    [
        ("POST", f"/infer/{SEGMENTATION[0]}", "{bad", "params is no JSON"),
        ("POST", f"/infer/{SEGMENTATION[0]}", "[1]", "params is [1], expected an object"),
        ("POST", f"/infer/{SEGMENTATION[0]}", '{"image": "/etc/passwd"}', "image is '/etc/passwd', expected a name"),
        ("POST", f"/infer/{SEGMENTATION[0]}", '{"model_filename": "../x.pt"}', "model_filename is '../x.pt'"),
        ("POST", f"/infer/wsi_v2/{DETECTION}", '{"image": "../x"}', "image is '../x', expected a name"),
        ("PUT", "/datastore/label?image=slide", "{bad", "params is no JSON"),
        ("PUT", "/datastore/image?image=new", "{bad", "params is no JSON"),
        ("POST", f"/train/{SEGMENTATION[0]}", '{"model_filename": "../x.pt"}', "model_filename is '../x.pt'"),
        ("POST", f"/batch/infer/{SEGMENTATION[0]}", '{"label_tag": "../x"}', "label_tag is '../x'"),
        ("POST", "/activelearning/random", '{"device": ', "the body is no JSON"),
    ],
)
def test_json_that_is_none_or_holds_paths(
    server: Server, data: Path, method: str, address: str, params: str, message: str
) -> None:
    content, kind = params.encode(), "application/json"
    if address.startswith(("/infer", "/datastore")):
        field, name = ("label" if "/label" in address else "file"), "wsi" if "wsi" in address else "params"
        content, kind = form(field, "a.nii.gz", images(data)[SEGMENTATION[0]].read_bytes(), **{name: params})
    status, answer = server.answer(address, content, kind, method)
    assert (status, message in json.loads(answer)["detail"]) == (400, True), answer


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Phantom:
    """A CT as a DICOM series."""
    return write_phantom(tmp_path_factory.mktemp("series") / "ct")


def zipped(folder: Path) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"ct/{file.name}")
    return content.getvalue()


def test_a_zip_of_a_dicom_series_and_its_result_as_dicom(server: Server, ct: Phantom, tmp_path: Path) -> None:
    address, params = f"/infer/{SEGMENTATION[0]}", {"device": "cpu"}
    nib.save(nib.Nifti1Image(ct.hu.astype(np.int16), ct.affine), tmp_path / "ct.nii.gz")
    (tmp_path / "expected.nii.gz").write_bytes(server.send(f"{address}?output=image", "file", tmp_path / "ct.nii.gz"))
    expected = label_map(tmp_path / "expected.nii.gz")[0]
    (tmp_path / "ct.zip").write_bytes(zipped(ct.folder))
    (tmp_path / "answer.nii.gz").write_bytes(server.send(f"{address}?output=image", "file", tmp_path / "ct.zip"))
    answer = nib.as_closest_canonical(nib.load(tmp_path / "answer.nii.gz"))
    np.testing.assert_array_equal(np.asanyarray(answer.dataobj), expected)
    content = server.send(f"{address}?output=dicom_seg", "file", tmp_path / "ct.zip", params=params)
    found = pydicom.dcmread(io.BytesIO(content))
    names = {i: name for name, i in server.ask_json("/info/")["models"][SEGMENTATION[0]]["labels"].items()}
    assert [item.TrackingID for item in found.SegmentSequence] == [names[i] for i in np.unique(expected) if i]
    assert found.ManufacturerModelName == "abdominal_unetr_cbs"


def test_what_is_no_series_is_refused_in_words(server: Server, ct: Phantom, data: Path) -> None:
    address = f"/infer/{SEGMENTATION[0]}"
    for name, content, message in (
        ("0001.dcm", (ct.folder / "0001.dcm").read_bytes(), "a single DICOM slice"),
        ("ct.zip", b"PK damaged", "the image: cannot be unpacked"),
        ("ct.zip", zipped(data / "ct" / "imagesTr"), "holds no readable DICOM series"),
    ):
        status, answer = server.answer(address, *form("file", name, content))
        assert (status, message in json.loads(answer)["detail"]) == (422, True), answer
    scan = images(data)[SEGMENTATION[0]]
    answer = server.send(f"{address}?output=dicom_seg", "file", scan)
    assert b"Expected a folder with the slices of one CT" in answer or b"cannot be read as DICOM" in answer
    assert b"result_extension is '.png'" in server.send(address, "file", scan, params={"result_extension": ".png"})


def test_a_network_submits_nothing(server: Server) -> None:
    params = {"save_label": True, "label_tag": "final"}
    answer = server.ask(f"/infer/{SEGMENTATION[0]}?image=slide", *form("a", "a", b"", params=params))
    assert b"for labels that somebody submits" in answer


def test_images_come_from_the_datastore_a_session_or_the_request_alone(server: Server, ct: Phantom) -> None:
    """Not from the folder in which the server was started."""
    name = "requirements.txt"
    assert Path.cwd().joinpath(name).exists()
    assert b"is not among the studies" in server.ask(f"/infer/{SEGMENTATION[0]}?image={name}", b"", method="POST")
    session = json.loads(server.ask("/session/?uncompress=true", *form("files", "ct.zip", zipped(ct.folder)), "PUT"))
    address = f"/infer/{SEGMENTATION[0]}?session_id={session['session_id']}&output=image"
    assert len(server.ask(address, b"", method="POST")) > 100
    server.ask(f"/session/{session['session_id']}", method="DELETE")
    status, _ = server.answer("/session/?uncompress=true", *form("files", "ct.zip", b"no zip"), "PUT")
    assert status == 400


def submit(server: Server, data: Path, number: int, labels: dict[str, int]) -> None:
    """An image, and its label as 3D Slicer submits it: the segments' order beside the label map."""
    name = f"ct_{number:03}"
    shutil.copy(data / "ct" / "imagesTr" / f"{name}.nii.gz", studies(server))
    end = time.monotonic() + 30
    while name not in server.ask_json("/datastore/?output=all")["objects"]:  # it looks at the folder now and then
        assert time.monotonic() < end
        time.sleep(0.5)
    info = [{"name": organ, "idx": value} for organ, value in labels.items()]
    file = data / "ct" / "labelsTr" / f"{name}.nii.gz"
    server.send(f"/datastore/label?image={name}&tag=final", "label", file, "PUT", params={"label_info": info})


def test_files_of_requests_are_gone(server: Server) -> None:
    """After all that was asked above, also what failed; the configuration of the log stays."""
    end = time.monotonic() + 30  # those of the last request may still be there when its answer is
    while left := [path.name for path in (server.app.parent / "temporary").iterdir() if path.suffix != ".json"]:
        assert time.monotonic() < end, left
        time.sleep(0.1)


def test_one_epoch_of_training(server: Server, data: Path, tmp_path: Path) -> None:
    """From submitted labels to weights that are served; segments in another order are refused."""
    labels = json.loads((ROOT / "bundles/abdominal_unetr_cbs/configs/train.json").read_text())["labels"]
    submit(server, data, 0, labels)
    failed = server.train(SEGMENTATION[0])
    assert failed["status"] == "ERROR"
    assert any("1 studies with a submitted label make" in line for line in failed["details"])
    submit(server, data, 1, {**labels, "spleen": 2, "right_kidney": 1})
    failed = server.train(SEGMENTATION[0])
    assert failed["status"] == "ERROR"
    assert any("ct_001: the segments were submitted as" in line for line in failed["details"])

    submit(server, data, 1, labels)
    for model, pretrained in zip(SEGMENTATION, (True, False), strict=True):
        models = server.bundle(model) / "models"
        before = (models / "model.pt").read_bytes()
        task = server.train(model, pretrained=pretrained)
        assert task["status"] == "DONE", "\n".join(task["details"])
        assert (models / "model.pt").read_bytes() != before
        record = json.loads((models / "model.json").read_text())
        assert (record["epoch"], record["name"]) == (1, "labels submitted to MONAI Label")
        assert (record["synthetic"], bool(record["pretrained"])) == (pretrained, pretrained)
        assert (record["bundle"], record["spacing"], record["labels"]) == (
            model.removesuffix("_segmentation"),
            [6.0] * 3,
            labels,
        )
        expected = bundle_run(server, model, images(data)[model], tmp_path / model)
        check_trained(server, model, images(data)[model], expected)

    after = (models / "model.pt").read_bytes()
    failed = server.train(model, force_multi_gpu=True)  # on no GPU at all
    assert failed["status"] == "ERROR"
    assert (models / "model.pt").read_bytes() == after
    assert not (server.bundle(model) / "training" / "model.pt").exists()

    (label,) = (studies(server) / "labels" / "final").glob("ct_001.*gz")
    label.write_bytes(b"damaged")
    options = {"device": "cpu", "max_epochs": 1, "val_split": 0.5}  # of a training in the server's own process
    assert server.answer(f"/train/{model}?run_sync=true", json.dumps(options).encode(), "application/json")[0] == 500
    for folder in ("training", "output"):
        assert not is_locked(server.bundle(model) / folder)


def check_trained(server: Server, model: str, image: Path, expected: Path) -> None:
    """The trained weights are those that answer."""
    file = expected.parent / f"{model}.nii.gz"
    file.write_bytes(server.send(f"/infer/{model}?output=image", "file", image, params={"device": "cpu"}))
    (written,) = expected.rglob("*_seg.nii.gz")
    np.testing.assert_array_equal(label_map(file)[0], label_map(written)[0])
