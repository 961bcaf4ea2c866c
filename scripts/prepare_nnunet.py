"""Turn a raw data set of nnU-Net, or of the Medical Segmentation Decathlon, into a datalist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from command_line import AtATime, Seed, run_command

from shared.datasets.ct_cases import check_ct_cases, write_ct_datalist
from shared.datasets.nnunet import read_nnunet, split_nnunet
from shared.datasets.preparation import resolve_folders, worker_count
from shared.utils.settings import SETTINGS
from shared.utils.values import Several, Text, Whole


def main(
    data_dir: str,
    output_dir: str,
    splits: str = "",
    fold: Annotated[int, Whole(0)] = 0,
    seed: Seed = 0,
    exclude: Annotated[Sequence[str], Several(Text(), empty=True)] = (),
    label_ids: Annotated[Any, SETTINGS["label_ids"][0]] = None,
    assume_orientation: Annotated[str | None, SETTINGS["assume_orientation"][0]] = None,
    overwrite: bool = False,
    workers: AtATime = None,
) -> None:
    """Check the cases and write a datalist with the labels of the data set's own dataset.json.

    Cases of imagesTs are for testing if labelsTs has their labels. Otherwise the val of splits_final.json is, which
    nnU-Net reports its scores of, and validation is a fifth of its train. Without that file a fifth of the cases is for
    testing and a fifth for validation. OUTPUT_DIR then holds dataset.json, organs.csv and cases.csv; the files stay
    where they are. A bundle that is to train on it needs the same labels in its configuration.

    Args:
        data_dir: a folder such as nnUNet_raw/Dataset017_BTCV, with dataset.json, imagesTr and labelsTr.
        output_dir: for the datalist, a folder outside of DATA_DIR.
        splits: nnU-Net's splits_final.json; by default the one in DATA_DIR, if there is one.
        fold: which fold of it.
        seed: of the split, as far as the files do not give it.
        exclude: names of cases to leave out, as in case_001,case_002.
        label_ids: name and id or ids in the label files, of the classes that are wanted; by default the labels of
            dataset.json. What is not named becomes background.
        assume_orientation: where the axes of files point to that say nothing of sides, as RAS (right, front, head). By
            default such files are refused where labels are left or right.
        overwrite: replace another dataset.json in OUTPUT_DIR.
        workers: cases worked on at a time; by default one for each core, 8 at most.
    """
    source, target = resolve_folders(data_dir, output_dir)
    workers, excluded = worker_count(workers), sorted(set(exclude))
    facts, labels, cases, test = read_nnunet(source, excluded, label_ids)
    how = {"label_ids": label_ids, "assume_orientation": assume_orientation}
    own = source / "splits_final.json"
    found, origin = split_nnunet(cases, test, splits or (own if own.is_file() else None), fold, seed, excluded)
    found = check_ct_cases(source, found, labels, workers, **how)
    facts |= {"split": origin, "excluded": excluded}
    print(write_ct_datalist(target, facts, labels, found, overwrite=overwrite, **how))
    count = sum(map(len, found.values()))
    left_out = len(cases) + len(test) - count
    if left_out:
        print(f"{left_out} cases are in no part of the fold and are left out.")
    if excluded:
        print(f"{len(excluded)} cases were left out with --exclude.")
    print(f"{count} cases: {target / 'dataset.json'}")


if __name__ == "__main__":
    run_command(main)
