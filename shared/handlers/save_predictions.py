"""What a classifier says of the images of an inference, as files."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from ignite.engine import Engine, Events

from ..networks import ModelRecord
from ..reports.classification import Prediction, checked_probabilities, draw_predictions
from ..reports.domains import check_classes
from ..reports.gallery import save_figure
from ..reports.provenance import warning_of_results
from ..utils import DataError, fault_list, flag, gather_list, writable_folder, write_csv, write_json

logger = logging.getLogger(__name__)

FILES = ("predictions.csv", "predictions.json", "preview.png")
COLUMNS = ("case", "file", "probability", "class")


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
        record: ModelRecord | None = None,
        adapted: bool = False,
    ) -> None:
        self.class_names = check_classes(threshold, class_names)
        self.output_dir = writable_folder(output_dir)
        self.threshold = float(threshold)
        self.record = dict(record or {})
        self.adapted = flag("adapted", adapted)
        self.predictions: list[Prediction] = []
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

    def _write(self) -> None:
        warning = warning_of_results(self.record)
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
        picture = draw_predictions(self.predictions, self.threshold, self.class_names, warning)
        save_figure(self.output_dir / "preview.png", picture, dpi=100)
        positive = sum(p["probability"] >= self.threshold for p in self.predictions)
        logger.info(
            "%d of %d patches are %s (probability at least %.3g), written to %s",
            positive,
            len(self.predictions),
            self.class_names[1],
            self.threshold,
            self.output_dir,
        )
