"""Segment the CTs of a PACS and put the results beside them."""

from __future__ import annotations

import datetime
import json
import logging
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydicom
from command_line import run_command

from shared.data.dicom_series import match_series, series_of
from shared.data.sources import weights_digest
from shared.dicom import DicomWeb, Outcome, SeriesEntry, ServerAwayError
from shared.dicom.origin import MANUFACTURER
from shared.utils import DataError, fault_list, temporary_folder, text_table
from shared.utils.values import Choice, Number, Several, Text, Whole

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = ("abdominal_unetr_cbs", "abdominal_lambda3d_cbs")
OBJECTS = {"seg": "SEG", "sr": "SR", "rtstruct": "RTSTRUCT"}  # and their modalities
LONGEST = 500  # characters of what a run says of its failure

logger = logging.getLogger("shared.pacs")
T = TypeVar("T")


@dataclass
class Station:
    """What is done with the CT series of a server.

    Attributes:
        web: the server.
        bundle: name of the bundle that runs.
        weights: its `model.pt`.
        objects: what is made, of `OBJECTS`.
        variants: of its configs, behind its inference.
        device: where the network runs; empty: the GPU if there is one.
        chosen: UID, number or part of the description of the series that are meant; empty: the largest CT of a study.
        replace: delete our earlier results once the new ones are stored.
        again: also series whose results are there.
        patience: seconds between two attempts while the server is away; 0: it is an error.
    """

    web: DicomWeb
    bundle: str
    weights: Path
    objects: Sequence[str]
    variants: Sequence[str] = ()
    device: str = ""
    chosen: str = ""
    replace: bool = False
    again: bool = False
    patience: float = 0.0

    def __post_init__(self) -> None:
        metadata = json.loads((ROOT / "bundles" / self.bundle / "configs" / "metadata.json").read_bytes())
        self.made_by = {  # as the results have it
            "Manufacturer": MANUFACTURER,
            "ManufacturerModelName": self.bundle,
            "SoftwareVersions": metadata["version"],
            "DeviceSerialNumber": weights_digest(self.weights) or "",
        }

    def patiently(self, action: Callable[[], T]) -> T:
        """What `action` gives, once the server is there."""
        away = False
        while True:
            try:
                found = action()
            except ServerAwayError as e:
                if not self.patience:
                    raise
                if not away:
                    logger.warning("%s Waiting for it.", e)
                away = True
                time.sleep(self.patience)
            else:
                if away:
                    logger.warning("%s: is back.", self.web.url)
                return found

    def choose(self, entries: Sequence[SeriesEntry]) -> list[SeriesEntry]:
        """Of the series of a study, the CTs that are meant."""
        cts = [entry for entry in entries if entry.modality == "CT"]
        if not self.chosen:
            return sorted(cts, key=lambda e: (-e.instances, len(e.number), e.number))[:1]
        match = {e.series: match_series(self.chosen, e.series, e.number, e.description) for e in cts}
        best = max(match.values(), default=0)
        return [entry for entry in cts if best and match[entry.series] == best]

    def is_done(self, entry: SeriesEntry) -> bool:
        """Whether these results are in the PACS, of all images that the series has by now.

        The SR is stored last, and the only one that is always made.
        """
        there = self.web.results(entry.study, entry.series, self.made_by, entry.instances)
        return "SR" in there if "sr" in self.objects else there >= {OBJECTS[name] for name in self.objects}

    def handle(self, entry: SeriesEntry) -> dict[str, Any]:
        """Do a series, and say in a row of the table what has become of it."""
        start = time.monotonic()
        row = {"series": entry.series, "number": entry.number, "images": entry.instances, "state": "failed"}
        why = ""
        try:
            if not self.again and self.patiently(lambda: self.is_done(entry)):
                row["state"], outcomes = "there before", []
            else:
                outcomes = self.make(entry)
                row["state"] = "stored" if all(o.is_there for o in outcomes) else "failed"
            why = "; ".join(f"{o.kind}: {o.reason}" for o in outcomes if o.reason)
            row["objects"] = ", ".join(f"{o.kind.removesuffix(' Storage')} {o.state}" for o in outcomes)
        except DataError as e:
            row["objects"], why = "", " ".join(str(e).split())
        row["seconds"] = round(time.monotonic() - start)
        print(" ".join(map(str, filter(None, (entry.series, row["state"], row["objects"], why)))), flush=True)
        return row | {"why": why}

    def make(self, entry: SeriesEntry) -> list[Outcome]:
        """Fetch a series, run the bundle on it, store what that gives. All files are private, and gone afterwards."""
        with temporary_folder(tempfile.gettempdir()) as folder:
            (images := folder / "images").mkdir()
            self.patiently(lambda: self.web.fetch(entry.study, entry.series, images))
            series_of(images, entry.series)  # what is no CT ends here, before the network is loaded
            self.infer(images, folder / "results", folder / "log.txt")
            found = [pydicom.dcmread(path) for path in sorted((folder / "results").rglob("*.dcm"))]
            if not found:
                raise DataError(f"{self.bundle} has made no DICOM object of series {entry.series}.")
            found.sort(key=lambda dataset: dataset.Modality == "SR")  # it refers to the others, and says: all done
            return self.patiently(lambda: self.web.store(found, self.replace))

    def infer(self, images: Path, results: Path, log: Path) -> None:
        """Run the bundle's inference in a process of its own, which ends with this one."""
        configs = ["configs/inference.json", *(f"configs/variants/{name}.json" for name in (*self.variants, "dicom"))]
        options = {"input": images, "output_dir": results, "ckpt_path": self.weights, "keep_going": "false"}
        options |= {"dicom": list(self.objects)} | ({"device": self.device} if self.device else {})
        command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(configs)]
        command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
        place = ROOT / "bundles" / self.bundle
        with log.open("w") as file, subprocess.Popen(command, cwd=place, stdout=file, stderr=file) as process:
            try:
                status = process.wait()
            except BaseException:  # an interrupt, as of who ends the service
                process.terminate()
                process.wait()
                raise
        if status:
            said = re.split(r"^Error: ", log.read_text(errors="replace"), flags=re.MULTILINE)[-1]
            raise DataError(f"{self.bundle} fails (status {status}): {' '.join(said.split())[-LONGEST:]}")


def main(
    url: str,
    weights: str,
    study: str | None = None,
    patient: str | None = None,
    bundle: Annotated[str, Choice(BUNDLES)] = BUNDLES[0],
    objects: Annotated[Sequence[str], Several(Choice(tuple(OBJECTS)), distinct=True)] = tuple(OBJECTS),
    series: Annotated[str | None, Text()] = None,
    variants: Annotated[Sequence[str], Several(Text(), empty=True)] = (),
    device: Annotated[str | None, Text()] = None,
    replace: bool = False,
    again: bool = False,
    watch: bool = False,
    days: Annotated[int, Whole(0)] = 1,
    interval: Annotated[float, Number(above=0)] = 60.0,
    timeout: Annotated[float, Number(above=0)] = 60.0,
) -> None:
    """Fetch CT series from a PACS by DICOMweb, segment them, and store segmentation, report and contours beside them.

    Which log-in and certificate a server needs stands in the environment: DICOMWEB_USER and DICOMWEB_PASSWORD, or
    DICOMWEB_TOKEN; DICOMWEB_CA_FILE, a PEM file, for a certificate that the system does not trust. Series whose results
    are there, of the same weights, are skipped. The exit status is 1 if a series failed.

    Args:
        url: where the server's DICOMweb services begin, as in http://127.0.0.1:8042/dicom-web.
        weights: the model.pt that training wrote; the record beside it goes along.
        study: UID of the study.
        patient: id of the patient, in place of --study; all of the patient's studies are done.
        bundle: the one that the weights are of.
        objects: what is made, as in seg,sr: segmentation, report with volumes, contours for radiotherapy.
        series: UID, number or part of the description; all that match it are done. By default the CT series with the
            most images of each study.
        variants: of the bundle's configs, as in demo, which go behind its inference.json.
        device: where the network runs, as in cuda:1 or cpu; by default the GPU if there is one.
        replace: once a result is stored, delete our earlier one of the same images and kind, if the server can.
        again: also do series whose results are there.
        watch: go on, with new studies and with what comes late, until SIGTERM or Ctrl-C ends the process. A server that
            is away is waited for. A study is done when nothing has come to it for INTERVAL.
        days: which studies --watch looks at without --study and --patient: those of the last days, 0 for today's; by
            the date that they have.
        interval: seconds between two looks at the server.
        timeout: seconds after which a server that says nothing is away.
    """
    if (study is None) == (patient is None) and not (watch and study is None):
        raise DataError("give --study or --patient, one of them; with --watch, one or none. See pacs.py --help.")
    if not (path := Path(weights).resolve()).is_file():
        raise DataError(f"{weights}: there is no such file of weights. Give the model.pt that training writes.")
    web, patience = DicomWeb(url, timeout), interval if watch else 0.0
    station = Station(web, bundle, path, objects, variants, device or "", series or "", replace, again, patience)

    def studies() -> list[str]:
        since = datetime.date.today() - datetime.timedelta(days) if patient is None else None
        return [study] if study else web.studies(patient, since)

    if watch:
        keep_watching(station, studies)
    else:
        do_once(station, studies())


def do_once(station: Station, studies: Sequence[str]) -> None:
    """Do what the server has, and show the table.

    Raises:
        DataError: when there is nothing to do, or a series failed.
    """
    there = {study: series for study in studies if (series := station.web.series(study))}
    if not there:
        what = f"is no study {studies[0]}" if studies else "are no studies of this patient"
        raise DataError(f"{station.web.url}: there {what}. Look at the id, and at the address of the server.")
    entries = [entry for series in there.values() for entry in station.choose(series)]
    if not entries:
        wanted = f" that matches {station.chosen}" if station.chosen else ""
        found = ", ".join(sorted({f"{e.modality} {e.number}".strip() for series in there.values() for e in series}))
        raise DataError(f"{station.web.url}: there is no CT series{wanted}, but {found}. Nothing is done.")
    rows: list[dict[str, Any]] = []
    try:
        for entry in entries:
            rows.append(station.handle(entry))
    finally:
        if rows:
            print("\n" + text_table([{name: row[name] for name in row if name != "why"} for row in rows]))
    if failed := [f"{row['series']}: {row['why']}" for row in rows if row["state"] == "failed"]:
        raise DataError(f"{len(failed)} of {len(entries)} series failed:{fault_list(failed)}")


def keep_watching(station: Station, studies: Callable[[], list[str]]) -> None:
    """Do what comes to the server, each series once, until SIGTERM or Ctrl-C."""
    states: list[str] = []
    try:
        print(f"watching {station.web.url}", flush=True)
        for entry in arrivals(station, studies):
            states.append(station.handle(entry)["state"])
    except KeyboardInterrupt:
        print(f"stopped: {len(states)} series, {states.count('failed')} of them failed")


def arrivals(station: Station, studies: Callable[[], list[str]]) -> Iterator[SeriesEntry]:
    """The chosen series of studies to which nothing has come between two looks, each once unless images come later."""
    before: dict[str, set[tuple[str, int]]] = {}
    given: set[SeriesEntry] = set()
    while True:
        for study in station.patiently(studies):
            entries = station.patiently(lambda study=study: station.web.series(study))
            images = {(entry.series, entry.instances) for entry in entries if entry.modality == "CT"}
            if before.get(study) == images:
                new = [entry for entry in station.choose(entries) if entry not in given]
                given |= set(new)
                yield from new
            before[study] = images
        time.sleep(station.patience)


if __name__ == "__main__":
    run_command(main)
