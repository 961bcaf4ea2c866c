from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import package_bundles
import pytest
import torch
from bundle_tools.archive import lay_out
from bundle_tools.bundle import Bundle
from bundle_tools.overlays import check_drift, check_references
from bundle_tools.package import baked_configs, build_network, read_package
from commands import run
from monai.apps.utils import HashCheckError
from monai.bundle import ConfigParser, download, download_large_files, get_bundle_info, get_bundle_versions
from package_bundles import main
from web_folder import served

from shared.datasets.ct_cases import BTCV_LABELS
from shared.inferers import cascade_digest
from shared.networks import fusestyle_resnet
from shared.networks.retinanet import FrozenBatchNorm2d
from shared.utils import DataError, write_json

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/metadata.json"))
UNETR = ROOT / "bundles" / "abdominal_unetr_cbs"
DEMO = "configs/variants/demo.json"
FOUR = {"liver": 1, "spleen": 2, "left_kidney": 3, "aorta": 4}


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def save_weights(folder: Path, labels: dict[str, int], **record: Any) -> Path:
    """Weights of the demo's UNETR that nobody trained, and a record of them unless it is empty."""
    parser = ConfigParser()
    parser.read_config([UNETR / "configs" / "inference.json", UNETR / DEMO])
    parser["labels"] = labels
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(parser.get_parsed_content("network_def").state_dict(), folder / "model.pt")
    if record:
        write_json(folder / "model.json", {"labels": labels, "network_overlay": DEMO, **record})
    return folder / "model.pt"


@pytest.fixture(autouse=True)
def checks_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks, which take longer than the packaging, in the tests that are about them."""
    if request.function not in (test_a_package_holds_its_own_code, test_a_faulty_bundle_is_refused):
        monkeypatch.setattr("bundle_tools.archive.refuse_faulty", lambda bundle, folder: None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = save_weights(tmp_path_factory.mktemp("trained"), BTCV_LABELS, name="made_up", synthetic=True)
    write_json(path.with_name("threshold.json"), {"threshold": 0.4})
    return path


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of a bundle that a test may spoil."""
    return Path(shutil.copytree(UNETR, tmp_path / "bundles" / UNETR.name))


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of all bundles, whose baked configs every test writes anew."""
    return Path(shutil.copytree(ROOT / "bundles", tmp_path_factory.mktemp("all") / "bundles"))


def change(bundle: Path, name: str, **values: Any) -> None:
    path = bundle / "configs" / name
    path.write_text(json.dumps(read(path) | values, indent=4))


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_a_package_holds_its_own_code(tmp_path: Path, bundle: Path) -> None:
    folder = lay_out(bundle, tmp_path / "packed")
    assert check_references(Bundle(folder)) == []  # which knows `scripts` alone here
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"LICENSE", "configs/metadata.json", "configs/variants/demo.json", "docs/README.md"} <= names
    code = {path.relative_to(ROOT / "shared").as_posix() for path in (ROOT / "shared").rglob("*.py")}
    runs = {name for name in code if not name.startswith("datasets/")}
    assert {name for name in names if name.startswith("scripts/")} == {f"scripts/{name}" for name in runs}
    assert {name.partition("/")[0] for name in names} == {"LICENSE", "configs", "docs", "scripts"}
    for name in ("train", "inference"):
        first = read(folder / "configs" / f"{name}.json")["imports"][0]
        assert first.startswith(f"$from scripts import bundle_{bundle.name}_0_1_0_")
    metadata = [read(path / "configs" / "metadata.json") for path in (bundle, folder)]
    assert metadata[0] == metadata[1]
    card = (folder / "docs" / "README.md").read_text()
    assert card.splitlines()[2].startswith("**This package is untrained: it holds no weights.")
    assert "../.." not in card
    assert "bundles/" + bundle.name not in card.partition("\n## ")[0]


IMPORT_ALL = """
import pkgutil, sys
sys.modules["shared"] = None  # any import of it fails
import scripts
for module in pkgutil.walk_packages(scripts.__path__, "scripts."):
    __import__(module.name)
print(*sorted(name for name in sys.modules if name.startswith("scripts.")))
"""


def test_a_package_needs_no_datasets_and_no_collection(tmp_path: Path) -> None:
    folder = lay_out(UNETR, tmp_path / "packed")
    done = run("-c", IMPORT_ALL, cwd=folder)
    assert done.returncode == 0, done.stderr
    modules = {path.relative_to(folder).with_suffix("") for path in (folder / "scripts").glob("*/**/*.py")}
    assert set(done.stdout.split()) == {".".join(path.parts).removesuffix(".__init__") for path in modules}
    assert not [name for name in done.stdout.split() if name.startswith("scripts.datasets")]


def test_the_same_bundle_gives_the_same_bytes(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = partial(main, UNETR.name, weights=str(weights), variant="demo")
    pack(output_dir=str(tmp_path / "first"))
    shutil.copytree(UNETR, tmp_path / "elsewhere" / UNETR.name, ignore=shutil.ignore_patterns("models"))
    for path in (tmp_path / "elsewhere").rglob("*.*"):
        os.utime(path, (1, 1))
        path.chmod(0o755)
    (tmp_path / "elsewhere" / UNETR.name / "models").mkdir()
    (tmp_path / "elsewhere" / UNETR.name / "models" / "last.pt").write_text("what a training has left")
    monkeypatch.setattr(package_bundles, "BUNDLES", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    pack(output_dir="second")
    for name in (f"{UNETR.name}_v0.1.0.zip", f"{UNETR.name}_v0.1.0.json", "model_info.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_the_manifest_is_what_is_in_the_zip(tmp_path: Path, weights: Path) -> None:
    write_json(tmp_path / "model_info.json", {"other_v1": {"checksum": "x", "source": "y"}})
    base = "https://example.org/zoo/"
    main(UNETR.name, output_dir=str(tmp_path), weights=str(weights), variant="demo", base_url=base)
    archive = tmp_path / f"{UNETR.name}_v0.1.0.zip"
    manifest = read(archive.with_suffix(".json"))
    with zipfile.ZipFile(archive) as file:
        found = {info.filename: file.read(info) for info in file.infolist()}
        assert {info.compress_type for info in file.infolist()} == {zipfile.ZIP_STORED}
        assert {info.date_time for info in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert list(found) == sorted(found)
    assert {f"{UNETR.name}/{name}": entry for name, entry in manifest["files"].items()} == {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in found.items()
    }
    content = archive.read_bytes()
    assert manifest["zip"] == {
        "file": archive.name,
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    assert (manifest["trained"], manifest["synthetic"], manifest["variants"]) == (True, True, ["demo"])
    assert manifest["record"]["name"] == "made_up"
    entries = read(tmp_path / "model_info.json")
    assert entries["other_v1"] == {"checksum": "x", "source": "y"}
    entry = entries[f"{UNETR.name}_v0.1.0"]
    assert entry["checksum"] == hashlib.sha1(content).hexdigest()
    assert entry["source"] == f"{base}{archive.name}"
    assert (entry["trained"], entry["synthetic"]) == (True, True)
    for name in ("model.pt", "model.json", "threshold.json"):
        assert found[f"{UNETR.name}/models/{name}"] == weights.with_name(name).read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_variant_becomes_part_of_all_configs(tmp_path: Path, weights: Path) -> None:
    folder = lay_out(UNETR, tmp_path / "packed", weights, "demo,demo_schedule")
    configs = {name: read(folder / "configs" / f"{name}.json") for name in ("train", "inference", "metadata")}
    overlay, schedule = read(UNETR / DEMO), read(UNETR / "configs" / "variants" / "demo_schedule.json")
    assert {key: configs["train"][key] for key in overlay} == overlay
    recorded = {key: f"$@record.get('{key}', {overlay[key]})" for key in ("spacing", "roi_size")}
    assert {key: configs["inference"][key] for key in overlay} == overlay | recorded
    assert {key: configs["train"][key] for key in schedule} == schedule
    for key in ("num_workers", "cache", "amp"):  # what inference has for itself, or not at all
        assert configs["inference"].get(key) == read(UNETR / "configs" / "inference.json").get(key)
    image, pred = (configs["metadata"]["network_data_format"][k] for k in ("inputs", "outputs"))
    assert image["image"]["spatial_shape"] == pred["pred"]["spatial_shape"] == [32, 32, 32]
    assert pred["pred"]["channel_def"] == {str(v): k for k, v in ({"background": 0} | BTCV_LABELS).items()}
    assert "6.0 x 6.0 x 6.0 mm" in configs["metadata"]["image_classes"]
    description = configs["metadata"]["description"]
    assert "No weights are shipped" not in description
    assert " The network is that of the variant demo. Variants that are part" in description
    assert configs["metadata"]["changelog"] == {"0.1.0": "first version: training, evaluation and inference"}
    assert "synthetic data (made_up)" in configs["metadata"]["intended_use"]
    card = (folder / "docs" / "README.md").read_text()
    assert "demo, demo_schedule" in card.split("\n\n")[2]
    assert "No clinically trained weights are shipped" not in card
    assert "and no weights" not in (folder / "docs" / "data_license.txt").read_text()


def save_pair(folder: Path, weight: float | None = 0.4, flips: bool = False) -> tuple[Path, Path]:
    """Weights of the demo's detector and of a classifier, trained by nobody, and the choice of both."""
    detector, classifier, labels = folder / "d" / "model.pt", folder / "c" / "best.pt", {"non_mitotic": 0, "mitotic": 1}
    configs = ROOT / "bundles" / "mitosis_retinanet_fusestyle" / "configs"
    parser = ConfigParser()
    parser.read_config([configs / "inference.json", configs / "variants" / "demo.json"])
    networks = {detector: parser.get_parsed_content("network_def"), classifier: fusestyle_resnet("resnet10")}
    for path, network in networks.items():
        path.parent.mkdir(parents=True)
        torch.save(network.state_dict(), path)
    bundle = {"bundle": "mitosis_retinanet_fusestyle", "name": "made_up", "synthetic": True, "labels": labels}
    write_json(detector.with_suffix(".json"), {**bundle, "network_overlay": DEMO})
    write_json(classifier.with_suffix(".json"), {"bundle": "mitosis_fusestyle_cls", "name": "cells", "labels": labels})
    if weight is not None:
        content = {"weight": weight, "threshold": 0.3, "weights": cascade_digest(detector, classifier), "flips": flips}
        write_json(detector.with_name("cascade.json"), content)
    return detector, classifier


@pytest.mark.parametrize("flips", [False, True])
def test_a_classifier_goes_along_with_its_weight(tmp_path: Path, flips: bool) -> None:
    detector, classifier = save_pair(tmp_path, flips=flips)
    main(
        "mitosis_retinanet_fusestyle",
        output_dir=str(tmp_path / "dist"),
        weights=str(detector),
        variant="demo",
        classifier=str(classifier),
    )
    with zipfile.ZipFile(tmp_path / "dist" / "mitosis_retinanet_fusestyle_v0.1.0.zip") as file:
        file.extractall(tmp_path / "out")
    folder = tmp_path / "out" / "mitosis_retinanet_fusestyle"
    assert (folder / "models" / "classifier" / "model.pt").read_bytes() == classifier.read_bytes()
    assert (folder / "models" / "cascade.json").read_bytes() == detector.with_name("cascade.json").read_bytes()
    assert "A classifier, which was trained on cells, judges what they find." in (folder / "docs/README.md").read_text()
    configs = [folder / "configs" / "inference.json", folder / "configs" / "variants" / "demo.json"]
    found = run("-c", USES_THE_CLASSIFIER, *configs[:1], cwd=folder)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["0.4", "0.3", "cells", str(flips)]


USES_THE_CLASSIFIER = """
import sys
from monai.bundle import ConfigParser
parser = ConfigParser()
parser.read_config(sys.argv[1])
parser["device"] = "cpu"
judge = parser.get_parsed_content("judge")
print(judge.weight, judge.threshold, judge.about["record"]["name"], judge.classify.flips)
"""


def test_a_classifier_of_subtypes_and_each_ones_stainnet_go_along(tmp_path: Path) -> None:
    detector, classifier = save_pair(tmp_path)
    kinds = Path(shutil.copytree(classifier.parent, tmp_path / "kinds")) / classifier.name
    record = {"bundle": "mitosis_fusestyle_cls", "labels": {"normal": 0, "atypical": 1}, "stain_norm": "stainnet"}
    write_json(kinds.with_suffix(".json"), {**record, "name": "shapes"})
    write_json(detector.with_suffix(".json"), {**read(detector.with_suffix(".json")), "stain_norm": "stainnet"})
    write_json(kinds.with_name("threshold.json"), {"threshold": 0.7})
    for file in (detector, classifier, kinds):  # the classifier was trained without, whatever lies beside it
        file.with_name("stainnet.pt").write_text(file.parent.name)
    bundle, given = ROOT / "bundles" / "mitosis_retinanet_fusestyle", {"variant": "demo", "weights": detector}
    folder = lay_out(bundle, tmp_path / "packed", classifier=classifier, subtype_classifier=kinds, **given)
    models = folder / "models"
    stains = {path.parent.relative_to(models).as_posix(): path.read_text() for path in models.rglob("stainnet.pt")}
    assert stains == {".": "d", "subtype_classifier": "kinds"}
    assert read(models / "subtype_classifier" / "threshold.json") == {"threshold": 0.7}
    assert "which was trained on shapes, names kinds of the figures" in (folder / "docs/README.md").read_text()
    parser = ConfigParser()
    parser.read_config(folder / "configs" / "inference.json")
    assert parser["subtype_classifier"] == "$@bundle_root + '/models/subtype_classifier/model.pt'"
    assert "subtype_classifier" not in read(folder / "configs" / "evaluate.json")
    with pytest.raises(DataError, match="tells non_mitotic and mitotic apart, as the detector does"):
        lay_out(bundle, tmp_path / "wrong", subtype_classifier=classifier, **given)
    assert not (tmp_path / "wrong").exists()


def test_a_classifier_that_does_not_go_along(tmp_path: Path) -> None:
    detector, classifier = save_pair(tmp_path, weight=None)
    name = "mitosis_retinanet_fusestyle"
    for options, expected in (
        ({"names": (name,), "weights": str(detector)}, r"cascade\.json: there is no such file"),
        ({"names": (name,)}, "--classifier judges what weights find"),
        ({"names": (UNETR.name,)}, "--classifier goes with a bundle that detects, abdominal_unetr_cbs does not"),
    ):
        names = options.pop("names")
        with pytest.raises(DataError, match=expected):
            main(*names, output_dir=str(tmp_path / "dist"), variant="demo", classifier=str(classifier), **options)
    assert not (tmp_path / "dist").exists()


def test_pictures_of_a_card_go_along(tmp_path: Path, copy: Path) -> None:
    picture = bytes(range(256))
    (copy / "docs" / "picture.png").write_bytes(picture)
    assert (lay_out(copy, tmp_path / "packed") / "docs" / "picture.png").read_bytes() == picture


def test_hidden_files_and_backups_stay_out(tmp_path: Path, copy: Path) -> None:
    for name in (".DS_Store", "README.md~", ".README.md.swp", "a.swp", ".git/config"):
        (copy / "docs" / name).parent.mkdir(exist_ok=True)
        (copy / "docs" / name).write_bytes(b"\xff")
    folder = lay_out(copy, tmp_path / "packed")
    assert sorted(path.name for path in (folder / "docs").iterdir()) == ["README.md", "data_license.txt"]


def test_text_that_is_not_utf_8_is_refused(tmp_path: Path, copy: Path) -> None:
    (copy / "docs" / "notes.txt").write_bytes("Größe".encode("latin-1"))
    with pytest.raises(DataError, match=r"docs/notes\.txt: byte 2 is no UTF-8"):
        lay_out(copy, tmp_path / "packed")


def test_a_training_variant_leaves_inference_without_fusestyle(tmp_path: Path) -> None:
    bundle = ROOT / "bundles" / "mitosis_fusestyle_cls"
    folder = lay_out(bundle, tmp_path / "packed", variant="shallow,camelyon17")
    train, inference = (read(folder / "configs" / f"{name}.json") for name in ("train", "inference"))
    assert (train["fusestyle_places"], inference["fusestyle_places"]) == ([1, 2], [])
    evaluate = read(folder / "configs" / "evaluate.json")
    assert inference["patch_size"] == evaluate["patch_size"] == "$@record.get('patch_size', 96)"
    metadata = read(folder / "configs" / "metadata.json")
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == [96, 96]
    assert "96 x 96 pixels" in metadata["image_classes"]


VARIANTS = [
    (bundle.name, base + path.stem)
    for bundle in BUNDLES
    for path in sorted(bundle.glob("configs/variants/*.json"))
    for base in ("", "demo,")
    if path.stem != "demo" or not base
]


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_variants_leave_training_and_inference_the_same(copies: Path, name: str, variant: str) -> None:
    for config, content in baked_configs(read_package(ROOT / "bundles" / name, variant=variant)).items():
        write_json(copies / name / "configs" / f"{config}.json", content)
    assert check_drift(Bundle(copies / name)) == []


def test_what_variants_add_to_a_list_is_added_when_they_are_baked(tmp_path: Path, copy: Path) -> None:
    """As MONAI does it for `+key`: behind what is there, and that of several variants one after the other."""
    write_json(copy / "configs" / "variants" / "more.json", {"+imports": ["$import json"]})
    folder = lay_out(copy, tmp_path / "packed", variant="prevalence,more")
    train, first = read(folder / "configs" / "train.json"), read(copy / "configs" / "train.json")["imports"]
    added = [
        line.replace("shared.", "scripts.") for line in read(copy / "configs/variants/prevalence.json")["+imports"]
    ]
    assert train["imports"][4:] == [*(line.replace("shared.", "scripts.") for line in first), *added, "$import json"]
    assert [key for name in ("train", "inference") for key in read(folder / f"configs/{name}.json") if "+" in key] == []


def test_a_file_that_is_not_there_is_not_baked(tmp_path: Path) -> None:
    """Training starts as without it; the network's frozen batch norm computes what batch norm does with its weights."""
    bundle = ROOT / "bundles" / "mitosis_retinanet_fusestyle"
    parser = ConfigParser(baked_configs(read_package(bundle, variant="demo"))["inference"])
    parser["pretrained"] = "weights of another training"
    torch.manual_seed(0)
    trained = parser.get_parsed_content("network_def").eval()
    assert any(isinstance(module, FrozenBatchNorm2d) for module in trained.modules())
    for name, value in trained.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.add_(torch.rand(value.shape))
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    package = read_package(bundle, tmp_path / "model.pt", "demo,pretrained")
    configs = baked_configs(package)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(build_network(configs, package)(image), trained(image))
    assert [configs[name]["pretrained"] for name in ("train", "inference")] == [None, None]
    missing = "The variant pretrained starts from models/pretrained.safetensors, which is not in this package."
    assert package.note.endswith(missing)
    main(bundle.name, output_dir=str(tmp_path / "out"), weights=str(package.weights), variant="demo,pretrained")
    assert read(tmp_path / "out" / f"{bundle.name}_v0.1.0.json")["variants"] == ["demo", "pretrained"]


def test_the_classes_are_those_of_the_weights(tmp_path: Path) -> None:
    trained = {"spacing": [7.0, 7.0, 7.0], "intensity_range": [-100.0, 300.0]}
    path = save_weights(tmp_path / "four", FOUR, name="mine", synthetic=False, **trained)
    folder = lay_out(UNETR, tmp_path / "packed", path, "demo")
    metadata = read(folder / "configs" / "metadata.json")
    pred = metadata["network_data_format"]["outputs"]["pred"]
    assert pred["num_channels"] == 5
    assert pred["channel_def"] == {"0": "background", **{str(value): name for name, value in FOUR.items()}}
    assert metadata["pred_classes"].startswith("5 channels of logits")
    assert metadata["task"] == "Segmentation of 4 abdominal organs in CT"
    assert "segments 4 abdominal organs" in metadata["description"]
    assert metadata["label_classes"].endswith("0 background, 1 liver, 2 spleen, 3 left kidney, 4 aorta")
    configs = [read(folder / "configs" / f"{name}.json") for name in ("train", "evaluate", "inference")]
    for key, value in ({"labels": FOUR} | trained).items():
        recorded = f"$@record.get('{key}', {value})"
        assert [config[key] for config in configs] == [value, recorded, recorded]
    assert "were trained on mine." in (folder / "docs" / "README.md").read_text().split("\n\n")[1]


def test_weights_without_a_record_are_said_to_be(tmp_path: Path) -> None:
    path = save_weights(tmp_path / "bare", BTCV_LABELS)
    folder = lay_out(UNETR, tmp_path / "packed", path, "demo")
    assert "nobody knows what they were trained on" in (folder / "docs" / "README.md").read_text().split("\n\n")[1]
    assert not (folder / "models" / "model.json").exists()


SPOILT = {
    "version": (lambda b: change(b, "metadata.json", version="9.9.9"), "9.9.9 is not in changelog"),
    "pin": (lambda b: change(b, "metadata.json", numpy_version="1.0"), "numpy is 1.0, requirements.txt has"),
    "reference": (lambda b: change(b, "train.json", device="$@nowhere"), "nowhere is not there"),
    "target": (lambda b: change(b, "train.json", progress={"_target_": "shared.handlers.No"}), "has no No"),
    "path": (lambda b: change(b, "train.json", dataset_dir="/" + "home/me"), "a path of one machine"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_faulty_bundle_is_refused(tmp_path: Path, copy: Path, fault: str) -> None:
    spoil, message = SPOILT[fault]
    spoil(copy)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=message):
        lay_out(copy, tmp_path / "out" / "packed")
    assert list((tmp_path / "out").iterdir()) == []


def spoil_weights(kind: str, folder: Path, weights: Path) -> tuple[Path, str]:
    """A file of weights that cannot be packaged, and the variant it is given with."""
    state = torch.load(weights, weights_only=True)
    path, variant = folder / "model.pt", "demo"
    if kind == "checkpoint":
        torch.save({"model": state, "epoch": 3}, path)
    elif kind == "not finite":
        for value in state.values():
            value.mul_(torch.nan if value.is_floating_point() else 1)
        torch.save(state, path)
    elif kind == "other network":
        torch.save({"conv.weight": torch.zeros(3)}, path)
    elif kind == "no weights":
        path.write_text("weights")
    elif kind == "other bundle":
        torch.save(state, path)
        path.with_suffix(".json").write_text('{"bundle": "abdominal_lambda3d_cbs", "version": "0.1.0"}')
    else:  # the record's overlay
        path, variant = weights, "plain"
    return path, variant


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("checkpoint", "holds more than weights"),
        ("not finite", "hold NaN"),
        ("other network", r"belong to another network: .* Give --variant"),
        ("other bundle", r"these are weights of abdominal_lambda3d_cbs 0\.1\.0, this is abdominal_unetr_cbs\. Give"),
        ("no weights", r"cannot be read as weights .* copy it again\.$"),
        ("record", r"its record names the network of configs/variants/demo.json.*Give --variant demo\.$"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, weights: Path, kind: str, message: str) -> None:
    path, variant = spoil_weights(kind, tmp_path, weights)
    with pytest.raises(DataError, match=message):
        main(UNETR.name, output_dir=str(tmp_path / "out"), weights=str(path), variant=variant)
    assert list((tmp_path / "out").rglob("*")) == []


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (("nowhere",), {}, "nowhere: there is no such bundle, expected abdominal"),
        ((UNETR.name,), {"weights": "nowhere.pt"}, "nowhere.pt: there is no such file"),
        ((UNETR.name,), {"variant": "demo,big"}, "--variant is big, abdominal_unetr_cbs has cbs_sampling"),
        ((), {"weights": "model.pt"}, "--weights are those of one bundle, 4 were named"),
        ((UNETR.name,), {"weights_url": "https://example.org/model.pt"}, "give the file too"),
        ((UNETR.name,), {"weights": __file__, "weights_url": "model.pt"}, "begins with http"),
    ],
)
def test_bad_arguments_leave_nothing(
    tmp_path: Path, names: tuple[str, ...], options: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        main(*names, output_dir=str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()


def test_other_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="there is something already"):
        lay_out(UNETR, tmp_path)
    (tmp_path / "model_info.json").write_text("[]")
    with pytest.raises(DataError, match="holds a JSON list"):
        main(UNETR.name, output_dir=str(tmp_path))
    assert (tmp_path / "model_info.json").read_text() == "[]"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model_info.json", "notes.txt"]


def test_a_trained_package_is_not_replaced_by_another_kind(tmp_path: Path, weights: Path) -> None:
    pack = partial(main, UNETR.name, output_dir=str(tmp_path / "out"))
    pack()
    pack(weights=str(weights), variant="demo")
    pack(weights=str(weights), variant="demo")  # newer weights of the same kind may
    files = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for options in ({}, {"weights": str(weights), "variant": "demo,plain"}):
        with pytest.raises(DataError, match=r"tells of a trained package of the variants .*Raise the version"):
            pack(**options)
        assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files


# ---- from a server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address and the folder of a server on this machine."""
    folder = tmp_path / "served"
    folder.mkdir()
    with served(folder) as address:
        yield address, folder


def test_named_weights_are_fetched_and_checked(tmp_path: Path, weights: Path, server: tuple[str, Path]) -> None:
    address, place = server
    shutil.copy(weights, place / "file.pt")
    folder = lay_out(UNETR, tmp_path / "packed", weights, "demo", f"{address}/file.pt")
    assert not (folder / "models" / "model.pt").exists()
    assert (folder / "models" / "model.json").is_file()
    assert "download_large_files" in (folder / "docs" / "README.md").read_text().split("\n\n")[1]
    (place / "file.pt").write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(HashCheckError):
        download_large_files(str(folder))
    assert not (folder / "models" / "model.pt").exists()
    shutil.copy(weights, place / "file.pt")
    download_large_files(str(folder))
    assert (folder / "models" / "model.pt").read_bytes() == weights.read_bytes()


@pytest.mark.filterwarnings("ignore:No hash value provided")  # MONAI asks for no hash of a bundle
def test_a_package_is_downloaded(tmp_path: Path, server: tuple[str, Path]) -> None:
    address, place = server
    main(UNETR.name, output_dir=str(place), base_url=address)
    source = read(place / "model_info.json")[f"{UNETR.name}_v0.1.0"]["source"]
    download(name=UNETR.name, bundle_dir=tmp_path / "zoo", url=source, progress=False)
    manifest = read(place / f"{UNETR.name}_v0.1.0.json")
    for name, entry in manifest["files"].items():
        content = (tmp_path / "zoo" / UNETR.name / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]


def test_the_list_is_what_monai_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for `requests`, which asks GitHub for the list of a repository."""
    main(UNETR.name, output_dir=str(tmp_path), base_url="https://example.org")
    answer = SimpleNamespace(text=(tmp_path / "model_info.json").read_text(), raise_for_status=lambda: None)
    monkeypatch.setattr("monai.bundle.scripts.has_requests", True)
    monkeypatch.setattr("monai.bundle.scripts.requests", SimpleNamespace(get=lambda url: answer))
    assert get_bundle_versions(UNETR.name) == {"latest_version": "0.1.0", "all_versions": ["0.1.0"]}
    archive = f"{UNETR.name}_v0.1.0"
    assert get_bundle_info(UNETR.name, "0.1.0") == {
        "name": archive,
        "browser_download_url": f"https://example.org/{archive}.zip",
    }


# ---- the identity of the code

ALTERNATE = """
import sys
first, second, unload = *sys.argv[1:3], "unload" in sys.argv
for folder in (first, second):
    sys.path.insert(0, folder)
    for name in [name for name in sys.modules if unload and name.partition(".")[0] == "scripts"]:
        del sys.modules[name]
    name = open(f"{folder}/identity").read()
    print(getattr(__import__("scripts"), name))
"""


def other_package(kind: str, copy: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if kind == "other bundle":
        return lay_out(ROOT / "bundles" / "mitosis_fusestyle_cls", folder)
    if kind == "other version":
        change(copy, "metadata.json", version="0.2.0", changelog={"0.1.0": "first", "0.2.0": "second"})
    else:
        changed = shutil.copytree(ROOT / "shared", folder.with_name("shared"))
        file = changed / "layers" / "fusestyle.py"
        file.write_text(f"{file.read_text()}\n# changed\n")
        monkeypatch.setattr("bundle_tools.archive.SHARED", changed)
    return lay_out(copy, folder)


@pytest.mark.parametrize("kind", ["other bundle", "other version", "other code"])
def test_code_of_another_package_stops_the_second(
    tmp_path: Path, copy: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = lay_out(UNETR, tmp_path / "a"), other_package(kind, copy, tmp_path / "b", monkeypatch)
    for folder in (first, second):
        line = read(folder / "configs" / "inference.json")["imports"][0]
        (folder / "identity").write_text(line.rpartition(" ")[2])
    result = run("-c", ALTERNATE, first, second)
    assert result.returncode == 1
    assert result.stdout == "abdominal_unetr_cbs 0.1.0\n"
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"scripts.OtherBundleError: {first}/scripts: ")
    assert f"belongs to {second}/scripts. " in last
    result = run("-c", ALTERNATE, first, second, "unload")
    assert result.returncode == 0
    expected = {"other bundle": "mitosis_fusestyle_cls 0.1.0", "other version": "abdominal_unetr_cbs 0.2.0"}
    assert result.stdout.splitlines()[1] == expected.get(kind, "abdominal_unetr_cbs 0.1.0")


def test_the_command_says_what_is_wrong_in_a_line(tmp_path: Path) -> None:
    result = run(ROOT / "scripts" / "package_bundles.py", "none", "--output_dir", tmp_path, python=sys.executable)
    assert result.returncode == 1
    assert result.stderr.startswith("\nError: ")
    assert "abdominal_unetr_cbs" in result.stderr
    assert "Traceback" not in result.stderr


# ---- the model zoo


def test_a_pull_request_is_laid_out(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zoo, output = tmp_path / "zoo", tmp_path / "dist"
    main(UNETR.name, output_dir=str(output), zoo_dir=str(zoo))
    untrained = (output / f"{UNETR.name}_v0.1.0_zoo.txt").read_text()
    assert untrained in capsys.readouterr().out
    assert "There are no trained weights" in untrained
    shutil.rmtree(zoo)
    write_json(zoo / "models" / "model_info.json", {f"{UNETR.name}_v0.1.0": {}})
    url = "https://example.org/model.pt"
    options = {"weights": str(weights), "variant": "demo", "weights_url": url, "zoo_dir": str(zoo)}
    main(UNETR.name, output_dir=str(output), **options)
    text = (output / f"{UNETR.name}_v0.1.0_zoo.txt").read_text()
    assert "There are no trained weights" not in text
    assert "trained on synthetic data" in text
    assert "is in the zoo already: raise `version`" in text
    assert sorted(path.name for path in (zoo / "models").iterdir()) == [UNETR.name, "model_info.json"]
    folder = zoo / "models" / UNETR.name
    assert url in (folder / "large_files.yml").read_text()
    assert not list(folder.rglob("*.pt"))
    card = (folder / "docs" / "README.md").read_text()
    titles = [line for line in card.splitlines() if re.match("#{2,3} ", line)]
    assert card.startswith("# Abdominal organs in CT, UNETR with the class boost strategy\n")
    assert titles == [
        *("### **Authors**", "### **Tags**", "## **Model Description**", "## **Data**", "## **Performance**"),
        *("## **Additional Usage Steps**", "## **System Configuration**", "## **Limitations**", "## **References**"),
    ]
    assert "#### **Preprocessing**" in card
    assert "python -m monai.bundle run --config_file configs/train.json" in card
    compile((zoo / "ci" / "unit_tests" / f"test_{UNETR.name}.py").read_text(), "test", "exec")


def test_large_weights_stay_out_of_a_pull_request(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bundle_tools.zoo.LARGEST_FILE", weights.stat().st_size - 1)
    options = {"weights": str(weights), "variant": "demo", "zoo_dir": str(tmp_path / "zoo")}
    main(UNETR.name, output_dir=str(tmp_path), **options)
    assert "publish the file" in (tmp_path / f"{UNETR.name}_v0.1.0_zoo.txt").read_text()
    assert not list((tmp_path / "zoo").rglob("*.pt"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"models/{UNETR.name}/configs/metadata.json", f"{UNETR.name}: is there already. Delete it first"),
        (f"ci/unit_tests/test_{UNETR.name}.py", "is there already. Delete it first"),
        ("models/model_info.json", "not readable as JSON"),
    ],
)
def test_a_zoo_is_left_alone(tmp_path: Path, name: str, message: str) -> None:
    """Where the bundle is in it, maybe with somebody's edits, or its list is broken."""
    (tmp_path / "zoo" / name).parent.mkdir(parents=True)
    (tmp_path / "zoo" / name).write_text("mine")
    with pytest.raises(DataError, match=message):
        main(UNETR.name, output_dir=str(tmp_path / "out"), zoo_dir=str(tmp_path / "zoo"))
    assert [path.read_text() for path in tmp_path.rglob("*.*")] == ["mine"]
