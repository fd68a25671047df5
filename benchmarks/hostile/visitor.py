"""What one who means harm does to a page: files and JSON over HTTP, connections that stay, a port that listens."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import suppress
from typing import Any

import httpx

FILE_LIMIT_S = 120
"""Seconds until a file counts as a hang."""
META = {"_type": "gradio.FileData"}


class Page:
    """A visitor of the page."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.port = int(url.rsplit(":", 1)[1])
        self._http = httpx.Client(base_url=url, timeout=FILE_LIMIT_S)

    def post(self, route: str, body: Any) -> httpx.Response:
        """Send JSON to one of Gradio's routes."""
        return self._http.post(f"/gradio_api/{route}", json=body)

    def get(self, route: str) -> httpx.Response:
        """Get one of Gradio's routes, as it is written."""
        return self._http.get(f"/gradio_api/{route}")

    def upload(self, content: bytes, name: str = "surname.png") -> httpx.Response:
        """Send a file."""
        return self._http.post("/gradio_api/upload", files={"files": (name, content)})

    def ask(self, kind: str, content: bytes) -> tuple[str, float]:
        """Send a file to ``/predict``; return ``answer``, ``line`` or what went wrong, and the seconds."""
        began = time.monotonic()
        try:
            (path,) = self.upload(content, "surname.dcm" if kind.startswith("DICOM") else "surname.png").json()
            event = self.post("call/predict", {"data": [{"path": path, "meta": META}]}).json()["event_id"]
            with self._http.stream("GET", f"/gradio_api/call/predict/{event}") as stream:
                told = "".join(stream.iter_text())
            name, data = told.strip().split("\n")[-2:]
            found = json.loads(data.removeprefix("data: "))
            if name == "event: complete":
                outcome = "answer" if found[0]["probabilities"] else "empty answer"
            else:
                words = found if isinstance(found, str) else (found or {}).get("error")
                outcome = "line" if words and "\n" not in words and "Traceback" not in words else f"error: {words}"
        except httpx.TimeoutException:
            outcome = "hang"
        except (httpx.HTTPError, ValueError, KeyError) as error:
            outcome = f"broken: {type(error).__name__}"
        return outcome, time.monotonic() - began


class Listener:
    """A port on the loopback that counts who comes."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port, self.visits = self._socket.getsockname()[1], 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.visits += 1
                connection.close()

    def close(self) -> None:
        """Listen no longer."""
        self._socket.close()


def upload_head(size: int) -> bytes:
    """The start of a request that announces a file of so many bytes."""
    return (
        b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: %d\r\n\r\n--x\r\nContent-Disposition: form-data; name=files; filename=surname.png\r\n\r\n"
        % size
    )


class Connections:
    """Sockets to the page that stay open."""

    def __init__(self) -> None:
        self._open: list[socket.socket] = []

    def open(self, port: int, sent: bytes) -> None:
        """Connect and send."""
        connection = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._open.append(connection)
        with suppress(OSError):
            connection.sendall(sent)
        connection.setblocking(False)

    def status(self, number: int) -> int:
        """Status of the answer that has come; 0 without any."""
        try:
            told = self._open[number].recv(64)
        except BlockingIOError:
            return 0
        except OSError:
            return -1
        return int(told.split(b" ")[1]) if told.startswith(b"HTTP") else -1

    def dribble(self) -> None:
        """Send a byte on each."""
        for connection in self._open:
            with suppress(OSError):
                connection.send(b"x")

    def left(self) -> int:
        """How many the page has not closed."""
        count = 0
        for connection in self._open:
            try:
                while connection.recv(4096):
                    pass
            except BlockingIOError:
                count += 1
            except OSError:
                continue
        return count

    def close(self) -> None:
        """Close all."""
        for connection in self._open:
            connection.close()
