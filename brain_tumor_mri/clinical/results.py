"""Answers as DICOM and FHIR: ``build_results(datasets, prediction, model)`` -> report, segmentation, capture, JSON.

Everything is marked as preliminary research output. UIDs follow from the input series and the model, so that a second
run gives the same ones. Built with highdicom.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import highdicom
import numpy as np
from PIL import Image, ImageDraw
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.sr.codedict import codes
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from ..errors import UserError, first_line
from ..inference.volume import VolumePrediction
from ..labels import CLASSES
from ..trust.decision import NOT_A_BRAIN_MRI

NOTICE = "NOT FOR CLINICAL USE"
MANUFACTURER = "brain-tumor-mri"
_SCHEME = "99BTMRI"
PATIENT_AND_STUDY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
"""What a result shares with its study, so that a PACS files it there; left empty where a series has none of it."""


@dataclass(frozen=True)
class ModelId:
    """Which model answered: its name, the software's version and the weights' SHA-256."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, eq=False)
class Results:
    """What is sent back.

    Attributes:
        datasets: ``SR``, ``SC`` and, where a tumour was marked, ``SEG`` -> dataset.
        fhir: a FHIR R4B Bundle of one DiagnosticReport and its Observations.
        notes: what was repaired or left out, a line each, without the patient's data.
    """

    datasets: dict[str, Dataset]
    fhir: dict[str, Any]
    notes: tuple[str, ...]


def derived_uid(*parts: str) -> UID:
    """The same UID for the same parts, such as the input series, the model's hash and the kind of result."""
    return UID(generate_uid(entropy_srcs=list(parts)))


def repair(datasets: Sequence[Dataset]) -> tuple[list[Dataset], list[str]]:
    """Copies whose headers the standard's tools accept, and what was changed (names of fields, never values)."""
    notes: set[str] = set()
    repaired = [_repaired(copy.deepcopy(dataset), notes) for dataset in datasets]
    places = [tuple(d.get("ImagePositionPatient") or ()) for d in repaired]
    if len(repaired) > 1 and len(set(places)) < len(places):
        notes.add("several slices have the same position")
    return repaired, sorted(notes)


def build_results(datasets: Sequence[Dataset], prediction: VolumePrediction, model: ModelId) -> Results:
    """Build what is sent back for one series; what cannot be built is left out with a note.

    Args:
        datasets: of the input series, in any order.
        prediction: an answer, with ``heat_map`` and ``mask`` where there is to be a segmentation.
        model: what answered.
    """
    sources, notes = repair(datasets)
    by_uid = {str(d.SOPInstanceUID): d for d in sources}
    built: dict[str, Dataset] = {}
    for kind, build in (("SR", _report), ("SEG", _segmentation), ("SC", _capture)):
        if kind == "SEG" and (prediction.mask is None or not prediction.mask.any()):
            notes.append("no SEG: nothing is marked")
            continue
        if kind == "SEG" and prediction.decision == NOT_A_BRAIN_MRI:
            notes.append("no SEG: it does not look like a brain MRI")
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # highdicom's quote the patient's name
                built[kind] = build(by_uid, prediction, model)
        except Exception as error:  # headers break tools in many ways; the text could quote one
            notes.append(f"no {kind}: the series' headers do not allow one ({type(error).__name__})")
            continue
        built[kind].SpecificCharacterSet = "ISO_IR 192"
    return Results(built, fhir_bundle(sources[0], prediction, model), tuple(notes))


def fhir_bundle(source: Dataset, prediction: VolumePrediction, model: ModelId) -> dict[str, Any]:
    """A FHIR R4B collection Bundle: one preliminary DiagnosticReport, one Observation a class; no patient's data."""
    study, series = str(source.StudyInstanceUID), str(source.SeriesInstanceUID)
    titles = {c.name: c.title for c in CLASSES}
    subject = {"display": "the patient of the study named in identifier"}
    identifier = [{"system": "urn:dicom:uid", "value": f"urn:oid:{study}"}]

    def url(kind: str) -> str:
        return f"urn:oid:{derived_uid(series, model.sha256, 'FHIR', kind)}"

    method = {"text": f"{model.name} {model.version}, weights SHA-256 {model.sha256}"}
    observations = [
        {
            "fullUrl": url(name),
            "resource": {
                "resourceType": "Observation",
                "status": "preliminary",
                "identifier": identifier,
                "subject": subject,
                "code": {"text": f"Probability of {titles[name]}"},
                "method": method,
                "valueQuantity": {"value": round(float(p), 6), "system": "http://unitsofmeasure.org", "code": "1"},
            },
        }
        for name, p in prediction.probabilities.items()
    ]
    report = {
        "resourceType": "DiagnosticReport",
        "status": "preliminary",
        "identifier": identifier,
        "subject": subject,
        "code": {"text": f"Brain tumour classification of an MR series, {NOTICE}"},
        "conclusion": f"{NOTICE}. {_conclusion(prediction)}",
        "result": [{"reference": entry["fullUrl"]} for entry in observations],
    }
    return {
        "resourceType": "Bundle",
        "type": "collection",
        "entry": [{"fullUrl": url("report"), "resource": report}, *observations],
    }


def _conclusion(prediction: VolumePrediction) -> str:
    text = f"{prediction.label}, probability {prediction.confidence:.2f}, decision {prediction.decision}"
    return f"{text}, because {prediction.reason}" if prediction.reason else text


def _repaired(dataset: Dataset, notes: set[str]) -> Dataset:
    raw = [e.value for e in dataset.values() if isinstance(e, RawDataElement) and e.VR in ("PN", "LO", "SH", None)]
    if not dataset.get("SpecificCharacterSet") and any(isinstance(v, bytes) and not v.isascii() for v in raw):
        dataset.SpecificCharacterSet = "ISO_IR 100"
        notes.add("text outside of its character set was read as Latin-1")
    for name in PATIENT_AND_STUDY:
        if name not in dataset or dataset[name].value is None:
            setattr(dataset, name, "")
            notes.add(f"{name} is missing and was left empty")
    if dataset.PatientSex not in ("", "M", "F", "O"):
        dataset.PatientSex = ""
        notes.add("PatientSex is none of M, F, O and was left empty")
    for name in ("StudyDate", "PatientBirthDate"):
        value = str(dataset[name].value)
        if value and not (len(value) == 8 and value.isdigit()):
            setattr(dataset, name, "")
            notes.add(f"{name} is no date and was left empty")
    if "FrameOfReferenceUID" not in dataset:
        dataset.FrameOfReferenceUID = derived_uid(str(dataset.SeriesInstanceUID), "frame of reference")
        notes.add("FrameOfReferenceUID is missing and was derived")
    return dataset


def _uids(prediction_source: Dataset, model: ModelId, kind: str) -> dict[str, Any]:
    series = str(prediction_source.SeriesInstanceUID)
    numbers = {"SR": 9901, "SEG": 9902, "SC": 9903}
    return {
        "series_instance_uid": derived_uid(series, model.sha256, kind, "series"),
        "sop_instance_uid": derived_uid(series, model.sha256, kind, "instance"),
        "series_number": numbers[kind],
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
    }


def _algorithm(model: ModelId) -> dict[str, Any]:
    return {"name": model.name, "version": model.version, "parameters": [f"weights SHA-256 {model.sha256}"]}


def _report(sources: dict[str, Dataset], prediction: VolumePrediction, model: ModelId) -> Dataset:
    """Comprehensive 3D SR by TID 1500."""
    sr = highdicom.sr
    first = next(iter(sources.values()))

    def code(value: str, meaning: str) -> Any:
        return sr.CodedConcept(value, _SCHEME, meaning)

    titles = {c.name: c.title for c in CLASSES}
    label = str(prediction.label)
    keys = [s.sop_instance_uid for s in prediction.slices if s.index in prediction.key_slices and s.sop_instance_uid]
    evidence = [sources[uid] for uid in dict.fromkeys(keys) if uid in sources] or [first]
    sides = {s.side for s in prediction.slices if s.index in prediction.key_slices} & {"left", "right"}
    laterality = {"left": codes.SCT.Left, "right": codes.SCT.Right}[sides.pop()] if len(sides) == 1 else None
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=derived_uid(str(first.SeriesInstanceUID), model.sha256, "tracking"), identifier="whole series"
        ),
        algorithm_id=sr.AlgorithmIdentification(**_algorithm(model)),
        finding_sites=[sr.FindingSite(anatomic_location=codes.SCT.Brain, laterality=laterality)],
        source_images=[sr.SourceImageForMeasurementGroup.from_source_image(d) for d in evidence],
        measurements=[
            sr.Measurement(name=code(f"P-{name}"[:16], f"Probability of {titles[name]}"[:64]), value=float(p),
                           unit=codes.UCUM.NoUnits)
            for name, p in prediction.probabilities.items()
        ],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(code("CLASS", "Class"), code(label[:16], titles[label])),
            sr.QualitativeEvaluation(
                code("DECISION", "Decision"), code(str(prediction.decision)[:16], str(prediction.decision))
            ),
            sr.QualitativeEvaluation(code("USE", "Use"), code("RESEARCH", NOTICE)),
        ],
    )  # fmt: skip
    context = sr.ObservationContext(
        observer_device_context=sr.ObserverContext(
            observer_type=codes.DCM.Device,
            observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
                uid=derived_uid(model.sha256, "device"), name=MANUFACTURER, model_name=f"{model.name} {model.version}"
            ),
        )
    )
    content = sr.MeasurementReport(
        observation_context=context,
        procedure_reported=sr.CodedConcept("MRBRAIN", _SCHEME, "MR of the brain"),
        imaging_measurements=[group],
        title=codes.DCM.ImagingMeasurementReport,
    )
    document = sr.Comprehensive3DSR(
        evidence=evidence, content=content[0], is_complete=False, is_final=False, **_uids(first, model, "SR")
    )
    document.SeriesDescription = f"Brain tumour classification, {NOTICE}"
    return document


def _segmentation(sources: dict[str, Dataset], prediction: VolumePrediction, model: ModelId) -> Dataset:
    """The mask as DICOM SEG, slice by slice on the input's own slices."""
    files = [(k, f) for k, f in enumerate(prediction.volume.slice_files) if f is not None]
    if files[0][1].frame is not None:
        files.sort(key=lambda entry: entry[1].frame)
    images = [sources[uid] for uid in dict.fromkeys(f.sop_instance_uid for _, f in files)]
    pixels = np.stack([prediction.mask[:, :, k].T for k, _ in files]).astype(np.uint8)
    segment = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label="Rough place of the finding",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Neoplasm,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=model.name,
            version=model.version,
            family=codes.cid7162.ArtificialIntelligence,
            parameters={"weights SHA-256": model.sha256},
        ),
    )
    document = highdicom.seg.Segmentation(
        source_images=images,
        pixel_array=pixels,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        manufacturer_model_name=model.name,
        software_versions=model.version,
        device_serial_number="0",
        content_label="ROUGH_PLACE",
        content_description=NOTICE,
        **_uids(images[0], model, "SEG"),
    )
    document.SeriesDescription = f"Rough place, {NOTICE}"
    return document


def _capture(sources: dict[str, Dataset], prediction: VolumePrediction, model: ModelId) -> Dataset:
    first = next(iter(sources.values()))
    document = highdicom.sc.SCImage.from_ref_dataset(
        ref_dataset=first,
        pixel_array=render(prediction, model),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **_uids(first, model, "SC"),
    )
    document.PatientOrientation = ""  # of a sheet of pictures there is none
    document.SeriesDescription = f"Key image, {NOTICE}"
    return document


def render(prediction: VolumePrediction, model: ModelId) -> np.ndarray:
    """Key image, heat map and profile side by side, uint8 (512, 1024, 3), the notice burnt in."""
    sheet = Image.new("RGB", (1024, 512))
    draw = ImageDraw.Draw(sheet)
    k = prediction.key_slices[0] if prediction.key_slices else prediction.volume.array.shape[2] // 2
    axis = prediction.slice_axis
    plane = np.take(prediction.volume.array, k, axis=axis).T
    low, high = np.percentile(plane, (1, 99.5))
    grey = np.clip((plane - low) / max(high - low, 1e-6), 0, 1)
    sheet.paste(_panel(np.repeat(grey[..., None], 3, axis=2)), (0, 40))
    heat = np.zeros_like(grey)
    if prediction.heat_map is not None:
        heat = np.take(prediction.heat_map, k, axis=axis).T
    sheet.paste(_panel(np.stack([np.maximum(grey, heat), grey * (1 - heat / 2), grey * (1 - heat)], axis=2)), (342, 40))
    draw.line([(700, 360), (1010, 360)], fill="grey")
    for s in prediction.slices:
        x = 700 + 310 * s.index / max(prediction.volume.array.shape[axis] - 1, 1)
        draw.line([(x, 360), (x, 360 - 300 * s.p_tumour)], fill="orange" if s.index == k else "white", width=2)
    draw.text((700, 370), "tumour probability, slice by slice", fill="white", font_size=16)
    draw.text((8, 8), NOTICE, fill="red", font_size=24)
    draw.text((8, 400), f"RESEARCH OUTPUT, PRELIMINARY. {_conclusion(prediction)}"[:110], fill="white", font_size=18)
    draw.text((8, 430), f"slice {k}; {model.name} {model.version}, {model.sha256[:12]}", fill="white", font_size=16)
    return np.asarray(sheet)


def _panel(colours: np.ndarray) -> Image.Image:
    return Image.fromarray((colours * 255).astype(np.uint8)).resize((336, 336))


def why(error: BaseException) -> str:
    """What an error may say in a log: our own errors their line, any other its kind, as it could quote a header."""
    return first_line(error) if isinstance(error, UserError) else type(error).__name__
