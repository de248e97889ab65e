"""The flags of the command line, as one table that environment and settings file share.

Names are those that Fooocus users know. `--output-path X` is also `EASEL_OUTPUT_PATH=X` and
`"output_path": "X"` in `easel.json`; a switch takes 1/0, true/false, yes/no or on/off there.
Nothing here reads the environment or a file: see `config.load_settings`.
"""

import argparse
import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NoReturn

from modules.spec.errors import ConfigError

ENVIRONMENT_PREFIX = "EASEL_"
_ON = frozenset({"1", "true", "yes", "on"})
_OFF = frozenset({"0", "false", "no", "off"})
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Flag:
    """One setting. A switch has no `convert`; `bare` is the value of a flag given without one.

    group: flags of one group exclude each other; a later source replaces the whole group.
    device: the value goes into `Settings.device_flags` under `field`.
    """

    name: str
    help: str
    convert: Callable[[str], Any] | None = None
    metavar: str = ""
    bare: str | None = None
    group: str = ""
    device: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def field(self) -> str:
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        return self.variables[0]

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables of the name and of its aliases, the one that wins first."""
        names = (self.name, *self.aliases)
        return tuple(ENVIRONMENT_PREFIX + name.replace("-", "_").upper() for name in names)

    def read(self, value: object, source: str) -> Any:
        """A value of the environment or the settings file; ConfigError names `source`.

        A flag that may stand alone can be switched there too: `EASEL_ALWAYS_CPU=1` is the bare
        `--always-cpu`, and 0 gives False, as if it were absent.
        """
        if self.convert is None:
            return _read_switch(value, source)
        if self.bare is not None and str(value).strip().lower() in _ON | _OFF:
            return self.parse(self.bare, source) if _read_switch(value, source) else False
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ConfigError(f"{source} must be text or a whole number; correct it.")
        return self.parse(str(value).strip(), source)

    def parse(self, text: str, source: str) -> Any:
        """The value of the text that followed the flag on the command line."""
        convert = self.convert or str
        try:
            return convert(text)
        except ValueError as error:
            raise ConfigError(f"{source}: {error}.") from None


def _read_switch(value: object, source: str) -> bool:
    text = str(value).strip().lower()
    if isinstance(value, bool | int | str):
        if text in _ON:
            return True
        if text in _OFF:
            return False
    raise ConfigError(f"{source} is a switch: use 1 or 0, not {str(value)[:40]!r}.")


def _port(text: str) -> int:
    if not re.fullmatch(r"\d{1,5}", text, re.ASCII) or not 1 <= int(text) <= 65535:
        raise ValueError(f"{text[:20]!r} is not a port; use a number from 1 to 65535")
    return int(text)


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        # Digits and dots alone are a mistyped IP address, not a host name.
        if _HOST_NAME.fullmatch(text) and not re.fullmatch(r"[\d.]+", text):
            return text.lower()
    raise ValueError(f"{text[:60]!r} is not an IP address or host name; try 0.0.0.0 for all")


def _name(text: str) -> str:
    if not _HOST_NAME.fullmatch(text):
        raise ValueError(f"{text[:60]!r} is not a host name; give it without http:// and port")
    return text.lower()


def _path(text: str) -> str:
    if not text or "\x00" in text:
        raise ValueError("the path is empty; give a folder or file")
    return text


def _login(text: str) -> str:
    name, colon, password = text.partition(":")
    if not (name and colon and password):
        raise ValueError("a login is written name:password")
    return text


def _preset_name(text: str) -> str:
    if not re.fullmatch(r"[\w.+ -]{1,64}", text) or text.startswith("."):
        raise ValueError(f"{text[:64]!r} is not the name of a preset; use one of presets/")
    return text.removesuffix(".json")


def _theme(text: str) -> str:
    if text not in ("light", "dark"):
        raise ValueError(f"{text[:20]!r} is not a theme; use light or dark")
    return text


def _number(text: str) -> int:
    if not re.fullmatch(r"\d{1,4}", text, re.ASCII):
        raise ValueError(f"{text[:20]!r} is not a whole number; use 0 or more")
    return int(text)


def _device(name: str, help: str, group: str, **more: Any) -> Flag:  # noqa: A002 - as argparse
    return Flag(name, help, group=group, device=True, **more)


FLAGS: tuple[Flag, ...] = (
    Flag(
        "listen",
        "address to serve on; without one, every address of this computer",
        _address,
        "IP",
        bare="0.0.0.0",
    ),
    Flag("port", "port to serve on; one that is taken is then an error", _port, "PORT"),
    Flag("public-host", "name under which a proxy offers the page to others", _name, "NAME"),
    Flag("share", "also open Gradio's public link"),
    Flag("auth", "login asked for beyond this computer", _login, "NAME:PASSWORD", group="auth"),
    Flag("auth-file", "file of users and password hashes", _path, "FILE", group="auth"),
    Flag("no-auth", "serve beyond this computer without a login, at your risk", group="auth"),
    Flag("preset", "preset that the page starts with", _preset_name, "NAME"),
    Flag("output-path", "folder of the finished pictures", _path, "FOLDER"),
    Flag("models-path", "folder of the models", _path, "FOLDER"),
    Flag("data-path", "folder of the queue and of temporary files", _path, "FOLDER"),
    Flag("in-browser", "open the page in the browser", group="browser"),
    Flag("disable-in-browser", "do not open the page in the browser", group="browser"),
    Flag("theme", "light or dark page, instead of the browser's choice", _theme, "THEME"),
    Flag("disable-metadata", "do not write the settings into saved pictures"),
    _device("gpu-device-id", "number of the GPU to use", "", convert=_number, metavar="N"),
    _device("all-in-fp32", "everything in float32", "all"),
    _device("all-in-fp16", "everything in float16", "all"),
    _device("unet-in-fp32", "the UNet in float32", "unet"),
    _device("unet-in-bf16", "the UNet in bfloat16", "unet"),
    _device("unet-in-fp16", "the UNet in float16", "unet"),
    _device("unet-in-fp8-e4m3fn", "store the UNet in 8 bits, the more exact kind", "unet"),
    _device("unet-in-fp8-e5m2", "store the UNet in 8 bits, the kind of wider range", "unet"),
    _device("vae-in-fp32", "the VAE in float32", "vae"),
    _device("vae-in-bf16", "the VAE in bfloat16", "vae"),
    _device("vae-in-fp16", "the VAE in float16", "vae"),
    _device("vae-in-cpu", "the VAE on the processor", ""),
    _device("clip-in-fp32", "the text encoders in float32", "clip"),
    _device("clip-in-fp16", "the text encoders in float16", "clip"),
    _device("always-gpu", "keep every model on the GPU, whatever happens", "memory"),
    _device(
        "high-vram",
        "keep models on the GPU while they fit, without copies",
        "memory",
        aliases=("always-high-vram",),
    ),
    _device(
        "normal-vram",
        "keep what fits on the GPU; the UNet by blocks if it must",
        "memory",
        aliases=("always-normal-vram",),
    ),
    _device(
        "low-vram", "keep on the GPU only what computes", "memory", aliases=("always-low-vram",)
    ),
    _device(
        "no-vram", "everything in small parts on the GPU", "memory", aliases=("always-no-vram",)
    ),
    _device("attention-pytorch", "attention as PyTorch does it (the default)", "attention"),
    _device("attention-split", "attention in slices, for less memory", "attention"),
    _device("attention-quad", "attention in smaller slices, for the least memory", "attention"),
    _device(
        "always-cpu",
        "use the processor only, with so many threads",
        "memory",
        convert=_number,
        metavar="THREADS",
        bare="0",
    ),
)
FLAG_OF_FIELD = {flag.field: flag for flag in FLAGS}


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises ConfigError instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"The command line is not right: {message}. See --help.")


def build_parser() -> argparse.ArgumentParser:
    """The parser of webui.py. Its namespace holds only what was given (no defaults)."""
    parser = _Parser(
        prog="launch.py",
        description="Easel: pictures from words, in the browser.",
        epilog=f"Each flag is also an environment variable: --output-path is "
        f"{ENVIRONMENT_PREFIX}OUTPUT_PATH.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for flag in FLAGS:
        names = [f"--{name}" for name in (flag.name, *flag.aliases)]
        if flag.convert is None:
            parser.add_argument(*names, dest=flag.field, action="store_true", help=flag.help)
        elif flag.bare is None:
            parser.add_argument(*names, dest=flag.field, metavar=flag.metavar, help=flag.help)
        else:
            parser.add_argument(
                *names,
                dest=flag.field,
                metavar=flag.metavar,
                help=flag.help,
                nargs="?",
                const=flag.bare,
            )
    return parser


def parse_arguments(argv: Sequence[str]) -> dict[str, Any]:
    """Field name → converted value, of the flags that `argv` holds. ConfigError if it is wrong."""
    namespace, unknown = build_parser().parse_known_args(list(argv))
    if unknown:
        known = [f"--{name}" for flag in FLAGS for name in (flag.name, *flag.aliases)]
        near = get_close_matches(unknown[0].split("=")[0], known, n=1)
        hint = f"did you mean {near[0]}?" if near else "--help lists the flags."
        raise ConfigError(f"{unknown[0][:60]!r} is not known; {hint}")
    given: dict[str, Any] = {}
    for field, value in vars(namespace).items():
        flag = FLAG_OF_FIELD[field]
        given[field] = value if flag.convert is None else flag.parse(value, f"--{flag.name}")
    return given
