"""The public link: Gradio's tunnel to this page, opened in the background.

Nothing of the local page waits for it. When the service cannot be reached, one sentence on the
page and in the log says so, and everything else goes on.
"""

import logging
import secrets
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from modules.api.context import NoticeBoard

logger = logging.getLogger(__name__)

TOPIC = "share"
SERVICE_SECONDS = 15.0


class _NoLink(Exception):
    """The sentence why there is no link."""


class ShareLink:
    """One tunnel. `admit` is told the public host name before the link is shown to anyone."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        folder: Path,
        notices: NoticeBoard,
        admit: Callable[[str], None],
        service: str | None = None,
    ) -> None:
        """host, port: where the page listens. folder: takes the service's certificate.

        service: address that hands out tunnels; None asks Gradio's.
        """
        self.url = ""
        self._host, self._port, self._folder = host, port, folder
        self._notices, self._admit, self._service = notices, admit, service
        self._closed = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._opening: Any = None
        self._thread = threading.Thread(target=self._open, name="share-link", daemon=True)

    def start(self) -> None:
        """Begin to open the link; returns at once."""
        self._notices.put(TOPIC, "The public link is being opened…")
        self._thread.start()

    def close(self) -> None:
        """End the tunnel, whether it is open yet or not."""
        self._closed.set()
        self._end_process()

    def _end_process(self) -> None:
        process = self._process or getattr(self._opening, "proc", None)
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(1.0)
            except subprocess.TimeoutExpired:
                process.kill()

    def _open(self) -> None:
        try:
            name = urlsplit(self._tunnel()).hostname or ""
            self._admit(name)
            self.url = f"https://{name}"
        except _NoLink as reason:
            self._say(f"There is no public link: {reason} The local page is not affected.")
            return
        except Exception as error:  # noqa: BLE001 - the link is a convenience; the page must live
            logger.info("the tunnel failed", exc_info=error)
            self._end_process()
            self._say(
                "There is no public link: the tunnel did not open. Try again later. "
                "The local page is not affected."
            )
            return
        if self._closed.is_set():
            self.close()
            return
        self._say(f"This page is public at {self.url}")
        self._wait_for_the_end()

    def _tunnel(self) -> str:
        """Ask the service for a way in, and start the program that keeps it open."""
        from gradio.networking import GRADIO_API_SERVER
        from gradio.tunneling import Tunnel

        try:
            answer = httpx.get(self._service or GRADIO_API_SERVER, timeout=SERVICE_SECONDS)
            offer = answer.raise_for_status().json()[0]
            remote, port, certificate = offer["host"], int(offer["port"]), offer["root_ca"]
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError):
            raise _NoLink(
                "the share service cannot be reached; check the internet connection and restart."
            ) from None
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "share-certificate.pem"
        path.write_text(certificate, encoding="utf-8")
        try:
            Tunnel.download_binary()
        except (httpx.HTTPError, OSError):
            raise _NoLink(
                "its helper program (frpc) could not be fetched; check the internet connection "
                "and restart."
            ) from None
        if self._closed.is_set():
            raise _NoLink("Easel is ending.")
        tunnel = Tunnel(remote, port, self._host, self._port, secrets.token_urlsafe(32), str(path))
        self._opening = tunnel  # has a process long before it has an address
        try:
            return tunnel.start_tunnel()
        finally:
            self._process, tunnel.proc = tunnel.proc, None  # ended here, quietly

    def _wait_for_the_end(self) -> None:
        """Read what the tunnel writes, so that it never blocks, until it ends."""
        process = self._process
        if process is None or process.stdout is None:
            return
        for _ in process.stdout:
            pass
        process.wait()
        if not self._closed.is_set():
            self._say("The public link has closed; restart Easel for a new one.")

    def _say(self, sentence: str) -> None:
        if not self._closed.is_set():
            self._notices.put(TOPIC, sentence)
            logger.warning("%s", sentence)
