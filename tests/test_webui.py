"""What the server says and does once the page is there."""

import threading
import webbrowser
from types import SimpleNamespace

import pytest

import webui
from modules.settings.config import load_settings


@pytest.mark.parametrize(
    ("flag", "expected"),
    [("--in-browser", ["http://127.0.0.1:7900"]), ("--disable-in-browser", [])],
)
def test_the_browser_is_opened_at_the_page_only_when_asked(
    tmp_path, monkeypatch, capsys, flag, expected
):
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    settings = load_settings([flag, "--port", "7900"], {}, root=tmp_path)
    before = set(threading.enumerate())
    server = SimpleNamespace(port=7900, url="http://127.0.0.1:7900", network_url=None)
    webui.tell_address(settings, server)
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    assert opened == expected
    assert capsys.readouterr().out == "Easel is ready: http://127.0.0.1:7900\n"


def test_the_address_for_other_devices_is_told(tmp_path, capsys):
    settings = load_settings(["--disable-in-browser", "--port", "7900"], {}, root=tmp_path)
    server = SimpleNamespace(port=7900, url="http://127.0.0.1:7900", network_url="http://10.0.0.7")
    webui.tell_address(settings, server)
    assert "(elsewhere in the network http://10.0.0.7)" in capsys.readouterr().out
