"""A DICOM node beside the PACS: ``Node(config, classifier, model).serve(stop)`` takes series and sends answers back.

Series come by C-STORE, chunked to disk, or are looked for by DICOMweb. One that is complete is answered once; results
lie in an outbox before they are sent, so a second try after a kill sends the same objects, which a PACS takes as one.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from pathlib import Path
from typing import Any, Protocol

import pynetdicom
from pydicom import Dataset, dcmread
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.presentation import AllStoragePresentationContexts
from pynetdicom.sop_class import Verification

from ..errors import UserError, first_line
from ..files import write_json
from ..inference.volume import VolumePrediction
from .config import NodeConfig
from .deidentify import deidentify
from .pacs import PacsError, PacsRefusalError, WebPacs, pacs_of
from .queue import DISCARDED, DONE, FAILED, Entry, Queue
from .results import PATIENT_AND_STUDY, ModelId, build_results, derived_uid, why
from .rules import judge

log = logging.getLogger(__name__)
REFUSED_UID, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0xA900, 0xA700, 0xC000


class Answers(Protocol):
    """What ``VolumeClassifier`` does for the node."""

    def predict(self, source: str | Path, *, heat_map: bool = False) -> VolumePrediction:
        """Answer one volume."""


class Node:
    """Takes series, answers them, sends the results.

    In the folder are ``inbox/SERIES`` until it is answered, ``outbox/SERIES`` with ``report.json``, ``discard/SERIES``
    of series that no rule takes (may be emptied any time), and ``queue.sqlite``.

    Args:
        config: of ``read_config``.
        classifier: what answers a folder.
        model: what the results name.
    """

    def __init__(self, config: NodeConfig, classifier: Answers, model: ModelId) -> None:
        self.config, self.classifier, self.model = config, classifier, model
        self.queue = Queue(config.folder / "queue.sqlite", config.max_attempts)
        self.pacs = pacs_of(config)
        self.source = WebPacs(config.poll["dicomweb"], config.poll.get("user")) if config.poll else None
        self._open: dict[Any, set[str]] = {}
        self._studies: dict[tuple[str, str], int] = {}
        self._next_poll = 0.0
        self._polls_failed = 0
        self._server: Any = None

    def listen(self) -> None:
        """Take C-ECHO and C-STORE in threads of their own."""
        # a header that is to be cleared never lies on disk as it came
        pynetdicom._config.STORE_RECV_CHUNKED_DATASET = not self.config.deidentify
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)  # it quotes headers
        ae = AE(self.config.ae_title)
        ae.require_calling_aet = list(self.config.callers)
        ae.add_supported_context(Verification)
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(context.abstract_syntax, pynetdicom.ALL_TRANSFER_SYNTAXES)
        handlers = [
            (evt.EVT_C_STORE, self._stored),
            (evt.EVT_RELEASED, lambda event: self._ended(event, True)),
            (evt.EVT_CONN_CLOSE, lambda event: self._ended(event, False)),
        ]
        try:
            self._server = ae.start_server((self.config.host, self.config.port), block=False, evt_handlers=handlers)
        except OSError as error:
            raise UserError(f"{self.config.host}:{self.config.port}: {first_line(error)}; set another port") from None

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()

    def serve(self, stop: threading.Event) -> None:
        """Listen, look and answer until ``stop`` is set."""
        if self._server is None:
            self.listen()
        try:
            for uid in (e.uid for e in self.queue.entries() if e.state == DONE):
                self._clear(uid)  # a kill may have come between the answer and this
            while not stop.is_set():
                self.look()
                if not self.answer_next():
                    stop.wait(0.5)
        finally:
            self.close()

    def look(self) -> None:
        """Look where it is time to: for new series at the polled server, for the rest of those that broke off."""
        if self.source and time.monotonic() >= self._next_poll:
            try:
                self._poll(self.source)
                self._polls_failed = 0
            except PacsError as error:
                if not self._polls_failed:
                    log.warning("%s; tried again", error)
                self._polls_failed += 1
            wait = self.config.poll.get("seconds", 30) * min(2**self._polls_failed, 16)
            self._next_poll = time.monotonic() + wait
        for entry in self.queue.broken_off(self.config.stable_seconds):
            try:  # where the PACS has no more than came, the sender broke off after the last slice
                if self.pacs.count(entry.study, entry.uid) == entry.instances:
                    self.queue.ended(entry.uid, whole=True)
            except PacsError:
                log.warning("series %s waits: the PACS does not say how many slices it has", entry.uid)

    def answer_next(self) -> bool:
        """Answer one series that is complete; whether there was one."""
        entry = self.queue.claim(self.config.stable_seconds)
        if entry is None:
            return False
        try:
            self._answer(entry)
        except PacsError as error:
            self.queue.retry(entry, f"try {entry.attempts}: {error}", for_ever=not isinstance(error, PacsRefusalError))
        except UserError as error:  # what cannot be read will not be read by a second try
            self.queue.finish(entry.uid, FAILED, first_line(error))
        except Exception as error:
            self.queue.retry(entry, f"try {entry.attempts}: {why(error)}")
        return True

    def _answer(self, entry: Entry) -> None:
        outbox, inbox = self._folder("outbox", entry.uid), self._folder("inbox", entry.uid)
        if not outbox.exists():
            reason = self._before(entry, inbox)
            if reason is None:
                return
            datasets = [dcmread(path) for path in sorted(inbox.glob("*.dcm"))]
            prediction = self.classifier.predict(inbox, heat_map=True)
            if prediction.error:
                raise UserError(prediction.error)
            if (now := len(list(inbox.glob("*.dcm")))) != len(datasets):
                return self.queue.wait_again(entry.uid, now)
            self._write(outbox, datasets, prediction, reason)
        for path in sorted(outbox.glob("*.dcm")):  # the report comes last: where it is, the others are
            self.pacs.store(self._with_patient(dcmread(path), entry.study))
        self.queue.finish(entry.uid, DONE, (outbox / "reason.txt").read_text(encoding="utf-8"))
        return self._clear(entry.uid)

    def _before(self, entry: Entry, inbox: Path) -> str | None:
        """Why the series, whole in the inbox, is to be answered; None where it is not, which is noted."""
        if self._is_reported(entry):
            self.queue.finish(entry.uid, DONE, "the PACS has this model's report of it")
            self._clear(entry.uid)
            return None
        fetched = None
        if entry.source == "dicomweb":
            fetched = self.source.instances(entry.study, entry.uid) if self.source else []
            if not fetched:
                raise UserError("the server has it no longer, or is no longer polled")
            if len(fetched) != entry.instances:
                self.queue.wait_again(entry.uid, len(fetched))
                return None
            self._fetch(entry, inbox, fetched[:1])
        first = next(iter(sorted(inbox.glob("*.dcm"))), None)
        if first is None:
            raise UserError("its slices are no longer in the inbox")
        fits, reason = judge(inbox, dcmread(first, stop_before_pixels=True), self.config.accept)
        if not fits:
            discarded = self._folder("discard", entry.uid)
            shutil.rmtree(discarded, ignore_errors=True)
            inbox.rename(discarded)
            self.queue.finish(entry.uid, DISCARDED, reason)
            return None
        if fetched:
            self._fetch(entry, inbox, fetched[1:])
        return reason

    def _write(self, outbox: Path, datasets: list[Dataset], prediction: VolumePrediction, reason: str) -> None:
        """Write the results beside and rename: an outbox that is there is whole."""
        results = build_results(datasets, prediction, self.model)
        for note in results.notes:
            log.warning("series %s: %s", outbox.name, note)
        half = outbox.with_name(f"{outbox.name}.part")
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir()
        for kind, dataset in results.datasets.items():
            dataset.save_as(half / f"{kind}.dcm", enforce_file_format=True)
        write_json(half / "report.json", results.fhir)
        (half / "reason.txt").write_text(reason, encoding="utf-8")
        half.rename(outbox)

    def _with_patient(self, dataset: Dataset, study: str) -> Dataset:
        """A result as it is sent: where the disk is without the patient's data, the PACS says whose study it is."""
        if self.config.deidentify:
            known = self.pacs.study_header(study)
            for keyword in PATIENT_AND_STUDY:
                setattr(dataset, keyword, known.get(keyword, ""))
            for keyword in ("PatientIdentityRemoved", "DeidentificationMethodCodeSequence"):
                if keyword in dataset:
                    delattr(dataset, keyword)
        return dataset

    def _is_reported(self, entry: Entry) -> bool:
        """Whether the PACS has this model's report of the series; False where it cannot be asked now."""
        report = derived_uid(entry.uid, self.model.sha256, "SR", "series")
        try:
            return self.pacs.count(entry.study, str(report)) > 0
        except PacsError:
            return False  # the answer waits in the outbox

    def _clear(self, uid: str) -> None:
        """Remove what a series that was answered no longer needs; report.json stays."""
        shutil.rmtree(self._folder("inbox", uid), ignore_errors=True)
        for path in self._folder("outbox", uid).glob("*.dcm"):
            path.unlink(missing_ok=True)

    def _folder(self, name: str, uid: str) -> Path:
        folder = self.config.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder / uid

    def _poll(self, source: WebPacs) -> None:
        seen: dict[tuple[str, str], int] = {}
        for modality in self.config.modalities:
            for study, instances in source.studies(modality, self.config.poll.get("days", 2)).items():
                if instances < 0 or self._studies.get((modality, study)) != instances:
                    for uid, count in source.series(study, modality).items():
                        if UID(uid).is_valid:
                            self.queue.noticed(uid, study, count)
                seen[modality, study] = instances
        self._studies = seen

    def _fetch(self, entry: Entry, inbox: Path, uids: list[str]) -> None:
        for uid in uids:
            if UID(uid).is_valid and not (inbox / f"{uid}.dcm").exists():
                assert self.source is not None
                self._keep(self.source.instance(entry.study, entry.uid, uid), inbox)

    def _keep(self, slice_: Dataset | Path, inbox: Path, uid: str | None = None) -> None:
        """Put a slice into the inbox, whole or not at all."""
        inbox.mkdir(parents=True, exist_ok=True)
        uid = uid or str(slice_.SOPInstanceUID)
        part = inbox / f"{uid}.part"
        if isinstance(slice_, Dataset):
            dcmwrite(part, deidentify(slice_) if self.config.deidentify else slice_, enforce_file_format=True)
        else:
            shutil.copyfile(slice_, part)
        part.rename(inbox / f"{uid}.dcm")

    def _stored(self, event: Any) -> int:
        try:
            if self.config.deidentify:
                slice_ = header = event.dataset
                slice_.file_meta = event.file_meta
            else:
                slice_ = event.dataset_path
                header = dcmread(slice_, stop_before_pixels=True, specific_tags=["StudyInstanceUID",
                                 "SeriesInstanceUID", "SOPInstanceUID"])  # fmt: skip
            uids = (header.SeriesInstanceUID, header.StudyInstanceUID, header.SOPInstanceUID)
            if not all(uid.is_valid for uid in uids):  # they become names of files
                return REFUSED_UID
            series, study, instance = map(str, uids)
            if self.queue.state(series) in (DONE, DISCARDED):
                return 0x0000  # sent again
            folder = self._folder("inbox", series)
            self._keep(slice_, folder, instance)
            self._open.setdefault(event.assoc, set()).add(series)
            self.queue.received(series, study, "dimse", len(list(folder.glob("*.dcm"))))
        except OSError as error:
            log.error("a slice was refused: %s", error.strerror)
            return OUT_OF_RESOURCES
        except Exception as error:
            log.error("a slice was refused: %s", why(error))
            return CANNOT_UNDERSTAND
        return 0x0000

    def _ended(self, event: Any, whole: bool) -> None:
        for uid in self._open.pop(event.assoc, ()):
            self.queue.ended(uid, whole)


def take_up(config: NodeConfig, uid: str) -> bool:
    """Take up anew a series that failed, was discarded or waits for its rest; whether it is one of these."""
    discarded, inbox = (config.folder / name / uid for name in ("discard", "inbox"))
    if UID(uid).is_valid and discarded.exists() and not inbox.exists():
        discarded.rename(inbox)
    return Queue(config.folder / "queue.sqlite").again(uid)
