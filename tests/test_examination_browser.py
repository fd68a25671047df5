"""The page's view of examinations in a real Chromium. Skipped where Chromium is not installed."""

import base64
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel
import numpy as np
import pytest
from accessibility import barriers
from app_server import REPOSITORY, running_app
from images.mr_series import as_dicom, head
from test_app_browser import ANSWER_MS, Visit, browser, trusted_model_dir  # noqa: F401 - fixtures

from brain_tumor_mri.commands.main import main
from brain_tumor_mri.labels import RESEARCH_NOTICE, TITLES

if TYPE_CHECKING:
    from playwright import sync_api

pytestmark = pytest.mark.browser

INPUT = "#examination-input input[type=file]"
READY = "#volume-viewer section[data-ready]"
ALERT = "#examination-answer [role=alert]"
VOLUMES = Path(os.environ.get("BRAIN_TUMOR_MRI_VOLUMES", REPOSITORY.parent / "shared" / "data" / "volumes"))
AFFINE = np.array([[2.0, 0, 0, -62], [0, 2.0, 0, -71], [0, 0, 5.0, -40], [0, 0, 0, 1]])


@pytest.fixture
def visit(browser: "sync_api.Browser", trusted_model_dir: Path) -> Iterator[Visit]:  # noqa: F811
    visit = Visit(browser, running_app(str(trusted_model_dir)))
    visit.open_view("Examination")
    yield visit
    visit.context.close()
    assert visit.problems == []


def nifti(folder: Path, name: str = "t1c.nii.gz") -> Path:
    """A head whose axes run to the right, the front and the head, brighter from axis to axis."""
    path = folder / name
    nibabel.save(nibabel.Nifti1Image(head().astype(np.float32), AFFINE), path)
    return path


def examine(visit: Visit, *files: Path) -> None:
    visit.page.set_input_files(INPUT, files)
    visit.page.wait_for_selector(READY, timeout=4 * ANSWER_MS)


def drawn(visit: Visit, axis: int) -> np.ndarray:
    """The red channel of a plane's picture, (rows, columns)."""
    visit.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    width, height, red = visit.page.evaluate(
        """(axis) => {
            const canvas = document.querySelector(`.plane[data-axis="${axis}"] canvas`);
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return [canvas.width, canvas.height, Array.from(data).filter((_, k) => k % 4 === 0)];
        }""",
        axis,
    )
    return np.array(red).reshape(height, width)


def slide(visit: Visit, name: str, value: int) -> None:
    slider = visit.page.locator(f".volume input[name={name}]").first
    slider.evaluate("(s, v) => { s.value = v; s.dispatchEvent(new Event('input', { bubbles: true })); }", value)


def expected(axis: int, place: int) -> np.ndarray:
    """Grey values of a plane as radiologists look at it: the patient's right, front and head are left and top."""
    voxels = head().astype(np.float32)
    low, high = np.percentile(voxels, (0.5, 99.5))
    grey = np.uint8(255 * np.clip((voxels - low) / (high - low), 0, 1))
    return np.flip(grey.take(place, axis)).T


def test_the_three_planes_show_the_volume_and_follow_strip_sliders_keys_and_clicks(visit: Visit, tmp_path: Path):
    examine(visit, nifti(tmp_path))
    if visit.page.locator("[name=volume-opacity]").count():
        slide(visit, "volume-opacity", 0)
    strip = visit.page.locator(".strip input")
    strip.click(position={"x": strip.bounding_box()["width"] * 10.5 / 16, "y": 40})  # the bar of slice 10
    assert strip.input_value() == "10"
    assert visit.page.inner_text(".profile output").startswith("Slice 10, 10 mm superior")
    np.testing.assert_allclose(drawn(visit, 2), expected(2, 10), atol=1)
    strip.press("ArrowRight")
    np.testing.assert_allclose(drawn(visit, 2), expected(2, 11), atol=1)
    assert "Slice 11" in strip.get_attribute("aria-valuetext")
    frame = visit.page.locator(".plane[data-axis='2'] .frame")
    box = frame.bounding_box()
    # the middle of voxel (47, 17), counted from the patient's left and back
    frame.click(position={"x": box["width"] * 16.5 / 64, "y": box["height"] * 54.5 / 72})
    np.testing.assert_allclose(drawn(visit, 0), expected(0, 47), atol=1)
    np.testing.assert_allclose(drawn(visit, 1), expected(1, 17), atol=1)
    sides = visit.page.locator(".plane[data-axis='2'] .side").all_inner_texts()
    assert sides == ["R", "L", "A", "P"]
    assert (box["width"] / box["height"]) == pytest.approx(64 / 72, rel=0.02)  # voxels of 2 mm


def test_window_level_invert_and_heat_map_change_the_picture_and_reset_brings_it_back(visit: Visit, tmp_path: Path):
    examine(visit, nifti(tmp_path))
    before = drawn(visit, 2)
    slide(visit, "volume-window", 40)
    narrow = drawn(visit, 2)
    assert (narrow != before).any() and np.ptp(narrow) >= np.ptp(before)
    visit.page.get_by_role("button", name="Invert").click()
    assert drawn(visit, 2)[0, 0] == 255
    visit.page.get_by_role("button", name="Reset").click()
    assert (drawn(visit, 2) == before).all()
    answer = visit.page.inner_text("#examination-answer .finding")
    if answer != TITLES["notumor"]:
        slide(visit, "volume-opacity", 0)
        assert (drawn(visit, 2) != before).any()


def test_a_key_slice_is_gone_to_by_its_picture(visit: Visit, tmp_path: Path):
    examine(visit, nifti(tmp_path))
    button = visit.page.locator(".key-slices button").nth(1)
    index = re.search(r"Slice (\d+)", button.inner_text())[1]
    button.click()
    assert visit.page.locator(".strip input").input_value() == index


def test_after_a_failure_nothing_of_the_former_patient_is_left(visit: Visit, tmp_path: Path):
    examine(visit, nifti(tmp_path))
    (tmp_path / "other.nii.gz").write_bytes(b"\x1f\x8b no gzip")
    visit.page.set_input_files(INPUT, tmp_path / "other.nii.gz")
    visit.page.locator(ALERT).wait_for(timeout=ANSWER_MS)
    assert "other.nii.gz" in visit.page.inner_text(ALERT)
    assert visit.page.locator("canvas").count() == 0
    assert "t1c.nii.gz" not in visit.page.inner_text("#examination-view")
    assert visit.page.locator("#examination-answer .finding").count() == 0


def test_from_the_moment_of_the_choice_the_former_answer_is_not_seen(visit: Visit, tmp_path: Path):
    examine(visit, nifti(tmp_path))
    finding = visit.page.locator("#examination-answer .finding")
    assert finding.is_visible()
    visit.page.evaluate("(input) => document.querySelector(input).dispatchEvent(new Event('change'))", INPUT)
    assert not finding.is_visible()


def test_of_two_examinations_one_right_after_the_other_the_last_is_shown(visit: Visit, tmp_path: Path):
    visit.page.set_input_files(INPUT, nifti(tmp_path, "first.nii.gz"))
    visit.page.locator("#examination-answer .progress").wait_for(timeout=ANSWER_MS)
    visit.page.set_input_files(INPUT, nifti(tmp_path, "second.nii.gz"))
    source = visit.page.locator("#examination-answer .source", has_text="File:")
    source.wait_for(timeout=4 * ANSWER_MS)
    assert "second.nii.gz" in source.inner_text()


def test_a_chosen_folder_of_dicom_files_is_one_examination(visit: Visit, tmp_path: Path):
    folder = tmp_path / "study"
    folder.mkdir()
    for k, dataset in enumerate(as_dicom(head(), PatientName="Doe^Jane")):
        dataset.save_as(folder / f"IM{k}", enforce_file_format=True)
    with visit.page.expect_file_chooser() as chooser:
        visit.page.get_by_role("button", name="choose a folder").click()
    chooser.value.set_files(folder)
    visit.page.wait_for_selector(READY, timeout=4 * ANSWER_MS)
    text = visit.page.inner_text("#examination-answer")
    assert "16 files" in text and "16 axial, one every 5.0 mm" in text and "Doe^Jane" not in visit.page.content()


def test_a_volume_dropped_on_one_slice_goes_to_the_examination(visit: Visit, tmp_path: Path):
    visit.open_view("One slice")
    visit.page.evaluate(
        """(content) => {
            const dataTransfer = new DataTransfer();
            const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
            dataTransfer.items.add(new File([bytes], "dropped.nii.gz"));
            const target = document.querySelector("#slice-input button") ?? document.querySelector("#slice-input");
            target.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
        }""",
        base64.b64encode(nifti(tmp_path).read_bytes()).decode(),
    )
    visit.page.wait_for_selector(READY, timeout=4 * ANSWER_MS)
    assert "dropped.nii.gz" in visit.page.inner_text("#examination-answer")


def test_another_series_opens_on_a_click_and_the_answer_for_all_stays(visit: Visit, tmp_path: Path):
    examine(visit, nifti(tmp_path, "t1c.nii.gz"), nifti(tmp_path, "flair.nii.gz"))
    together = visit.page.locator("#examination-answer .panel").first
    assert "All 2 series together" in together.inner_text()
    before = together.locator(".finding").inner_text()
    assert "File: t1c.nii.gz" in visit.page.inner_text("#examination-answer")
    visit.page.get_by_role("button", name="2. FLAIR").click()
    visit.page.locator("#examination-answer .source", has_text="File: flair.nii.gz").wait_for(timeout=4 * ANSWER_MS)
    assert visit.page.locator("#examination-answer .panel").first.locator(".finding").inner_text() == before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_examination_has_no_barrier_and_nothing_overflows(
    browser: "sync_api.Browser",  # noqa: F811
    trusted_model_dir: Path,  # noqa: F811
    tmp_path: Path,
    scheme: str,
):
    visit = Visit(browser, running_app(str(trusted_model_dir)), scheme=scheme)
    visit.open_view("Examination")
    visit.page.wait_for_timeout(300)
    found = barriers(visit.page, "empty")
    examine(visit, nifti(tmp_path, "t1c.nii.gz"), nifti(tmp_path, "flair.nii.gz"))
    for width, height in ((1440, 900), (1024, 768), (390, 844)):
        visit.page.set_viewport_size({"width": width, "height": height})
        visit.page.wait_for_timeout(300)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        found += barriers(visit.page, f"{width}")
    (tmp_path / "bad.nii").write_text("no volume")
    visit.page.set_input_files(INPUT, tmp_path / "bad.nii")
    visit.page.locator(ALERT).wait_for(timeout=ANSWER_MS)
    found += barriers(visit.page, "failed")
    visit.context.close()
    assert not found, "\n".join(found)
    assert visit.problems == []


@pytest.mark.real_data
def test_a_real_volume_is_answered_as_the_command_line_does_and_reported_on_paper(
    browser: "sync_api.Browser",  # noqa: F811
    capsys: pytest.CaptureFixture[str],
):
    scan = VOLUMES / "tcga-fg-6692" / "t1c.nii.gz"
    model = REPOSITORY / "model-lite"
    if not scan.is_file():
        pytest.skip(f"the real volumes are not in {VOLUMES}; BRAIN_TUMOR_MRI_VOLUMES names another folder")
    assert main(["predict", str(scan), "--model", str(model), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["volumes"][0]
    visit = Visit(browser, running_app(str(model)))
    visit.open_view("Examination")
    examine(visit, scan)
    assert visit.page.inner_text("#examination-answer .finding") == TITLES[said["label"]]
    top = visit.page.inner_text("#examination-answer li.top .percent")
    assert float(top.split()[0].strip(">")) == pytest.approx(100 * said["confidence"], abs=0.06)
    keys = re.findall(r"Slice (\d+)", visit.page.inner_text(".key-slices"))
    assert keys == [str(index) for index in said["key_slices"][:3]]
    with visit.page.expect_download() as download:
        visit.page.get_by_role("link", name="Report as PDF").click()
    assert download.value.suggested_filename == "examination.pdf"
    assert Path(download.value.path()).read_bytes().startswith(b"%PDF")
    assert visit.page.inner_text("#notice") == RESEARCH_NOTICE
    visit.context.close()
    assert visit.problems == []
