from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from shared.engines import LISA, BatchMixing, DomainMix
from shared.utils import DataError

LABELS = [0, 0, 1, 1, 0, 1, 0, 1, 1]
DOMAINS = ["XR", "CS", "XR", "CS", "XR", "XR", "GT", "XR", "CS"]


def batch() -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """Images that say who they are: pixel (i, 0) is 1 in the i-th alone."""
    labels = torch.tensor(LABELS, dtype=torch.float32)[:, None]
    return torch.eye(len(LABELS)).reshape(-1, 1, len(LABELS), 1), labels.clone(), labels, DOMAINS


def partners_and_weights(mixing: BatchMixing, rounds: int) -> tuple[dict[int, set[int]], Tensor]:
    """With whom each sample was mixed, and with which weight each stayed itself."""
    found: dict[int, set[int]] = {i: set() for i in range(len(LABELS))}
    weights = []
    for _ in range(rounds):
        images, target, labels, domains = batch()
        mixed, soft = mixing(images, target, labels, domains)
        assert (mixed.shape, soft.shape) == (images.shape, target.shape)
        shares = mixed.reshape(len(LABELS), -1)  # of each sample in each
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(len(LABELS)))
        torch.testing.assert_close(soft, shares @ labels)  # labels are mixed as the images are
        for i, row in enumerate(shares):
            others = [j for j in row.nonzero().flatten().tolist() if j != i]
            found[i] |= set(others)
            assert len(others) <= 1
            weights += [row[i].item()] if others else []
    return found, torch.tensor(weights)


def pairs(allowed: Any) -> dict[int, set[int]]:
    return {i: {j for j in range(len(LABELS)) if allowed(i, j)} for i in range(len(LABELS))}


CASES = {
    "domain_mix": (DomainMix(DOMAINS), lambda i, j: DOMAINS[i] != DOMAINS[j]),
    "same label": (LISA(DOMAINS, p_sel=1.0), lambda i, j: LABELS[i] == LABELS[j] and DOMAINS[i] != DOMAINS[j]),
    "same domain": (LISA(DOMAINS, p_sel=0.0), lambda i, j: LABELS[i] != LABELS[j] and DOMAINS[i] == DOMAINS[j]),
}


@pytest.mark.parametrize("case", CASES)
def test_each_partner_that_is_allowed_comes_and_no_other(case: str) -> None:
    mixing, allowed = CASES[case]
    torch.manual_seed(0)
    found, _ = partners_and_weights(mixing, 150)
    assert found == pairs(allowed)
    assert case != "same domain" or found[6] == set()  # the only one of its scanner stays as it is


def test_both_kinds_of_pairs_a_batch_of_either() -> None:
    torch.manual_seed(0)
    kinds = []
    for _ in range(60):
        found, _ = partners_and_weights(LISA(DOMAINS), 1)
        across = [DOMAINS[i] != DOMAINS[j] for i, own in found.items() for j in own]
        assert len(set(across)) == 1
        kinds.append(across[0])
    assert 15 < sum(kinds) < 45


@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_weights_are_of_the_beta_distribution(alpha: float) -> None:
    torch.manual_seed(0)
    _, weights = partners_and_weights(DomainMix(DOMAINS, alpha), 400)
    assert weights.mean().item() == pytest.approx(0.5, abs=0.02)
    assert weights.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


def test_the_generator_of_the_cpu_decides() -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(LISA(DOMAINS)(*batch()))
    assert torch.equal(runs[0][0], runs[1][0])


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [(LISA, {"p_sel": 1.5}, "p_sel must be from 0 to 1, got 1.5"), (DomainMix, {"alpha": 0}, "alpha must be above 0")],
)
def test_bad_options(kind: type[BatchMixing], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(DOMAINS, **options)


def test_bad_domains() -> None:
    with pytest.raises(DataError, match=r"LISA needs two or more domains to train on, found \['XR'\]"):
        LISA(["XR"])
    with pytest.raises(DataError, match="of the domain XR, expected one of CS, GT"):
        DomainMix(["CS", "GT"])(*batch())
