"""The page's server and its API, over HTTP as a program uses them."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from app_server import EXAMPLES, NO_MODEL, running_app
from gradio.route_utils import delete_files_created_by_app
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from brain_tumor_mri import TumorClassifier
from brain_tumor_mri.labels import LABELS, RESEARCH_NOTICE, TITLES
from brain_tumor_mri.page import ModelHandle, ModelUnavailableError, build_page


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


def ask(client: Client, path: Path) -> dict:
    return client.predict(handle_file(str(path)), api_name="/predict")


def test_predict_endpoint_answers_as_the_classifier_does(client: Client, slice_png: Path, tiny_model_dir: Path) -> None:
    answer = ask(client, slice_png)
    expected = TumorClassifier.from_pretrained(tiny_model_dir).predict(slice_png)
    assert set(answer) == {"label", "title", "confidence", "probabilities", "model", "notice"}
    assert list(answer["probabilities"]) == list(LABELS)
    assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
    assert (answer["label"], answer["title"]) == (expected.label, TITLES[expected.label])
    assert answer["confidence"] == answer["probabilities"][answer["label"]]
    assert answer["model"] == str(tiny_model_dir)
    assert answer["notice"] == RESEARCH_NOTICE


def test_predict_is_the_only_public_endpoint_and_is_documented(client: Client) -> None:
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert list(endpoints) == ["/predict"]
    for word in ("label", "probabilities", "confidence", "notice"):
        assert word in endpoints["/predict"]["description"]


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


def test_upload_over_20_mb_is_refused(client: Client, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(bytes(20 * 2**20 + 1))
    with pytest.raises(Exception, match=r"413|[Mm]aximum"):
        ask(client, tmp_path / "large.png")


def test_files_of_the_server_cannot_be_named_as_uploads(client: Client, slice_png: Path) -> None:
    body = json.dumps({"data": [{"path": str(slice_png), "meta": {"_type": "gradio.FileData"}}]}).encode()
    request = urllib.request.Request(f"{client.src}gradio_api/call/predict", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        event = json.load(response)["event_id"]
    with urllib.request.urlopen(f"{client.src}gradio_api/call/predict/{event}", timeout=30) as stream:
        assert "event: error" in stream.read().decode()


def test_page_is_served_and_says_what_it_is_not(client: Client) -> None:
    with urllib.request.urlopen(client.src, timeout=30) as response:
        assert RESEARCH_NOTICE in response.read().decode()


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
    assert len(icons) == len(LABELS)
    assert all(icon.is_file() for icon in icons)
