"""The page's server and its API, over HTTP as a program uses them."""

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from app_server import EXAMPLES, NO_MODEL, REPOSITORY, log_of, running_app, uploads_of
from gradio.route_utils import delete_files_created_by_app
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from ports import free_port

from brain_tumor_mri import TumorClassifier
from brain_tumor_mri.heat_maps.explain import explain
from brain_tumor_mri.images.archive import MAX_ARCHIVE_BYTES
from brain_tumor_mri.labels import LABELS, RESEARCH_NOTICE, TITLES
from brain_tumor_mri.page import ModelHandle, ModelUnavailableError, build_page, launch


@pytest.fixture(scope="module")
def client(tiny_model_dir: Path) -> Client:
    return Client(running_app(str(tiny_model_dir)), verbose=False)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """A grey slice, (180, 150), uint8, with all of 0..255 in it."""
    return np.random.default_rng(0).integers(0, 256, (180, 150), dtype=np.uint8)


@pytest.fixture
def slice_png(pixels: np.ndarray, tmp_path: Path) -> Path:
    path = tmp_path / "slice.png"
    Image.fromarray(pixels).save(path)
    return path


FIELDS = {"label", "title", "confidence", "probabilities", "decision", "reason", "prediction_set", "prediction_sets"}
FIELDS |= {"model", "notice", "top_class"}


def picture(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))


def ask(client: Client, path: Path) -> dict:
    return client.predict(handle_file(str(path)), api_name="/predict")


def test_predict_endpoint_answers_as_the_classifier_does(client: Client, slice_png: Path, tiny_model_dir: Path) -> None:
    answer = ask(client, slice_png)
    expected = TumorClassifier.from_pretrained(tiny_model_dir).predict(slice_png)
    assert set(answer) == FIELDS
    assert answer["decision"] is None and answer["prediction_sets"] == {}  # the tiny model has no trust.json
    assert list(answer["probabilities"]) == list(LABELS)
    assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
    assert (answer["label"], answer["title"]) == (expected.label, TITLES[expected.label])
    assert answer["confidence"] == answer["probabilities"][answer["label"]]
    assert answer["model"] == str(tiny_model_dir)
    assert answer["notice"] == RESEARCH_NOTICE


def test_the_public_endpoints_name_every_field_of_their_answers(client: Client, slice_png: Path) -> None:
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/predict", "/explain", "/batch", "/examine"}  # the last is tested with volumes
    upload = handle_file(str(slice_png))
    answers = {
        "/predict": client.predict(upload, api_name="/predict"),
        "/explain": client.predict(upload, api_name="/explain"),
        "/batch": client.predict([upload], api_name="/batch"),
    }
    for name, answer in answers.items():
        inner = [*answer.get("predictions", [{}])[0], *answer.get("summary", {})]
        for field in (*answer, *inner):
            assert field in endpoints[name]["description"], f"{name} does not say what {field} is"


def test_explain_endpoint_gives_the_map_of_the_class_that_was_asked_for(
    client: Client, slice_png: Path, tiny_model_dir: Path
) -> None:
    expected = explain(TumorClassifier.from_pretrained(tiny_model_dir), slice_png, "pituitary")
    answer = client.predict(handle_file(str(slice_png)), target="pituitary", api_name="/explain")
    assert answer["target"] == "pituitary" and answer["size"] == [150, 180]
    assert answer["probabilities"] == pytest.approx(expected.prediction.probabilities, abs=1e-5)
    heat = np.asarray(picture(answer["heat_map"]))
    np.testing.assert_allclose(heat, 255 * expected.heat_map, atol=1.5)
    np.testing.assert_allclose(np.asarray(picture(answer["overlay"])), np.asarray(expected.overlay()), atol=2)
    answered = client.predict(handle_file(str(slice_png)), api_name="/explain")
    assert answered["target"] == answered["label"]


def test_batch_endpoint_answers_files_and_archives_in_order_and_goes_on_after_a_bad_one(
    client: Client, slice_png: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.write(slice_png, "../../out/first.png")
        archive.writestr("second.png", b"nor this")
    paths = [slice_png, tmp_path / "bad.png", tmp_path / "more.zip"]
    answer = client.predict([handle_file(str(path)) for path in paths], api_name="/batch")
    alone = ask(client, slice_png)
    good, bad, packed, packed_bad = answer["predictions"]
    assert [p["name"] for p in (good, bad, packed)] == ["slice.png", "bad.png", "more.zip/../../out/first.png"]
    for prediction in (good, packed):
        assert prediction["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)
        assert prediction["error"] is None
    for prediction in (bad, packed_bad):
        assert prediction["label"] is None and prediction["error"] and "\n" not in prediction["error"]
    assert answer["summary"]["errors"] == 2 and answer["summary"]["complete"] is True
    assert answer["notice"] == RESEARCH_NOTICE


def test_dicom_slice_is_answered_and_one_without_an_image_is_refused_by_name(client: Client, tmp_path: Path) -> None:
    from pydicom.data import get_testdata_file

    assert ask(client, Path(get_testdata_file("MR_small.dcm")))["label"] in LABELS
    report = Path(shutil.copy(get_testdata_file("reportsi.dcm"), tmp_path / "report.dcm"))
    with pytest.raises(AppError, match=r"^report.dcm: a DICOM file without an image"):
        ask(client, report)


def test_uploads_are_all_that_is_written_and_no_name_of_one_is_logged(
    client: Client, slice_png: Path, tmp_path: Path
) -> None:
    good = Path(shutil.copy(slice_png, tmp_path / "surname-firstname.png"))
    (tmp_path / "surname-bad.png").write_bytes(b"no image")
    with zipfile.ZipFile(tmp_path / "surname.zip", "w") as archive:
        archive.write(slice_png, "surname-in-a-zip.png")
    url = client.src.rstrip("/")
    before = set(uploads_of(url))
    ask(client, good)
    client.predict(handle_file(str(good)), api_name="/explain")
    with pytest.raises(AppError):
        ask(client, tmp_path / "surname-bad.png")
    client.predict([handle_file(str(good)), handle_file(str(tmp_path / "surname.zip"))], api_name="/batch")
    written = {path.name for path in set(uploads_of(url)) - before}
    assert written == {"surname-firstname.png", "surname-bad.png", "surname.zip"}
    assert "surname" not in log_of(url)


def test_uploads_are_removed_when_their_time_is_up(slice_png: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    page = build_page(ModelHandle(NO_MODEL), EXAMPLES)
    assert page.delete_cache is not None and page.delete_cache[1] <= 600
    page.delete_cache = (1, 1)
    _, url, _ = launch(page, prevent_thread_lock=True, quiet=True)
    try:
        with pytest.raises(AppError):
            ask(Client(url, verbose=False), slice_png)
        deadline = time.monotonic() + 20
        while (left := list((tmp_path / "uploads").rglob("slice.png"))) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert left == []
    finally:
        page.close(verbose=False)


def test_a_visitor_whom_the_page_has_forgotten_is_answered_all_the_same(slice_png: Path, tiny_model_dir: Path) -> None:
    page = build_page(ModelHandle(str(tiny_model_dir)), EXAMPLES)
    options = {"state_session_capacity": 1, "server_port": free_port()}
    _, url, _ = launch(page, prevent_thread_lock=True, quiet=True, **options)
    try:
        one, other = (Client(url, verbose=False) for _ in range(2))
        first = ask(one, slice_png)
        assert ask(other, slice_png)["probabilities"] == ask(one, slice_png)["probabilities"] == first["probabilities"]
        assert len(page.state_holder.session_data) == 1
    finally:
        page.close(verbose=False)


def test_the_example_in_the_docs_runs(client: Client, monkeypatch, capsys) -> None:
    page = REPOSITORY / "docs" / "page.md"
    example = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)[0]
    monkeypatch.chdir(REPOSITORY)
    assert "http://127.0.0.1:7860" in example
    exec(compile(example.replace("http://127.0.0.1:7860", client.src), page.name, "exec"), {})
    assert any(label in capsys.readouterr().out for label in LABELS)


@pytest.mark.parametrize("name", ["slice16.png", "slice16.tif", "slice8.tif", "slice.webp", "slice.bmp"])
def test_other_formats_reach_the_classifier_unharmed(
    client: Client, slice_png: Path, pixels: np.ndarray, tmp_path: Path, name: str
) -> None:
    deep = pixels.astype(np.uint16) * 257 if "16" in name else pixels
    Image.fromarray(deep).save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    assert ask(client, tmp_path / name)["probabilities"] == ask(client, slice_png)["probabilities"]


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("text.jpg", lambda png: b"this is not an image"),
        ("truncated.png", lambda png: png[: len(png) // 2]),
        ("drawing.svg", lambda png: b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
        ("renamed.zip", lambda png: b"PK\x03\x04" + png),
        ("empty.png", lambda png: b""),
    ],
)
def test_bad_upload_gives_one_line_that_names_the_file(
    client: Client, slice_png: Path, tmp_path: Path, name: str, spoil: Callable[[bytes], bytes]
) -> None:
    (tmp_path / name).write_bytes(spoil(slice_png.read_bytes()))
    with pytest.raises(AppError) as caught:
        ask(client, tmp_path / name)
    message = str(caught.value)
    assert message.startswith(f"{name}: ")
    assert "\n" not in message and "Traceback" not in message and "/" not in message.removeprefix(name)


def test_server_answers_after_bad_uploads(client: Client, slice_png: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(AppError):
        ask(client, tmp_path / "bad.png")
    assert ask(client, slice_png)["label"] in LABELS


def test_an_image_over_20_mb_is_refused_by_name(client: Client, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(bytes(20 * 2**20 + 1))
    with pytest.raises(AppError, match=r"^large.png: the file is over 20 MB"):
        ask(client, tmp_path / "large.png")
    answer = client.predict([handle_file(str(tmp_path / "large.png"))], api_name="/batch")
    assert "over 20 MB" in answer["predictions"][0]["error"]


def test_a_zip_over_20_mb_is_answered(client: Client, slice_png: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (1600, 1600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.bmp")
    with zipfile.ZipFile(tmp_path / "large.zip", "w") as archive:
        for number in range(3):
            archive.write(tmp_path / "noise.bmp", f"{number}.bmp")
        archive.write(slice_png, "slice.png")
    assert (tmp_path / "large.zip").stat().st_size > 20 * 2**20
    answer = client.predict([handle_file(str(tmp_path / "large.zip"))], api_name="/batch")
    assert answer["summary"]["answered"] == 4
    assert answer["predictions"][3]["probabilities"] == pytest.approx(ask(client, slice_png)["probabilities"], abs=1e-5)
    assert client.config["max_file_size"] == MAX_ARCHIVE_BYTES  # what Gradio refuses with 413


def test_files_of_the_server_cannot_be_named_as_uploads(client: Client, slice_png: Path) -> None:
    body = json.dumps({"data": [{"path": str(slice_png), "meta": {"_type": "gradio.FileData"}}]}).encode()
    request = urllib.request.Request(f"{client.src}gradio_api/call/predict", body, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=30)
    assert caught.value.code == 403


HOSTILE = ["http://127.0.0.1:9/x.png", "https://host/x.png", "/etc/passwd", "../../etc/passwd"]


@pytest.mark.parametrize("path", HOSTILE)
def test_no_endpoint_fetches_what_a_visitor_names_and_the_log_has_a_line_without_the_name(
    client: Client, path: str
) -> None:
    data = [{"path": path, "meta": {"_type": "gradio.FileData"}}]
    before = len(log_of(client.src.rstrip("/")))
    for route, body in (
        *((f"{way}/{name}", {"data": data}) for way in ("call", "api", "run") for name in ("predict", "batch")),
        ("call/v2/predict", {"file": data[0]}),
        *(("queue/join", {"data": data, "fn_index": number, "session_hash": "x"}) for number in range(12)),
    ):
        request = urllib.request.Request(
            f"{client.src}gradio_api/{route}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=30)
        assert caught.value.code == 403, route
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"{client.src}gradio_api/file={path}", timeout=30)
    logged = log_of(client.src.rstrip("/"))[before:]
    assert len(logged.splitlines()) == 20 and "Traceback" not in logged and path not in logged


def test_every_answer_carries_headers_that_bind_the_browser(client: Client) -> None:
    for route in ("", "config", "theme.css", "gradio_api/info"):
        with urllib.request.urlopen(client.src + route, timeout=30) as response:
            assert response.headers["X-Content-Type-Options"] == "nosniff", route
            assert "frame-ancestors 'self' https://huggingface.co" in response.headers["Content-Security-Policy"]
            assert response.headers["X-Frame-Options"] is None


def test_a_connection_that_sends_nothing_or_too_slowly_is_closed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("brain_tumor_mri.page.guard.IDLE_SECONDS", 1)
    page = build_page(ModelHandle(NO_MODEL), EXAMPLES)
    port = free_port()
    launch(page, prevent_thread_lock=True, quiet=True, server_port=port)
    head = b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
    head += b"Content-Type: multipart/form-data; boundary=x\r\n"
    try:
        for sent, answer in ((b"", b""), (b"GET / HT", b""), (head + b"\r\n", b"HTTP/1.1 408")):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                connection.sendall(sent)
                assert connection.recv(100).startswith(answer)
    finally:
        page.close(verbose=False)


def test_page_is_served_and_says_what_it_is_not(client: Client) -> None:
    with urllib.request.urlopen(client.src, timeout=30) as response:
        assert RESEARCH_NOTICE in response.read().decode()


def test_the_page_is_imported_without_what_no_picture_needs_and_gradio_keeps_no_list_of_who_asked() -> None:
    script = """
import inspect, sys
from brain_tumor_mri.page import ModelHandle, build_page
import gradio.component_meta as meta
queue = build_page(ModelHandle("no/model"), "none")._queue
not_needed = {"torch", "transformers", "pydicom", "nibabel", "scipy", "matplotlib"}
assert not not_needed & set(sys.modules), not_needed & set(sys.modules)
assert inspect.getfile(inspect.getmodule(meta)) == meta.__file__
assert queue.ANALYTICS_MAX_EVENTS == 1 and queue.ANAYLTICS_CACHE_FREQUENCY > 10**6 and not queue.live_updates
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-800:]


def test_missing_model_leaves_the_server_alive_and_says_so(slice_png: Path) -> None:
    client = Client(running_app(NO_MODEL), verbose=False)
    for _ in range(2):
        with pytest.raises(AppError) as caught:
            ask(client, slice_png)
        message = str(caught.value)
        assert NO_MODEL in message and "\n" not in message and "Traceback" not in message


def test_damaged_weights_become_one_line(tiny_model_dir: Path, tmp_path: Path) -> None:
    for file in tiny_model_dir.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[: len(content) // 2] if file.suffix == ".safetensors" else content)
    with pytest.raises(ModelUnavailableError) as caught:
        ModelHandle(str(tmp_path)).get()
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_example_pictures_outlive_the_removal_of_uploads() -> None:
    page = build_page(ModelHandle(NO_MODEL), EXAMPLES)
    delete_files_created_by_app(page, age=None)
    icons = [Path(block.icon["path"]) for block in page.blocks.values() if getattr(block, "icon", None)]
    assert len(icons) == len(list(EXAMPLES.glob("*.png"))) > len(LABELS)
    assert all(icon.is_file() for icon in icons)
