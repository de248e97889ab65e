"""Server-sent events: what a page sees when it attaches, stays, loses the line and comes back."""

import base64
import json
import threading
import time

import pytest

from modules.spec import limits
from modules.spec.flags import TaskState
from modules.tasks.events import Progress
from tests.modules.api.support import read_events, visit


def step(number: int) -> Progress:
    return Progress(image=1, image_count=1, step=number, steps=100)


def follow(server, task_id: str, query: str = "", **headers: str):
    return server.client.stream("GET", f"/api/tasks/{task_id}/events{query}", headers=headers)


def views(events) -> list[tuple[int, str]]:
    return [(int(number), json.loads(data)["state"]) for kind, number, data in events
            if kind == "view"]  # fmt: skip


def test_a_snapshot_comes_first_and_the_stream_ends_with_the_final_view(server):
    server.pool.add("one", seq=5)
    with follow(server, "one") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        events = read_events(answer.iter_lines())
        kind, number, data = next(events)
        assert (kind, number) == ("view", "5")
        assert json.loads(data)["id"] == "one"
        server.pool.change("one", state=TaskState.RUNNING, progress=step(3))
        kind, number, data = next(events)
        assert (number, json.loads(data)["progress"]["step"]) == ("6", 3)
        server.pool.change("one", state=TaskState.DONE)
        assert views(events) == [(7, "done")]  # and then the stream is over


def test_an_update_arrives_at_once(server):
    server.pool.add("one")
    with follow(server, "one") as answer:
        events = read_events(answer.iter_lines())
        next(events)
        began = time.monotonic()
        server.pool.change("one", progress=step(1))
        next(events)
        assert time.monotonic() - began < 5.0  # not only with the next sign of life
        server.pool.change("one", state=TaskState.DONE)


def test_previews_ride_along_once_each(server):
    server.pool.add("one", state=TaskState.RUNNING)
    with follow(server, "one") as answer:
        events = read_events(answer.iter_lines())
        next(events)
        server.pool.show("one", 1, b"\xff\xd8first", width=8, height=16)
        kind, _, data = next(events)
        preview = json.loads(data)
        assert kind == "preview"
        assert (preview["number"], preview["width"], preview["height"]) == (1, 8, 16)
        head, _, body = preview["url"].partition(",")
        assert head == "data:image/jpeg;base64"
        assert base64.b64decode(body) == b"\xff\xd8first"
        server.pool.change("one", progress=step(2))
        assert next(events)[0] == "view"
        server.pool.show("one", 4, b"fourth")
        assert json.loads(next(events)[2])["number"] == 4
        server.pool.change("one", state=TaskState.DONE)
        assert [kind for kind, _, _ in events] == ["view"]


def test_a_page_that_comes_back_gets_only_what_it_missed(server):
    server.pool.add("one", seq=9)
    with follow(server, "one", "?after=8") as answer:
        assert next(read_events(answer.iter_lines()))[1] == "9"
    with follow(server, "one", "?after=9") as answer:
        events = read_events(answer.iter_lines())
        threading.Timer(0.4, server.pool.change, ["one"], {"progress": step(1)}).start()
        assert next(events)[1] == "10"  # 9 is not sent again
    with follow(server, "one", "?after=2", **{"Last-Event-ID": "10"}) as answer:
        events = read_events(answer.iter_lines())
        threading.Timer(0.4, server.pool.change, ["one"], {"state": TaskState.DONE}).start()
        assert views(events) == [(11, "done")]


def test_numbers_from_before_a_restart_do_not_silence_the_task(server):
    server.pool.add("one", seq=2)
    with follow(server, "one", "?after=50") as answer:
        assert next(read_events(answer.iter_lines()))[1] == "2"


def test_a_finished_task_ends_at_once_and_asks_not_to_come_back(server):
    server.pool.add("one", seq=3, state=TaskState.FAILED)
    with follow(server, "one") as answer:
        assert views(read_events(answer.iter_lines())) == [(3, "failed")]
    again = server.client.get("/api/tasks/one/events", headers={"Last-Event-ID": "3"})
    assert again.status_code == 204  # an EventSource stops on this


@pytest.mark.parametrize("number", ["x", "-1", "1e9", "9" * 40, "", "NaN"])
def test_odd_event_numbers_do_no_harm(server, number):
    server.pool.add("one", seq=3, state=TaskState.DONE)
    answer = server.client.get("/api/tasks/one/events", headers={"Last-Event-ID": number})
    assert answer.status_code == 200
    answer = server.client.get(f"/api/tasks/one/events?after={number}")
    assert answer.status_code in (200, 422)


def test_a_task_that_goes_away_ends_its_stream(server):
    server.pool.add("one")
    with follow(server, "one") as answer:
        events = read_events(answer.iter_lines())
        next(events)
        server.pool.remove("one")
        assert list(events) == []


def test_silence_is_filled_with_heartbeats(server, monkeypatch):
    monkeypatch.setattr("modules.api.feed.HEARTBEAT_SECONDS", 0.2)
    server.pool.add("one")
    with follow(server, "one") as answer:
        events = read_events(answer.iter_lines())
        next(events)
        assert next(events) == ("", "", "still here")
        server.pool.change("one", state=TaskState.DONE)


def test_two_followers_never_see_each_other_s_task(server):
    for name in ("one", "two"):
        server.pool.add(name, state=TaskState.RUNNING)
    seen: dict[str, list[dict]] = {"one": [], "two": []}

    def watch(name: str) -> None:
        with (
            visit(server.url) as client,
            client.stream("GET", f"/api/tasks/{name}/events") as answer,
        ):
            for kind, _, data in read_events(answer.iter_lines()):
                seen[name].append({"kind": kind, **json.loads(data)})

    threads = [threading.Thread(target=watch, args=(name,)) for name in seen]
    for thread in threads:
        thread.start()
    for number in range(1, 30):
        for name in seen:
            server.pool.change(name, progress=step(number), message=name)
            server.pool.show(name, number, f"{name} {number}".encode())
        time.sleep(0.02)
    for name in seen:
        server.pool.change(name, state=TaskState.DONE)
    for thread in threads:
        thread.join(10)
    for name, events in seen.items():
        assert events[-1]["state"] == "done"
        for event in events:
            if event["kind"] == "view":
                assert event["id"] == name
                assert event["message"] in ("", name)
            else:
                assert base64.b64decode(event["url"].partition(",")[2]).startswith(name.encode())


def test_a_hundred_followers_do_not_hold_up_the_page(server):
    """Each holds a connection; none holds a thread, and the pool is looked at once for all."""
    server.pool.add("one", state=TaskState.RUNNING)
    for number in range(10):
        server.pool.add(f"task{number}", state=TaskState.RUNNING)
    done: list[int] = []
    opened = threading.Barrier(101)

    def seconds(path: str) -> float:
        began = time.monotonic()
        assert server.client.get(path).status_code == 200
        return time.monotonic() - began

    def usual(path: str) -> float:
        return sorted(seconds(path) for _ in range(11))[5]

    paths = ("/healthz", "/api/tasks", "/")
    alone = {path: usual(path) for path in paths}

    def watch(number: int) -> None:
        task_id = "one" if number % 2 else f"task{number % 10}"
        with (
            visit(server.url, timeout=30) as client,
            client.stream("GET", f"/api/tasks/{task_id}/events") as answer,
        ):
            events = read_events(answer.iter_lines())
            assert next(events)[0] == "view"
            opened.wait(30)
            assert views(events)[-1][1] == "done"
        done.append(number)

    before = threading.active_count()
    threads = [threading.Thread(target=watch, args=(n,)) for n in range(100)]
    for thread in threads:
        thread.start()
    opened.wait(30)
    served = threading.active_count() - before - 100
    time.sleep(0.3)
    looks = server.pool.looks
    for path in paths:
        assert usual(path) < 0.2 + 5 * alone[path]
    assert server.pool.looks == looks  # nothing changed, so nothing was looked at
    assert served < 60
    for name in list(server.pool.views):
        server.pool.change(name, state=TaskState.DONE)
    for thread in threads:
        thread.join(20)
    assert sorted(done) == list(range(100))


def test_too_many_followers_are_told_so(server, monkeypatch):
    monkeypatch.setattr(limits, "SSE_CONNECTIONS", 1)
    server.pool.add("one")
    with follow(server, "one") as answer:
        events = read_events(answer.iter_lines())
        next(events)
        refused = server.client.get("/api/tasks/one/events")
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "E_LIMIT"
    deadline = time.monotonic() + 5  # the place is free again once the first has left
    while time.monotonic() < deadline:
        with follow(server, "one") as answer:
            if answer.status_code == 200:
                return
        time.sleep(0.05)
    pytest.fail("the place of a follower that left was not freed")


def test_a_fault_while_looking_does_not_end_the_feed(server, monkeypatch):
    server.pool.add("one")
    original = server.pool.preview
    with follow(server, "one") as answer:
        events = read_events(answer.iter_lines())
        next(events)

        def broken(task_id: str):
            raise OSError("disk on fire")

        monkeypatch.setattr(server.pool, "preview", broken)
        server.pool.change("one", state=TaskState.RUNNING)
        time.sleep(0.3)
        monkeypatch.setattr(server.pool, "preview", original)
        server.pool.change("one", state=TaskState.DONE)
        assert views(events) == [(3, "done")]
