"""A script that runs before Gradio's: what its own `head` option brings comes after them."""

from collections.abc import Callable

import jinja2
from gradio import routes

from modules.ui import assets

_GRADIO_BEGINS = '<script type="module"'


class _WithScript(jinja2.BaseLoader):
    """Gradio's documents with the script in them."""

    def __init__(self, documents: jinja2.BaseLoader) -> None:
        self._documents = documents

    def get_source(
        self, environment: jinja2.Environment, template: str
    ) -> tuple[str, str | None, Callable[[], bool] | None]:
        """See jinja2. A document without Gradio's script stays as it is."""
        source, file, is_current = self._documents.get_source(environment, template)
        early = f"<script>{{% raw %}}\n{assets.early_script()}\n{{% endraw %}}</script>\n"
        return source.replace(_GRADIO_BEGINS, early + _GRADIO_BEGINS, 1), file, is_current


def put_in() -> None:
    """Have every document of Gradio's in this process run it; a second call changes nothing.

    A Gradio without such documents goes on without it.
    """
    templates = getattr(routes, "templates", None)
    documents = templates.env.loader if templates else None
    if documents is not None and not isinstance(documents, _WithScript):
        routes.templates.env.loader = _WithScript(documents)
