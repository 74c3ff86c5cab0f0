"""A web server that misbehaves as told, and the bundled weights with other metadata."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from inference import checkpoints

PART = 1_000_000  # bytes before a break


@dataclass
class Server:
    """A server on 127.0.0.1 whose answers follow a script; the last one is repeated.

    Attributes:
        data: what it serves, under any path
        script: ``whole``, ``break`` and ``stall`` after a part, ``long`` and ``short`` (wrong lengths), ``html``,
            ``page`` (HTML that says it is a file), ``other`` (file), ``deaf`` (to ranges, and breaks off), or a status
        requests: the byte that each request began at
    """

    data: bytes
    script: list[str]
    requests: list[int] = field(default_factory=list)
    etag: str = '"one"'
    port: int = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/weights.pth"

    @property
    def mirror(self) -> str:
        return f"http://127.0.0.1:{self.port}/mirror/"


@contextmanager
def serving(server: Server) -> Iterator[None]:
    done = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            kind = server.script[min(len(server.requests), len(server.script) - 1)]
            asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
            changed = self.headers.get("If-Range", server.etag) != server.etag
            begin = int(asked.group(1)) if asked and kind != "deaf" and not changed else 0
            server.requests.append(begin)
            self.close_connection = True
            if kind.isdecimal():
                self.send_error(int(kind))
                return
            data = {"html": b"<html>Log in</html>", "page": b"\n<!DOCTYPE html>", "other": server.data[::-1]}.get(
                kind, server.data
            )
            if begin >= len(data):
                self.send_error(416)
                return
            self.send_response(206 if begin else 200)
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
            self.send_header("ETag", server.etag)
            self.send_header("Content-Type", "text/html" if kind == "html" else "application/octet-stream")
            length = len(data) - begin + {"long": 1000, "short": -1000}.get(kind, 0)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            end = begin + PART if kind in ("break", "stall", "deaf") else begin + length
            self.wfile.write(data[begin:end])
            self.wfile.flush()
            if kind == "stall":
                done.wait(60)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield
    finally:
        done.set()
        http.shutdown()
        thread.join()
        http.server_close()


@pytest.fixture
def make_server() -> Iterator[Callable[..., Server]]:
    """Starts servers: `make_server(data, script)`."""
    with ExitStack() as stack:

        def make(data: bytes, script: list[str] | None = None) -> Server:
            server = Server(data, script or ["whole"])
            stack.enter_context(serving(server))
            return server

        yield make


@pytest.fixture
def rewritten(tmp_path: Path) -> Callable[..., Path]:
    """Writes the bundled weights with other entries in their metadata."""

    def write(**entries: str) -> Path:
        source, target = checkpoints.find_model("higherhrnet-lite-coco").asset, tmp_path / "w.safetensors"
        with safe_open(source, "pt") as file:
            metadata = file.metadata()
        save_file(load_file(source), target, {**metadata, **entries})
        return target

    return write
