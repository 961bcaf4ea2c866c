"""Turn BTCV (Synapse syn3193805), as downloaded, into a datalist for the abdominal bundles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from command_line import AtATime, Seed, run_command

from shared.datasets.btcv import find_btcv, unpack_btcv
from shared.datasets.ct_cases import BTCV_LABELS, check_ct_cases, classes_of, write_ct_datalist
from shared.datasets.preparation import resolve_folders, worker_count
from shared.datasets.splits import split_cases
from shared.utils.settings import SETTINGS
from shared.utils.values import Several, Text


def main(
    data_dir: str,
    output_dir: str,
    seed: Seed = 0,
    exclude: Annotated[Sequence[str], Several(Text(), empty=True)] = (),
    label_ids: Annotated[Any, SETTINGS["label_ids"][0]] = None,
    assume_orientation: Annotated[str | None, SETTINGS["assume_orientation"][0]] = None,
    overwrite: bool = False,
    workers: AtATime = None,
) -> None:
    """Check the labelled cases and write a datalist: of the 30 cases 18 for training, 6 for validation, 6 for testing.

    The split is this project's own, made with the seed: there is no official one, as the challenge's test images have
    no public labels. OUTPUT_DIR then holds dataset.json, organs.csv and cases.csv; the files stay where they are.

    Args:
        data_dir: the folder with RawData or RawData.zip, or RawData.zip itself, whose labelled cases are unpacked into
            OUTPUT_DIR, unless all of them are in RawData beside it; or a folder with imagesTr and labelsTr.
        output_dir: for the datalist, a folder outside of DATA_DIR.
        seed: of the split.
        exclude: names of cases to leave out, as in 0021,0022.
        label_ids: name and id or ids in the label files, where these are others than BTCV's 1 to 13, or the classes are
            others; what is not named becomes background.
        assume_orientation: where the axes of files point to that say nothing of sides, as RAS (right, front, head). By
            default such files are refused.
        overwrite: replace another dataset.json in OUTPUT_DIR.
        workers: cases worked on at a time; by default one for each core, 8 at most.
    """
    source, target = resolve_folders(data_dir, output_dir)
    workers, excluded = worker_count(workers), sorted(set(exclude))
    labels = BTCV_LABELS if label_ids is None else classes_of(label_ids)
    found = unpack_btcv(source, target, workers)
    if found != source and (source / "RawData").is_dir():
        print(f"{source / 'RawData'} is not all of {source / 'RawData.zip'}, which is unpacked into {found}.")
    how = {"label_ids": label_ids, "assume_orientation": assume_orientation}
    splits = check_ct_cases(found, split_cases(find_btcv(found, excluded), seed), labels, workers, **how)
    facts = {"name": "BTCV", "split": f"seed {seed}", "excluded": excluded, "modality": {"0": "CT"}}
    print(write_ct_datalist(target, facts, labels, splits, overwrite=overwrite, **how))
    count = sum(map(len, splits.values()))
    if count != 30:
        print(f"BTCV has 30 labelled cases: {count} are used, {len(excluded)} were left out with --exclude.")
    print(f"{count} cases: {target / 'dataset.json'}")


if __name__ == "__main__":
    run_command(main)
