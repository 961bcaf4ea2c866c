"""Which cases come in an epoch, and around which class each of their crops lies, by the weights of a rule."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import ignite.distributed as idist
import numpy as np
import torch
from monai.data import Dataset
from torch.utils.data import DistributedSampler

from ..utils import DataError
from .cached_dataset import prepared_cases

logger = logging.getLogger(__name__)

AT_ZERO = 0.005  # a score below it is 0.00

Draw = tuple[int, tuple[int, ...]]  # a case and the classes of its crops


class Rule(Protocol):
    """A re-weighting rule, as those of `shared.handlers`.

    Attributes:
        weights: of the N organs, above 0, (N,).
        scores: of the last evaluation, (N,), NaN where there is none.
    """

    @property
    def weights(self) -> torch.Tensor: ...

    @property
    def scores(self) -> torch.Tensor: ...


class RuleSampler(DistributedSampler):
    """Draws cases of a `SeededDataset`, and for each crop of a case the class around which it lies, by a rule.

    Of an epoch's crops the share `background` lies around background. Of the others, those of organs, the share
    `first` goes to organs at 0 (a score below 0.005 in the last evaluation) in equal parts, as long as there are any,
    and one crop at least to each of them as far as crops go. The rest go to all organs in proportion to their weights.
    Numbers that are not whole become the whole number below or above, so that they are right in the mean of epochs.

    A case is asked only for classes of which it has voxels, as `ClassesToIndicesd` has found them on the grid of the
    training. The classes that the fewest cases have are dealt out first, to cases that have come least in this epoch:
    so a case comes more often than others only where too few have a class. Where `crops` is above 1 and no case that
    has a class has room for another crop of it, another class of the case takes its place.

    The main process makes the plan of an epoch as it begins, from the seed, the epoch's number and the rule's state
    alone: a resumed run goes on with the plans of the uninterrupted one. All ranks make the same plan, of which each
    takes its part.

    Args:
        dataset: with the voxels of each class in its cases, see `prepared_cases`.
        rule: whose weights and scores count as the epoch begins.
        class_names: names of the N organs, in the order of their ids from 1 on.
        num_samples: draws of a case in an epoch, of all ranks together, rounded up so that ranks have equal parts; by
            default as many as there are cases.
        crops: of a case each time that it is drawn.
        background: share of the crops, from 0 to below 1.
        first: share of the organs' crops, from 0 to 1.
        seed: 0 or more.
        num_replicas, rank: of a distributed run; those of the running one by default.
        indices_key: the key of the voxels.

    Raises:
        DataError: when there is no rule, no case has an organ, or the cases say nothing of voxels.
        ValueError: when a number or share is out of its range.
    """

    def __init__(
        self,
        dataset: Dataset,
        rule: Rule | None,
        class_names: Sequence[str],
        num_samples: int | None = None,
        crops: int = 1,
        background: float = 0.5,
        first: float = 0.5,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
        indices_key: str = "label_cls_indices",
    ) -> None:
        if rule is None:
            raise DataError(
                "Crops are to be drawn by the weights of a re-weighting rule, and there is none: reweighting is null. "
                "Leave out what takes the rule away (configs/variants/plain.json, --reweighting '$None'), or the "
                "overlay for the sampling. --reweighting#loss '$None' keeps the rule out of the loss alone."
            )
        total = len(dataset) if num_samples is None else num_samples
        if min(total, crops) < 1 or not 0 <= background < 1 or not 0 <= first <= 1:
            raise ValueError(
                f"num_samples is {total}, crops {crops}, background {background} and first {first}, expected 1 or "
                "more, 1 or more, a share from 0 to below 1, and a share from 0 to 1."
            )
        num_replicas = idist.get_world_size() if num_replicas is None else num_replicas
        rank = idist.get_rank() if rank is None else rank
        super().__init__(dataset, num_replicas, rank, seed=seed)
        self.num_samples = -(-total // num_replicas)
        self.total_size = self.num_samples * num_replicas
        self.rule, self.crops, self.background, self.first = rule, crops, background, first
        self.held = classes_held(dataset, len(class_names), indices_key)  # (cases, N + 1)
        self._tell_of_absent(class_names)

    def _tell_of_absent(self, class_names: Sequence[str]) -> None:
        absent = [name for name, held in zip(class_names, self.held[:, 1:].any(axis=0), strict=True) if not held]
        if len(absent) == len(class_names):
            raise DataError(
                "No training case has a voxel of any class on the grid of the training, so that there is nothing to "
                "crop around. Check the label files, `labels` and `spacing`."
            )
        if absent and self.rank == 0:
            logger.warning(
                "No training case has a voxel of %s on the grid of the training: no crop is drawn around it.",
                ", ".join(absent),
            )

    def __iter__(self) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        times = np.zeros(len(self.held), dtype=int)
        numbered = []
        for case, classes in self.plan():
            numbered.append((self.epoch, case + len(self.held) * int(times[case]), classes))
            times[case] += 1
        return iter(numbered[self.rank :: self.num_replicas])

    def plan(self) -> list[Draw]:
        """The draws of this epoch, of all ranks together, in their order."""
        rng = np.random.default_rng((self.seed, self.epoch))
        draws = self._deal(self._counts(rng), rng)
        return [draws[i] for i in rng.permutation(len(draws))]

    def _counts(self, rng: np.random.Generator) -> np.ndarray:
        """How many of the epoch's crops lie around each class, (N + 1,)."""
        there = self.held[:, 1:].any(axis=0)
        weights = self.rule.weights.numpy().astype(float) * there
        at_zero = there & (self.rule.scores.numpy() < AT_ZERO)
        crops = self.total_size * self.crops
        background = self.background if self.held[:, 0].any() else 0.0
        organs, _ = _shared_out(crops, [1 - background, background], rng)
        first, _ = _shared_out(organs, [self.first, 1 - self.first], rng)
        first = min(organs, max(first, int(at_zero.sum()))) if at_zero.any() else 0
        counts = _shared_out(organs - first, weights, rng)
        if first:
            counts += _shared_out(first, at_zero, rng)
        return np.concatenate([[crops - organs], counts])

    def _deal(self, counts: np.ndarray, rng: np.random.Generator) -> list[Draw]:
        classes = np.repeat(np.arange(len(counts)), counts)
        classes = classes[np.lexsort((rng.random(len(classes)), self.held.sum(axis=0)[classes]))].tolist()
        times, cases, content = np.zeros(len(self.held)), [], []
        for value in classes[: self.total_size]:
            cases.append(_least(times, self.held[:, value], rng))
            content.append([value])
            times[cases[-1]] += 1
        held, filled = self.held[cases], np.ones(len(cases))
        for value in classes[self.total_size :]:
            room = filled < self.crops
            fits = room & held[:, value]
            i = _least(filled, fits if fits.any() else room, rng)
            content[i].append(value if fits.any() else int(rng.choice(np.flatnonzero(held[i]))))
            filled[i] += 1
        return [(case, tuple(own)) for case, own in zip(cases, content, strict=True)]


def classes_held(dataset: Dataset, num_classes: int, indices_key: str) -> np.ndarray:
    """Which classes each case has voxels of, bool (cases, N + 1), background first.

    Args:
        dataset: see `prepared_cases`.
        num_classes: number N of organs.
        indices_key: where a case keeps the voxels of each of the N + 1 classes, as `ClassesToIndicesd` leaves them.

    Raises:
        DataError: when a case keeps none there, or those of another number of classes.
    """

    def look(case: Mapping[str, Any]) -> list[bool]:
        found = case.get(indices_key, ())
        if len(found) != num_classes + 1:
            raise DataError(
                f"A case keeps voxels of {len(found)} classes under {indices_key!r}, expected background and "
                f"{num_classes}. Have ClassesToIndicesd find them in `crop_centres`, as in variants/cbs_sampling.json."
            )
        return [len(voxels) > 0 for voxels in found]

    return np.array(prepared_cases(dataset, look)).reshape(len(dataset), num_classes + 1)


def _shared_out(count: int, shares: Sequence[float] | np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """So many in proportion to the shares: of each the whole number below or above its due, in the mean its due."""
    shares = np.asarray(shares, float)
    order = rng.permutation(len(shares))  # else neighbours would depend on each other
    sums = np.cumsum(shares[order])
    ends = np.floor(count * (sums / sums[-1]) + rng.random()).astype(int)
    counts = np.empty(len(shares), dtype=int)
    counts[order] = np.diff(ends, prepend=0)
    return counts


def _least(times: np.ndarray, among: np.ndarray, rng: np.random.Generator) -> int:
    """One of the places of `among` with the smallest number, at random."""
    places = np.flatnonzero(among)
    return int(rng.choice(places[times[places] == times[places].min()]))
