"""MONAI Label's datastore in front of a PACS."""

from __future__ import annotations

import io
import json
import shutil
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException

from shared.utils import DataError, parse_json, temporary_folder, write_json

from .guard import request_file
from .pacs_labels import PacsLabels, named_ids

FINAL = DefaultLabelTag.FINAL.value
LABEL, NOTE = "label", "info.json"  # the file's name, without its ending, and what was said of it
DESCRIPTION = "CTs of a PACS; labels that are submitted as final are kept there"


class DicomWebDatastore(Datastore):
    """The CTs of a PACS and their labels. Ids are the SeriesInstanceUIDs of the CTs, also those of labels.

    Labels with the tag `final` are those that somebody submitted, and are kept in the PACS alone, see `PacsLabels`.
    Those with other tags, such as a network's own, are kept by this server; no training takes them.

    Args:
        pacs: what is in the PACS.
    """

    def __init__(self, pacs: PacsLabels) -> None:
        self.pacs = pacs
        self._strategies: dict[str, dict[str, Any]] = {}  # when an image was given to whom, as MONAI Label notes

    def name(self) -> str:
        return self.pacs.web.url

    def set_name(self, name: str) -> None:
        raise DataError("the datastore is called as its PACS.")

    def description(self) -> str:
        return DESCRIPTION

    def set_description(self, description: str) -> None:
        raise DataError("the description of a PACS does not change.")

    def refresh(self) -> None:
        pass  # lists are never older than seconds

    def list_images(self) -> list[str]:
        return list(self.pacs.images())

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        labelled = self.pacs.labels()
        return [image for image in self.pacs.images() if image in labelled]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        labelled = self.pacs.labels()
        return [image for image in self.pacs.images() if image not in labelled]

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        images = self.get_labeled_images()
        return [{"image": self.get_image_uri(uid), "label": self.get_label_uri(uid, FINAL)} for uid in images]

    def get_image(self, image_id: str, params: Any = None) -> io.BytesIO | None:
        return _content(self.get_image_uri(image_id))

    def get_image_uri(self, image_id: str) -> str:
        image = self.pacs.image(image_id)
        return str(self.pacs.volume(image)) if image else ""

    def dicom_folder(self, image_id: str) -> Path:
        """The files of a CT."""
        return self.pacs.series_folder(self.pacs.needed_image(image_id))

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        image = self.pacs.image(image_id)
        if not image:
            return {}
        info = {"StudyInstanceUID": image.study, "SeriesInstanceUID": image.series, "Modality": image.modality}
        return {**info, **self._strategies.get(image_id, {})}

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        if not self.pacs.image(image_id):
            raise ImageNotFoundException(f"{image_id}: the PACS has no such CT series.")
        self._strategies.setdefault(image_id, {}).update(info)

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        return dict.fromkeys(self._tags().get(image_id, []), image_id)

    def get_label_by_image_id(self, image_id: str, tag: str) -> str:
        return self.get_labels_by_image_id(image_id).get(tag, "")

    def get_label(self, label_id: str, label_tag: str, params: Any = None) -> io.BytesIO | None:
        return _content(self.get_label_uri(label_id, label_tag))

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        if label_tag != FINAL:
            return next((str(file) for file in self._place(label_tag, label_id).glob(f"{LABEL}*")), "")
        label = self.pacs.labels().get(label_id)
        return str(self.pacs.label(label)) if label else ""

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        if label_tag != FINAL:
            note = self._place(label_tag, label_id) / NOTE
            return parse_json(note) if note.is_file() else {}
        if not (label := self.pacs.labels().get(label_id)):
            return {}
        info = [{"name": name, "idx": i} for name, i in label.names.items()]
        return {"label_info": info, "SeriesInstanceUID": label.series, "submitted": label.when}

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Submit a label to the PACS, or keep one that is not final."""
        if not self.pacs.image(image_id):
            raise ImageNotFoundException(f"{image_id}: the PACS has no such CT series.")
        if label_tag == FINAL:
            self.pacs.submit(image_id, label_filename, named_ids(label_info.get("label_info")))
            return image_id
        place, ending = self._place(label_tag, image_id), "".join(Path(label_filename).suffixes[-2:])
        place.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(self.pacs.folder) as temporary:
            (new := temporary / "new").mkdir()
            shutil.copyfile(label_filename, new / f"{LABEL}{ending}")
            write_json(new / NOTE, {**label_info, "ts": int(time.time())})
            if place.exists():
                place.rename(temporary / "old")
            new.rename(place)
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        if label_tag == FINAL:
            self.pacs.withdraw(label_id)
        else:
            shutil.rmtree(self._place(label_tag, label_id), ignore_errors=True)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        if not self.get_label_by_image_id(label_id, label_tag):
            raise LabelNotFoundException(f"{label_id}: has no label {label_tag}.")
        if label_tag == FINAL:
            raise DataError("what is said of a final label stands in the PACS. Submit the label again to change it.")
        write_json(self._place(label_tag, label_id) / NOTE, {**self.get_label_info(label_id, label_tag), **info})

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        raise DataError("images come from the PACS. Store the CT there, or send it with the request for its result.")

    def remove_image(self, image_id: str) -> None:
        raise DataError("images stay in the PACS. Delete the CT there.")

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """All training labels with their images, as a zip."""
        file = request_file(suffix=".zip")
        with zipfile.ZipFile(file, "w") as archive:
            for case in self.datalist()[: limit_cases or None]:
                for key, path in case.items():
                    archive.write(path, f"{key}/{Path(case['image']).name}")
            archive.writestr("metadata.json", json.dumps(self.json()))
        return str(file)

    def status(self) -> dict[str, Any]:
        tags = Counter(tag for there in self._tags().values() for tag in there)
        return {"total": len(self.list_images()), "completed": tags[FINAL], "label_tags": dict(tags)}

    def json(self) -> dict[str, Any]:
        tags, objects = self._tags(), {}
        for uid in self.list_images():
            labels = {tag: {"ext": ".nii.gz", "info": self.get_label_info(uid, tag)} for tag in tags.get(uid, [])}
            objects[uid] = {"image": {"ext": ".nii.gz", "info": self.get_image_info(uid)}, "labels": labels}
        return {"name": self.name(), "description": self.description(), "objects": objects}

    def _tags(self) -> dict[str, list[str]]:
        """Which labels there are of each image."""
        found: dict[str, list[str]] = {uid: [FINAL] for uid in self.get_labeled_images()}
        for place in sorted((self.pacs.folder / "labels").glob("*/*")):
            found.setdefault(place.name, []).append(place.parent.name)
        return found

    def _place(self, tag: str, uid: str) -> Path:
        """Where a label is kept that is not final: its file, and what was said of it."""
        return self.pacs.folder / "labels" / getattr(tag, "value", tag) / uid


def _content(path: str) -> io.BytesIO | None:
    return io.BytesIO(Path(path).read_bytes()) if path else None
