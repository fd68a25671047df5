"""The page in a real Chromium, as a person uses it. Skipped where Chromium is not installed."""

import base64
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from app_server import EXAMPLES, NO_MODEL, running_app
from PIL import Image

from brain_tumor_mri.labels import LABELS, RESEARCH_NOTICE, TITLES

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
]
FILE_INPUT = "#slice-input input[type=file]"
ANSWER_MS = 60_000  # the first answer waits for the model to load
PHANTOM = EXAMPLES / "phantom-glioma.png"


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        yield browser
        browser.close()


class Visit:
    """One visitor's page, with everything that must not happen while they are there."""

    def __init__(self, browser: "sync_api.Browser", url: str, width: int = 1440, height: int = 900) -> None:
        self.problems: list[str] = []
        self.context = browser.new_context(viewport={"width": width, "height": height})
        self.page = self.context.new_page()
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
        self.page.wait_for_selector("#answer .finding", timeout=ANSWER_MS)
        return self.page.inner_text("#answer .finding")


@pytest.fixture
def visit(browser: "sync_api.Browser", tiny_model_dir: Path) -> Iterator[Visit]:
    visit = Visit(browser, running_app(str(tiny_model_dir)))
    yield visit
    visit.context.close()
    assert visit.problems == []


def test_uploaded_slice_gets_four_bars_an_answer_and_the_notice(visit: Visit) -> None:
    visit.page.set_input_files(FILE_INPUT, PHANTOM)
    assert visit.finding() in TITLES.values()
    bars = visit.page.locator("#answer [role=meter]")
    assert bars.evaluate_all("bars => bars.map(bar => bar.ariaLabel)") == [TITLES[name] for name in LABELS]
    values = bars.evaluate_all("bars => bars.map(bar => Number(bar.ariaValueNow))")
    assert sum(values) == pytest.approx(100, abs=0.3)
    assert visit.page.locator("#answer li.top").inner_text().startswith(visit.finding())
    assert PHANTOM.name in visit.page.inner_text("#answer .source")
    assert visit.page.inner_text("#notice") == RESEARCH_NOTICE


def test_the_input_is_ready_for_the_next_slice_at_once(visit: Visit, tmp_path: Path) -> None:
    Image.open(PHANTOM).save(tmp_path / "second.png")
    visit.page.set_input_files(FILE_INPUT, PHANTOM)
    visit.page.wait_for_function("document.querySelector('#answer').innerText.includes('phantom-glioma.png')")
    visit.page.set_input_files(FILE_INPUT, tmp_path / "second.png")
    visit.page.wait_for_function("document.querySelector('#answer').innerText.includes('second.png')")


@pytest.mark.parametrize("name", LABELS)
def test_synthetic_example_is_marked_and_answers_on_a_click(visit: Visit, name: str) -> None:
    assert "Synthetic examples" in visit.page.inner_text("#examples-title")
    visit.page.get_by_role("button", name=f"Synthetic: {TITLES[name].lower()}").click()
    assert visit.finding() in TITLES.values()
    assert f"phantom-{name}.png" in visit.page.inner_text("#answer .source")


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
    assert visit.finding() in TITLES.values()
    assert "pasted.png" in visit.page.inner_text("#answer .source")


def test_16_bit_tiff_is_answered_and_shown(visit: Visit, tmp_path: Path) -> None:
    deep = np.asarray(Image.open(PHANTOM).convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    visit.page.set_input_files(FILE_INPUT, tmp_path / "deep.tif")
    visit.finding()
    visit.page.wait_for_function("document.querySelector('#preview img')?.naturalWidth > 0")


def test_bad_file_gives_a_message_and_the_next_good_one_an_answer(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("this is not an image")
    visit.page.set_input_files(FILE_INPUT, tmp_path / "notes.jpg")
    problem = visit.page.wait_for_selector("#answer [role=alert]", timeout=ANSWER_MS)
    assert "notes.jpg" in problem.inner_text() and "Traceback" not in problem.inner_text()
    visit.page.set_input_files(FILE_INPUT, PHANTOM)
    assert visit.finding() in TITLES.values()


def test_script_in_a_file_name_is_shown_as_text(visit: Visit, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>.png"
    (tmp_path / name).write_text("no image")
    visit.page.set_input_files(FILE_INPUT, tmp_path / name)
    visit.page.wait_for_selector("#answer [role=alert]", timeout=ANSWER_MS)
    assert visit.page.locator("#answer img").count() == 0


def test_file_over_20_mb_gives_a_message(browser: "sync_api.Browser", tiny_model_dir: Path, tmp_path: Path) -> None:
    # No check of the console here: the browser itself logs the refused upload.
    visit = Visit(browser, running_app(str(tiny_model_dir)))
    (tmp_path / "large.png").write_bytes(bytes(20 * 2**20 + 1))
    visit.page.set_input_files(FILE_INPUT, tmp_path / "large.png")
    visit.page.get_by_text("maximum").or_(visit.page.get_by_text("exceeds")).first.wait_for(timeout=20_000)
    visit.context.close()


@pytest.mark.parametrize(("width", "height"), [(1440, 700), (390, 844)])
def test_notice_stays_in_view_and_nothing_overflows(
    browser: "sync_api.Browser", tiny_model_dir: Path, width: int, height: int
) -> None:
    visit = Visit(browser, running_app(str(tiny_model_dir)), width, height)
    visit.page.set_input_files(FILE_INPUT, PHANTOM)
    visit.finding()
    visit.page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    visit.page.wait_for_timeout(200)
    box = visit.page.locator("#notice p").bounding_box()
    assert box is not None and box["y"] >= 0 and box["y"] + box["height"] <= height
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    visit.context.close()


def test_example_on_a_phone_brings_its_picture_into_view(browser: "sync_api.Browser", tiny_model_dir: Path) -> None:
    visit = Visit(browser, running_app(str(tiny_model_dir)), 390, 844)
    visit.page.get_by_role("button", name="Synthetic: pituitary tumour").click()
    visit.finding()
    notice = visit.page.locator("#notice p")
    visit.page.wait_for_function(
        "bottom => { const top = document.querySelector('#preview').getBoundingClientRect().top;"
        " return top >= bottom && top < 400 }",
        arg=notice.evaluate("notice => notice.getBoundingClientRect().height"),
    )
    visit.context.close()
    assert visit.problems == []


def test_missing_model_shows_a_message_on_the_page(browser: "sync_api.Browser") -> None:
    visit = Visit(browser, running_app(NO_MODEL))
    banner = visit.page.wait_for_selector("#model-problem [role=alert]", timeout=ANSWER_MS)
    assert NO_MODEL in banner.inner_text() and "MODEL_ID" in banner.inner_text()
    visit.page.set_input_files(FILE_INPUT, PHANTOM)
    assert NO_MODEL in visit.page.wait_for_selector("#answer [role=alert]").inner_text()
    visit.context.close()
    assert visit.problems == []
