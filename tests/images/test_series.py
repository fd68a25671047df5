"""Which sequence a series is: by physics first, by names second, ``unknown`` rather than wrong."""

import os
from pathlib import Path

import pytest
from pydicom import dcmread

from brain_tumor_mri.images.sequence import Physics, dicom_physics, tell_sequence

VOLUMES = Path(
    os.environ.get("BRAIN_TUMOR_MRI_VOLUMES", Path(__file__).resolve().parents[3] / "shared" / "data" / "volumes")
)
SE, GR, IR = frozenset({"SE"}), frozenset({"GR"}), frozenset({"IR"})


@pytest.mark.parametrize(
    ("physics", "expected"),
    [
        (Physics(500, 12, scanning=SE), "t1"),
        (Physics(500, 12, scanning=SE, contrast=True), "t1c"),
        (Physics(4000, 100, scanning=SE), "t2"),
        (Physics(2500, 20, scanning=SE), "pd"),
        (Physics(9000, 120, 2500, scanning=IR), "flair"),
        (Physics(1900, 3, 900, 9, GR | IR, frozenset({"SP", "MP"})), "t1"),
        (Physics(2000, 9, 800, scanning=IR), "t1"),  # T1 FLAIR
        (Physics(600, 20, flip_angle=20, scanning=GR), "other"),  # T2*
        (Physics(5000, 90, b_value=1000, scanning=frozenset({"EP"})), "dwi"),
        (Physics(image_type=frozenset({"ADC"})), "adc"),
        (Physics(4000, 30, 150, scanning=IR), "other"),  # STIR
        (Physics(1400, 55, scanning=SE), "unknown"),  # between all of them
        (Physics(25, 4, flip_angle=20, scanning=GR), "unknown"),  # could be time of flight
        (Physics(), "unknown"),
    ],
)
def test_physics_tell_the_sequence_or_leave_it_open(physics: Physics, expected: str):
    assert tell_sequence(physics).name == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("AX T1 POST GAD", "t1c"), ("t1 without contrast", "t1"), ("T1 FLAIR SAG", "t1"), ("T2 FLAIR", "flair"),
        ("t2_tse_tra", "t2"), ("MPRAGE +C", "t1c"), ("t2*_gre", "other"), ("ep2d_diff_ADC", "unknown"),
        ("sub-01_FLAIR", "flair"), ("TCGA_CS_4942", "unknown"), ("t1c", "t1c"), ("PD T2", "unknown"), ("", "unknown"),
    ],
)  # fmt: skip
def test_names_tell_it_where_physics_do_not(text: str, expected: str):
    assert tell_sequence(Physics(), text).name == expected


def test_physics_are_believed_before_a_name_and_the_contradiction_is_in_the_evidence():
    guess = tell_sequence(Physics(9000, 120, 2500, scanning=IR), "T1 post contrast")
    assert (guess.name, guess.source) == ("flair", "header") and "although the description says" in guess.evidence
    assert tell_sequence(Physics(449.999, 2.98, scanning=SE), "").evidence.startswith("TR 450 ms, TE 2.98 ms")
    added = tell_sequence(Physics(500, 12, scanning=SE), "T1 GAD")
    assert added.name == "t1c" and "contrast" in added.evidence


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("brainix/dicom-t1", "t1"),
        ("brainix/dicom-flair", "flair"),
        ("gui-meningioma/M013-t1c", "t1c"),
        ("papaya-dicom/pd", "pd"),
    ],
)
def test_with_descriptions_blanked_every_real_series_is_right_or_unknown(folder: str, expected: str):
    files = sorted((VOLUMES / folder).glob("*.dcm"))
    if not files:
        pytest.skip(f"the volumes are not in {VOLUMES}")
    assert tell_sequence(dicom_physics(dcmread(files[0], stop_before_pixels=True))).name in (expected, "unknown")
