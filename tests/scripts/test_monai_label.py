"""MONAI Label's real server with all bundles: its answers are those of `monai.bundle run`, and it trains.

It runs in an environment of its own, .venv-monailabel, made by `bash scripts/monai_label.sh --set_up`. Without it the
tests are skipped, or, where MONAI_LABEL_TESTS=1 is set, it is made.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from commands import is_locked, run
from monai.bundle import ConfigParser
from PIL import Image
from workflows import command

from shared.datasets.synthetic_ct import make_synthetic_ct
from shared.datasets.synthetic_histology import make_synthetic_histology

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "monai_label.sh"
STAMP = ROOT / ".venv-monailabel" / "made-by-setup-env"
REQUIREMENTS = ROOT / "requirements-monailabel.txt"
TYPES = {
    "abdominal_unetr_cbs_segmentation": "segmentation",
    "mitosis_fusestyle_cls_classification": "classification",
    "abdominal_lambda3d_cbs_segmentation": "segmentation",
    "mitosis_retinanet_fusestyle_detection": "detection",
}
SEGMENTATION = [name for name, kind in TYPES.items() if kind == "segmentation"]
DETECTION = "mitosis_retinanet_fusestyle_detection"
CLASSIFICATION = "mitosis_fusestyle_cls_classification"
THRESHOLD = 0.7
LAST_LAYERS = {"out.conv": 0.2, "fc.": 0.2, "cls_logits": 60.0}  # and how much their weights have to vary
ENVIRON = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

wanted = os.environ.get("MONAI_LABEL_TESTS") == "1"
made = STAMP.is_file() and STAMP.read_text().endswith(REQUIREMENTS.read_text())
pytestmark = [
    pytest.mark.monai_label,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (made or wanted),
        reason="there is no .venv-monailabel of these versions: `bash scripts/monai_label.sh --set_up` makes it, and "
        "so does MONAI_LABEL_TESTS=1",
    ),
]


class Server(NamedTuple):
    address: str
    app: Path
    studies: Path
    log: Path

    def bundle(self, model: str) -> Path:
        return self.app / "model" / model

    def ask(self, path: str, data: bytes | None = None, content_type: str = "", method: str | None = None) -> bytes:
        headers = {"Content-Type": content_type} if content_type else {}
        request = urllib.request.Request(self.address + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            if error.code == 422:
                return error.read()
            raise AssertionError(f"{path}: {error}\n{self.log.read_text()[-5000:]}") from error

    def ask_json(self, path: str, content: Any = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        return json.loads(self.ask(path, data, "application/json"))

    def send(self, path: str, field: str, file: Path, method: str = "POST", **fields: Any) -> bytes:
        """A form with a file in it, as the clients send it."""
        parts = [
            f'--limit\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{json.dumps(value)}\r\n'.encode()
            for name, value in fields.items()
        ]
        head = f'--limit\r\nContent-Disposition: form-data; name="{field}"; filename="{file.name}"\r\n\r\n'
        data = b"".join([*parts, head.encode(), file.read_bytes(), b"\r\n--limit--\r\n"])
        return self.ask(path, data, "multipart/form-data; boundary=limit", method)

    def train(self, model: str, **options: Any) -> dict[str, Any]:
        """The state of a training when it has ended."""
        self.ask_json(f"/train/{model}", {"device": "cpu", "max_epochs": 1, "val_split": 0.5, **options})
        end = time.monotonic() + 300
        while time.monotonic() < end:
            task = self.ask_json("/train/")
            if task["status"] not in ("SUBMITTED", "RUNNING"):
                return task
            time.sleep(1)
        raise AssertionError(f"no end of the training in five minutes\n{self.log.read_text()[-5000:]}")


def write_weights(name: str, folder: Path) -> Path:
    """Seeded weights of the demo's network with varied answers, the record beside them, and a threshold."""
    configs = ROOT / "bundles" / name / "configs"
    overlay = json.loads((configs / "variants" / "demo.json").read_text())
    parser = ConfigParser({**json.loads((configs / "inference.json").read_text()), **overlay})
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def")
    with torch.no_grad():
        for key, value in network.named_parameters():
            for last, deviation in LAST_LAYERS.items():
                if last in key:
                    value.copy_(torch.randn_like(value) * (deviation if key.endswith("weight") else 0.0))
    folder.mkdir()
    torch.save(network.state_dict(), folder / "model.pt")
    record = {"name": "nothing", "synthetic": True, "network_overlay": overlay["network_overlay"]}
    (folder / "model.json").write_text(json.dumps(record))
    (folder / "threshold.json").write_text(json.dumps({"threshold": THRESHOLD}))
    return folder / "model.pt"


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
    """As `scripts/monai_label.sh` starts it."""
    if not made:
        subprocess.run(["bash", SCRIPT, "--set_up"], check=True)
    folder = tmp_path_factory.mktemp("monai label")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = Server(f"http://127.0.0.1:{port}", folder / "app", folder / "studies", folder / "server.log")
    found.studies.mkdir()
    pixels = np.asarray(Image.open(images(data)[DETECTION]))
    options = {"tile": (128, 128), "photometric": "rgb", "resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(found.studies / "slide.tiff", np.tile(pixels, (2, 2, 1)), **options)  # 0.25 µm a pixel
    names = [model.removesuffix(f"_{kind}") for model, kind in TYPES.items()]
    weights = [f"{name}={write_weights(name, folder / name)}" for name in names]
    command = ["bash", SCRIPT, found.studies, *weights, "--port", str(port), "--app_dir", found.app]
    environ = {**ENVIRON, "MONAI_LABEL_SESSION_PATH": str(folder / "sessions")}
    with found.log.open("w") as log, subprocess.Popen(command, stdout=log, stderr=log, env=environ) as process:
        try:
            wait_for(found, process)
            yield found
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:  # it waits for what it was asked last
                process.kill()


def wait_for(server: Server, process: subprocess.Popen) -> None:
    end = time.monotonic() + 180
    while time.monotonic() < end and process.poll() is None:
        try:
            server.ask("/info/")
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(server.log.read_text())


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


def submit(server: Server, data: Path, number: int, labels: dict[str, int]) -> None:
    """An image, and its label as 3D Slicer submits it: the segments' order beside the label map."""
    name = f"ct_{number:03}"
    shutil.copy(data / "ct" / "imagesTr" / f"{name}.nii.gz", server.studies)
    end = time.monotonic() + 30
    while name not in server.ask_json("/datastore/?output=all")["objects"]:  # it looks at the folder now and then
        assert time.monotonic() < end
        time.sleep(0.5)
    info = [{"name": organ, "idx": value} for organ, value in labels.items()]
    file = data / "ct" / "labelsTr" / f"{name}.nii.gz"
    server.send(f"/datastore/label?image={name}&tag=final", "label", file, "PUT", params={"label_info": info})


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

    (label,) = (server.studies / "labels" / "final").glob("ct_001.*gz")
    label.write_bytes(b"damaged")
    with pytest.raises(AssertionError, match="HTTP Error 500"):  # of a training in the server's own process
        server.ask_json(f"/train/{model}?run_sync=true", {"device": "cpu", "max_epochs": 1, "val_split": 0.5})
    for folder in ("training", "output"):
        assert not is_locked(server.bundle(model) / folder)


def check_trained(server: Server, model: str, image: Path, expected: Path) -> None:
    """The trained weights are those that answer."""
    file = expected.parent / f"{model}.nii.gz"
    file.write_bytes(server.send(f"/infer/{model}?output=image", "file", image, params={"device": "cpu"}))
    (written,) = expected.rglob("*_seg.nii.gz")
    np.testing.assert_array_equal(label_map(file)[0], label_map(written)[0])
