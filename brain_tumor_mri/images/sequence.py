"""Which sequence a series is: ``tell_sequence(physics, "description")`` -> ``SequenceGuess``, T1, FLAIR and so on.

By the physics of the header first (echo times cannot be misspelt), by the description or file name second; the
evidence is kept.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .find import VOLUME_SUFFIXES
from .header import number_of, of_frame

if TYPE_CHECKING:
    from pydicom import Dataset

SEQUENCES = ("t1", "t1c", "t2", "flair", "pd", "dwi", "adc", "other", "unknown")
"""What ``tell_sequence`` says; ``t1c`` is T1 with contrast, ``other`` a map or sequence that is none of the others."""
SEQUENCE_TITLES = {
    "t1": "T1", "t1c": "T1 with contrast", "t2": "T2", "flair": "FLAIR", "pd": "PD", "dwi": "DWI", "adc": "ADC map",
    "other": "another sequence", "unknown": "unknown sequence",
}  # fmt: skip


@dataclass(frozen=True)
class Physics:
    """What a header says of how the picture came to be; None or empty where it says nothing.

    Attributes:
        repetition_time: TR in ms.
        echo_time: TE in ms.
        inversion_time: TI in ms.
        flip_angle: degrees.
        scanning: Scanning Sequence, of SE, IR, GR, EP, RM.
        variant: Sequence Variant, such as SP (spoiled), SS (steady state), MP (magnetisation prepared).
        image_type: words of Image Type.
        contrast: whether a contrast agent is recorded.
        b_value: of diffusion, s/mm2.
        angiography: whether it is flagged as such.
    """

    repetition_time: float | None = None
    echo_time: float | None = None
    inversion_time: float | None = None
    flip_angle: float | None = None
    scanning: frozenset[str] = frozenset()
    variant: frozenset[str] = frozenset()
    image_type: frozenset[str] = frozenset()
    contrast: bool = False
    b_value: float | None = None
    angiography: bool = False


@dataclass(frozen=True)
class SequenceGuess:
    """Which sequence it is, and what told it.

    Attributes:
        name: one of ``SEQUENCES``.
        evidence: such as ``TR 9000 ms, TE 100 ms, TI 2500 ms``; empty where nothing told.
        source: ``header``, ``description``, ``file name``, ``pixels``, ``given``, or empty.
    """

    name: str = "unknown"
    evidence: str = ""
    source: str = ""


def tell_sequence(physics: Physics, text: str = "", source: str = "description") -> SequenceGuess:
    """Say which sequence it is: by physics, else by text; text also adds contrast to a T1.

    The limits of TR, TE and TI are those of textbooks, with gaps between them: what falls into one is ``unknown``.

    Args:
        physics: of the header.
        text: description, protocol or file name.
        source: what ``text`` is.
    """
    name, evidence = _by_physics(physics)
    named, contrast = _by_text(text)
    shown = f"{source} says {SEQUENCE_TITLES[named]}" if named else ""
    if name == "t1" and contrast and named in (None, "t1", "t1c"):
        return SequenceGuess("t1c", f"{evidence}; {source} says contrast", "header")
    if name:
        if named and named != name and not (name == "t1c" and named == "t1"):
            evidence += f" (although the {shown})"
        return SequenceGuess(name, evidence, "header")
    return SequenceGuess(named, shown, source) if named else SequenceGuess()


def _by_physics(physics: Physics) -> tuple[str | None, str]:
    """Sequence and evidence; None where the header leaves it open."""
    tr, te, ti = physics.repetition_time, physics.echo_time, physics.inversion_time
    flip, scan = physics.flip_angle, physics.scanning
    numbers = [f"{title} {round(value, 2):g} ms" for title, value in (("TR", tr), ("TE", te), ("TI", ti)) if value]
    shown = ", ".join(numbers + (["/".join(sorted(scan))] if scan else []))
    if physics.image_type & {"ADC", "EADC", "APPARENT DIFFUSION COEFFICIENT"}:
        return "adc", "image type ADC"
    if physics.image_type & {"DIFFUSION", "TRACEW", "TRACE"} or (physics.b_value or 0) > 0:
        return "dwi", f"b-value {physics.b_value:g}" if physics.b_value else "image type diffusion"
    maps = physics.image_type & {
        "FA", "TENSOR", "PERFUSION", "CBF", "CBV", "MTT", "TTP", "SUBTRACTION", "SUBTRACT", "PHASE", "P", "T1 MAP",
        "T2 MAP", "PROJECTION IMAGE", "MIP", "MIN IP", "SWI", "PHASE MAP", "VELOCITY",
    }  # fmt: skip
    if maps or physics.angiography:
        return "other", f"image type {sorted(maps)[0]}" if maps else "flagged as angiography"
    if te is None or tr is None or "EP" in scan:
        return None, ""
    t1 = ("t1c", f"{shown}, contrast agent recorded") if physics.contrast else ("t1", shown)
    if "GR" in scan and "SE" not in scan:
        prepared = "MP" in physics.variant or bool(ti and 400 <= ti <= 1400)
        if prepared and te < 8:
            return t1
        if te > 14 and not ti:
            return "other", f"{shown}: T2*"
        # a bSSFP or time-of-flight echo looks alike but for the flip angle: what could be either stays open
        spoiled = "SP" in physics.variant
        if spoiled and te < 10 and flip and ((tr < 15 and flip >= 8) or flip >= 28):
            return t1
        return None, ""
    if ti and tr >= 4000 and 1500 <= ti <= 3200 and te >= 60:
        return "flair", shown
    if ti and 80 <= ti <= 300 and tr >= 1500:
        return "other", f"{shown}: STIR"
    if ti and 400 <= ti <= 1200 and te <= 40 and tr <= 3500:
        return t1  # inversion recovery T1, also called T1 FLAIR
    if ti or "IR" in scan or not scan:
        return None, ""
    if tr <= 1000 and te <= 30:
        return t1
    if tr >= 1800 and te <= 40:
        return "pd", shown
    if 1800 <= tr < 7000 and te >= 70:
        return "t2", shown
    return None, ""


_WORDS = (
    ("adc", r"adc|apparent"),
    ("dwi", r"dwi|diff(usion)?|trace|ep2d.?diff|b ?1000|dti"),
    ("other", r"swi|swan|t2 ?\*|t2star|gre|hemo|tof|angio|mra|mrv|perf(usion)?|asl|stir|fmri|bold|map|fa|cbv|cbf"),
    ("flair", r"t2 ?-?flair|t2f|t2w?.?tirm|dark.?fl(uid)?|flair|tirm|fl"),
    ("t1", r"t1\w*|mp.?rage|mpr|spgr|bravo|tfl|vibe|mp2rage|tfe|thrive|fspgr"),
    ("pd", r"pd\w?|dp|proton|dens\w*"),
    ("t2", r"t2\w*|tse2|t2n"),
)
_CONTRAST = re.compile(r"gd|gad\w*|post\w*|contrast\w*|c\+|\+ ?c|ce|mdc|km|t1 ?w?(c|ce|gd|post|\+c)\w*|con|kontr\w*|c")


def _by_text(text: str) -> tuple[str | None, bool]:
    """Sequence that words of a description name, None where they name none or several; and whether contrast is."""
    words = re.findall(r"[a-z0-9*+]+", re.sub(r"(?<=[a-z0-9])(?=\+)", " ", text.lower()))
    joined = " ".join(words)
    no_contrast = re.search(r"\b(pre|without|no|non|sans|ohne|senza)\b", joined)
    contrast = not no_contrast and any(_CONTRAST.fullmatch(word) for word in words)
    found = {name for name, pattern in _WORDS if any(re.fullmatch(pattern, word) for word in words)}
    if re.search(r"t2 (star|\*)", joined):
        found = {"other"}
    if found == {"t1", "flair"}:
        found = {"t1"}  # T1 FLAIR is a T1
    if found == {"t2", "flair"}:
        found = {"flair"}
    if "other" in found and re.search(r"\b(t1|mprage)\w*\b", joined) and re.search(r"\bgre\b", joined):
        found = {"t1"}
    if found == {"t1"} and contrast:
        return "t1c", True
    return (found.pop() if len(found) == 1 else None), contrast


def sequence_of_file(path: str) -> SequenceGuess:
    """Guess of a volume in one file: by the BIDS sidecar beside it, else by its name."""
    stem = next(path[: -len(s)] for s in sorted(VOLUME_SUFFIXES, key=len, reverse=True) if path.lower().endswith(s))
    physics, described = Physics(), ""
    try:
        sidecar = Path(stem + ".json")
        tags = json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.stat().st_size < 2**20 else {}
        physics, described = _bids_physics(tags), f"{tags.get('SeriesDescription', '')} {tags.get('ProtocolName', '')}"
    except (OSError, ValueError, TypeError, AttributeError):
        pass
    guess = tell_sequence(physics, described)
    return guess if guess.name != "unknown" else tell_sequence(physics, Path(stem).name, "file name")


def _bids_physics(tags: dict[str, Any]) -> Physics:
    def ms(key: str) -> float | None:
        return 1000 * float(tags[key]) if isinstance(tags.get(key), int | float) else None

    return Physics(
        ms("RepetitionTime"),
        ms("EchoTime"),
        ms("InversionTime"),
        float(tags["FlipAngle"]) if isinstance(tags.get("FlipAngle"), int | float) else None,
        _codes(re.split(r"[\\_/]", str(tags.get("ScanningSequence", "")))),
        _codes(re.split(r"[\\_/]", str(tags.get("SequenceVariant", "")))),
        _codes(tags.get("ImageType") or []),
        bool(tags.get("ContrastBolusIngredient")),
    )


def dicom_physics(header: Dataset) -> Physics:
    """Read the physics of a DICOM header, classic or enhanced."""

    def get(group: str, keyword: str) -> Any:
        return of_frame(header, 0, group, keyword)

    timing, modifier = "MRTimingAndRelatedParametersSequence", "MRModifierSequence"
    agent = str(header.get("ContrastBolusAgent") or "").strip().upper()
    given = agent not in ("", "NO", "NONE", "N", "0", "FALSE", "W/O", "WITHOUT")
    scanning = _codes(header.get("ScanningSequence") or [])
    if not scanning and header.get("EchoPulseSequence"):  # enhanced MR
        kind = str(header.EchoPulseSequence).upper()
        scanning = frozenset(
            ({"SE"} if "SPIN" in kind or kind == "BOTH" else set())
            | ({"GR"} if "GRADIENT" in kind or kind == "BOTH" else set())
            | ({"IR"} if str(get(modifier, "InversionRecovery")).upper() == "YES" else set())
            | ({"EP"} if str(header.get("EchoPlanarPulseSequence")).upper() == "YES" else set())
        )
    times = header.get("InversionTime") or get(modifier, "InversionTimes")
    return Physics(
        number_of(get(timing, "RepetitionTime")),
        number_of(get("MREchoSequence", "EffectiveEchoTime") or header.get("EchoTime")),
        number_of(times),
        number_of(get(timing, "FlipAngle")),
        scanning,
        _codes(header.get("SequenceVariant") or []),
        _codes(get("MRImageFrameTypeSequence", "FrameType") or header.get("ImageType") or []),
        given or bool(header.get("ContrastBolusAgentSequence")),
        number_of(get("MRDiffusionSequence", "DiffusionBValue")),
        str(header.get("AngioFlag") or "").strip().upper() == "Y",
    )


def _codes(values: Any) -> frozenset[str]:
    values = [values] if isinstance(values, str) else values
    return frozenset(str(value).strip().upper().replace("_", " ") for value in values if str(value).strip())
