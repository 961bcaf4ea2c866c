"""What a request may say, and where its files lie: ids are names, never paths, and files go with the answer."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, unquote

from shared.utils import temporary_folder

# What MONAI Label makes a part of a path of: in an address, in a query, or in JSON, however deep.
NAMED = ("image", "images", "label", "id", "tag", "label_tag", "session_id", "model", "model_filename", "strategy")
NAMED += ("method", "run_id", "result_extension")
FORMS = ("params", "info", "wsi")  # fields of a form that hold JSON
LONGEST = 200  # characters of a name

Message = MutableMapping[str, Any]


class RequestFiles(ExitStack):
    """The folder of a request, which is made when it is first asked for, and removed with what is in it."""

    @cached_property
    def folder(self) -> Path:
        return self.enter_context(temporary_folder(tempfile.gettempdir()))


_files: ContextVar[RequestFiles | None] = ContextVar("files", default=None)


def request_folder() -> Path | None:
    """Where the files of the request lie that is being answered; None outside of requests."""
    return files.folder if (files := _files.get()) else None


def is_name(text: str) -> bool:
    """Whether a text can be a part of a path, and lead nowhere else."""
    return text not in ("", ".", "..") and len(text) <= LONGEST and text.isprintable() and not set("/\\") & set(text)


def name_fault(what: str, text: str) -> str:
    shown = text if len(text) <= LONGEST else f"{text[:20]}…"
    return (
        f"{what} is {shown!r}, expected a name of {LONGEST} characters at most without / and \\, and none of . and .."
    )


def address_faults(path: str, query: str) -> list[str]:
    """What is wrong with an address.

    Args:
        path: as it was sent.
        query: what stands behind the question mark.
    """
    parts = [unquote(part) for part in path.removesuffix("/").split("/")[1:]]
    faults = [name_fault("a part of the address", part) for part in parts if not is_name(part)]
    asked = parse_qsl(query, keep_blank_values=True)
    return faults + [name_fault(key, text) for key, text in asked if key in NAMED and text and not is_name(text)]


def content_faults(content: dict | list) -> list[str]:
    """What is wrong with the names in JSON."""
    return [name_fault(key, text) for key, text in _names_in(content) if text and not is_name(text)]


def _names_in(content: dict | list) -> Iterator[tuple[str, str]]:
    for key, value in content.items() if isinstance(content, dict) else [("", value) for value in content]:
        listed = value if isinstance(value, list) else [value]
        if key in NAMED:
            yield from ((key, each) for each in listed if isinstance(each, str))
        if isinstance(value, list | dict):
            yield from _names_in(value)


def form_faults(fields: Mapping[str, Any]) -> list[str]:
    """What is wrong with the JSON in a form, and with the names of files.

    Args:
        fields: name → text, or a file, which has a `filename`.
    """
    faults = []
    for key, value in fields.items():
        if not isinstance(value, str):
            name = PurePosixPath((value.filename or "a").replace("\\", "/")).name  # clients send whole paths
            faults += [] if is_name(name) else [name_fault(f"the file name of {key}", name)]
        elif key in FORMS and value:
            faults += json_faults(key, value)
        elif key in NAMED and value and not is_name(value):
            faults.append(name_fault(key, value))
    return faults


def json_faults(key: str, text: str) -> list[str]:
    """What is wrong with text that has to be an object in JSON."""
    try:
        content = json.loads(text)
    except ValueError as e:
        return [f'{key} is no JSON ({e}), expected an object such as {{"device": "cpu"}}.']
    if content is None:
        return []
    if not isinstance(content, dict):
        return [f'{key} is {text[:50]}, expected an object such as {{"device": "cpu"}}.']
    return content_faults(content)


class RequestFolder:
    """An ASGI application in front of another: addresses that hold no names are answered with 400, and the files of
    each request lie in a folder of its own, for this user alone, until its answer has been sent.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        raw = scope.get("raw_path") or scope["path"].encode()
        if faults := address_faults(raw.decode("latin-1"), scope["query_string"].decode("latin-1")):
            await _refuse(send, " ".join(faults))
            return
        with RequestFiles() as files:
            token = _files.set(files)
            try:
                await self.app(scope, receive, send)
            finally:
                _files.reset(token)


async def _refuse(send: Callable[[Message], Awaitable[None]], why: str) -> None:
    body = json.dumps({"detail": why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def request_file(*, suffix: str = "", **options: Any) -> Path:
    """The path of a new file in the folder of the request; outside of requests, in that for temporary files."""
    return Path(_named_file(suffix=suffix, delete=False, **options).name)


def _named_file(*args: Any, **options: Any) -> Any:
    return tempfile.NamedTemporaryFile(*args, dir=request_folder(), **options)


def _named_folder(*args: Any, **options: Any) -> Any:
    return tempfile.TemporaryDirectory(*args, dir=request_folder(), **options)


# In place of `tempfile` in MONAI Label's modules, which leave their files behind when a request fails.
request_files = SimpleNamespace(NamedTemporaryFile=_named_file, TemporaryDirectory=_named_folder)
