"""Small MATLAB v7.3 files, zipped and served by a local server that knows Range, stand in for figshare."""

import csv
import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from brain_tumor_mri.errors import UserError
from data_scripts import download_figshare as figshare

h5py = pytest.importorskip("h5py", reason="h5py is not installed (requirements-dev.txt)")

# Upright, 1-based, as a radiologist would click it: wide and low, in the upper right, so that no flip goes unnoticed.
BORDER = np.array([[300.0, 101.0], [420.0, 105.0], [430.0, 140.0], [310.0, 150.0]])


def mat_bytes(
    *,
    size: int = 512,
    label: int = 1,
    patient: str = "100360",
    rows_first: bool = False,
    peak: int = 4000,
    border: np.ndarray | None = None,
) -> bytes:
    """A slice as MATLAB stores it: every array transposed, text as numbers, 512 bytes before the HDF5 part."""
    points = (BORDER if border is None else border) * size / 512
    image = np.zeros((size, size), np.int16)
    image[size // 4 : size // 2, : size // 8] = peak // 2
    canvas = Image.new("1", (size, size))
    ImageDraw.Draw(canvas).polygon([(x - 1, y - 1) for x, y in BORDER * size / 512], fill=1, outline=1)
    mask = np.asarray(canvas)
    image[mask] = peak
    vector = (points[:, ::-1] if rows_first else points).ravel()
    data = io.BytesIO()
    with h5py.File(data, "w", userblock_size=512) as file:
        record = file.create_group("cjdata")
        record["label"] = np.array([[float(label)]])
        record["PID"] = np.array([[ord(c)] for c in patient], np.uint16)
        record["image"] = image.T
        record["tumorMask"] = mask.T.astype(np.uint8)
        record["tumorBorder"] = vector[None]
    return data.getvalue()


def folds_bytes(folds: list[int]) -> bytes:
    data = io.BytesIO()
    with h5py.File(data, "w", userblock_size=512) as file:
        file["cvind"] = np.array([folds], float)
    return data.getvalue()


def zip_bytes(members: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return data.getvalue()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {
        "brainTumorDataPublic_1-2.zip": zip_bytes(
            {"1.mat": mat_bytes(), "2.mat": mat_bytes(label=2, patient="MR0412", rows_first=True)}
        ),
        "brainTumorDataPublic_3-3.zip": zip_bytes(
            {"sub/3.mat": mat_bytes(size=256, label=3, patient="MR0412"), "../../evil.mat": b"x", "note.txt": b"x"}
        ),
        "cvind.mat": folds_bytes([5, 1, 1]),
        "README.txt": b"not needed",
    }


class Server:
    """figshare's API and file store; ``cut`` ends the first answers early, ``ranges`` notes what was asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.cut, self.ranges, self.md5_of = dict(files), 0, [], dict(files)
        self.knows_range = True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                outer.answer(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.rpartition("/")[2]
        if request.path == f"/v2/articles/{figshare.ARTICLE}":
            listed = [
                {
                    "name": n,
                    "size": len(self.md5_of[n]),
                    "computed_md5": hashlib.md5(self.md5_of[n]).hexdigest(),
                    "supplied_md5": "",
                    "download_url": f"{self.url}/files/{n}",
                }
                for n in self.files
            ]
            body, status, start = json.dumps({"files": listed}).encode(), 200, 0
        elif name in self.files:
            wanted = request.headers.get("Range")
            self.ranges.append((name, wanted))
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.knows_range else 0
            body, status = self.files[name][start:], 206 if start else 200
        else:
            body, status = b"", 404
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if self.cut and name.endswith(".zip"):
            self.cut -= 1
            body = body[: len(body) // 2]
        request.wfile.write(body)


@pytest.fixture
def server(files: dict[str, bytes]) -> Iterator[Server]:
    running = Server(files)
    yield running
    running.http.shutdown()
    running.http.server_close()


def run(server: Server, output: Path, *more: str) -> int:
    return figshare.main(["--output_dir", str(output), "--api_url", f"{server.url}/v2", *more])


def test_download_gives_images_slices_and_borders(server: Server, tmp_path: Path, capsys) -> None:
    assert run(server, tmp_path, "--json") == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts == {
        "slices": 3,
        "patients": 2,
        "enlarged": 1,
        "by_class": {"meningioma": 1, "glioma": 1, "pituitary": 1},
    }
    with (tmp_path / "slices.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"image_id": "1", "label": "1", "label_name": "meningioma", "patient_id": "100360", "fold": "5"},
        {"image_id": "2", "label": "2", "label_name": "glioma", "patient_id": "MR0412", "fold": "1"},
        {"image_id": "3", "label": "3", "label_name": "pituitary", "patient_id": "MR0412", "fold": "1"},
    ]
    assert {path.name for path in (tmp_path / "images").iterdir()} == {"1.jpg", "2.jpg", "3.jpg"}
    assert not list(tmp_path.parent.rglob("evil.mat"))


def test_images_are_upright_eight_bit_and_512_pixels_and_borders_lie_on_the_tumour(
    server: Server, tmp_path: Path
) -> None:
    run(server, tmp_path)
    borders = [json.loads(line) for line in (tmp_path / "borders.jsonl").read_text().splitlines()]
    assert [entry["image_id"] for entry in borders] == [1, 2, 3]
    for entry in borders:
        with Image.open(tmp_path / "images" / f"{entry['image_id']}.jpg") as image:
            assert image.mode == "L" and image.size == (512, 512)
            pixels = np.asarray(image).astype(int)
        assert pixels.max() >= 250  # the brightest value of the slice becomes 255
        assert abs(pixels[190, 30] - 128) < 8  # the block on the left, at half of the maximum
        canvas = Image.new("1", (512, 512))
        ImageDraw.Draw(canvas).polygon([tuple(point) for point in entry["border"]], fill=1)
        inside, tumour = np.asarray(canvas), pixels > 200
        assert (inside & tumour).sum() / (inside | tumour).sum() > 0.93


def test_border_order_is_read_off_the_mask(tmp_path: Path) -> None:
    xy = figshare.read_slice(mat_bytes(), "1.mat").border
    yx = figshare.read_slice(mat_bytes(rows_first=True), "1.mat").border
    np.testing.assert_allclose(xy, BORDER - 1)
    np.testing.assert_allclose(yx, BORDER - 1)


def test_256_pixel_slice_is_enlarged_with_its_border() -> None:
    one = figshare.read_slice(mat_bytes(size=256), "956.mat")
    assert one.pixels.shape == (512, 512)
    # (v / 2 - 1 + 0.5) * 2 - 0.5: distances from the edge double
    np.testing.assert_allclose(one.border, BORDER - 1.5)


def test_border_that_does_not_fit_the_mask_is_an_error() -> None:
    elsewhere = np.array([[10.0, 400.0], [60.0, 400.0], [60.0, 480.0]])
    with pytest.raises(UserError, match="border does not outline"):
        figshare.read_slice(mat_bytes(border=elsewhere), "7.mat")


def test_broken_connection_is_resumed_where_it_ended(server: Server, tmp_path: Path) -> None:
    server.cut = 2
    assert run(server, tmp_path) == 0
    resumed = [wanted for name, wanted in server.ranges if wanted]
    assert len(resumed) == 2 and all(int(w.removeprefix("bytes=").rstrip("-")) > 0 for w in resumed)


def test_interrupted_download_goes_on_in_a_later_run(server: Server, files: dict[str, bytes], tmp_path: Path) -> None:
    name = "brainTumorDataPublic_1-2.zip"
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / f"{name}.part").write_bytes(files[name][:1000])
    assert run(server, tmp_path) == 0
    assert (name, "bytes=1000-") in server.ranges
    server.ranges.clear()
    assert run(server, tmp_path) == 0
    assert server.ranges == []  # what is complete is not fetched again


def test_server_that_ignores_ranges_is_downloaded_from_the_start(
    server: Server, files: dict[str, bytes], tmp_path: Path
) -> None:
    server.knows_range = False
    name = "brainTumorDataPublic_1-2.zip"
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / f"{name}.part").write_bytes(b"x" * 1000)
    assert run(server, tmp_path) == 0
    assert (tmp_path / "archives" / name).read_bytes() == files[name]


def test_wrong_md5_is_one_line_and_the_bad_file_is_gone(server: Server, tmp_path: Path, capsys) -> None:
    name = "brainTumorDataPublic_1-2.zip"
    server.files[name] = bytes(len(server.files[name]))
    assert run(server, tmp_path) == 2
    error = capsys.readouterr().err
    assert "MD5" in error and name in error and len(error.strip().splitlines()) == 1
    assert not list((tmp_path / "archives").glob(f"{name}*"))


def test_connection_that_keeps_failing_names_the_file_and_keeps_what_came(
    server: Server, tmp_path: Path, capsys
) -> None:
    server.cut = 99
    assert run(server, tmp_path) == 2
    assert "run the command again to continue" in capsys.readouterr().err
    assert list((tmp_path / "archives").glob("*.part"))


def test_no_network_says_how_to_do_it_by_hand(tmp_path: Path, capsys) -> None:
    assert figshare.main(["--output_dir", str(tmp_path / "o"), "--api_url", "http://127.0.0.1:9/v2"]) == 2
    error = capsys.readouterr().err
    assert "--archive_dir" in error and figshare.PAGE_URL in error and len(error.strip().splitlines()) == 1


def test_answer_that_is_no_file_list_is_one_line(server: Server, tmp_path: Path, capsys) -> None:
    server.files.pop("cvind.mat")
    assert run(server, tmp_path) == 2
    assert "cvind.mat" in capsys.readouterr().err


def test_archives_downloaded_by_hand_need_no_network(files: dict[str, bytes], tmp_path: Path) -> None:
    by_hand, output = tmp_path / "by_hand", tmp_path / "out"
    by_hand.mkdir()
    for name, data in files.items():
        (by_hand / name).write_bytes(data)
    assert figshare.main(["--output_dir", str(output), "--archive_dir", str(by_hand)]) == 0
    assert len(list((output / "images").iterdir())) == 3


def test_missing_archive_is_named_by_its_first_slice(files: dict[str, bytes], tmp_path: Path, capsys) -> None:
    for name in ("brainTumorDataPublic_1-2.zip", "cvind.mat"):
        (tmp_path / name).write_bytes(files[name])
    assert figshare.main(["--output_dir", str(tmp_path / "o"), "--archive_dir", str(tmp_path)]) == 2
    assert "1 of 3 slices are missing, from 3.mat on" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["no zip", "no slice"])
def test_damaged_archive_is_one_line(files: dict[str, bytes], tmp_path: Path, capsys, damage: str) -> None:
    (tmp_path / "cvind.mat").write_bytes(folds_bytes([1]))
    (tmp_path / "a.zip").write_bytes(b"PK nothing" if damage == "no zip" else zip_bytes({"1.mat": b"not HDF5"}))
    assert figshare.main(["--output_dir", str(tmp_path / "o"), "--archive_dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "a.zip" in error and len(error.strip().splitlines()) == 1


def test_older_matlab_fold_file_is_read_as_well() -> None:
    from scipy.io import savemat

    data = io.BytesIO()
    savemat(data, {"cvind": np.array([[1.0], [2.0], [5.0]])})
    assert figshare.read_folds(data.getvalue()).tolist() == [1, 2, 5]


def test_missing_h5py_is_said_before_anything_is_downloaded(
    server: Server, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    assert run(server, tmp_path) == 2
    assert "pip install h5py" in capsys.readouterr().err
    assert server.ranges == []
