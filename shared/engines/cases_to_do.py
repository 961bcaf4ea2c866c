"""Which cases of an inference are still to be done, and which must not be."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist

from ..data import check_source, source_digest
from ..reports.detection_files import WRITERS
from ..reports.result_table import ResultTable
from ..transforms.save import read_segmentation, segmentation_files
from ..utils import DataError, flag, share_list

logger = logging.getLogger(__name__)

# Of each table the key of its rows, and how the files of a case end.
TABLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "summary": ("images", tuple(WRITERS)),
    "predictions": ("predictions", ()),
}


def cases_to_do(
    cases: Sequence[Mapping[str, Any]],
    output_dir: str | os.PathLike,
    made_with: Mapping[str, Any],
    skip_existing: bool = False,
    table: str | None = None,
    export: Any = None,
) -> list[dict[str, Any]]:
    """The cases of an inference, for a `FaultTolerantDataset`, seen beside what is in its output folder.

    One under whose name the results of another image are kept gets a `failure`, and so is not even loaded. In a
    distributed run each rank comes to the same list: call it on all of them, before the first result is written.

    Args:
        cases: from `list_inputs` or `list_images`.
        output_dir: of the results; it may be missing.
        made_with: the weights and settings, see `shared.data.made_with`.
        skip_existing: leave out the cases whose results are there, whole, of the same image, weights and settings.
        table: of a `ResultTable` the name, where the results stand in one; None: each case has a folder.
        export: what writes DICOM objects, see `shared.dicom.SegmentationExport`, which have to be there too; or None.

    Raises:
        DataError: when cases are to be left out, and the others' results depend on them.
    """
    skip, folder = flag("skip_existing", skip_existing), Path(output_dir)
    used = [key for key in ("adapt_batch_norm", "positive_rate") if made_with.get("settings", {}).get(key)]
    if skip and used:
        raise DataError(
            f"{used[0]} takes its statistics from all images of an inference, and skip_existing leaves some out. "
            "Leave one of the two options out."
        )
    if idist.get_rank() > 0:  # one reads the images of earlier results, however many ranks there are
        return share_list(None)
    find = _in_folders(folder) if table is None else _in_table(folder, table)
    left = []
    for case in map(dict, cases):
        earlier = find(case["case"])
        try:
            check_source(folder / case["case"], earlier, case["image"], case.get("series"))
            exported = export is None or export.is_whole(folder, case["case"])
            if skip and exported and _is_done(case, earlier, made_with):
                continue
        except DataError as e:
            case["failure"] = str(e)
        left.append(case)
    if len(left) < len(cases):
        logger.info("%d of %d cases are done already", len(cases) - len(left), len(cases))
    return share_list(left)


def _in_folders(folder: Path) -> Callable[[str], dict[str, Any]]:
    """What is known of the earlier results under a case's name; whether they are all there is in `whole`."""

    def find(case: str) -> dict[str, Any]:
        files = [folder / case / name for name in segmentation_files(case)]
        return {**(read_segmentation(folder, case) or {}), "whole": all(file.is_file() for file in files)}

    return find


def _in_table(folder: Path, name: str) -> Callable[[str], dict[str, Any]]:
    key, endings = TABLES[name]
    table = ResultTable(folder, name, key).read()

    def find(case: str) -> dict[str, Any]:
        whole = case in table.rows and all((folder / f"{case}{ending}").is_file() for ending in endings)
        return {**table.earlier, **table.rows.get(case, {}), "whole": whole}

    return find


def _is_done(case: Mapping[str, Any], earlier: Mapping[str, Any], made_with: Mapping[str, Any]) -> bool:
    same = made_with.get("weights") and all(earlier.get(key) == value for key, value in made_with.items())
    if not same or not earlier["whole"] or earlier.get("stated_mpp") != case.get("mpp"):
        return False
    return earlier.get("source_digest") == source_digest(case["image"], case.get("series"))
