"""launch.py: real virtual environments, a pip that fails for real, no network."""

import errno
import http.server
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]


def write_checkout(folder):
    (folder / "launch.py").write_bytes((ROOT / "launch.py").read_bytes())
    for name in ("requirements.txt", "requirements-vocab.txt", "requirements-dev.txt"):
        (folder / name).write_text("# nothing\n")
    (folder / "webui.py").write_text("import sys; print('PAGE', sys.argv[1:], sys.prefix)")


def write_wheel(folder, name, code=""):
    """A package that pip installs without a network: one module, and no needs."""
    info = f"{name}-1.0.dist-info"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", code)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def checkout(tmp_path):
    """A folder with launch.py and a program that only says that it ran, needing no packages."""
    write_checkout(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def first_start(tmp_path_factory):
    """(environment at a place that was not there, finished process): making one takes long."""
    folder = tmp_path_factory.mktemp("installed")
    write_checkout(folder)
    environment = folder / "not" / "yet" / "venv"
    return environment, launch(folder, "--port", "9000", EASEL_VENV=str(environment))


@pytest.fixture
def environment(first_start):
    """The environment that launch.py made of the checkout, to copy."""
    assert first_start[1].returncode == 0, first_start[1].stderr
    return first_start[0]


@pytest.fixture
def installed(checkout, environment):
    """A checkout whose environment is complete."""
    shutil.copytree(environment, checkout / ".venv", symlinks=True)
    return checkout


def launch(checkout, *arguments, cwd=None, **environment):
    """Run the checkout's launch.py, from another folder if `cwd` is one; the finished process."""
    return subprocess.run(
        [sys.executable, str(checkout / "launch.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "EASEL_TORCH_INDEX": "default", "PYTHONPATH": "", **environment},
        timeout=120,
    )


@pytest.fixture
def launcher(monkeypatch):
    """launch.py as a module, for its pure functions."""
    spec = importlib.util.spec_from_file_location("launch_under_test", ROOT / "launch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delenv("EASEL_TORCH_INDEX", raising=False)
    return module


def test_first_start_makes_the_environment_and_hands_over(first_start):
    environment, first = first_start
    assert first.returncode == 0, first.stderr
    assert "Making a virtual environment" in first.stdout
    assert "PAGE ['--port', '9000']" in first.stdout
    assert str(environment) in first.stdout


@pytest.mark.skipif(os.name == "nt", reason="Windows does not tell what children took")
def test_second_start_skips_the_install_quickly(installed):
    def seconds():  # of the processor: those of the clock are also of whatever else runs
        times = os.times()
        return times.children_user + times.children_system

    took = []
    for _ in range(3):
        before = seconds()
        second = launch(installed)
        took.append(seconds() - before)
        assert "Installing" not in second.stdout and "PAGE []" in second.stdout
    assert min(took) < 0.5


def test_changed_requirements_are_installed_again(installed):
    (installed / "requirements.txt").write_text("# nothing, in other words\n")
    again = launch(installed, "setup")
    assert again.returncode == 0 and "Completing the environment" in again.stdout


def test_generate_gets_its_arguments_and_gives_its_exit_status(installed):
    worker = installed / "modules" / "worker"
    worker.mkdir(parents=True)
    (worker / "generate_cli.py").write_text("import sys; print(sys.argv[1:]); sys.exit(7)")
    words = ["two words", "-n", "1", "--seed", "7", "-o", "folder"]
    done = launch(installed, "generate", *words)
    assert done.stdout == f"{words}\n"
    assert done.returncode == 7


@pytest.fixture
def elsewhere(tmp_path_factory):
    """A folder of the user's, with files that a program must not take for its own or Python's."""
    folder = tmp_path_factory.mktemp("elsewhere")
    worker = folder / "modules" / "worker"
    worker.mkdir(parents=True)
    for decoy in (worker / "generate_cli.py", folder / "random.py", folder / "multiprocessing.py"):
        decoy.write_text("raise SystemExit('a file of the user ran')")
    return folder


PLACES = """
import multiprocessing, os, random, sys

def places():
    print([os.getcwd(), __file__, os.environ["PYTHONPATH"]], flush=True)

if __name__ == "__main__":
    places()
    child = multiprocessing.get_context("spawn").Process(target=places)
    child.start()
    child.join()
    sys.exit(child.exitcode)
"""


@pytest.mark.parametrize("verb", [[], ["generate"]], ids=["page", "generate"])
def test_paths_count_from_the_users_folder_and_modules_from_the_checkout(
    installed, elsewhere, verb
):
    program = installed / ("modules/worker/generate_cli.py" if verb else "webui.py")
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(PLACES)
    done = launch(installed, *verb, cwd=elsewhere, PYTHONPATH="/of/the/user")
    assert done.returncode == 0, done.stderr
    expected = [str(elsewhere), str(program), f"{installed}{os.pathsep}/of/the/user"]
    assert done.stdout.splitlines() == [str(expected)] * 2  # of the program and of its worker


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch asks for large pages on Linux alone")
@pytest.mark.parametrize("own", [{}, {"THP_MEM_ALLOC_ENABLE": "0"}], ids=["unsaid", "refused"])
def test_pytorch_is_let_use_large_pages_unless_the_user_refuses(installed, own, monkeypatch):
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    (installed / "webui.py").write_text("import os; print(os.environ['THP_MEM_ALLOC_ENABLE'])")
    assert launch(installed, **own).stdout.split() == [own.get("THP_MEM_ALLOC_ENABLE", "1")]


def test_bench_works_in_the_checkout(installed, elsewhere):
    (installed / "benchmarks").mkdir()
    (installed / "benchmarks" / "run.py").write_text("import os; print(os.getcwd())")
    done = launch(installed, "bench", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(installed)


@pytest.mark.parametrize(
    ("word", "status", "told"), [("--help", 0, "compiles"), ("-h", 0, "compiles"), ("all", 1, "")]
)
def test_setup_explains_itself_and_refuses_words(checkout, word, status, told):
    done = launch(checkout, "setup", word)
    assert done.returncode == status and told in done.stdout
    assert not status or ("'all'" in done.stderr and done.stderr.count("\n") == 1)
    assert not (checkout / ".venv").exists()


def test_only_setup_compiles_and_what_a_start_compiles_is_kept(installed):
    wheel = write_wheel(installed, "of_a_wheel")
    (installed / "requirements.txt").write_text(f"{wheel}\n")
    (installed / "webui.py").write_text("import os; print('PYTHONDONTWRITEBYTECODE' in os.environ)")
    (installed / "modules").mkdir()
    (installed / "modules" / "own.py").write_text("")
    first = launch(installed, PIP_NO_INDEX="1", PYTHONDONTWRITEBYTECODE="1")
    assert first.returncode == 0, first.stderr
    assert "s; the first start takes" in first.stdout and first.stdout.endswith("\nFalse\n")
    (module,) = installed.glob(".venv/lib/*/site-packages/of_a_wheel.py")
    of_the_wheel = importlib.util.cache_from_source(str(module))
    assert not Path(of_the_wheel).exists()
    setup = launch(installed, "setup", PYTHONDONTWRITEBYTECODE="1")
    assert setup.returncode == 0, setup.stderr
    assert Path(of_the_wheel).exists()
    assert Path(importlib.util.cache_from_source(str(installed / "modules" / "own.py"))).exists()


def test_test_installs_the_reference_libraries_and_runs_pytest(installed):
    pytest_stub = write_wheel(installed, "pytest", "import sys; print(sys.argv[1:]); sys.exit(3)")
    (installed / "requirements-dev.txt").write_text(f"{pytest_stub}\n")
    stamp = installed / ".venv" / "easel-stamp.json"
    base = json.loads(stamp.read_text())
    assert list(base) == ["base"]
    done = launch(installed, "test", "tests/test_launch.py", PIP_NO_INDEX="1")
    assert done.returncode == 3, done.stderr
    given = ["-n", "3", "--dist", "loadfile", "--no-loadscope-reorder", "tests/test_launch.py"]
    assert done.stdout.splitlines()[-1] == str(given)
    after = json.loads(stamp.read_text())
    assert after.keys() == {"base", "dev"} and after["base"] == base["base"]


def test_interrupted_install_is_repaired(installed):
    checkout = installed
    (checkout / ".venv" / "easel-stamp.json").unlink()
    (checkout / ".venv" / "bin" / "python").unlink()
    (checkout / ".venv" / "bin" / "python").symlink_to("/nowhere/python")
    repaired = launch(checkout)
    assert repaired.returncode == 0 and "PAGE" in repaired.stdout
    assert json.loads((checkout / ".venv" / "easel-stamp.json").read_text())["base"]


@pytest.mark.parametrize("name", [".venv", "data"])
def test_a_folder_with_the_users_files_is_not_made_an_environment(checkout, name):
    theirs = checkout / name / "novel" / "chapter.txt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("the only copy")
    failed = launch(checkout, EASEL_VENV="" if name == ".venv" else str(checkout / name))
    assert failed.returncode == 1 and failed.stderr.count("\n") == 1
    assert failed.stderr.startswith(f"{name} holds files") and "EASEL_VENV" in failed.stderr
    assert theirs.read_text() == "the only copy"
    assert sorted(theirs.parents[1].rglob("*")) == [theirs.parent, theirs]


def test_an_environment_that_was_begun_or_half_removed_is_known_again(launcher, tmp_path):
    launcher.clear_venv(tmp_path / "not there")
    venv = tmp_path / "venv"
    (venv / "lib" / "python3.12").mkdir(parents=True)
    (venv / "lib64").symlink_to("lib")
    launcher.clear_venv(venv)  # venv was ended before its first file
    (venv / ".gitignore").touch()
    launcher.clear_venv(venv)  # and before its second, from Python 3.13 on
    assert (venv / "lib").is_dir()
    (venv / "pyvenv.cfg").touch()
    (venv / "lib" / "python3.12" / "half.py").touch()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").touch()
    (venv / "link").symlink_to(tmp_path / "outside")
    launcher.clear_venv(venv)
    assert list(venv.iterdir()) == [] and (tmp_path / "outside" / "kept").exists()


def test_the_mark_of_an_environment_is_the_last_to_go(launcher, tmp_path, monkeypatch):
    (tmp_path / "zzz").mkdir()
    (tmp_path / "pyvenv.cfg").touch()
    monkeypatch.setattr(launcher.shutil, "rmtree", lambda _path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        launcher.clear_venv(tmp_path)
    assert (tmp_path / "pyvenv.cfg").exists()


@pytest.mark.skipif(os.name == "nt", reason="POSIX locks")
def test_a_wait_for_another_install_is_told_once(launcher, tmp_path, monkeypatch, capsys):
    import fcntl

    monkeypatch.setattr(launcher, "ROOT", tmp_path)
    launcher.log_file()
    naps = []
    with (tmp_path / ".easel" / "install.lock").open("a+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def nap(seconds):
            naps.append(seconds)
            if len(naps) == 3:
                fcntl.flock(other, fcntl.LOCK_UN)

        monkeypatch.setattr(launcher.time, "sleep", nap)
        with launcher.only_one_install():
            pass
    assert len(naps) == 3
    assert capsys.readouterr().out.count("Another launch is installing") == 1


@pytest.mark.skipif(os.name == "nt", reason="POSIX locks")
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_does_not_hold_an_install_up(
    launcher, tmp_path, monkeypatch, capsys, code
):
    import fcntl

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(launcher, "ROOT", tmp_path)
    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(launcher.time, "sleep", lambda _seconds: 1 / 0)
    launcher.log_file()
    with launcher.only_one_install():
        assert "knows no file locks" in capsys.readouterr().out


def test_garbage_stamp_means_no_install(checkout, launcher):
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "easel-stamp.json").write_text("[tr\x00uncated")
    assert launcher.installed_parts(checkout / ".venv") == {}


def test_a_package_that_cannot_be_had_is_named_with_the_log(installed):
    checkout = installed
    (checkout / "requirements.txt").write_text("easel-no-such-package==1.0\n")
    failed = launch(checkout, "setup", PIP_NO_INDEX="1")
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert "easel-no-such-package" in failed.stderr and ".easel/install.log" in failed.stderr
    assert "easel-no-such-package" in (checkout / ".easel" / "install.log").read_text()
    assert not (checkout / ".venv" / "easel-stamp.json").exists()


def test_too_little_disk_is_said_before_anything_is_made(checkout):
    failed = launch(checkout, EASEL_FREE_BYTES_NEEDED=str(2**60))
    assert failed.returncode == 1 and "GB free" in failed.stderr and "EASEL_VENV" in failed.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(("folder", "asked"), [("disk", "disk"), ("disk/not/yet", "disk")])
def test_the_disk_that_is_asked_is_the_one_that_takes_the_environment(
    launcher, tmp_path, monkeypatch, folder, asked
):
    (tmp_path / "disk").mkdir()
    monkeypatch.setenv("EASEL_FREE_BYTES_NEEDED", "9")
    full = shutil.disk_usage(tmp_path)._replace(free=0)
    usage = {str(tmp_path / asked): full}
    monkeypatch.setattr(launcher.shutil, "disk_usage", usage.__getitem__)
    with pytest.raises(launcher.LaunchError, match="GB free"):
        launcher.check_disk(tmp_path / folder, "cpu")


def test_with_torch_there_less_disk_is_needed(launcher, tmp_path, monkeypatch):
    write_checkout(tmp_path)
    (tmp_path / "requirements.txt").write_text("torch==2.0\n")
    monkeypatch.setattr(launcher, "ROOT", tmp_path)
    monkeypatch.delenv("EASEL_FREE_BYTES_NEEDED", raising=False)
    usage = shutil.disk_usage(tmp_path)._replace(free=2 * 2**30)
    monkeypatch.setattr(launcher.shutil, "disk_usage", lambda _path: usage)
    venv = tmp_path / ".venv"
    with pytest.raises(launcher.LaunchError, match="needs about 3 GB"):
        launcher.check_disk(venv, "cpu")
    packages = venv / "lib" / "python3.12" / "site-packages"
    (packages / "torch-2.0+cpu.dist-info").mkdir(parents=True)
    launcher.check_disk(venv, "cpu")
    (venv / "easel-torch").write_text("cpu")
    launcher.check_disk(venv, "cpu")
    with pytest.raises(launcher.LaunchError, match="needs about 10 GB"):
        launcher.check_disk(venv, "cuda")  # another build
    (tmp_path / "requirements.txt").write_text("torch==2.1\n")
    with pytest.raises(launcher.LaunchError, match="needs about 3 GB"):
        launcher.check_disk(venv, "cpu")


def test_venv_can_live_elsewhere(checkout, environment, tmp_path):
    elsewhere = tmp_path / "an other place"
    shutil.copytree(environment, elsewhere, symlinks=True)
    done = launch(checkout, EASEL_VENV=str(elsewhere))
    assert done.returncode == 0 and str(elsewhere) in done.stdout
    assert not (checkout / ".venv").exists()


def test_a_relative_venv_counts_from_where_it_was_named(checkout, environment, elsewhere):
    shutil.copytree(environment, elsewhere / "envs" / "mine", symlinks=True)
    done = launch(checkout, cwd=elsewhere, EASEL_VENV="envs/mine")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"PAGE [] {elsewhere / 'envs' / 'mine'}\n"


def test_unknown_verb_gets_a_suggestion(checkout):
    failed = launch(checkout, "generat")
    assert failed.returncode == 1 and "'generate'" in failed.stderr
    assert not (checkout / ".venv").exists()


def test_help_lists_every_verb_without_installing(checkout, launcher):
    shown = launch(checkout, "--help")
    assert shown.returncode == 0
    for verb in launcher.VERBS:
        assert f"  {verb} " in shown.stdout
    assert not (checkout / ".venv").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipe that a reader closes early")
def test_a_reader_that_has_seen_enough_ends_the_help_without_a_word(checkout):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            [sys.executable, str(checkout / "launch.py"), "--help"],
            stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    "words", [("generate", "--help"), ("generate", "cat", "-h"), ("--listen", "-h")]
)
def test_help_of_a_verb_installs_nothing(checkout, launcher, words):
    shown = launch(checkout, *words)
    assert shown.returncode == 0
    assert "listed here after the first " in shown.stdout
    assert launcher.VERBS["generate"].help in shown.stdout
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("words", [("test", "--help"), ("bench", "-h")])
def test_help_of_a_verb_for_developers_installs_nothing_beside_the_base(installed, launcher, words):
    (installed / "requirements-dev.txt").write_text("easel-no-such-package==1.0\n")
    (installed / "requirements.txt").write_text("# nothing, in other words\n")
    stamp = (installed / ".venv" / "easel-stamp.json").read_bytes()
    shown = launch(installed, *words)
    assert shown.returncode == 0, shown.stderr
    assert launcher.VERBS[words[0]].help in shown.stdout
    assert "after the first run, which installs what it needs" in shown.stdout
    assert (installed / ".venv" / "easel-stamp.json").read_bytes() == stamp


def test_help_of_the_page_does_not_bring_an_install_up_to_date(installed):
    (installed / "requirements.txt").write_text("# nothing, in other words\n")
    shown = launch(installed, "--listen", "--help")
    assert shown.stdout.startswith("PAGE ['--listen', '--help']")


@pytest.mark.parametrize("version", [(3, 7), (3, 10), (3, 14)])
def test_wrong_python_is_one_sentence(launcher, monkeypatch, version):
    monkeypatch.setattr(launcher.sys, "version_info", (*version, 0, "final", 0))
    with pytest.raises(launcher.LaunchError, match=rf"3\.11 to 3\.13, this is 3\.{version[1]}:"):
        launcher.check_python()


@pytest.mark.parametrize(
    ("machine", "kernel", "release", "words"),
    [
        ("x86_64", "Darwin Kernel Version 22.6.0: RELEASE_X86_64", "13.6", "Intel Macs: run Easel"),
        ("x86_64", "Darwin Kernel Version 24.1.0: RELEASE_ARM64_T6000", "15.1", "the arm64 one"),
        ("arm64", "Darwin Kernel Version 22.6.0: RELEASE_ARM64_T8103", "13.6.1", "this is 13.6.1:"),
        ("arm64", "Darwin Kernel Version 23.0.0: RELEASE_ARM64_T8103", "14.0", None),
        ("arm64", "Darwin Kernel Version 25.0.0: RELEASE_ARM64_T8132", "26.0", None),
    ],
)
def test_a_mac_without_a_pytorch_is_one_sentence(
    launcher, monkeypatch, machine, kernel, release, words
):
    monkeypatch.setattr(launcher.sys, "platform", "darwin")
    monkeypatch.setattr(launcher.platform, "machine", lambda: machine)
    monkeypatch.setattr(launcher.platform, "version", lambda: kernel)
    monkeypatch.setattr(launcher.platform, "mac_ver", lambda: (release, ("", "", ""), machine))
    monkeypatch.setattr(launcher, "set_up", lambda *_: 7)
    monkeypatch.setattr(launcher, "end_on_signals", lambda: None)
    if words is None:
        assert launcher.main(["setup"]) == 7
    else:
        with pytest.raises(launcher.LaunchError, match=words):
            launcher.main(["setup"])


def test_a_32_bit_python_is_one_sentence(launcher, monkeypatch):
    monkeypatch.setattr(launcher.sys, "maxsize", 2**31 - 1)
    with pytest.raises(launcher.LaunchError, match="64-bit Python"):
        launcher.check_platform()


def test_syntax_is_readable_for_old_pythons():
    import ast

    ast.parse((ROOT / "launch.py").read_text(), feature_version=(3, 7))


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_missing_venv_module_names_the_remedy(launcher, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(launcher.LaunchError, match=r"apt install python3\.\d+-venv"):
        launcher.check_venv_module()


@pytest.mark.parametrize(
    ("text", "package", "words"),
    [
        ("ERROR: No matching distribution found for torch==9", "torch", "log names"),
        ("OSError: [Errno 28] No space left on device", "requirements.txt", "disk is full"),
        ("error: Failed building wheel for psutil", "psutil", "log names"),
        ("NewConnectionError ... No matching distribution found for einops", "einops", "registry"),
        ("PermissionError: [Errno 13] Permission denied", "requirements.txt", "written to"),
        (
            "  Downloading bigpkg-1.0-py3-none-any.whl (100 kB)\n"
            "ERROR: Wheel 'bigpkg' located at /tmp/pip-unpack-x/bigpkg-1.0.whl is invalid.",
            "bigpkg",
            "cut off: check the connection",
        ),
        (
            "Collecting torch==2.13.0 (from -r requirements.txt (line 2))\n"
            "  Downloading https://mirror.test/whl/cpu/torch-2.13.0%2Bcpu-cp312.whl (190 MB)\n"
            "ERROR: Exception:\nTraceback (most recent call last):\n"
            'ProtocolError: ("Connection broken: IncompleteRead(12 bytes read, 34 more expected)"',
            "torch",
            "cut off",
        ),
        (
            "Collecting typing-extensions>=4.10 (from torch)\nERROR: Exception:\n"
            "ProtocolError: (\"Connection broken: ConnectionResetError(104, 'Connection reset",
            "typing-extensions",
            "cut off",
        ),
        ("Collecting numpy\nerror: incomplete-download\n\n× Download failed", "numpy", "cut off"),
        (
            "Collecting bigpkg\n  ERROR: HTTP error 403 while getting http://h/bigpkg-1.0.whl\n"
            "ERROR: Could not install requirement bigpkg from http://h/bigpkg-1.0.whl because of "
            "HTTP error 403 Client Error: Forbidden for url",
            "bigpkg",
            "refuses it: check pip's index and proxy",
        ),
        (
            "Collecting bigpkg\nERROR: Could not install packages due to an OSError: Max retries "
            "exceeded with url: /f (Caused by ResponseError('too many 503 error responses'))",
            "bigpkg",
            "wait a while",
        ),
        (
            "Could not fetch URL https://h/einops/: There was a problem confirming the ssl "
            "certificate: (Caused by SSLError(SSLCertVerificationError(1, ''))) - skipping\n"
            "ERROR: No matching distribution found for einops",
            "einops",
            "PIP_CERT",
        ),
        (
            "Collecting torch\n  Downloading torch-2.13.0.whl (900 MB)\n"
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on",
            "torch",
            "disk is full",
        ),
        (
            "Downloading last-1.0.whl (1 kB)\nInstalling collected packages: first, last\n"
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on",
            "requirements.txt",
            "disk is full",
        ),
        (
            "ERROR: Could not find a version that satisfies the requirement torch==2.13.0 "
            "(from versions: none)\nERROR: No matching distribution found for torch==2.13.0",
            "torch",
            "offers none",
        ),
        (
            "WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by "
            "'ConnectTimeoutError(\"timed out\")': /simple/torch/\n"
            "ERROR: Could not find a version that satisfies the requirement torch==2.13.0 "
            "(from versions: none)\nERROR: No matching distribution found for torch==2.13.0",
            "torch",
            "cannot be reached",
        ),
        (
            "WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by "
            "'ReadTimeoutError(\"Read timed out.\")': /simple/numpy/\n"
            "Collecting numpy\n  Downloading numpy-2.0.whl (20 MB)\n"
            "WARNING: Retrying (Retry(total=4, connect=None)) after connection broken by "
            "'ReadTimeoutError(\"Read timed out.\")': /simple/torch/\n"
            "ERROR: Could not find a version that satisfies the requirement torch==9 "
            "(from versions: 2.13.0)\nERROR: No matching distribution found for torch==9",
            "torch",
            "log names",
        ),
    ],
)
def test_failures_are_explained(launcher, text, package, words):
    sentence = launcher.explain_failure(text, "requirements.txt")
    assert f"Installing {package} failed" in sentence
    assert words in sentence
    assert "install.log" in sentence


@pytest.mark.parametrize(
    ("system", "there", "accelerator"),
    [
        ("linux", [], "cpu"),
        ("linux", ["nvidia-smi"], "cuda"),
        ("linux", ["proc/driver/nvidia/version"], "cuda"),
        ("linux", ["nvidia-smi", "dev/kfd", "gfx 110000"], "cuda"),
        ("linux", ["dev/kfd", "gfx 0", "gfx 110000"], "rocm"),
        ("linux", ["dev/kfd", "gfx 90010"], "rocm"),
        ("linux", ["dev/kfd", "gfx 100306", "gfx 120001"], "rocm"),
        ("linux", ["dev/kfd", "gfx 0", "gfx 100306"], "cpu"),  # inside a Ryzen
        ("linux", ["dev/kfd", "gfx 80003"], "cpu"),  # Polaris
        ("linux", ["dev/kfd"], "cpu"),
        ("linux", ["gfx 110000"], "cpu"),  # of the computer around a container without the card
        ("linux", ["sys/bus/pci/drivers/xe/0000:03:00.0", "dev/kfd", "gfx 100306"], "xpu"),
        ("linux", ["sys/bus/pci/drivers/xe/0000:03:00.0"], "xpu"),
        ("linux", ["sys/bus/pci/drivers/xe/bind"], "cpu"),
        ("linux", ["sys/bus/pci/drivers/i915/0000:03:00.0"], "xpu"),
        ("linux", ["sys/bus/pci/drivers/i915/0000:00:02.0"], "cpu"),
        ("win32", [], "cpu"),
        ("win32", ["nvidia-smi"], "cuda"),
        ("darwin", [], "mps"),
    ],
)
def test_accelerator_is_found(launcher, monkeypatch, tmp_path, system, there, accelerator):
    for place, name in enumerate(there):
        if name.startswith("gfx "):
            node = tmp_path / "sys/class/kfd/kfd/topology/nodes" / str(place)
            node.mkdir(parents=True)
            (node / "properties").write_text(f"cpu_cores_count 0\ngfx_target_version {name[4:]}\n")
        else:
            (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(launcher.sys, "platform", system)
    monkeypatch.setattr(launcher.shutil, "which", lambda name: name if name in there else None)
    monkeypatch.setattr(launcher, "ask_nvidia", lambda: "")
    monkeypatch.setattr(launcher, "Path", lambda path: tmp_path / path.lstrip("/"))
    found, why = launcher.find_accelerator()
    assert found == accelerator
    amd_left_out = found == "cpu" and "dev/kfd" in there and len(there) > 1
    assert ("EASEL_TORCH_INDEX=rocm" in why) == amd_left_out


@pytest.mark.parametrize(
    ("answer", "build", "words"),
    [
        ("580.65.06, 9.0\n", "cuda", ""),
        ("591.44, 12.0\n", "cuda", ""),
        ("580.95, 6.1\n580.95, 8.9\n", "cuda", ""),  # the better card counts
        ("No devices were found\n", "cuda", ""),
        ("", "cuda", ""),
        ("535.247.01, 8.6\n", "cuda12", "driver 580 .* here are 535 and 8.6; EASEL_TORCH_INDEX"),
        ("580.65.06, 6.1\n", "cuda12", "capability 7.5, here are 580 and 6.1; EASEL_TORCH_INDEX"),
        ("572.16, 12.0\n", "cpu", "here are 572 and 12.0: update the driver, or set EASEL_TORCH"),
        ("470.256.02, 7.5\n", "cpu", "here are 470 and 7.5: update the driver"),
        ("580.65.06, 3.7\n", "cpu", "here are 580 and 3.7: .* EASEL_TORCH_INDEX"),
        ('Field "compute_cap" is not a valid field to query.\n', "cpu", "too old .* EASEL_TORCH"),
    ],
)
def test_what_the_nvidia_driver_says_decides_the_build(launcher, answer, build, words):
    found, why = launcher.nvidia_build(answer)
    assert found == build and re.search(words, why) and bool(why) == bool(words)


def test_a_build_that_is_not_the_best_is_explained(launcher, monkeypatch):
    monkeypatch.setattr(launcher, "has_nvidia", lambda: True)
    monkeypatch.setattr(launcher, "ask_nvidia", lambda: "550.54, 8.6\n")
    monkeypatch.setattr(launcher.sys, "platform", "linux")
    sentence = launcher.torch_sentence("cuda12")
    assert launcher.torch_index("cuda12") in sentence and "here are 550 and 8.6" in sentence
    monkeypatch.setattr(launcher, "ask_nvidia", lambda: "450.54, 8.6\n")
    sentence = launcher.torch_sentence("cpu")
    assert "the CPU build" in sentence and "update the driver" in sentence


@pytest.mark.skipif(os.name == "nt", reason="a script for a program")
def test_a_driver_that_does_not_answer_is_not_waited_for(launcher, monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "$2" 550.54, 8.6\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert launcher.ask_nvidia() == "--format=csv,noheader 550.54, 8.6\n"
    run, limits = subprocess.run, []

    def hurried(*words, timeout, **options):
        limits.append(timeout)
        return run(*words, timeout=0.2, **options)

    program.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(launcher.subprocess, "run", hurried)
    assert launcher.ask_nvidia() and not limits  # once a start
    launcher.ask_nvidia.cache_clear()
    assert launcher.ask_nvidia() == "" and limits[0] <= 10


@pytest.fixture
def starts(launcher, monkeypatch, tmp_path):
    """A function: start with this accelerator, and what pip was told to install of PyTorch."""
    write_checkout(tmp_path)
    (tmp_path / "requirements.txt").write_text("torch==2.0\n")
    python = launcher.venv_python(tmp_path / ".venv")
    python.parent.mkdir(parents=True)
    python.touch()
    told = []
    monkeypatch.delenv("EASEL_VENV", raising=False)
    monkeypatch.setattr(launcher, "ROOT", tmp_path)
    monkeypatch.setattr(launcher, "make_venv", lambda *_: None)
    monkeypatch.setattr(launcher, "check_disk", lambda *_: None)
    monkeypatch.setattr(launcher, "reachable", lambda _index: True)
    monkeypatch.setattr(launcher, "run_pip", lambda _venv, words, *_: told.append(words))
    monkeypatch.setattr(launcher.sys, "platform", "win32" if os.name == "nt" else "linux")

    def start(accelerator):
        told.clear()
        monkeypatch.setattr(launcher, "find_accelerator", lambda: (accelerator, ""))
        monkeypatch.setattr(launcher, "has_nvidia", lambda: accelerator.startswith("cuda"))
        launcher.ensure_installed(("base",))
        return [words for words in told if "requirements-vocab" not in words[-1]]

    return start


def test_a_card_added_later_gets_its_build_and_one_taken_out_changes_nothing(launcher, starts):
    (first,) = starts("cpu")
    assert launcher.TORCH_INDEXES["cpu"] in first
    assert starts("cpu") == []
    again, rest = starts("rocm")
    assert "--force-reinstall" in again and again[-1] == "torch"
    assert launcher.TORCH_INDEXES["rocm"] in again and launcher.TORCH_INDEXES["rocm"] in rest
    assert "--force-reinstall" not in rest
    assert starts("rocm") == starts("cpu") == []


def test_a_change_of_build_that_failed_is_made_at_the_next_start(launcher, starts, monkeypatch):
    starts("cpu")
    with monkeypatch.context() as patch:
        patch.setattr(launcher, "run_pip", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            starts("xpu")
    assert "--force-reinstall" in starts("xpu")[0]
    assert starts("xpu") == []


def test_a_build_that_was_asked_for_stays_until_another_is(launcher, starts, monkeypatch):
    starts("cpu")
    monkeypatch.setenv("EASEL_TORCH_INDEX", "xpu")
    assert launcher.TORCH_INDEXES["xpu"] in starts("cpu")[0]
    monkeypatch.delenv("EASEL_TORCH_INDEX")
    assert starts("cpu") == starts("cuda") == []
    monkeypatch.setenv("EASEL_TORCH_INDEX", "https://mirror.test/whl")
    assert "https://mirror.test/whl" in starts("cpu")[0]


def test_torch_index_is_chosen_by_accelerator_and_overridden(launcher, monkeypatch):
    monkeypatch.setattr(launcher, "find_accelerator", lambda: ("cpu", ""))
    monkeypatch.setattr(launcher.sys, "platform", "win32")
    assert launcher.torch_index("cuda").endswith("/cu130")
    assert launcher.torch_index("cpu").endswith("/cpu")
    assert "set EASEL_TORCH_INDEX to xpu" in launcher.torch_sentence("cpu")
    monkeypatch.setattr(launcher.sys, "platform", "linux")
    assert launcher.torch_index("cuda") is None
    assert launcher.torch_index("cuda12").endswith("/cu126")
    assert launcher.torch_index("rocm").split("/")[-1].startswith("rocm")
    assert launcher.torch_index("asked:xpu") == launcher.TORCH_INDEXES["xpu"]
    assert launcher.TORCH_INDEXES["xpu"] in launcher.torch_sentence("asked:xpu")
    assert launcher.torch_index("asked:https://mirror.test/whl") == "https://mirror.test/whl"
    assert launcher.torch_index("asked:default") is None


def test_unreachable_index_falls_back_and_says_so_until_it_can_be_reached(
    launcher, starts, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        patch.setattr(launcher, "reachable", lambda _index: False)
        (first,) = starts("cpu")
        assert "--extra-index-url" not in first
        said = capsys.readouterr().out
        assert "cannot be reached" in said and "EASEL_TORCH_INDEX" in said
        assert starts("cpu") == []
    again, rest = starts("cpu")
    assert "--force-reinstall" in again and launcher.TORCH_INDEXES["cpu"] in rest
    monkeypatch.setattr(launcher, "reachable", lambda _index: 1 / 0)  # it is not asked any more
    assert starts("cpu") == []


def test_an_unreachable_index_does_not_take_a_build_away(launcher, starts, monkeypatch):
    starts("cpu")
    monkeypatch.setattr(launcher, "reachable", lambda _index: False)
    assert starts("rocm") == starts("cpu") == []


def test_the_nvidia_driver_is_not_asked_about_a_build_that_is_there(
    launcher, tmp_path, monkeypatch
):
    monkeypatch.setattr(launcher, "has_nvidia", lambda: True)
    monkeypatch.setattr(launcher, "ask_nvidia", lambda: 1 / 0)
    (tmp_path / "easel-torch").write_text("cuda12")
    assert launcher.torch_choice(tmp_path) == "cuda12"


@pytest.mark.parametrize("build", ["cpu", "rocm", "xpu"])
def test_nobody_is_asked_about_the_build_that_is_there_and_wanted(
    launcher, tmp_path, monkeypatch, build
):
    monkeypatch.setattr(launcher, "find_accelerator", lambda: (build, ""))
    monkeypatch.setattr(launcher, "reachable", lambda _index: 1 / 0)
    (tmp_path / "easel-torch").write_text(build)
    assert launcher.torch_choice(tmp_path) == build


def test_an_index_that_says_nothing_is_given_up(launcher, monkeypatch):
    monkeypatch.setattr(launcher, "answers_now", lambda _index: time.sleep(60))
    monkeypatch.setattr(launcher, "INDEX_SECONDS", 0.1)
    started = time.monotonic()
    assert not launcher.reachable("http://127.0.0.1:9")
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(("status", "expected"), [(200, True), (403, False), (None, False)])
def test_an_index_is_looked_for_through_the_proxy(launcher, monkeypatch, status, expected):
    asked = []

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setattr(urllib.request, "_opener", None)  # which knows the proxy of before
        if status is None:
            proxy.server_close()
        else:
            threading.Thread(target=proxy.serve_forever, daemon=True).start()
        assert launcher.reachable("http://index.test/whl") is expected
        if status is not None:
            proxy.shutdown()
    assert asked == ([] if status is None else ["http://index.test/whl/torch/"])


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGBREAK"])
def test_a_request_to_end_is_as_ctrl_c_unless_the_caller_ignores_it(launcher, monkeypatch, name):
    monkeypatch.setattr(launcher.signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    number = getattr(launcher.signal, name)
    names = ("SIGTERM", "SIGHUP", "SIGBREAK")
    before = {each: signal.getsignal(getattr(launcher.signal, each)) for each in names}
    try:
        signal.signal(number, signal.SIG_IGN)
        launcher.end_on_signals()
        assert signal.getsignal(number) is signal.SIG_IGN
        signal.signal(number, signal.SIG_DFL)
        launcher.end_on_signals()
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        for each, handler in before.items():
            signal.signal(getattr(launcher.signal, each), handler)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_signal_ends_the_program_and_leaves_no_orphan(installed):
    checkout = installed
    (checkout / "webui.py").write_text(
        "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, str(checkout / "launch.py")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "EASEL_TORCH_INDEX": "default"},
    )
    pid = int(process.stdout.readline())
    assert pid == process.pid  # it became the program: there is nothing to orphan
    process.terminate()
    assert process.wait(3) == -15


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_signal_ends_an_install_with_its_pip(installed, number):
    checkout = installed
    (checkout / "requirements.txt").write_text("easel-no-such-package==1.0\n")
    with socket.create_server(("127.0.0.1", 0)) as registry:  # it accepts, and never answers
        index = f"http://127.0.0.1:{registry.getsockname()[1]}/simple"
        process = subprocess.Popen(
            [sys.executable, str(checkout / "launch.py"), "setup"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "EASEL_TORCH_INDEX": "default", "PIP_INDEX_URL": index},
        )
        registry.settimeout(60)
        asked, _ = registry.accept()
        children = psutil.Process(process.pid).children(recursive=True)
        assert any("pip" in child.cmdline() for child in children)
        process.send_signal(number)
        _, said = process.communicate(timeout=3)
        asked.close()
    assert process.returncode == 130 and "Interrupted" in said
    _, alive = psutil.wait_procs(children, timeout=3)
    assert not alive
    # The next start goes on from there, now with a package to be had.
    write_wheel(checkout, "easel_no_such_package")
    again = launch(checkout, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(checkout))
    assert again.returncode == 0, again.stderr
    assert "Installed in" in again.stdout and "PAGE" in again.stdout
    assert json.loads((checkout / ".venv" / "easel-stamp.json").read_text())["base"]
