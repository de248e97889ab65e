"""Downloads over HTTP: known files by name, by the owner alone."""

import time

import pytest

from modules.settings.presets import Preset
from tests.modules.api import support
from tests.modules.api.support import serve, visit
from tests.support.file_server import serve_file

KEY = "loras/new ink.safetensors"


@pytest.fixture
def files(monkeypatch):
    """A server that a preset names as the source of KEY."""
    with serve_file(b"weights") as source:
        download = {"file": "new ink.safetensors", "folder": "loras", "url": f"{source.url}x"}
        preset = Preset(name="p", title="P", downloads=[download])
        monkeypatch.setitem(support.PRESETS, "p", preset)
        yield source


def state_of(client, name=KEY):
    answer = client.get("/api/downloads").json()
    return {view["name"]: view["state"] for view in answer["downloads"]}.get(name)


def wait_until(client, state):
    deadline = time.monotonic() + 10
    while state_of(client) != state:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_known_file_is_fetched_and_seen_by_everybody(tmp_path, files):
    files.hold = 3
    with serve(tmp_path) as server:
        client = server.client
        assert client.get("/api/downloads").json() == {"allowed": True, "downloads": []}
        begun = client.post(f"/api/downloads/{KEY}")
        assert (begun.status_code, begun.json()["downloads"][0]["name"]) == (202, KEY)
        wait_until(client, "running")
        assert client.get("/api/status").json()["downloads"] == client.get("/api/downloads").json()
        files.go_on.set()
        wait_until(client, "done")
    assert (tmp_path / "models" / KEY).read_bytes() == b"weights"


def test_stopping_and_beginning_again(tmp_path, files):
    files.hold = 3
    with serve(tmp_path) as server:
        server.client.post(f"/api/downloads/{KEY}")
        wait_until(server.client, "running")
        assert server.client.post("/api/downloads/new ink.safetensors/stop").status_code == 202
        wait_until(server.client, "stopped")
        files.hold = None
        server.client.post("/api/downloads/new ink.safetensors")  # the file's name will do
        wait_until(server.client, "done")


def test_a_restart_goes_on_where_the_last_one_was(tmp_path, files):
    files.body, files.hold = b"w" * 300_000, 200_000
    part = tmp_path / "models" / f"{KEY}.easel-part"
    with serve(tmp_path) as server:
        server.client.post(f"/api/downloads/{KEY}")
        wait_until(server.client, "running")
        deadline = time.monotonic() + 10
        while not (part.is_file() and part.stat().st_size > 100_000):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    files.hold = None
    kept = part.stat().st_size
    with serve(tmp_path) as server:
        server.client.post(f"/api/downloads/{KEY}")
        wait_until(server.client, "done")
    assert files.asked[-1]["range"] == f"bytes={kept}-"
    assert (tmp_path / "models" / KEY).read_bytes() == files.body


@pytest.mark.parametrize(
    "name",
    [
        "loras/other.safetensors",
        "checkpoints/new ink.safetensors",
        "..%2F..%2Fetc%2Fpasswd",
        "https:%2F%2Fexample.org%2Fx",
        "loras%2F..%2Floras%2Fnew ink.safetensors",
    ],
)
def test_no_other_name_and_no_address_fetches_anything(tmp_path, files, name):
    with serve(tmp_path) as server:
        answer = server.client.post(f"/api/downloads/{name}")
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "E_NOT_FOUND"
        assert server.context.downloads.views() == [] and files.asked == []


def test_only_the_owner_may(tmp_path, files):
    users = tmp_path / "auth.json"
    users.write_text('[{"user": "olga", "pass": "own"}, {"user": "gus", "pass": "guest"}]')
    with serve(tmp_path, auth=users) as server:
        refused = server.client.post(f"/api/downloads/{KEY}")
        assert refused.status_code == 401
        for user, password, status in (("gus", "guest", 403), ("olga", "own", 202)):
            with visit(server.url) as visitor:
                visitor.post("/login", data={"user": user, "password": password})
                may = status == 202
                assert visitor.get("/api/downloads").json()["allowed"] is may
                assert visitor.get("/api/status").json()["downloads"]["allowed"] is may
                for path in (f"/api/downloads/{KEY}", f"/api/downloads/{KEY}/stop"):
                    answer = visitor.post(path)
                    assert answer.status_code == status
                    assert may or "Only the owner" in answer.json()["error"]["message"]
                    assert may or files.asked == []


@pytest.mark.parametrize("values", [{"public_host": "easel.example.org"}, {"share": True}])
def test_open_to_others_without_a_login_nobody_may(tmp_path, files, values):
    with serve(tmp_path, no_auth=True, **values) as server:
        answer = server.client.post(f"/api/downloads/{KEY}")
        assert answer.status_code == 403
        assert "launch.py download" in answer.json()["error"]["message"]
        assert server.client.get("/api/downloads").json()["allowed"] is False
    assert files.asked == []


def test_a_foreign_page_may_not(tmp_path, files):
    with serve(tmp_path) as server:
        headers = {"Origin": "https://evil.example.org"}
        assert server.client.post(f"/api/downloads/{KEY}", headers=headers).status_code == 403
    assert files.asked == []
