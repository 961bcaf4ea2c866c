"""Prepare TotalSegmentator's CT data set, version 1 or 2 as downloaded, for the abdominal bundles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from command_line import AtATime, Seed, run_command

from shared.datasets.ct_cases import BTCV_LABELS, write_ct_datalist
from shared.datasets.preparation import resolve_folders, worker_count
from shared.datasets.totalsegmentator import find_totalsegmentator, merge_totalsegmentator, split_totalsegmentator
from shared.utils.settings import SETTINGS
from shared.utils.values import Several, Text, Whole


def main(
    data_dir: str,
    output_dir: str,
    min_organs: Annotated[int, Whole(0, 13)] = 6,
    seed: Seed = 0,
    exclude: Annotated[Sequence[str], Several(Text(), empty=True)] = (),
    assume_orientation: Annotated[str | None, SETTINGS["assume_orientation"][0]] = None,
    overwrite: bool = False,
    workers: AtATime = None,
) -> None:
    """Make a label map with BTCV's 13 organs for each case, and write a datalist.

    OUTPUT_DIR then holds labels with a label map for each case, dataset.json, organs.csv and cases.csv. The CT stay
    where they are. Where masks overlap, the organ with the smaller share of voxels in the paper's table wins; how many
    voxels that concerns is in cases.csv. The split is that of meta.csv; where that leaves no case for validation, a
    fifth of its cases for training is. Without the file a fifth of the cases is for testing and a fifth for validation.
    An interrupted run goes on where it stopped.

    Args:
        data_dir: the folder with s0011/ct.nii.gz and s0011/segmentations and the other cases.
        output_dir: a folder outside of DATA_DIR.
        min_organs: cases with fewer of the 13 organs are left out (their label maps are written); 6 is the paper's
            rule. An organ is there if it has a voxel.
        seed: of the split, as far as meta.csv does not give it.
        exclude: names of cases to leave out, as in s0864,s0865.
        assume_orientation: where the axes of files point to that say nothing of sides, as RAS (right, front, head). By
            default such files are refused.
        overwrite: replace another dataset.json in OUTPUT_DIR, and label maps that were made of other files.
        workers: cases worked on at a time; by default one for each core, 8 at most.
    """
    source, target = resolve_folders(data_dir, output_dir)
    workers, excluded = worker_count(workers), sorted(set(exclude))
    found = find_totalsegmentator(source, target, excluded)
    every = merge_totalsegmentator(source, found, workers, overwrite, assume_orientation)
    cases = [case for case in every if len(case.voxels) >= min_organs]
    left_out = [case for case in every if len(case.voxels) < min_organs]
    splits, origin = split_totalsegmentator(source, cases, seed)
    facts = {"name": "TotalSegmentator", "split": origin, "min_organs": min_organs, "excluded": excluded}
    facts["modality"] = {"0": "CT"}
    print(write_ct_datalist(target, facts, BTCV_LABELS, splits, left_out, overwrite, None, assume_orientation))
    overlap = sum(case.overlap for case in cases)
    print(f"{overlap} voxels in {sum(case.overlap > 0 for case in cases)} cases were claimed by more than one mask.")
    print(f"{len(left_out)} of {len(every)} cases have fewer than {min_organs} of the organs and are left out.")
    if excluded:
        print(f"{len(excluded)} more were left out with --exclude.")
    print(f"{len(cases)} cases: {target / 'dataset.json'}")


if __name__ == "__main__":
    run_command(main)
