"""What every request to a DICOMweb server needs: its address and log-in, further attempts, and messages.

No message and no line of a log names a patient: both have the server's address and UIDs alone, never what a request
asks for, what an answer says or what a file holds. Other packages' loggers, which write whole addresses, are kept from
it.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable
from http import HTTPStatus
from http.client import responses
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests

from ..utils import DataError

logger = logging.getLogger(__name__)
for _name in ("dicomweb_client", "retrying", "urllib3"):
    logging.getLogger(_name).setLevel(logging.ERROR)

# Where the log-in and the trusted certificate of a server stand: in the environment, not on a command line, which
# every user of a machine can read.
USER, PASSWORD, TOKEN, CA_FILE = "DICOMWEB_USER", "DICOMWEB_PASSWORD", "DICOMWEB_TOKEN", "DICOMWEB_CA_FILE"

PASSING = {408, 425, 429, 502, 503, 504}  # answers that a server takes back by itself
NO_DICOMWEB = "its answer is not that of a DICOMweb server"
PATH_HINT = "Give the address where its DICOMweb services begin, as in http://127.0.0.1:8042/dicom-web."

T = TypeVar("T")


class ServerAwayError(DataError):
    """The server cannot be reached, does not answer in time or says that it is busy: later it may be back."""


class Session(requests.Session):
    """Trusts the certificates that it is given also where the environment names others for all programs."""

    def merge_environment_settings(self, url: str, proxies: Any, stream: Any, verify: Any, cert: Any) -> dict:
        return super().merge_environment_settings(url, proxies, stream, verify or self.verify, cert)


class Connection:
    """A server, and how often a request to it is tried. Arguments and errors: see `DicomWeb`."""

    def __init__(self, url: str, timeout: float, attempts: int, wait: float) -> None:
        self.url, self.timeout, self.attempts, self.wait = checked_url(url), timeout, attempts, wait
        self.session = session_of_environment(self.url)

    def ask(self, action: Callable[[], T], attempts: int | None = None) -> T:
        """What `action` gives, tried again where it fails for a passing reason."""
        attempts, attempt = attempts or self.attempts, 1
        while True:
            try:
                with warnings.catch_warnings():  # pydicom's, which show values
                    warnings.simplefilter("ignore")
                    return action()
            except requests.RequestException as e:
                if not passes(e):
                    raise DataError(f"{self.url}: {self._why(e)}") from None
                if attempt == attempts:
                    raise ServerAwayError(f"{self.url}: {self._why(e)}") from None
                attempt, wait = attempt + 1, self.wait * 2 ** (attempt - 1)
                logger.info("%s: %s Attempt %d of %d in %g s.", self.url, self._why(e), attempt, attempts, wait)
            except (DataError, OSError):
                raise
            except Exception as e:  # there is no type for all that a wrong answer leads to
                raise DataError(f"{self.url}: {NO_DICOMWEB} ({type(e).__name__}). {PATH_HINT}") from None
            time.sleep(wait)

    def _why(self, error: requests.RequestException) -> str:
        """What is wrong, in own words: the error's have the whole address, and a patient's id in it."""
        if error.response is not None and isinstance(error, requests.HTTPError):
            return status_text(error.response.status_code)
        if isinstance(error, requests.exceptions.SSLError):
            return f"its certificate is not trusted. Name it, or who signed it, in {CA_FILE} (a PEM file)."
        if isinstance(error, requests.Timeout):
            return f"does not answer within {self.timeout:g} s."
        if isinstance(error, requests.JSONDecodeError):
            return f"{NO_DICOMWEB} (no JSON). {PATH_HINT}"
        return "cannot be reached, or breaks off. Is it running, and is the address right?"


def checked_url(url: str) -> str:
    """The address without a slash at its end.

    Raises:
        DataError: when it is none of http or https, or has a log-in or a query in it.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # a bracket without its other
        raise DataError(f"{url}: no address of a server. {PATH_HINT}") from None
    if parts.username or parts.password:
        raise DataError(f"the address of the server has a log-in in it. Set {USER} and {PASSWORD} in the environment.")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise DataError(f"{url}: no address of a server. {PATH_HINT}")
    return url.rstrip("/")


def session_of_environment(url: str) -> requests.Session:
    """A session with the log-in and the certificate that the environment names."""
    user, password, token, file = (os.environ.get(name, "") for name in (USER, PASSWORD, TOKEN, CA_FILE))
    if bool(user) != bool(password) or (user and token):
        raise DataError(f"of the log-in, set {USER} and {PASSWORD} in the environment, or {TOKEN} alone.")
    if file and not Path(file).is_file():
        raise DataError(f"{CA_FILE} is {file}: no such file. Expected certificates to trust, as PEM.")
    if (user or token) and url.startswith("http:") and urlsplit(url).hostname not in ("127.0.0.1", "::1", "localhost"):
        logger.warning("%s: the log-in goes over the network as it is; https hides it.", url)
    session = Session()
    if token:  # by `auth`, as a .netrc would take the place of a header
        session.auth = lambda request: request.headers.update(Authorization=f"Bearer {token}") or request
    elif user:
        session.auth = (user, password)
    if file:
        session.verify = file
    return session


def passes(error: requests.RequestException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, requests.HTTPError):
        return error.response.status_code in PASSING
    broken = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    return isinstance(error, broken) and not isinstance(error, requests.exceptions.SSLError)


def status(code: int) -> str:
    return f"status {code}" + (f", {responses[code]}" if code in responses else "")


def status_text(code: int) -> str:
    if code == HTTPStatus.UNAUTHORIZED:
        return f"refuses the log-in ({status(code)}). Set {USER} and {PASSWORD}, or {TOKEN}, in the environment."
    if code == HTTPStatus.NOT_FOUND:
        return f"knows no such address ({status(code)}). {PATH_HINT}"
    return f"answers {status(code)}."
