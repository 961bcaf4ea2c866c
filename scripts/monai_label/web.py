"""The application that answers: MONAI Label's, with `guard` in front of it, and the reason of each failure in words."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

import monailabel.app
from fastapi import BackgroundTasks, Depends, FastAPI, File, Form, HTTPException, Request, UploadFile
from fastapi.exception_handlers import request_validation_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.middleware import Middleware
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from monailabel.config import settings
from monailabel.datastore import local
from monailabel.endpoints import datastore, infer, model, session, wsi_infer
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException
from monailabel.transform import writer
from monailabel.utils import sessions
from monailabel.utils.others import detection, pathology

from shared.dicom import ServerAwayError
from shared.dicom.connection import PASSWORD, USER
from shared.utils import DataError

from .app import DICOM_SEG
from .guard import RequestFolder, form_faults, json_faults, request_files

FORM = ("multipart/form-data", "application/x-www-form-urlencoded")
STATUS = {
    ServerAwayError: 503,
    DataError: 422,
    ImageNotFoundException: 404,
    LabelNotFoundException: 404,
    MONAILabelException: 422,
    shutil.ReadError: 400,  # of a session's archive
}


async def check_request(request: Request) -> None:
    """Refuse a request whose form or JSON is no JSON, or has paths in the place of names."""
    kind, faults = request.headers.get("content-type", ""), []
    if kind.startswith(FORM):
        form = await request.form()
        faults = [fault for item in form.multi_items() for fault in form_faults(dict([item]))]
    elif kind.startswith("application/json") and (body := await request.body()):
        faults = json_faults("the body", body.decode("utf-8", "replace"))
    if faults:
        raise HTTPException(400, detail=" ".join(faults))


async def run_inference(
    background_tasks: BackgroundTasks,
    model: str,
    image: str = "",
    session_id: str = "",
    params: Annotated[str, Form()] = "{}",
    file: Annotated[UploadFile | None, File()] = None,
    label: Annotated[UploadFile | None, File()] = None,
    output: infer.ResultType | None = None,
) -> Any:
    """As MONAI Label's own; a DICOM SEG is made by the app, which knows the names of organs."""
    if output == infer.ResultType.dicom_seg:
        params = json.dumps({**json.loads(params or "{}"), "output": DICOM_SEG})
        output = infer.ResultType.image
    return infer.run_inference(background_tasks, model, image, session_id, params, file, label, output)


async def refuse_broken_json(request: Request, error: RequestValidationError) -> Response:
    for fault in error.errors():
        if fault["type"] == "json_invalid":
            return _refusal(400, f"the body is no JSON ({fault['ctx']['error']} at character {fault['loc'][-1]}).")
    return await request_validation_exception_handler(request, error)


def _refusal(status: int, why: str) -> Response:
    return JSONResponse({"detail": why}, status)


def _refuse_with(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def refuse(request: Request, error: Exception) -> Response:
        return _refusal(status, str(getattr(error, "msg", error)))

    return refuse


def make_app(origins: Sequence[str]) -> FastAPI:
    """The application.

    Args:
        origins: of the pages that may ask. By MONAI Label's default pages from anywhere may, in the user's own browser,
            and so read and delete studies.
    """
    for module in (datastore, detection, infer, local, model, pathology, session, sessions, writer, wsi_infer):
        if hasattr(module, "tempfile"):
            module.tempfile = request_files
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)  # nothing of an archive lands elsewhere
    settings.MONAI_LABEL_DICOMWEB_USERNAME = os.environ.get(USER, "")  # for /proxy, by which OHIF reads the PACS
    settings.MONAI_LABEL_DICOMWEB_PASSWORD = os.environ.get(PASSWORD, "")
    cors = Middleware(
        CORSMiddleware, allow_origins=origins, allow_credentials=True, allow_methods=["*"], allow_headers=["*"]
    )
    handlers = {kind: _refuse_with(status) for kind, status in STATUS.items()}
    made = FastAPI(
        title=settings.MONAI_LABEL_PROJECT_NAME,
        openapi_url=None,
        middleware=[cors, Middleware(RequestFolder)],
        exception_handlers={**handlers, RequestValidationError: refuse_broken_json},
    )
    made.post("/infer/{model}", dependencies=[Depends(check_request)])(run_inference)
    made.include_router(monailabel.app.app.router, dependencies=[Depends(check_request)])
    return made


app = make_app(json.loads(settings.MONAI_LABEL_APP_CONF["origins"]))
