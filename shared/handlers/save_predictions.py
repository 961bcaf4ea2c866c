from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from matplotlib.figure import Figure
from PIL import Image

from ..data import read_rgb
from ..reports.classification import checked_probabilities
from ..reports.domains import check_classes
from ..reports.provenance import SYNTHETIC_WARNING, UNKNOWN_WARNING
from ..utils import DataError, atomic_path, fault_list, flag, gather_list, writable_folder, write_csv, write_json

logger = logging.getLogger(__name__)

FILES = ("predictions.csv", "predictions.json", "preview.png")
COLUMNS = ("case", "file", "probability", "class")
SHOWN = 12  # patches in each half of the preview
PER_ROW = 6
THUMBNAIL = 128  # pixels


def _preview(
    predictions: Sequence[Mapping[str, Any]], threshold: float, class_names: Sequence[str], warning: str | None
) -> Figure:
    """The most probable patches, and of the others those nearest to the threshold."""
    ranked = sorted(predictions, key=lambda p: -p["probability"])
    uncertain = sorted(ranked[SHOWN:], key=lambda p: abs(p["probability"] - threshold))[:SHOWN]
    parts = [(f"most probably {class_names[1]}", ranked[:SHOWN])]
    if uncertain:
        parts.append((f"least certain of the others (threshold {threshold:.3g})", uncertain))
    heights = [math.ceil(len(shown) / PER_ROW) for _, shown in parts]
    figure = Figure(figsize=(1.6 * PER_ROW, 1.9 * sum(heights) + 0.4 * len(parts) + 0.5), layout="constrained")
    halves = figure.subfigures(len(parts), 1, height_ratios=heights, squeeze=False).ravel()
    for half, height, (title, shown) in zip(halves, heights, parts, strict=True):
        half.suptitle(title, fontsize=11)
        grid = half.subplots(height, PER_ROW, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, prediction in zip(grid, shown, strict=False):
            image = read_rgb(prediction["file"])
            image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
            axes.imshow(image)
            name = Path(prediction["case"]).name
            name = name if len(name) <= 20 else f"…{name[-19:]}"
            axes.set_title(f"{prediction['probability']:.3f}\n{name}", fontsize=7)
    if warning:
        figure.text(0.01, 0.005, warning, color="tab:red", fontsize=9)
        figure.get_layout_engine().set(rect=(0, 0.05, 1, 0.95))
    return figure


class SavePredictions:
    """Write what a binary patch classifier says of each image of an inference.

    It reads `engine.state.output["pred"]`, probabilities (B, 1) as the postprocessing leaves them, and of
    `engine.state.batch` the lists `case` and `file` of the images in it, and `failures`, (case, reason) of those that
    could not be read, as `shared.engines.collate_readable` makes them: attach it to a `SupervisedEvaluator` with
    `decollate=False`.

    At the end it writes to `output_dir`, each file whole or not at all, in the order of the input, in a distributed
    run on rank 0, of the images of all ranks:

    * `predictions.csv`: `case`, `file`, `probability` of class 1 and the `class` it was called;
    * `predictions.json`: the same, the threshold, what the network was trained on, a `warning` where that was
      synthetic data or is unknown, and the images that `failed`, with the reason;
    * `preview.png`: the most probable patches and the least certain ones, to look at.

    Args:
        output_dir: folder of the files.
        threshold: a patch is positive from this probability on, in [0, 1].
        class_names: of class 0 and class 1.
        record: what the weights were trained on, see `shared.networks.read_model_record`; None or empty: unknown.
        adapted: whether batch norm was adapted to the images, for the record.

    Raises:
        ValueError: when the threshold or the class names are out of range.
        DataError: when the folder cannot be written to; at the end of the run, with the files written, when images
            failed; nothing is written when all of them did.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        threshold: float = 0.5,
        class_names: Sequence[str] = ("negative", "positive"),
        record: Mapping[str, Any] | None = None,
        adapted: bool = False,
    ) -> None:
        self.class_names = check_classes(threshold, class_names)
        self.output_dir = writable_folder(output_dir)
        self.threshold = float(threshold)
        self.record = dict(record or {})
        self.adapted = flag("adapted", adapted)
        self.predictions: list[dict[str, Any]] = []
        self.failures: list[tuple[str, str]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self.predictions, self.failures = [], []
        for name in FILES:  # of an earlier inference: should all images fail, they must not pass for this one's
            (self.output_dir / name).unlink(missing_ok=True)

    def _collect(self, engine: Engine) -> None:
        batch = engine.state.batch
        for case, reason in batch.get("failures", []):
            self.failures.append((case, reason))
            logger.error("%s failed: %s", case, reason)
        if not batch["case"]:
            return
        probabilities = checked_probabilities(engine.state.output["pred"], batch["case"])
        for case, file, probability in zip(batch["case"], batch["file"], probabilities, strict=True):
            called = self.class_names[probability >= self.threshold]
            self.predictions.append({"case": case, "file": file, "probability": probability, "class": called})

    def _finish(self, engine: Engine) -> None:
        # of all ranks, on rank 0; the others are left with nothing to write or to raise
        self.predictions, self.failures = gather_list(self.predictions), gather_list(self.failures)
        if self.predictions:
            self._write()
        if self.failures:
            raise self._failed()

    def _failed(self) -> DataError:
        total = len(self.failures) + len(self.predictions)
        if total == 1:
            return DataError(self.failures[0][1])
        faults = fault_list([f"{case}: {reason}" for case, reason in self.failures])
        return DataError(f"{len(self.failures)} of {total} images failed:{faults}")

    def _warning(self) -> str | None:
        if not self.record:
            return UNKNOWN_WARNING
        return SYNTHETIC_WARNING if self.record.get("synthetic") else None

    def _write(self) -> None:
        warning = self._warning()
        content = {
            **({"warning": warning} if warning else {}),
            "threshold": self.threshold,
            "classes": list(self.class_names),
            "model": self.record or None,
            "adapted_batch_norm": self.adapted,
            "predictions": self.predictions,
            "failed": [{"case": case, "reason": reason} for case, reason in self.failures],
        }
        write_csv(self.output_dir / "predictions.csv", self.predictions, COLUMNS)
        write_json(self.output_dir / "predictions.json", content)
        with atomic_path(self.output_dir / "preview.png") as temporary:
            _preview(self.predictions, self.threshold, self.class_names, warning).savefig(temporary, dpi=100)
        positive = sum(p["probability"] >= self.threshold for p in self.predictions)
        logger.info(
            "%d of %d patches are %s (probability at least %.3g), written to %s",
            positive,
            len(self.predictions),
            self.class_names[1],
            self.threshold,
            self.output_dir,
        )
