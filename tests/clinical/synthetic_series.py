"""A small synthetic MR series with a patient's data in its headers, and an answer to it."""

import time
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE

from brain_tumor_mri.images.volume import Volume, read_volume
from brain_tumor_mri.inference.volume import SliceAnswer, VolumePrediction
from brain_tumor_mri.labels import LABELS

SECRETS = ("Mustermann", "19560417", "ACC4711")
"""Patient's name, birth date and accession number, which may be in no log, error or file name."""


def series(name: str, slices: int = 6, **header: object) -> list[Dataset]:
    """Datasets of an axial T1 series; the name decides the UIDs."""
    made = []
    for k in range(slices):
        d = Dataset()
        d.file_meta, d.preamble = FileMetaDataset(), bytes(128)
        d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        d.SOPClassUID = d.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        d.SOPInstanceUID = d.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[name, str(k)])
        d.StudyInstanceUID = generate_uid(entropy_srcs=[name, "study"])
        d.SeriesInstanceUID = generate_uid(entropy_srcs=[name, "series"])
        d.FrameOfReferenceUID = generate_uid(entropy_srcs=[name, "frame"])
        d.PatientName, d.PatientBirthDate, d.AccessionNumber = f"{SECRETS[0]}^Erika", SECRETS[1], SECRETS[2]
        d.PatientID, d.PatientSex, d.StudyID, d.StudyDate, d.StudyTime = "P1", "F", "1", "20200101", "101010"
        d.Modality, d.BodyPartExamined, d.InstanceNumber, d.SeriesNumber = "MR", "BRAIN", k + 1, 3
        d.ScanningSequence, d.RepetitionTime, d.EchoTime = "SE", 500, 10
        d.ImageOrientationPatient, d.PixelSpacing, d.SliceThickness = [1, 0, 0, 0, 1, 0], [4, 4], 5
        d.ImagePositionPatient = [-128, -128, 5.0 * k]
        d.Rows = d.Columns = 64
        d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 12, 11, 0
        grid = np.hypot(*np.mgrid[-32:32, -32:32])
        d.PixelData = ((grid < 25) * (500 + 20 * k + 5 * grid)).astype(np.uint16).tobytes()
        for keyword, value in header.items():
            if value is None:
                delattr(d, keyword)
            else:
                setattr(d, keyword, value)
        made.append(d)
    return made


def examination(name: str) -> dict[str, list[Dataset]]:
    """Four series of one study, by the sequence that they are."""
    headers = {
        "t1": {},
        "t1c": {"ContrastBolusAgent": "Gd"},
        "t2": {"RepetitionTime": 4000, "EchoTime": 100},
        "flair": {"RepetitionTime": 9000, "EchoTime": 120, "InversionTime": 2500, "ScanningSequence": ["SE", "IR"]},
    }
    study = generate_uid(entropy_srcs=[name, "study"])
    return {
        sequence: series(f"{name} {sequence}", StudyInstanceUID=study, SeriesNumber=number, **header)
        for number, (sequence, header) in enumerate(headers.items(), 1)
    }


def push(port: int, datasets: list[Dataset], *, abort: bool = False) -> None:
    """Send datasets to a node by C-STORE, and end the association as asked."""
    ae = AE("SCANNER")
    ae.add_requested_context(datasets[0].SOPClassUID, datasets[0].file_meta.TransferSyntaxUID)
    association = ae.associate("127.0.0.1", port, ae_title="BRAINTUMORMRI")
    assert association.is_established
    for dataset in datasets:
        assert association.send_c_store(dataset).Status == 0
    association.abort() if abort else association.release()
    time.sleep(0.5)


def write(datasets: list[Dataset], folder: Path) -> Path:
    """Write a series as files."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, dataset in enumerate(datasets):
        dataset.save_as(folder / f"{k}.dcm", enforce_file_format=True)
    return folder


class FakeClassifier:
    """Answers every volume with a meningioma on its left, in no time."""

    def predict(self, source: str | Path | Volume, *, heat_map: bool = False) -> VolumePrediction:
        """As of ``VolumeClassifier``."""
        volume = source if isinstance(source, Volume) else read_volume(source)
        mask = np.zeros(volume.array.shape, np.uint8)
        mask[40:50, 20:31, 2:4] = 1
        probabilities = dict(zip(LABELS, (0.1, 0.7, 0.1, 0.1), strict=True))
        slices = tuple(
            SliceAnswer(k, 5.0 * k, 0.8, probabilities, side="left", sop_instance_uid=f.sop_instance_uid if f else None)
            for k, f in enumerate(volume.slice_files)
        )
        return VolumePrediction(
            "scan", LABELS[1], 0.7, probabilities, decision="answer", sequence=volume.sequence.name, plane="axial",
            slices=slices, key_slices=(2, 3), volume=volume, heat_map=mask.astype(np.float32), mask=mask,
        )  # fmt: skip
