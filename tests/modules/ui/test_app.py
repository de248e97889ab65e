"""The page without a browser: tickets, presets, models, and what leaves the server."""

import asyncio
import json
import re
from types import SimpleNamespace

import pytest

from modules.api.context import ServerContext
from modules.library.catalog import Catalog
from modules.settings.config import Settings
from modules.settings.presets import Download, Preset
from modules.spec.errors import LimitError, SpecError
from modules.spec.sizes import SDXL, SizeTable
from modules.spec.task_spec import TaskSpec
from modules.ui import assets
from modules.ui.app import build_app, initial_spec, launch_options, submit
from modules.ui.form import Form
from modules.ui.panels.downloads import download_list, in_bytes
from modules.ui.panels.models import checkpoint_choices
from modules.ui.panels.settings import size_choices
from modules.ui.texts import TEXTS, Texts


class Pool:
    """Takes requests in; the page asks for no more."""

    def __init__(self):
        self.specs = []
        self.error = None

    def submit(self, spec, owner="local", idempotency_key=None, request=None):
        if self.error:
            raise self.error
        self.specs.append((spec, owner))
        return f"task{len(self.specs)}"


@pytest.fixture
def context(tmp_path):
    settings = Settings(
        root=tmp_path,
        data_path=tmp_path / ".easel",
        output_path=tmp_path / "outputs",
        models_path=tmp_path / "models",
    )
    download = Download(
        file="big.safetensors", folder="checkpoints", url="https://example.org/big", size=7 * 10**9
    )
    presets = {
        "default": Preset(name="default", title="D <b>", settings={"steps": 9}),
        "other": Preset(name="other", title="O", settings={"steps": 3}, downloads=(download,)),
    }
    return ServerContext(
        settings=settings,
        store=None,
        pool=Pool(),
        catalog=Catalog(settings, presets),
        presets=presets,
    )


def a_form(context):
    import gradio as gr

    with gr.Blocks(analytics_enabled=False):
        form = Form(Texts(), initial_spec(context))
        form.text("prompt")
        form.digits("width")
        form.digits("height")
    return form


def pressed(form, **values):
    return {form.components[name]: value for name, value in values.items()}


def test_a_press_gives_the_task_and_its_settings(context):
    form = a_form(context)
    ticket = submit(context, form, pressed(form, prompt="hills", width="", height=""))
    assert ticket["id"] == "task1"
    assert json.loads(ticket["settings"])["prompt"] == "hills"
    assert context.pool.specs[0][1] == "local"


def test_two_presses_give_two_tickets(context):
    form = a_form(context)
    values = pressed(form, prompt="hills", width="", height="")
    first, second = (submit(context, form, values) for _ in range(2))
    assert first["nonce"] != second["nonce"]


@pytest.mark.parametrize(
    ("values", "field", "said"),
    [
        ({"prompt": "x" * 9000, "width": "", "height": ""}, "prompt", "shorten it"),
        ({"prompt": "", "width": "1001", "height": "1000"}, "width", "multiple of 8"),
        ({"prompt": "", "width": "wide", "height": ""}, "width", "whole number"),
        ({"prompt": "", "width": "1024", "height": ""}, "", "both width and height"),
        ({"prompt": "[[1,2]]" * 24, "width": "", "height": ""}, "prompt", "combinations"),
        ({"prompt": "x <lora:x:nan>", "width": "", "height": ""}, "prompt", "cannot be read"),
        ({"prompt": "x <lora:gone:1>", "width": "", "height": ""}, "", "not in the loras folder"),
    ],
)
def test_a_wrong_value_is_one_sentence_with_its_field(context, values, field, said):
    form = a_form(context)
    error = submit(context, form, pressed(form, **values))["error"]
    assert error["field"] == field
    assert said in error["message"]
    assert context.pool.specs == []


def test_a_full_queue_is_told(context):
    context.pool.error = LimitError("The queue is full.")
    form = a_form(context)
    error = submit(context, form, pressed(form, prompt="", width="", height=""))["error"]
    assert error["message"] == "The queue is full."


def test_a_fault_of_ours_tells_no_secret(context, caplog):
    context.pool.error = RuntimeError("/srv/secret/path")
    form = a_form(context)
    error = submit(context, form, pressed(form, prompt="", width="", height=""))["error"]
    assert error["code"] == "E_INTERNAL"
    assert "secret" not in error["message"]
    assert "secret" in caplog.text


def test_the_preset_of_the_start_fills_the_form(context):
    assert initial_spec(context).steps == 9
    context.presets = {}
    assert initial_spec(context).steps == 30


def test_a_preset_that_is_gone_is_not_put_back_and_not_taken_in(context):
    app = build_app(context)
    restore = next(fn for fn in app.fns.values() if fn.name == "restore")
    shown = restore.fn(json.dumps({"preset": "gone", "steps": 4}))
    names = {control.elem_id: control for control in shown}
    assert shown[names["preset"]]["value"] is None
    assert shown[names["steps"]]["value"] == 4
    with pytest.raises(SpecError, match="Preset 'gone' is not there; choose one of default, other"):
        context.submit(TaskSpec(preset="gone"))
    context.submit(TaskSpec(preset="other"))
    assert len(context.pool.specs) == 1


def test_the_page_tells_no_path_and_escapes_what_others_wrote(context, tmp_path):
    folder = tmp_path / "models" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "<b>x.safetensors").write_bytes(b"")
    config = json.dumps(build_app(context).get_config_file(), default=str)
    assert str(tmp_path) not in config
    evil = Download(file="a.safetensors", folder="checkpoints", url='https://e.org/"><script>')
    assert "<script>" not in download_list([evil], Texts())


def test_listeners_keep_no_connection_open(context):
    config = build_app(context).get_config_file()
    assert config["connect_heartbeat"] is False
    assert not any(dependency["queue"] for dependency in config["dependencies"])


def test_an_idle_page_does_not_poll(context, monkeypatch):
    naps: list[float] = []
    queue = build_app(context)._queue

    async def nap(seconds: float) -> None:
        naps.append(seconds)
        queue.stopped = len(naps) % 2 == 0

    # of that module alone: other threads may have loops of their own
    own = SimpleNamespace(**vars(asyncio) | {"sleep": nap})
    monkeypatch.setattr("gradio.queueing.asyncio", own)
    for loop in (queue.start_processing, queue.start_progress_updates):
        queue.stopped = False
        asyncio.run(loop())
    assert naps == [0.5] * 4


def test_nothing_in_the_page_comes_from_outside():
    head = launch_options()["head"]
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", head))
    assert addresses == set()
    assert "@import" not in head


def test_every_text_that_the_script_says_is_in_the_table():
    said = set(re.findall(r"""say\(\s*"([\w.]+)\"""", assets.script()))
    assert said
    assert said <= TEXTS["en"].keys()


MARKUP_CONTROL = re.compile(r"<(button|input|select|textarea)\b([^>]*)>")
KINDS = {"textbox", "slider", "radio", "checkbox", "dropdown", "button", "accordion", "number"}


def test_every_control_says_what_it_does(context):
    """Under its name, on hover, or in the table of tooltips; what the script makes apart."""
    components = build_app(context).get_config_file()["components"]
    tips = json.loads(Texts().to_json())
    untold, seen = [], set()
    for component in components:
        kind, props = component["type"], component["props"]
        name = props.get("elem_id")
        seen.add(name)
        if kind in KINDS and name and "unseen" not in props.get("elem_classes", []):
            told = props.get("info") or tips.get(f"tip.{name}")
            if not told or not told.endswith(".") or told == props.get("label"):
                untold.append(name)
        elif kind in KINDS:  # a box for the script alone
            assert not props.get("visible", True) or name, component
        for _, attributes in MARKUP_CONTROL.findall(props["value"] if kind == "html" else ""):
            said = dict(re.findall(r'([\w-]+)="([^"]*)"', attributes))
            seen.add(said.get("id"))
            hidden = re.search(r"\bhidden\b", attributes)
            if not (hidden or said.get("title") or f"tip.{said['id']}" in tips):
                untold.append(said["id"])
    assert untold == ["advanced-toggle"]  # its label has the words
    assert len(seen) > 60
    labels = "".join(str(c["props"].get("value")) for c in components if c["type"] == "html")
    told = {key.removeprefix("tip.") for key in tips if key.startswith("tip.")}
    assert {name for name in told if name not in seen and f'id="{name}"' not in labels} == set()


def test_every_icon_that_is_named_is_there():
    named = set(re.findall(r"""icon: "(\w+)\"""", assets.script()))
    assert named <= assets.icons().keys()


def test_sizes_offer_every_size_once_usual_ones_first():
    choices = size_choices(SDXL)
    assert len(choices) == len(SDXL.sizes) == len({ratio for _, ratio in choices})
    assert [label for label, _ in choices[:3]] == ["1024×1024", "1152×896", "896×1152"]
    small = size_choices(SizeTable.from_area(256 * 256))
    assert small[0] == ("256×256", "1:1")


def test_checkpoints_are_offered_with_their_size(context, tmp_path):
    folder = tmp_path / "models" / "checkpoints"
    folder.mkdir(parents=True)
    with (folder / "a.safetensors").open("wb") as file:
        file.truncate(6_938_000_000)
    assert checkpoint_choices(context.catalog.checkpoints()) == [
        ("a.safetensors · 6.9 GB", "a.safetensors")
    ]
    assert [in_bytes(n) for n in (74_000_000, 10, 0)] == ["74.0 MB", "1 kB", "empty"]
