"""The server as a whole: ports, the second instance, the public link, and how it ends."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest

import webui
from modules.api.context import NoticeBoard
from modules.api.server import (
    check_doors,
    network_url,
    open_listener,
    page_url,
    prepare_environment,
    sweep,
)
from modules.api.share import ShareLink
from modules.api.thumbnails import Thumbnails
from modules.spec.errors import ConfigError
from modules.spec.flags import TaskState
from modules.tasks.store import TaskStore
from tests.modules.api.support import free_port, make_settings, read_events, serve, visit
from tests.modules.conftest import put_checkpoint

ROOT = Path(__file__).parents[3]
CHECKPOINT = "tiny.safetensors"
STUB = "tests.support.stub_worker:worker_main"
STARTER = """import sys, webui
from modules.settings import config
config.DEFAULT_PORT = int(sys.argv[2])
webui.leave(webui.main(sys.argv[3:], sys.argv[1]))
"""

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


# Ports


def test_a_taken_default_port_leads_to_the_next_free_one(tmp_path):
    port = free_port()
    settings = make_settings(tmp_path, port=port)
    with open_listener(settings) as first, open_listener(settings) as second:
        assert first.getsockname()[1] == port
        assert second.getsockname()[1] > port


def test_a_default_port_that_the_system_keeps_leads_to_the_next_too(tmp_path, monkeypatch):
    port, bind = free_port(), socket.socket.bind

    def kept(self, address):
        if address[1] == port:
            raise PermissionError(errno.EACCES, "kept")
        bind(self, address)

    monkeypatch.setattr(socket.socket, "bind", kept)
    with open_listener(make_settings(tmp_path, port=port)) as listener:
        assert listener.getsockname()[1] > port
    with pytest.raises(ConfigError, match=f"Port {port} "):
        open_listener(make_settings(tmp_path, port=port, port_is_explicit=True))


def test_a_port_asked_for_that_is_taken_is_an_error(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Port {port} is taken"):
            open_listener(make_settings(tmp_path, port=port, port_is_explicit=True))


@pytest.mark.parametrize("address", ["203.0.113.9", "no-such-host.invalid", "my..pc", 64 * "a"])
def test_a_foreign_address_is_an_error(tmp_path, address):
    with pytest.raises(ConfigError, match="not an address of this computer"):
        open_listener(make_settings(tmp_path, listen=address, port=free_port()))


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://127.0.0.1:80"),
        ("::1", "http://[::1]:80"),
        ("192.168.1.20", "http://192.168.1.20:80"),
        ("my-host", "http://my-host:80"),
    ],
)
def test_the_address_to_type(tmp_path, listen, url):
    assert page_url(make_settings(tmp_path, listen=listen), 80) == url


def test_the_address_for_other_devices_is_that_of_a_page_open_to_them(tmp_path):
    assert network_url(make_settings(tmp_path, listen="127.0.0.1"), 80) is None
    assert network_url(make_settings(tmp_path, listen="192.168.1.20"), 80) is None
    found = network_url(make_settings(tmp_path, listen="0.0.0.0"), 80)
    if found is None:
        pytest.skip("no network here")
    assert re.fullmatch(r"http://\d+\.\d+\.\d+\.\d+:80", found)


def test_it_serves_on_ipv6_too(tmp_path):
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        with serve(tmp_path, listen="::1") as running:
            assert running.client.get("/healthz").json() == {"ok": True}
    except ConfigError:
        pytest.skip("no IPv6 here")


def test_the_environment_is_quiet(tmp_path, monkeypatch):
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "old")
    monkeypatch.setenv("GRADIO_WATCH_DIRS", "/")
    prepare_environment(make_settings(tmp_path))
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert os.environ["GRADIO_TEMP_DIR"].startswith(str(tmp_path))
    assert "GRADIO_WATCH_DIRS" not in os.environ


def test_a_proxy_s_name_is_answered_and_needs_a_login(tmp_path):
    with pytest.raises(ConfigError, match="login"):
        check_doors(make_settings(tmp_path, public_host="easel.example"))
    with serve(tmp_path, public_host="easel.example", auth="anna:pw") as running:
        headers = {"Host": "easel.example", "X-Forwarded-Proto": "https"}
        answer = running.client.post(
            "/login", data={"user": "anna", "password": "pw"}, headers=headers
        )
        assert answer.status_code == 303
        assert "Secure" in answer.headers["set-cookie"]


def test_leftovers_of_a_former_start_are_swept(tmp_path):
    settings = make_settings(tmp_path)
    kept = settings.data_path / "easel.db"
    left = settings.temporary_path / "gradio" / "abc" / "picture.png"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x")
    kept.write_bytes(b"x")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a").write_bytes(b"x")
    (settings.temporary_path / "link").symlink_to(outside)
    renamed = [settings.data_path / name for name in ("tmp", "thumbnails")]
    for folder in renamed:
        folder.mkdir()
        (folder / "a.webp").write_bytes(b"x")
    sweep(settings)
    assert not left.exists()
    assert not any(folder.exists() for folder in renamed)
    assert kept.exists()
    assert (outside / "a").exists()


def test_what_the_data_folder_held_before_is_left_alone(tmp_path):
    settings = make_settings(tmp_path, data_path=tmp_path)  # as with --data-path ~
    theirs = [tmp_path / name / "theirs.webp" for name in ("tmp", "thumbnails", "cache")]
    for path in theirs:
        path.parent.mkdir()
        path.write_bytes(b"the only copy")
    sweep(settings)
    thumbnails = Thumbnails(settings.thumbnail_path, files_max=2)
    for number in range(4):
        thumbnails.kept(f"p{number}", lambda: b"x")
    assert len(list(settings.thumbnail_path.iterdir())) == 2
    assert all(path.read_bytes() == b"the only copy" for path in theirs)


def test_nothing_is_recorded_or_sent(server):
    config = server.client.get("/config").json()
    assert config["analytics_enabled"] is False
    assert config["run_history"] is False


# The public link


@contextmanager
def share_service(status: int, body: str) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    service = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=service.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{service.server_port}/"
    finally:
        service.shutdown()
        thread.join()
        service.server_close()


def wait_for(test, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_an_unreachable_share_service_is_one_sentence_and_the_page_stays(server):
    nowhere = f"http://127.0.0.1:{free_port()}/"
    server.server.share(nowhere)
    wait_for(lambda: "no public link" in str(server.client.get("/api/status").json()["notices"]))
    notices = server.client.get("/api/status").json()["notices"]
    assert notices == [
        "There is no public link: the share service cannot be reached; check the internet "
        "connection and restart. The local page is not affected."
    ]
    assert server.client.get("/").status_code == 200
    server.context.notices.drop("share")


@pytest.mark.parametrize(
    ("status", "body"),
    [(500, ""), (200, "<html>"), (200, "[]"), (200, "{}"), (200, '[{"host": "a", "port": "x"}]')],
)
def test_an_odd_share_service_is_no_fault_either(tmp_path, status, body):
    notices = NoticeBoard()
    with share_service(status, body) as service:
        link = ShareLink("127.0.0.1", 1, folder=tmp_path, notices=notices, admit=print,
                         service=service)  # fmt: skip
        link.start()
        wait_for(lambda: "no public link" in str(notices.sentences()))
    link.close()


@posix
class TestTunnel:
    """With a helper program of our own in the place of frpc."""

    OFFER = json.dumps([{"host": "127.0.0.1", "port": 1, "root_ca": "certificate"}])

    @pytest.fixture
    def frpc(self, tmp_path, monkeypatch):
        from gradio import tunneling

        path = tmp_path / "frpc"
        monkeypatch.setattr(tunneling, "BINARY_PATH", str(path))
        monkeypatch.setattr(tunneling.atexit, "register", lambda *_: None)

        def write(*lines: str) -> None:
            path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
            path.chmod(0o755)

        return write

    def test_the_link_is_admitted_shown_and_closed(self, tmp_path, frpc):
        frpc('echo "start proxy success: http://abc.gradio.live"', "exec sleep 60")
        notices, admitted = NoticeBoard(), []
        with share_service(200, self.OFFER) as service:
            link = ShareLink("127.0.0.1", 1, folder=tmp_path / "tmp", notices=notices,
                             admit=admitted.append, service=service)  # fmt: skip
            link.start()
            wait_for(lambda: "https://abc.gradio.live" in str(notices.sentences()))
        assert admitted == ["abc.gradio.live"]
        process = link._process
        assert process.poll() is None
        link.close()
        assert process.wait(5) is not None
        link._thread.join(5)
        assert "closed" not in str(notices.sentences())

    def test_the_end_of_easel_ends_a_tunnel_that_is_still_opening(self, tmp_path, frpc):
        frpc("exec sleep 60")
        notices = NoticeBoard()
        with share_service(200, self.OFFER) as service:
            link = ShareLink("127.0.0.1", 1, folder=tmp_path, notices=notices,
                             admit=lambda _: None, service=service)  # fmt: skip
            link.start()
            wait_for(lambda: getattr(link._opening, "proc", None) is not None)
            process = link._opening.proc
            link.close()
        assert process.poll() is not None

    def test_a_link_that_ends_by_itself_is_told(self, tmp_path, frpc):
        frpc('echo "start proxy success: https://abc.gradio.live"', "sleep 0.2")
        notices = NoticeBoard()
        with share_service(200, self.OFFER) as service:
            link = ShareLink("127.0.0.1", 1, folder=tmp_path, notices=notices,
                             admit=lambda _: None, service=service)  # fmt: skip
            link.start()
            wait_for(lambda: "has closed" in str(notices.sentences()))
        link.close()

    def test_a_tunnel_that_is_refused_is_told(self, tmp_path, frpc):
        frpc('echo "login to server failed: no"', "exec sleep 60")
        notices = NoticeBoard()
        with share_service(200, self.OFFER) as service:
            link = ShareLink("127.0.0.1", 1, folder=tmp_path, notices=notices,
                             admit=lambda _: None, service=service)  # fmt: skip
            link.start()
            wait_for(lambda: "did not open" in str(notices.sentences()))
        assert link._process.wait(5) is not None
        link.close()

    def test_the_public_name_reaches_the_page_and_its_pages_may_send(self, server):
        server.server.policy.admit("abc.gradio.live", tls=True)
        headers = {"Host": "abc.gradio.live"}
        root = server.client.get("/config", headers=headers).json()["root"]
        assert root == "https://abc.gradio.live"
        headers |= {"Origin": "https://abc.gradio.live", "Sec-Fetch-Site": "same-origin"}
        assert server.client.post("/api/tasks", json={}, headers=headers).status_code == 201


# The process


@dataclass
class Program:
    """webui.py in a process group of its own."""

    process: subprocess.Popen
    url: str
    took: float
    lines: list[str]

    def family(self) -> list[psutil.Process]:
        me = psutil.Process(self.process.pid)
        return [me, *me.children(recursive=True)]


def command(folder: Path, *more: str, default_port: int = 0, worker: str = STUB) -> list[str]:
    return [sys.executable, "-c", STARTER, worker, str(default_port or free_port()), "--data-path",
            str(folder / "data"), "--output-path", str(folder / "out"), "--models-path",
            str(folder / "models"), "--disable-in-browser", *more]  # fmt: skip


@contextmanager
def program(folder: Path, default_port: int = 0, worker: str = STUB) -> Iterator[Program]:
    began = time.monotonic()
    log = (folder / "stderr").open("w+")
    process = subprocess.Popen(
        command(folder, default_port=default_port, worker=worker),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,
    )
    family: list[psutil.Process] = []
    try:
        lines = []
        for line in process.stdout:
            lines.append(line.strip())
            if line.startswith("Easel is ready"):
                break
        assert lines, (folder / "stderr").read_text()
        url = lines[-1].split()[-1]
        httpx.get(url, trust_env=False, verify=False, timeout=20).raise_for_status()
        found = Program(process, url, time.monotonic() - began, lines)
        family = found.family()
        yield found
    finally:
        for member in family:
            if member.is_running():
                member.kill()
        process.kill()
        process.wait(10)
        process.stdout.close()
        log.close()


def end(running: Program, number: signal.Signals) -> float:
    """Send the signal, as a terminal or a service does, and wait for every process to end;
    returns the seconds it took.
    """
    family = running.family()
    assert len(family) >= 2, "the worker is not running"
    began = time.monotonic()
    if number is signal.SIGINT:  # Ctrl+C: the workers get it, too
        os.killpg(running.process.pid, number)
    else:
        running.process.send_signal(number)
    running.process.wait(10)
    wait_for(lambda: all(is_gone(member) for member in family[1:]))
    return time.monotonic() - began


def is_gone(process: psutil.Process) -> bool:
    """True, too, for one of which only the exit code is left, which this system's init collects
    when it likes."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def ends_while_painting(
    folder: Path, running: Program, client: httpx.Client, number: signal.Signals, **more: str
) -> None:
    """The signal ends every process in time, with a task running and a page attached to it."""
    task = {"prompt": "slow", "steps": 200, "image_count": 8, **more}
    task_id = client.post("/api/tasks", json=task).json()["id"]
    with client.stream("GET", f"/api/tasks/{task_id}/events") as stream:
        events = read_events(stream.iter_lines())
        while not json.loads(next(events)[2]).get("progress"):
            pass
        assert end(running, number) < 3.0
    assert running.process.returncode == 0
    assert (folder / "stderr").read_text().count("Traceback") == 0
    settings = make_settings(folder, data_path=folder / "data")
    store = TaskStore(settings.database_path)  # the task was not lost: it waits for the next start
    assert store.get(task_id).state is TaskState.QUEUED
    store.close()


@posix
def test_sigterm_ends_every_process_while_the_real_worker_paints(tmp_path, tiny_checkpoint):
    put_checkpoint(make_settings(tmp_path), tiny_checkpoint)
    with program(tmp_path, worker=webui.WORKER) as running, visit(running.url) as client:
        ends_while_painting(tmp_path, running, client, signal.SIGTERM, checkpoint=CHECKPOINT)


def test_all_that_the_page_ends_shares_one_deadline(tmp_path, monkeypatch):
    monkeypatch.setattr("modules.api.server.END_SECONDS", 0.5)
    left = []

    def hang(seconds):
        left.append(seconds)
        time.sleep(max(seconds, 0))

    with serve(tmp_path) as running:
        monkeypatch.setattr(running.context.downloads, "close", hang)
        running.server._share = SimpleNamespace(close=lambda: time.sleep(0.3))
        began = time.monotonic()
        running.server.close()
        assert time.monotonic() - began < 0.8
        assert left[0] <= 0.2
        assert not running.server._thread.is_alive()  # it ended beside the others


@posix
@pytest.mark.parametrize("moment", [0.5, 1.5, 2.5])
def test_a_signal_while_starting_ends_it_too(tmp_path, moment):
    process = subprocess.Popen(command(tmp_path), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    time.sleep(moment)
    family = [*psutil.Process(process.pid).children(recursive=True)]
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    words = process.communicate(timeout=20)[1]
    assert process.returncode in (0, -signal.SIGTERM)  # the latter before our code runs at all
    assert time.monotonic() - began < 3.0
    assert "Traceback" not in words
    assert psutil.wait_procs(family, timeout=3)[1] == []


@posix
def test_from_the_request_to_the_picture_over_http_and_to_ctrl_c(tmp_path):
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        program(tmp_path, default_port=other.getsockname()[1]) as running,
        visit(running.url) as client,
    ):
        # Another program has the usual port.
        taken, port = other.getsockname()[1], httpx.URL(running.url).port
        assert port > taken
        told = f"Port {taken} is taken, so the page is on port {port}.\n"
        assert told in (tmp_path / "stderr").read_text()
        task = {"prompt": "a house", "steps": 3, "image_count": 2, "seed": 5}
        task_id = client.post("/api/tasks", json=task).json()["id"]
        with client.stream("GET", f"/api/tasks/{task_id}/events") as stream:
            events = [json.loads(data) for kind, _, data in read_events(stream.iter_lines())
                      if kind == "view"]  # fmt: skip
        last = events[-1]
        assert last["state"] == "done"
        assert [event["seq"] for event in events] == sorted({event["seq"] for event in events})
        assert [image["seed"] for image in last["images"]] == [5, 6]
        for image in last["images"]:
            picture = client.get(image["url"])
            assert picture.status_code == 200
            assert picture.headers["content-type"].startswith("image/")
        history = client.get("/api/history").json()["images"]
        assert [(row["task_id"], row["index"]) for row in history] == [(task_id, 1), (task_id, 0)]
        status = client.get("/api/status").json()
        assert status["pool"]["workers"][0]["state"] in ("idle", "busy")
        assert status["queue_length"] == 0
        # A second one on the same folder is refused, with the address of the first.
        second = subprocess.run(
            command(tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert second.returncode == 2
        assert running.url in second.stderr
        assert second.stderr.count("\n") == 1
        assert client.get("/healthz").status_code == 200
        ends_while_painting(tmp_path, running, client, signal.SIGINT)


@posix
def test_a_taken_port_in_the_program(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        refused = subprocess.run(
            command(tmp_path, "--port", port), cwd=ROOT, capture_output=True, text=True, timeout=60
        )
    assert refused.returncode == 2
    assert refused.stderr == (
        f"Port {port} is taken by another program; end it, or choose another --port.\n"
    )


REFUSED = [
    (["--listen"], "needs a login"),
    (["--share"], "needs a login"),
    (["--listen", "--auth-file", "missing-users"], "missing-users"),
    (["--nonsense"], "--nonsense"),
    (["--port", "99999"], "99999"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=lambda value: str(value)[:30])
def test_a_start_that_is_refused_says_why_in_one_sentence(
    tmp_path, monkeypatch, capsys, arguments, words
):
    monkeypatch.setattr(webui, "end_on_signals", lambda: None)
    assert webui.main(command(tmp_path, *arguments)[5:], STUB) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1
    assert not (tmp_path / "data" / "easel.db").exists()


def test_a_refusal_is_the_program_s_exit_status_and_all_that_it_says(tmp_path):
    done = subprocess.run(
        command(tmp_path, "--listen"), cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "needs a login" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "data" / "easel.db").exists()


# What is loaded

LOADED = """
import inspect, json, sys
from pathlib import Path

def loaded(*more):
    heavy = {"torch", "extras", "ldm_patched", *more}
    return sorted(name for name in sys.modules if name.split(".")[0] in heavy)

import webui
found = {"webui": loaded("gradio")}
from modules.api.server import import_gradio
from tests.modules.api.support import serve
found["server"] = loaded("gradio")
before, written = inspect.getfile, []
sys.addaudithook(
    lambda event, a: event == "open" and str(a[0]).endswith(".pyi") and written.append(str(a[0]))
)
gradio = import_gradio()
found["written"] = list(written)
found["inspect"] = inspect.getfile is before
found["file"] = inspect.getfile(gradio.Textbox)
found["label"] = gradio.Textbox(label="x").label
import modules.ui.app
found["page"] = loaded()
with serve(Path(sys.argv[1]), page="modules.ui.app") as running:
    found["answers"] = [running.client.get(p).status_code for p in ("/", "/api/status")]
found["served"] = loaded("transformers", "matplotlib")
print(json.dumps(found))
"""
TOKENIZER = ["ldm_patched", "ldm_patched.modules", "ldm_patched.modules.clip_tokenizer",
             "ldm_patched.modules.embedding_names", "ldm_patched.modules.errors"]  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, Any]:
    """What a fresh process finds as it goes from the first import to a page that was served."""
    folder = tmp_path_factory.mktemp("loaded")
    done = subprocess.run(
        [sys.executable, "-c", LOADED, folder], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_webui_loads_neither_the_engine_nor_gradio_before_it_serves(found):
    assert found["webui"] == []
    assert found["server"] == TOKENIZER


def test_the_whole_page_loads_of_the_engine_the_tokenizer_alone(found):
    assert found["page"] == TOKENIZER
    assert found["answers"] == [200, 200]
    assert found["served"] == TOKENIZER


def test_gradio_comes_in_without_writing_beside_its_source(found):
    """And `inspect` is as it was."""
    assert found["written"] == []
    assert found["inspect"] is True
    assert found["file"].endswith("textbox.py")
    assert found["label"] == "x"


def test_the_page_s_routes_are_made_once(tmp_path, monkeypatch):
    from gradio import routes

    made, make = [], routes.App.create_app
    monkeypatch.setattr(
        routes.App, "create_app", lambda *a, **k: made.append(make(*a, **k)) or made[-1]
    )
    with serve(tmp_path) as running:
        assert running.client.get("/config").status_code == 200
    assert len(made) == 1
