"""The table of an inference's results, to which further ones into the same folder add theirs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..utils import DataError, name_full_disk, write_csv, write_json
from ..utils.text import differences, first_few

Row = dict[str, Any]


@dataclass
class ResultTable:
    """`NAME.json`, with what holds for all rows, and `NAME.csv`, for people.

    While an inference runs, its rows go to `NAME.unfinished.jsonl` as well: should it be killed, the next one finds
    them there.

    Args:
        folder: of the files.
        name: `summary` or `predictions`.
        key: of the rows in the JSON file.
        head: what all rows have in common: weights, settings.

    Attributes:
        rows: of earlier inferences, by case.
        failed: reasons of earlier failures, by case.
        earlier: what those have in common.
    """

    folder: Path
    name: str
    key: str
    head: Mapping[str, Any] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    earlier: dict[str, Any] = field(default_factory=dict)

    def read(self) -> ResultTable:
        """Take over the rows of earlier inferences.

        Raises:
            DataError: when they were made with other weights or settings, or the file is another one, such as the
                summary of an evaluation.
        """
        content = self._json()
        rows, failed = content.pop(self.key, []), content.pop("failed", [])
        try:
            self.rows = {row["case"]: row for row in rows}
            self.failed = {entry["case"]: entry["reason"] for entry in failed}
        except (TypeError, KeyError) as e:
            raise self._other(f"what stands under {self.key} or failed is no list of cases") from e
        self.earlier = content
        for line in self._lines():
            if "head" in line:
                self.earlier |= line["head"]
            else:
                self.rows[line["case"]] = line
                self.failed.pop(line["case"], None)
        self._check()
        return self

    def begin(self) -> None:
        """Say whose rows follow. In a distributed run rank 0 does it."""
        self._append([{"head": self.head}])

    def add(self, rows: Iterable[Row]) -> None:
        """Note rows as soon as there are any. Each rank may."""
        self._append(rows)

    def write(
        self, rows: Sequence[Row], failed: Sequence[tuple[str, str]], columns: Sequence[str], **more: Any
    ) -> None:
        """Write the files of all rows and failures, the earlier ones first; those of the same cases give way.

        Args:
            rows: of this inference.
            failed: (case, reason) of this inference.
            columns: of the CSV file.
            more: what stands before everything else in the JSON file.
        """
        own = {row["case"] for row in rows}
        rows = [*(row for case, row in self.rows.items() if case not in own), *rows]
        ours = own | {case for case, _ in failed}
        failed = [*((case, reason) for case, reason in self.failed.items() if case not in ours), *failed]
        faults = [{"case": case, "reason": reason} for case, reason in failed]
        lines = rows + [{**fault, "status": "failed"} for fault in faults if "reason" in columns]
        table = [{key: value for key, value in line.items() if key in columns} for line in lines]
        write_csv(self.folder / f"{self.name}.csv", table, columns)
        write_json(self.folder / f"{self.name}.json", {**more, **self.head, self.key: rows, "failed": faults})
        self._unfinished.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the files: there is nothing to say."""
        for ending in (".csv", ".json", ".unfinished.jsonl"):
            (self.folder / f"{self.name}{ending}").unlink(missing_ok=True)

    @property
    def _unfinished(self) -> Path:
        return self.folder / f"{self.name}.unfinished.jsonl"

    def _json(self) -> dict[str, Any]:
        try:
            content = json.loads((self.folder / f"{self.name}.json").read_bytes())
        except (OSError, ValueError):  # what is damaged may be replaced
            return {}
        if not isinstance(content, dict) or self.key not in content:
            raise self._other(f"it has no {self.key}")
        return content

    def _other(self, why: str) -> DataError:
        return DataError(
            f"{self.folder / self.name}.json: is not from an inference of this kind ({why}) and would be replaced. "
            "Choose another --output_dir."
        )

    def _lines(self) -> list[Row]:
        try:
            lines = self._unfinished.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return []
        found = []
        for line in filter(None, lines):
            try:
                found.append(json.loads(line))
            except ValueError:  # the last one of a run that was killed
                continue
        return found

    def _append(self, lines: Iterable[Row]) -> None:
        # a line that a killed process has not finished ends here
        text = "".join(f"\n{json.dumps(line, allow_nan=False)}" for line in lines) + "\n"
        with name_full_disk(self._unfinished), self._unfinished.open("a", encoding="utf-8") as file:
            file.write(text)

    def _check(self) -> None:
        own, theirs = (_flat(head) for head in (json.loads(json.dumps(self.head)), self.earlier))
        if own.get("weights") and own["weights"] == theirs.get("weights"):
            theirs.pop("model", None)  # the record of the same weights may have come since
        differing = [key for key in own if key in theirs and theirs[key] != own[key]]
        if differing:
            pairs = [pair for key in differing if key != "model" for pair in differences(key, theirs[key], own[key])]
            what = [f"{key} is {there} there and {here} here" for key, there, here in pairs]
            raise DataError(
                f"{self.folder / self.name}.json: holds results of other weights or settings: "
                f"{first_few(what, 3) or 'the record of the weights differs'}. Choose another --output_dir, or remove "
                "what is in this one."
            )


def _flat(head: Mapping[str, Any]) -> dict[str, Any]:
    """The settings beside what else there is; what an older version does not say is not compared."""
    return {**head.get("settings", {}), **{key: value for key, value in head.items() if key != "settings"}}
