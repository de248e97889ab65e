"""The folders that prompts look things up in: the user's own, then those that ship.

<checkout>/wildcards/*.txt     <checkout>/styles/*.json, *.csv      the user's, read first
presets/wildcards/*.txt        presets/styles/*.json                Easel's
presets/expansion/phrases.json
models/prompt_expansion/<name>/                                     a language model of the user's
"""

import threading
from collections.abc import Sequence
from pathlib import Path

from modules.prompt.expansion import Expander, load_expander
from modules.prompt.language_model import LanguageModel, find_language_model
from modules.prompt.plan import PromptBooks
from modules.prompt.styles import StyleBook
from modules.prompt.wildcards import WildcardBook
from modules.spec.errors import ConfigError


class Shelf:
    """The folders of one start. Files are kept in memory until they change.

    lock: held by whoever uses `books` where several threads do.
    """

    def __init__(self, root: Path, presets_path: Path, models_path: Path | None = None) -> None:
        """root: where the user's own folders are; models_path: the models folder, if it counts."""
        self._models_path = models_path
        self.lock = threading.RLock()
        self._style_folders = (root / "styles", presets_path / "styles")
        self._phrases = presets_path / "expansion" / "phrases.json"
        self._wildcards = WildcardBook((root / "wildcards", presets_path / "wildcards"))
        self._stamps: tuple[tuple[str, int, int], ...] | None = None
        self._styles = StyleBook()
        self._expander: Expander | None = None

    def books(self, loras: Sequence[str] = ()) -> PromptBooks:
        """What the folders hold now. loras: names of the LoRA files that there are."""
        self._wildcards.refresh()
        styles, model = self.styles(), self._language_model()
        return PromptBooks(
            wildcards=self._wildcards,
            styles=styles,
            expander=None if model is not None and model.is_usable else self._expander,
            language_model=model,
            loras=loras,
        )

    def _language_model(self) -> LanguageModel | None:
        return None if self._models_path is None else find_language_model(self._models_path)

    def phrase_words(self) -> frozenset[str]:
        """Every word of the phrases that ship; a language model without a list may add these."""
        self.styles()
        phrases = self._expander.words if self._expander is not None else ()
        return frozenset(word.lower() for phrase in phrases for word in phrase.split())

    def styles(self) -> StyleBook:
        """The styles that there are now. Any thread may call it and keep what it gets."""
        with self.lock:
            self._read_again()
            return self._styles

    def _read_again(self) -> None:
        """Read the files of styles and phrases if any of them has changed."""
        stamps = self._look()
        if stamps != self._stamps:
            self._styles = StyleBook.load(self._style_folders)
            try:
                self._expander = load_expander(self._phrases)
            except ConfigError:
                self._expander = None  # a plan that wants it says that it is not there
            self._stamps = stamps

    def _look(self) -> tuple[tuple[str, int, int], ...]:
        """Name, size and time of every file that a book is made of."""
        found = []
        for path in (*self._style_folders, self._phrases):
            try:
                paths = sorted(path.iterdir()) if path.is_dir() else [path]
                for file in paths:
                    status = file.stat()
                    found.append((str(file), status.st_size, status.st_mtime_ns))
            except OSError:
                continue  # a folder that is not there holds nothing
        return tuple(found)
