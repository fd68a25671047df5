"""The traps of real files: each read with a word on what is odd, or refused in a line."""

from pathlib import Path

import numpy as np
import pytest
from images.test_series import VOLUMES

from brain_tumor_mri.images.series import UnreadableVolumeError, find_series
from brain_tumor_mri.images.volume import read_volume

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not VOLUMES.is_dir(), reason=f"the volumes are not in {VOLUMES}"),
]


@pytest.mark.parametrize(
    ("name", "shape", "sequence", "warnings"),
    [
        ("brainix/dicom-t1", (512, 512, 22), "t1", []),  # PatientSex 0000, broken Latin-1, oblique
        ("brainix/dicom-flair", (288, 288, 22), "flair", []),
        ("gui-meningioma/M013-t1c", (224, 256, 176), "t1c", ["one position", "4 of 176 slices are missing"]),
        ("tcga-fg-6692/t2.nii.gz", (224, 256, 26), "t2", []),
        ("pyradiomics/brain1_image.nrrd", (256, 256, 25), "unknown", []),
        ("papaya-dicom", (256, 256, 20), "pd", []),
        ("open-ms/patient07/t1post.nii.gz", (182, 218, 182), "t1c", ["values go below 0"]),
        ("voxelmorph-oasis/test_vol.nii.gz", (160, 192, 224), "unknown", ["bare diagonal"]),
    ],
)
def test_what_is_odd_is_named_and_nothing_else_is(name: str, shape: tuple, sequence: str, warnings: list[str]):
    volume = read_volume(VOLUMES / name)
    assert volume.array.shape == shape and volume.sequence.name == sequence
    assert len(volume.warnings) == len(warnings)
    assert all(words in line for words, line in zip(warnings, volume.warnings, strict=True))
    assert bool(volume.doubt) == ("bare diagonal" in warnings)  # an affine that lies about the axes
    assert np.isfinite(volume.array).all()


@pytest.mark.parametrize(
    "name", ["brainix/dicom-roi", "lgg/TCGA_CS_4942_19970222/mask.nii.gz", "pyradiomics/brain1_label.nrrd",
             "brats-case/seg.nii.gz"]
)  # fmt: skip
def test_a_mask_is_no_scan(name: str):
    with pytest.raises(UnreadableVolumeError, match="a mask or label map"):
        read_volume(VOLUMES / name)


def test_sequences_of_one_patient_with_other_matrices_and_orientations_are_told_by_their_names():
    found = {series.sequence.name: read_volume(series) for series in find_series(VOLUMES / "tcga-fg-6692")}
    assert list(found) == ["flair", "t1", "t1c", "t2"]
    assert len({volume.array.shape for volume in found.values()}) > 1


def test_no_name_of_a_patient_is_in_what_is_said():
    for name in ("brainix/dicom-t1", "gui-meningioma/M013-t1c", "papaya-dicom"):
        volume = read_volume(VOLUMES / name)
        said = f"{volume.sequence} {volume.warnings} {volume.doubt}".lower()
        assert Path(volume.name) == VOLUMES / name
        assert not any(word in said for word in ("brainix", "m013", "papaya", "anonym"))
