"""A DICOM node beside the PACS: ``Node(config, classifier, model).serve()`` takes series and sends answers back.

Series arrive by C-STORE, chunked to disk. One that is complete is answered once; results lie in an outbox before they
are sent, so a second try after a kill sends the same objects again, which a PACS takes as one.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pynetdicom
import yaml
from dicomweb_client import DICOMwebClient
from pydicom import Dataset, dcmread
from pynetdicom import AE, evt
from pynetdicom.presentation import AllStoragePresentationContexts
from pynetdicom.sop_class import Verification

from ..errors import UserError, first_line
from ..images.series import find_series
from ..inference.volume import VolumePrediction
from .queue import DISCARDED, DONE, FAILED, Entry, Queue
from .results import ModelId, build_results, why

log = logging.getLogger(__name__)


class Answers(Protocol):
    """What ``VolumeClassifier`` does for the node."""

    def predict(self, source: str | Path, *, heat_map: bool = False) -> VolumePrediction:
        """Answer one volume."""


@dataclass(frozen=True)
class NodeConfig:
    """What node.yaml says.

    Attributes:
        folder: where series, results and the queue are kept.
        host: address that the node listens on.
        port: of DICOM.
        ae_title: of the node.
        stable_seconds: without a new slice, after which a series is complete.
        accept: rules; a series is answered when one fits: ``modality``, ``body_part``, ``sequence``, each a list.
        send: where results go: ``{dicomweb: URL}`` or ``{host:, port:, ae_title:}``.
        max_attempts: tries until a series has failed.
    """

    folder: Path
    host: str = "127.0.0.1"
    port: int = 11112
    ae_title: str = "BRAINTUMORMRI"
    stable_seconds: float = 30.0
    accept: tuple[dict[str, list[str]], ...] = ({"modality": ["MR"]},)
    send: dict[str, Any] = field(default_factory=dict)
    max_attempts: int = 8


def read_config(path: str | Path) -> NodeConfig:
    """Read node.yaml.

    Raises:
        UserError: it is missing, no YAML, or says what the node does not know.
    """
    try:
        config = NodeConfig(**yaml.safe_load(Path(path).read_text()))
        rules = tuple({k: [str(v) for v in values] for k, values in rule.items()} for rule in config.accept)
    except (OSError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {first_line(error)}; see docs/clinical.md for what it may say") from None
    if unknown := {key for rule in rules for key in rule} - {"modality", "body_part", "sequence"}:
        raise UserError(f"{path}: accept has no {', '.join(sorted(unknown))}; it has modality, body_part, sequence")
    if "dicomweb" not in config.send and not {"host", "port", "ae_title"} <= set(config.send):
        raise UserError(f"{path}: send needs dicomweb, or host, port and ae_title")
    return NodeConfig(**{**vars(config), "folder": Path(config.folder), "accept": rules})


class Node:
    """Takes series, answers them, sends the results.

    Args:
        config: of ``read_config``.
        classifier: what answers a folder.
        model: what the results name.
    """

    def __init__(self, config: NodeConfig, classifier: Answers, model: ModelId) -> None:
        self.config, self.classifier, self.model = config, classifier, model
        self.queue = Queue(config.folder / "queue.sqlite", config.max_attempts)
        self._open: dict[Any, set[str]] = {}
        self._server: Any = None

    def listen(self) -> None:
        """Take C-ECHO and C-STORE in threads of their own.

        Raises:
            UserError: the port is taken.
        """
        pynetdicom._config.STORE_RECV_CHUNKED_DATASET = True
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # it quotes headers
        ae = AE(self.config.ae_title)
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

    def serve(self, stop: threading.Event) -> None:
        """Listen and answer until ``stop`` is set."""
        self.listen()
        try:
            while not stop.is_set():
                if not self.answer_next():
                    stop.wait(0.5)
        finally:
            self._server.shutdown()

    def answer_next(self) -> bool:
        """Answer one series that is complete; whether there was one."""
        entry = self.queue.claim(self.config.stable_seconds)
        if entry is None:
            return False
        try:
            if (outbox := self._outbox(entry)) is not None:
                for path in sorted(outbox.glob("*.dcm")):
                    send(dcmread(path), self.config)
                self.queue.finish(entry.uid, DONE)
        except UserError as error:  # what cannot be read will not be read by a second try
            self.queue.finish(entry.uid, FAILED, first_line(error))
        except Exception as error:
            self.queue.retry(entry, f"try {entry.attempts}: {why(error)}")
        return True

    def _outbox(self, entry: Entry) -> Path | None:
        """The folder of results, written once; None where no rule fits."""
        outbox, inbox = (self.config.folder / name / entry.uid for name in ("outbox", "inbox"))
        if outbox.exists():
            return outbox
        datasets = [dcmread(path) for path in sorted(inbox.glob("*.dcm"))]
        if refusal := self._refusal(datasets[0], inbox):
            self.queue.finish(entry.uid, DISCARDED, refusal)
            return None
        prediction = self.classifier.predict(inbox, heat_map=True)
        if prediction.error:
            raise UserError(prediction.error)
        results = build_results(datasets, prediction, self.model)
        for note in results.notes:
            log.warning("series %s: %s", entry.uid, note)
        half = outbox.with_name(f"{entry.uid}.part")
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        for kind, dataset in results.datasets.items():
            dataset.save_as(half / f"{kind}.dcm", enforce_file_format=True)
        (half / "report.json").write_text(json.dumps(results.fhir))
        half.rename(outbox)
        return outbox

    def _refusal(self, first: Dataset, inbox: Path) -> str | None:
        """Why no rule fits, or None."""
        facts = {"modality": str(first.get("Modality", "")), "body_part": str(first.get("BodyPartExamined", ""))}
        if any("sequence" in rule for rule in self.config.accept):
            facts["sequence"] = find_series(inbox)[0].sequence.name
        for rule in self.config.accept:
            if all(facts[key].lower() in [v.lower() for v in values] for key, values in rule.items()):
                return None
        return "no rule of accept fits its modality, body part and sequence"

    def _stored(self, event: Any) -> int:
        try:
            header = dcmread(event.dataset_path, stop_before_pixels=True, specific_tags=["StudyInstanceUID",
                             "SeriesInstanceUID", "SOPInstanceUID"])  # fmt: skip
            uids = (header.SeriesInstanceUID, header.StudyInstanceUID, header.SOPInstanceUID)
            if not all(uid.is_valid for uid in uids):  # they become names of files
                return 0xA900
            folder = self.config.folder / "inbox" / uids[0]
            folder.mkdir(parents=True, exist_ok=True)
            part = folder / f"{uids[2]}.part"
            shutil.copyfile(event.dataset_path, part)
            part.rename(folder / f"{uids[2]}.dcm")
            self._open.setdefault(event.assoc, set()).add(str(uids[0]))
            self.queue.received(str(uids[0]), str(uids[1]), "dimse", len(list(folder.glob("*.dcm"))))
        except OSError as error:
            log.error("a slice was refused: %s", first_line(error))
            return 0xA700
        except Exception as error:
            log.error("a slice was refused: %s", why(error))
            return 0xC000
        return 0x0000

    def _ended(self, event: Any, whole: bool) -> None:
        for uid in self._open.pop(event.assoc, ()):
            self.queue.ended(uid, whole)


def send(dataset: Dataset, config: NodeConfig) -> None:
    """Send one object by STOW or C-STORE; one that a DICOMweb server has already is not sent again.

    Raises:
        ConnectionError: it was not taken.
    """
    if "dicomweb" in config.send:
        client = DICOMwebClient(config.send["dicomweb"])
        if not client.search_for_instances(search_filters={"SOPInstanceUID": str(dataset.SOPInstanceUID)}):
            client.store_instances([dataset])
        return
    ae = AE(config.ae_title)
    ae.add_requested_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
    association = ae.associate(config.send["host"], config.send["port"], ae_title=config.send["ae_title"])
    if not association.is_established:
        raise ConnectionError
    try:
        if association.send_c_store(dataset).get("Status", 1) != 0:
            raise ConnectionError
    finally:
        association.release()


def ping(config: NodeConfig) -> list[tuple[str, str | None]]:
    """Try each verb of where results go: its name and, in a line, what is wrong."""
    found: list[tuple[str, str | None]] = []

    def attempt(verb: str, work: Callable[[], Any]) -> None:
        problem = None
        try:
            work()
        except Exception as error:
            problem = first_line(error) if isinstance(error, UserError) else f"failed ({type(error).__name__})"
        found.append((verb, problem))

    if "dicomweb" in config.send:
        client = DICOMwebClient(config.send["dicomweb"])
        client.set_http_retry_params(retry=False)  # a PACS that is off is to be told now, not after half a minute
        attempt("QIDO", lambda: client.search_for_studies(limit=1))
    else:
        attempt("C-ECHO", lambda: _echo(config))
    return found


def _echo(config: NodeConfig) -> None:
    ae = AE(config.ae_title)
    ae.add_requested_context(Verification)
    where = f"{config.send['host']}:{config.send['port']}"
    association = ae.associate(config.send["host"], config.send["port"], ae_title=config.send["ae_title"])
    if not association.is_established:
        raise UserError(f"no DICOM association with {where}; is it on, and does it know {config.ae_title}?")
    try:
        if association.send_c_echo().get("Status", 1) != 0:
            raise UserError(f"{where} refused C-ECHO")
    finally:
        association.release()
