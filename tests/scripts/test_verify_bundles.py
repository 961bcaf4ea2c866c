from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import verify_bundles
from bundle_tools import checks as bundle_checks
from bundle_tools import probe as bundle_probe
from bundle_tools.archive import lay_out
from bundle_tools.bundle import Bundle
from bundle_tools.checks import check_paths, check_requirements, pins
from bundle_tools.names import find_name
from bundle_tools.overlays import check_references
from bundle_tools.sample_data import write_sample
from commands import run
from verify_bundles import CHECKS, find_bundle, main, running_checks

from shared.data import load_datalist, load_patches, load_regions
from shared.utils import DataError, write_json

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/metadata.json"))
UNETR, CLASSIFIER = ROOT / "bundles/abdominal_unetr_cbs", ROOT / "bundles/mitosis_fusestyle_cls"


def copied(bundle: Path, folder: Path) -> Path:
    for name in ("configs", "docs"):
        shutil.copytree(bundle / name, folder / name)
    shutil.copy(bundle / "LICENSE", folder)
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of a segmentation bundle with some of its variants, to be broken."""
    folder, linked = copied(UNETR, tmp_path / UNETR.name), tmp_path / "abdominal_lambda3d_cbs" / "docs"
    for path in (folder / "configs" / "variants").glob("*.json"):
        if path.stem not in ("demo", "dicom", "tcf"):
            path.unlink()
    linked.mkdir(parents=True)
    (linked / "README.md").touch()
    return folder


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(CLASSIFIER, tmp_path_factory.mktemp("packed") / CLASSIFIER.name)


def change(name: str, **values: Any) -> Callable[[Path], None]:
    """What sets keys of a config, `__` in them for `#`; ... deletes a key."""

    def apply(bundle: Path) -> None:
        path = bundle / "configs" / f"{name}.json"
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for key, value in values.items():
            *parents, last = key.split("__")
            part = content
            for parent in parents:
                part = part[parent]
            part[last] = value
            if value is ...:
                del part[last]
        path.write_text(json.dumps(content), encoding="utf-8")

    return apply


def overlay(name: str, content: dict[str, Any]) -> Callable[[Path], None]:
    """What adds keys to a config as they are."""

    def apply(bundle: Path) -> None:
        path = bundle / "configs" / f"{name}.json"
        old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        path.write_text(json.dumps(old | content), encoding="utf-8")

    return apply


def import_line(line: str) -> Callable[[Path], None]:
    def apply(bundle: Path) -> None:
        path = bundle / "configs" / "train.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        content["imports"].append(line)
        path.write_text(json.dumps(content), encoding="utf-8")

    return apply


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def apply(bundle: Path) -> None:
        text = (bundle / name).read_text(encoding="utf-8")
        assert old in text
        (bundle / name).write_text(text.replace(old, new), encoding="utf-8")

    return apply


def swap(name: str, first: str, second: str) -> Callable[[Path], None]:
    return replace(name, f"{first},{second}", f"{second},{first}")


def remove(name: str) -> Callable[[Path], None]:
    return lambda bundle: (bundle / name).unlink()


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_the_bundles_pass(bundle: Path) -> None:
    assert {name: faults for name, check in CHECKS.items() if (faults := check(Bundle(bundle)))} == {}


def test_a_packed_bundle_passes_and_stays_as_it_is(packed: Path) -> None:
    before = sorted(packed.rglob("*"))
    assert {name: faults for name, check in CHECKS.items() if (faults := check(Bundle(packed)))} == {}
    assert sorted(packed.rglob("*")) == before
    assert "scripts" not in sys.modules


# the check, what breaks a copy, and what the check then says
BROKEN = [
    ("files", remove("LICENSE"), "LICENSE is missing or empty"),
    ("files", lambda b: (b / "docs/data_license.txt").write_text(" \n"), "docs/data_license.txt is missing or empty"),
    ("files", remove("docs/README.md"), "docs/README.md is missing or empty"),
    ("files", remove("configs/inference.json"), "configs/inference.json is missing or empty"),
    ("files", replace("LICENSE", "Apache", "Other"), "LICENSE differs"),
    ("configs", replace("configs/train.json", '"seed": 0,', '"seed": 0, "seed": 1,'), "seed is there twice"),
    ("configs", replace("configs/evaluate.json", "{", "", ), "configs/evaluate.json: "),
    ("configs", lambda b: (b / "configs/variants/tcf.json").write_text("[]"), "tcf.json: holds list"),
    ("metadata", change("metadata", references="a paper"), "references: 'a paper' is not of type 'array'"),
    ("metadata", change("metadata", task=...), "'task' is a required property"),
    ("metadata", change("metadata", network_data_format__outputs__pred__num_channels=13), "pred has 13 channels"),
    ("changelog", change("metadata", version="0.2.0"), "version 0.2.0 is not in changelog (0.1.0)"),
    ("changelog", change("metadata", changelog=None), "version 0.1.0 is not in changelog (empty)"),
    ("changelog", change("metadata", changelog={"0.1.0": "a", "0.10.0": "b", "0.9.0": "c"}), "goes on to 0.10.0"),
    ("requirements", change("metadata", numpy_version="1.26.4"), "numpy is 1.26.4, requirements.txt has"),
    ("requirements", change("metadata", required_packages_version__itk="5.3.0"), "itk is 5.3.0, requirements.txt has"),
    ("requirements", change("metadata", required_packages_version__scipy=...), "lacks scipy, which shared imports"),
    ("requirements", change("metadata", required_packages_version=None), "lacks scipy, which shared imports"),
    ("requirements", change("metadata", required_packages_version__pandas="2.0.0"), "pandas is 2.0.0"),
    ("references", change("train", loss___target_="DiceLos"), "DiceLos: MONAI has no component of this name"),
    ("references", change("train", optimizer___target_="torch.optim.AdamX"), "torch.optim has no AdamX"),
    ("references", change("train", optimizer___target_="torhc.optim.Adam"), "there is no module torhc"),
    ("references", change("train", report___target_="shared.handlers.Report"), "handlers/__init__.py has no Report"),
    ("references", change("train", report___target_="shared.handler.Report"), "shared/__init__.py has no handler"),
    ("references", change("train", report___target_="scripts.handlers.Report"), "the bundle's package is shared"),
    ("references", import_line("$from shared.utils import flags"), "shared/utils/__init__.py has no flags"),
    ("references", import_line("$import shared.utils"), "expressions cannot use a name with a dot"),
    ("references", import_line("$import os, re"), "MONAI takes the first name only"),
    ("references", import_line("$import os; import re"), "import os; import re: MONAI takes the first name only"),
    ("references", import_line("$import os as"), "import os as: "),
    ("references", change("inference", device="@devise"), "configs/inference.json: device: @devise is not there"),
    ("references", change("train", seed="$@train#trainer#epochs + 1"), "@train#trainer#epochs is not there"),
    ("references", change("train", seed="%sead"), "%sead: there is no sead"),
    ("references", change("train", seed="%configs/none.json#seed"), "there is no configs/none.json in the bundle"),
    ("references", change("train", seed="%configs/inference.json#seed"), "configs/inference.json has no seed"),
    ("references", change("train", seed="$[i for i in rang(3)]"), "no import line gives rang"),
    ("references", change("train", seed="$(1 +"), "train.json: seed: $(1 +: "),
    ("references", change("train", seed="$os.getpidd()"), "os has no getpidd"),
    ("references", change("train", network_overlay="configs/variants/none.json"), "none.json is not in the bundle"),
    ("references", overlay("evaluate", {"tolerence": 1.0}), "evaluate.json: tolerence is not in train"),
    ("references", overlay("evaluate", {"validate#handlerz": []}), "validate#handlerz is not in train"),
    ("references", overlay("multi_gpu_evaluate", {"+import": []}), "+import is not in train and evaluate"),
    ("references", overlay("variants/tcf", {"reweightin": 1}), "variants/tcf.json: reweightin is not in train"),
    ("references", overlay("variants/tcf", {"loss": "@los"}), "variants/tcf.json: loss: @los is not there"),
    ("references", overlay("variants/tcf", {"+seed": [1]}), "variants/tcf.json: cannot be laid over train"),
    ("references", remove("configs/evaluate.json"), "multi_gpu_evaluate.json: goes over configs/evaluate.json"),
    ("overlays", overlay("variants/tcf", {"train#inferer": None}), "train#inferer is not a top-level key"),
    ("overlays", lambda b: (b / "configs/variants/tcf.json").write_text("{}"), "variants/tcf.json: is empty"),
    ("overlays", overlay("variants/demo", {"seed": 1}), "changes the network, but seed is not in both"),
    ("overlays", overlay("variants/demo", {"+augmentation": []}), "changes the network, but augmentation is not in"),
    ("overlays", overlay("variants/demo", {"network_overlay": ""}), "network_overlay is '', expected"),
    ("drift", change("inference", network_def__feature_size=8), "network_def differs from that of train.json"),
    ("drift", change("inference", spacing=[1.0, 1.0, 1.0]), "spacing is [1.0, 1.0, 1.0], train.json has [1.5,"),
    ("drift", replace("configs/evaluate.json", "[1.5, 1.5, 2.0]", "[1, 1, 2]"), "evaluate.json: spacing is [1, 1, 2]"),
    ("drift", change("train", version="0.0.9"), "train.json: version is '0.0.9', expected '0.1.0'"),
    ("drift", change("inference", bundle="another"), "inference.json: bundle is 'another', expected 'abd"),
    ("drift", replace("configs/inference.json", '"RAS"', '"LPS"'), "step 1 of preprocessing is {'_target_': 'Orient"),
    ("drift", replace("configs/evaluate.json", '"clip": true', '"clip": false'), "evaluate.json validates with"),
    ("metrics", change("train", report__metric_name="val_dice"), "report#metric_name wants val_dice"),
    ("metrics", change("train", reweighting_metric="val_iou"), "reweighting#metric_name wants val_iou"),
    ("metrics", change("train", seed="$lambda engine: engine.state.metrics['val_los']"), "seed wants val_los"),
    ("paths", change("train", dataset_dir="/".join(("", "home", "me", "data"))), "configs/train.json:1: a path of one"),
    ("paths", lambda b: (b / "docs/more.md").write_text("file://" + "/tmp" + "/x"), "docs/more.md:1: a path of one"),
    ("paths", change("train", dataset_dir="/" + "data/btcv"), "configs/train.json: dataset_dir: a path of one machine"),
    ("paths", change("variants/tcf", seed=[{"a": "~" + "/data"}]), "variants/tcf.json: seed#0#a: a path of"),
    ("paths", change("inference", input="C:" + "/data/x"), "configs/inference.json: input: a path of one machine, C:/"),
    ("paths", lambda b: (b / "docs/more.md").write_text("D:" + "\\data\\ct"), "docs/more.md:1: a path of one"),
    ("card", replace("docs/README.md", "configs/train.json", "configs/trian.json"), "no command to train"),
    ("card", replace("docs/README.md", "configs/evaluate.json", "configs/eval.json"), "there is no configs/eval.json"),
    ("card", swap("docs/README.md", "'configs/train.json'", "'configs/evaluate.json'"), "replaces what configs/eval"),
    ("card", replace("docs/README.md", "onnx_export", "onnx"), "monai.bundle has no command onnx"),
    ("card", replace("docs/README.md", "--input /path", "--inputs /path"), "no config has the key inputs of --inputs"),
    ("card", replace("docs/README.md", "--ckpt_file", "--ckpt"), "no config has the key ckpt of --ckpt"),
    ("card", replace("docs/README.md", "ckpt_export", "export"), "no command to export to TorchScript"),
    ("card", replace("docs/README.md", "monai.bundle run --", "monai.bundle run \\\n  --nope 1 --"), "the key nope"),
    ("card", replace("docs/README.md", "scripts/prepare_btcv.py", "scripts/btcv.py"), "there is no scripts/btcv.py"),
    ("card", lambda b: (b / "docs/README.md").write_text("[a](b.md)"), "links to b.md, which is not there"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "breaks", "says"), BROKEN, ids=lambda value: value if isinstance(value, str) else "")
def test_a_check_sees_what_is_broken(
    bundle: Path, check: str, breaks: Callable[[Path], None], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    breaks(bundle)
    faults = CHECKS[check](Bundle(bundle))
    assert [fault for fault in faults if says in fault], faults
    assert not any("\n" in fault for fault in faults)


@pytest.mark.parametrize(
    ("check", "breaks", "says"),
    [
        (
            "card",
            replace("docs/README.md", "--input /path", "--input '/path"),
            "docs/README.md: python -m monai.bundle",
        ),
        ("requirements", lambda b: (b / "scripts/data/ct.py").write_text("def f(:\n"), "SyntaxError: "),
    ],
)
def test_a_check_that_cannot_go_on_is_a_fault(
    packed: Path, tmp_path: Path, check: str, breaks: Callable[[Path], None], says: str
) -> None:
    folder = shutil.copytree(packed, tmp_path / "bundle")
    breaks(folder)
    found = verify_bundles.static_checks(Bundle(folder))
    assert found.keys() == CHECKS.keys()
    (fault,) = found[check]["faults"]
    assert fault.startswith("this check cannot go on: ")
    assert says in fault
    assert "ct.py, line 1" in fault or check == "card"
    assert found["files"]["faults"] == []


def test_of_configs_that_cannot_be_read_nothing_else_is_said(bundle: Path) -> None:
    replace("configs/train.json", "{", "")(bundle)
    found = {name: result["faults"] for name, result in verify_bundles.static_checks(Bundle(bundle)).items()}
    assert found.pop("files") == found.pop("paths") == []
    ((fault,),) = {tuple(faults) for faults in found.values()}
    assert fault.startswith("configs/train.json: ")


def test_what_runs_leave_in_the_folder_is_not_the_bundle_s(bundle: Path) -> None:
    for name in ("output", "eval", "models"):
        (bundle / name).mkdir()
        (bundle / name / "run.json").write_text('"' + "/home" + '/me/x"')
    change("train", dataset_dir="/path/to/data")(bundle)
    assert check_paths(Bundle(bundle)) == ["models/run.json:1: a path of one machine, " + "/home" + "/..."]


def test_requirements_of_other_folders_are_no_pins(tmp_path: Path) -> None:
    """A model zoo has some of its own at its root, two folders above each bundle."""
    folder = copied(UNETR, tmp_path / "models" / UNETR.name)
    (tmp_path / "requirements.txt").write_text("numpy==1.0\n")
    assert pins(Bundle(folder)) == pins(Bundle(UNETR))


def test_a_fault_of_a_base_is_told_once(bundle: Path) -> None:
    change("train", seed="@sead")(bundle)
    assert check_references(Bundle(bundle)) == ["configs/train.json: seed: @sead is not there"]


def test_overlays_are_checked_over_all_they_are_run_with() -> None:
    names = Bundle(UNETR).combinations()
    assert ["train"] in names
    assert ["train", "evaluate", "multi_gpu_evaluate"] in names
    assert {tuple(name) for name in names if name[-1] == "variants/demo"} == {
        ("train", "variants/demo"),
        ("inference", "variants/demo"),
        ("train", "evaluate", "variants/demo"),
    }
    assert [name for name in names if name[-1] == "variants/tcf"] == [["train", "variants/tcf"]]


def test_names_are_followed_to_where_they_are_made(bundle: Path, tmp_path: Path) -> None:
    package = bundle / "scripts"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from .a import f, gone\nfrom . import a\ntry:\n    import x\nexcept ImportError:\n    x = 1\n"
    )
    (package / "a.py").write_text("def f():\n    inner = 1\n")
    names = ("scripts.f", "scripts.a", "scripts.a.f", "scripts.x")
    assert [find_name(name, Bundle(bundle)) for name in names] == [""] * 4
    assert find_name("scripts.gone", Bundle(bundle)) == "scripts/a.py has no gone"
    assert find_name("scripts.a.inner", Bundle(bundle)) == "scripts/a.py has no inner"
    assert find_name("shared.layers", Bundle(bundle)) == "the bundle's package is scripts"


def test_what_a_packed_bundle_s_own_files_lack_is_seen(packed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(packed, tmp_path / "bundle")
    path = folder / "scripts" / "handlers" / "__init__.py"
    path.write_text(path.read_text(encoding="utf-8").replace("SavePredictions", "Gone"), encoding="utf-8")
    assert "scripts/handlers/__init__.py has no SavePredictions" in "".join(check_references(Bundle(folder)))
    replace("configs/inference.json", "scripts.transforms", "shared.transforms")(folder)
    assert "the bundle's package is scripts" in "".join(check_references(Bundle(folder)))


def test_without_pins_the_installed_versions_count(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_checks, "ROOT", bundle.parent)
    shutil.copytree(ROOT / "shared", bundle / "scripts")
    assert check_requirements(Bundle(bundle)) == []
    monkeypatch.setattr(bundle_checks, "version", lambda name: {"torch": "2.0.0+cpu"}.get(name, "1"))
    assert "configs/metadata.json: torch is 2.13.0, this environment has 2.0.0" in check_requirements(Bundle(bundle))


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A classifier with the demo's network as its own, and the working folder in it."""
    folder = copied(CLASSIFIER, tmp_path / CLASSIFIER.name)
    network = json.loads((folder / "configs/variants/demo.json").read_text(encoding="utf-8"))
    for name in ("train", "inference"):
        overlay(name, network)(folder)
    (folder / "models").mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_weights_that_fit_and_have_a_record(small: Path) -> None:
    assert bundle_probe.check_weights(Bundle(small)) == ([], "untrained")
    network = bundle_probe.network_of(Bundle(small), "inference")
    torch.save(network.state_dict(), small / "models/model.pt")
    assert "there is no models/model.json" in bundle_probe.check_weights(Bundle(small))[0][0]
    record = {"name": "made up", "network_overlay": "configs/variants/demo.json", "synthetic": True}
    write_json(small / "models/model.json", record)
    assert bundle_probe.check_weights(Bundle(small)) == ([], "synthetic data")
    overlay("inference", {"labels": {"a": 1}})(small)
    write_json(small / "models/model.json", record | {"network_overlay": "", "labels": {"b": 1}})
    assert bundle_probe.check_weights(Bundle(small))[0] == [
        "models/model.json: network_overlay is '', configs/inference.json has 'configs/variants/demo.json'",
        "models/model.json: the weights were trained for the labels {'b': 1}, configs/inference.json has {'a': 1}",
    ]
    torch.save(torch.nn.Linear(1, 1).state_dict(), small / "models/model.pt")
    with pytest.raises(RuntimeError, match="Missing key"):
        bundle_probe.check_weights(Bundle(small))
    change("train", network_def__num_classes=2)(small)
    (small / "models/model.pt").unlink()
    assert bundle_probe.check_weights(Bundle(small))[0] == [
        "configs/inference.json: the network has other weights than that of train.json: fc.bias"
    ]


def test_weights_to_be_downloaded(small: Path) -> None:
    (small / "large_files.yml").write_text("large_files:\n- path: models/model.pt\n")
    assert bundle_probe.check_weights(Bundle(small)) == ([], "to be downloaded, large_files.yml")


def test_shapes_and_export_are_those_of_the_network(small: Path, tmp_path: Path) -> None:
    assert bundle_probe.check_shapes(Bundle(small)) == ([], "1 x 1")
    assert bundle_probe.check_torchscript(Bundle(small), tmp_path) == ([], "difference 0e+00")
    change("metadata", network_data_format__outputs__pred__spatial_shape=[2])(small)
    assert bundle_probe.check_shapes(Bundle(small))[0] == [
        "configs/metadata.json: the network's output has shape [1], spatial_shape says [2]"
    ]
    change("metadata", network_data_format__outputs__pred__num_channels=2)(small)
    with pytest.raises(ValueError, match="output channel number"):
        bundle_probe.check_shapes(Bundle(small))
    (small / "models/model.ts").write_bytes(b"none")
    with pytest.raises(RuntimeError, match="PytorchStreamReader"):
        bundle_probe.check_torchscript(Bundle(small), tmp_path)


def test_weights_that_are_no_numbers_are_seen(small: Path, tmp_path: Path) -> None:
    state = bundle_probe.network_of(Bundle(small), "inference").state_dict()
    torch.save(state | {"fc.bias": torch.full_like(state["fc.bias"], torch.nan)}, small / "models/model.pt")
    assert bundle_probe.check_torchscript(Bundle(small), tmp_path)[0] == [
        "configs/inference.json: the exported network differs from the network by nan"
    ]


@pytest.mark.parametrize("count", [4, 30])
def test_made_up_scans_take_the_labels_of_the_configuration(tmp_path: Path, count: int) -> None:
    labels = {f"part {i}": 2 * i for i in range(1, count + 1)}
    named = write_sample(tmp_path / "data", "segmentation", labels)
    for split in ("training", "validation", "test"):
        for case in load_datalist(named["datalist"], split, labels=labels):
            assert set(np.unique(nib.load(case["label"]).dataobj)) == {0, *labels.values()}
    assert named["input"] == case["image"]


def test_made_up_images_are_what_the_datalists_hold(tmp_path: Path) -> None:
    named = write_sample(tmp_path / "patches", "classification", {})
    assert {patch["label"] for patch in load_patches(named["datalist"], "training")} == {0, 1}
    named = write_sample(tmp_path / "regions", "detection", {})
    regions = load_regions(named["datalist"], "training", mpp=0.25)
    assert {label for region in regions for label in region["label"]} == {0, 1}
    assert {region["domain"] for region in regions} == {"XR", "S360", "CS"}


def test_a_bundle_for_another_task_is_verified_without_data(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change("metadata", task="Regression of age")(small)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: SimpleNamespace(returncode="--data" in command))
    found = running_checks(Bundle(small), run_commands=True)
    assert found["commands"]["note"].startswith("not run: `task` in metadata.json is 'Regression of age', expected")
    assert "ended with status False" in found["process"]["faults"][0]


@pytest.mark.usefixtures("forked")
def test_a_process_that_ends_early_is_a_fault(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = tmp_path / "probe.py"
    probe.write_text(
        "import os, sys\nopen(sys.argv[2], 'w').write('{\"code\": {}}')\nprint('bye', flush=True)\nos._exit(0)\n"
    )
    monkeypatch.setattr(verify_bundles, "PROBE", (str(probe),))
    assert running_checks(Bundle(small), run_commands=False)["process"]["faults"] == [
        "the process that runs the bundle's code ended with status 0, done is code: bye"
    ]


def test_components_take_what_the_configs_give_them(small: Path) -> None:
    assert bundle_probe.check_code(Bundle(small))[0] == []
    overlay("train", {"optimizer": {"_target_": "torch.optim.Adam", "params": [], "rate": 1.0}})(small)
    overlay("evaluate", {"seed": {"_target_": "shared.metrics.none"}})(small)
    faults = bundle_probe.check_code(Bundle(small))[0]
    assert "configs/train.json: optimizer#_target_: torch.optim.Adam takes no rate" in faults
    assert "configs/evaluate.json: seed#_target_: shared.metrics.none cannot be imported" in faults


def test_a_component_that_stands_elsewhere_takes_what_both_places_give_it(small: Path) -> None:
    called = {"_target_": "torch.optim.Adam", "_mode_": "callable"}
    overlay("train", {"called": called, "optimizer": {"_target_": "@called", "params": []}})(small)
    assert bundle_probe.check_code(Bundle(small))[0] == check_references(Bundle(small)) == []
    overlay("train", {"optimizer": {"_target_": "@called", "params": [], "rate": 1.0}})(small)
    assert (
        "configs/train.json: optimizer#_target_: torch.optim.Adam takes no rate"
        in (bundle_probe.check_code(Bundle(small))[0])
    )
    overlay("train", {"optimizer": {"_target_": "@caled", "params": []}})(small)
    assert bundle_probe.check_code(Bundle(small))[0] == []  # what is not there, the other check says
    assert any("@caled is not there" in fault for fault in check_references(Bundle(small)))


def test_properties_by_name(small: Path) -> None:
    assert bundle_probe.name_properties(Bundle(small)) == ([], "by name")
    change("train", train__trainer__max_epochs=...)(small)
    change("inference", dataset_dir=..., input="")(small)
    assert bundle_probe.name_properties(Bundle(small))[0] == [
        "configs/train.json: MONAI's property train#trainer#max_epochs is missing",
        "configs/inference.json: MONAI's property dataset_dir is missing",
    ]


def test_the_table_has_a_row_a_check_and_says_what_did_not_run() -> None:
    fine = {"faults": [], "note": "", "seconds": 0}
    text = verify_bundles.table(
        {"a": {"files": fine, "weights": fine | {"note": "untrained"}}, "b": {"files": fine | {"faults": ["x", "y"]}}}
    )
    assert [line.split("  ") for line in text.splitlines()][1][0] == "files"
    assert text.splitlines()[1].split() == ["files", "ok", "2", "FAULTS"]
    assert text.splitlines()[2].split() == ["weights", "untrained", "not", "run"]


def test_the_command_ends_with_the_faults(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []
    monkeypatch.setattr(
        verify_bundles, "running_checks", lambda bundle, *given: ran.append((bundle.folder, *given)) or {}
    )
    main(str(bundle), "mitosis_fusestyle_cls", run_commands=False, output=str(tmp_path / "found.json"))
    assert ran == [(bundle, False), (CLASSIFIER, False)]
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["mitosis_fusestyle_cls"]["drift"]["faults"] == []
    assert capsys.readouterr().out.splitlines()[0].split() == [bundle.name, CLASSIFIER.name]

    change("metadata", version="0.2.0")(bundle)
    replace("configs/train.json", "{", "")(bundle)
    with pytest.raises(SystemExit, match=r"abdominal_unetr_cbs: configs: configs/train.json: "):
        main(str(bundle))
    assert len(ran) == 2  # the code does not run on configs that cannot be read


def test_all_bundles_are_those_with_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied(CLASSIFIER, tmp_path / "bundles" / CLASSIFIER.name)
    (tmp_path / "bundles" / ".DS_Store").touch()
    verified = []
    monkeypatch.setattr(verify_bundles, "BUNDLES", tmp_path / "bundles")
    monkeypatch.setattr(verify_bundles, "verify", lambda bundle, run_commands: verified.append(bundle) or {})
    main()
    assert verified == [folder]
    with pytest.raises(DataError, match=r"or one of mitosis_fusestyle_cls\.$"):
        find_bundle("none")


def test_a_name_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"or one of abdominal_lambda3d_cbs, "):
        find_bundle(str(tmp_path))


def test_the_command_says_what_is_wrong_in_a_line() -> None:
    result = run(ROOT / "scripts" / "verify_bundles.py", "none", python=sys.executable)
    assert result.returncode == 1
    assert result.stderr.strip().startswith("Error: none: expected the folder of a bundle")


@pytest.mark.usefixtures("forked")
@pytest.mark.slow
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_the_bundles_pass_when_they_run(bundle: Path) -> None:
    before = sorted(path for path in bundle.rglob("*"))
    found = running_checks(Bundle(bundle), run_commands=True)
    assert {name: result["faults"] for name, result in found.items() if result["faults"]} == {}
    assert found["commands"]["note"] == "5 run"
    assert found["properties"]["note"] == ""
    assert sorted(path for path in bundle.rglob("*")) == before


@pytest.mark.slow
def test_packed_bundles_run_their_own_code_each(packed: Path, tmp_path: Path) -> None:
    """Two versions of a bundle in one call, one of them broken; `shared` is not theirs to use."""
    other = shutil.copytree(packed, tmp_path / "other")
    path = other / "scripts" / "networks" / "resnet.py"
    path.write_text(path.read_text(encoding="utf-8") + "\nimport shared.layers\n", encoding="utf-8")
    output = tmp_path / "found.json"
    options = ["--run_commands", "false", "--jobs", "2", "--output", output]
    command = [ROOT / "scripts" / "verify_bundles.py", packed, other, *options]
    result = run(*command, cwd=tmp_path)
    found = json.loads(output.read_text(encoding="utf-8"))
    assert {name: r["faults"] for name, r in found[packed.name].items() if r["faults"]} == {}
    assert found[packed.name]["weights"]["note"] == "untrained"
    assert result.returncode == 1
    assert "other: " in result.stderr
    assert "shared" in str(found["other"]["weights"]["faults"] + found["other"]["code"]["faults"])
    assert sorted(os.listdir(packed)) == ["LICENSE", "configs", "docs", "scripts"]


@pytest.mark.usefixtures("forked")
@pytest.mark.slow
def test_a_command_that_fails_is_named(small: Path) -> None:
    change("inference", run=["$1 / 0"])(small)
    found = running_checks(Bundle(small), run_commands=True)
    assert {name: result["faults"] for name, result in found.items() if result["faults"]} == {
        "commands": [
            "docs/README.md: the command to infer fails at the size of the demo: ZeroDivisionError: division by zero"
        ]
    }
