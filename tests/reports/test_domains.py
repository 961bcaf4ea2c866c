from __future__ import annotations

import math
from typing import Any

import pytest
from matplotlib.figure import Figure

from shared.reports.domains import (
    Column,
    DomainScoring,
    DomainSummary,
    Layout,
    Part,
    check_classes,
    domain_label,
    draw_curves,
    summarise_domains,
)

SHARE = Column("share", "share", interval=True)
LAYOUT = Layout(
    counts=("items", "slides"),
    titled=("items",),
    scores=("share", "other"),
    outcomes=("tp",),
    columns=(Column("items", "items"), SHARE, Column("other", "  other")),
)
DOMAINS = ["XR", "S360", "CS", "XR"]
ITEMS = [1.0, math.nan, 0.25, 0.5]


def part(chosen: list[int]) -> Part:
    values = [ITEMS[i] for i in chosen]
    share = sum(values) / len(values)  # NaN where one is
    low_high = None if math.isnan(share) else [share / 2, share]
    interval = {"interval": low_high, "resamples_left_out": 10 if math.isnan(share) else 0}
    scores = {"share": share, "other": 0.5, "tp": len(chosen)}
    counts = {"items": len(chosen), "slides": len(chosen)}
    return counts | LAYOUT.score(scores, {"share": interval, "other": interval})


def summarise(**options: Any) -> DomainSummary:
    how = DomainScoring(bootstrap=100, **options)
    return summarise_domains(
        DOMAINS, how, LAYOUT, part, remark=lambda name, own: LAYOUT.remark_slides(name, own, "items"), notes=["A note."]
    )


def test_a_domain_that_chose_the_epoch_is_neither_in_nor_out() -> None:
    summary = summarise(record={"train_domains": ["XR"], "val_domains": ["CS", "XR"]})
    assert {name: own["distribution"] for name, own in summary.domains.items()} == {
        "XR": "in",
        "CS": "choice",
        "S360": "out",
    }
    assert {name: own["items"] for name, own in summary.pooled.items()} == {
        "in distribution": 2,
        "chosen by": 1,
        "out of distribution": 1,
        "all": 4,
    }
    assert [row["distribution"] for row in summary.rows()] == ["in", "choice", "out", "in", "choice", "out", ""]
    (note,) = (n for n in summary.how.notes("scored") if "chosen" in n)
    assert note.endswith('The epoch was chosen by CS, not trained on: marked "choice", and counted in neither.')
    plain = summarise(record={"train_domains": ["XR", "CS"], "val_domains": ["CS", "XR"]})
    assert "chosen" not in " ".join(plain.how.notes("scored"))


def test_domains_groups_and_means() -> None:
    summary = summarise(train_domains=["XR", "CS"])
    assert {name: own["distribution"] for name, own in summary.domains.items()} == {
        "CS": "in",
        "XR": "in",
        "S360": "out",
    }
    assert list(summary.domains) == ["CS", "XR", "S360"]  # those that were trained on come first
    assert {name: own["items"] for name, own in summary.pooled.items()} == {
        "in distribution": 3,
        "out of distribution": 1,
        "all": 4,
    }
    assert summary.pooled["in distribution"]["share"]["value"] == pytest.approx((1 + 0.5 + 0.25) / 3)
    assert summary.domains["S360"]["share"]["value"] is None
    assert summary.means == {
        "in distribution": {"domains": 2, "share": 0.5, "other": 0.5},
        "out of distribution": {"domains": 1, "share": None, "other": 0.5},
        "all": {"domains": 3, "share": 0.5, "other": 0.5},
    }
    assert {own["resamples"] for own in summary.parts.values()} == {100}


def test_where_nothing_is_known_there_is_one_group() -> None:
    summary = summarise()
    assert list(summary.domains) == ["CS", "S360", "XR"]
    assert list(summary.pooled) == ["all"] == list(summary.means)
    assert {own["distribution"] for own in summary.domains.values()} == {""}
    assert list(summarise(train_domains=["XR", "CS", "S360"]).pooled) == ["in distribution", "all"]


def test_the_record_knows_what_was_trained_on() -> None:
    record = {"train_domains": ["XR"]}
    assert DomainScoring(record=record).train_domains == ["XR"]
    assert DomainScoring(record=record, train_domains=("CS",)).train_domains == ["CS"]
    assert DomainScoring(record=record, train_domains=()).train_domains == []
    assert DomainScoring().train_domains is None


def test_table() -> None:
    lines = summarise(train_domains=["XR", "CS"]).score_table().split("\n")
    assert lines == [
        "                              items  share                   other",
        "CS                       in       1  0.250 [0.125, 0.250]    0.500",
        "XR                       in       2  0.750 [0.375, 0.750]    0.500",
        "S360                     out      1      -                   0.500",
        "in distribution                   3  0.583 [0.292, 0.583]    0.500",
        "out of distribution               1      -                   0.500",
        "all                               4      -                   0.500",
        "mean of in distribution              0.500                   0.500",
        "mean of all                          0.500                   0.500",
    ]


def test_rows() -> None:
    rows = {row["domain"]: row for row in summarise(train_domains=["XR", "CS"], threshold=0.123456).rows()}
    assert rows["in distribution"] == {
        "domain": "in distribution",
        "distribution": "in",
        "items": 3,
        "slides": 3,
        "share": 0.5833,
        "share_low": 0.2917,
        "share_high": 0.5833,
        "other": 0.5,
        "other_low": 0.2917,
        "other_high": 0.5833,
        "tp": 3,
        "threshold": 0.123456,
    }
    assert (rows["S360"]["share"], rows["S360"]["share_low"], rows["S360"]["distribution"]) == (None, None, "out")
    assert [row["distribution"] for row in rows.values()] == ["in", "in", "out", "in", "out", ""]


def test_content() -> None:
    dataset = {"name": "toy"}
    options = {"class_names": ("a", "b"), "threshold": 1, "threshold_from": "file", "adapted": "true"}
    summary = summarise(dataset=dataset, train_domains=("XR",), **options)
    content = summary.content()
    assert list(content)[:8] == [
        "dataset",
        "class_names",
        "threshold",
        "train_domains",
        "domains",
        "pooled_items",
        "mean_over_domains",
        "intervals",
    ]
    assert (content["class_names"], content["threshold"]) == (["a", "b"], {"value": 1.0, "from": "file"})
    assert (content["train_domains"], content["adapted_batch_norm"]) == (["XR"], True)
    assert content["intervals"]["method"] == "percentile bootstrap over slides"
    assert (content["domains"], content["pooled_items"]) == (summary.domains, summary.pooled)
    assert summary.title == "toy, 4 items"


def test_metrics() -> None:
    metrics = summarise(train_domains=["XR"]).metrics(("share", "other"), each="share")
    assert list(metrics) == ["share", "other", "share_CS", "share_S360", "share_XR"]
    assert (metrics["other"], metrics["share_CS"], metrics["share_XR"]) == (0.5, 0.25, 0.75)
    assert math.isnan(metrics["share"])
    assert math.isnan(metrics["share_S360"])


def test_notes() -> None:
    known, unknown = DomainScoring(train_domains=[], adapted=True), DomainScoring()
    assert [note.split(" ")[0] for note in known.notes("read")] == ["Brackets:", "In", "Batch"]
    assert known.notes("read")[-1].endswith("before they were read.")
    assert [note.split(" ")[0] for note in unknown.notes("read")] == ["Brackets:", "What"]


def test_remarks_come_before_the_notes() -> None:
    assert summarise().notes == [
        "CS has items from a single slide: no intervals.",
        "S360 has items from a single slide: no intervals.",
        "A note.",
    ]


@pytest.mark.parametrize(("left_out", "remarked"), [(5, False), (6, True)])
def test_resamples_left_out(left_out: int, remarked: bool) -> None:
    scores = {"share": {"resamples_left_out": 0}, "other": {"resamples_left_out": left_out}}
    remarks = LAYOUT.remark_slides("XR", {"slides": 2, "resamples": 100, **scores}, "items")
    text = f"XR has too few slides for good intervals: {left_out} of 100 resamples lack items and are left out."
    assert remarks == [text] * remarked


def test_curves() -> None:
    summary, axes = summarise(train_domains=["XR", "CS"]), Figure().subplots()

    def curve(name: str, own: Part) -> tuple[list[float], list[float], tuple[float, float] | None]:
        return [0, 1], [0, own["share"]["value"]], (0.5, 0.25) if name == "XR" else None

    draw_curves(axes, summary, SHARE, curve, lacking="nothing")
    first, second, dot, third = axes.lines
    assert [line.get_label() for line in (first, second, third)] == [
        "CS (in): share 0.250",
        "XR (in): share 0.750",
        "S360 (out): nothing",
    ]
    assert [line.get_linestyle() for line in (first, second, third)] == ["-", "-", "--"]
    assert second.get_ydata()[1] == 0.75
    assert (dot.get_xydata().tolist(), dot.get_color()) == ([[0.5, 0.25]], second.get_color())
    assert len({line.get_color() for line in (first, second, third)}) == 3


def test_labels() -> None:
    assert domain_label("XR", {"distribution": "in"}) == "XR (in)"
    assert domain_label("XR", {"distribution": ""}) == domain_label("XR", {}) == "XR"


def test_classes() -> None:
    assert check_classes(0, ["a", "b"]) == ("a", "b")
    for threshold, names, message in (
        (1.5, ("a", "b"), r"threshold must be in \[0, 1\], got 1.5"),
        (0.5, ("a", "b", "c"), "class_names must be two names"),
        (0.5, "ab", "class_names must be two names"),
        (0.5, ("a", "a"), "class_names must be two names"),
    ):
        with pytest.raises(ValueError, match=message):
            DomainScoring(threshold=threshold, class_names=names)
