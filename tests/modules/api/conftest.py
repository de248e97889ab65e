from collections.abc import Iterator

import pytest

from tests.modules.api.support import Running, serve


@pytest.fixture(scope="module")
def module_server(tmp_path_factory) -> Iterator[Running]:
    with serve(tmp_path_factory.mktemp("easel")) as running:
        yield running


@pytest.fixture
def server(module_server: Running) -> Running:
    """One server a module; its pool starts every test empty."""
    pool = module_server.pool
    pool.views.clear()
    pool.previews.clear()
    pool.submitted.clear()
    pool.calls.clear()
    pool.refuse = None
    return module_server
