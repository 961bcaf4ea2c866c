"""What scripts/monai_label/serve.py does before it hands over to the server, which test_monai_label.py starts."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import torch
from bundle_tools.bundle import BUNDLES
from commands import run
from monai.bundle import ConfigParser
from monai_label import TRAINED_HERE
from monai_label import serve as monai_label
from monai_label.serve import check_port, check_studies, deploy, read_weights, served_name

from shared.utils import DataError

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
NAME = "mitosis_fusestyle_cls"
DEMO = "configs/variants/demo.json"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The demo's network and the record that says so."""
    configs = [json.loads((BUNDLES / NAME / path).read_text()) for path in ("configs/inference.json", DEMO)]
    network = ConfigParser(configs[0] | configs[1]).get_parsed_content("network_def")
    torch.save(network.state_dict(), tmp_path / "model.pt")
    (tmp_path / "model.json").write_text(json.dumps({"name": "x", "network_overlay": DEMO}))
    return tmp_path / "model.pt"


@pytest.fixture
def other_weights(weights: Path) -> Path:
    """Of a network that is not the bundle's own, without a record."""
    (weights.parent / "other").mkdir()
    return shutil.copy(weights, weights.parent / "other")


def test_folders_tell_monai_label_what_a_bundle_is_for() -> None:
    assert {served_name(bundle).removeprefix(bundle.name) for bundle in BUNDLES.iterdir()} == {
        "_segmentation",
        "_classification",
        "_detection",
    }
    assert served_name(BUNDLES / NAME) == f"{NAME}_classification"


def test_weights_by_name(weights: Path) -> None:
    assert read_weights((f"{NAME}={weights}",)) == {NAME: weights}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), r"no weights were given.*scripts/demo\.sh NAME"),
        (("model.pt",), r"model\.pt: expected NAME=FILE, where NAME is one of .*mitosis_fusestyle_cls"),
        (("unetr=model.pt",), "unetr=model.pt: expected NAME=FILE"),
        ((f"{NAME}=",), f"{NAME}=: expected NAME=FILE"),
        ((f"{NAME}=no/such.pt",), r"no/such\.pt: there is no such file of weights"),
    ],
)
def test_weights_that_cannot_be_served(given: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_weights(given)


def test_weights_of_a_bundle_given_twice(weights: Path) -> None:
    with pytest.raises(DataError, match=f"{NAME} was given twice"):
        read_weights((f"{NAME}={weights}", f"{NAME}={weights}"))


def test_a_bundle_is_packed_with_the_variant_of_its_weights_until_it_is_trained_there(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    models = tmp_path / "models"
    assert deploy(NAME, weights, models) == f"{NAME}_classification"
    folder = models / f"{NAME}_classification"
    assert json.loads((folder / "configs" / "inference.json").read_text())["network_overlay"] == DEMO
    (folder / "configs" / "inference.json").write_text("{}")
    (folder / "training").mkdir()  # as a training that fails leaves it
    deploy(NAME, weights, models)  # made anew
    assert json.loads((folder / "configs" / "inference.json").read_text())["network_overlay"] == DEMO
    assert capsys.readouterr().out == ""
    (folder / "models" / "model.pt").write_bytes(b"trained")
    (folder / "models" / "model.json").write_text(json.dumps({"name": TRAINED_HERE}))
    deploy(NAME, weights, models)
    assert (folder / "models" / "model.pt").read_bytes() == b"trained"
    assert "goes on with what was trained in MONAI Label" in capsys.readouterr().out


def test_what_is_served_outlives_weights_that_do_not_fit(weights: Path, other_weights: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    folder = models / deploy(NAME, weights, models)
    message = rf"other/model\.pt.* Give weights of {NAME}, and keep the model\.json that training wrote"
    with pytest.raises(DataError, match=message) as caught:
        deploy(NAME, other_weights, models)
    assert "--variant" not in str(caught.value)
    assert (folder / "models" / "model.pt").read_bytes() == weights.read_bytes()
    deploy(NAME, folder / "models" / "model.pt", models)  # weights from the folder that is made anew
    assert (folder / "models" / "model.pt").read_bytes() == weights.read_bytes()
    assert [path.name for path in models.iterdir()] == [folder.name]


def test_a_variant_that_the_bundle_has_not(weights: Path, tmp_path: Path) -> None:
    weights.with_suffix(".json").write_text(json.dumps({"network_overlay": "mine.json"}))
    with pytest.raises(DataError, match=r"model\.pt: its record names mine, .* has .*demo.*\. Give weights of"):
        deploy(NAME, weights, tmp_path / "models")


def test_a_classifier_goes_to_the_detector_alone(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `lay_out` then does with it, test_package_bundles.py tells."""
    given = {}

    def lay_out(bundle: Path, folder: Path, weights: Path, variant: str, **classifiers: str) -> Path:
        given[bundle.name] = classifiers
        folder.mkdir()
        return folder

    def started(*arguments: object) -> None:
        raise SystemExit

    monkeypatch.setattr(monai_label, "lay_out", lay_out)
    monkeypatch.setattr(monai_label, "check_port", lambda port: None)
    monkeypatch.setattr("os.execv", started)
    detector = shutil.copy(weights, tmp_path / "detector.pt")
    both = (f"{NAME}={weights}", f"{monai_label.DETECTOR}={detector}")
    with pytest.raises(SystemExit):
        monai_label.main(str(tmp_path), *both, app_dir=str(tmp_path / "app"), classifier="judge.pt")
    assert given == {NAME: {}, monai_label.DETECTOR: {"classifier": "judge.pt"}}
    with pytest.raises(DataError, match="--subtype_classifier judges what mitosis_retinanet_fusestyle finds"):
        monai_label.main(str(tmp_path), both[0], app_dir=str(tmp_path / "new"), subtype_classifier="kinds.pt")
    assert not (tmp_path / "new").exists()
    with pytest.raises(DataError, match="--classifier judges what mitosis_retinanet_fusestyle finds, which is not"):
        monai_label.main(str(tmp_path), both[0], app_dir=str(tmp_path / "app"), classifier="judge.pt")


def test_studies(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert check_studies("https://a.server/dicom-web") == "https://a.server/dicom-web"
    assert check_studies(str(tmp_path)) == str(tmp_path)
    assert "holds no image" in capsys.readouterr().out
    (tmp_path / "slide.TIF").touch()  # MONAI Label would not see it
    check_studies(str(tmp_path))
    assert "holds no image" in capsys.readouterr().out
    (tmp_path / "ct.nii.gz").touch()
    assert check_studies(str(tmp_path)) == str(tmp_path)
    assert capsys.readouterr().out == ""
    with pytest.raises(DataError, match="has a log-in in it"):
        check_studies("https://ida:secret@a.server/dicom-web")
    with pytest.raises(DataError, match="there is no such folder"):
        check_studies(str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


def test_a_port_that_is_taken() -> None:
    with socket.socket() as server:
        server.bind((monai_label.HOST, 0))
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(DataError, match=rf"--port {port} cannot be used .*Choose another"):
            check_port(port)
    check_port(port)


@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), (["studies", "-h"], 0), ([], 1)])
def test_help_needs_no_environment(arguments: list[str], status: int, tmp_path: Path) -> None:
    script = shutil.copy(SCRIPTS / "monai_label.sh", tmp_path)  # without what makes environments
    result = subprocess.run(["bash", script, *arguments], capture_output=True, text=True)
    assert result.returncode == status
    said = result.stdout if status == 0 else result.stderr
    assert all(option in said for option in ("STUDIES NAME=WEIGHTS", "--set_up", "--port", "--app_dir", "--mpp"))
    assert "set -e" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["studies", "a=b", "--prot=8001"], "--prot: no such option of monai_label.sh."),
        (["studies", "a=b", "--set_up"], "--set_up goes alone."),
    ],
)
def test_a_wrong_option_needs_no_environment(arguments: list[str], message: str, tmp_path: Path) -> None:
    script = shutil.copy(SCRIPTS / "monai_label.sh", tmp_path)
    result = subprocess.run(["bash", script, *arguments], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (1, f"\nError: {message} See monai_label.sh --help.\n")


@pytest.mark.parametrize(
    "option", [("--mpp", -1), ("--mpp", "nan"), ("--port", 70000), ("--port", "x"), ("--ap_dir", "x")]
)
def test_a_wrong_option_packs_nothing(option: tuple[str, object], weights: Path, tmp_path: Path) -> None:
    app = tmp_path / "app"
    result = run("-m", "monai_label.serve", tmp_path, f"{NAME}={weights}", "--app_dir", app, *option, cwd=SCRIPTS)
    assert result.returncode == 1
    assert result.stderr.startswith(f"\nError: {option[0]}")
    assert not app.exists()


def test_what_is_wrong_is_said_in_a_line(tmp_path: Path) -> None:
    result = run("-m", "monai_label.serve", tmp_path, "a=b", cwd=SCRIPTS)
    assert result.returncode == 1
    assert result.stderr.strip().startswith("Error: a=b: expected NAME=FILE")
