"""Settings: everything a start of Easel was told, merged once and frozen.

The order is defaults ← `easel.json` in the data folder ← environment ← command line. Reading
settings writes nothing and imports nothing heavy.
"""

import ipaddress
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from modules.settings.args import FLAG_OF_FIELD, FLAGS, Flag, parse_arguments
from modules.settings.jsonfile import read_json_object
from modules.spec.errors import ConfigError

DEFAULT_PORT = 7865
SETTINGS_FILE = "easel.json"
DATA_FOLDER = ".easel"
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One start's settings. All paths are absolute; none of them need exist yet.

    listen: address that the server binds. port_is_explicit: a taken port is an error, not a
    reason to try the next. public_host: a proxy offers the page under this name. auth:
    `name:password`, the path of a users file, or None. device_flags: what
    `DeviceFlags.from_mapping` takes; only flags that were given.
    """

    root: Path
    data_path: Path
    output_path: Path
    models_path: Path
    listen: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    port_is_explicit: bool = False
    public_host: str | None = None
    share: bool = False
    auth: str | Path | None = field(default=None, repr=False)
    no_auth: bool = False
    preset: str = "default"
    in_browser: bool = False
    theme: str | None = None
    disable_metadata: bool = False
    device_flags: Mapping[str, bool | int] = field(default_factory=dict, hash=False)

    @property
    def database_path(self) -> Path:
        """The file of the durable queue."""
        return self.data_path / "easel.db"

    @property
    def log_path(self) -> Path:
        """Folder of the log files: easel.log of the server, worker.log of the painting process.

        `launch.py generate` and `make-thumbnails` have one of their name each.
        """
        return self.data_path / "logs"

    @property
    def inputs_path(self) -> Path:
        """The pictures that requests refer to; see gallery/inputs.py."""
        return self.data_path / "inputs"

    @property
    def temporary_path(self) -> Path:
        """Folder for files that may be swept at each start.

        It and the thumbnails' have names of our own: the data folder may be anybody's.
        """
        return self.data_path / "easel-tmp"

    @property
    def thumbnail_path(self) -> Path:
        """Folder of small copies of finished pictures; they are made again when it is deleted."""
        return self.data_path / "easel-thumbnails"

    @property
    def style_pictures_path(self) -> Path:
        """What `launch.py make-thumbnails` painted, one small picture for each style."""
        return self.data_path / "style-pictures"

    @property
    def presets_path(self) -> Path:
        return self.root / "presets"

    @property
    def builtin_models_path(self) -> Path:
        """Models that ship with the program, wherever the user keeps the others."""
        return self.root / "models" / "builtin"

    @property
    def is_exposed(self) -> bool:
        """True when somebody at another computer could reach the page."""
        return self.share or self.public_host is not None or not is_loopback(self.listen)


def is_loopback(address: str) -> bool:
    """True for localhost, 127.0.0.0/8 and ::1; a name that is not `localhost` counts as outside."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def load_settings(
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    root: Path | None = None,
) -> Settings:
    """Merge every source into Settings. ConfigError says which one is wrong and how to mend it.

    argv: arguments without the program's name; None takes the process's own.
    root: folder of the checkout, for tests.
    """
    root = root or _ROOT
    environ = os.environ if environ is None else environ
    given = parse_arguments(sys.argv[1:] if argv is None else argv)
    _check_groups(given, "the command line")
    from_environment = _environment_layer(environ)

    data = given.get("data_path", from_environment.get("data_path"))
    data_path = _absolute(data, Path.cwd()) if data else root / DATA_FOLDER
    from_file = _file_layer(data_path / SETTINGS_FILE)

    # Paths of the file are relative to the checkout, so that its meaning does not depend on where
    # the program is started; those a person types are relative to where they type them.
    _make_paths_absolute(from_file, root)
    _make_paths_absolute(from_environment, Path.cwd())
    _make_paths_absolute(given, Path.cwd())
    merged = _merge(from_file, from_environment, given)
    merged["data_path"] = data_path
    return _settings(root, merged, environ)


def _environment_layer(environ: Mapping[str, str]) -> dict[str, Any]:
    layer: dict[str, Any] = {}
    for flag in FLAGS:
        for variable in reversed(flag.variables):
            value = environ.get(variable, "").strip()
            if value:
                _put(layer, flag, flag.read(value, variable))
    _check_groups(layer, "the environment")
    return layer


def _file_layer(path: Path) -> dict[str, Any]:
    if not os.path.lexists(path):
        return {}
    layer: dict[str, Any] = {}
    for key, value in read_json_object(path, SETTINGS_FILE).items():
        if key == "data_path":
            raise ConfigError(
                f"{SETTINGS_FILE} lies in the data folder, so it cannot move it; use --data-path."
            )
        if key not in FLAG_OF_FIELD:
            near = get_close_matches(key, FLAG_OF_FIELD, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "remove it."
            raise ConfigError(f"{SETTINGS_FILE}: the key {key[:60]!r} is not known; {hint}")
        if value is not None:
            flag = FLAG_OF_FIELD[key]
            _put(layer, flag, flag.read(value, f"{SETTINGS_FILE}: {key}"))
    _check_groups(layer, SETTINGS_FILE)
    return layer


def _put(layer: dict[str, Any], flag: Flag, value: Any) -> None:
    """Only a switch can be given as off; any other flag that is off counts as not given."""
    if flag.convert is None or value is not False:
        layer[flag.field] = value


def _is_set(value: object) -> bool:
    """A switch that is off excludes nothing."""
    return value is not False


def _check_groups(layer: Mapping[str, Any], source: str) -> None:
    first: dict[str, str] = {}
    for name, value in layer.items():
        flag = FLAG_OF_FIELD[name]
        if flag.group and _is_set(value):
            other = first.setdefault(flag.group, flag.name)
            if other != flag.name:
                raise ConfigError(
                    f"--{other} and --{flag.name} exclude each other; remove one from {source}."
                )


def _merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers win; a flag also takes away the flags of its group from earlier layers."""
    merged: dict[str, Any] = {}
    for layer in layers:
        groups = {FLAG_OF_FIELD[name].group for name, value in layer.items() if _is_set(value)}
        merged = {
            name: value
            for name, value in merged.items()
            if not FLAG_OF_FIELD[name].group or FLAG_OF_FIELD[name].group not in groups
        }
        merged.update(layer)
    return merged


def expanded(text: str) -> Path:
    """The path that a person typed, ~ and ~name put in; as it is where there is no such user."""
    return Path(os.path.expanduser(text))  # Path.expanduser raises RuntimeError there


def _absolute(text: str, base: Path) -> Path:
    return Path(os.path.abspath(base / expanded(text)))


def _make_paths_absolute(layer: dict[str, Any], base: Path) -> None:
    for name in ("output_path", "models_path", "auth_file"):
        if name in layer:
            layer[name] = _absolute(layer[name], base)


def _settings(root: Path, merged: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    listen = merged.get("listen", "127.0.0.1")
    local = is_loopback(listen) and not merged.get("share", False)
    return Settings(
        root=root,
        data_path=merged["data_path"],
        output_path=merged.get("output_path", root / "outputs"),
        models_path=merged.get("models_path", root / "models"),
        listen=listen,
        port=merged.get("port", DEFAULT_PORT),
        port_is_explicit="port" in merged,
        public_host=merged.get("public_host"),
        share=merged.get("share", False),
        auth=merged.get("auth", merged.get("auth_file")),
        no_auth=merged.get("no_auth", False),
        preset=merged.get("preset", "default"),
        in_browser=_opens_browser(merged, local, environ),
        theme=merged.get("theme"),
        disable_metadata=merged.get("disable_metadata", False),
        device_flags=_device_flags(merged),
    )


def _opens_browser(merged: Mapping[str, Any], local: bool, environ: Mapping[str, str]) -> bool:
    if merged.get("disable_in_browser"):
        return False
    if "in_browser" in merged:
        return bool(merged["in_browser"])
    # Without a display, Python would start a text browser in the terminal.
    has_display = sys.platform in ("win32", "darwin") or bool(
        environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY")
    )
    return local and has_display


def _device_flags(merged: Mapping[str, Any]) -> dict[str, bool | int]:
    """Device flags by name; `always_cpu` is a switch here and its threads stand beside it."""
    names = [flag.field for flag in FLAGS if flag.device and flag.field in merged]
    flags = {name: merged[name] for name in names if merged[name] is not False}
    if "always_cpu" in flags:
        threads = flags["always_cpu"]
        flags["always_cpu"] = True
        if threads:
            flags["threads"] = threads
    return flags
