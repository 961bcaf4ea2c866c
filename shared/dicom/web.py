"""A PACS that speaks DICOMweb (DICOM PS3.18): what it holds, its files as they are, and what is put there."""

from __future__ import annotations

import datetime
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import requests
from dicomweb_client.api import DICOMwebClient
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from ..data.dicom_headers import read_header
from ..data.dicom_series import UID_FORM
from ..utils import DataError, name_full_disk
from .connection import Connection, ServerAwayError, status

logger = logging.getLogger(__name__)

STUDY, SERIES, INSTANCE, MODALITY = "0020000D", "0020000E", "00080018", "00080060"
NUMBER, DESCRIPTION, COUNT, PATIENT = "00200011", "0008103E", "00201209", "00100020"
AS_STORED = (("application/dicom", "*"),)  # servers cannot make every transfer syntax of every other
NOT_THIS_ONE = {400, 409, 413, 415, 422}  # answers that concern one object, and not the next
RESULTS = {"SEG", "SR", "RTSTRUCT", "ANN"}  # modalities of what is made of images
MAKER = ("Manufacturer", "ManufacturerModelName")
DUPLICATE = 0x0111
# Reasons of a failure, PS3.18 table I.2-2 and PS3.4 table B.2-1, by the bits that say them.
REASONS = {
    0x0110: (0xFFFF, "processing failure"),
    DUPLICATE: (0xFFFF, "an object of this UID is there"),
    0x0122: (0xFFFF, "it does not take objects of this SOP class"),
    0x0124: (0xFFFF, "it does not allow this"),
    0x0272: (0xFFFF, "it does not know this transfer syntax"),
    0xA700: (0xFF00, "it is out of resources"),
    0xA900: (0xFF00, "the object does not fit its SOP class"),
    0xC000: (0xF000, "it cannot read the object"),
}


@dataclass(frozen=True)
class SeriesEntry:
    """A series as a server lists it; text is empty where it does not say."""

    study: str
    series: str
    modality: str
    number: str
    description: str
    instances: int


@dataclass(frozen=True)
class Outcome:
    """What has become of an object that was to be stored.

    Attributes:
        uid: its SOP instance UID.
        series: its series' UID.
        kind: the name of its SOP class.
        state: "stored", "already there" or "refused".
        reason: why it was refused, or why an earlier result of ours stays; else empty.
        removed: UIDs of the series of ours that it replaces.
    """

    uid: str
    series: str
    kind: str
    state: str
    reason: str = ""
    removed: tuple[str, ...] = ()

    @property
    def is_there(self) -> bool:
        return self.state != "refused"


def store(url: str, objects: Sequence[pydicom.Dataset | str | os.PathLike], *, replace: bool = False) -> list[Outcome]:
    """Put objects into a PACS; those whose UIDs it has are left alone.

    Log-in and certificate are taken from the environment, see `DicomWeb`.

    Args:
        url: of the server, as for `DicomWeb`.
        objects: data sets, or paths of DICOM files.
        replace: delete, when an object is there, the series of its study that the same software made of the same
            images in an earlier run, see `DicomWeb.store`.

    Returns:
        An outcome for each, in their order: one that is refused does not keep back the others.

    Raises:
        ServerAwayError: when the server cannot be reached.
        DataError: when a file cannot be read, or the log-in is wrong.
    """
    return DicomWeb(url).store(objects, replace=replace)


class DicomWeb:
    """A DICOMweb server.

    The environment says how to log in: DICOMWEB_USER and DICOMWEB_PASSWORD, or DICOMWEB_TOKEN (a bearer token); and
    DICOMWEB_CA_FILE names the certificates to trust, PEM, where those of the system are not enough (self-signed ones).

    Args:
        url: where its services begin, as in https://pacs.example:8042/dicom-web.
        timeout: seconds without an answer after which it counts as away.
        attempts: how often a request is tried that fails for a passing reason.
        wait: seconds before the second attempt, twice as many before each further one.

    Raises:
        DataError: for an address or settings in the environment that cannot be meant.
    """

    def __init__(self, url: str, timeout: float = 60.0, attempts: int = 4, wait: float = 1.0) -> None:
        self._server = Connection(url, timeout, attempts, wait)
        self.url, session, limits = self._server.url, self._server.session, (min(timeout, 10.0), timeout)
        self._client = DICOMwebClient(self.url, session, permissive_uid=True, timeout=limits)
        self._client.set_http_retry_params(retry=False)  # it knows no other fault than an answer that says so

    def studies(self, patient: str | None = None, since: datetime.date | None = None) -> list[str]:
        """UIDs of the studies, of a patient's id or not before a day, as far as given."""
        if patient is not None and (not patient.strip() or set("*?\\") & set(patient)):
            raise DataError("the patient's id is empty or has one of * ? \\, which mean others too. Expected one id.")
        asked = {"PatientID": patient} if patient else {}
        asked |= {"StudyDate": f"{since:%Y%m%d}-"} if since else {}
        found = self._search(self._client.search_for_studies, STUDY, search_filters=asked)
        others = {uid for uid, entry in found.items() if patient and _text(entry, PATIENT) not in ("", patient.strip())}
        return [uid for uid in found if uid not in others]

    def series(
        self, study: str | None = None, modality: str | None = None, asked: Mapping[str, str] | None = None
    ) -> list[SeriesEntry]:
        """The series of a study, or of all studies, by modality if given.

        Args:
            study: its UID; None: all.
            modality: of the series.
            asked: what else they have to have, keyword → value, such as SeriesInstanceUID, as far as the server
                can search for it.
        """
        asked = {**(asked or {}), **({"Modality": modality} if modality else {})}
        where = {} if study is None else {"study_instance_uid": checked_uid(study)}
        found = self._search(self._client.search_for_series, SERIES, search_filters=asked, **where)
        entries = [_series_entry(study, entry) for entry in found.values()]
        return [entry for entry in entries if modality in (None, entry.modality) and UID_FORM.fullmatch(entry.study)]

    def instances(self, study: str, series: str) -> list[str]:
        """SOP instance UIDs of a series."""
        where = {"study_instance_uid": checked_uid(study), "series_instance_uid": checked_uid(series)}
        return list(self._search(self._client.search_for_instances, INSTANCE, **where))

    def fetch(self, study: str, series: str, folder: str | os.PathLike) -> list[Path]:
        """Write the files of a series, in the transfer syntaxes that they are stored in, as UID.dcm.

        Args:
            study: its UID.
            series: its UID.
            folder: an existing one.

        Returns:
            Their paths, in the order in which the server lists them.

        Raises:
            ServerAwayError: when the server goes away and does not come back.
            DataError: when there is no such series, or it does not come whole.
        """
        wanted, folder, there = self.instances(study, series), Path(folder), {}
        if not wanted:
            raise DataError(f"{self.url}: has no series {series} in study {study}.")

        def take() -> None:
            try:
                for dataset in self._client.iter_series(study, series, AS_STORED):
                    _keep(dataset, wanted, folder, there)
            except (ValueError, InvalidDicomError) as e:  # what is left of a file where it breaks off
                raise requests.ConnectionError from e

        def take_one(uid: str) -> None:
            _keep(self._client.retrieve_instance(study, series, uid, AS_STORED), wanted, folder, there)

        try:
            self._server.ask(take, attempts=1)
        except ServerAwayError as e:
            logger.info("%s %d of %d files of series %s have come.", e, len(there), len(wanted), series)
        for uid in (uid for uid in wanted if uid not in there):
            self._server.ask(lambda uid=uid: take_one(uid))
        if missing := [uid for uid in wanted if uid not in there]:
            raise DataError(
                f"{self.url}: of {len(wanted)} files of series {series}, {len(missing)} do not come whole, such as "
                f"{missing[0]}. Look at the series in the PACS."
            )
        return [there[uid] for uid in wanted]

    def store(self, objects: Sequence[pydicom.Dataset | str | os.PathLike], replace: bool = False) -> list[Outcome]:
        """Put objects into the PACS, see the function of this name.

        With `replace`, when an object is there, series are deleted that are of its study and modality, name the same
        manufacturer and model as it does, and refer to one of the image series that it refers to. Servers delete by
        the usual extension of DICOMweb, or by Orthanc's own interface, which lies beside its `dicom-web`; where
        neither works, the outcome's reason says so.
        """
        return [self._store(_encoded(each), replace) for each in objects]

    def _store(self, dataset: pydicom.Dataset, replace: bool) -> Outcome:
        about = (dataset.SOPInstanceUID, dataset.SeriesInstanceUID, UID(dataset.SOPClassUID).name)
        if self._holds(dataset):
            state, reason = "already there", ""
        else:
            state, reason = self._post(dataset)
        if state == "refused" or not replace:
            return Outcome(*about, state, reason)
        removed, kept = self._remove_earlier(dataset)
        reason = f"{self.url} does not delete: {', '.join(kept)} stays" if kept else ""
        return Outcome(*about, state, reason, removed)

    def _holds(self, dataset: pydicom.Dataset) -> bool:
        return dataset.SOPInstanceUID in self.instances(dataset.StudyInstanceUID, dataset.SeriesInstanceUID)

    def _post(self, dataset: pydicom.Dataset) -> tuple[str, str]:
        """State and reason of an object that is sent."""

        def post() -> pydicom.Dataset | str:
            try:
                return self._client.store_instances([dataset])
            except requests.HTTPError as e:
                answer = _store_answer(e.response)
                if answer is None and e.response.status_code not in NOT_THIS_ONE:
                    raise
                return answer or f"it answers {status(e.response.status_code)}"

        answer = self._server.ask(post)
        if isinstance(answer, str):
            return "refused", answer
        uid = dataset.SOPInstanceUID
        for item in answer.get("FailedSOPSequence", ()):
            if item.get("ReferencedSOPInstanceUID", uid) == uid:
                code = int(item.get("FailureReason", 0x0110))
                return ("already there", "") if code == DUPLICATE else ("refused", failure_text(code))
        named = [item.get("ReferencedSOPInstanceUID") for item in answer.get("ReferencedSOPSequence", ())]
        if uid in named or self._holds(dataset):
            return "stored", ""
        return "refused", "it does not say that it has taken the object, and does not list it"

    def _remove_earlier(self, dataset: pydicom.Dataset) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Series of ours that this object replaces: those that are deleted, and those that the server keeps."""
        study, own = dataset.StudyInstanceUID, dataset.SeriesInstanceUID
        maker = {keyword: value for keyword in MAKER if (value := _value(dataset, keyword))}
        if len(maker) < len(MAKER):
            return (), ()
        others = [e.series for e in self.series(study, dataset.Modality) if e.series != own]
        earlier = [uid for uid in others if self._is_made(study, uid, maker, referred_series(dataset))]
        removed = [uid for uid in earlier if self.delete(study, uid)]
        return tuple(removed), tuple(uid for uid in earlier if uid not in removed)

    def results(self, study: str, images: str, made_by: Mapping[str, str], count: int = 0) -> set[str]:
        """The modalities of a study's objects that were made of a series of images.

        Args:
            study: its UID.
            images: the series' UID.
            made_by: what these objects have, keyword → value, such as Manufacturer.
            count: how many images the series has; what was made of fewer, before all had come, does not count.
        """
        found = [entry for entry in self.series(study) if entry.modality in RESULTS]
        return {entry.modality for entry in found if self._is_made(study, entry.series, made_by, [images], count)}

    def _is_made(
        self, study: str, series: str, made_by: Mapping[str, str], images: Iterable[str], count: int = 0
    ) -> bool:
        """Whether all objects of a series have these values, and refer to one of these series, to `count` images."""
        found = self.headers(study, series)
        ours = [all(_value(d, keyword) == value for keyword, value in made_by.items()) for d in found]
        named = [[n for uid, n in referred_series(dataset).items() if uid in images] for dataset in found]
        return bool(found) and all(ours) and all(max(counts, default=-1) >= count for counts in named)

    def headers(self, study: str, series: str) -> list[pydicom.Dataset]:
        """What the server says of the files of a series, without their pixels."""

        def take() -> list[pydicom.Dataset]:
            found = self._client.retrieve_series_metadata(study, series)
            return [pydicom.Dataset.from_json(entry, lambda *_: None) for entry in found]

        return self._server.ask(take)

    def delete(self, study: str, series: str) -> bool:
        """Whether the server deletes a series, by DICOMweb's extension or by Orthanc's own interface."""
        session, limit = self._server.session, self._server.timeout

        def by_dicomweb() -> bool:
            return session.delete(f"{self.url}/studies/{study}/series/{series}", timeout=limit).ok

        def by_orthanc() -> bool:
            root = self.url.rpartition("/")[0]
            found = session.post(f"{root}/tools/lookup", data=series, timeout=limit)
            if not found.ok or not isinstance(listed := found.json(), list):
                return False
            ids = [entry["ID"] for entry in listed if entry.get("Type") == "Series"]
            answers = [session.delete(f"{root}/series/{name}", timeout=limit) for name in ids]
            return bool(ids) and all(answer.ok for answer in answers)

        for way in (by_dicomweb, by_orthanc):
            with suppress(requests.JSONDecodeError):  # there is no Orthanc
                if self._server.ask(way):
                    logger.info("series %s of study %s: deleted", series, study)
                    return True
        return False

    def _search(self, find: Callable[..., list[dict]], key: str, **asked: Any) -> dict[str, dict[str, Any]]:
        """All that a query finds, by UID: servers give as much at a time as they like."""
        found: dict[str, dict[str, Any]] = {}

        def page() -> dict[str, dict[str, Any]]:
            try:
                return {_text(entry, key): entry for entry in find(offset=len(found) or None, **asked)}
            except requests.HTTPError as e:
                if e.response.status_code == HTTPStatus.NOT_FOUND and "study_instance_uid" in asked:
                    return {}  # of a study or series that it does not have
                raise

        while new := {uid: entry for uid, entry in self._server.ask(page).items() if uid not in found}:
            found |= new
        return {uid: entry for uid, entry in found.items() if UID_FORM.fullmatch(uid)}


def checked_uid(uid: str) -> str:
    """A UID, which may stand in an address.

    Raises:
        DataError: when it is none.
    """
    if not UID_FORM.fullmatch(uid):
        raise DataError(f"{uid!r} is no UID, expected numbers with dots between them, such as 1.2.840.10008.")
    return uid


def failure_text(code: int) -> str:
    """What the FailureReason of an answer means."""
    said = next((text for value, (bits, text) in REASONS.items() if code & bits == value), "no reason that is known")
    return f"{said} (failure reason {code:04X})"


def _encoded(each: pydicom.Dataset | str | os.PathLike) -> pydicom.Dataset:
    """An object as it is in a whole file, also where it was made without a preamble."""
    if isinstance(each, pydicom.Dataset):
        with BytesIO() as buffer:
            pydicom.dcmwrite(buffer, each, enforce_file_format=True)
            return pydicom.dcmread(BytesIO(buffer.getvalue()))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pydicom.dcmread(each)
    except OSError as e:
        raise DataError(f"{each}: cannot be opened ({e.strerror}). Expected a DICOM file to store.") from e
    except InvalidDicomError:
        raise DataError(f"{each}: no DICOM file. Expected one to store.") from None


def _keep(dataset: pydicom.Dataset, wanted: Sequence[str], folder: Path, there: dict[str, Path]) -> None:
    """Write a file that has come, if it is wanted and whole."""
    uid = str(dataset.get("SOPInstanceUID"))
    if uid not in wanted:
        return
    path = folder / f"{uid}.dcm"
    with name_full_disk(path):
        dataset.save_as(path, enforce_file_format=False)
    header = read_header(path)
    if isinstance(header, str) or (header and header.rows and header.fault):  # cut short
        path.unlink()
        return
    there[uid] = path


def _store_answer(response: requests.Response) -> pydicom.Dataset | None:
    """What a server says of each object, in an answer that says that something has failed."""
    try:
        answer = pydicom.Dataset.from_json(response.json())
    except Exception:  # it says nothing in particular
        return None
    return answer if "FailedSOPSequence" in answer else None


def _text(entry: dict[str, Any], tag: str) -> str:
    """The first value of a tag in DICOM JSON; empty where there is none."""
    value = (entry.get(tag, {}).get("Value") or [None])[0]
    return "" if value is None else str(value).strip()


def _series_entry(study: str | None, entry: dict[str, Any]) -> SeriesEntry:
    count = _text(entry, COUNT)
    return SeriesEntry(
        study=study or _text(entry, STUDY),
        series=_text(entry, SERIES),
        modality=_text(entry, MODALITY),
        number=_text(entry, NUMBER),
        description=_text(entry, DESCRIPTION),
        instances=int(count) if count.isdecimal() else 0,
    )


def _value(dataset: pydicom.Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "")


def referred_series(dataset: pydicom.Dataset) -> dict[str, int]:
    """UIDs of the series that an object refers to, at any depth, and to how many objects of each."""
    found: dict[str, int] = {}
    for element in dataset.iterall():
        for item in element.value if element.VR == "SQ" else ():
            if uid := item.get("SeriesInstanceUID"):
                named = {str(e.value) for e in item.iterall() if e.keyword == "ReferencedSOPInstanceUID"}
                found[str(uid)] = max(found.get(str(uid), 0), len(named))
    return found
