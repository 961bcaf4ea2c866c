"""What a classifier says of the images of an inference, as files."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from ..data import source_digest
from ..networks import ModelRecord
from ..reports.classification import Prediction, checked_probabilities, draw_predictions
from ..reports.domains import check_classes
from ..reports.gallery import save_figure
from ..reports.provenance import warning_of_results
from ..reports.result_table import ResultTable
from ..utils import DataError, fault_list, flag, gather_list, lock_folder, unlock_folder, writable_folder

logger = logging.getLogger(__name__)

COLUMNS = ("case", "file", "probability", "class")


class SavePredictions:
    """Write what a binary patch classifier says of each image of an inference.

    It reads `engine.state.output["pred"]`, probabilities (B, 1) as the postprocessing leaves them, and of
    `engine.state.batch` the lists `case` and `file` of the images in it, and `failures`, (case, reason) of those that
    could not be read, as `shared.engines.collate_readable` makes them: attach it to a `SupervisedEvaluator` with
    `decollate=False`.

    At the end it writes to `output_dir`, each file whole or not at all, in the order of the input, behind the images of
    earlier inferences into the same folder, in a distributed run on rank 0, of the images of all ranks:

    * `predictions.csv`: `case`, `file`, `probability` of class 1 and the `class` it was called;
    * `predictions.json`: the same with the images' digests, the weights' digest, the threshold and other settings,
      which all of them share, what the network was trained on, a `warning` where that was synthetic data or is unknown,
      and the images that `failed`, with the reason;
    * `preview.png`: the most probable patches and the least certain ones, to look at.

    Meanwhile the folder is locked: a table is of one inference at a time.

    Args:
        output_dir: folder of the files.
        threshold: a patch is positive from this probability on, in [0, 1].
        class_names: of class 0 and class 1.
        record: what the weights were trained on, see `shared.networks.read_model_record`; None or empty: unknown.
        adapted: whether batch norm was adapted to the images, for the record.
        made_with: the weights' digest and the settings, see `shared.data.made_with`.
        crop_size: side in pixels of what the network sees of an image, which the preview outlines.

    Raises:
        ValueError: when the threshold or the class names are out of range.
        DataError: when the folder cannot be written to; at the start of the run, when it holds results of other weights
            or settings, or another inference writes to it; at the end, with the files written, when images failed; no
            files are left when there is no image for them.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        threshold: float = 0.5,
        class_names: Sequence[str] = ("negative", "positive"),
        record: ModelRecord | None = None,
        adapted: bool = False,
        made_with: Mapping[str, Any] | None = None,
        crop_size: int | None = None,
    ) -> None:
        self.crop_size = crop_size
        self.class_names = check_classes(threshold, class_names)
        self.output_dir = writable_folder(output_dir)
        self.threshold = float(threshold)
        self.record = dict(record or {})
        head = {
            "threshold": self.threshold,
            "classes": list(self.class_names),
            "model": self.record or None,
            "adapted_batch_norm": flag("adapted", adapted),
            **(made_with or {}),
        }
        self.table = ResultTable(self.output_dir, "predictions", "predictions", head)
        self.refused: set[str] = set()
        self.predictions: list[Prediction] = []
        self.failures: list[tuple[str, str]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._give_up)

    def _start(self, engine: Engine) -> None:
        self.predictions, self.failures = [], []
        data = getattr(engine.state.dataloader.dataset, "data", [])
        self.refused = {item["case"] for item in data if "failure" in item}
        if idist.get_rank() == 0:
            lock_folder(self.output_dir, "--output_dir")
        self.table.read()
        if idist.get_rank() == 0:
            self.table.begin()

    def _collect(self, engine: Engine) -> None:
        batch = engine.state.batch
        for case, reason in batch.get("failures", []):
            self._fail(case, reason)
        if not batch["case"]:
            return
        probabilities = checked_probabilities(engine.state.output["pred"], batch["case"])
        fits = dict(zip(batch["case"], batch.get("stain_fit", ()), strict=False))
        shifts = dict(zip(batch["case"], batch.get("logit_shift", ()), strict=False))
        found: list[Prediction] = []
        for case, file, probability in zip(batch["case"], batch["file"], probabilities, strict=True):
            called = self.class_names[probability >= self.threshold]
            row = {"case": case, "file": file, "probability": probability, "class": called}
            row |= {"stain_fit": fits[case]} if case in fits else {}
            row |= {"logit_shift": shifts[case]} if case in shifts else {}
            try:
                found.append({**row, "source_digest": source_digest(file)})
            except DataError as e:
                self._fail(case, str(e))
        self.predictions += found
        self.table.add(found)

    def _fail(self, case: str, reason: str) -> None:
        self.failures.append((case, reason))
        logger.error("%s failed: %s", case, reason)

    def _give_up(self, engine: Engine, error: BaseException) -> None:
        unlock_folder(self.output_dir)
        raise error

    def _finish(self, engine: Engine) -> None:
        # of all ranks, on rank 0; the others are left with nothing to write or to raise
        self.predictions, self.failures = gather_list(self.predictions), gather_list(self.failures)
        if idist.get_rank() == 0:
            try:
                self._write()
            finally:
                unlock_folder(self.output_dir)
        if self.failures:
            raise self._failed()

    def _failed(self) -> DataError:
        total = len(self.failures) + len(self.predictions)
        if total == 1:
            return DataError(self.failures[0][1])
        faults = fault_list([f"{case}: {reason}" for case, reason in self.failures])
        return DataError(f"{len(self.failures)} of {total} images failed:{faults}")

    def _write(self) -> None:
        # what an earlier inference said of an image that failed must not pass for this one's
        replaced = {p["case"] for p in self.predictions} | {case for case, _ in self.failures} - self.refused
        kept = self.table.read().rows.items()
        self.table.rows = {case: row for case, row in kept if case not in replaced}
        picture = self.output_dir / "preview.png"
        if not self.predictions and not self.table.rows:
            self.table.remove()
            picture.unlink(missing_ok=True)
            return
        warning = warning_of_results(self.record)
        self.table.write(self.predictions, self.failures, COLUMNS, **({"warning": warning} if warning else {}))
        shown = [p for p in [*self.table.rows.values(), *self.predictions] if Path(p["file"]).is_file()]
        if shown:
            drawn = draw_predictions(shown, self.threshold, self.class_names, warning, self.crop_size)
            save_figure(picture, drawn, dpi=100)
        positive = sum(p["probability"] >= self.threshold for p in self.predictions)
        logger.info(
            "%d of %d patches are %s (probability at least %.3g), written to %s",
            positive,
            len(self.predictions),
            self.class_names[1],
            self.threshold,
            self.output_dir,
        )
