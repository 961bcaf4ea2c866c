"""Package bundles: a zip each that runs anywhere, a manifest, and the list of a model zoo of one's own."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bundle_tools.archive import add_to_list, manifest, read_object, refuse_to_replace, write_package, write_zip
from bundle_tools.bundle import BUNDLES, bundle_names
from bundle_tools.package import read_package
from bundle_tools.zoo import lay_out_pull_request, refuse_zoo
from command_line import run_command

from shared.utils import DataError, write_json


def main(
    *names: str,
    output_dir: str = "dist",
    weights: str = "",
    variant: str = "",
    weights_url: str = "",
    base_url: str = "",
    zoo_dir: str = "",
    classifier: str = "",
    subtype_classifier: str = "",
) -> None:
    """Write NAME_vVERSION.zip of each bundle, its manifest (.json), and model_info.json, to OUTPUT_DIR.

    A package runs anywhere: the bundle's own code is inside. The same bundle gives the same bytes. Without weights it
    is marked as untrained, and so are weights of synthetic data.

    Args:
        names: of bundles; all by default.
        output_dir: where the files go. Entries of other packages in model_info.json are kept.
        weights: the model.pt that a training wrote; of one bundle.
        variant: the overlays that it was trained with, separated by commas, as `demo`; they become part of the configs.
        weights_url: an address of that file. It is named in large_files.yml then, with its hash, and not put inside.
        base_url: where the zips will be found, for model_info.json.
        zoo_dir: a folder, or a clone of the model zoo, in which to lay out what a pull request to it needs. What bars
            one still is listed, and written to OUTPUT_DIR/NAME_vVERSION_zoo.txt.
        classifier: of a detector's weights: the model.pt of the classifier that judges what they find. It goes inside,
            with the cascade.json beside the weights, and is used unless told otherwise.
        subtype_classifier: the same, of one that names kinds of the mitotic figures, as atypical ones.
    """
    there = bundle_names(BUNDLES)
    chosen = list(dict.fromkeys(names)) or there
    if strange := [name for name in chosen if name not in there]:
        raise DataError(f"{', '.join(strange)}: there is no such bundle, expected {', '.join(there)}.")
    if weights and len(chosen) > 1:
        raise DataError(f"--weights are those of one bundle, {len(chosen)} were named. Name one.")
    output, zoo = (Path(folder).expanduser() for folder in (output_dir, zoo_dir))
    packages = [
        read_package(BUNDLES / name, weights, variant, weights_url, classifier, subtype_classifier) for name in chosen
    ]
    read_object(output / "model_info.json")  # before anything is written
    for package in packages:
        refuse_to_replace(package, output / f"{package.title}.zip")
        if zoo_dir:
            refuse_zoo(zoo, package.bundle.name)
    for package in packages:
        archive = output / f"{package.title}.zip"
        with tempfile.TemporaryDirectory() as temporary:
            folder = write_package(package, Path(temporary) / package.bundle.name)
            write_zip(folder, archive, package.bundle.name)
            write_json(archive.with_suffix(".json"), manifest(package, folder, archive))
            add_to_list(output / "model_info.json", package, archive, base_url)
            print(f"{archive} ({archive.stat().st_size / 1e6:.1f} MB). {package.note}")
            if zoo_dir:
                lay_out_pull_request(package, folder, zoo, archive.with_name(f"{package.title}_zoo.txt"))


if __name__ == "__main__":
    run_command(main)
