"""The networks of all bundles through MONAI's commands for export, and against what their metadata promise.

The commands are those of the model cards, with the demo's small network and weights that nobody trained.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch
from commands import run
from monai.bundle import ConfigParser, verify_net_in_out
from monai.data import load_net_with_metadata
from PIL import Image
from torch import Tensor, nn
from workflows import workflow

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/inference.json"))
CONFIGS = ["configs/inference.json", "configs/variants/demo.json"]
AXES = ("batch", "channels", "depth", "height", "width")


class Model(NamedTuple):
    folder: Path  # a copy of the bundle, with models/model.pt
    network: nn.Module
    any_size: bool
    images: list[Tensor]  # the first has the shape of the export, the others have more samples, and another size if any

    @property
    def shape(self) -> str:
        return str(list(self.images[0].shape))


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda bundle: bundle.name)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp(request.param.name)
    shutil.copytree(request.param / "configs", folder / "configs")
    parser = ConfigParser()
    parser.read_config([folder / name for name in CONFIGS])
    torch.manual_seed(0)
    network: nn.Module = parser.get_parsed_content("network_def").eval()
    for value in network.state_dict().values():
        if value.ndim == 1:  # the zeros and ones of new biases and norms would hide what is left out
            value.add_(torch.rand_like(value), alpha=0.1)
    (folder / "models").mkdir()
    torch.save(network.state_dict(), folder / "models" / "model.pt")

    image = json.loads((folder / "configs" / "metadata.json").read_text())["network_data_format"]["inputs"]["image"]
    channels, size = image["num_channels"], parser.get("roi_size", image["spatial_shape"])
    any_size = "img_size" not in parser["network_def"]  # which UNETR's position embeddings need
    other = [size[0] + 16, *size[1:]] if any_size else size
    images = [torch.rand(n, channels, *s) for n, s in ((1, size), (3, size), (2, other))]
    return Model(folder, network, any_size, images)


def export(model: Model, command: str, *arguments: str) -> None:
    temporary = model.folder / "tmp"
    temporary.mkdir(exist_ok=True)
    line = ["-m", "monai.bundle", command, *arguments, "--config_file", CONFIGS]
    result = run(*line, cwd=model.folder, env=os.environ | {"TMPDIR": str(temporary)})
    assert result.returncode == 0, result.stderr[-3000:]
    # the weights, hundreds of megabytes, would stay here
    assert [path.name for path in temporary.iterdir() if path.is_file()] == []


def results_of_inference(model: Model, weights: str, output: Path) -> dict[str, bytes]:
    """What the pipeline of inference.json makes of one input: names and contents of the files, pictures aside.

    Without the digest of the weights, which two files of the same network do not share.
    """
    volume = len(model.images[0].shape) == 5
    source = output.parent / ("scan.nii.gz" if volume else "image.png")
    noise = np.random.default_rng(0).integers(0, 200, (48, 44, 40) if volume else (300, 280, 3))
    if volume:
        nib.save(nib.Nifti1Image(noise.astype(np.int16), np.diag([4.0, 4.0, 4.0, 1.0])), source)
    else:
        Image.fromarray(noise.astype(np.uint8)).save(source)
    options = {"input": str(source), "ckpt_path": str(model.folder / "models" / weights), "output_dir": str(output)}
    if "score_threshold" in (parser := ConfigParser(json.loads((model.folder / CONFIGS[0]).read_text()))):
        options |= {"score_threshold": 0.0, "min_tissue": 0.0, "mpp": parser.get("mpp") or 0.25}
    files = [str(model.folder / name) for name in CONFIGS]
    workflow(files, num_workers=0, amp=False, device="$torch.device('cpu')", **options).run()
    digest = hashlib.sha256((model.folder / "models" / weights).read_bytes()).hexdigest().encode()
    written = [p for p in sorted(output.rglob("[!.]*")) if p.is_file() and p.suffix != ".png"]
    return {p.name: p.read_bytes().replace(digest, b"") for p in written}


@pytest.mark.filterwarnings("ignore:`torch.jit.load")  # deprecated, and still what MONAI's users load with
@pytest.mark.parametrize("traced", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_torchscript(model: Model, traced: bool) -> None:
    export(model, "ckpt_export", *(["--use_trace", "True", "--input_shape", model.shape] if traced else []))
    exported, metadata, configs = load_net_with_metadata(
        model.folder / "models" / "model.ts", more_extra_files=[Path(name).name for name in CONFIGS]
    )
    assert metadata["name"] == json.loads((model.folder / "configs" / "metadata.json").read_text())["name"]
    assert [json.loads(content) for content in configs.values()] == [
        json.loads((model.folder / name).read_text()) for name in CONFIGS
    ]
    with torch.no_grad():
        for image in model.images:
            torch.testing.assert_close(exported(image), model.network(image))
    assert "FuseStyle" not in {module.original_name for module in exported.modules()}


@pytest.mark.filterwarnings("ignore:`torch.jit.load")
def test_inference_runs_on_the_exported_network(model: Model, tmp_path: Path) -> None:
    if not (model.folder / "models" / "model.ts").is_file():  # this test was picked alone
        export(model, "ckpt_export")
    found = [results_of_inference(model, name, tmp_path / name) for name in ("model.pt", "model.ts")]
    assert len(found[0]) > 1
    assert found[0] == found[1]


@pytest.mark.slow
def test_onnx(model: Model) -> None:
    free = {i: AXES[i] for i in range(model.images[0].ndim) if i == 0 or (i > 1 and model.any_size)}
    options = {"input_names": ["image"], "output_names": ["pred"], "dynamic_shapes": [free], "external_data": False}
    files = ("--filepath", "models/model.onnx", "--ckpt_file", "models/model.pt", "--input_shape", model.shape)
    # without use_trace, MONAI drops the options that are torch's
    export(model, "onnx_export", "network_def", *files, "--use_trace", "True", "--converter_kwargs", str(options))
    assert b"FuseStyle" not in (model.folder / "models" / "model.onnx").read_bytes()
    session = onnxruntime.InferenceSession(model.folder / "models" / "model.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        for image in model.images:
            (pred,) = session.run(["pred"], {"image": image.numpy()})
            torch.testing.assert_close(torch.from_numpy(pred), model.network(image), rtol=0, atol=1e-4)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_the_network_keeps_to_the_metadata(bundle: Path) -> None:
    configs = bundle / "configs"
    verify_net_in_out("network_def", str(configs / "metadata.json"), str(configs / "inference.json"), device="cpu")
