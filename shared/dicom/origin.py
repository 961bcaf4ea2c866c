"""Who made an object and from what, and the UIDs that follow from that."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from highdicom import UID
from highdicom.content import AlgorithmIdentificationSequence
from highdicom.sr import AlgorithmIdentification
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from ..networks import ModelRecord
from ..reports.provenance import warning_of_results

MANUFACTURER = "MONAI bundle collection"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "monai-bundle-collection")
_LONGEST = 64  # characters of a description


@dataclass(frozen=True)
class Origin:
    """The software that made an object.

    Attributes:
        algorithm: name of the bundle.
        version: of it.
        made_with: the weights' digest and the settings, see `shared.data.made_with`.
        record: what the weights were trained on, see `read_model_record`; None or empty: unknown.
        classifier: what judged the result, see `shared.inferers.CandidateJudge`; None: nothing.
    """

    algorithm: str
    version: str
    made_with: Mapping[str, Any] = field(default_factory=dict)
    record: ModelRecord | None = None
    classifier: Mapping[str, Any] | None = None
    algorithm_type: ClassVar[str] = "AUTOMATIC"
    family: ClassVar[Code] = codes.DCM.ArtificialIntelligence

    @property
    def weights(self) -> str:
        """SHA-256 of their file."""
        return self.made_with.get("weights") or "unknown"

    @property
    def warning(self) -> str:
        """What must be said of the weights; empty where they are known to be trained on real images."""
        return warning_of_results(*self._records) or ""

    @property
    def _records(self) -> list[ModelRecord]:
        return [self.record or {}, *([self.classifier["record"]] if self.classifier else [])]

    def describe(self, what: str) -> str:
        """What a list of series shows, 64 characters at most: `what` it is, and what has to be known of the weights."""
        if not all(self._records):
            mark = "research only, weights of unknown origin"
        else:
            mark = "research only" + ", SYNTHETIC weights" * any(r.get("synthetic", False) for r in self._records)
        return f"{what}: {mark}"[:_LONGEST]

    @property
    def equipment(self) -> dict[str, Any]:
        """The keywords by which highdicom's objects take it."""
        return {
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": self.algorithm[:_LONGEST],
            "software_versions": self.version,
            "device_serial_number": self.weights[:_LONGEST],
        }

    @property
    def device_uid(self) -> UID:
        """Of the software with these weights, as a device."""
        return Identity(self, ()).uid("device")

    @property
    def identification(self) -> AlgorithmIdentificationSequence:
        """For SEG and ANN."""
        return AlgorithmIdentificationSequence(
            name=self.algorithm[:_LONGEST],
            version=self.version,
            family=self.family,
            source=MANUFACTURER,
            parameters=self._parameters() or None,
        )

    @property
    def sr_identification(self) -> AlgorithmIdentification:
        """For an SR."""
        return AlgorithmIdentification(
            name=self.algorithm[:_LONGEST],
            version=self.version,
            parameters=[f"{key}={value}" for key, value in self._parameters().items()],
            family=self.family,
            manufacturer=MANUFACTURER,
        )

    def _parameters(self) -> dict[str, str]:
        found = {"weights_sha256": self.weights}
        return found | ({"warning": self.warning} if self.warning else {})


@dataclass(frozen=True)
class Submission(Origin):
    """A person, who has drawn or corrected a label in the program that `algorithm` names, and submitted it.

    Each is a result of its own, also where it is the same as an earlier one, as long as `made_with` says when.
    """

    algorithm_type: ClassVar[str] = "SEMIAUTOMATIC"
    family: ClassVar[Code] = codes.DCM.ManualProcessing

    @property
    def weights(self) -> str:
        return "none"

    @property
    def warning(self) -> str:
        return ""

    def describe(self, what: str) -> str:
        return f"Label submitted in {self.algorithm}"[:_LONGEST]

    def _parameters(self) -> dict[str, str]:
        return {}


class Identity:
    """UIDs that are a hash of all that a result depends on, so that the same result has the same ones, whenever made.

    Args:
        origin: the software, with weights and settings.
        sources: SOPInstanceUIDs of the images, in their order.
        content: the result: text, or arrays.
    """

    def __init__(self, origin: Origin, sources: Sequence[str], *content: str | np.ndarray) -> None:
        facts = [origin.algorithm, origin.version, dict(origin.made_with), origin.warning, list(sources)]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
        for part in content:
            shape = part if isinstance(part, str) else f"{part.dtype} {part.shape}"
            digest.update(f"\0{shape}\0".encode())
            if not isinstance(part, str):
                digest.update(np.ascontiguousarray(part))
        self.digest = digest.hexdigest()

    def uid(self, *roles: str) -> UID:
        """The UID of what plays these roles in the result, by the root for UUIDs (2.25)."""
        return UID.from_uuid(str(uuid.uuid5(_NAMESPACE, "\0".join([self.digest, *roles]))))
