"""The login: who gets in, how guessing is slowed, and that a bad users file never opens a door."""

import json
import re
import threading
import time
from pathlib import Path

import pytest
from argon2 import PasswordHasher, extract_parameters

from modules.api import auth
from modules.api.auth import Users, load_users
from modules.api.login import safe_next
from modules.api.server import check_doors
from modules.api.sessions import SESSION_SECONDS, Sessions, Throttle
from modules.spec.errors import ConfigError
from tests.modules.api.support import make_settings, serve, visit

CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@pytest.fixture(scope="module", autouse=True)
def cheap_hashes():
    """Every login takes a hash that is slow on purpose; its price is looked at once, below."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auth, "PasswordHasher", lambda: CHEAP)
        yield


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, cheap_hashes):
    folder, doors = tmp_path_factory.mktemp("easel"), {"public_host": "easel.example"}
    with serve(folder, auth="anna:open sesame ü", **doors) as running:
        yield running


@pytest.fixture
def visitor(guarded):
    with visit(guarded.url) as client:
        yield client


@pytest.fixture(autouse=True)
def fresh_throttle(request):
    if "guarded" in request.fixturenames:
        request.getfixturevalue("guarded").server._door.throttle = Throttle()


def log_in(client, user="anna", password="open sesame ü", **more):
    return client.post("/login", data={"user": user, "password": password}, **more)


# Without a login


def fill(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "0", path)


def test_no_route_answers_without_a_login(guarded, visitor):
    """Every route there is, read from the running apps: ours, FastAPI's and Gradio's."""
    log_in(visitor)
    described = visitor.get("/openapi.json").json()["paths"]
    visitor.cookies.clear()
    routes = {(method.upper(), fill(path)) for path, item in described.items() for method in item}
    todo = [guarded.server._server.config.app._app]
    while todo:
        for route in getattr(todo.pop(), "routes", []):
            path = fill(getattr(route, "path", "") or "/")
            routes |= {(method, path) for method in getattr(route, "methods", None) or ["GET"]}
            todo += [getattr(route, name, None) for name in ("app", "original_router")]
    assert len(routes) > 60
    assert ("GET", "/gradio_api/queue/data") in routes
    assert ("POST", "/api/tasks") in routes
    for method, path in sorted(routes):
        if path in ("/login", "/healthz"):
            continue
        answer = visitor.request(method, path)
        assert answer.status_code == 401, (method, path)
        assert method == "HEAD" or answer.json()["error"]["code"] == "E_LOGIN"
        answer = visitor.request(method, path, headers={"Accept": "text/html"})
        if method in ("GET", "HEAD"):
            assert answer.status_code == 303, (method, path)
            assert answer.headers["location"].startswith("/login?next=")
        else:
            assert answer.status_code == 401
    for odd in (
        "//",
        "/login/",
        "/login/../config",
        "/healthz/x",
        "/LOGIN",
        "/login%2f..%2fconfig",
    ):
        assert visitor.get(odd).status_code in (401, 307), odd
    assert visitor.get("/healthz").json() == {"ok": True}


def test_the_login_page_is_small_and_asks_nothing_of_others(visitor):
    answer = visitor.get("/login")
    assert answer.status_code == 200
    assert len(answer.content) < 6_000
    assert "script" not in answer.text
    assert not re.search(r"(src|href)=|url\(|@import|//", answer.text.replace("<!doctype", ""))
    assert "script-src" not in answer.headers["content-security-policy"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"


# With one


def test_logging_in_and_out(guarded, visitor):
    answer = log_in(visitor)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"]
    assert f"easel_session_{guarded.server.port}=" in cookie
    for word in ("HttpOnly", "SameSite=strict", "Path=/", f"Max-Age={SESSION_SECONDS}"):
        assert word in cookie
    assert visitor.get("/api/status").json()["user"] == "anna"
    assert visitor.get("/").status_code == 200
    assert visitor.get("/config").json()["username"] == "anna"
    assert visitor.get("/login").status_code == 303
    stale = dict(visitor.cookies)
    assert visitor.post("/logout").headers["location"] == "/login"
    assert visitor.get("/api/status").status_code == 401
    assert visitor.get("/api/status", cookies=stale).status_code == 401


def test_gradio_s_own_calls_work_once_logged_in(visitor):
    log_in(visitor)
    event = visitor.post("/gradio_api/call/shout", json={"data": ["hi"]}).json()["event_id"]
    assert '"HI"' in visitor.get(f"/gradio_api/call/shout/{event}").text


def test_tasks_belong_to_who_sent_them(guarded, visitor):
    log_in(visitor)
    visitor.post("/api/tasks", json={"prompt": "mine"})
    spec, owner = guarded.pool.submitted[-1]
    assert (spec.prompt, owner) == ("mine", "anna")


def test_the_way_back_leads_to_the_page_asked_for(visitor):
    answer = visitor.get("/?task=abc&x=%20", headers={"Accept": "text/html"})
    login = answer.headers["location"]
    page = visitor.get(login)
    action = re.search(r'action="([^"]*)"', page.text).group(1)
    answer = visitor.post(action, data={"user": "anna", "password": "open sesame ü"})
    assert answer.headers["location"] == "/?task=abc&x=%20"


@pytest.mark.parametrize(
    "target",
    ["//evil.example", "https://evil.example", "/\\evil.example", "\\\\evil.example",
     "javascript:a", "", "x", "/\t/evil.example", "/\n", "/a\r\nSet-Cookie: a=b",
     "/" + "a" * 600, "/é", "/a\\b"],
)  # fmt: skip
def test_the_way_back_leads_nowhere_else(target):
    assert safe_next(target) == "/"


@pytest.mark.parametrize(
    ("user", "password"),
    [("anna", "wrong"), ("anna", ""), ("", ""), ("bob", "open sesame ü"), ("Anna", "open sesame ü"),
     ("anna ", "open sesame ü"), ("anna", "open sesame ü" + "x" * 2_000), ("anna", "\x00"),
     ("'; DROP TABLE user; --", "x"), ("a" * 10_000, "x"), ("<script>", "<script>")],
)  # fmt: skip
def test_anything_else_stays_out(visitor, user, password):
    answer = log_in(visitor, user, password)
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert "Name or password is wrong" in answer.text
    assert "<script>" not in answer.text
    assert visitor.get("/api/status").status_code == 401


@pytest.mark.parametrize(
    "cookie", ["", "x", "a" * 43, "é", "\x7f", '"', "; easel", "a=b"], ids=repr
)
def test_made_up_cookies_open_nothing(guarded, visitor, cookie):
    header = f"easel_session_{guarded.server.port}=".encode() + cookie.encode()
    assert visitor.get("/api/status", headers={b"Cookie": header}).status_code == 401


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff\xfe", b"a" * 16_000, b"&" * 100, b"user=anna&user=x&password=y", b"{}",
     b"user=%00&password=%ff", b"user[]=anna&password[]=x"],
    ids=lambda body: repr(body[:20]),
)  # fmt: skip
def test_odd_forms_are_wrong_passwords(visitor, body):
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    assert visitor.post("/login", content=body, headers=kind).status_code == 401


@pytest.mark.parametrize("told", [True, False], ids=["length told", "in parts"])
def test_a_login_is_read_no_further_than_a_form_is_long(guarded, visitor, monkeypatch, told):
    """Who has not logged in yet must not fill this computer's memory."""
    monkeypatch.setattr(guarded.server._door.users, "verify", lambda *both: False)
    body = b"user=anna&password=" + b"x" * 20_000
    parts = (body[at : at + 2_000] for at in range(0, len(body), 2_000))
    answer = visitor.post("/login", content=body if told else parts)
    assert answer.status_code == 413
    assert "larger than 16 KB" in answer.json()["error"]["message"]


# Guessing


def test_a_thousand_guesses_are_not_checked(guarded, visitor, monkeypatch):
    """One user, then ever new ones: few reach the slow hash, and the right password waits too."""
    checked = []
    users = guarded.server._door.users
    monkeypatch.setattr(users, "verify", lambda *both: checked.append(both) or False)
    monkeypatch.setattr(guarded.server._door.throttle, "_clock", lambda: 0.0)  # no waiting ends
    for number in range(300):
        answer = log_in(visitor, password=str(number))
        assert answer.status_code in (401, 429)
    assert len(checked) <= 10
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert "Too many attempts" in answer.text
    assert log_in(visitor).status_code == 429
    for number in range(300):
        log_in(visitor, user=f"user{number}")
    assert len(checked) <= 30


def test_guesses_at_once_gain_nothing(guarded, monkeypatch):
    checked = []

    def slow(user, password):
        checked.append(password)
        time.sleep(0.2)
        return False

    monkeypatch.setattr(guarded.server._door.users, "verify", slow)

    def guess(number: int) -> None:
        with visit(guarded.url) as client:
            log_in(client, password=str(number))

    threads = [threading.Thread(target=guess, args=(n,)) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(checked) <= 6


PROXIED = [
    {"Host": "easel.example"},
    {"X-Forwarded-For": "203.0.113.9"},
    {"Forwarded": "for=203.0.113.9"},
]


@pytest.mark.parametrize("stranger", PROXIED, ids=str)
def test_a_stranger_behind_a_proxy_does_not_lock_out_who_sits_here(
    guarded, visitor, monkeypatch, stranger
):
    monkeypatch.setattr(guarded.server._door.users, "verify", lambda _, word: word == "right")
    answers = [log_in(visitor, password="wrong", headers=stranger) for _ in range(8)]
    assert answers[-1].status_code == 429
    assert log_in(visitor, password="right", headers=stranger).status_code == 429
    assert log_in(visitor, password="right").status_code == 303


def test_guesses_made_here_wait_here_alone(guarded, visitor, monkeypatch):
    monkeypatch.setattr(guarded.server._door.users, "verify", lambda _, word: word == "right")
    answers = [log_in(visitor, password="wrong") for _ in range(8)]
    assert answers[-1].status_code == 429
    assert log_in(visitor, password="right").status_code == 429
    public = log_in(visitor, password="right", headers={"Host": "easel.example"})
    assert public.status_code == 303


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_the_wait_doubles_and_a_right_guess_ends_it():
    clock = Clock()
    throttle = Throttle(clock)
    waits = []
    for _ in range(12):
        wait = throttle.attempt("anna", "10.0.0.1")
        if wait:
            waits.append(wait)
            clock.now += wait
            assert throttle.attempt("anna", "10.0.0.1") == 0
    assert waits == [1, 2, 4, 8, 16, 32, 64]
    assert throttle.attempt("anna", "10.0.0.2") == 0  # another place, another count
    clock.now += 300
    assert throttle.attempt("anna", "10.0.0.1") == 0
    throttle.succeeded("anna", "10.0.0.1")
    assert [throttle.attempt("anna", "10.0.0.1") for _ in range(5)] == [0] * 5


def test_the_throttle_and_the_sessions_do_not_grow_for_ever(monkeypatch):
    monkeypatch.setattr("modules.api.sessions.GUESSERS_MAX", 100)
    monkeypatch.setattr("modules.api.sessions.SESSIONS_MAX", 100)
    throttle, sessions = Throttle(), Sessions()
    first = sessions.open("first")
    for number in range(300):
        throttle.attempt(f"user{number}", f"10.0.0.{number}")
        last = sessions.open("anna")
    assert len(throttle._records) <= 100
    assert len(sessions._sessions) <= 100
    assert sessions.user_of(first) is None
    assert sessions.user_of(last) == "anna"


def test_sessions_end_by_themselves():
    clock = Clock()
    sessions = Sessions(clock)
    token = sessions.open("anna")
    clock.now += SESSION_SECONDS - 1
    assert sessions.user_of(token) == "anna"
    clock.now += 2
    assert sessions.user_of(token) is None


def test_an_unknown_user_costs_the_same_work(monkeypatch):
    """The slow hash runs exactly once whatever the name, so time tells nothing."""
    runs = []
    real = auth._argon2_matches
    monkeypatch.setattr(auth, "_argon2_matches", lambda *a: runs.append(1) or real(*a))
    users = load_users("anna:secret")
    for name in ("anna", "nobody"):
        for password in ("secret", "wrong"):
            runs.clear()
            assert users.verify(name, password) == ((name, password) == ("anna", "secret"))
            assert len(runs) == 1


# Users files


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_users_file_with_hashes(tmp_path):
    lines = f"# people\n\nanna:{CHEAP.hash('one')}\n  bob : {CHEAP.hash('two')}  \n"
    users = load_users(write(tmp_path, "users", "\ufeff" + lines))
    assert len(users) == 2
    assert users.verify("anna", "one")
    assert users.verify("bob", "two")
    assert not users.verify("anna", "two")


def test_the_file_that_fooocus_users_have(tmp_path):
    rows = [
        {"user": "anna", "pass": "one"},
        {"user": "bob", "hash": "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"},
        {"user": "cleo", "hash": CHEAP.hash("three")},
    ]
    users = load_users(write(tmp_path, "auth.json", json.dumps(rows)))
    assert [users.verify(*p) for p in (("anna", "one"), ("bob", "two"), ("cleo", "three"))] == [
        True
    ] * 3
    assert not users.verify("bob", rows[1]["hash"])
    assert not users.verify("anna", "two")


BROKEN = {
    "empty": "",
    "comments only": "# nobody\n",
    "trailing comma": '[{"user": "a", "pass": "b"},]',
    "object": '{"user": "a", "pass": "b"}',
    "empty list": "[]",
    "list of text": '["a:b"]',
    "no user": '[{"pass": "b"}]',
    "user is a number": '[{"user": 1, "pass": "b"}]',
    "no password": '[{"user": "a"}]',
    "empty password": '[{"user": "a", "pass": ""}]',
    "null password": '[{"user": "a", "pass": null}]',
    "pass and hash": '[{"user": "a", "pass": "b", "hash": "c"}]',
    "unknown key": '[{"user": "a", "pass": "b", "admin": true}]',
    "short hash": '[{"user": "a", "hash": "abc"}]',
    "same user twice": '[{"user": "a", "pass": "b"}, {"user": "a", "pass": "c"}]',
    "one good one bad": '[{"user": "a", "pass": "b"}, {"user": "c"}]',
    "colon in the name": '[{"user": "a:b", "pass": "b"}]',
    "cut off": '[{"user": "a", "pa',
    "deep": "[" * 100_000,
    "plain line": "anna:secret",
    "no colon": "anna",
    "broken argon2": "anna:$argon2id$v=19$m=8,t=1,p=1$AAAA",
    "argon2i": "anna:" + CHEAP.hash("x").replace("argon2id", "argon2i"),
    "not UTF-8": b"\xff\xfea\x00",
    "NUL": b"anna\x00:x",
    "too large": b"#" * (auth.FILE_BYTES + 1),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_faulty_users_file_stops_the_start(tmp_path, name):
    suffix = ".json" if str(BROKEN[name])[:1] in "[{" else ""
    path = write(tmp_path, f"people{suffix}", BROKEN[name])
    with pytest.raises(ConfigError) as caught:
        check_doors(make_settings(tmp_path, auth=path))
    sentence = str(caught.value)
    assert "people" in sentence
    assert str(tmp_path) not in sentence
    assert sentence.endswith((".", "`."))
    assert "\n" not in sentence


def test_a_missing_file_a_folder_and_an_unreadable_one_stop_the_start(tmp_path):
    locked = write(tmp_path, "locked", "anna:x")
    locked.chmod(0)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "missing", tmp_path, locked, tmp_path / "loop"):
        with pytest.raises(ConfigError):
            load_users(path)


@pytest.mark.parametrize("text", ["anna", "anna:", ":secret", ":", "", "a b:c", "\x00:c"])
def test_a_faulty_login_on_the_command_line_stops_the_start(text):
    with pytest.raises(ConfigError):
        load_users(text)


def test_a_list_of_nobody_is_no_login():
    with pytest.raises(ConfigError):
        Users({})


# When a login is asked for


EXPOSED = [{"listen": "0.0.0.0"}, {"listen": "192.168.1.20"}, {"listen": "::"}, {"share": True}]


@pytest.mark.parametrize("values", EXPOSED, ids=str)
def test_beyond_this_computer_a_login_is_needed(tmp_path, values):
    with pytest.raises(ConfigError, match="--no-auth"):
        check_doors(make_settings(tmp_path, **values))
    assert check_doors(make_settings(tmp_path, **values, no_auth=True)) is None
    assert len(check_doors(make_settings(tmp_path, **values, auth="anna:secret"))) == 1


@pytest.mark.parametrize("values", EXPOSED, ids=str)
def test_auth_json_beside_the_program_is_found_and_must_be_right(tmp_path, values):
    path = write(tmp_path, "auth.json", '[{"user": "a", "pass": "b"}]')
    assert len(check_doors(make_settings(tmp_path, **values))) == 1
    path.write_text('[{"user": "a", "pass": "b"},]')
    with pytest.raises(ConfigError, match=r"auth\.json"):
        check_doors(make_settings(tmp_path, **values))


def test_on_this_computer_no_login_is_needed(tmp_path):
    write(tmp_path, "auth.json", '[{"user": "a", "pass": "b"}]')
    assert check_doors(make_settings(tmp_path)) is None
    assert len(check_doors(make_settings(tmp_path, auth="anna:secret"))) == 1


def test_the_page_says_when_it_is_open_to_others(tmp_path):
    with serve(tmp_path, listen="0.0.0.0", no_auth=True) as running:
        notices = running.client.get("/api/status").json()["notices"]
        assert any("without a login" in sentence for sentence in notices)


def test_the_helper_writes_a_line_that_the_users_file_takes(tmp_path, monkeypatch, capsys):
    """Its hash is as slow as it should be, and so is the one that a name unknown here is given."""
    monkeypatch.setattr(auth, "PasswordHasher", PasswordHasher)
    monkeypatch.setattr(auth.getpass, "getpass", lambda prompt: "secret")
    assert auth.main(["anna"]) == 0
    line = capsys.readouterr().out
    users = load_users(write(tmp_path, "users", line))
    assert users.verify("anna", "secret")
    price = extract_parameters(line.strip().partition(":")[2])
    assert price == extract_parameters(users._decoy)
    assert price.memory_cost >= 64 * 1024 and price.time_cost >= 3
    assert auth.main([]) == 2
    assert auth.main(["a b"]) == 2
    monkeypatch.setattr(auth.getpass, "getpass", lambda prompt: "")
    assert auth.main(["anna"]) == 2
