"""Show a bundle at work on synthetic data, from nothing to its results, in a few minutes on two cores."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fire
from experiments.runs import count_firings

ROOT = Path(__file__).resolve().parent.parent
SHARE_OF_ONE_PERCENT = (
    "liver",
    "stomach",
    "spleen",
    "right_kidney",
    "left_kidney",
    "aorta",
    "inferior_vena_cava",
    "pancreas",
    "portal_and_splenic_veins",
)

TRAINED_ON = ("XR", "S360")
SHOWN = (("accuracy", 12), ("auc", 8))  # and the width of their columns
DETECTION_SCORES = ("f1", "precision", "recall", "average_precision")


def run(title: str, *command: str | Path, cwd: Path = ROOT) -> None:
    """Run one step of the demo, showing the command as a user would type it; stop the demo if it fails."""
    shown = shlex.join(["python", *map(str, command)])
    print(f"\n=== {title}\n(in {os.path.relpath(cwd, ROOT)}) {shown}\n", flush=True)
    status = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, check=False).returncode
    if status:
        sys.exit(f"\nThe demo stopped: this step ended with status {status}. The command is shown above it.")


def bundle(title: str, name: str, configs: list[str], *options: str | Path) -> None:
    files = str([f"configs/{config}.json" for config in configs])
    run(title, "-m", "monai.bundle", "run", "--config_file", files, *options, cwd=ROOT / "bundles" / name)


def fresh_folder(path: Path) -> Path:
    """An empty folder for the demo; an earlier demo's is replaced, anything else is left alone."""
    marker = path / ".demo"
    if path.exists() and any(path.iterdir()) and not marker.exists():
        sys.exit(f"{path} holds files that no demo wrote. Choose another --output_dir.")
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    marker.touch()
    return path


def abdominal(name: str, output_dir: Path, cases: int, epochs: int) -> None:
    data, models, report = output_dir / "data", output_dir / "models", output_dir / "report"
    places = ["--dataset_dir", data, "--output_dir", report, "--ckpt_dir", models]
    run("1/5 Make synthetic CTs", "scripts/make_synthetic.py", "ct", "--output_dir", data, "--cases", str(cases))
    run(
        "2/5 What a voxel classifier reaches, for comparison",
        *("scripts/benchmark.py", "voxel_classifier", "--data_dir", data, "--output", report / "voxel_classifier.json"),
    )
    length = ["--max_epochs", str(epochs)] if epochs else []
    configs = ["train", "variants/demo", "variants/demo_schedule"]
    # a little cross-entropy beside the Dice keeps organs that are not learned yet from flooding the background
    training = [*configs, "variants/dice_plain_ce"]
    bundle("3/5 Train with the class boost strategy", name, training, *places, *length)
    overlap = ["--sw_overlap", "0.75"]  # more windows, each voxel seen by more of them: about 0.02 Dice
    bundle("4/5 Evaluate on the test cases", name, ["train", "evaluate", *configs[1:]], *places, *overlap)
    bundle(
        "5/5 Segment CTs that the network has never seen",
        name,
        ["inference", "variants/demo"],
        *("--input", data / "dataset.json", "--ckpt_path", models / "model.pt"),
        *("--output_dir", output_dir / "segmentations", *overlap),
    )


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
        spacing = json.loads((ROOT / "bundles" / name / "configs/variants/demo.json").read_text())["spacing"]
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


def mitosis(name: str, output_dir: Path, slides: int, epochs: int) -> None:
    data, models, report = output_dir / "data", output_dir / "models", output_dir / "report"
    places = ["--dataset_dir", data, "--output_dir", report, "--ckpt_dir", models]
    run(
        "1/5 Make synthetic patches of four scanners",
        *(
            "scripts/make_synthetic.py",
            "histology",
            "--output_dir",
            data,
            "--slides",
            str(slides),
            "--tiles_per_slide",
            "0",
        ),
    )
    length = ["--max_epochs", str(epochs)] if epochs else []
    demo = ["variants/demo", "variants/demo_schedule"]
    scanners = ["--train_domains", str(list(TRAINED_ON))]
    bundle("2/5 Train on two scanners", name, ["train", *demo], *places, *scanners, *length)
    evaluate = ["train", "evaluate", *demo]
    bundle("3/5 Evaluate on all four", name, evaluate, *places)
    adapted = ["--dataset_dir", data, "--output_dir", output_dir / "report_adapted", "--ckpt_dir", models]
    adapted += ["--adapt_batch_norm", "true"]
    bundle("4/5 The same with batch norm adapted to each scanner's unlabelled images", name, evaluate, *adapted)
    bundle(
        "5/5 Classify patches of a scanner that the network has never seen",
        name,
        ["inference", "variants/demo"],
        *("--input", data / "patches" / "GT450", "--ckpt_path", models / "model.pt"),
        *("--output_dir", output_dir / "predictions"),
    )


def show_scanners(name: str, output_dir: Path) -> None:
    folders = (output_dir / "report" / "evaluation", output_dir / "report_adapted" / "evaluation")
    plain, adapted = (json.loads((folder / "summary.json").read_text())["domains"] for folder in folders)
    titles = f"{'accuracy':>12}{'AUC':>8}"
    print(f"\n{'':<24}{'':>9}{'as trained':>20}{'batch norm adapted':>20}")
    print(f"{'scanner':<24}{'patches':>9}{titles}{titles}")
    for scanner, row in plain.items():
        seen = "trained on" if scanner in TRAINED_ON else "never seen"
        values = "".join(f"{part[key]['value']:>{w}.3f}" for part in (row, adapted[scanner]) for key, w in SHOWN)
        print(f"{scanner:<10}{seen:<14}{row['patches']:>9}{values}")
    print(
        "\nOne run of a small network on made-up patches. What FuseStyle does over several seeds, and on real patches, "
        f"is in bundles/{name}/docs/README.md."
    )
    print(f"report          {folders[0]} (report.png, summary.json, scores.csv, predictions.csv)")
    print(f"training        {output_dir / 'report' / 'training.png'}")
    print(f"predictions     {output_dir / 'predictions'} (predictions.csv, preview.png)")
    print(f"weights         {output_dir / 'models' / 'model.pt'} (synthetic data: not for real slides)")


def detection(name: str, output_dir: Path, slides: int, epochs: int) -> None:
    data, models, report = output_dir / "data", output_dir / "models", output_dir / "report"
    places = ["--datalist", data / "tiles.json", "--output_dir", report, "--ckpt_dir", models]
    run(
        "1/4 Make synthetic tiles of four scanners",
        *("scripts/make_synthetic.py", "histology", "--output_dir", data, "--slides", str(slides)),
        *("--patches_per_slide", "2", "--tiles_per_slide", "8"),
    )
    length = ["--max_epochs", str(epochs)] if epochs else []
    demo = ["variants/demo", "variants/demo_schedule"]
    scanners = ["--train_domains", str(list(TRAINED_ON))]
    bundle("2/4 Train on two scanners", name, ["train", *demo], *places, *scanners, *length)
    bundle("3/4 Evaluate on all four", name, ["train", "evaluate", *demo], *places)
    bundle(
        "4/4 Find mitotic figures in images of a scanner that the network has never seen",
        name,
        ["inference", "variants/demo"],
        *("--input", data / "tiles" / "GT450" / "slide_00", "--mpp", "0.25"),
        *("--ckpt_path", models / "model.pt", "--output_dir", output_dir / "detections"),
    )


def show_detections(name: str, output_dir: Path) -> None:
    folder = output_dir / "report" / "evaluation"
    domains = json.loads((folder / "summary.json").read_text())["domains"]
    titles = ("F1", "precision", "recall", "average precision")
    print(f"\n{'scanner':<24}{'figures':>9}" + "".join(f"{title:>{len(title) + 4}}" for title in titles))
    for scanner, row in domains.items():
        seen = "trained on" if scanner in TRAINED_ON else "never seen"
        values = zip(DETECTION_SCORES, titles, strict=True)
        scores = "".join(f"{number(row[key]['value']):>{len(title) + 4}}" for key, title in values)
        print(f"{scanner:<10}{seen:<14}{row['figures']:>9}{scores}")
    print(
        "\nMitotic figures on slides that were not trained on, found within 7.5 µm; one run of a small network on "
        f"made-up tiles. With and without FuseStyle, over several seeds: bundles/{name}/docs/README.md."
    )
    print(f"report          {folder} (report.png, gallery.png, summary.json, scores.csv, detections.csv)")
    print(f"training        {output_dir / 'report' / 'training.png'}")
    print(f"detections      {output_dir / 'detections'} (overview and gallery, .geojson for QuPath, .json, .csv)")
    print(f"weights         {output_dir / 'models' / 'model.pt'} (synthetic data: not for real slides)")


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


# what runs, how many cases (or slides a scanner) it makes, what shows the result
DEMOS = {
    "abdominal_unetr_cbs": (abdominal, 24, show_organs),
    "abdominal_lambda3d_cbs": (abdominal, 24, show_organs),
    "mitosis_fusestyle_cls": (mitosis, 12, show_scanners),
    "mitosis_retinanet_fusestyle": (detection, 12, show_detections),
}


def main(name: str = "abdominal_unetr_cbs", output_dir: str = "", cases: int = 0, epochs: int = 0) -> None:
    """Make synthetic data, train a bundle on it, evaluate it, run it on unseen cases, and show the result.

    Args:
        name: the bundle.
        output_dir: where everything goes; demo_output/NAME by default. An earlier demo there is replaced.
        cases: number of synthetic CTs, or of slides a scanner; 0 for the demo's own.
        epochs: length of the training; 0 leaves it as in configs/variants/demo_schedule.json.
    """
    if name not in DEMOS:
        sys.exit(f"There is no demo {name!r}. Known: {', '.join(DEMOS)}.")
    start = time.monotonic()
    folder = fresh_folder(Path(output_dir).resolve() if output_dir else ROOT / "demo_output" / name)
    demo, own_cases, show = DEMOS[name]
    demo(name, folder, cases or own_cases, epochs)
    show(name, folder)
    print(f"Time: {(time.monotonic() - start) / 60:.1f} minutes.")


if __name__ == "__main__":
    fire.Fire(main)
