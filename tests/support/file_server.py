"""A real HTTP server on loopback that gives one file in whichever way a test asks for."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """What is served at every address, and how. `url` ends in a slash.

    cuts: after how many bytes of an answer the connection breaks, one for each answer in turn;
    statuses: answers with these instead, in turn. hold: bytes after which the answer waits until
    `go_on` is set. redirect: where every request but one to /there is sent; headers: of it.
    """

    body: bytes
    etag: str = '"v1"'
    ranges: bool = True
    length: bool = True
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    hold: int | None = None
    redirect: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    mime_type: str = "application/octet-stream"
    asked: list[dict[str, str]] = field(default_factory=list)
    go_on: threading.Event = field(default_factory=threading.Event)
    url: str = ""


@contextmanager
def serve_file(body: bytes, **how: object) -> Iterator[FileServer]:
    """Serve until the context ends."""
    file = FileServer(body, **how)  # type: ignore[arg-type]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self, file)

        def log_message(self, *_: object) -> None:
            """Tests say what they want to."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that goes away is what tests do."""

    server = Server(("127.0.0.1", 0), Handler)
    file.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield file
    finally:
        file.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()


def answer(handler: BaseHTTPRequestHandler, file: FileServer) -> None:
    """One GET."""
    headers = {name.lower(): value for name, value in handler.headers.items()}
    file.asked.append({"path": handler.path, **headers})
    if file.redirect and handler.path != "/there":
        send(handler, 302, {"Location": file.redirect, "Content-Length": "0", **file.headers})
        return
    if file.statuses:
        send(handler, file.statuses.pop(0), {"Content-Length": "0"})
        return
    start, status, more = 0, 200, {}
    wanted = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
    same = headers.get("if-range", file.etag) == file.etag
    if wanted and file.ranges and same:
        start, status, size = int(wanted[1]), 206, len(file.body)
        if start >= size:
            more = {"Content-Range": f"bytes */{size}", "Content-Length": "0"}
            send(handler, 416, more)
            return
        more = {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
    body = file.body[start:]
    more |= {"ETag": file.etag} if file.etag else {}
    more |= {"Content-Length": str(len(body))} if file.length else {"Connection": "close"}
    send(handler, status, {"Content-Type": file.mime_type, **more})
    cut = file.cuts.pop(0) if file.cuts else None
    if file.hold is not None:
        handler.wfile.write(body[: file.hold])
        file.go_on.wait(20)
        body = body[file.hold :]
    handler.wfile.write(body[:cut])
    if cut is not None or not file.length:
        handler.close_connection = True


def send(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
