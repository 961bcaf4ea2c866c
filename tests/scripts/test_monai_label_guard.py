"""What a request to the server may say, and where its files lie."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from monai_label.guard import (
    RequestFolder,
    address_faults,
    content_faults,
    form_faults,
    is_name,
    request_file,
    request_files,
    request_folder,
)

PATHS = ("..", ".", "../x", "/etc/passwd", "a/b", "a\\b", "..\\x", "C:\\x", "a\0b", "a\nb", "x" * 201)


def test_names() -> None:
    assert all(is_name(text) for text in ("ct_001", "1.2.840.113619.2", "a name", "Björn", "..x", "a..b", "x" * 200))
    assert not any(is_name(text) for text in ("", *PATHS))


@pytest.mark.parametrize(
    "address",
    [
        "/session/..",
        "/session/../../etc/passwd",
        "/session/%2e%2e",
        "/session/..%2F..%2Fetc",
        "/session/%2fetc%2fpasswd",
        "/session//etc/passwd",
        "/session/a%5Cb",
        "/model/a\\b",
        "/model/info/..",
        "/proxy/dicom/../instances",
        "/ohif/../../x",
        "/infer/%00",
        "/datastore/label?label=..&tag=final",
        "/datastore/label?label=a&tag=..%2Ffinal",
        "/datastore/image?image=%2Fetc%2Fpasswd",
        "/datastore/?id=a%5C..%5Cb",
        "/infer/unet?session_id=../x",
    ],
)
def test_addresses_with_a_path_in_the_place_of_a_name(address: str) -> None:
    path, _, query = address.partition("?")
    (fault, *_) = address_faults(path, query)
    assert "expected a name" in fault


@pytest.mark.parametrize(
    "address",
    [
        "/",
        "/info/",
        "/infer/unet?image=ct_001&output=image",
        "/infer/unet?image=&session_id=0b1c",
        "/datastore/label?label=1.2.840.1&tag=final",
        "/proxy/dicom/wado/studies/1.2/series/1.3/instances/1.4/frames/1",
        "/proxy/dicom/qido/studies?PatientName=a/b",
        "/ohif/viewer?StudyInstanceUIDs=1.2",
    ],
)
def test_addresses_as_clients_ask(address: str) -> None:
    path, _, query = address.partition("?")
    assert address_faults(path, query) == []


def test_names_in_json_at_any_depth() -> None:
    assert content_faults({"device": "cpu", "image": "ct", "images": ["a", "b"], "label_info": [{"name": "a/b"}]}) == []
    for content in ({"image": "/x"}, {"images": ["a", "/x"]}, {"m": {"label_tag": "/x"}}, [{"a": [{"id": "/x"}]}]):
        (fault,) = content_faults(content)
        assert "is '/x', expected a name" in fault


def test_forms() -> None:
    file = SimpleNamespace(filename="some/where/ct.nii.gz")  # as MONAI Label's own client sends it
    assert form_faults({"params": '{"device": "cpu"}', "info": "", "file": file}) == []
    for text, message in (
        ("{bad", "params is no JSON (Expecting property name"),
        ("[1]", "params is [1], expected an object"),
        ('{"image": "../x"}', "image is '../x', expected a name"),
    ):
        (fault,) = form_faults({"params": text})
        assert message in fault
    (fault,) = form_faults({"files": SimpleNamespace(filename="a\\..")})
    assert "the file name of files is '..'" in fault


def ask(address: str, *, fails: bool = False) -> tuple[list[dict[str, Any]], list[Path]]:
    """What is answered, and the files that the application made meanwhile."""
    sent, made = [], []

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        (request_folder() / "upload").write_text("x")
        made.extend([request_folder(), request_folder() / "upload", request_file(suffix=".nii.gz")])
        made.append(Path(request_files.NamedTemporaryFile(suffix=".dcm").name))  # a name alone
        made[-1].write_text("y")
        assert made[0].stat().st_mode & 0o077 == 0
        assert all(path.is_relative_to(made[0]) and path.exists() for path in made)
        if fails:
            raise ValueError("a failure")
        await send({"type": "http.response.start", "status": 200})

    async def send(message: Any) -> None:
        sent.append(message)

    path, _, query = address.partition("?")
    scope = {"type": "http", "path": path, "raw_path": path.encode(), "query_string": query.encode()}
    try:
        asyncio.run(RequestFolder(answer)(scope, None, send))
    except ValueError:
        assert fails
    return sent, made


@pytest.mark.parametrize("fails", [False, True])
def test_files_are_gone_after_the_answer(fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sent, made = ask("/infer/unet?image=a", fails=fails)
    assert len(made) == 4
    assert [message["status"] for message in sent] == [200] * (not fails)
    assert [*tmp_path.iterdir()] == []
    assert request_folder() is None


def test_a_request_without_files_needs_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))

    async def answer(*_: Any) -> None:
        pass

    scope = {"type": "http", "path": "/info/", "raw_path": b"/info/", "query_string": b""}
    asyncio.run(RequestFolder(answer)(scope, None, None))


def test_a_path_is_answered_with_400_and_a_sentence() -> None:
    (start, body), made = ask("/session/..")
    assert (start["status"], made) == (400, [])
    assert json.loads(body["body"])["detail"].startswith("a part of the address is '..', expected a name")
