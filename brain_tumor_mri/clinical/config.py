"""What node.yaml says: ``read_config("node.yaml")`` -> ``NodeConfig``, checked, each fault one line."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError, first_line
from ..images.sequence import SEQUENCES

PLANES = ("axial", "coronal", "sagittal")
RULE_KEYS = ("modality", "body_part", "sequence", "orientation")
_KNOWN = {"sequence": SEQUENCES, "orientation": PLANES}


@dataclass(frozen=True)
class NodeConfig:
    """What node.yaml says.

    Attributes:
        folder: where series, results and the queue are kept.
        host: address that the node listens on.
        port: of DICOM.
        ae_title: of the node.
        callers: AE titles that may send; empty for any.
        stable_seconds: without a new slice, after which a series is complete.
        accept: rules; a series is answered when one fits. Each maps some of ``RULE_KEYS`` to a list of values.
        send: where results go: ``{dicomweb: URL}`` or ``{host:, port:, ae_title:}``.
        poll: where series are looked for, or empty: ``{dicomweb: URL, seconds: 30, days: 2}``; ``days`` back from today
            by Study Date, null for all. ``user``, here and in ``send``, has its password in ``DICOMWEB_PASSWORD``.
        deidentify: keep series on disk without the patient's data.
        max_attempts: tries until a series has failed.
    """

    folder: Path
    host: str = "127.0.0.1"
    port: int = 11112
    ae_title: str = "BRAINTUMORMRI"
    callers: tuple[str, ...] = ()
    stable_seconds: float = 30.0
    accept: tuple[dict[str, list[str]], ...] = ({"modality": ["MR"]},)
    send: dict[str, Any] = field(default_factory=dict)
    poll: dict[str, Any] = field(default_factory=dict)
    deidentify: bool = False
    max_attempts: int = 8

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities that a rule could take: MR where none names any."""
        return tuple(sorted({m.upper() for rule in self.accept for m in rule.get("modality", ["MR"])}))


def read_config(path: str | Path) -> NodeConfig:
    """Read node.yaml."""
    try:
        config = NodeConfig(**yaml.safe_load(Path(path).read_text(encoding="utf-8")))
        rules = tuple({k: [str(v) for v in _list(values)] for k, values in rule.items()} for rule in config.accept)
        config = replace(
            config,
            folder=Path(config.folder),
            port=int(config.port),
            stable_seconds=float(config.stable_seconds),
            max_attempts=int(config.max_attempts),
            callers=tuple(str(c) for c in _list(config.callers)),
            accept=rules,
            send=dict(config.send),
            poll=dict(config.poll or {}),
        )
    except (OSError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {first_line(error)}; see docs/clinical.md for what it may say") from None
    if problem := _problem(config):
        raise UserError(f"{path}: {problem}")
    return config


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _problem(config: NodeConfig) -> str | None:
    if not config.accept:
        return "accept has no rule; leave it out to answer every MR series"
    for rule in config.accept:
        if unknown := set(rule) - set(RULE_KEYS):
            return f"accept has no {', '.join(sorted(unknown))}; it has {', '.join(RULE_KEYS)}"
        for key, known in _KNOWN.items():
            if wrong := {v.lower() for v in rule.get(key, [])} - set(known):
                return f"accept: {key} has no {', '.join(sorted(wrong))}; it has {', '.join(known)}"
    send, poll = set(config.send), set(config.poll)
    if not (send in ({"dicomweb"}, {"dicomweb", "user"}) or send == {"host", "port", "ae_title"}):
        return "send needs dicomweb (and may have user), or host, port and ae_title"
    titles = (config.ae_title, *config.callers, *([config.send["ae_title"]] if "ae_title" in send else []))
    if any(not (str(title).strip() and str(title).isascii() and len(str(title)) <= 16) for title in titles):
        return "an AE title has 1 to 16 ASCII characters"
    if any(not (isinstance(p, int) and 0 < p < 65536) for p in (config.port, config.send.get("port", 1))):
        return "a port is a number from 1 to 65535"
    if poll and ("dicomweb" not in poll or poll - {"dicomweb", "user", "seconds", "days"}):
        return "poll needs dicomweb, and may have user, seconds and days"
    if not (isinstance(config.poll.get("seconds", 30), int | float) and config.poll.get("seconds", 30) > 0):
        return "poll: seconds is a number above 0"
    if not isinstance(config.poll.get("days", 2), int | None):
        return "poll: days is a whole number, or null for all"
    if not isinstance(config.deidentify, bool):
        return "deidentify is true or false"
    return None
