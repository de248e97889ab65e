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
from modules.settings.config import Settings
from modules.settings.performance import Modes, load_modes
from modules.settings.presets import ModelFolder
from modules.spec.sizes import SizeTable
from modules.worker.memory_peak import MemoryPeak
from modules.worker.model_files import FileStamp, reading, stamp_of
from modules.worker.saver import Saver

if TYPE_CHECKING:
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
        self.shelf = Shelf(settings.root, settings.presets_path)
        self.saver = Saver()
        self.threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="preview")
        self._sizes: dict[FileStamp, SizeTable] = {}

    @cached_property
    def policy(self) -> "DevicePolicy":
        """Device and precisions of this process, applied to it."""
        from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy

        policy = DevicePolicy.detect(DeviceFlags.from_mapping(self.settings.device_flags))
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

    def close(self) -> None:
        """Finish what is being saved and end the threads."""
        self.saver.close()
        self.threads.shutdown(wait=True)
