"""Logistic regression on the features of a frozen network, each scanner left out in turn: what has to be beaten.

The protocol is that of `generalisation_table`: the same slides for a seed, the threshold of validation slides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from tqdm import trange

from shared.data import SPLITS, PatchEntry, dataset_info, load_patches
from shared.metrics import best_threshold, classification_scores, weighted_auc
from shared.networks.weights import read_torchscript
from shared.reports.provenance import MADE_UP_SLIDES
from shared.transforms import LoadPatchd
from shared.utils import DataError, atomic_path, write_json
from shared.utils.values import Whole

from .patch_runs import ALL, IN, NORMS, OUT, Names, Predictions, add_means, collect, deal_out_all, domains_left_out
from .runs import AtLeastOne
from .tables import SPREAD, markdown_grid, over_seeds, seeds_cell

METHOD, NORM = "frozen features", next(iter(NORMS))
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # of which the validation slides choose
SCORES = {"balanced_accuracy": "balanced accuracy", "auc": "AUC"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


def _resolved(patches: Sequence[PatchEntry]) -> list[PatchEntry]:
    """With the paths that a patch has in the lists of all seeds."""
    return [{**patch, "image": str(Path(patch["image"]).resolve())} for patch in patches]


def features_of(backbone: nn.Module, patches: Sequence[PatchEntry], crop_size: int, size: int) -> dict[str, np.ndarray]:
    """Of each patch, by its path, what the backbone makes of it, averaged over places: (features,).

    Args:
        backbone: gives (B, features) or (B, features, h, w) for normalised images (B, 3, size, size).
        patches: with full paths.
        crop_size, size: see `LoadPatchd`.
    """
    load, found = LoadPatchd("image", crop_size=crop_size, size=size), {}
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    with torch.no_grad():
        for start in trange(0, len(patches), 32, desc="features", unit="batch"):
            part = patches[start : start + 32]
            images = torch.stack([load({"image": patch["image"]})["image"] for patch in part])
            output: Tensor = backbone((images / 255 - mean) / std)
            pooled = output.flatten(2).mean(dim=2) if output.ndim > 2 else output
            found |= {patch["image"]: row for patch, row in zip(part, pooled.double().numpy(), strict=True)}
    return found


def logistic_regression(x: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    """Weights and, last, the bias, (features + 1,), of the least mean cross-entropy, both classes weighing the same,
    plus `penalty` times the squared norm of the weights.

    Args:
        x: (n, features), standardised.
        y: (n,) of 0 and 1, both of them.
        penalty: above 0.
    """
    fit = LogisticRegression(C=1 / (2 * penalty * len(y)), class_weight="balanced", tol=1e-8, max_iter=1000).fit(x, y)
    return np.append(fit.coef_[0], fit.intercept_)


def fit_and_score(
    features: Mapping[str, np.ndarray], lists: Mapping[str, Sequence[PatchEntry]]
) -> dict[str, Predictions]:
    """By domain what a regression says of the patches of `scored`, that learned from `training`.

    Penalty (by AUC) and threshold (by balanced accuracy) are those of `validation`.
    """
    x, y = {}, {}
    for name, patches in lists.items():
        x[name] = np.array([features[patch["image"]] for patch in patches])
        y[name] = np.array([patch["label"] for patch in patches])
    mean, std = x["training"].mean(axis=0), x["training"].std(axis=0) + 1e-6

    def probabilities(name: str, parameters: np.ndarray) -> np.ndarray:
        return expit((x[name] - mean) / std @ parameters[:-1] + parameters[-1])

    fits = [logistic_regression((x["training"] - mean) / std, y["training"], penalty) for penalty in PENALTIES]
    best = max(fits, key=lambda fit: weighted_auc(probabilities("validation", fit), y["validation"]))
    threshold, _ = best_threshold(probabilities("validation", best), y["validation"])
    found, of = probabilities("scored", best), {}
    for domain in dict.fromkeys(patch["domain"] for patch in lists["scored"]):
        own = [i for i, patch in enumerate(lists["scored"]) if patch["domain"] == domain]
        slides = [lists["scored"][i]["slide"] for i in own]
        of[domain] = Predictions(slides, y["scored"][own], found[own], threshold)
    return of


def markdown(cells: Mapping[tuple[str, ...], Any], left_out: Sequence[str]) -> str:
    """A line for each score: on each scanner left out, their mean, and the mean of those trained on meanwhile."""
    lines = []
    for score, title in SCORES.items():
        keys = [(METHOD, domain, domain, NORM, score) for domain in left_out]
        keys += [(METHOD, ALL, kind, NORM, score) for kind in (OUT, IN)]
        lines.append([title, *(seeds_cell(over_seeds(cells.get(key, {}))) for key in keys)])
    return markdown_grid(["on the scanner left out", *left_out, "mean", f"mean of those {IN}"], lines)


def frozen_features(
    dataset_dir: str,
    backbone: str,
    output_dir: str,
    datalist: str = "dataset.json",
    seeds: AtLeastOne = 5,
    scanners: Names = (),
    crop_size: Annotated[int, Whole(1)] = 64,
    size: Annotated[int, Whole(16)] = 224,
) -> None:
    """Logistic regression on the features of a frozen network, each scanner left out in turn, over seeds.

    Slides, lists and scores are those of `generalisation_table`, beside whose figures these may stand. Results:
    frozen_features.md and .json in OUTPUT_DIR.

    Args:
        dataset_dir: folder with a datalist of patches.
        backbone: TorchScript of a network that gives features, (B, features) or (B, features, h, w), for images with
            ImageNet's mean and spread.
        output_dir: for the results, and the lists of each seed.
        datalist: its name. Its own split is of no account.
        seeds: each deals out the slides anew.
        scanners: the domains to leave out in turn, separated by commas; by default all that have labels.
        crop_size: the middle of each patch that is used, in pixels.
        size: pixels that it is resampled to.
    """
    source, work = Path(dataset_dir).expanduser().resolve() / datalist, Path(output_dir).expanduser().resolve()
    file = Path(backbone).expanduser()
    network = read_torchscript(file) if file.is_file() else None
    if network is None:
        raise DataError(f"{file}: is no TorchScript. Give a network that gives features, saved by torch.jit.save.")
    domains, left_out = domains_left_out(source, scanners)
    lists = deal_out_all(source, domains, seeds, work)
    of = {seed: {name: _resolved(load_patches(path, name)) for name in SPLITS} for seed, path in lists.items()}
    every = {patch["image"]: patch for name in SPLITS for patch in of[0][name]}
    features = features_of(network, list(every.values()), crop_size, size)
    runs, reports = [], {}
    for seed, known in of.items():
        for out in left_out:
            inside = {name: [patch for patch in known[name] if patch["domain"] != out] for name in SPLITS}
            strangers = [patch for name in SPLITS for patch in known[name] if patch["domain"] == out]
            scored = {"scored": inside.pop("test") + strangers}
            found = fit_and_score(features, inside | scored)
            scores = {d: classification_scores(p.probabilities, p.labels, p.threshold) for d, p in found.items()}
            scores = {d: {score: own[score] for score in SCORES} for d, own in scores.items()}
            runs.append({"method": METHOD, "left_out": out, "seed": seed, "scores": {NORM: scores}})
            reports[METHOD, out, seed, NORM] = found
    cells = add_means(collect(runs, reports, lambda found: found), left_out, domains)
    info = dataset_info(source)
    made_up = f" {MADE_UP_SLIDES}" if info["synthetic"] else ""
    text = f"{info['name']}, logistic regression on frozen features, {seeds} seeds. {SPREAD}{made_up}\n\n"
    text += markdown(cells, left_out) + "\n"
    write_json(work / "frozen_features.json", {"dataset": info, "runs": runs})
    with atomic_path(work / "frozen_features.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)
