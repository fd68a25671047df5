"""web/: the page that answers in the browser, in a real Chromium; and what its build refuses."""

import csv
import functools
import io
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from accessibility import barriers
from PIL import Image

from brain_tumor_mri import TumorClassifier
from brain_tumor_mri.inference.prediction import Prediction
from brain_tumor_mri.labels import LABELS, RESEARCH_NOTICE, TITLES
from brain_tumor_mri.trust.decision import NOT_A_BRAIN_MRI
from tests.web.test_transformers_js import INSTALL, WEB, export_of, noise, slices_of

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
BAD_FILES = {
    "notes.jpg": (b"this is not an image", "not a readable"),
    "empty.png": (b"", "empty"),
    "scan.dcm": (bytes(128) + b"DICM" + bytes(99), "DICOM"),
    "scan.tif": (b"II*\0" + bytes(99), "TIFF"),
    "<img src=x onerror=alert(1)>.gif": (b"GIF89a" + bytes(99), "GIF"),
}


class Server:
    """Serves a folder on a port of its own, as a Static Space does, and keeps what was asked."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *arguments: object) -> None:
                asked.append(self.path)

        handler = functools.partial(Handler, directory=str(folder))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def slices(phantom_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return slices_of(phantom_dir, tmp_path_factory.mktemp("web-slices"), 6)


@pytest.fixture(scope="module")
def exported(tiny_model_dir: Path, slices: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_of(tiny_model_dir, tmp_path_factory.mktemp("web-export"), slices)


@pytest.fixture(scope="module")
def expected(exported: Path, slices: list[Path]) -> list[Prediction]:
    return TumorClassifier.from_pretrained(exported).predict(slices)


def build(*arguments: str) -> int:
    sys.path.insert(0, str(WEB))
    try:
        import build
    finally:
        sys.path.remove(str(WEB))
    return build.main(arguments)


@pytest.fixture(scope="module")
def site(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not (WEB / "node_modules" / "onnxruntime-web").is_dir():
        pytest.skip(f"onnxruntime-web is not installed; {INSTALL}")
    folder = tmp_path_factory.mktemp("site") / "dist"
    assert build("--model", str(exported), "--output", str(folder)) == 0
    server = Server(folder)
    yield server
    server.server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    if not CHROMIUM:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements-dev.txt)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        yield browser
        browser.close()


class Visit:
    """One visitor's page, with everything that must not happen while they are there."""

    def __init__(self, browser, url: str, width: int = 1440, height: int = 900, scheme: str = "light") -> None:
        self.problems: list[str] = []
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)  # generous: test machines are shared
        self.page.on("pageerror", lambda error: self.problems.append(f"script error: {error}"))
        self.page.on("console", lambda told: self.problems.append(told.text) if told.type == "error" else None)
        own = (url, f"blob:{url}", "data:")
        self.context.on(
            "request", lambda asked: None if asked.url.startswith(own) else self.problems.append(f"asked {asked.url}")
        )
        self.page.goto(url)
        self.page.wait_for_selector("html[data-ready]")

    def answer(self, file: Path) -> dict:
        """Give the page a file; return what it answers."""
        self.page.set_input_files("#file", file)
        self.page.locator("#answer[data-answer] .source", has_text=file.name).wait_for()
        return json.loads(self.page.get_attribute("#answer", "data-answer"))


@pytest.fixture
def visit(browser, site: Server) -> Iterator[Visit]:
    visit = Visit(browser, site.url)
    yield visit
    visit.context.close()
    assert visit.problems == []


@pytest.mark.browser
def test_the_page_answers_and_decides_as_python_does_without_a_network(
    visit: Visit, slices: list[Path], expected: list[Prediction], site: Server
):
    assert {len(said.prediction_set) > 1 for said in expected} == {True, False}
    asked = len(site.asked)
    visit.context.set_offline(True)
    for file, ours in zip(slices, expected, strict=True):
        theirs = visit.answer(file)
        assert theirs["probabilities"] == pytest.approx(ours.probabilities, abs=1e-3)
        assert theirs["label"] == ours.label and theirs["unlikeness"] == pytest.approx(ours.unlikeness, rel=1e-2)
        sets = {int(coverage): tuple(said["prediction_set"]) for coverage, said in theirs["decisions"].items()}
        assert sets == ours.prediction_sets and theirs["decisions"]["95"]["decision"] == ours.decision
    answered = next(place for place, said in enumerate(expected) if said.decision != NOT_A_BRAIN_MRI)
    visit.answer(slices[answered])
    bars = visit.page.locator("#answer [role=meter]")
    assert bars.evaluate_all("bars => bars.map(bar => bar.ariaLabel)") == [TITLES[name] for name in LABELS]
    values = bars.evaluate_all("bars => bars.map(bar => Number(bar.ariaValueNow))")
    assert values == pytest.approx([100 * value for value in expected[answered].probabilities.values()], abs=0.2)
    assert visit.page.inner_text("#notice") == RESEARCH_NOTICE
    visit.page.get_by_role("button", name="Synthetic: glioma").click()
    visit.page.locator("#answer .source", has_text="phantom-glioma.png").wait_for()
    assert len(site.asked) == asked


@pytest.mark.browser
def test_the_page_draws_the_heat_map_that_python_draws(
    visit: Visit, slices: list[Path], expected: list[Prediction], exported: Path
):
    place = next(i for i, said in enumerate(expected) if said.decision != NOT_A_BRAIN_MRI)
    visit.answer(slices[place])
    canvas = visit.page.locator(".heat canvas")
    classifier = TumorClassifier.from_pretrained(exported)
    for target in ("glioma", "pituitary"):
        visit.page.locator(f"input[name=map][value={target}]").check(force=True)
        assert canvas.get_attribute("data-class") == target
        values = canvas.evaluate("c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")
        drawn = np.reshape(values, (224, 224, 4))[..., :3]
        ours = np.asarray(classifier.explain(slices[place], target).overlay(), int)
        assert np.abs(drawn - ours).mean() < 1 and np.abs(drawn - ours).max() < 16


@pytest.mark.browser
def test_the_released_page_answers_and_draws_as_python_does(browser, tmp_path: Path):
    model = WEB.parent / "model-lite"
    if not (model / "onnx" / "model.onnx").is_file():
        pytest.skip(f"{model} has no ONNX file")
    assert build("--model", str(model), "--output", str(tmp_path / "dist")) == 0
    site, classifier = Server(tmp_path / "dist"), TumorClassifier.from_pretrained(model, backend="onnx")
    visit = Visit(browser, site.url)
    drawn = 0
    for file in sorted((WEB.parent / "examples").glob("*.png")):
        theirs, ours = visit.answer(file), classifier.predict(file)
        assert theirs["probabilities"] == pytest.approx(ours.probabilities, abs=1e-4)
        assert theirs["decisions"]["95"]["decision"] == ours.decision
        if visit.page.locator(".heat canvas").count():
            visit.page.locator("input[name=map][value=glioma]").check(force=True)
            script = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
            pixels = visit.page.locator(".heat canvas").evaluate(script)
            expected = np.asarray(classifier.explain(file, "glioma").overlay(), int)
            # a map that differs by 1e-4 is a colour that differs by less than 1 of 255
            assert np.abs(np.reshape(pixels, (*expected.shape[:2], 4))[..., :3] - expected).max() <= 1, file
            drawn += 1
    visit.context.close()
    site.server.shutdown()
    assert drawn and visit.problems == []


@pytest.mark.browser
def test_many_files_become_a_table_whose_rows_show_them(
    visit: Visit, slices: list[Path], expected: list[Prediction], tmp_path: Path
):
    (tmp_path / "bad.jpg").write_text("no image")
    visit.page.set_input_files("#file", [*slices, tmp_path / "bad.jpg"])
    visit.page.locator("#csv:visible").wait_for()
    assert visit.page.inner_text("#many-count") == f"{len(slices) + 1} files"
    with visit.page.expect_download() as download:
        visit.page.click("#csv")
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text(encoding="utf-8"))))
    assert [row["file"] for row in rows] == [path.name for path in [*slices, tmp_path / "bad.jpg"]]
    assert [row["class"] for row in rows[:-1]] == [said.label for said in expected]
    assert [row["decision"] for row in rows[:-1]] == [said.decision for said in expected]
    assert "not a readable" in rows[-1]["error"] and not rows[-1]["class"]
    visit.page.get_by_role("button", name=slices[1].name).click()
    visit.page.locator("#answer .source", has_text=slices[1].name).wait_for()


@pytest.mark.browser
def test_coverage_changes_the_decision_by_keyboard(visit: Visit, slices: list[Path], expected: list[Prediction]):
    place = next(i for i, said in enumerate(expected) if [len(said.prediction_sets[c]) for c in (90, 95)] == [1, 2])
    visit.answer(slices[place])
    assert " or " in visit.page.inner_text(".finding") and "Uncertain" in visit.page.inner_text("#answer h2")
    visit.page.locator("input[name=coverage]:checked").focus()
    visit.page.keyboard.press("ArrowLeft")
    assert visit.page.inner_text(".finding") == TITLES[expected[place].label]


@pytest.mark.browser
def test_a_picture_that_is_no_mri_is_refused(visit: Visit, tmp_path: Path):
    noise(64, 64).save(tmp_path / "coloured.png")
    assert visit.answer(tmp_path / "coloured.png")["decisions"]["95"]["reason"] == "it is in colour"
    assert visit.page.inner_text(".finding") == "Not a brain MRI"
    assert visit.page.locator("[role=meter]:visible").count() == 0 and visit.page.locator("fieldset").count() == 0
    assert "alibrated" not in visit.page.inner_text("#answer")


@pytest.mark.browser
def test_a_bad_file_gives_a_message_and_the_next_good_one_an_answer(visit: Visit, slices: list[Path], tmp_path: Path):
    whole = io.BytesIO()
    noise(64, 64).save(whole, "PNG")
    deep = io.BytesIO()
    Image.new("I;16", (40, 40), 999).save(deep, "PNG")
    more = {"cut.png": (whole.getvalue()[:-200], "truncated"), "deep.png": (deep.getvalue(), "16-bit")}
    for name, (content, message) in (BAD_FILES | more).items():
        (tmp_path / name).write_bytes(content)
        visit.page.set_input_files("#file", tmp_path / name)
        alert = visit.page.locator("#answer [role=alert]", has_text=name)
        alert.wait_for()
        assert message in alert.inner_text() and visit.page.locator("#answer img").count() == 0
    visit.answer(slices[0])


@pytest.mark.browser
def test_the_policy_forbids_connections_elsewhere_to_page_and_worker(browser, site: Server, tmp_path: Path):
    elsewhere = Server(tmp_path)
    visit = Visit(browser, site.url)  # no check of the console: the browser itself reports what it forbids
    fetching = "async (url) => { try { await fetch(url, { mode: 'no-cors' }); return 'sent'; } catch { return 'no'; } }"
    (worker,) = visit.page.workers
    assert [visit.page.evaluate(fetching, elsewhere.url), worker.evaluate(fetching, elsewhere.url)] == ["no", "no"]
    assert worker.evaluate(fetching, f"{site.url}page.json") == "sent"
    visit.context.close()
    elsewhere.server.shutdown()
    assert elsewhere.asked == []


@pytest.mark.browser
def test_a_swapped_network_is_not_run(browser, site: Server, slices: list[Path]):
    context = browser.new_context()
    page = context.new_page()
    page.route("**/model.onnx", lambda route: route.fulfill(body=_with_last_byte_changed(route.fetch().body())))
    page.goto(site.url)
    page.locator("#answer [role=alert]", has_text="not the file that export.json describes").wait_for(timeout=30_000)
    context.close()


def _with_last_byte_changed(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 390)])
def test_the_page_fits_and_has_no_serious_barrier(
    browser, site: Server, slices: list[Path], tmp_path: Path, scheme: str, width: int
):
    visit = Visit(browser, site.url, width, 844, scheme)
    (tmp_path / "bad.jpg").write_text("no image")
    visit.page.locator("summary").click()
    found = []
    for state in ("answer", "problem"):
        if state == "answer":
            visit.answer(slices[0])
        else:
            visit.page.set_input_files("#file", tmp_path / "bad.jpg")
            visit.page.locator("#answer [role=alert]").wait_for()
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width, state
        found += barriers(visit.page, state)
    visit.context.close()
    assert not found, "\n".join(found)
    assert visit.problems == []


def test_the_build_tells_in_one_line_what_it_cannot_use(exported: Path, tmp_path: Path, capsys):
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    other = Path(shutil.copytree(exported, tmp_path / "other"))
    content = json.loads((other / "trust.json").read_text())
    (other / "trust.json").write_text(json.dumps(content | {"weights_sha256": "0" * 64}))
    cases = {"is not a model folder": tmp_path / "none", "belongs to other weights": other}
    if (WEB / "node_modules" / "onnxruntime-web").is_dir():
        cases["is no page of this command"] = exported
    for message, model in cases.items():
        assert build("--model", str(model), "--output", str(full)) == 2
        told = capsys.readouterr().err
        assert message in told and told.count("\n") == 1
    assert [path.name for path in full.iterdir()] == ["notes.txt"]


def test_all_that_a_visitor_of_the_released_page_downloads_is_under_25_mb(tmp_path: Path):
    if not (WEB / "node_modules" / "onnxruntime-web").is_dir():
        pytest.skip(INSTALL)
    released = WEB.parent / "model-lite"
    if not (released / "onnx" / "model.onnx").is_file():
        pytest.skip(f"{released} has no ONNX file")
    assert build("--model", str(released), "--output", str(tmp_path / "dist")) == 0
    assert sum(file.stat().st_size for file in (tmp_path / "dist").rglob("*") if file.is_file()) < 25e6


def test_the_spaces_front_page_says_what_it_is_not_for():
    text = (WEB / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\n") and "\nsdk: static\n" in text and RESEARCH_NOTICE in text
