"""Serve bundles with MONAI Label: lay them out as it wants them, and start its server on this machine."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from pathlib import Path

import fire
from package_bundles import BUNDLES, lay_out

from shared.networks import read_model_record
from shared.utils import DataError, show_errors_briefly

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
# MONAI Label sees in the name of a folder what its bundle is for. What metadata.json says of the output, and that word.
KINDS = {"segmentation": "segmentation", "classification": "classification", "anchor outputs": "detection"}
IMAGES = ("nii.gz", "nii", "nrrd", "mha", "jpg", "jpeg", "png", "tif", "tiff", "svs", "ndpi", "mrxs")


def served_name(bundle: Path) -> str:
    """What a bundle is called in MONAI Label."""
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    (pred,) = metadata["network_data_format"]["outputs"].values()
    return f"{bundle.name}_{KINDS[pred['format']]}"


def read_weights(weights: tuple[str, ...]) -> dict[str, Path]:
    """The file of each bundle, from what is given as NAME=FILE.

    Raises:
        DataError: when nothing is given, or anything but a bundle's name and a file.
    """
    known = sorted(path.name for path in BUNDLES.iterdir() if (path / "configs").is_dir())
    if not weights:
        raise DataError(
            "no weights were given, and the repository ships none. Give a bundle's name and the model.pt of a training "
            f"of it, NAME=FILE. Bundles: {', '.join(known)}. To try it out: `bash scripts/demo.sh NAME` trains one on "
            "synthetic data in minutes, and writes demo_output/NAME/models/model.pt."
        )
    files = {}
    for text in weights:
        name, _, file = str(text).partition("=")
        if name not in known or not file:
            raise DataError(f"{text}: expected NAME=FILE, where NAME is one of {', '.join(known)}.")
        if not Path(file).expanduser().is_file():
            raise DataError(f"{file}: there is no such file of weights. Give the model.pt that training writes.")
        files[name] = Path(file).expanduser().resolve()
    return files


def deploy(name: str, weights: Path, models: Path) -> str:
    """Pack a bundle into a folder below `models`, and return what it is called there.

    The record beside the weights names the variant that they belong to. What was trained in MONAI Label stays.
    """
    served = served_name(BUNDLES / name)
    folder = models / served
    if (folder / "training").is_dir():
        print(f"{served}: goes on with what was trained in MONAI Label, not with {weights}. Delete {folder} to change.")
        return served
    shutil.rmtree(folder, ignore_errors=True)
    overlay = read_model_record(weights).get("network_overlay") or ""
    lay_out(BUNDLES / name, folder, weights, Path(overlay).stem)
    return served


def check_studies(studies: str) -> str:
    """The folder of the images, or the address of a DICOMweb server or a Digital Slide Archive.

    Raises:
        DataError: when it is not there (MONAI Label would make an empty one) or cannot be written to.
    """
    if studies.startswith(("http://", "https://")):
        return studies
    folder = Path(studies).expanduser().resolve()
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        found = "cannot be written to" if folder.is_dir() else "there is no such folder"
        raise DataError(f"{folder}: {found}. Give the folder with the images; MONAI Label keeps labels beside them.")
    if not any(file.name.lower().endswith(IMAGES) for file in folder.iterdir()):
        print(f"{folder}: holds no image ({', '.join(IMAGES)}). Clients can still send theirs.")
    return str(folder)


def check_port(port: int) -> None:
    """Raise a `DataError` where the port is taken."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((HOST, port))
        except (OSError, OverflowError, TypeError) as e:
            raise DataError(f"--port {port} cannot be used ({e}). Choose another, such as --port {8001}.") from e


def main(studies: str, *weights: str, port: int = 8000, app_dir: str = "", mpp: float = 0.0) -> None:
    """Serve bundles with MONAI Label.

    Args:
        studies: folder with the images, where MONAI Label also keeps labels.
        weights: NAME=FILE each: a bundle, and the model.pt of a training of it, with the model.json beside it.
        port: of the server, on this machine alone.
        app_dir: where the packed bundles go, and what is trained here; runs/monai_label by default.
        mpp: µm a pixel of slides and regions that do not say it; 0: they are refused.
    """
    show_errors_briefly()
    files = read_weights(weights)
    place = check_studies(str(studies))
    check_port(port)
    app = Path(app_dir).expanduser().resolve() if app_dir else ROOT / "runs" / "monai_label"
    (app / "model").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / "scripts" / "monai_label_app.py", app / "main.py")
    names = [deploy(name, file, app / "model") for name, file in files.items()]
    print(f"{', '.join(names)}: soon at http://{HOST}:{port}, log in {app / 'logs' / 'app.log'}", flush=True)
    command = ["-m", "monailabel.main", "start_server", "--app", str(app), "--studies", place]
    command += ["--host", HOST, "--port", str(port), "--conf", "models", ",".join(names)]
    # any word but the sources that it knows: it then takes the bundles that are there, and asks no server for others
    command += ["--conf", "zoo_source", "local", *(["--conf", "mpp", str(mpp)] if mpp else [])]
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environ.setdefault("MONAI_LABEL_DATASTORE_FILE_EXT", json.dumps([f"*.{ending}" for ending in IMAGES]))
    os.execve(sys.executable, [sys.executable, *command], environ)


if __name__ == "__main__":
    fire.Fire(main)
