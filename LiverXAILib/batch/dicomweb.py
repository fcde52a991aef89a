# SPDX-License-Identifier: Apache-2.0
"""A PACS as input and output of a batch, via DICOMweb (DICOM PS3.18): query, retrieve and store.

``dicomweb+http://host:8042/dicom-web`` names the service; ``dicomweb+https`` is encrypted. The host may be preceded by
a user name and password, and search filters may follow a question mark:
``…/dicom-web?PatientID=17&StudyDate=20240101-``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

import pydicom

from ..context import RunContext
from ..errors import InputError, UsageError
from ..files import staging_folder
from ..progress import Progress
from ..text import how_to_install
from ..volumes.dicom.headers import pydicom_warnings_hidden

if TYPE_CHECKING:
    from dicomweb_client.api import DICOMwebClient

_SCHEME = re.compile(r"dicomweb\+(?=https?://)")
#: UIDs are checked because they are used as names of folders and files.
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_STORED = "stored.txt"
#: The number of attempts to reach a service, and the delay in ms before the second one, which then doubles.
_ATTEMPTS, _WAIT_MS = 3, 200
#: Request DICOM files in the transfer syntax in which the service has stored them.
_AS_STORED = (("application/dicom", "*"),)


def is_address(source: object) -> bool:
    """Whether an INPUT is the address of a DICOMweb service."""
    return isinstance(source, str) and _SCHEME.match(source) is not None


@dataclass(frozen=True)
class _RemoteSeries:
    study: str
    series: str


class Archive:
    """A DICOMweb service.

    :raises LiverXAILib.errors.UsageError: the extra ``dicom`` is not installed.
    :raises LiverXAILib.errors.InputError: (all methods) the service cannot be reached or refuses the request.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(_SCHEME.sub("", address))
        self.filters = dict(parse_qsl(parts.query))
        host = parts.netloc.rpartition("@")[2]
        #: Without user and password.
        self.url = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
        self._client = _client(self.url, unquote(parts.username or ""), unquote(parts.password or ""))

    def fetch(self, folder: Path, progress: Progress | None = None) -> Path:
        """Retrieve all CT series that match the filters of the address; return the folder that holds them.

        Series that were retrieved before are not retrieved again. A series appears complete or not at all.
        """
        context = RunContext(progress)
        found = self._search()
        for done, one in enumerate(found):
            context.report(f"Retrieving series {done + 1} of {len(found)}", done / len(found))
            target = folder / one.study / one.series
            if target.is_dir():
                continue
            with self._asked(), pydicom_warnings_hidden():
                target.parent.mkdir(parents=True, exist_ok=True)
                with staging_folder(target) as draft:
                    for dataset in self._client.iter_series(one.study, one.series, media_types=_AS_STORED):
                        dataset.save_as(draft / f"{_checked(dataset.SOPInstanceUID)}.dcm", enforce_file_format=True)
                    draft.rename(target)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def store(self, files: Iterable[Path], folder: Path, progress: Progress | None = None) -> int:
        """Store DICOM files that were not stored before, as recorded in `folder`; return their number."""
        context = RunContext(progress)
        record = folder / _STORED
        stored = set(record.read_text(encoding="ascii").split()) if record.is_file() else set()
        count = 0
        for path in files:
            with self._asked(), pydicom_warnings_hidden():
                dataset = pydicom.dcmread(path)
                if dataset.SOPInstanceUID in stored:
                    continue
                context.report("Storing results", 0.0)
                self._client.store_instances([dataset])
            with record.open("a", encoding="ascii") as lines:
                lines.write(f"{dataset.SOPInstanceUID}\n")
            count += 1
        return count

    def _search(self) -> list[_RemoteSeries]:
        with self._asked():
            found = self._client.search_for_series(
                search_filters={**self.filters, "Modality": "CT"}, get_remaining=True
            )
            series = {
                _RemoteSeries(_checked(_value(one, "0020000D")), _checked(_value(one, "0020000E"))) for one in found
            }
        return sorted(series, key=lambda one: (one.study, one.series))

    @contextmanager
    def _asked(self) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except OSError as error:
            # Exceptions of requests are OSErrors; their texts contain the address with its filters.
            if error.filename:
                raise InputError(f"Cannot use {error.filename}: {error.strerror}.") from error
            raise InputError(
                f"The PACS at {self.url} cannot be reached or refused the request: {type(error).__name__}."
            ) from error
        except Exception as error:
            # dicomweb-client gives up after several responses such as "503 Service Unavailable".
            if (last := getattr(error, "last_attempt", None)) is not None:
                raise InputError(
                    f"The PACS at {self.url} is not available at the moment: its last response was HTTP status "
                    f"{last.value.status_code}. Try again later."
                ) from error
            raise InputError(f"The PACS at {self.url} sent a response that is not valid DICOMweb.") from error


def _client(url: str, user: str, password: str) -> DICOMwebClient:
    try:
        from dicomweb_client.api import DICOMwebClient
        from dicomweb_client.session_utils import create_session, create_session_from_user_pass
    except ImportError as error:
        raise UsageError(f"A PACS needs dicomweb-client: {how_to_install('dicom')}.") from error
    session = create_session_from_user_pass(user, password) if user else create_session()
    client = DICOMwebClient(url, session=session)
    client.set_http_retry_params(max_attempts=_ATTEMPTS, wait_exponential_multiplier=_WAIT_MS)
    return client


def _value(item: dict[str, Any], tag: str) -> str:
    return str(item[tag]["Value"][0])


def _checked(uid: object) -> str:
    """Return a UID after checking that it is safe as a file name."""
    if _UID.fullmatch(str(uid)) is None:
        raise ValueError(f"{uid!r} is not a UID")
    return str(uid)
