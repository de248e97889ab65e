"""Settings: four sources, one order, and a sentence for everything that is wrong."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from modules.settings.args import FLAGS
from modules.settings.config import DEFAULT_PORT, Settings, is_loopback, load_settings
from modules.spec.errors import ConfigError

ROOT = Path(__file__).parents[3]


def load(argv: str = "", root: Path = ROOT, file: str | bytes | None = None, **environ: str):
    if file is not None:
        (root / ".easel").mkdir(exist_ok=True)
        raw = file if isinstance(file, bytes) else file.encode()
        (root / ".easel" / "easel.json").write_bytes(raw)
    return load_settings(argv.split(), environ, root=root)


def test_defaults(tmp_path):
    settings = load(root=tmp_path)
    assert settings == Settings(
        root=tmp_path,
        data_path=tmp_path / ".easel",
        output_path=tmp_path / "outputs",
        models_path=tmp_path / "models",
    )
    assert (settings.listen, settings.port) == ("127.0.0.1", DEFAULT_PORT)
    assert not settings.port_is_explicit and not settings.is_exposed
    assert list(tmp_path.iterdir()) == []  # reading settings writes nothing


def test_later_sources_win(tmp_path):
    file = '{"port": 1001, "theme": "dark", "preset": "a", "output_path": "pictures"}'
    settings = load(
        "--port 1003", tmp_path, file, EASEL_PORT="1002", EASEL_THEME="light", EASEL_SHARE="yes"
    )
    assert (settings.port, settings.theme, settings.preset) == (1003, "light", "a")
    assert settings.share and settings.port_is_explicit and settings.is_exposed
    assert settings.output_path == tmp_path / "pictures"


def test_the_data_folder_decides_which_file_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "easel.json").write_text('{"port": 1234}', encoding="utf-8")
    settings = load("--data-path other", tmp_path)
    assert settings.port == 1234
    assert settings.data_path == tmp_path / "other"
    assert settings.database_path.parent == settings.data_path


def test_a_tilde_without_such_a_user_is_part_of_the_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    settings = load("--models-path ~no-such-user/m --output-path ~/out", root=tmp_path)
    assert settings.models_path == tmp_path / "~no-such-user" / "m"
    assert settings.output_path == tmp_path / "home" / "out"


@pytest.mark.parametrize("flag", [f for f in FLAGS if f.convert is None], ids=lambda f: f.name)
def test_every_switch_is_a_flag_a_variable_and_a_key(tmp_path, flag):
    off = load(root=tmp_path)
    by_flag = load(f"--{flag.name}", tmp_path)
    by_variable = load(root=tmp_path, **{flag.variable: "1"})
    by_key = load(root=tmp_path, file=f'{{"{flag.field}": true}}')
    assert by_flag == by_variable == by_key
    if flag.field != "disable_in_browser":
        assert by_flag != off
    # A later source can take it back.
    assert load(root=tmp_path, **{flag.variable: "off"}) == off


def test_a_flag_s_other_names_are_variables_too(tmp_path):
    aliases = [(flag, alias) for flag in FLAGS for alias in flag.aliases]
    assert len(aliases) == 4
    for flag, alias in aliases:
        variable = "EASEL_" + alias.replace("-", "_").upper()
        by_alias = load(root=tmp_path, **{variable: "1"})
        assert by_alias == load(f"--{flag.name}", tmp_path) == load(f"--{alias}", tmp_path)
        assert load(root=tmp_path, **{variable: "1", flag.variable: "0"}) == load(root=tmp_path)
    with pytest.raises(ConfigError, match="EASEL_ALWAYS_LOW_VRAM is a switch"):
        load(root=tmp_path, EASEL_ALWAYS_LOW_VRAM="maybe")


@pytest.mark.parametrize(
    ("argv", "listen"),
    [
        ("--listen", "0.0.0.0"),
        ("--listen 192.168.0.7", "192.168.0.7"),
        ("--listen ::1", "::1"),
        ("--listen [::1]", "::1"),
        ("--listen Studio.local", "studio.local"),
        ("", "127.0.0.1"),
    ],
)
def test_listen(tmp_path, argv, listen):
    settings = load(argv, tmp_path)
    assert settings.listen == listen
    assert settings.is_exposed is not is_loopback(listen)


def test_loopback_addresses():
    assert all(map(is_loopback, ["127.0.0.1", "127.8.9.1", "::1", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "localhost.example.org", ""]))


def test_device_flags_hold_only_what_was_given(tmp_path):
    settings = load("--unet-in-bf16 --always-low-vram --gpu-device-id 1", tmp_path)
    assert settings.device_flags == {"unet_in_bf16": True, "low_vram": True, "gpu_device_id": 1}
    assert load("--always-cpu 4", tmp_path).device_flags == {"always_cpu": True, "threads": 4}


def test_login_sources_replace_each_other(tmp_path):
    assert load("--auth me:se:cret", tmp_path).auth == "me:se:cret"
    settings = load(f"--auth-file {tmp_path / 'users'}", tmp_path, EASEL_AUTH="me:secret")
    assert settings.auth == tmp_path / "users"
    settings = load("--no-auth", tmp_path, EASEL_AUTH="me:secret")
    assert settings.auth is None and settings.no_auth
    assert "se:cret" not in repr(load("--auth me:se:cret", tmp_path))


def test_the_browser_opens_only_where_there_is_one_and_nobody_else_listens(tmp_path):
    on = {"DISPLAY": ":0"}
    assert load(root=tmp_path, **on).in_browser
    assert not load("--listen", tmp_path, **on).in_browser
    assert load("--listen --in-browser", tmp_path).in_browser
    assert not load("--disable-in-browser", tmp_path, EASEL_IN_BROWSER="1", **on).in_browser
    if sys.platform not in ("win32", "darwin"):
        assert not load(root=tmp_path).in_browser


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--port 0", "--port: '0' is not a port; use a number from 1 to 65535"),
        ("--port 70000", "not a port"),
        ("--port ８０", "not a port"),
        ("--port", "expected one argument"),
        ("--prot 1", "did you mean --port"),
        ("--nonsense-of-all-kinds", "--help"),
        ("--pre default", "not known"),
        ("stray", "not known"),
        ("--listen 300.1.1.1", "not an IP address"),
        ("--listen a/b", "not an IP address"),
        ("--auth nobody", "name:password"),
        ("--auth :x", "name:password"),
        ("--theme pink", "light or dark"),
        ("--preset ../x", "not the name of a preset"),
        ("--always-cpu many", "whole number"),
        ("--gpu-device-id -1", "not a whole number"),
        ("--auth a:b --no-auth", "exclude each other"),
        ("--vae-in-fp16 --vae-in-fp32", "exclude each other"),
        ("--always-cpu --always-gpu", "exclude each other"),
        ("--share=maybe", "--help"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(tmp_path, argv, words):
    with pytest.raises(ConfigError) as caught:
        load(argv, tmp_path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"EASEL_PORT": "x"}, "EASEL_PORT: 'x' is not a port"),
        ({"EASEL_SHARE": "perhaps"}, "EASEL_SHARE is a switch"),
        ({"EASEL_ALL_IN_FP32": "1", "EASEL_ALL_IN_FP16": "1"}, "exclude each other"),
    ],
)
def test_a_wrong_environment_is_one_sentence(tmp_path, environ, words):
    with pytest.raises(ConfigError) as caught:
        load("", tmp_path, **environ)
    assert words in str(caught.value)


def test_empty_and_foreign_variables_are_ignored(tmp_path):
    assert load(root=tmp_path, EASEL_PORT=" ", EASEL_VENV="x", PORT="7") == load(root=tmp_path)


def test_flags_that_may_stand_alone_can_be_switched_in_the_environment(tmp_path):
    assert load(root=tmp_path, EASEL_ALWAYS_CPU="1").device_flags == {"always_cpu": True}
    assert load(root=tmp_path, EASEL_ALWAYS_CPU="0").device_flags == {}
    assert load(root=tmp_path, EASEL_LISTEN="true").listen == "0.0.0.0"
    cpu = {"always_cpu": True, "threads": 1}
    assert load("--always-cpu 1", tmp_path, EASEL_HIGH_VRAM="1").device_flags == cpu


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\x00" * 100, "is empty"),
        (b"  \n", "is empty"),
        (b'{"port": 1,}', "line 1"),
        (b'{\n  "port" 1\n}', "line 2"),
        (b'{"port": 1\x00}', "not valid JSON"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8"),
        (b"[1]", "one JSON object"),
        (b"null", "one JSON object"),
        (b'{"port": 1, "port": 2}', "'port' twice"),
        (b'{"port": NaN}', "NaN"),
        (b'{"port": 1.5}', "text or a whole number"),
        (b'{"port": true}', "easel.json: port"),
        (b'{"port": "80x"}', "easel.json: port: '80x' is not a port"),
        (b'{"share": "maybe"}', "is a switch"),
        (b'{"share": [1]}', "is a switch"),
        (b'{"theme": {"a": 1}}', "text or a whole number"),
        (b'{"prot": 1}', "did you mean 'port'"),
        (b'{"data_path": "x"}', "use --data-path"),
        (b'{"all_in_fp32": true, "all_in_fp16": true}', "exclude each other"),
        (b'{"a":' + b"[" * 60_000 + b"]" * 60_000 + b"}", "nested too deeply"),
        (b" " * (1024 * 1024 + 1), "larger than 1 MB"),
        (b'{"output_path": "a\\u0000b"}', "the path is empty"),
    ],
)
def test_a_broken_settings_file_is_one_sentence(tmp_path, content, words):
    with pytest.raises(ConfigError) as caught:
        load(root=tmp_path, file=content)
    message = str(caught.value)
    assert words in message and "easel.json" in message.replace("--", "easel.json", 1)
    assert str(tmp_path) not in message


def test_what_editors_add_is_accepted(tmp_path):
    settings = load(root=tmp_path, file=b'\xef\xbb\xbf{"port": 1001, "theme": null}\r\n')
    assert settings.port == 1001 and settings.theme is None


def test_a_folder_in_place_of_the_file(tmp_path):
    (tmp_path / ".easel" / "easel.json").mkdir(parents=True)
    with pytest.raises(ConfigError, match="is a folder"):
        load(root=tmp_path)


def test_settings_travel_to_a_worker(tmp_path):
    settings = load("--always-cpu 2 --auth a:b", tmp_path)
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_reading_settings_loads_nothing_heavy():
    code = (
        "import sys; from modules.settings.config import load_settings; load_settings([], {});"
        "print({'torch', 'gradio', 'numpy', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_help_lists_every_flag(capsys):
    with pytest.raises(SystemExit) as caught:
        load_settings(["--help"], {})
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{flag.name}" in text for flag in FLAGS)
