"""Show a bundle at work on synthetic data, from nothing to its results, in a few minutes on two cores."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from command_line import run_command
from experiments.runs import BUNDLES, ROOT, count_firings, run_bundle, run_step

from shared.utils import DataError
from shared.utils.values import Choice, Whole

SHARE_OF_ONE_PERCENT = (
    *("liver", "stomach", "spleen", "right_kidney", "left_kidney"),
    *("aorta", "inferior_vena_cava", "pancreas", "portal_and_splenic_veins"),
)
TRAINED_ON = ("XR", "S360")
SCHEDULE = ("variants/demo", "variants/demo_schedule")


def fresh_folder(path: Path) -> Path:
    """An empty folder for the demo; an earlier demo's is replaced, anything else is left alone."""
    marker = path / ".demo"
    if path.exists() and any(path.iterdir()) and not marker.exists():
        raise DataError(f"{path}: holds files that no demo wrote. Choose another --output_dir.")
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    marker.touch()
    return path


def make_data(title: str, kind: str, folder: Path, **options: int) -> Path:
    data = folder / "data"
    run_step(title, "scripts/make_synthetic.py", kind, output_dir=data, **options)
    return data


def train(title: str, name: str, folder: Path, epochs: int, *variants: str, **options: Any) -> dict[str, Any]:
    """Train at the demo's size; the places that the evaluation has in common with it."""
    places = {"output_dir": folder / "report", "ckpt_dir": folder / "models"}
    length = {"max_epochs": epochs} if epochs else {}
    run_bundle(title, name, ["train", *SCHEDULE, *variants], **places, **options, **length)
    return places


def infer(title: str, name: str, folder: Path, **options: Any) -> None:
    run_bundle(title, name, ["inference", "variants/demo"], ckpt_path=folder / "models" / "model.pt", **options)


def abdominal(name: str, folder: Path, cases: int, epochs: int) -> None:
    data = make_data("1/5 Make synthetic CTs", "ct", folder, cases=cases)
    run_step(
        "2/5 What a voxel classifier reaches, for comparison",
        *("scripts/benchmark.py", "voxel_classifier"),
        data_dir=data,
        output=folder / "report" / "voxel_classifier.json",
    )
    title = "3/5 Train with the class boost strategy"
    places = train(title, name, folder, epochs, "variants/log_dice", dataset_dir=data)
    overlap = 0.75  # more windows, each voxel seen by more of them: about 0.02 Dice
    evaluation = ["train", "evaluate", *SCHEDULE]
    run_bundle("4/5 Evaluate on the test cases", name, evaluation, dataset_dir=data, **places, sw_overlap=overlap)
    output = {"output_dir": folder / "segmentations", "sw_overlap": overlap}
    infer("5/5 Segment CTs that the network has never seen", name, folder, input=data / "dataset.json", **output)


def mitosis(name: str, folder: Path, slides: int, epochs: int) -> None:
    title = "1/5 Make synthetic patches of four scanners"
    data = make_data(title, "histology", folder, slides=slides, tiles_per_slide=0)
    scanners = {"dataset_dir": data, "train_domains": list(TRAINED_ON)}
    places = train("2/5 Train on two scanners", name, folder, epochs, **scanners)
    evaluation = ["train", "evaluate", *SCHEDULE]
    run_bundle("3/5 Evaluate on all four", name, evaluation, dataset_dir=data, **places)
    title = "4/5 The same with batch norm adapted to each scanner's unlabelled images"
    adapted = places | {"output_dir": folder / "report_adapted", "adapt_batch_norm": "true"}
    run_bundle(title, name, evaluation, dataset_dir=data, **adapted)
    title = "5/5 Classify patches of a scanner that the network has never seen"
    infer(title, name, folder, input=data / "patches" / "GT450", output_dir=folder / "predictions")


def detection(name: str, folder: Path, slides: int, epochs: int) -> None:
    title = "1/4 Make synthetic tiles of four scanners"
    data = make_data(title, "histology", folder, slides=slides, patches_per_slide=2, tiles_per_slide=8)
    tiles = {"datalist": data / "tiles.json"}
    places = train("2/4 Train on two scanners", name, folder, epochs, **tiles, train_domains=list(TRAINED_ON))
    run_bundle("3/4 Evaluate on all four", name, ["train", "evaluate", *SCHEDULE], **tiles, **places)
    title = "4/4 Find mitotic figures in images of a scanner that the network has never seen"
    images = data / "tiles" / "GT450" / "slide_00"
    infer(title, name, folder, input=images, mpp=0.25, output_dir=folder / "detections")


def show_organs(name: str, output_dir: Path) -> None:
    report = output_dir / "report"
    summary = json.loads((report / "evaluation" / "summary.json").read_text())
    classifier = json.loads((report / "voxel_classifier.json").read_text())["dice"]
    dice = {organ: row["dice"]["mean"] for organ, row in summary["organs"].items()}
    print(f"\n{'organ':<26}{'this bundle':>12}{'voxel classifier':>18}   (Dice on the test cases)")
    for organ, value in dice.items():
        print(f"{organ:<26}{value:>12.3f}{classifier[organ]:>18.3f}")
    for title, organs in (("mean, above 1 % share", SHARE_OF_ONE_PERCENT), ("mean, all organs", tuple(dice))):
        ours, theirs = (sum(scores[organ] for organ in organs) / len(organs) for scores in (dice, classifier))
        print(f"{title:<26}{ours:>12.3f}{theirs:>18.3f}")
    if zero := [organ for organ, value in dice.items() if value < 0.005]:
        spacing = json.loads((BUNDLES / name / "configs/variants/demo.json").read_text())["spacing"]
        print(
            f"\nStill at 0: {', '.join(zero)}. On the demo's grid of {spacing[0]:g} mm, after minutes of training, "
            "such an organ is a handful of voxels that the network has not begun to find, and re-weighting cannot "
            "raise what is never found. A full-size training is the remedy."
        )
    print(f"\nThe class boost strategy fired {count_firings(report / 'class_weights.csv')} times.")
    print(f"report          {report / 'evaluation'} (summary.json, scores.csv)")
    print(f"pictures        {report / 'training.png'}, {report / 'evaluation' / 'report.png'}")
    print(f"segmentations   {output_dir / 'segmentations'} (each with organs.json and preview.png)")
    print(f"weights         {output_dir / 'models' / 'model.pt'} (synthetic data: not for real scans)")


def scores_of(report: Path) -> dict[str, Any]:
    """What the report says of each scanner."""
    return json.loads((report / "evaluation" / "summary.json").read_text())["domains"]


def show_rows(count: str, titles: Sequence[str], reports: Sequence[dict[str, Any]], scores: Sequence[str]) -> None:
    """A row for each scanner: how many, and its scores in each of the reports, below the titles."""
    print(f"{'scanner':<24}{count:>9}" + "".join(titles))
    for scanner, row in reports[0].items():
        seen = "trained on" if scanner in TRAINED_ON else "never seen"
        found = (report[scanner][score]["value"] for report in reports for score in scores)
        pairs = zip(found, titles, strict=True)
        values = "".join(f"{'-' if value is None else f'{value:.3f}':>{len(title)}}" for value, title in pairs)
        print(f"{scanner:<10}{seen:<14}{row[count]:>9}{values}")


def show_scanners(name: str, folder: Path) -> None:
    print(f"\n{'':<24}{'':>9}{'as trained':>20}{'batch norm adapted':>20}")
    reports = [scores_of(folder / report) for report in ("report", "report_adapted")]
    show_rows("patches", [f"{'accuracy':>12}", f"{'AUC':>8}"] * 2, reports, ("accuracy", "auc"))
    print(
        "\nOne run of a small network on made-up patches. What FuseStyle does over several seeds, and on real patches, "
        f"is in bundles/{name}/docs/README.md."
    )
    report = folder / "report" / "evaluation"
    print(f"report          {report} (report.png, summary.json, scores.csv, predictions.csv)")
    print(f"training        {folder / 'report' / 'training.png'}")
    print(f"predictions     {folder / 'predictions'} (predictions.csv, preview.png)")
    print(f"weights         {folder / 'models' / 'model.pt'} (synthetic data: not for real slides)")


def show_detections(name: str, folder: Path) -> None:
    titles = [f"{' ' * 4}{title}" for title in ("F1", "precision", "recall", "average precision")]
    print()
    scores = ("f1", "precision", "recall", "average_precision")
    show_rows("figures", titles, [scores_of(folder / "report")], scores)
    print(
        "\nMitotic figures on slides that were not trained on, found within 7.5 µm; one run of a small network on "
        f"made-up tiles. With and without FuseStyle, over several seeds: bundles/{name}/docs/README.md."
    )
    report = folder / "report" / "evaluation"
    print(f"report          {report} (report.png, gallery.png, summary.json, scores.csv, detections.csv)")
    print(f"training        {folder / 'report' / 'training.png'}")
    print(f"detections      {folder / 'detections'} (overview and gallery, .geojson for QuPath, .json, .csv)")
    print(f"weights         {folder / 'models' / 'model.pt'} (synthetic data: not for real slides)")


class Demo(NamedTuple):
    run: Callable[[str, Path, int, int], None]
    cases: int  # that it makes, or slides a scanner
    show: Callable[[str, Path], None]


DEMOS = {
    "abdominal_unetr_cbs": Demo(abdominal, 24, show_organs),
    "abdominal_lambda3d_cbs": Demo(abdominal, 24, show_organs),
    "mitosis_fusestyle_cls": Demo(mitosis, 12, show_scanners),
    "mitosis_retinanet_fusestyle": Demo(detection, 12, show_detections),
}


def main(
    name: Annotated[str, Choice(tuple(DEMOS))] = "abdominal_unetr_cbs",
    /,
    output_dir: str = "",
    cases: Annotated[int, Whole(3)] | None = None,
    epochs: Annotated[int, Whole(0)] = 0,
) -> None:
    """Make synthetic data, train a bundle on it, evaluate it, run it on unseen cases, and show the result.

    Args:
        name: the bundle.
        output_dir: where everything goes; demo_output/NAME by default. An earlier demo there is replaced.
        cases: number of synthetic CTs, or of slides a scanner; by default the demo's own.
        epochs: length of the training; 0 leaves it as in configs/variants/demo_schedule.json.
    """
    start = time.monotonic()
    folder = fresh_folder(Path(output_dir).resolve() if output_dir else ROOT / "demo_output" / name)
    demo = DEMOS[name]
    demo.run(name, folder, cases or demo.cases, epochs)
    demo.show(name, folder)
    print(f"Time: {(time.monotonic() - start) / 60:.1f} minutes.")


if __name__ == "__main__":
    run_command(main)
