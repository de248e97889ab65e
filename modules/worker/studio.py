"""What a worker owns for as long as it lives: settings, device policy, models, helper threads.

Making a Studio is cheap; the device is probed and torch's side loaded when first asked for.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING

from modules.library.catalog import Catalog, ModelFile
from modules.library.hashes import HashCache
from modules.library.model_sizes import model_sizes
from modules.prompt.books import Shelf
from modules.prompt.language_model import LanguageModel
from modules.settings.config import Settings
from modules.settings.performance import Modes, load_modes
from modules.settings.presets import ModelFolder
from modules.spec.errors import ConfigError
from modules.spec.sizes import SizeTable
from modules.worker.memory_peak import MemoryPeak
from modules.worker.model_files import FileStamp, reading, stamp_of
from modules.worker.saver import Saver

if TYPE_CHECKING:
    from extras.expansion import GptExpander
    from ldm_patched.modules.model_management import DevicePolicy
    from modules.worker.pipeline import Pipeline


class Studio:
    """Handed to every stage."""

    def __init__(self, settings: Settings, *, by_day: bool = True) -> None:
        """by_day: pictures go into a folder of the day, not into the output folder itself."""
        self.settings = settings
        self.by_day = by_day
        self.catalog = Catalog(settings)
        self.hashes = HashCache(settings.data_path / "hashes.json")
        self.shelf = Shelf(settings.root, settings.presets_path, settings.models_path)
        self.saver = Saver()
        self.threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="preview")
        self._sizes: dict[FileStamp, SizeTable] = {}
        self._expander: tuple[tuple[tuple[str, int], ...], GptExpander] | None = None

    @cached_property
    def policy(self) -> "DevicePolicy":
        """Device and precisions of this process, applied to it. Raises ConfigError."""
        from ldm_patched.modules.errors import DeviceMissing
        from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy

        try:
            policy = DevicePolicy.detect(DeviceFlags.from_mapping(self.settings.device_flags))
        except DeviceMissing as error:
            raise ConfigError(str(error)) from error
        policy.configure_process()
        return policy

    @cached_property
    def memory_peak(self) -> MemoryPeak:
        """What the current picture takes."""
        return MemoryPeak(self.policy.device)

    @cached_property
    def pipeline(self) -> "Pipeline":
        """The models and their caches. What must be in force before a model loads, is."""
        from modules.patch import patch_all
        from modules.worker.pipeline import Pipeline

        patch_all()
        models = self.settings.models_path
        return Pipeline(
            self.policy,
            embeddings_path=models / ModelFolder.EMBEDDINGS,
            previews_path=models / ModelFolder.VAE_APPROX,
        )

    def modes(self) -> Modes:
        """The performance modes that there are now."""
        return load_modes(self.settings.root)

    def sizes_of(self, file: ModelFile) -> SizeTable:
        """The sizes that a checkpoint paints well: what its file says, or its family's.

        Only the header is read, once as long as the file stays the same: that of a large model
        takes longer than a step of a small one. Raises ModelMissing or an error that says what
        the file is.
        """
        from ldm_patched.modules import sd

        stamp = stamp_of(file)
        if stamp not in self._sizes:
            with reading(file):
                sd.read_model_metadata(str(file.path))  # says what is wrong with a broken header
            self._sizes[stamp] = model_sizes(file)
        return self._sizes[stamp]

    def expander(self, model: LanguageModel) -> "GptExpander":
        """The user's language model for prompt expansion, loaded once while its files stay.

        Raises the engine's ModelFileError, which says what is wrong with it.
        """
        from extras.expansion import load_gpt_expander

        files = sorted(path for path in model.path.iterdir() if path.is_file())
        stamp = tuple((str(path), path.stat().st_mtime_ns) for path in files)
        if self._expander is None or self._expander[0] != stamp:
            self._expander = None  # two would take twice the memory
            self._expander = stamp, load_gpt_expander(model.path, self.shelf.phrase_words())
        return self._expander[1]

    def close(self) -> None:
        """Finish what is being saved and end the threads."""
        self.saver.close()
        self.threads.shutdown(wait=True)
