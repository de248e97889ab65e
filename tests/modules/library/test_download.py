"""Fetching a file from a real server, however it behaves; nothing under the final name is wrong."""

import asyncio
import errno
import hashlib
import json
import os
import shutil
import socket
import sys
from collections import namedtuple
from types import SimpleNamespace

import httpx
import pytest

from modules.library.download import Phase, Progress, _Transfer, fetch
from modules.library.part_file import PartFile, target_of
from modules.settings.presets import Download
from modules.spec.errors import DiskFull, DownloadFailed
from modules.spec.file_lock import lock_file
from tests.support.file_server import serve_file

BODY = bytes(range(256)) * 12_000  # 3 MB
SHA256 = hashlib.sha256(BODY).hexdigest()
NAME = "big.safetensors"
PART = f"{NAME}.easel-part"
QUICK = (0.01, 0.01, 0.01)


def download_of(server, *, sha256=SHA256, **values):
    return Download(
        file=NAME, folder="checkpoints", url=f"{server.url}big", sha256=sha256, **values
    )


def from_nowhere():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/x"
    return Download(file=NAME, folder="checkpoints", url=url)


def get(download, folder, tell=lambda _: None, **options):
    return asyncio.run(fetch(download, folder, tell, **{"pauses": QUICK, **options}))


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def ranges(server):
    return [asked.get("range", "") for asked in server.asked]


def test_a_file_arrives_whole_with_its_progress(tmp_path):
    told = []
    with serve_file(BODY) as server:
        path = get(download_of(server, size=len(BODY)), tmp_path, told.append)
    assert path == tmp_path / "checkpoints" / NAME
    assert path.read_bytes() == BODY
    assert names(tmp_path) == [NAME]
    assert [told[0].phase, told[-1].phase] == [Phase.CONNECTING, Phase.CHECKING]
    assert (told[-1].done, told[-1].total) == (len(BODY), len(BODY))


def test_rate_and_time_left_are_told():
    half = Progress(Phase.FETCHING, done=50, total=150, rate=25.0)
    assert half.seconds_left == 4.0
    assert Progress(Phase.FETCHING, done=50, total=None, rate=25.0).seconds_left is None
    assert Progress(Phase.CHECKING, done=50, total=150, rate=25.0).seconds_left is None


def test_a_cut_connection_goes_on_where_it_was(tmp_path):
    cut = 2_000_000
    with serve_file(BODY, cuts=[cut, 500_000]) as server:
        get(download_of(server), tmp_path)
    assert (tmp_path / "checkpoints" / NAME).read_bytes() == BODY
    assert ranges(server) == ["", f"bytes={cut}-", f"bytes={cut + 500_000}-"]
    assert all(asked["if-range"] == '"v1"' for asked in server.asked[1:])


HEADER = b'{"w":{"dtype":"U8","shape":[1000],"data_offsets":[0,1000]}}'
SAFETENSORS = len(HEADER).to_bytes(8, "little") + HEADER + b"w" * 1_000


def test_a_cut_that_no_length_betrays_is_seen_by_the_file_itself(tmp_path):
    with serve_file(SAFETENSORS, length=False, cuts=[500]) as server:
        get(download_of(server, sha256=None), tmp_path)
        assert ranges(server) == ["", "bytes=500-"]
    assert (tmp_path / "checkpoints" / NAME).read_bytes() == SAFETENSORS


@pytest.mark.parametrize("body", [BODY, SAFETENSORS + b"more", SAFETENSORS[:20]])
def test_what_nobody_can_tell_to_be_whole_is_not_kept(tmp_path, body):
    refused = pytest.raises(DownloadFailed, match="does not say how long")
    with serve_file(body, length=False) as server, refused:
        get(download_of(server, sha256=None), tmp_path)
    assert names(tmp_path) == []
    with serve_file(body, length=False) as server:
        get(download_of(server, sha256=hashlib.sha256(body).hexdigest()), tmp_path)
    assert names(tmp_path) == [NAME]


def test_a_body_in_chunks_needs_no_length():
    begun = {}

    class Part:
        version, size, restart = "", 0, lambda self, version: begun.update(version=version)
        free_bytes = lambda self: 1 << 40  # noqa: E731

    server = Download(file=NAME, folder="checkpoints", url="http://localhost/x")
    transfer = _Transfer(server, Part(), lambda _: None, None, 0)
    for headers, measured in (({"transfer-encoding": "chunked"}, True), ({}, False)):
        transfer._begin(httpx.Response(200, headers=headers))
        assert transfer._is_measured is measured


def test_the_rate_is_that_of_the_last_seconds(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("modules.library.download.time.monotonic", lambda: clock[0])
    told, part = [], SimpleNamespace(size=0)
    server = Download(file=NAME, folder="checkpoints", url="http://localhost/x", size=10_000)
    transfer = _Transfer(server, part, told.append, None, 0)
    for seconds, size in ((0, 0), (1, 1_000), (4, 4_000), (6, 4_600), (9, 4_900)):
        clock[0], part.size = 100.0 + seconds, size
        transfer._say(Phase.FETCHING)
    assert [round(each.rate) for each in told] == [0, 1_000, 1_000, 720, 180]
    assert told[1].seconds_left == 9.0
    transfer._say(Phase.PAUSING)
    assert told[-1].rate == 0


def test_a_wrong_certificate_is_not_tried_again(tmp_path, monkeypatch):
    tries = []

    async def refuse(*_, **__):
        tries.append(1)
        raise httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate has expired")

    monkeypatch.setattr(httpx.AsyncClient, "send", refuse)
    with pytest.raises(DownloadFailed, match=r"cannot prove that it is 127\.0\.0\.1 \(its cert"):
        get(from_nowhere(), tmp_path)
    assert (tries, names(tmp_path)) == ([1], [])


def test_https_never_leads_to_http_on_this_computer(tmp_path, monkeypatch):
    asked = []

    async def redirect(self, request, **_):
        asked.append(str(request.url))
        answer = httpx.Response(302, headers={"location": "http://localhost:1/x"}, request=request)
        answer.next_request = httpx.Request("GET", "http://localhost:1/x")
        return answer

    monkeypatch.setattr(httpx.AsyncClient, "send", redirect)
    download = Download(file=NAME, folder="checkpoints", url="https://example.org/x")
    with pytest.raises(DownloadFailed, match="not safe"):
        get(download, tmp_path)
    assert asked == ["https://example.org/x"]


@pytest.mark.parametrize("scheme", ["socks", "socks5"])
def test_a_proxy_that_cannot_be_used_is_named(tmp_path, monkeypatch, scheme):
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://user:secret@127.0.0.1:9")
    download = Download(file=NAME, folder="checkpoints", url="https://example.org/x")
    with pytest.raises(DownloadFailed, match=f"ALL_PROXY begins with {scheme}://") as caught:
        get(download, tmp_path)
    assert "secret" not in str(caught.value) and names(tmp_path) == []


@pytest.mark.parametrize("etag", ['"caf\xe9"', '"a\tb"'])
def test_a_version_that_could_not_be_sent_back_is_not_kept(tmp_path, etag):
    with serve_file(BODY, etag=etag, cuts=[1_000]) as server:
        get(download_of(server), tmp_path)
    assert (tmp_path / "checkpoints" / NAME).read_bytes() == BODY
    assert "if-range" not in server.asked[1]


def test_a_server_without_ranges_begins_anew(tmp_path):
    with serve_file(BODY, cuts=[2_000_000], ranges=False) as server:
        get(download_of(server), tmp_path)
    assert (tmp_path / "checkpoints" / NAME).read_bytes() == BODY
    assert len(server.asked) == 2


def test_a_file_that_changed_meanwhile_begins_anew(tmp_path):
    with serve_file(b"old" * 500_000, etag='"v0"', cuts=[900_000]) as server:
        with pytest.raises(DownloadFailed, match=r"0\.00 GB are kept"):
            get(download_of(server, sha256=None), tmp_path, pauses=())
        server.body, server.etag = BODY, '"v1"'
        get(download_of(server), tmp_path)
    assert (tmp_path / "checkpoints" / NAME).read_bytes() == BODY


def test_a_later_start_goes_on_and_checks_the_whole(tmp_path):
    with serve_file(BODY, cuts=[2_500_000]) as server:
        download = download_of(server)
        with pytest.raises(DownloadFailed, match="cannot be reached.*try again"):
            get(download, tmp_path, pauses=())
        assert names(tmp_path) == [PART, f"{PART}.json"]
        told = []
        get(download, tmp_path, told.append)
        assert told[0] == Progress(Phase.CHECKING, 2_500_000)
        assert ranges(server)[-1] == "bytes=2500000-"
    assert (tmp_path / "checkpoints" / NAME).read_bytes() == BODY


def test_a_part_that_is_whole_already_is_only_checked(tmp_path):
    with serve_file(BODY) as server:
        download = download_of(server)
        leave_part(tmp_path, download, BODY)
        get(download, tmp_path)
        assert ranges(server) == [f"bytes={len(BODY)}-"]
        (tmp_path / "checkpoints" / NAME).unlink()
        leave_part(tmp_path, download, BODY + b"too much")
        get(download, tmp_path)
    assert (tmp_path / "checkpoints" / NAME).read_bytes() == BODY


def leave_part(folder, download, content, version='"v1"'):
    path = folder / "checkpoints" / PART
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    note = {"url": download.url, "version": version}
    path.with_name(f"{PART}.json").write_text(json.dumps(note))


@pytest.mark.parametrize("note", ["[]", "{", '{"url": "https://elsewhere.org/x"}'])
def test_a_part_from_elsewhere_is_not_gone_on_with(tmp_path, note):
    with serve_file(BODY) as server:
        leave_part(tmp_path, download_of(server), b"of another file")
        (tmp_path / "checkpoints" / f"{PART}.json").write_text(note)
        get(download_of(server), tmp_path)
    assert ranges(server) == [""]
    assert (tmp_path / "checkpoints" / NAME).read_bytes() == BODY


def test_what_nobody_noted_is_left_alone(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    theirs = {f"{NAME}.part": b"of another program", f"{NAME}.part.json": b"its own"}
    for name, content in theirs.items():
        (folder / name).write_bytes(content)
    with serve_file(BODY) as server:
        get(download_of(server), tmp_path)
        assert {name: (folder / name).read_bytes() for name in theirs} == theirs
        (folder / NAME).unlink()
        (folder / PART).write_bytes(b"whose?")
        for _ in range(2):
            with pytest.raises(DownloadFailed, match="does not know whose it is"):
                get(download_of(server), tmp_path)
        assert (folder / PART).read_bytes() == b"whose?"
    assert len(server.asked) == 1 and not (folder / f"{PART}.json").exists()


def test_the_same_file_from_another_address_goes_on(tmp_path):
    with serve_file(BODY, cuts=[1_000_000]) as first, pytest.raises(DownloadFailed):
        get(download_of(first), tmp_path, pauses=())
    with serve_file(BODY, etag='"other"') as second:
        get(download_of(second), tmp_path)
    assert ranges(second) == ["bytes=1000000-"] and "if-range" not in second.asked[0]
    assert (tmp_path / "checkpoints" / NAME).read_bytes() == BODY


def test_a_wrong_hash_keeps_nothing(tmp_path):
    with serve_file(BODY) as server:
        with pytest.raises(DownloadFailed, match="not kept. Try again"):
            get(download_of(server, sha256="0" * 64), tmp_path)
        assert names(tmp_path) == []
        leave_part(tmp_path, download_of(server), b"x" * 1_000)  # a damaged beginning
        with pytest.raises(DownloadFailed, match="not kept. Try again"):
            get(download_of(server), tmp_path)
        assert names(tmp_path) == []
        get(download_of(server), tmp_path)
    assert names(tmp_path) == [NAME]


def test_a_wrong_size_is_known_before_anything_is_fetched(tmp_path):
    with serve_file(BODY) as server, pytest.raises(DownloadFailed, match="not the one that was me"):
        get(download_of(server, size=len(BODY) + 1), tmp_path)
    assert names(tmp_path) == []


def test_the_hash_that_a_hub_names_on_the_way_counts(tmp_path):
    with serve_file(BODY, redirect="/there") as server:
        server.headers = {"X-Linked-Etag": f'"{"1" * 64}"'}
        with pytest.raises(DownloadFailed, match="not kept"):
            get(download_of(server, sha256=None), tmp_path)
        with pytest.raises(DownloadFailed, match="not the one that was meant"):
            get(download_of(server), tmp_path)
        server.headers = {"X-Linked-Etag": f'"{SHA256}"'}
        get(download_of(server, sha256=None), tmp_path)
    assert names(tmp_path) == [NAME]


@pytest.mark.parametrize(
    ("status", "said"),
    [(404, "not at its address"), (403, "agree to its terms"), (400, "refuses to send")],
)
def test_a_refusal_is_one_sentence_and_leaves_nothing(tmp_path, status, said):
    with serve_file(BODY, statuses=[status]) as server, pytest.raises(DownloadFailed, match=said):
        get(download_of(server), tmp_path)
    assert (len(server.asked), names(tmp_path)) == (1, [])


def test_a_server_in_trouble_is_asked_again(tmp_path):
    with serve_file(BODY, statuses=[503, 429]) as server:
        get(download_of(server), tmp_path)
        assert len(server.asked) == 3
        server.statuses = [500] * 9
        (tmp_path / "checkpoints" / NAME).unlink()
        with pytest.raises(DownloadFailed, match=r"answers with an error \(500\)"):
            get(download_of(server), tmp_path)
    assert len(server.asked) == 6  # twice more, as nothing had arrived


def test_a_page_in_place_of_the_file_is_refused(tmp_path):
    page = serve_file(b"<html>log in</html>", mime_type="text/html; charset=utf-8")
    with page as server, pytest.raises(DownloadFailed, match="sends a page"):
        get(download_of(server, sha256=None), tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "target",
    ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://example.org/x", "http://[bad/", "//evil/x"],
)
def test_a_redirect_to_what_is_not_safe_is_not_followed(tmp_path, target):
    refused = pytest.raises(DownloadFailed, match="not safe")
    with serve_file(BODY, redirect=target) as server, refused:
        get(download_of(server), tmp_path)
    assert (len(server.asked), names(tmp_path)) == (1, [])


def test_redirects_in_circles_end(tmp_path):
    refused = pytest.raises(DownloadFailed, match="in circles")
    with serve_file(BODY, redirect="/again") as server, refused:
        get(download_of(server), tmp_path)
    assert len(server.asked) == 6


def test_without_a_network_it_says_so(tmp_path):
    with pytest.raises(DownloadFailed, match="127.0.0.1 cannot be reached.*internet connection"):
        get(from_nowhere(), tmp_path)
    assert names(tmp_path) == []


def test_cancelling_is_at_once_and_keeps_what_is_there(tmp_path):
    async def fetch_and_cancel(download):
        began = asyncio.Event()

        def tell(progress):
            if progress.done:
                began.set()

        task = asyncio.create_task(fetch(download, tmp_path, tell))
        await asyncio.wait_for(began.wait(), 10)
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 1)

    with serve_file(BODY, hold=1_000_000) as server:
        server.length = True
        # Hashing what is there tells a first amount before the held answer comes.
        leave_part(tmp_path, download_of(server), BODY[:1_000])
        asyncio.run(fetch_and_cancel(download_of(server)))
        kept = tmp_path / "checkpoints" / PART
        assert kept.stat().st_size == 1_001_000
        server.hold = None
        get(download_of(server), tmp_path)
    assert (tmp_path / "checkpoints" / NAME).read_bytes() == BODY


Usage = namedtuple("Usage", "total used free")


def test_a_disk_without_room_is_told_before_and_meanwhile(tmp_path, monkeypatch):
    free = [10_000_000]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, free[0]))
    with serve_file(BODY, hold=1_000_000) as server:
        with pytest.raises(DiskFull, match=r"needs 8\.0 GB, .* has 0\.0 GB to spare"):
            get(download_of(server, size=8_000_000_000), tmp_path, reserve=0)
        assert server.asked == []  # known before anybody was asked
        with pytest.raises(DiskFull, match="to spare"):
            get(download_of(server), tmp_path, reserve=9_000_000)
        assert names(tmp_path) == []
        others = lambda progress: progress.done and free.__setitem__(0, 5)  # noqa: E731
        leave_part(tmp_path, download_of(server), BODY[:500])
        with pytest.raises(DiskFull):
            get(download_of(server), tmp_path, others, reserve=0)
    assert PART in names(tmp_path)


def test_a_write_that_fails_for_room_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with serve_file(BODY) as server, pytest.raises(DiskFull, match="disk .* is full. Free some"):
        get(download_of(server), tmp_path)
    assert PART in names(tmp_path)


def test_a_file_that_is_there_is_never_replaced(tmp_path, monkeypatch):
    target = tmp_path / "checkpoints" / NAME
    target.parent.mkdir()
    target.write_bytes(b"mine")
    with serve_file(BODY) as server:
        with pytest.raises(DownloadFailed, match="is there already"):
            get(download_of(server), tmp_path)
        assert (server.asked, names(tmp_path)) == ([], [NAME])
        target.unlink()
        comes = lambda p: p.phase is Phase.CHECKING and target.write_bytes(b"mine")  # noqa: E731
        with pytest.raises(DownloadFailed, match=r"has come meanwhile.*big\.\S*easel-part"):
            get(download_of(server), tmp_path, comes)
        assert target.read_bytes() == b"mine"
        target.unlink()
        get(download_of(server), tmp_path)  # what was kept is whole
        assert target.read_bytes() == BODY
        target.unlink()
        refuse = lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links"))  # noqa: E731
        monkeypatch.setattr(os, "link", refuse)
        get(download_of(server), tmp_path)
    assert target.read_bytes() == BODY


def test_two_at_once_do_not_mix(tmp_path):
    with serve_file(BODY) as server:
        target = target_of(download_of(server), tmp_path)
        refused = pytest.raises(DownloadFailed, match="by another Easel")
        with PartFile(target, server.url), refused:
            get(download_of(server), tmp_path)
        get(download_of(server), tmp_path)


def test_a_lock_on_a_note_that_another_removed_is_none(tmp_path, monkeypatch):
    target = tmp_path / NAME
    note = tmp_path / f"{PART}.json"

    def lock_too_late(file):
        if not locked:
            note.unlink()  # the other one ended between our open and our lock
        locked.append(lock_file(file))
        return locked[-1]

    locked = []
    monkeypatch.setattr("modules.library.part_file.lock_file", lock_too_late)
    with PartFile(target, "https://example.org/x"):
        assert locked == [True, True] and note.exists()


def test_a_second_discard_touches_nothing(tmp_path):
    with PartFile(tmp_path / NAME, "https://example.org/x") as part:
        part.discard()
        (tmp_path / PART).write_bytes(b"of the next one")
        part.discard()
    assert (tmp_path / PART).read_bytes() == b"of the next one"


def test_a_part_that_another_program_changed_gets_no_name(tmp_path):
    with PartFile(tmp_path / NAME, "https://example.org/x") as part:
        part.restart()
        part.write(b"mine")
        with (tmp_path / PART).open("ab") as other:
            other.write(b"theirs and longer")
        with pytest.raises(DownloadFailed, match="Another program"):
            part.become_target()
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/x",
        "..",
        ".",
        "",
        "a/b",
        "a\\b",
        "c:x",
        "x\x00",
        ".x",
        "x.",
        "x" * 250,
    ],
)
def test_no_name_leads_out_of_the_models_folder(tmp_path, name):
    download = Download.model_construct(file=name, folder="checkpoints", url="http://127.0.0.1:9/x")
    with pytest.raises(DownloadFailed, match="cannot be the name"):
        get(download, tmp_path)
    assert not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match="file"):
        Download(file=name * 2 if len(name) > 200 else name, folder="vae", url="https://e.org/x")


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / "checkpoints").write_bytes(b"a file in its place")
    with pytest.raises(DownloadFailed, match="check that Easel may write there"):
        get(from_nowhere(), tmp_path)
