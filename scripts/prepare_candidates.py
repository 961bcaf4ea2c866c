"""Cut the patches by which a classifier learns to judge what the detector finds."""

from __future__ import annotations

from typing import Annotated

from command_line import Seed, run_command

from shared.datasets.candidates import cut_candidates
from shared.datasets.histology_entries import count_patches
from shared.utils import text_table
from shared.utils.values import Number, Whole


def main(
    datalist: str,
    evaluation: str,
    output_dir: str,
    size: Annotated[int, Whole(8)] = 64,
    false_positives: Annotated[float, Number(0)] = 1.0,
    seed: Seed = 0,
    overwrite: bool = False,
) -> None:
    """Cut patches around the figures and the false positives in the detector's training regions, and list them.

    Validation and test slides stay out. Patches are split by slide within each scanner: a fifth of the slides is for
    validation, none for testing. OUTPUT_DIR then holds dataset.json for the classification bundle, and patches.

    Args:
        datalist: of the detector.
        evaluation: the folder `evaluation` that the detector writes with --evaluate_split training.
        output_dir: where the patches and their datalist go.
        size: side of a patch in pixels.
        false_positives: for each annotated figure, of either class, of each scanner; those of the highest scores.
        seed: of the split.
        overwrite: replace what an earlier call has written.
    """
    splits = cut_candidates(datalist, evaluation, output_dir, size, false_positives, seed, overwrite)
    rows = count_patches({split: patches for split, patches in splits.items() if patches})
    print(text_table(rows))
    kinds = [patch["kind"] for patches in splits.values() for patch in patches]
    print(f"{len(kinds)} patches, {kinds.count('false_positive')} of them false positives: {output_dir}")


if __name__ == "__main__":
    run_command(main)
