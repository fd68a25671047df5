"""The view of an examination without a browser: the command line's answer, in words, pictures and one page of PDF."""

import base64
import gzip
import json
import re
import time
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from app_server import log_of, running_app, uploads_of
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from images.mr_series import as_dicom, head, zipped
from matplotlib.text import Text

from brain_tumor_mri.commands.main import main
from brain_tumor_mri.inference.volume import VolumeClassifier
from brain_tumor_mri.labels import RESEARCH_NOTICE
from brain_tumor_mri.page import examination_picture, examination_work
from brain_tumor_mri.page.examination_panels import Progress, answer_panel, viewer
from brain_tumor_mri.page.examination_picture import Shown, packed
from brain_tumor_mri.page.examination_report import report_figure, report_pdf
from brain_tumor_mri.page.examination_work import Examination, examine, found_series
from brain_tumor_mri.page.handle import ModelHandle
from brain_tumor_mri.trust.decision import NOT_A_BRAIN_MRI, UNFAMILIAR
from tests.inference.test_volume import CLASSIFIER, volume
from tests.inference.test_volume import head as head_with_tumour

SECRET = "Doe^Jane"
"""A patient's name, which stands in headers and file names and must not get out."""


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> ModelHandle:
    return ModelHandle(str(tiny_model_dir))


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A head as NIfTI."""
    path = tmp_path / "t1c.nii.gz"
    affine = np.diag([-2.0, -2.0, 5.0, 1.0])
    affine[:3, 3] = 60, 70, -40
    nibabel.save(nibabel.Nifti1Image(head().astype(np.float32), affine), path)
    return path


@pytest.fixture
def slices(tmp_path: Path) -> list[str]:
    """The files of one DICOM series, in a folder each, as Gradio keeps uploads."""
    paths = []
    for k, dataset in enumerate(as_dicom(head(), PatientName=SECRET)):
        path = tmp_path / f"upload{k}" / f"IM{k}"
        path.parent.mkdir()
        dataset.save_as(path, enforce_file_format=True)
        paths.append(str(path))
    return paths


def last(steps: object) -> Examination:
    *_, found = steps
    assert isinstance(found, Examination)
    return found


def said_by_command(capsys: pytest.CaptureFixture[str], model_dir: Path, path: object) -> dict:
    capsys.readouterr()
    assert main(["predict", str(path), "--volume", "--model", str(model_dir), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["volumes"][0]


def same_answer(page: dict, command: dict) -> None:
    assert page["probabilities"] == pytest.approx(command["probabilities"], abs=1e-5)
    for field in ("label", "decision", "reason", "sequence", "plane", "slice_axis", "key_slices", "warnings"):
        assert page[field] == command[field], field
    assert [s["index"] for s in page["slices"]] == [s["index"] for s in command["slices"]]


def test_the_page_answers_a_nifti_a_zip_and_single_files_as_the_command_line_does(
    model: ModelHandle, tiny_model_dir: Path, scan: Path, slices: list[str], tmp_path: Path, capsys
):
    study = zipped(as_dicom(head(), PatientName=SECRET), tmp_path / "study.zip")
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in slices:
        (folder / Path(path).name).symlink_to(path)
    for given, command in (([str(scan)], scan), ([str(study)], study), (slices, folder)):
        found = last(examine(model, given))
        link = re.search(r'data:application/json;base64,([^"]+)', found.panel)
        page = json.loads(base64.b64decode(link[1]))
        same_answer(page, said_by_command(capsys, tiny_model_dir, command))
        assert page["notice"] == RESEARCH_NOTICE and page["model"] == str(tiny_model_dir)
        assert (
            "voxels" in found.viewer and SECRET not in found.viewer + found.panel and str(tmp_path) not in page["name"]
        )


def test_progress_is_told_while_it_works(model: ModelHandle, scan: Path):
    steps = list(examine(model, [str(scan)]))
    assert all(isinstance(step, Progress) for step in steps[:-1]) and len(steps) > 1
    assert steps[0].words == "Reading the volume ..."


def test_what_cannot_be_answered_is_one_line_without_a_path_and_leaves_no_picture(
    model: ModelHandle, tmp_path: Path, scan: Path, slices: list[str], monkeypatch
):
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(scan.read_bytes()[:2000])
    text, picture = tmp_path / "notes.txt", tmp_path / "bad.zip"
    text.write_text("no scan")
    picture.write_bytes(b"PK\x03\x04 no archive")
    gone = tmp_path / "gone.nii.gz"
    for given, words in (
        ([], "No file"),
        ([str(cut)], "cut.nii.gz: damaged"),
        ([str(text)], "notes.txt: holds no volume"),
        ([str(picture)], "bad.zip"),
        ([str(gone)], "gone.nii.gz: its upload is no longer here"),
        (slices[:1], "one slice"),
        ([str(scan), str(zipped(as_dicom(head()), tmp_path / "a.zip"))], "zip among other files"),
        (slices * 200, "over 2000 files"),
    ):
        found = last(examine(model, given))
        assert words in found.panel and "<svg" not in found.viewer and "voxels" not in found.viewer, words
        assert str(tmp_path) not in found.panel
    monkeypatch.setattr(examination_work, "MAX_VOXELS", 70_000)
    assert "over 0 million voxels" in last(examine(model, [str(scan)])).panel
    monkeypatch.setattr(examination_work, "MAX_TOTAL_BYTES", 100)
    assert "send fewer series" in last(examine(model, slices)).panel


def test_an_error_that_nobody_thought_of_is_one_line_too(model: ModelHandle, scan: Path, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(f"header of {SECRET}")

    monkeypatch.setattr(VolumeClassifier, "predict", broken)
    found = last(examine(model, [str(scan)]))
    assert "RuntimeError" in found.panel and SECRET not in found.panel and "voxels" not in found.viewer


def test_work_that_nobody_waits_for_ends(model: ModelHandle, scan: Path):
    asked: list[int] = []

    def stopped() -> bool:
        asked.append(1)
        return True

    steps = list(examine(model, [str(scan)], stopped=stopped))
    assert len(asked) == 1 and not any(isinstance(step, Examination) for step in steps)


def test_a_visitor_who_leaves_ends_the_work(model: ModelHandle, scan: Path, monkeypatch):
    said = []

    def slow(self: object, source: object, *, heat_map: bool, on_slice) -> None:
        for k in range(200):
            time.sleep(0.02)
            said.append(k)
            on_slice(k + 1, 200)

    monkeypatch.setattr(VolumeClassifier, "predict", slow)
    steps = examine(model, [str(scan)])
    next(steps)
    next(steps)
    steps.close()
    assert len(said) < 150


def test_several_series_are_listed_with_an_answer_for_all_and_one_is_opened_alone(
    model: ModelHandle, scan: Path, tmp_path: Path
):
    paths = []
    for name in ("flair", "t1c", "broken"):
        (tmp_path / name).mkdir()
        paths.append(str(tmp_path / name / f"{name}.nii.gz"))
        Path(paths[-1]).write_bytes(scan.read_bytes() if name != "broken" else b"\x1f\x8b no gzip")
    found = last(examine(model, paths))
    assert [p.sequence for p in found.predictions] == ["flair", "t1c", "unknown"]
    assert "All 3 series together" in found.panel and "Not answered" in found.panel
    assert re.findall(r'data-series="(\d)" aria-current', found.panel) == ["1"]  # T1 with contrast comes first
    assert found.panel.count("data-series") == 2  # what cannot be answered cannot be opened
    assert all(p.volume is None and p.heat_map is None for p in found.predictions)
    other = last(examine(model, paths, 0, found.predictions))
    assert re.findall(r'data-series="(\d)" aria-current', other.panel) == ["0"]
    assert "File: flair.nii.gz" in other.panel and other.predictions[1] == found.predictions[1]


def test_series_of_several_studies_get_no_answer_for_all(model: ModelHandle, tmp_path: Path):
    study = zipped(as_dicom(head(), StudyInstanceUID="1.2.3"), tmp_path / "two.zip", "a")
    zipped(as_dicom(head(), name="other", StudyInstanceUID="1.2.4"), study, "b")
    found = last(examine(model, [str(study)]))
    assert len(found.predictions) == 2
    assert "not one examination" in found.panel and "together" not in found.panel


@pytest.mark.parametrize("codes", ["SPL", "RAS", "LPI", "ASR", "PIL", "ILA"])
def test_pictures_lie_as_radiologists_look_and_slices_are_the_inputs(codes: str):
    plain = Shown.of(CLASSIFIER.predict(volume(head_with_tumour()), heat_map=True))
    given = CLASSIFIER.predict(volume(head_with_tumour(), codes), heat_map=True)
    shown = Shown.of(given)
    assert (shown.voxels == plain.voxels).all() and (shown.heat == plain.heat).all()
    assert shown.steps == pytest.approx((1, 1, 4)) and shown.axis == 2
    key = given.key_slices[0]
    of_input = given.volume.array.take(key, given.slice_axis)
    of_picture = shown.voxels[:, :, shown.place(key)]
    assert (of_input == 250).sum() == (of_picture == 255).sum() > 0
    x, y, z = shown.focus(key)
    assert shown.voxels[x, y, z] == 255 and z == shown.place(key)
    red, _, blue = np.asarray(shown.picture(z)).astype(int).transpose(2, 0, 1)
    _, columns = np.nonzero(red != blue)  # coloured by the heat map: the patient's left is on the picture's right
    assert columns.mean() > red.shape[1] / 2


def test_a_large_volume_is_thinned_within_slices_and_never_between(monkeypatch):
    monkeypatch.setattr(examination_picture, "MOST_VOXELS", 24 * 80 * 70 // 4)
    given = CLASSIFIER.predict(volume(head_with_tumour()), heat_map=True)
    shown = Shown.of(given)
    assert shown.voxels.shape == (35, 40, 24) and shown.steps == pytest.approx((2, 2, 4))
    assert shown.heat.shape == shown.voxels.shape


def test_voxels_come_out_of_the_text_as_they_went_in():
    voxels = np.random.default_rng(0).integers(0, 256, (5, 6, 7), dtype=np.uint8)
    differences = np.frombuffer(gzip.decompress(base64.b64decode(packed(voxels))), np.uint8)
    assert (np.cumsum(differences, dtype=np.uint8).reshape(voxels.shape) == voxels).all()


def test_the_profile_has_a_bar_a_slice_in_the_inputs_order_and_marks_what_counts():
    given = CLASSIFIER.predict(volume(head_with_tumour(), "IPL"), heat_map=True)
    page = viewer(given, Shown.of(given))
    bars = re.findall(r'<rect class="(\w+)" x="([\d.]+)" y="[\d.]+" width="0.88" height="([\d.]+)"', page)
    assert [int(float(x)) for _, x, _ in bars] == [s.index for s in given.slices]
    assert [float(h) for *_, h in bars] == pytest.approx([max(1, 100 * s.p_tumour) for s in given.slices], abs=0.06)
    assert [int(float(x)) for kind, x, _ in bars if kind == "key"] == sorted(given.key_slices)
    assert {int(float(x)) for kind, x, _ in bars if kind == "unused"} == {s.index for s in given.slices if not s.used}


def test_where_the_file_does_not_tell_sides_none_are_marked():
    sure = CLASSIFIER.predict(volume(head_with_tumour()), heat_map=True)
    unsure = replace(sure, volume=replace(sure.volume, doubt="the file does not say which way the head lies"))
    assert 'class="side left"' in viewer(sure, Shown.of(sure))
    page = viewer(unsure, Shown.of(unsure)) + answer_panel(unsure, Shown.of(unsure), "model")
    assert 'class="side left"' not in page and "left and right are not marked" in page and "on the left" not in page


def test_a_refused_or_unfamiliar_volume_shows_no_number_at_first_and_a_refused_one_no_map():
    given = CLASSIFIER.predict(volume(head_with_tumour()), heat_map=True)
    for decision in (NOT_A_BRAIN_MRI, UNFAMILIAR):
        odd = replace(given, decision=decision, reason="it is a bottle")
        panel, page = answer_panel(odd, Shown.of(odd), "model"), viewer(odd, Shown.of(odd))
        assert "it is a bottle." in panel and panel.index("<details") < panel.index('class="bars"')
        assert ('class="heat" value=""' in page) == (decision == NOT_A_BRAIN_MRI)
        assert ("heat_map.nii.gz" in panel) == (decision != NOT_A_BRAIN_MRI)
        assert ("Key slices" in panel) == (decision != NOT_A_BRAIN_MRI)


def test_the_report_is_one_page_with_notice_answer_and_warnings_and_names_nobody():
    given = CLASSIFIER.predict(volume(head_with_tumour()), heat_map=True)
    warned = replace(
        given,
        name=f"{SECRET}.nii.gz",
        warnings=tuple(f"oddity {n}" for n in range(9)),
        volume=replace(given.volume, name=f"{SECRET}.nii.gz", study_uid="1.2.826", series_uid="1.2.827"),
    )
    shown = Shown.of(warned)
    words = " ".join(text.get_text() for text in report_figure(warned, shown, "model-x").findobj(Text))
    for part in (RESEARCH_NOTICE, "Glioma", "oddity 5", "and 3 more", "T1 with contrast", "model-x", "SHA-256"):
        assert part in words, part
    assert SECRET not in words and "1.2.82" not in words
    pdf = report_pdf(warned, shown, "model-x")
    assert pdf.startswith(b"%PDF") and len(re.findall(rb"/Type /Page\b", pdf)) == 1 and b"CreationDate" not in pdf
    assert SECRET.encode() not in pdf


def test_single_files_are_linked_among_the_uploads_and_the_links_are_gone_afterwards(
    slices: list[str], tmp_path: Path, monkeypatch
):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))  # where the page sweeps
    with found_series(slices) as found:
        assert [series.name for series in found.series] == [f"{len(slices)} files"]
        folder = found.series[0].path
        assert folder.is_dir() and folder.parent == tmp_path
    assert not folder.exists()


@pytest.fixture(scope="module")
def client(tiny_model_dir: Path) -> Client:
    return Client(running_app(str(tiny_model_dir)), verbose=False)


def test_examine_endpoint_answers_as_the_command_line_and_names_every_field(
    client: Client, tiny_model_dir: Path, scan: Path, slices: list[str], tmp_path: Path, capsys
):
    answer = client.predict([handle_file(str(scan))], True, api_name="/examine")
    same_answer(answer["volumes"][0], said_by_command(capsys, tiny_model_dir, scan))
    assert answer["volumes"][0]["name"] == scan.name and answer["together"] is None
    words = client.view_api(return_format="dict")["named_endpoints"]["/examine"]["description"]
    for field in (*answer, *answer["volumes"][0], *answer["volumes"][0]["slices"][0]):
        assert field in words, f"/examine does not say what {field} is"
    uri = answer["volumes"][0]["heat_map"]
    (tmp_path / "map.nii.gz").write_bytes(base64.b64decode(uri.removeprefix("data:application/gzip;base64,")))
    heat_map = nibabel.load(tmp_path / "map.nii.gz")
    assert heat_map.shape == head().shape
    np.testing.assert_allclose(heat_map.affine, nibabel.load(scan).affine, atol=1e-4)
    files = client.predict([handle_file(path) for path in slices], api_name="/examine")
    assert SECRET not in json.dumps(files) and "heat_map" not in files["volumes"][0]
    assert files["volumes"][0]["slices"][0]["sop_instance_uid"]


def test_examine_endpoint_gives_an_error_of_one_line(client: Client, tiny_model_dir: Path, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("no scan")
    with pytest.raises(AppError, match=r"notes\.txt: holds no volume"):
        client.predict([handle_file(str(tmp_path / "notes.txt"))], api_name="/examine")
    with pytest.raises(AppError, match="No file was given"):
        client.predict([], api_name="/examine")
    url = running_app(str(tiny_model_dir))
    assert "Traceback" not in log_of(url) and SECRET not in log_of(url)
    assert not [path for path in uploads_of(url) if path.suffix == ".pdf"]
