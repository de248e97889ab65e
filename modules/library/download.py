"""Fetching one model file: resumed, checked, and under its own name only when it is right.

Plain HTTP through httpx: huggingface_hub knows only its own site, and neither checks a hash that
the caller names nor can be stopped. A server that honours Range continues where the last try
ended, one that does not begins anew, and so does a file that has changed since (If-Range). The
hash is taken while the bytes pass by; what an earlier run left is hashed first.
"""

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import httpx

from modules.library.download_http import client_for, may_pass, version_of
from modules.library.part_file import PartFile, disk_full, target_of
from modules.settings.presets import Download
from modules.spec.errors import DownloadFailed
from modules.spec.limits import DOWNLOAD_RESERVE_BYTES
from modules.spec.version import VERSION

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds between tries of a broken connection; a try that brings `_PROGRESS_BYTES` begins them
anew. The first two are all there is while nothing has arrived yet."""
TIMEOUT = httpx.Timeout(30.0, connect=15.0)
_FIRST_TRIES = 2
_PROGRESS_BYTES = 1 << 20
_REDIRECTS = 5
_TELL_SECONDS = 0.2
_RATE_SECONDS = 5.0
_RANGE = re.compile(r"bytes (\d{1,15})-\d{1,15}/(\d{1,15}|\*)")
_WHOLE = re.compile(r"bytes \*/(\d{1,15})")
_THIS_COMPUTER = ("127.0.0.1", "localhost", "::1")
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')


class Phase(StrEnum):
    """What a download is about."""

    CONNECTING = "connecting"
    FETCHING = "fetching"
    PAUSING = "pausing"  # until the next try
    CHECKING = "checking"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a download is. total: bytes, None where nobody knows; rate: bytes a second."""

    phase: Phase
    done: int = 0
    total: int | None = None
    rate: float = 0.0

    @property
    def seconds_left(self) -> float | None:
        """None where it cannot be told."""
        if self.phase is not Phase.FETCHING or self.total is None or self.rate < 1:
            return None
        return max(0, self.total - self.done) / self.rate


async def fetch(
    download: Download,
    models_path: Path,
    tell: Callable[[Progress], None] = lambda _: None,
    *,
    reserve: int = DOWNLOAD_RESERVE_BYTES,
    pauses: tuple[float, ...] = PAUSES,
    timeout: httpx.Timeout = TIMEOUT,
) -> Path:
    """Fetch a file into its folder of `models_path` and return its path.

    tell: called about five times a second. reserve: bytes of the disk that stay free. Raises
    DownloadFailed or DiskFull, each a sentence for the user. When it is cancelled, or fails for a
    reason that may pass, what has arrived stays as `name.easel-part` for the next call.
    """
    target = target_of(download, models_path)
    with PartFile(target, download.url, download.sha256) as part:
        async with client_for(download, timeout) as client:
            await _Transfer(download, part, tell, client, reserve).run(pauses)
        part.become_target()
    return target


class _TryAgain(Exception):
    """The server is not able just now; the sentence says how it answered."""


class _Transfer:
    """One download from its first request to the checked last byte."""

    def __init__(
        self,
        download: Download,
        part: PartFile,
        tell: Callable[[Progress], None],
        client: httpx.AsyncClient,
        reserve: int,
    ) -> None:
        self._download, self._part, self._client = download, part, client
        self._tell, self._reserve = tell, reserve
        self._progress = Progress(Phase.CONNECTING, total=download.size)
        self._sha256 = download.sha256
        self._looked = 0.0
        self._is_measured = True  # an answer that breaks off, or lacks something, is known
        self._marks: deque[tuple[float, int]] = deque()

    async def run(self, pauses: tuple[float, ...]) -> None:
        """Until the part file is whole and right, or an error says why it never will be."""
        if self._part.size:
            self._say(Phase.CHECKING)
        await self._part.read()
        failures = 0
        while True:
            before = self._part.size
            try:
                self._say(Phase.CONNECTING)
                self._require_room()
                await self._try_once()
                break
            except (httpx.TransportError, _TryAgain) as error:
                if self._part.size - before >= _PROGRESS_BYTES:
                    failures = 0
                most = len(pauses) if self._part.size else min(_FIRST_TRIES, len(pauses))
                if failures >= most or not may_pass(error):
                    raise self._lost(error) from None
                self._say(Phase.PAUSING)
                await asyncio.sleep(pauses[failures])
                failures += 1
        self._check()

    async def _try_once(self) -> None:
        headers = {"Accept-Encoding": "identity", "User-Agent": f"Easel/{VERSION}"}
        part = self._part
        if part.size and (part.version or self._sha256):
            headers["Range"] = f"bytes={part.size}-"
            if part.version:
                headers["If-Range"] = part.version
        response = await self._answer(headers)
        try:
            if response.status_code == 416:
                self._after_end(response)
                return
            self._begin(response)
            await self._receive(response)
        finally:
            await response.aclose()

    async def _receive(self, response: httpx.Response) -> None:
        part, total = self._part, self._progress.total
        telling = asyncio.create_task(self._keep_telling())
        try:
            async for chunk in response.aiter_raw():
                part.write(chunk)
                if total is not None and part.size > total:
                    part.restart()
                    raise _TryAgain("sends more than it said")
                if time.monotonic() - self._looked >= _TELL_SECONDS:
                    self._require_room()
        finally:
            telling.cancel()
        if total is None and not self._is_measured:
            total = part.told_size()
            if total is None or part.size > total:
                raise self._of_no_length()
        if total is not None and part.size < total:
            raise _TryAgain("ended too early")

    def _of_no_length(self) -> DownloadFailed:
        self._part.restart()
        return DownloadFailed(
            f"The server does not say how long {self._download.file} is, so nobody can tell "
            "whether it came whole, and it was not kept; fetch it by hand."
        )

    async def _keep_telling(self) -> None:
        """By the clock, so that a connection that brings nothing is seen, too."""
        while True:
            await asyncio.sleep(_TELL_SECONDS)
            self._say(Phase.FETCHING)

    async def _answer(self, headers: dict[str, str]) -> httpx.Response:
        """The answer at the end of all redirects. Only https leads on."""
        name = self._download.file
        try:
            request = self._client.build_request("GET", self._download.url, headers=headers)
        except httpx.InvalidURL:
            raise DownloadFailed(
                f"The address of {name} cannot be read; correct it in its preset."
            ) from None
        for _ in range(_REDIRECTS + 1):
            try:
                response = await self._client.send(request, stream=True)
            except httpx.RemoteProtocolError as error:
                if "location" in str(error):  # of a redirect, which cannot be read
                    raise self._misled() from None
                raise
            if response.next_request is None:
                return response
            await response.aclose()
            self._note_linked_hash(response)
            request = response.next_request
            if request.url.scheme != "https" and not self._is_this_computer(request.url):
                raise self._misled()
        raise DownloadFailed(f"The address of {name} leads in circles; fetch it by hand.")

    def _is_this_computer(self, url: httpx.URL) -> bool:
        """Whether the first address, too, is http on this very computer."""
        first = httpx.URL(self._download.url)
        return url.scheme == first.scheme == "http" and url.host in _THIS_COMPUTER

    def _misled(self) -> DownloadFailed:
        return DownloadFailed(
            f"The address of {self._download.file} leads to one that is not safe (only https is), "
            "so nothing was fetched; get the file by hand from a source that you trust."
        )

    def _note_linked_hash(self, response: httpx.Response) -> None:
        """Hugging Face names the file's SHA-256 while it sends one on to where the bytes are."""
        found = _SHA256.fullmatch(response.headers.get("x-linked-etag", ""))
        if found is None:
            return
        if self._download.sha256 not in (None, found[1]):
            self._part.restart()
            raise self._another_file()
        self._sha256 = found[1]

    def _begin(self, response: httpx.Response) -> None:
        """Look at an answer before its body is read: go on, begin anew, or raise."""
        status, headers, part = response.status_code, response.headers, self._part
        if status not in (200, 206):
            raise self._refused(response)
        if headers.get("content-encoding", "identity") != "identity" or headers.get(
            "content-type", ""
        ).startswith("text/html"):
            raise DownloadFailed(
                f"Instead of {self._download.file} the server sends a page; perhaps it wants a "
                "login. Open the address in a browser and fetch the file by hand."
            )
        total: int | None = None
        if status == 206:
            place = _RANGE.fullmatch(headers.get("content-range", ""))
            changed = part.version and version_of(headers) not in ("", part.version)
            if place is None or int(place[1]) != part.size or changed:
                part.restart()
                raise _TryAgain("sent another part than was asked for")
            total = None if place[2] == "*" else int(place[2])
        else:
            part.restart(version_of(headers))
            self._marks.clear()
            length = headers.get("content-length", "")
            total = int(length) if length.isdecimal() else None
        is_chunked = "chunked" in headers.get("transfer-encoding", "")
        self._is_measured = is_chunked or self._sha256 is not None
        if self._download.size and total not in (None, self._download.size):
            part.restart()
            raise self._another_file()
        self._progress = replace(self._progress, total=total or self._download.size)
        self._say(Phase.FETCHING)
        self._require_room()

    def _after_end(self, response: httpx.Response) -> None:
        """Nothing comes after what is there: it is whole, or it is of another file."""
        whole = _WHOLE.fullmatch(response.headers.get("content-range", ""))
        total = int(whole[1]) if whole else self._download.size
        if total != self._part.size:
            self._part.restart()
            raise _TryAgain("has a shorter file now")
        self._progress = replace(self._progress, total=total)

    def _refused(self, response: httpx.Response) -> Exception:
        status, name, host = response.status_code, self._download.file, response.url.host
        if status in (408, 425, 429) or status >= 500:
            return _TryAgain(f"answers with an error ({status})")
        if status in (401, 403, 451):
            return DownloadFailed(
                f"{host} does not give {name} to everybody ({status}); open the address in a "
                "browser, agree to its terms there, and save the file by hand."
            )
        if status in (404, 410):
            return DownloadFailed(
                f"{name} is not at its address any more ({status}); look for it elsewhere and "
                "save it by hand."
            )
        return DownloadFailed(f"{host} refuses to send {name} ({status}); save it by hand.")

    def _another_file(self) -> DownloadFailed:
        return DownloadFailed(
            f"The file at the address of {self._download.file} is not the one that was meant (its "
            "size or SHA-256 is another), so nothing was kept. It may have been replaced there: "
            "get it by hand from a source that you trust."
        )

    def _lost(self, error: Exception) -> DownloadFailed:
        name, host = self._download.file, httpx.URL(self._download.url).host
        kept = f" {self._part.size / 1e9:.2f} GB are kept, and the next try goes on from there."
        kept = kept if self._part.size else ""
        if not may_pass(error):
            return DownloadFailed(
                f"{host} cannot prove that it is {host} (its certificate), so {name} was not "
                "fetched. Check this computer's clock and network, then try again."
            )
        if isinstance(error, _TryAgain):
            return DownloadFailed(f"{host} {error}, so {name} is not whole; try later.{kept}")
        return DownloadFailed(
            f"{host} cannot be reached, so {name} is not there. Check the internet connection and "
            f"try again.{kept}"
        )

    def _check(self) -> None:
        """Raise for a file that is not the right one, of which nothing is kept then."""
        self._say(Phase.CHECKING)
        right_size = self._download.size in (None, self._part.size)
        if right_size and self._sha256 in (None, self._part.sha256) and self._part.size:
            return
        self._part.discard()
        raise DownloadFailed(
            f"{self._download.file} arrived damaged, or is another file than was meant (its size "
            "or SHA-256 is wrong), so it was not kept. Try again; if that does not help, the file "
            "was replaced at its address."
        )

    def _say(self, phase: Phase) -> None:
        """Tell how far it is."""
        now, done = time.monotonic(), self._part.size
        if phase is not Phase.FETCHING:
            self._marks.clear()
        self._marks.append((now, done))
        while len(self._marks) > 2 and now - self._marks[0][0] > _RATE_SECONDS:
            self._marks.popleft()
        since, first = self._marks[0]
        rate = (done - first) / (now - since) if now - since >= _TELL_SECONDS else 0.0
        self._progress = replace(self._progress, phase=phase, done=done, rate=rate)
        self._tell(self._progress)

    def _require_room(self) -> None:
        """Raise DiskFull unless the rest fits the disk; others may be filling it meanwhile."""
        self._looked = time.monotonic()
        needed = max(0, (self._progress.total or 0) - self._part.size)
        free = self._part.free_bytes() - self._reserve
        if free < needed:
            raise disk_full(self._download.file, needed, free)
