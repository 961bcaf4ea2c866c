from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys

from ..data import Region, near_tissue, source_digest, tissue_mask
from ..inferers import SubtypeCaller
from ..metrics import MITOTIC, Detections, MitoticCount, box_centres, mitotic_count
from ..reports.detection_files import ANNOTATION_FILES, WRITERS, DetectedImage, count_text
from ..reports.domains import check_classes
from ..reports.provenance import warning_of_results
from ..reports.result_table import ResultTable
from ..utils import DataError, gather_list, lock_folder, unlock_folder, writable_folder

logger = logging.getLogger(__name__)

COLUMNS = (
    *("case", "file", "status", "width", "height", "bounds", "roi_mm2", "mpp", "mitotic", "non_mitotic", "candidates"),
    *("on_glass", "mitotic_count", "count_area_mm2", "tissue_mm2", "whole_image", "tissue_share", "enough_tissue"),
    *("notes", "reason"),
)
_REACH = 10.0  # µm from the tissue mask, to which a figure still belongs: the mask is coarse


def _column(subtype: str) -> str:
    """Of the summary: the number of figures of this kind."""
    return f"subtype_{subtype}"


class SaveDetections:
    """Write what a detector finds in each image of an inference.

    Attach it to a `CaseEvaluator` with `decollate=False`, whose batches are of `shared.engines.collate_regions`, one
    image each: `engine.state.batch` holds its `image`, a `Region`, its `case` and its `file`, and
    `engine.state.output["pred"]` the detections, as `RegionInferer` gives them.

    For each image it writes to `output_dir`, each file whole or not at all:

    * `CASE.json`: the candidates for mitotic figures, as the MIDOG challenge takes them, see `write_midog_json`;
    * `CASE.geojson`: all figures from the threshold on, and the area of the mitotic count, for QuPath;
    * `CASE.csv`: all detections;
    * `CASE_ann.dcm`, if asked for: those figures as a DICOM object; `CASE_ann.json` says whether there is one;
    * `CASE_overview.png` and `CASE_gallery.png`: to look at.

    Files of an earlier inference are removed when the image's turn comes: should it fail, they must not pass for this
    one's. A failure in writing is one of this image alone. At the end `summary.csv` and `summary.json` hold for each
    image, also those of earlier inferences into the same folder, the figures, the mitotic count with its area, and the
    reason where it failed; the latter also the weights' digest and the settings, which all of them share, what the
    network was trained on, and a `warning` where that was synthetic data or is unknown. In a distributed run rank 0
    writes them, of the images of all ranks. Meanwhile the folder is locked: a summary is of one inference at a time.

    Args:
        output_dir: folder of the files.
        threshold: a detection is a figure from this score on, in [0, 1].
        class_names: of class 0 and class 1, the mitotic figures.
        record: what the weights were trained on, see `shared.networks.read_model_record`; None or empty: unknown.
        area_mm2, aspect, min_tissue: see `shared.metrics.mitotic_count`.
        made_with: the weights' digest and the settings, see `shared.data.made_with`.
        on_glass: whether detections whose middle is more than 10 µm off the tissue, see `shared.data.tissue_mask`, are
            left out ("drop") or taken like others ("keep"). They are counted either way.
        export: what writes the DICOM objects and stores them, see `shared.dicom.AnnotationExport`; None: there are
            none. What the PACS refuses is a failure of the case, whose files are there all the same.
        classifier: what judged the detections, see `shared.inferers.CandidateJudge`; None: nothing.
        subtypes: what told kinds of mitotic figures apart, whose numbers then stand in the summary; None: nothing.

    Raises:
        ValueError: when the threshold or the class names are out of range, or `on_glass` is neither.
        DataError: when the folder cannot be written to; at the start of the run, when it holds one of the images, or
            results of other weights or settings, or another inference writes to it.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        threshold: float = 0.5,
        class_names: Sequence[str] = ("non_mitotic", "mitotic"),
        record: Mapping[str, Any] | None = None,
        area_mm2: float = 2.0,
        aspect: float = 4 / 3,
        min_tissue: float = 0.5,
        made_with: Mapping[str, Any] | None = None,
        on_glass: str = "drop",
        export: Any = None,
        classifier: Mapping[str, Any] | None = None,
        subtypes: SubtypeCaller | None = None,
    ) -> None:
        if on_glass not in ("drop", "keep"):
            raise ValueError(f"on_glass is {on_glass!r}, expected drop or keep.")
        self.on_glass = on_glass
        self.export = export
        self.class_names = check_classes(threshold, class_names)
        self.output_dir = writable_folder(output_dir)
        self.threshold = float(threshold)
        self.record = dict(record or {})
        self.subtypes = subtypes
        others = {"classifier": classifier, "subtype_classifier": subtypes and subtypes.about}
        others = {key: dict(about) for key, about in others.items() if about}
        self.warning = warning_of_results(self.record, *(about["record"] for about in others.values()))
        self.count_options = {"area_mm2": float(area_mm2), "aspect": float(aspect), "min_tissue": float(min_tissue)}
        mitotic_count([], (1, 1), 1.0, **self.count_options)  # wrong options stop here, and not after the first image
        head = {
            "threshold": self.threshold,
            "classes": list(self.class_names),
            "model": self.record or None,
            "mitotic_count": self.count_options,
            **others,
            **(made_with or {}),
        }
        self.table = ResultTable(self.output_dir, "summary", "images", head)
        self.rows: list[dict[str, Any]] = []
        self.begun: list[str] = []  # cases whose earlier results are no longer there
        self.refused: set[str] = set()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, self._remove)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self._save)  # where a failure is the case's own
        engine.add_event_handler(Events.COMPLETED, self._finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._give_up)

    def _start(self, engine: Engine) -> None:
        self.rows, self.begun = [], []
        place, data = self.output_dir.resolve(), getattr(engine.state.dataloader.dataset, "data", [])
        self.refused = {item["case"] for item in data if "failure" in item}
        files = [Path(item["file"]) for item in data]
        inside = [file for file in files if place in file.resolve().parents]
        if inside:  # annotations beside it would be called like its results, and pictures of results pass for images
            raise DataError(f"{inside[0]}: lies in the output folder, {place}. Choose another --output_dir.")
        if idist.get_rank() == 0:
            lock_folder(self.output_dir, "--output_dir")
        self.table.read()
        if idist.get_rank() == 0:
            self.table.begin()

    def _remove(self, engine: Engine) -> None:
        case = engine.state.batch["case"][0]
        if case in self.refused or case == self.table.name:  # that one's files are those of all images
            return
        self.begun.append(case)
        for ending in (*WRITERS, *ANNOTATION_FILES):
            (self.output_dir / f"{case}{ending}").unlink(missing_ok=True)

    def _save(self, engine: Engine) -> None:
        batch, found = engine.state.batch, engine.state.output[CommonKeys.PRED]
        case, file, region = batch["case"][0], batch["file"][0], batch[CommonKeys.IMAGE][0]
        if case == self.table.name:
            raise DataError(f"{file}: its results would be called like the summary, {case}.json. Rename the image.")
        try:
            row = {"source_digest": source_digest(file), **self._write(case, file, region, found)}
        except BaseException:
            self._remove(engine)
            raise
        if self.export is not None:
            self.export.send(self.output_dir, case)
        stated = {"stated_mpp": batch["mpp"][0]} if "mpp" in batch else {}
        stated |= {"stain_fit": batch["stain_fit"][0]} if "stain_fit" in batch else {}
        row = {"case": case, "file": file, "status": "done", **row, **stated}
        self.rows.append(row)
        self.table.add([row])

    def _write(self, case: str, file: str, region: Region, found: Detections) -> dict[str, Any]:
        how = {"threshold": self.threshold, "class_names": self.class_names, "warning": self.warning}
        part = region.searched()
        mask, scale = tissue_mask(part)
        near = near_tissue(box_centres(found["box"]) - part.corner, mask, scale, _REACH / region.mpp)
        on_glass = int((~near).sum())
        if self.on_glass == "drop":
            found = {key: value[near] for key, value in found.items()}
        names = self.subtypes.names_of(found["subtype"]) if self.subtypes else ()
        image = DetectedImage(region=region, detections=found, title=case, subtypes=names, **how)
        points, mitotic, other = image.centres, image.called(), image.called(1 - MITOTIC)
        roi_mm2 = None if part.roi is None else part.roi.area(mask.shape, scale) * part.mpp**2 / 1e6
        if roi_mm2 is not None and not roi_mm2 > 0:
            raise DataError(
                f"{file}: its region of interest has no area. Draw it again, around what is to be searched."
            )
        count = self._count(part, points[mitotic] - part.corner, mask, scale, roi_mm2)
        for ending, write in WRITERS.items():
            write(self.output_dir / f"{case}{ending}", replace(image, count=count))
        if self.export is not None:
            self.export.write(self.output_dir, case, file, image)
        logger.info(
            "%s: %d of %d detections are mitotic figures, %d on glass are %s; %s in the densest area; written to %s",
            case,
            mitotic.sum(),
            len(points),
            on_glass,
            "dropped" if self.on_glass == "drop" else "kept",
            count_text(count),
            self.output_dir,
        )
        return {
            "width": region.size[0],
            "height": region.size[1],
            "bounds": region.bounds and " ".join(map(str, region.bounds)),
            "roi_mm2": roi_mm2 and round(roi_mm2, 6),
            "mpp": region.mpp,
            "mitotic": int(mitotic.sum()),
            "non_mitotic": int(other.sum()),
            "candidates": len(points),
            "on_glass": on_glass,
            "mitotic_count": count.count,
            "count_area_mm2": round(count.area_mm2, 6),
            "tissue_mm2": round(count.tissue_mm2, 6),
            "whole_image": count.whole_image,
            "tissue_share": count.tissue,
            "enough_tissue": count.enough_tissue,
            "notes": "; ".join(region.notes) or None,
            **({_column(name): list(names).count(name) for name in self.subtypes.names} if self.subtypes else {}),
        }

    def _count(
        self, part: Region, figures: np.ndarray, mask: np.ndarray, scale: float, roi_mm2: float | None
    ) -> MitoticCount:
        """The mitotic count in what was searched, its outline in pixels of the file.

        Of regions of interest that are smaller than the area of the count together, all figures in their own area.
        """
        if part.roi is not None:
            mask = mask & part.roi.mask(mask.shape, scale)
        count = mitotic_count(figures, part.size, part.mpp, tissue=mask, tissue_scale=scale, **self.count_options)
        if roi_mm2 is not None and roi_mm2 <= count.area_mm2:
            share = min(1.0, float(mask.sum()) * (scale * part.mpp) ** 2 / 1e6 / roi_mm2)
            enough = share >= self.count_options["min_tissue"]
            count = MitoticCount(len(figures), (0, 0, *part.size), roi_mm2, share, True, enough)
        return count._replace(outline=tuple((np.array(count.outline) + part.corner * 2).tolist()))

    def _give_up(self, engine: Engine, error: BaseException) -> None:
        unlock_folder(self.output_dir)
        raise error

    def _finish(self, engine: Engine) -> None:
        rows, failures = gather_list(self.rows), gather_list(getattr(engine, "failures", []))
        begun = {*gather_list(self.begun)}
        if idist.get_rank() > 0:
            return
        warning = self.warning
        try:
            kept = self.table.read().rows.items()
            self.table.rows = {case: row for case, row in kept if case not in begun and self._is_whole(case)}
            columns = (*COLUMNS, *map(_column, self.subtypes.names if self.subtypes else ()))
            self.table.write(rows, failures, columns, **({"warning": warning} if warning else {}))
        finally:
            unlock_folder(self.output_dir)

    def _is_whole(self, case: str) -> bool:
        return all((self.output_dir / f"{case}{ending}").is_file() for ending in WRITERS)
