"""Serve bundles with MONAI Label: lay them out as it wants them, and start its server on this machine."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Annotated

from bundle_tools.archive import lay_out
from bundle_tools.bundle import BUNDLES, ROOT, Bundle, bundle_names
from command_line import run_command

from monai_label import TRAINED_HERE
from shared.dicom.connection import checked_url
from shared.networks import read_model_record
from shared.utils import DataError
from shared.utils.values import Number, Whole

HOST = "127.0.0.1"
DETECTOR = "mitosis_retinanet_fusestyle"
# MONAI Label sees in the name of a folder what its bundle is for. What metadata.json says of the output, and that word.
KINDS = {"segmentation": "segmentation", "classification": "classification", "anchor outputs": "detection"}
IMAGES = ("nii.gz", "nii", "nrrd", "mha", "jpg", "jpeg", "png", "tif", "tiff", "svs", "ndpi", "mrxs")
STAND_IN = "from monai_label.substitutes import stand_in; stand_in()"
START = f"{STAND_IN}; from monailabel.main import Main; Main().run()"
MAIN = f"{STAND_IN}\nfrom monai_label.app import BundleApp\n"  # the file in which MONAI Label looks for an app


def served_name(bundle: Path) -> str:
    """What a bundle is called in MONAI Label."""
    (pred,) = Bundle(bundle).metadata["network_data_format"]["outputs"].values()
    return f"{bundle.name}_{KINDS[pred['format']]}"


def read_weights(weights: tuple[str, ...]) -> dict[str, Path]:
    """The file of each bundle, from what is given as NAME=FILE.

    Raises:
        DataError: when nothing is given, anything but a bundle's name and a file, or a bundle twice.
    """
    known = bundle_names(BUNDLES)
    if not weights:
        raise DataError(
            "no weights were given, and the repository ships none. Give a bundle's name and the model.pt of a training "
            f"of it, NAME=FILE. Bundles: {', '.join(known)}. To try it out: `bash scripts/demo.sh NAME` trains one on "
            "synthetic data in minutes, and writes demo_output/NAME/models/model.pt."
        )
    files = {}
    for text in weights:
        name, _, file = text.partition("=")
        if name not in known or not file:
            raise DataError(f"{text}: expected NAME=FILE, where NAME is one of {', '.join(known)}.")
        if name in files:
            raise DataError(f"{text}: {name} was given twice. Give one file of weights for each bundle.")
        if not Path(file).expanduser().is_file():
            raise DataError(f"{file}: there is no such file of weights. Give the model.pt that training writes.")
        files[name] = Path(file).expanduser().resolve()
    return files


def deploy(name: str, weights: Path, models: Path, **classifiers: str) -> str:
    """Pack a bundle into a folder below `models`, and return what it is called there.

    The record beside the weights names the variant that they belong to. What was trained in MONAI Label stays, and so
    does what was served before, until the new package is complete.

    Args:
        name: of the bundle.
        weights: of it.
        models: the folder.
        classifiers: of a detector: what judges its detections, see `lay_out`.

    Raises:
        DataError: when the weights do not fit the network.
    """
    served = served_name(BUNDLES / name)
    folder = models / served
    if read_model_record(folder / "models" / "model.pt").get("name") == TRAINED_HERE:
        print(f"{served}: goes on with what was trained in MONAI Label, not with {weights}. Delete {folder} to change.")
        return served
    overlay = read_model_record(weights).get("network_overlay") or ""
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models, prefix=".new-") as temporary:
        try:
            new = lay_out(BUNDLES / name, Path(temporary) / served, weights, Path(overlay).stem, **classifiers)
        except DataError as e:
            if "--variant" not in str(e):  # an option of package_bundles.py
                raise
            why = str(e).partition(" Give --variant")[0].replace("--variant is", f"{weights}: its record names")
            raise DataError(
                f"{why} Give weights of {name}, and keep the model.json that training wrote beside model.pt."
            ) from None
        if folder.exists():
            folder.rename(Path(temporary) / "old")
        new.rename(folder)
    return served


def check_studies(studies: str) -> str:
    """The folder of the images, or the address of a server.

    MONAI Label takes an address for that of a DICOMweb server, and for that of a Digital Slide Archive where
    MONAI_LABEL_DATASTORE=dsa is set.

    Raises:
        DataError: when it is not there (MONAI Label would make an empty one) or cannot be written to, or an address has
            a log-in in it.
    """
    if studies.startswith(("http://", "https://")):
        return checked_url(studies)
    folder = Path(studies).expanduser().resolve()
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        found = "cannot be written to" if folder.is_dir() else "there is no such folder"
        raise DataError(f"{folder}: {found}. Give the folder with the images; MONAI Label keeps labels beside them.")
    if not any(file.name.endswith(IMAGES) for file in folder.iterdir()):  # as MONAI Label looks: in small letters alone
        print(f"{folder}: holds no image ({', '.join(IMAGES)}, in small letters). Clients can still send theirs.")
    return str(folder)


def check_port(port: int) -> None:
    """Raise a `DataError` where the port is taken."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((HOST, port))
        except OSError as e:
            raise DataError(f"--port {port} cannot be used ({e}). Choose another, such as --port 8001.") from e


def main(
    studies: str,
    *weights: str,
    port: Annotated[int, Whole(1, 65535)] = 8000,
    app_dir: str = "",
    mpp: Annotated[float, Number(0)] = 0.0,
    classifier: str = "",
    subtype_classifier: str = "",
) -> None:
    """Serve bundles with MONAI Label.

    Args:
        studies: folder with the images, where MONAI Label also keeps labels; or an address, see `check_studies`.
        weights: NAME=FILE each: a bundle, and the model.pt of a training of it, with the model.json beside it.
        port: of the server, on this machine alone.
        app_dir: where the packed bundles go, and what is trained here; runs/monai_label by default.
        mpp: µm a pixel of slides and regions that do not say it; 0: they are refused.
        classifier: the model.pt of a classifier that judges what the detector finds; the cascade.json of the choice
            lies beside the detector's weights.
        subtype_classifier: the model.pt of a classifier that names kinds of the mitotic figures.
    """
    files = read_weights(weights)
    place = check_studies(studies)
    check_port(port)
    app = Path(app_dir).expanduser().resolve() if app_dir else ROOT / "runs" / "monai_label"
    given = {"classifier": classifier, "subtype_classifier": subtype_classifier}
    given = {key: file for key, file in given.items() if file}
    if given and DETECTOR not in files:
        option = next(iter(given))
        raise DataError(f"--{option} judges what {DETECTOR} finds, which is not served. Give its weights, too.")
    app.mkdir(parents=True, exist_ok=True)
    (app / "main.py").write_text(MAIN)
    names = [deploy(name, file, app / "model", **(given if name == DETECTOR else {})) for name, file in files.items()]
    print(f"{', '.join(names)}: soon at http://{HOST}:{port}, log in {app / 'logs' / 'app.log'}", flush=True)
    origins = os.environ.pop("MONAI_LABEL_CORS_ORIGINS", "") or json.dumps([f"http://{HOST}:{port}"])
    command = ["start_server", "--app", str(app), "--studies", place, "--uvicorn_app", "monai_label.web:app"]
    command += ["--host", HOST, "--port", str(port), "--conf", "models", ",".join(names), "--conf", "origins", origins]
    # any word but the sources that it knows: it then takes the bundles that are there, and asks no server for others
    command += ["--conf", "zoo_source", "local", *(["--conf", "mpp", str(mpp)] if mpp else [])]
    os.environ.setdefault("MONAI_LABEL_DATASTORE_FILE_EXT", json.dumps([f"*.{ending}" for ending in IMAGES]))
    os.execv(sys.executable, [sys.executable, "-c", START, *command])


if __name__ == "__main__":
    run_command(main, "monai_label.sh")
