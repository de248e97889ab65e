"""Every route of the API, over real HTTP on loopback."""

import hashlib
import io
import json
import re
import shutil
import time

import pytest
from PIL import Image

from modules.settings.presets import Preset
from modules.spec import limits
from modules.spec.errors import DiskFull, InstanceRunning, QueueFull
from modules.spec.flags import TaskState
from modules.spec.task_spec import TaskSpec
from modules.spec.version import VERSION
from modules.tasks.events import Progress


def error_of(response) -> dict:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "field"}
    assert re.match(r"[A-Z].*[.)]$", body["error"]["message"]), body
    assert "Traceback" not in response.text
    assert "/tmp" not in response.text
    return body["error"]


def post_text(server, text: str | bytes):
    return server.client.post(
        "/api/tasks", content=text, headers={"Content-Type": "application/json"}
    )


def test_submit_stores_the_task_and_returns_its_id(server):
    answer = server.client.post("/api/tasks", json={"prompt": "a red house", "seed": 7, "steps": 4})
    assert answer.status_code == 201
    task_id = answer.json()["id"]
    assert answer.headers["location"] == f"/api/tasks/{task_id}"
    stored = server.context.store.get(task_id)
    assert stored.spec == TaskSpec(prompt="a red house", seed=7, steps=4)
    assert stored.owner == "local"


def test_submit_takes_the_smallest_request_and_unusual_words(server):
    assert post_text(server, "{}").status_code == 201
    words = "🏠🌊 بيت أحمر \u202eabc\u202c ไทย \x1b[31m <script>alert(1)</script>"
    task_id = server.client.post("/api/tasks", json={"prompt": words}).json()["id"]
    assert server.client.get(f"/api/tasks/{task_id}").json()["spec"]["prompt"] == words


def test_a_preset_counts_where_the_request_says_nothing(server):
    settings = {"cfg_scale": 3.5, "steps": 9, "control_softness": 0.5, "checkpoint": "gone.ckpt"}
    server.context.presets["soft"] = Preset(name="soft", title="Soft", settings=settings)
    asked = {"preset": "soft", "steps": 30}
    task_id = server.client.post("/api/tasks", json=asked).json()["id"]
    spec = server.context.store.get(task_id).spec
    assert (spec.preset, spec.cfg_scale, spec.control_softness) == ("soft", 3.5, 0.5)
    assert (spec.steps, spec.checkpoint) == (30, "")  # what is asked for stands, what is gone not
    assert server.client.post("/api/forecast", json={"preset": "soft"}).json()["steps"] == 9
    assert server.client.post("/api/forecast", json={"preset": "no"}).status_code == 422
    del server.context.presets["soft"]


UNPAINTABLE = [
    ({"prompt": "[[1,2,3,4,5,6,7,8,9,0]]" * 7}, "E_LIMIT", "combinations"),
    ({"prompt": "__loop__"}, "E_LIMIT", "names itself"),
    ({"prompt": "x <lora:x:nan>"}, "E_INPUT", "cannot be read"),
    ({"styles": ["no such"]}, "E_INPUT", "'no such' is not known"),
    ({"prompt": "x <lora:gone:1>"}, "E_MODEL_MISSING", "'gone' is not in the loras folder"),
    ({"loras": [{"name": "gone"}]}, "E_MODEL_MISSING", "take it out of the list"),
    ({"prompt": "embedding:gone"}, "E_MODEL_MISSING", "'gone' is not in models/embeddings"),
]


@pytest.mark.parametrize(("body", "code", "words"), UNPAINTABLE)
def test_words_that_cannot_be_painted_do_not_wait(server, body, code, words):
    folder = server.context.settings.root / "wildcards"
    folder.mkdir(exist_ok=True)
    (folder / "loop.txt").write_text("__loop__\n")
    before = server.context.store.queue_length()
    answer = server.client.post("/api/tasks", json=body)
    assert (answer.status_code, error_of(answer)["code"]) == (422, code)
    assert words in error_of(answer)["message"]
    assert server.context.store.queue_length() == before


def test_the_words_looked_at_are_those_that_the_seed_will_draw(server):
    words = {"prompt": "{a <lora:x:nan>|good}", "image_count": 1}
    answers = [
        server.client.post("/api/tasks", json=words | {"seed": seed}).status_code
        for seed in range(8)
    ]
    assert set(answers) == {201, 422}
    server.client.post("/api/tasks", json={})
    server.client.post("/api/tasks", json={}, headers={"Idempotency-Key": "drawn later"})
    drawn, later = (spec.seed for spec, _ in server.pool.submitted[-2:])
    assert drawn is not None and later is None
    codes = set()
    for number in range(8):  # with a key the words are those of the task's own seed as well
        headers = {"Idempotency-Key": f"words {number}"}
        answer = server.client.post("/api/tasks", json=words, headers=headers)
        again = server.client.post("/api/tasks", json=words, headers=headers)
        assert (answer.status_code, answer.json()) == (again.status_code, again.json())
        codes.add(answer.status_code)
        if answer.status_code == 201:
            server.context.require_paintable(server.context.store.get(answer.json()["id"]).spec)
    assert codes == {201, 422}


def test_a_repeated_key_gives_the_first_task_again(server):
    def send(key: str) -> str:
        headers = {"Idempotency-Key": key}
        return server.client.post("/api/tasks", json={}, headers=headers).json()["id"]

    before = server.context.store.queue_length()
    assert send("one") == send("one") != send("two")
    assert server.context.store.queue_length() == before + 2
    headers = {"Idempotency-Key": "one"}
    other = server.client.post("/api/tasks", json={"prompt": "a boat"}, headers=headers)
    assert other.status_code == 409
    assert error_of(other)["code"] == "E_CONFLICT"
    assert server.context.store.queue_length() == before + 2
    too_long = server.client.post("/api/tasks", json={}, headers={"Idempotency-Key": "k" * 201})
    assert too_long.status_code == 422


def test_a_key_finds_its_task_though_presets_and_files_have_changed_since(server):
    def send(**request):
        headers = {"Idempotency-Key": "kept"}
        return server.client.post("/api/tasks", json=request, headers=headers)

    context, presets = server.context, dict(server.context.presets)
    lora = context.settings.models_path / "loras" / "ink.safetensors"
    lora.parent.mkdir(parents=True, exist_ok=True)
    lora.write_bytes(b"x")
    words = {"prompt": "a fox <lora:ink:0.5>", "preset": "default"}
    try:
        first = send(**words)
        assert first.status_code == 201
        lora.unlink()
        preset = presets["default"].model_copy(update={"settings": {"steps": 11}})
        context.presets["default"] = preset
        again = send(**words)
        assert (again.status_code, again.json()) == (201, first.json())
        del context.presets["default"]
        assert send(**words).json() == first.json()
        context.presets.update(presets)
        assert send(preset="default", prompt="a boat").status_code == 409
    finally:
        context.presets.update(presets)
        lora.unlink(missing_ok=True)


def test_a_key_from_before_requests_were_kept_finds_its_task(server):
    known = server.context.store.submit(TaskSpec(prompt="old"), idempotency_key="old")
    headers = {"Idempotency-Key": "old"}
    again = server.client.post("/api/tasks", json={"prompt": "old"}, headers=headers)
    assert again.json()["id"] == known
    other = server.client.post("/api/tasks", json={"prompt": "new"}, headers=headers)
    assert other.status_code == 409


BAD = [
    ('{"steps": NaN}', "steps"),
    ('{"steps": 1e400}', "steps"),
    ('{"steps": true}', "steps"),
    ('{"steps": "20"}', "steps"),
    ('{"steps": "1 "}', "steps"),
    ('{"steps": 3.5}', "steps"),
    ('{"steps": 0}', "steps"),
    (f'{{"steps": {limits.STEPS_MAX + 1}}}', "steps"),
    ('{"steps": null}', "steps"),
    ('{"steps": [1]}', "steps"),
    ('{"cfg_scale": NaN}', "cfg_scale"),
    ('{"cfg_scale": Infinity}', "cfg_scale"),
    ('{"cfg_scale": 1e400}', "cfg_scale"),
    ('{"cfg_scale": -1}', "cfg_scale"),
    ('{"cfg_scale": 0.99}', "cfg_scale"),
    (f'{{"cfg_scale": {limits.CFG_MAX + 0.01}}}', "cfg_scale"),
    ('{"cfg_scale": "4"}', "cfg_scale"),
    ('{"cfg_scale": false}', "cfg_scale"),
    ('{"image_count": 0}', "image_count"),
    (f'{{"image_count": {limits.IMAGES_PER_TASK + 1}}}', "image_count"),
    ('{"image_count": NaN}', "image_count"),
    ('{"image_count": true}', "image_count"),
    ('{"seed": -1}', "seed"),
    (f'{{"seed": {limits.SEED_MAX + 1}}}', "seed"),
    ('{"seed": NaN}', "seed"),
    ('{"seed": 1e3}', "seed"),
    ('{"seed": true}', "seed"),
    ('{"width": 65, "height": 64}', "width"),
    ('{"width": 64, "height": 100}', "height"),
    ('{"width": 56, "height": 64}', "width"),
    ('{"width": 2056, "height": 64}', "width"),
    ('{"width": NaN, "height": 64}', "width"),
    ('{"width": 1e400, "height": 64}', "width"),
    ('{"width": true, "height": 64}', "width"),
    ('{"width": 64}', ""),
    ('{"width": -8, "height": -8}', "width"),
    ('{"prompt": 7}', "prompt"),
    ('{"prompt": null}', "prompt"),
    ('{"prompt": ["a"]}', "prompt"),
    (json.dumps({"prompt": "a" * 100_000}), "prompt"),
    (json.dumps({"negative_prompt": "a" * (limits.PROMPT_CHARACTERS + 1)}), "negative_prompt"),
    ('{"checkpoint": "../../etc/passwd"}', "checkpoint"),
    ('{"checkpoint": "/etc/passwd"}', "checkpoint"),
    ('{"checkpoint": "C:\\\\x.ckpt"}', "checkpoint"),
    ('{"checkpoint": "a\\u0000b"}', "checkpoint"),
    ('{"preset": "../x"}', "preset"),
    ('{"preset": "nowhere"}', "preset"),
    ('{"sampler": "nope"}', "sampler"),
    ('{"scheduler": 5}', "scheduler"),
    ('{"output_format": "gif"}', "output_format"),
    ('{"aspect_ratio": "9:0"}', "aspect_ratio"),
    ('{"aspect_ratio": "100:1"}', "aspect_ratio"),
    ('{"nonsense": 1}', "nonsense"),
    ('{"__class__": {"a": 1}}', "__class__"),
    ("[]", ""),
    ("null", ""),
    ('"text"', ""),
    ("", ""),
    ("{", ""),
    ('{"prompt": "\\ud800"}', ""),
    ("[" * 100_000, ""),
    (b"\xff\xfe{}", ""),
]


@pytest.mark.parametrize(("text", "field"), BAD, ids=lambda value: str(value)[:40])
def test_bad_requests_name_the_field_and_queue_nothing(server, text, field):
    before = server.context.store.queue_length()
    answer = post_text(server, text)
    assert answer.status_code == 422
    error = error_of(answer)
    assert error["field"] == field
    assert error["code"] in ("E_INPUT", "E_LIMIT")
    if field:
        info = TaskSpec.model_fields.get(field)
        assert (info.title if info else field) in error["message"]
    assert server.context.store.queue_length() == before
    assert server.pool.submitted == []


def test_a_full_queue_answers_429_in_words(server):
    server.pool.refuse = QueueFull("The queue holds 10,000 tasks, which is its limit; wait.")
    answer = server.client.post("/api/tasks", json={})
    assert answer.status_code == 429
    assert error_of(answer)["code"] == "E_LIMIT"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DiskFull("The disk of the data folder is full; free some space."), 507),
        (InstanceRunning("Another program holds the task list locked; end it."), 503),
    ],
)
def test_a_store_that_cannot_write_answers_in_words(server, error, status):
    server.pool.refuse = error
    answer = server.client.post("/api/tasks", json={})
    assert answer.status_code == status
    assert error_of(answer)["code"] == error.code
    assert error_of(answer)["message"] == str(error)


def test_a_fault_of_the_program_shows_nothing_of_itself(server, caplog):
    server.pool.refuse = RuntimeError("secret detail in /tmp/place")
    answer = server.client.post("/api/tasks", json={})
    assert answer.status_code == 500
    assert error_of(answer)["code"] == "E_INTERNAL"
    assert "secret" not in answer.text
    deadline = time.monotonic() + 5  # the log is written after the answer
    while "secret detail" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "secret detail" in caplog.text


def test_views_come_alone_and_newest_first(server):
    server.pool.add("one")
    server.pool.add("two", state=TaskState.RUNNING, position=0)
    progress = Progress(image=1, image_count=2, step=3, steps=10, seconds_left=1.5)
    server.pool.change("two", progress=progress)
    view = server.client.get("/api/tasks/two").json()
    assert (view["id"], view["seq"], view["state"]) == ("two", 2, "running")
    assert view["progress"]["step"] == 3
    assert [task["id"] for task in server.client.get("/api/tasks").json()] == ["two", "one"]
    assert [t["id"] for t in server.client.get("/api/tasks?limit=1").json()] == ["two"]


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "limit=", "limit=1e3"])
def test_a_wrong_limit_is_named(server, query):
    for path in ("/api/tasks", "/api/history"):
        answer = server.client.get(f"{path}?{query}")
        assert answer.status_code == 422
        assert error_of(answer)["field"] == "limit"


@pytest.mark.parametrize("task_id", ["missing", "a%2Fb", "..%2f..", "A" * 65, "%00", "a b", "é"])
@pytest.mark.parametrize("rest", ["", "/events", "/stop", "/skip"])
def test_unknown_tasks_are_not_found(server, task_id, rest):
    method = "POST" if rest in ("/stop", "/skip") else "GET"
    answer = server.client.request(method, f"/api/tasks/{task_id}{rest}")
    assert answer.status_code in (404, 422)
    error_of(answer)
    assert server.pool.calls == []


def test_stop_and_skip_reach_their_own_task(server):
    server.pool.add("one")
    server.pool.add("two")
    assert server.client.post("/api/tasks/one/stop").status_code == 202
    assert server.client.post("/api/tasks/two/skip").status_code == 202
    assert server.pool.calls == [("stop", "one"), ("skip", "two")]


def test_status_tells_version_queue_models_and_notices(server):
    server.context.notices.put("test", "Something to know.")
    server.client.post("/api/tasks", json={})
    status = server.client.get("/api/status").json()
    server.context.notices.drop("test")
    assert status["version"] == VERSION
    assert status["pool"] == {"workers": 1}
    assert status["queue_length"] == server.context.store.queue_length() > 0
    assert status["checkpoints"] == [{"name": "a.safetensors", "size": 7}]
    assert status["notices"] == ["Something to know."]
    assert status["user"] == ""


def test_status_tells_of_broken_presets_as_they_are_now(server, monkeypatch):
    monkeypatch.setattr(server.context.presets, "notices", ("Preset 'x' is broken.",))
    assert server.client.get("/api/status").json()["notices"] == ["Preset 'x' is broken."]
    monkeypatch.setattr(server.context.presets, "notices", ())
    assert server.client.get("/api/status").json()["notices"] == []


def test_health_and_unknown_addresses(server):
    assert server.client.get("/healthz").json() == {"ok": True}
    for method in ("GET", "POST", "DELETE"):
        answer = server.client.request(method, "/api/nothing/here")
        assert answer.status_code == 404
        assert error_of(answer)["code"] == "E_NOT_FOUND"
    assert server.client.delete("/api/tasks").status_code in (404, 405)


def test_the_page_and_the_schema_are_served(server):
    page = server.client.get("/", headers={"Accept": "text/html"})
    assert page.status_code == 200
    assert "gradio" in page.text
    paths = server.client.get("/openapi.json").json()["paths"]
    body = paths["/api/tasks"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == set(TaskSpec.model_fields)


def test_the_page_s_own_calls_pass_the_gate(server):
    headers = {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}
    event = server.client.post(
        "/gradio_api/call/shout", json={"data": ["hi"]}, headers=headers
    ).json()["event_id"]
    answer = server.client.get(f"/gradio_api/call/shout/{event}")
    assert '"HI"' in answer.text


class TestPictures:
    @pytest.fixture
    def stored(self, server):
        """A finished picture in the store; returns (task id, function that records a path)."""
        store = server.context.store
        while store.claim("w") is not None:
            pass
        task_id = store.submit(TaskSpec(prompt="x", image_count=32, seed=1))
        claim = store.claim("w")
        assert claim.id == task_id
        count = iter(range(32))

        def record(path: str, data: bytes = b"") -> int:
            index = next(count)
            store.add_image(
                claim,
                index,
                path=path,
                sha256=hashlib.sha256(data).hexdigest(),
                width=64,
                height=64,
                seed=1 + index,
            )
            return index

        return task_id, record

    def put(self, server, path: str, data: bytes) -> None:
        target = server.context.settings.output_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    @pytest.mark.parametrize(
        ("suffix", "mime"), [(".png", "image/png"), (".jpg", "image/jpeg"), (".webp", "image/webp")]
    )
    def test_bytes_and_headers(self, server, stored, suffix, mime):
        task_id, record = stored
        data = b"picture bytes" + suffix.encode()
        self.put(server, f"2026-01-02/a{suffix}", data)
        index = record(f"2026-01-02/a{suffix}", data)
        answer = server.client.get(f"/api/images/{task_id}/{index}")
        assert answer.status_code == 200
        assert answer.content == data
        assert answer.headers["content-type"] == mime
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-disposition"] == f'inline; filename="a{suffix}"'
        kept = server.client.get(
            f"/api/images/{task_id}/{index}", headers={"If-None-Match": answer.headers["etag"]}
        )
        assert kept.status_code == 304
        saved = server.client.get(f"/api/images/{task_id}/{index}?download=1")
        assert saved.headers["content-disposition"] == f'attachment; filename="a{suffix}"'

    def test_a_thumbnail_is_small_and_goes_with_its_picture(self, server, stored):
        task_id, record = stored
        target = io.BytesIO()
        Image.effect_noise((1024, 768), 60).convert("RGB").save(target, "PNG")
        self.put(server, "large.png", target.getvalue())
        address = f"/api/images/{task_id}/{record('large.png', target.getvalue())}?thumb=1"
        answer = server.client.get(address)
        assert answer.headers["content-type"] == "image/webp"
        assert len(answer.content) < len(target.getvalue()) / 20
        with Image.open(io.BytesIO(answer.content)) as small:
            assert small.size == (320, 240)
        kept = server.client.get(address, headers={"If-None-Match": answer.headers["etag"]})
        assert kept.status_code == 304
        full = server.client.get(address.removesuffix("?thumb=1"))
        assert (full.content, full.headers["etag"] != answer.headers["etag"]) == (
            target.getvalue(),
            True,
        )
        (server.context.settings.output_path / "large.png").unlink()
        assert server.client.get(address).status_code == 404

    def test_what_has_no_thumbnail_is_served_as_it_is(self, server, stored):
        task_id, record = stored
        self.put(server, "broken.png", b"no picture")
        address = f"/api/images/{task_id}/{record('broken.png', b'no picture')}?thumb=1"
        answer = server.client.get(address)
        assert (answer.content, answer.headers["content-type"]) == (b"no picture", "image/png")

    @pytest.mark.parametrize(
        "path",
        [
            "../secret.png",
            "../../secret.png",
            "a/../../secret.png",
            "/etc/passwd",
            "/etc/hostname.png",
            "..\\secret.png",
            "a\\..\\..\\secret.png",
            "C:/secret.png",
            "C:secret.png",
            "file.png:stream.png",
            "\x00.png",
            "a.png\x00.txt",
            "./a.png",
            "a//b.png",
            "a/./b.png",
            "",
            ".",
            "..",
            "secret.txt",
            "folder.png",
            "missing.png",
            "link.png",
            "linked/inside.png",
            "fifo.png",
            "a" * 300 + ".png",
            "con.png/",
            "....//secret.png",
            "%2e%2e/secret.png",
            "~/secret.png",
            "//host/share.png",
        ],
    )
    def test_nothing_else_is_read(self, server, stored, path):
        import os

        task_id, record = stored
        outputs = server.context.settings.output_path
        secret = outputs.parent / "secret.png"
        secret.write_bytes(b"SECRET")
        (outputs / "secret.txt").write_bytes(b"SECRET")
        (outputs / "folder.png").mkdir(exist_ok=True)
        outside = outputs.parent / "outside"
        outside.mkdir(exist_ok=True)
        (outside / "inside.png").write_bytes(b"SECRET")
        for link, target in (("link.png", secret), ("linked", outside)):
            if not (outputs / link).is_symlink():
                (outputs / link).symlink_to(target)
        if not (outputs / "fifo.png").exists():
            os.mkfifo(outputs / "fifo.png")
        index = record(path)
        for address in (f"/api/images/{task_id}/{index}", f"/api/images/{task_id}/{index}?thumb=1"):
            answer = server.client.get(address)
            assert answer.status_code == 404
            assert "SECRET" not in answer.text
            error_of(answer)

    @pytest.mark.parametrize(
        "tail",
        ["x/0", "missing/0", "{id}/31", "{id}/-1", "{id}/1e3", "{id}/99999999999", "{id}/..%2f0",
         "{id}/0/../../../secret.png", "..%2f..%2fsecret.png/0", "{id}/%00", "{id}/", "{id}"],
    )  # fmt: skip
    def test_odd_addresses(self, server, stored, tail):
        task_id, _ = stored
        answer = server.client.get("/api/images/" + tail.format(id=task_id))
        assert answer.status_code in (404, 422)
        error_of(answer)

    def test_history_pages_through_all_pictures(self, server, stored):
        task_id, record = stored
        for name in "abcde":
            record(f"{name}.png")
        seen, before = [], ""
        for _ in range(100):
            page = server.client.get(f"/api/history?limit=2{before}").json()
            seen += [(row["task_id"], row["index"]) for row in page["images"]]
            assert all(
                row["url"] == f"/api/images/{row['task_id']}/{row['index']}"
                for row in page["images"]
            )
            if page["next"] is None:
                break
            before = f"&before={page['next']}"
        assert seen[:5] == [(task_id, index) for index in (4, 3, 2, 1, 0)]
        assert len(seen) == len(set(seen))
        assert "path" not in page["images"][0] if page["images"] else True


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/file=/etc/passwd", "/gradio_api/file=../../etc/passwd", "/file=/etc/passwd",
     "/gradio_api/file=webui.py", "/gradio_api/file=.easel/easel.db", "/static/../../webui.py",
     "/gradio_api/file=http://127.0.0.1:9/x", "/gradio_api/proxy=http://127.0.0.1:9/x",
     "/assets/..%2f..%2f..%2fetc%2fpasswd", "/gradio_api/file=/proc/self/environ",
     "/svelte/..%2f..%2fpackage.json", "/custom_component/x/client/..%2f..%2fa"],
)  # fmt: skip
def test_gradio_gives_no_file_of_the_disk(server, path):
    answer = server.client.get(path)
    assert answer.status_code in (403, 404)
    assert "root:" not in answer.text


def test_gradio_s_doors_do_not_reach_the_outputs_or_the_data(server):
    settings = server.context.settings
    (settings.output_path / "seen.png").write_bytes(b"SECRET")
    for target in (settings.output_path / "seen.png", settings.database_path):
        answer = server.client.get(f"/gradio_api/file={target}")
        assert answer.status_code in (403, 404)
        assert b"SECRET" not in answer.content


def test_a_forecast_says_what_is_known(server):
    from modules.settings.performance import load_modes
    from modules.spec.resolving import resolve_spec
    from modules.spec.sizes import SDXL
    from modules.tasks.forecast import Timing

    empty = server.client.post("/api/forecast", json={"steps": 12})
    assert empty.json() == {
        "picture": None,
        "steps": 12,
        "modes": {},
        "memory": None,
        "memory_modes": {},
        "forced": {},
        "missing": None,
    }
    folder = server.context.settings.models_path / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.ckpt").write_bytes(b"")
    spec = TaskSpec(seed=1, performance="speed")
    speed = load_modes(server.context.settings.root)["speed"]
    past = Timing(resolve_spec(spec, speed, checkpoint="a.ckpt", sizes=SDXL), 30.0, peak=5 << 30)
    server.context.store.timings = lambda: [past]
    found = server.client.post("/api/forecast", json={"performance": "speed"}).json()
    assert (found["picture"], found["steps"]) == (30.0, 30)
    assert found["modes"]["quality"] == pytest.approx(60.0)
    assert found["memory"] == found["memory_modes"]["quality"] == 5 << 30
    assert "lightning" not in found["memory_modes"]  # it asks for one prediction at a time
    assert found["modes"]["lightning"] == pytest.approx(2.0)
    few = server.client.post("/api/forecast", json={"performance": "hyper_sd"}).json()
    assert (few["steps"], few["forced"]["cfg_scale"], few["forced"]["sampler"]) == (
        4,
        1.0,
        "dpmpp_sde_gpu",
    )
    assert few["missing"]["file"] == "sdxl_hyper_sd_4step_lora.safetensors"
    (folder.parent / "loras").mkdir(exist_ok=True)
    (folder.parent / "loras" / "Hyper-SDXL-4steps-lora.safetensors").write_bytes(b"")
    found = server.client.post("/api/forecast", json={"performance": "hyper_sd"}).json()
    assert found["missing"] is None
    assert error_of(server.client.post("/api/forecast", json={"steps": 0}))["field"] == "steps"
    builtin = server.context.settings.builtin_models_path
    builtin.mkdir(parents=True)
    (builtin / "easel-mini.safetensors").write_bytes(b"")
    mini = {"performance": "extreme_speed", "checkpoint": "builtin/easel-mini.safetensors"}
    found = server.client.post("/api/forecast", json=mini).json()
    assert found["missing"] == {"file": "", "folder": "", "url": ""}  # none, and none to fetch
    (builtin / "easel-mini-lcm.safetensors").write_bytes(b"")
    assert server.client.post("/api/forecast", json=mini).json()["missing"] is None
    shutil.rmtree(builtin)
