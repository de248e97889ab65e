"""Gradio as the server imports and uses it: its own way takes seconds longer in every process."""

from collections.abc import Iterator

import pytest

from modules.api.server import import_gradio, routes_once

import_gradio()


@pytest.fixture(scope="module", autouse=True)
def pages_are_made_as_the_server_makes_them() -> Iterator[None]:
    with routes_once():
        yield
