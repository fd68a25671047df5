import http.server
import io
import json
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import requests

import data_scripts.download_kaggle as download_kaggle
from brain_tumor_mri.labels import LABELS
from data_scripts.download_kaggle import HANDLE, count_images, install_archive, main

kagglehub = pytest.importorskip("kagglehub", reason="kagglehub is not installed (requirements.txt)")
SCRIPT = Path(__file__).parents[2] / "data_scripts" / "download_kaggle.py"


def layout(prefix: str = "", per_class: int = 2) -> dict[str, bytes]:
    return {
        f"{prefix}{split}/{label}/{split[:2]}-{label[:2]}_{i:04d}.jpg": f"{split} {label} {i}".encode()
        for split in ("Training", "Testing")
        for label in LABELS
        for i in range(per_class)
    }


def zip_bytes(files: dict[str, bytes], extra: zipfile.ZipInfo | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for name, content in files.items():
            bundle.writestr(name, content)
        if extra is not None:
            bundle.writestr(extra, "/etc/passwd")
    return buffer.getvalue()


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "archive.zip"
    path.write_bytes(zip_bytes(layout()))
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "data" / "kaggle"


@pytest.fixture
def no_kaggle(monkeypatch):
    """Make any use of kagglehub fail the test."""
    monkeypatch.setattr(kagglehub, "dataset_download", lambda *a, **k: pytest.fail("kagglehub was asked"))


def one_line(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.endswith("\n")
    return captured.err


# --- a zip downloaded by hand ---


def test_an_archive_is_unpacked_and_counted(archive, out, no_kaggle, capsys):
    assert main(["--archive", str(archive), "--output_dir", str(out)]) == 0
    assert tree(out) == layout()
    captured = capsys.readouterr()
    assert "Training 8 (glioma 2, meningioma 2, notumor 2, pituitary 2); Testing 8" in captured.out
    assert "5712" in captured.out and captured.err == ""


@pytest.mark.parametrize("prefix", ["brain-tumor-mri-dataset/", "a/b/"])
def test_folders_around_and_things_beside_the_images_are_left_out(archive, out, prefix):
    extra = {
        "README.txt": b"x",
        f"{prefix}Training/notes.txt": b"x",
        f"__MACOSX/{prefix}Training/glioma/._a.jpg": b"x",
        f"{prefix}Training/glioma/.DS_Store": b"x",
        f"{prefix}Training/other/a.jpg": b"x",
    }
    archive.write_bytes(zip_bytes(layout(prefix) | extra))
    install_archive(archive, out)
    assert tree(out) == layout()


def test_folder_names_of_older_copies_become_the_class_names(archive, out):
    old = {k.replace("/glioma/", "/glioma_tumor/").replace("/notumor/", "/no_tumor/"): v for k, v in layout().items()}
    archive.write_bytes(zip_bytes(old))
    install_archive(archive, out)
    assert tree(out) == layout()


@pytest.mark.parametrize(
    "name",
    ["../evil.jpg", "Training/../../evil.jpg", "/tmp/evil.jpg", "C:/evil.jpg", "..\\evil.jpg", "\\\\host\\evil.jpg"],
)
def test_a_member_that_would_land_outside_is_left_out(archive, out, tmp_path, name):
    info = zipfile.ZipInfo("x")
    info.filename = name
    archive.write_bytes(zip_bytes(layout(), info))
    install_archive(archive, out)
    assert tree(out) == layout() and set(tmp_path.iterdir()) == {archive, out.parent}


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_a_link_or_device_in_the_archive_becomes_a_plain_file(archive, out, kind):
    info = zipfile.ZipInfo("Training/glioma/link.jpg")
    info.external_attr = (kind | 0o777) << 16
    archive.write_bytes(zip_bytes(layout(), info))
    install_archive(archive, out)
    assert tree(out) == layout() | {"Training/glioma/link.jpg": b"/etc/passwd"}


def test_an_archive_over_the_size_limit_is_refused(archive, out, monkeypatch, capsys):
    monkeypatch.setattr(download_kaggle, "MAX_UNPACKED_BYTES", 100)
    assert main(["--archive", str(archive), "--output_dir", str(out)]) == 2
    assert "limit" in one_line(capsys) and not out.exists()


def test_wrong_archives_are_one_line_errors(archive, out, tmp_path, capsys):
    whole = archive.read_bytes()
    damaged = bytearray(whole)
    damaged[60] ^= 0xFF  # in the stored content of the first image: its checksum no longer fits
    wrong = {
        "text.zip": b"not a zip",
        "cut.zip": whole[: len(whole) // 2],
        "damaged.zip": bytes(damaged),
        "other.zip": zip_bytes({"a.txt": b"x"}),
        "part.zip": zip_bytes({k: v for k, v in layout().items() if "Testing/pituitary" not in k}),
    }
    for name, content in wrong.items():
        (tmp_path / name).write_bytes(content)
        assert main(["--archive", str(tmp_path / name), "--output_dir", str(out)]) == 2, name
        assert name in one_line(capsys) and not out.exists()
    for path in (tmp_path / "missing.zip", tmp_path):
        assert main(["--archive", str(path), "--output_dir", str(out)]) == 2
        assert str(path) in one_line(capsys)


# --- complete, half complete, interrupted ---


def test_a_second_run_finds_the_data_and_asks_for_nothing(archive, out, no_kaggle, capsys):
    install_archive(archive, out)
    archive.unlink()
    assert main(["--output_dir", str(out)]) == 0
    assert main(["--output_dir", str(out), "--archive", str(archive)]) == 0
    assert capsys.readouterr().err == ""


def test_an_interrupted_unpacking_leaves_nothing_that_looks_complete_and_can_be_repeated(
    archive, out, monkeypatch, capsys
):
    copy = download_kaggle.shutil.copyfileobj
    calls = []

    def interrupted(source, sink):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        copy(source, sink)

    monkeypatch.setattr(download_kaggle.shutil, "copyfileobj", interrupted)
    assert main(["--archive", str(archive), "--output_dir", str(out)]) == 130
    assert "stopped" in one_line(capsys)
    assert not out.exists()
    assert main(["--archive", str(archive), "--output_dir", str(out)]) == 0
    assert tree(out) == layout()


def test_a_run_killed_half_way_is_simply_repeated(archive, out, capsys):
    code = f"""
import os, sys
sys.path.insert(0, {str(SCRIPT.parents[1])!r})
import data_scripts.download_kaggle as d
rename, renamed = d.Path.rename, []
def rename_once(self, target):
    if renamed:
        os._exit(9)
    renamed.append(rename(self, target))
d.Path.rename = rename_once
d.main(["--archive", {str(archive)!r}, "--output_dir", {str(out)!r}])
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert (out / "Training").exists() and count_images(out) is None
    assert main(["--archive", str(archive), "--output_dir", str(out)]) == 0
    assert tree(out) == layout()


def test_a_folder_with_data_of_another_kind_is_kept_unless_forced(archive, out, capsys):
    (out / "Training" / "glioma").mkdir(parents=True)
    (out / "Training" / "glioma" / "mine.jpg").write_bytes(b"mine")
    (out / "notes.txt").write_bytes(b"notes")
    assert main(["--archive", str(archive), "--output_dir", str(out)]) == 2
    assert "--force" in one_line(capsys)
    assert set(tree(out)) == {"Training/glioma/mine.jpg", "notes.txt"}
    assert main(["--archive", str(archive), "--output_dir", str(out), "--force"]) == 0
    assert tree(out) == layout() | {"notes.txt": b"notes"}


def test_force_replaces_complete_data(archive, out):
    install_archive(archive, out)
    archive.write_bytes(zip_bytes(layout(per_class=3)))
    assert main(["--archive", str(archive), "--output_dir", str(out), "--force"]) == 0
    assert tree(out) == layout(per_class=3)


def test_an_output_dir_that_is_a_file_is_a_one_line_error(archive, tmp_path, capsys):
    (tmp_path / "file").write_bytes(b"x")
    assert main(["--archive", str(archive), "--output_dir", str(tmp_path / "file")]) == 2
    assert "takes a folder" in one_line(capsys)


def test_an_output_dir_that_is_a_link_to_a_folder_is_filled(archive, out, tmp_path):
    (tmp_path / "disk").mkdir()
    out.parent.mkdir()
    out.symlink_to(tmp_path / "disk", target_is_directory=True)
    install_archive(archive, out)
    assert tree(tmp_path / "disk") == layout()


# --- kagglehub ---


def test_what_kagglehub_fetched_is_installed(out, tmp_path, monkeypatch):
    asked = []
    for name, content in layout("cache/").items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)

    def fetched(handle, **options):
        asked.append((handle, options))
        return str(tmp_path / "cache")

    monkeypatch.setattr(kagglehub, "dataset_download", fetched)
    assert main(["--output_dir", str(out)]) == 0
    assert tree(out) == layout()
    assert main(["--output_dir", str(out), "--force"]) == 0
    assert asked == [(HANDLE, {"force_download": False}), (HANDLE, {"force_download": True})]


def refusal(status: int) -> Exception:
    response = requests.Response()
    response.status_code = status
    return kagglehub.exceptions.KaggleApiHTTPError(f"{status} Client Error.\n\nsecret-token\nlines", response=response)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (requests.ConnectionError("HTTPSConnectionPool(...)\nmany lines"), "cannot be reached (ConnectionError)"),
        (requests.exceptions.ReadTimeout(), "cannot be reached (ReadTimeout)"),
        (refusal(403), "refuses access (HTTP 403"),
        (refusal(404), "HTTP 404"),
        (OSError(28, "No space left on device"), "No space left"),
        (zipfile.BadZipFile("x"), "damaged"),
        (kagglehub.exceptions.UnauthenticatedError(), "UnauthenticatedError"),
        (ValueError("secret-token"), "ValueError"),
        (Exception("anything"), "failed"),
    ],
)
def test_any_failure_of_kagglehub_is_one_line_that_says_how_to_go_on(error, reason, out, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(kagglehub, "dataset_download", fail)
    assert main(["--output_dir", str(out)]) == 2
    line = one_line(capsys)
    assert reason in line and "secret-token" not in line
    for way_out in (HANDLE, "--archive FILE.zip", "--data_dir FOLDER"):
        assert way_out in line
    assert not out.exists()


class Kaggle:
    """A local server that answers as much of Kaggle's API as a download of a data set needs."""

    def __init__(self) -> None:
        self.content = zip_bytes(layout())
        self.cut_at: int | None = None
        self.ranges: list[str | None] = []
        kaggle = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.path.endswith("/GetDataset"):
                    body = json.dumps({"currentVersionNumber": 1}).encode()
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                else:
                    self.send_response(302)
                    self.send_header("Location", "/archive.zip")
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def do_GET(self):
                wanted = self.headers.get("Range")
                kaggle.ranges.append(wanted)
                start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
                body = kaggle.content[start:]
                self.send_response(206 if wanted else 200)
                self.send_header("Content-Type", "application/zip")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Accept-Ranges", "bytes")
                self.end_headers()
                self.wfile.write(body[: kaggle.cut_at])
                self.close_connection = True

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def kaggle(monkeypatch, tmp_path):
    from kagglesdk import kaggle_env

    server = Kaggle()
    port = server.server.server_address[1]
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.LOCAL, f"http://127.0.0.1:{port}")
    yield server
    server.server.shutdown()
    server.server.server_close()


def test_the_data_set_comes_from_a_server_that_speaks_kaggles_protocol(kaggle, out):
    assert main(["--output_dir", str(out)]) == 0
    assert tree(out) == layout()


def test_a_download_that_was_cut_off_is_resumed_where_it_stopped(kaggle, out, capsys):
    # kagglehub writes to disk in chunks of 1 MiB, so a resumable part needs more than one.
    big = {"Training/glioma/big.jpg": b"\0" * 3_000_000}
    kaggle.content = zip_bytes(layout() | big)
    kaggle.cut_at = 2_500_000
    assert main(["--output_dir", str(out)]) == 2
    assert "cannot be reached" in capsys.readouterr().err and not out.exists()
    kaggle.cut_at = None
    assert main(["--output_dir", str(out)]) == 0
    assert tree(out) == layout() | big
    resumed = [r for r in kaggle.ranges if r]
    assert len(resumed) == 1 and int(resumed[0].removeprefix("bytes=").rstrip("-")) > 1_000_000


def test_with_nobody_listening_the_command_ends_with_one_line_and_status_2(tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "KAGGLE_API_ENVIRONMENT": "LOCALHOST"}
    # A proxy on a closed port stands for a machine without a network, whatever listens on this one's port 80.
    environment |= {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, SCRIPT, "--output_dir", tmp_path / "out"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "--archive FILE.zip" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
