"""The PACS, by DICOMweb or by DIMSE: store a result, count a series' slices, ask whose study it is, try each verb.

What goes wrong is a ``PacsError``: one line with the address, never with what a header says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from functools import partial
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import requests
from dicomweb_client import DICOMwebClient
from dicomweb_client.session_utils import create_session, create_session_from_user_pass
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as Find
from pynetdicom.sop_class import Verification

from ..errors import UserError
from .config import NodeConfig
from .results import NOTICE, PATIENT_AND_STUDY, derived_uid

TIMEOUT = 20
PAGE = 500
PASSWORD = "DICOMWEB_PASSWORD"
"""Environment variable with the password of ``user``."""


class PacsError(UserError):
    """The PACS did not do what it was asked: it is off, say; worth a second try."""


class PacsRefusalError(PacsError):
    """The PACS does not take an object; it may never do."""


class Pacs(Protocol):
    """What the node asks of a PACS."""

    def store(self, dataset: Dataset) -> None:
        """Send one object.

        Raises:
            PacsError: as of every method, the PACS is off, refuses or answers nonsense.
        """

    def count(self, study: str, series: str) -> int:
        """How many instances it has of a series; 0 of one that it does not know."""

    def study_header(self, study: str) -> Dataset:
        """What it says of ``PATIENT_AND_STUDY``."""

    def verbs(self, store: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Name and call of each verb to try; each rests on those before it."""


def pacs_of(config: NodeConfig) -> Pacs:
    """Where results go."""
    if "dicomweb" in config.send:
        return WebPacs(config.send["dicomweb"], config.send.get("user"))
    return DimsePacs(config.send["host"], int(config.send["port"]), config.send["ae_title"], config.ae_title)


def ping(config: NodeConfig, *, store: bool = True) -> list[tuple[str, str | None]]:
    """Try each verb that the node needs, up to the first that fails: its name and, in a line, what is wrong.

    Args:
        config: of ``read_config``.
        store: also store a test object, always the same one, and read it back.
    """
    servers = [(pacs_of(config), store)]
    if config.poll and config.poll["dicomweb"] != config.send.get("dicomweb"):
        servers.append((WebPacs(config.poll["dicomweb"], config.poll.get("user")), False))
    found: list[tuple[str, str | None]] = []
    for server, may_store in servers:
        for verb, work in server.verbs(may_store):
            try:
                work()
            except PacsError as error:
                found.append((verb, str(error)))
                break
            except Exception as error:
                found.append((verb, f"failed ({type(error).__name__})"))
                break
            found.append((verb, None))
    return found


class WebPacs:
    """A DICOMweb server.

    Args:
        url: of its root, such as ``http://127.0.0.1:8042/dicom-web``.
        user: for HTTP basic authentication; its password is in the environment.
    """

    def __init__(self, url: str, user: str | None = None) -> None:
        parts = urlsplit(url)
        self.where = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        session = create_session_from_user_pass(user, os.environ.get(PASSWORD, "")) if user else create_session()
        try:
            self._client = DICOMwebClient(url, session, timeout=TIMEOUT)
        except (ValueError, AttributeError):
            raise UserError(f"{self.where} is no DICOMweb address; it looks like http://host:8042/dicom-web") from None
        self._client.set_http_retry_params(retry=False)  # the queue waits and tries again

    def store(self, dataset: Dataset) -> None:
        """As of ``Pacs``; what is there already is not sent again."""
        with self._asking("STOW"):
            if self._client.search_for_instances(search_filters={"SOPInstanceUID": str(dataset.SOPInstanceUID)}):
                return
            answer = self._client.store_instances([dataset])
        if failed := answer.get("FailedSOPSequence"):
            raise PacsRefusalError(
                f"{self.where} refused an object (STOW, reason {failed[0].get('FailureReason', 'unknown')})"
            )

    def count(self, study: str, series: str) -> int:
        """As of ``Pacs``."""
        return len(self.instances(study, series))

    def instances(self, study: str, series: str) -> list[str]:
        """SOPInstanceUIDs of a series, in the order of their numbers where the server says them."""
        with self._asking("QIDO"):
            found = _pages(partial(self._client.search_for_instances, study, series), "SOPInstanceUID")
            rows = {uid: int(d.get("InstanceNumber") or 0) for uid, d in found.items()}
        return sorted(rows, key=rows.__getitem__)

    def instance(self, study: str, series: str, uid: str) -> Dataset:
        """Retrieve one instance as it is stored, not transcoded."""
        with self._asking("WADO"):
            return self._client.retrieve_instance(study, series, uid, media_types=(("application/dicom", "*"),))

    def study_header(self, study: str) -> Dataset:
        """As of ``Pacs``."""
        with self._asking("QIDO"):
            found = self._client.search_for_studies(
                search_filters={"StudyInstanceUID": study}, fields=list(PATIENT_AND_STUDY)
            )
        return _one_study(map(Dataset.from_json, found), self.where)

    def studies(self, modality: str, days: int | None) -> dict[str, int]:
        """UID of each study with a series of a modality -> how many instances it has, -1 where that is not said.

        Args:
            modality: such as ``MR``.
            days: back from today, by Study Date; None for all.
        """
        filters: dict[str, Any] = {"ModalitiesInStudy": modality}
        if days is not None:
            filters["StudyDate"] = f"{date.today() - timedelta(days):%Y%m%d}-{date.today() + timedelta(1):%Y%m%d}"
        with self._asking("QIDO"):
            fields = ["NumberOfStudyRelatedInstances"]
            search = partial(self._client.search_for_studies, search_filters=filters, fields=fields)
            found = _pages(search, "StudyInstanceUID")
            return {uid: int(study.get("NumberOfStudyRelatedInstances") or -1) for uid, study in found.items()}

    def series(self, study: str, modality: str) -> dict[str, int]:
        """UID of each series of a modality in a study -> how many instances it has."""
        with self._asking("QIDO"):
            filters, fields = {"Modality": modality}, ["NumberOfSeriesRelatedInstances"]
            search = partial(self._client.search_for_series, study, search_filters=filters, fields=fields)
            found = _pages(search, "SeriesInstanceUID")
            counts = {uid: series.get("NumberOfSeriesRelatedInstances") for uid, series in found.items()}
        return {uid: int(count) if count else self.count(study, uid) for uid, count in counts.items()}

    def verbs(self, store: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
        """As of ``Pacs``."""
        yield f"QIDO {self.where}", self._qido
        if store:
            test = _test_object()
            where = str(test.StudyInstanceUID), str(test.SeriesInstanceUID), str(test.SOPInstanceUID)
            yield "STOW", lambda: self.store(test)
            yield "QIDO of what was stored", lambda: _expect(self.count(*where[:2]) == 1, "it is not found")
            yield "WADO of what was stored", lambda: _expect_same(self.instance(*where), test)
        else:
            yield "WADO", self._wado

    def _qido(self) -> None:
        with self._asking("QIDO"):
            self._client.search_for_studies(limit=1)

    def _wado(self) -> None:
        """Retrieve an instance of the first series there is, if any."""
        with self._asking("QIDO"):
            found = [Dataset.from_json(series) for series in self._client.search_for_series(limit=1)]
        for series in found:
            study, uid = str(series.StudyInstanceUID), str(series.SeriesInstanceUID)
            self.instance(study, uid, self.instances(study, uid)[0])

    @contextmanager
    def _asking(self, verb: str) -> Iterator[None]:
        """Turn what a request can raise into a line."""
        try:
            yield
        except requests.HTTPError as error:
            raise PacsError(f"{self.where}: {verb} was answered with {_http_problem(error)}") from None
        except requests.Timeout:
            raise PacsError(f"{self.where}: no answer to {verb} within {TIMEOUT} s") from None
        except requests.exceptions.SSLError:
            raise PacsError(f"{self.where}: its certificate is not trusted; REQUESTS_CA_BUNDLE names yours") from None
        except requests.exceptions.JSONDecodeError:
            raise PacsError(f"{self.where} answers, but not as DICOMweb; for Orthanc it ends in /dicom-web") from None
        except requests.RequestException:
            raise PacsError(f"{self.where}: no connection; is the PACS on, and is the address right?") from None
        except UserError:
            raise
        except Exception as error:  # of a parser; it could quote a header
            raise PacsError(f"{self.where}: the answer to {verb} makes no sense ({type(error).__name__})") from None


def _pages(search: Callable[..., list[dict[str, Any]]], key: str) -> dict[str, Dataset]:
    """All that a search finds, by UID, page by page."""
    # the client's own get_remaining never ends with a server that does not know of offset (Orthanc 1.10)
    found: dict[str, Dataset] = {}
    while True:
        page = {str(d[key].value): d for d in map(Dataset.from_json, search(limit=PAGE, offset=len(found)))}
        if page.keys() <= found.keys():
            return found
        found |= page


def _http_problem(error: requests.HTTPError) -> str:
    status = error.response.status_code if error.response is not None else 0
    if status in (401, 403):
        return f"HTTP {status}; set user in node.yaml, and its password in {PASSWORD}"
    if status in (400, 404, 405):
        return f"HTTP {status}; is this the root of DICOMweb? For Orthanc it ends in /dicom-web"
    return f"HTTP {status}"


class DimsePacs:
    """A PACS that talks DIMSE.

    Args:
        host: its address.
        port: its port.
        ae_title: its AE title.
        calling: ours.
    """

    def __init__(self, host: str, port: int, ae_title: str, calling: str) -> None:
        self.host, self.port, self.ae_title, self.calling = host, port, ae_title, calling
        self.where = f"{ae_title} at {host}:{port}"

    def store(self, dataset: Dataset) -> None:
        """As of ``Pacs``."""
        with self._association(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID) as association:
            status = association.send_c_store(dataset).get("Status")
        if status is None or status not in (0x0000, 0xB000, 0xB006, 0xB007):  # success, and warnings after storing
            raise PacsRefusalError(f"{self.where} refused an object (C-STORE, {_status(status)})")

    def count(self, study: str, series: str) -> int:
        """As of ``Pacs``."""
        query = Dataset()
        query.QueryRetrieveLevel = "IMAGE"
        query.StudyInstanceUID, query.SeriesInstanceUID, query.SOPInstanceUID = study, series, ""
        return len(self._find(query))

    def study_header(self, study: str) -> Dataset:
        """As of ``Pacs``."""
        query = Dataset()
        query.QueryRetrieveLevel, query.StudyInstanceUID = "STUDY", study
        for keyword in PATIENT_AND_STUDY:
            setattr(query, keyword, "")
        return _one_study(self._find(query), self.where)

    def verbs(self, store: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
        """As of ``Pacs``."""
        test = _test_object()
        yield f"C-ECHO {self.where}", self._echo
        count = partial(self.count, str(test.StudyInstanceUID), str(test.SeriesInstanceUID))
        yield "C-FIND", count
        if store:
            yield "C-STORE", lambda: self.store(test)
            yield "C-FIND of what was stored", lambda: _expect(count() == 1, "it is not found")

    def _echo(self) -> None:
        with self._association(Verification) as association:
            status = association.send_c_echo().get("Status")
        if status != 0x0000:
            raise PacsError(f"{self.where} refused C-ECHO ({_status(status)})")

    def _find(self, query: Dataset) -> list[Dataset]:
        found: list[Dataset] = []
        with self._association(Find) as association:
            for status, answer in association.send_c_find(query, Find):
                if status.get("Status") in (0xFF00, 0xFF01):
                    found.append(answer)
                elif status.get("Status") != 0x0000:
                    raise PacsError(f"{self.where} refused C-FIND ({_status(status.get('Status'))})")
        return found

    @contextmanager
    def _association(self, abstract_syntax: str, transfer_syntax: str | None = None) -> Iterator[Association]:
        ae = AE(self.calling)
        ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = TIMEOUT
        ae.add_requested_context(abstract_syntax, *([transfer_syntax] if transfer_syntax else []))
        try:
            association = ae.associate(self.host, self.port, ae_title=self.ae_title)
        except OSError:
            raise PacsError(f"{self.where}: no such host") from None
        if association.is_rejected:
            raise PacsError(
                f"{self.where} rejects {self.calling}: {association.acceptor.primitive.reason_str.lower()}; "
                "are both AE titles right, and does the PACS know the node?"
            )
        if not association.is_established:
            if association.rejected_contexts:
                raise PacsError(f"{self.where} does not take {abstract_syntax} (SOP class)")
            raise PacsError(f"{self.where}: no DICOM association; is the PACS on, and are host and port right?")
        try:
            yield association
        finally:
            if association.is_established:
                association.release()


def _status(status: int | None) -> str:
    return "no answer" if status is None else f"status 0x{status:04X}"


def _one_study(found: Any, where: str) -> Dataset:
    for study in found:
        return study
    raise PacsError(f"{where} does not know the study")


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise PacsError(otherwise)


def _expect_same(got: Dataset, sent: Dataset) -> None:
    _expect(got.PixelData == sent.PixelData and got.SOPInstanceUID == sent.SOPInstanceUID, "it came back changed")


def _test_object() -> Dataset:
    """A picture of one grey, in a study of its own; its UIDs are always the same."""
    test = Dataset()
    test.file_meta, test.preamble = FileMetaDataset(), bytes(128)
    test.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    test.SOPClassUID = test.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    uids = [derived_uid("brain-tumor-mri ping", level) for level in ("study", "series", "instance")]
    test.StudyInstanceUID, test.SeriesInstanceUID, test.SOPInstanceUID = uids
    test.file_meta.MediaStorageSOPInstanceUID = test.SOPInstanceUID
    test.PatientName, test.PatientID, test.PatientBirthDate, test.PatientSex = "PING^BRAIN-TUMOR-MRI", "PING", "", ""
    test.StudyDate, test.StudyTime, test.StudyID, test.AccessionNumber = "", "", "", ""
    test.ReferringPhysicianName, test.Modality, test.ConversionType = "", "OT", "SYN"
    test.SeriesNumber, test.InstanceNumber, test.SeriesDescription = 1, 1, f"Test of the connection, {NOTICE}"
    test.Rows, test.Columns, test.SamplesPerPixel, test.PhotometricInterpretation = 8, 8, 1, "MONOCHROME2"
    test.BitsAllocated, test.BitsStored, test.HighBit, test.PixelRepresentation = 8, 8, 7, 0
    test.PixelData = bytes([128]) * 64
    return test
