"""Packed bundles where the repository is not: unzipped elsewhere, in processes that cannot import `shared`."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import commands
import pytest
import torch
from bundle_tools.archive import write_zip
from bundle_tools.checks import SCHEMA
from bundle_tools.sample_data import write_sample
from package_bundles import main
from safetensors.torch import save_file
from web_folder import served

from shared.datasets.ct_cases import BTCV_LABELS
from shared.datasets.synthetic_histology import make_synthetic_histology
from shared.networks import StainNet
from shared.utils import write_json

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.parents[1].name for path in ROOT.glob("bundles/*/configs/inference.json"))
SMALL: dict[str, dict[str, Any]] = {
    "abdominal": {"warmup_epochs": 0, "cache": "none", "num_samples": 1, "batch_size": 1},
    "mitosis_fusestyle": {"batch_size": 8, "cache": "none", "crop_size": 64, "train_domains": ["XR", "CS"]},
    "mitosis_retinanet": {"batch_size": 2, "tile_size": 128, "tiles_per_epoch": 4, "train_domains": ["XR", "CS"]},
}

pytestmark = pytest.mark.slow

# Calls functions of monai.bundle, and sees that the code is the one in the working folder.
CALLS = """
import json, os, sys
from pathlib import Path
from monai import bundle
sys.path.insert(0, os.getcwd())
for name, options in json.loads(sys.argv[1]):
    getattr(bundle, name)(**options)
    for file in ("last.pt", "best.pt") if "ckpt_dir" in options else ():  # of all variants they are gigabytes
        Path(options["ckpt_dir"], file).unlink(missing_ok=True)
import scripts
assert Path(scripts.__file__).resolve().parent == Path("scripts").resolve(), scripts.__file__
assert "shared" not in sys.modules
"""

# Downloads and loads bundles, one after the other, and says whose code was run.
LOADS = """
import sys
from pathlib import Path
from monai.bundle import download, load
for i, url in enumerate(sys.argv[2:]):
    name, place = url.rpartition("/")[2].partition("_v")[0], Path.cwd() / str(i)
    download(name=name, bundle_dir=place, url=url, progress=False)
    sys.path.insert(0, str(place / name))
    for module in [module for module in sys.modules if module.partition(".")[0] == "scripts"]:
        if sys.argv[1] == "unload":
            del sys.modules[module]
    load(name, bundle_dir=place, workflow_type="inference", device="cpu")
    print(sys.modules["scripts.networks.resnet"].__file__)
"""


class Packed(NamedTuple):
    untrained: Path
    trained: Path  # with weights of the demo's network, of one epoch
    data: dict[str, Any]  # the options that name the training data
    images: dict[str, Any]  # the options that name images for inference

    @property
    def small(self) -> dict[str, Any]:
        shortest = {"max_epochs": 1, "val_interval": 1, "num_workers": 0, "amp": False}
        return shortest | next(SMALL[key] for key in SMALL if self.trained.name.startswith(key))

    @property
    def tested(self) -> dict[str, Any]:
        return {"bootstrap": 1} | ({"test_domains": ["GT450"]} if "histology" in self.data["datalist"] else {})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_sample(folder / "ct", "segmentation", BTCV_LABELS)
    make_synthetic_histology(folder / "histology", slides=3, patches_per_slide=4, tiles_per_slide=1, processes=1)
    for name in ("dataset.json", "tiles.json"):  # copies, and a list of another hospital, for variants that need them
        content = json.loads((folder / "histology" / name).read_text())
        for entry in content["training"]:
            entry["stylized"] = entry["image"]
        content["ood_validation"] = content["validation"]
        write_json(folder / "histology" / name, content)
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of processes that find an error where `shared` would be."""
    folder = tmp_path_factory.mktemp("poison")
    (folder / "shared.py").write_text("raise ImportError('the repository is not here')\n")
    # the files that torch's export leaves behind go with the folder
    return os.environ | {"PYTHONPATH": str(folder), "TMPDIR": str(folder)}


def run(folder: Path, environment: dict[str, str], *arguments: str) -> str:
    result = commands.run(*arguments, cwd=folder, env=environment)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


def call(folder: Path, environment: dict[str, str], *calls: tuple[str, dict[str, Any]]) -> None:
    run(folder, environment, "-c", CALLS, json.dumps(calls))


def bundle_run(*configs: str, **options: Any) -> tuple[str, dict[str, Any]]:
    return "run", {"config_file": [f"configs/{name}.json" for name in configs], **options}


def unzip(archive: Path, folder: Path) -> Path:
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    (inner,) = folder.iterdir()
    return inner


@pytest.fixture(scope="module", params=NAMES)
def packed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, data: Path, environment: dict[str, str]
) -> Packed:
    """A bundle packed without weights, trained as packed, and packed again with what came of it."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    main(name, output_dir=str(folder), zoo_dir=str(folder / "zoo"))
    untrained = unzip(folder / f"{name}_v0.1.0.zip", folder / "untrained")
    histology, tiles = data / "histology", name.startswith("mitosis_retinanet")
    datalist, images = histology / ("tiles.json" if tiles else "dataset.json"), histology / "patches" / "XR"
    if name.startswith("abdominal"):
        datalist, images = data / "ct" / "dataset.json", data / "ct" / "image_3.nii.gz"
    if tiles:
        images = next((histology / "tiles" / "XR").rglob("*.png"))
    given: dict[str, Any] = {"input": str(images)} | ({"mpp": 0.25} if tiles else {})
    whole = Packed(untrained, folder / "trained" / name, {"datalist": str(datalist)}, given)
    flags = [part for key, value in (whole.data | whole.small).items() for part in (f"--{key}", str(value))]
    configs = str(["configs/train.json", "configs/variants/demo.json"])
    run(untrained, environment, "-m", "monai.bundle", "run", "--config_file", configs, *flags)
    weights = untrained / "models" / "model.pt"
    main(name, output_dir=str(folder / "with_weights"), weights=str(weights), variant="demo")
    assert unzip(folder / "with_weights" / f"{name}_v0.1.0.zip", folder / "trained") == whole.trained
    return whole


def test_all_commands_run(packed: Packed, environment: dict[str, str]) -> None:
    shutil.copy(SCHEMA, packed.trained / "schema.json")
    meta, config = "configs/metadata.json", "configs/inference.json"
    places = {"net_id": "network_def", "meta_file": meta, "config_file": config}
    onnx = {"filepath": "models/model.onnx", "ckpt_file": "models/model.pt", "use_trace": True, **places}
    call(
        packed.trained,
        environment,
        ("verify_metadata", {"meta_file": meta, "filepath": "schema.json"}),
        ("verify_net_in_out", places | {"device": "cpu"}),
        bundle_run("train", "evaluate", **packed.data, **packed.tested, num_workers=0, amp=False),
        bundle_run("inference", **packed.images, num_workers=0, amp=False),
        ("ckpt_export", {"config_file": config}),
        ("onnx_export", onnx),
    )
    for name in ("output/evaluation/summary.json", "models/model.ts", "models/model.onnx"):
        assert (packed.trained / name).is_file(), name
    assert len(list((packed.trained / "eval").rglob("*.*"))) > 2
    assert not (packed.untrained.parent / "shared").exists()


def test_every_variant_trains(packed: Packed, environment: dict[str, str], tmp_path: Path) -> None:
    """In one process, at the demo's size; those of another network are evaluated and used, too."""
    folder, calls = packed.untrained, []
    variants = {path.stem: path.read_text() for path in sorted((folder / "configs" / "variants").glob("*.json"))}
    variants.pop("dicom", None)  # of inference alone
    if folder.name == "abdominal_lambda3d_cbs":  # most are those of the other abdominal bundle, to the byte
        names = [f"bundles/{name}/configs/variants" for name in ("abdominal_unetr_cbs", "abdominal_lambda3d_cbs")]
        found = [{path.name: path.read_bytes() for path in (ROOT / name).iterdir()} for name in names]
        variants = {n: text for n, text in variants.items() if found[0].get(f"{n}.json") != found[1][f"{n}.json"]}
    assert variants
    if "pretrained" in variants:
        weights = torch.load(folder / "models" / "model.pt", weights_only=True)
        save_file(weights, folder / "models" / "pretrained.safetensors")
    if "stainnet" in variants:
        torch.save(StainNet().state_dict(), folder / "models" / "stainnet.pt")
    for name, text in variants.items():
        places = {"output_dir": str(tmp_path / name), "ckpt_dir": str(tmp_path / name)}
        overlays = ["variants/demo", f"variants/{name}"] if name != "demo" else ["variants/demo"]
        calls.append(bundle_run("train", *overlays, **packed.data, **places, **packed.small))
        if '"network_def"' in text:
            options = {"num_workers": 0, "amp": False}
            calls.append(
                bundle_run("train", "evaluate", *overlays, **packed.data, **places, **options, **packed.tested)
            )
            places = {"output_dir": str(tmp_path / name / "found"), "ckpt_path": str(tmp_path / name / "model.pt")}
            calls.append(bundle_run("inference", *overlays, **packed.images, **places, **options))
    call(folder, environment, *calls)
    for name in variants:
        assert (tmp_path / name / "model.pt").is_file(), name


@pytest.mark.parametrize(
    "packed", [name for name in NAMES if "lambda3d" not in name], indirect=True
)  # one of each task
def test_the_unit_test_for_the_zoo_passes(packed: Packed, environment: dict[str, str]) -> None:
    zoo = packed.untrained.parents[1] / "zoo"
    run(zoo, environment, f"ci/unit_tests/test_{packed.untrained.name}.py")


@pytest.mark.parametrize("unload", [True, False])
@pytest.mark.parametrize("packed", ["mitosis_fusestyle_cls"], indirect=True)
def test_two_downloaded_bundles_in_one_process(
    packed: Packed, environment: dict[str, str], tmp_path: Path, unload: bool
) -> None:
    """A bundle and another version of it; their code is unloaded in between, as MONAI Label does it, or it is not."""
    name, zips = packed.trained.name, tmp_path / "zips"
    bundle = Path(shutil.copytree(packed.trained, tmp_path / "second" / name))
    identity = json.loads((bundle / "configs" / "inference.json").read_text())["imports"][0].rpartition(" ")[2]
    for path in (bundle / "scripts" / "__init__.py", *(bundle / "configs").glob("*.json")):
        path.write_text(path.read_text().replace(identity, identity.replace("0_1_0", "0_2_0")))
    write_zip(packed.trained, zips / f"{name}_v0.1.0.zip", name)
    write_zip(bundle, zips / f"{name}_v0.2.0.zip", name)
    with served(zips) as address:
        urls = [f"{address}/{name}_v{version}.zip" for version in ("0.1.0", "0.2.0")]
        result = commands.run("-c", LOADS, "unload" if unload else "keep", *urls, cwd=tmp_path, env=environment)
    places = [tmp_path / part / name / "scripts" for part in ("0", "1")]
    files = [line for line in result.stdout.splitlines() if line.endswith(".py")]
    assert files == [str(place / "networks" / "resnet.py") for place in places[: 1 + unload]], result.stderr[-3000:]
    assert result.returncode == (0 if unload else 1)
    if not unload:
        last = result.stderr.strip().splitlines()[-1]
        assert f"{places[0]}: this package `scripts` is loaded" in last
        assert f"belongs to {places[1]}." in last
