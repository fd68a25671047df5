"""The page in a real Chromium, as a person uses it. Skipped where Chromium is not installed."""

import base64
import csv
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from accessibility import barriers
from app_server import EXAMPLES, NO_MODEL, running_app
from PIL import Image

from brain_tumor_mri.labels import LABELS, RESEARCH_NOTICE, TITLES
from brain_tumor_mri.page.view_slice import TEMPLATE
from tests.trust.test_trust_file import trust_for, write

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
if not CHROMIUM:
    pytest.skip("Chromium is not installed (Debian: apt-get install chromium)", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements-dev.txt)")

pytestmark = pytest.mark.browser

CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-features=LocalNetworkAccessChecks",  # a page that is said to be the Hub's shows one of this machine
]
FILE_INPUT = "#slice-input input[type=file]"
BATCH_INPUT = "#batch-input input[type=file]"
HEAT_MAP = ".viewer input[name=heat-opacity]"
ANSWER_MS = 120_000  # the first answer waits for the model to load, on a machine that others use, too
PHANTOM = EXAMPLES / "phantom-glioma.png"


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def trusted_model_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a trust.json by which a phantom is uncertain at 95 % and answered at 90 %."""
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path_factory.mktemp("trusted") / "model"))
    write(folder, trust_for(folder, temperature=8.0, left=0.8))
    return folder


class Visit:
    """One visitor's page, with everything that must not happen while they are there."""

    def __init__(
        self, browser: "sync_api.Browser", url: str, width: int = 1440, height: int = 900, scheme: str = "light"
    ) -> None:
        self.problems: list[str] = []
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)  # generous: test machines are shared
        self.page.on("pageerror", lambda error: self.problems.append(f"script error: {error}"))
        self.page.on("console", self._console)
        self.page.on("request", self._request)
        self.page.goto(url)
        self.page.wait_for_selector(FILE_INPUT, state="attached")

    def _console(self, message: "sync_api.ConsoleMessage") -> None:
        if message.type == "error":
            self.problems.append(f"console: {message.text}")

    def _request(self, request: "sync_api.Request") -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob") and address.hostname not in ("127.0.0.1", "localhost"):
            self.problems.append(f"request to {address.hostname}")

    def finding(self) -> str:
        shown = self.page.locator("#answer .finding:visible")
        shown.wait_for(timeout=ANSWER_MS)
        return shown.inner_text()

    def open_view(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()


def is_finding(text: str) -> bool:
    """Whether a text names classes only: ``Glioma, no tumour or meningioma``."""
    return set(text.lower().replace(" or ", ", ").split(", ")) <= {title.lower() for title in TITLES.values()}


@pytest.fixture
def visit(browser: "sync_api.Browser", trusted_model_dir: Path) -> Iterator[Visit]:
    visit = Visit(browser, running_app(str(trusted_model_dir)))
    yield visit
    visit.context.close()
    assert visit.problems == []


def test_uploaded_slice_gets_four_bars_an_answer_and_the_notice(visit: Visit) -> None:
    visit.page.set_input_files(FILE_INPUT, PHANTOM)
    assert is_finding(visit.finding())
    bars = visit.page.locator("#answer [role=meter]")
    assert bars.evaluate_all("bars => bars.map(bar => bar.ariaLabel)") == [TITLES[name] for name in LABELS]
    values = bars.evaluate_all("bars => bars.map(bar => Number(bar.ariaValueNow))")
    assert sum(values) == pytest.approx(100, abs=0.3)
    top = visit.page.locator("#answer li.top").inner_text().splitlines()[0]
    assert top.lower() in visit.finding().lower()
    assert PHANTOM.name in visit.page.inner_text("#answer .source")
    assert visit.page.inner_text("#notice") == RESEARCH_NOTICE
    assert visit.page.inner_text("body").count("T1") == 1, "what the model expects is said, and once"
    assert visit.page.inner_text("footer").split()[:3] == ["Use", "via", "API"]
    visit.page.wait_for_selector(HEAT_MAP, timeout=ANSWER_MS)
    for part in ("#notice", HEAT_MAP, "#answer .bars", "[data-report]"):
        box = visit.page.locator(part).bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= 900, f"{part} is not in view without scrolling"


def test_the_input_is_ready_for_the_next_slice_at_once(visit: Visit, tmp_path: Path) -> None:
    Image.open(PHANTOM).save(tmp_path / "second.png")
    visit.page.set_input_files(FILE_INPUT, PHANTOM)
    visit.page.wait_for_function("document.querySelector('#answer').innerText.includes('phantom-glioma.png')")
    visit.page.set_input_files(FILE_INPUT, tmp_path / "second.png")
    visit.page.wait_for_function("document.querySelector('#answer').innerText.includes('second.png')")


def test_the_answer_is_saved_as_pdf_and_as_json(visit: Visit) -> None:
    visit.page.set_input_files(FILE_INPUT, PHANTOM)
    title = visit.finding()
    with visit.page.expect_download(timeout=ANSWER_MS) as taken:
        visit.page.get_by_role("button", name="Report as PDF").click()
    content = Path(taken.value.path()).read_bytes()
    assert content.startswith(b"%PDF-") and b"phantom" not in content
    with visit.page.expect_download() as taken:
        visit.page.get_by_role("link", name="Report as JSON").click()
    record = json.loads(Path(taken.value.path()).read_text())
    assert TITLES[record["label"]] in title and record["notice"] == RESEARCH_NOTICE


@pytest.mark.parametrize("name", LABELS)
def test_synthetic_example_is_marked_and_answers_on_a_click(visit: Visit, name: str) -> None:
    assert "show no patient" in visit.page.inner_text("#examples-title")
    visit.page.get_by_role("button", name=f"Synthetic: {TITLES[name].lower()}").click()
    assert is_finding(visit.finding())
    assert f"phantom-{name}.png" in visit.page.inner_text("#answer .source")


def test_the_template_is_marked_as_an_average_and_answers_on_a_click(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Template: average of 152 healthy brains").click()
    assert is_finding(visit.finding())
    assert TEMPLATE in visit.page.inner_text("#answer .source")


def test_pasted_picture_is_answered(visit: Visit) -> None:
    visit.page.evaluate(
        """async (content) => {
            const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([bytes], "pasted.png", { type: "image/png" }));
            document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
        }""",
        base64.b64encode(PHANTOM.read_bytes()).decode(),
    )
    assert is_finding(visit.finding())
    assert "pasted.png" in visit.page.inner_text("#answer .source")


def test_16_bit_tiff_is_answered_and_shown(visit: Visit, tmp_path: Path) -> None:
    deep = np.asarray(Image.open(PHANTOM).convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    visit.page.set_input_files(FILE_INPUT, tmp_path / "deep.tif")
    visit.finding()
    visit.page.wait_for_function("document.querySelector('#viewer .whole img')?.naturalWidth > 0")


def test_bad_file_gives_a_message_and_the_next_good_one_an_answer(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("this is not an image")
    visit.page.set_input_files(FILE_INPUT, tmp_path / "notes.jpg")
    problem = visit.page.wait_for_selector("#answer [role=alert]", timeout=ANSWER_MS)
    assert "notes.jpg" in problem.inner_text() and "Traceback" not in problem.inner_text()
    visit.page.set_input_files(FILE_INPUT, PHANTOM)
    assert is_finding(visit.finding())


def test_an_error_after_an_answer_leaves_nothing_of_the_earlier_file(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "second.jpg").write_text("this is not an image")
    visit.page.set_input_files(FILE_INPUT, PHANTOM)
    visit.page.wait_for_selector(HEAT_MAP, timeout=ANSWER_MS)
    visit.page.set_input_files(FILE_INPUT, tmp_path / "second.jpg")
    assert "second.jpg" in visit.page.wait_for_selector("#answer [role=alert]", timeout=ANSWER_MS).inner_text()
    assert visit.page.locator("#viewer img, .heat, #answer .finding").count() == 0
    assert PHANTOM.name not in visit.page.inner_text("#slice-view")


def test_an_upload_that_the_server_refuses_never_stands_beside_an_earlier_answer(
    browser: "sync_api.Browser", trusted_model_dir: Path
) -> None:
    visit = Visit(browser, running_app(str(trusted_model_dir)))  # its console tells of the refusal: no problem here
    visit.page.set_input_files(FILE_INPUT, PHANTOM)
    visit.page.wait_for_selector(HEAT_MAP, timeout=ANSWER_MS)
    refuse = {"status": 507, "body": "no place"}
    for route, name in (("**/gradio_api/upload*", "phantom-notumor.png"), ("**/queue/join*", "phantom-pituitary.png")):
        visit.page.route(route, lambda request: request.fulfill(**refuse))
        visit.page.set_input_files(FILE_INPUT, EXAMPLES / name)
        visit.page.wait_for_timeout(2_000)
        assert visit.page.locator("#answer .finding:visible, #viewer img:visible").count() == 0, name
        visit.page.unroute(route)
    visit.page.set_input_files(FILE_INPUT, EXAMPLES / "phantom-meningioma.png")
    visit.page.wait_for_function("document.querySelector('#answer').innerText.includes('phantom-meningioma.png')")
    assert is_finding(visit.finding())
    visit.context.close()


@pytest.mark.parametrize(("host", "shown"), [("https://huggingface.co", True), ("https://example.org", False)])
def test_the_hub_may_show_the_page_in_a_frame_and_others_may_not(
    browser: "sync_api.Browser", trusted_model_dir: Path, host: str, shown: bool
) -> None:
    context = browser.new_context()
    page = context.new_page()
    frame = f'<iframe src="{running_app(str(trusted_model_dir))}" width="1000" height="800"></iframe>'
    page.route(f"{host}/**", lambda route: route.fulfill(content_type="text/html", body=frame))
    page.goto(f"{host}/spaces/someone/brain")
    notice = page.frame_locator("iframe").locator("#notice p")
    if shown:
        notice.wait_for(timeout=ANSWER_MS)
    else:
        page.wait_for_timeout(3_000)
        assert notice.count() == 0
    context.close()


def test_script_in_a_file_name_is_shown_as_text(visit: Visit, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>.png"
    (tmp_path / name).write_text("no image")
    visit.page.set_input_files(FILE_INPUT, tmp_path / name)
    visit.page.wait_for_selector("#answer [role=alert]", timeout=ANSWER_MS)
    assert visit.page.locator("#answer img").count() == 0


def test_file_over_20_mb_gives_a_message(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(bytes(20 * 2**20 + 1))
    visit.page.set_input_files(FILE_INPUT, tmp_path / "large.png")
    problem = visit.page.wait_for_selector("#answer [role=alert]", timeout=ANSWER_MS)
    assert "large.png: the file is over 20 MB" in problem.inner_text()


def test_heat_map_fades_and_changes_class_by_keyboard_without_asking_the_server(visit: Visit) -> None:
    page = visit.page
    page.set_input_files(FILE_INPUT, PHANTOM)
    slider = page.locator(HEAT_MAP)
    slider.wait_for(timeout=ANSWER_MS)
    page.wait_for_timeout(500)  # what Gradio has to say after an answer is said
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if not request.url.startswith("data:") else None)
    heat = page.locator(".mapped .heat")
    style = "element => { const s = getComputedStyle(element); return [s.opacity, s.backgroundImage]; }"
    page.locator("input[name=heat-class][value=glioma]").check()
    opacity, first_map = heat.evaluate(style)
    assert float(opacity) == pytest.approx(0.6) and first_map.startswith('url("data:image/png')
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert float(heat.evaluate(style)[0]) == pytest.approx(0.65)
    assert page.inner_text(".viewer output") == "65"
    page.locator("input[name=heat-class]:checked").focus()
    page.keyboard.press("ArrowRight")
    second_map = heat.evaluate(style)[1]
    assert second_map != first_map
    assert page.locator(".map-note:visible").count() == 1 and page.locator(".whole .heat").count() == 0
    page.keyboard.down("m")
    assert not heat.is_visible(), "held down, the key shows the slice alone"
    page.keyboard.up("m")
    assert heat.is_visible()
    page.wait_for_timeout(300)
    assert asked == []
    # the next slice comes with the opacity that was chosen
    page.set_input_files(FILE_INPUT, EXAMPLES / "phantom-pituitary.png")
    page.wait_for_function("document.querySelector('#answer').innerText.includes('phantom-pituitary.png')")
    slider.wait_for(timeout=ANSWER_MS)
    page.wait_for_function("document.querySelector('.viewer input[name=heat-opacity]')?.value === '65'")
    shown = page.locator("section.viewer").evaluate("viewer => viewer.style.getPropertyValue('--heat')")
    assert shown == f"var(--heat-{page.locator('input[name=heat-class]:checked').input_value()})"


def test_coverage_switch_changes_the_decision_in_place_and_is_kept_for_the_next_slice(visit: Visit) -> None:
    visit.page.set_input_files(FILE_INPUT, PHANTOM)
    assert " or " in visit.finding() and "Uncertain" in visit.page.inner_text("#answer")
    visit.page.get_by_role("radio", name="90 %").check()
    assert visit.finding() in TITLES.values()
    assert "Classes left at 90 %" in visit.page.locator("#answer .decision:visible").inner_text()
    visit.page.set_input_files(FILE_INPUT, EXAMPLES / "phantom-pituitary.png")
    visit.page.wait_for_function("document.querySelector('#answer').innerText.includes('phantom-pituitary.png')")
    visit.page.wait_for_function("document.querySelector('#answer input[value=\"90\"]').checked")
    assert "Classes left at 90 %" in visit.page.locator("#answer .decision:visible").inner_text()


def test_picture_keeps_its_ratio_beside_what_the_model_sees(visit: Visit, tmp_path: Path) -> None:
    Image.open(PHANTOM).resize((300, 120)).save(tmp_path / "wide.png")
    visit.page.set_input_files(FILE_INPUT, tmp_path / "wide.png")
    visit.page.wait_for_selector(HEAT_MAP, timeout=ANSWER_MS)
    visit.page.get_by_text("What the model sees").click()
    for layer, ratio in ((".whole img", 2.5), (".mapped img", 2.5), (".mapped .heat", 2.5), (".seen img", 1)):
        box = visit.page.locator(f"#viewer {layer}").bounding_box()
        assert box["width"] / box["height"] == pytest.approx(ratio, rel=0.02)
    assert "300 × 120" in visit.page.inner_text("#viewer .whole")


def test_many_files_become_a_table_that_sorts_and_a_csv(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no image")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.write(EXAMPLES / "phantom-pituitary.png", "../outside.png")
    page = visit.page
    visit.open_view("Many files")
    page.set_input_files(BATCH_INPUT, [PHANTOM, tmp_path / "bad.jpg", tmp_path / "more.zip"])
    page.get_by_text("Done: 3 of 3 files").wait_for(timeout=ANSWER_MS)
    names = "rows => rows.map(row => row.cells[1].textContent)"
    rows = page.locator("#batch-table tbody tr")
    rows.nth(2).wait_for()
    assert rows.evaluate_all(names) == ["bad.jpg", "phantom-glioma.png", "more.zip/../outside.png"]
    assert "Not readable: not a readable" in rows.nth(0).inner_text()
    page.get_by_label("Show").select_option("error")
    assert page.locator("#batch-table tbody tr:visible").count() == 1
    page.get_by_label("Show").select_option("")
    assert rows.locator("img").evaluate_all("images => images.map(image => image.naturalWidth > 0)") == [True, True]
    page.get_by_role("button", name="Probability").focus()
    page.keyboard.press("Enter")
    shares = "rows => rows.map(row => Number(row.cells[3].dataset.value))"
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("Probability")
    assert rows.evaluate_all(shares) == sorted(rows.evaluate_all(shares)) and rows.evaluate_all(shares)[0] == -1
    page.keyboard.press("Enter")
    assert rows.evaluate_all(shares) == sorted(rows.evaluate_all(shares), reverse=True)
    scroll = page.locator("#batch-table .scroll")
    scroll.evaluate("scroll => { scroll.style.maxHeight = '90px'; scroll.scrollTop = 50; }")
    assert scroll.evaluate("scroll => scroll.scrollTop") == 50
    page.get_by_role("button", name="Probability").press("Enter")
    assert scroll.evaluate("scroll => scroll.scrollTop") == 0, "what was asked for first stands in view"
    scroll.evaluate("scroll => { scroll.style.maxHeight = ''; }")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download CSV").click()
    with open(download.value.path(), newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["file"] for row in table] == ["phantom-glioma.png", "bad.jpg", "more.zip/../outside.png"]
    assert table[1]["error"] and table[0]["decision"] == "uncertain"
    assert page.inner_text("#notice") == RESEARCH_NOTICE
    # a member of a zip is opened beside its picture, by a click anywhere on its row
    page.get_by_role("cell", name="more.zip/../outside.png", exact=True).click()
    page.wait_for_function("document.querySelector('#answer').innerText.includes('more.zip/../outside.png')")
    assert page.locator("#slice-view").is_visible()


def test_two_files_dropped_on_one_slice_go_to_many_files(visit: Visit) -> None:
    drop = """(files) => {
        const dataTransfer = new DataTransfer();
        for (const [name, content] of files) {
            const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
            dataTransfer.items.add(new File([bytes], name, { type: "image/png" }));
        }
        const target = document.querySelector("#slice-input button") ?? document.querySelector("#slice-input");
        target.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
    }"""
    content = base64.b64encode(PHANTOM.read_bytes()).decode()
    visit.page.evaluate(drop, [["one.png", content], ["two.png", content]])
    visit.page.get_by_text("Done: 2 of 2 files").wait_for(timeout=ANSWER_MS)


def test_zoom_window_and_invert_change_the_picture_and_not_the_answer_and_the_history_brings_a_slice_back(
    visit: Visit,
) -> None:
    page = visit.page
    page.set_input_files(FILE_INPUT, PHANTOM)
    before = visit.finding()
    pane = page.locator(".whole .pane")
    page.get_by_role("button", name="Zoom in").click()
    assert "1.5" in pane.evaluate("pane => getComputedStyle(pane).transform")
    page.get_by_role("button", name="Invert").click()
    assert page.locator("#grey-window feFuncR").get_attribute("slope") == "-1"
    page.get_by_role("button", name="Reset").click()
    assert page.locator("#grey-window feFuncR").get_attribute("slope") == "1"
    page.get_by_label("Window: width").fill("50")
    page.get_by_label("Level: middle").fill("75")
    assert page.locator("#grey-window feFuncR").get_attribute("slope") == "2"
    assert page.locator("#grey-window feFuncB").get_attribute("intercept") == "-1", "white is 75 + 25, black 75 - 25"
    page.locator(HEAT_MAP).wait_for(timeout=ANSWER_MS)
    heat, stack = page.locator(".mapped .heat"), page.locator(".mapped .stack")
    stack.hover()
    page.mouse.down()
    assert not heat.is_visible(), "pressed, the picture shows the slice alone"
    page.mouse.up()
    assert heat.is_visible()
    stack.dblclick()
    stack.hover()
    page.mouse.wheel(0, -100)
    page.mouse.down()
    page.mouse.move(0, 0)
    page.mouse.up()
    zoomed = "pane => { const m = new DOMMatrix(getComputedStyle(pane).transform); return [m.a, m.e < 0, m.f < 0]; }"
    assert pane.evaluate(zoomed) == [pytest.approx(2.4), True, True], "zoomed about the double click, then dragged"
    page.get_by_role("button", name="Reset").click()
    assert pane.evaluate(zoomed) == [1, False, False]
    assert visit.finding() == before
    page.set_input_files(FILE_INPUT, EXAMPLES / "phantom-pituitary.png")
    page.wait_for_function("document.querySelector('#answer').innerText.includes('phantom-pituitary.png')")
    page.get_by_text("Slices of this tab (2)").click()
    page.get_by_role("button", name="phantom-glioma.png").click()
    page.wait_for_function("document.querySelector('#answer').innerText.includes('phantom-glioma.png')")


def test_cancel_keeps_what_is_done_and_the_next_batch_runs(visit: Visit, tmp_path: Path) -> None:
    # large pictures, which take seconds to answer: the run must not be over before the click
    with Image.open(PHANTOM) as phantom:
        phantom.convert("L").resize((2000, 2000)).save(tmp_path / "large.jpg", quality=40)
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(500):
            archive.write(tmp_path / "large.jpg", f"{number}.jpg")
    page = visit.page
    visit.open_view("Many files")
    page.set_input_files(BATCH_INPUT, tmp_path / "many.zip")
    page.locator("#batch-table tbody tr").first.wait_for(timeout=ANSWER_MS)
    stopped = page.get_by_text("Stopped; what was done is kept").first
    cancel = page.get_by_role("button", name="Cancel")
    cancel.wait_for(timeout=ANSWER_MS)
    # a click while the table is drawn anew on a busy machine may be lost; one that counts takes the button away
    while cancel.is_visible():
        cancel.evaluate_all("buttons => buttons.forEach(button => button.click())")
        page.wait_for_timeout(500)
    stopped.wait_for(timeout=ANSWER_MS)
    done = int(stopped.inner_text().split("kept: ")[1].split(" of 500")[0])
    assert 0 < done < 500 and page.locator("#batch-table tbody tr").count() == done
    page.set_input_files(BATCH_INPUT, [PHANTOM])
    page.get_by_text("Done: 1 of 1 file").wait_for(timeout=ANSWER_MS)


def test_model_view_shows_which_weights_answer_and_what_they_must_not_be_used_for(visit: Visit) -> None:
    visit.open_view("Model")
    visit.page.get_by_text("SHA-256 of the weights").wait_for(timeout=ANSWER_MS)
    text = visit.page.inner_text("#model")
    assert "no metrics.json" in text and "Calibration (trust.json)" in text
    assert visit.page.inner_text("#notice") == RESEARCH_NOTICE


@pytest.mark.parametrize(("width", "height"), [(1440, 700), (1024, 768), (390, 844)])
def test_notice_stays_in_view_and_nothing_overflows_in_any_view(
    browser: "sync_api.Browser", trusted_model_dir: Path, width: int, height: int
) -> None:
    visit = Visit(browser, running_app(str(trusted_model_dir)), width, height)
    visit.page.set_input_files(FILE_INPUT, PHANTOM)
    visit.page.wait_for_selector(HEAT_MAP, timeout=ANSWER_MS)
    for view in ("One slice", "Many files", "Model"):
        visit.open_view(view)
        if view == "Many files":
            visit.page.set_input_files(BATCH_INPUT, [PHANTOM])
            visit.page.get_by_text("Done: 1 of 1 file").wait_for(timeout=ANSWER_MS)
        visit.page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        visit.page.wait_for_timeout(200)
        box = visit.page.locator("#notice p").bounding_box()
        assert box is not None and box["y"] >= 0 and box["y"] + box["height"] <= height
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width, view
        visit.page.evaluate("window.scrollTo(0, 0)")
    visit.context.close()


@pytest.mark.parametrize("width", [1440, 1024])
def test_no_table_of_the_card_is_cut(browser: "sync_api.Browser", width: int) -> None:
    if not (EXAMPLES.parent / "model-lite" / "metrics.json").is_file():
        pytest.skip("there are no released weights in model-lite/")
    visit = Visit(browser, running_app(str(EXAMPLES.parent / "model-lite")), width)
    visit.open_view("Model")
    visit.page.locator("#model-card table").first.wait_for(timeout=ANSWER_MS)
    cut = "tables => tables.filter(t => t.scrollWidth > t.clientWidth).map(t => t.tHead.innerText)"
    assert visit.page.locator("#model-card table").evaluate_all(cut) == []
    assert visit.page.locator("#refusals").is_visible()
    assert barriers(visit.page, "card") == []
    visit.context.close()


def test_example_on_a_phone_brings_its_answer_into_view(browser: "sync_api.Browser", trusted_model_dir: Path) -> None:
    visit = Visit(browser, running_app(str(trusted_model_dir)), 390, 844)
    visit.page.get_by_role("button", name="Synthetic: pituitary tumour").click()
    visit.finding()
    notice = visit.page.locator("#notice p")
    visit.page.wait_for_function(
        "bottom => { const top = document.querySelector('#answer').getBoundingClientRect().top;"
        " return top >= bottom && top < 400 }",
        arg=notice.evaluate("notice => notice.getBoundingClientRect().height"),
    )
    visit.context.close()
    assert visit.problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_view_has_a_serious_barrier_for_people_with_disabilities(
    browser: "sync_api.Browser", trusted_model_dir: Path, tmp_path: Path, scheme: str
) -> None:
    visit = Visit(browser, running_app(str(trusted_model_dir)), scheme=scheme)
    visit.page.set_input_files(FILE_INPUT, PHANTOM)
    visit.page.wait_for_selector(HEAT_MAP, timeout=ANSWER_MS)
    (tmp_path / "bad.jpg").write_text("no image")
    found = []
    for view in ("One slice", "Many files", "Model"):
        visit.open_view(view)
        if view == "Many files":
            visit.page.set_input_files(BATCH_INPUT, [PHANTOM, tmp_path / "bad.jpg"])
            visit.page.get_by_text("Done: 2 of 2 files").wait_for(timeout=ANSWER_MS)
        visit.page.wait_for_timeout(300)
        found += barriers(visit.page, view)
    visit.context.close()
    assert not found, "\n".join(found)


def test_where_a_file_is_dropped_and_what_the_keyboard_is_on_is_seen(
    browser: "sync_api.Browser", trusted_model_dir: Path
) -> None:
    visit = Visit(browser, running_app(str(trusted_model_dir)))
    page = visit.page
    zone, button = page.locator("#slice-input"), page.locator("#slice-input button")
    colours = "zone => ['borderTopColor', 'backgroundColor'].map((name) => getComputedStyle(zone)[name])"
    for scheme in ("light", "dark"):
        page.evaluate("dark => document.body.classList.toggle('dark', dark)", scheme == "dark")
        page.wait_for_timeout(300)  # colours change in steps
        assert contrast(*zone.evaluate(colours)) >= 3, scheme
    ring = "element => { const s = getComputedStyle(element); return [s.outlineStyle, parseFloat(s.outlineWidth)]; }"
    page.set_input_files(FILE_INPUT, PHANTOM)
    page.wait_for_selector(HEAT_MAP, timeout=ANSWER_MS)
    page.keyboard.press("Tab")
    for element in (page.locator("[data-tool=invert]"), page.locator("[data-report]"), page.locator(HEAT_MAP)):
        element.focus()
        assert element.evaluate(ring) == ["solid", 3]
    button.focus()
    assert zone.evaluate(ring) == ["solid", 3]
    inner, outer = button.locator(".wrap").bounding_box(), zone.bounding_box()
    assert inner["y"] >= outer["y"] and inner["y"] + inner["height"] <= outer["y"] + outer["height"] + 1
    visit.context.close()


def contrast(*colours: str) -> float:
    """Contrast of two colours as WCAG defines it, 1 to 21."""

    def luminance(colour: str) -> float:
        channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
        return float(np.dot((0.2126, 0.7152, 0.0722), linear))

    low, high = sorted(luminance(colour) for colour in colours)
    return (high + 0.05) / (low + 0.05)


def test_on_paper_stand_notice_answer_and_pictures_dark_on_white_and_nothing_to_press(
    browser: "sync_api.Browser", trusted_model_dir: Path
) -> None:
    visit = Visit(browser, running_app(str(trusted_model_dir)), scheme="dark")
    page = visit.page
    page.set_input_files(FILE_INPUT, PHANTOM)
    page.wait_for_selector(HEAT_MAP, timeout=ANSWER_MS)
    page.emulate_media(media="print", color_scheme="dark")
    for pressed in ("button", "input", "#examples", "footer", "details", ".hint"):
        assert page.locator(pressed).filter(visible=True).count() == 0, pressed
    for part in (
        "#notice p",
        "h1",
        "#answer .finding",
        "#answer .bars",
        "#answer .source",
        ".whole img",
        ".mapped .heat",
    ):
        assert page.locator(part).filter(visible=True).count() == 1, part
    white = "element => getComputedStyle(element).backgroundColor"
    assert page.locator("body").evaluate(white) == page.locator(".gradio-container").evaluate(white)
    for part in ("#notice p", "#answer .finding:visible", "#answer .source", ".whole figcaption", ".map-note:visible"):
        ink = page.locator(part).evaluate("element => getComputedStyle(element).color")
        assert contrast(ink, "rgb(255, 255, 255)") >= 4.5, part
    assert len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4"))) == 1
    visit.context.close()


def test_missing_model_shows_a_message_on_the_page(browser: "sync_api.Browser") -> None:
    visit = Visit(browser, running_app(NO_MODEL))
    banner = visit.page.wait_for_selector("#model-problem [role=alert]", timeout=ANSWER_MS)
    assert NO_MODEL in banner.inner_text() and "MODEL_ID" in banner.inner_text()
    visit.page.set_input_files(FILE_INPUT, PHANTOM)
    assert NO_MODEL in visit.page.wait_for_selector("#answer [role=alert]").inner_text()
    visit.context.close()
    assert visit.problems == []
