"""The house's walls: who may import what, and that importing does nothing."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ["launch.py", "webui.py", "modules", "extras", "ldm_patched"]
FILES = sorted(
    path
    for room in ROOMS
    for path in ([ROOT / room] if room.endswith(".py") else (ROOT / room).rglob("*.py"))
    if path.exists()
)
OURS = {"modules", "extras", "ldm_patched", "webui", "launch"}
ENGINE = {"torch", "extras", "ldm_patched", "einops", "safetensors"}
# The prompt inspector counts tokens in the server, with the very tokenizer that encodes prompts:
# two would drift apart. It and its errors import the standard library alone.
TOKEN_COUNTER = ROOT / "modules" / "prompt" / "tokens.py"
TOKENIZER = ("ldm_patched.modules.clip_tokenizer.", "ldm_patched.modules.errors.")
# What names a learned word is read alike wherever a prompt is.
NAMES = ("ldm_patched.modules.embedding_names.",)
NAME_READERS = ("prompt/parser.py", "prompt/inspector.py", "library/embedding_info.py")
# The page shows what of a picture counts before anything runs; the worker makes it with the same
# code. The preprocessors import numpy and cv2 alone.
MAP_MAKER = ROOT / "modules" / "gallery" / "maps.py"
PREPROCESSORS = ("extras.preprocessors.", "extras.face_crop.")
ALLOWED = {TOKEN_COUNTER: TOKENIZER + NAMES, MAP_MAKER: PREPROCESSORS} | {
    ROOT / "modules" / name: NAMES for name in NAME_READERS
}
PAGE = {"gradio"}
FLOORS = ["spec", "prompt", "settings", "library", "tasks", "gallery"]
BELOW = {
    "spec": {"spec"},
    "prompt": {"spec", "prompt"},
    "settings": {"spec", "prompt", "settings"},
    "library": {"spec", "prompt", "settings", "library"},
    "tasks": {"spec", "prompt", "settings", "library", "tasks"},
    "gallery": {"spec", "prompt", "settings", "library", "tasks", "gallery"},
}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imported(path: Path) -> frozenset[str]:
    """Dotted names that a file imports anywhere, typing-only imports included."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def roots(path: Path) -> set[str]:
    allowed = ALLOWED.get(path, ())
    return {name.split(".")[0] for name in imported(path) if not name.startswith(tuple(allowed))}


def rooms_of_modules(path: Path) -> set[str]:
    """Second parts of `modules.x` imports."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("modules.")}


def under(*parts: str) -> list[Path]:
    folder = ROOT.joinpath(*parts)
    return [path for path in FILES if path == folder or folder in path.parents]


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_launch_imports_the_standard_library_alone():
    assert roots(ROOT / "launch.py") <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", under("ldm_patched"), ids=ids)
def test_engine_knows_nothing_above_it(path):
    assert not roots(path) & {"modules", "extras", "webui", "gradio", "fastapi", "pydantic"}
    allowed = {"torch", "numpy", "safetensors", "einops", "ldm_patched", "psutil"}
    assert roots(path) <= allowed | set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", under("extras"), ids=ids)
def test_extras_do_not_reach_up(path):
    assert not roots(path) & {"modules", "webui", "gradio", "fastapi"}


@pytest.mark.parametrize("floor", FLOORS)
def test_data_floors_import_downwards_only(floor):
    for path in under("modules", floor):
        assert not roots(path) & (ENGINE | PAGE | {"fastapi"}), ids(path)
        assert rooms_of_modules(path) <= BELOW[floor], ids(path)


@pytest.mark.parametrize("path", [*under("webui.py"), *under("modules", "ui"),
                                  *under("modules", "api")], ids=ids)  # fmt: skip
def test_the_server_side_knows_no_engine(path):
    assert not roots(path) & ENGINE
    assert not rooms_of_modules(path) & {"worker", "async_worker", "patch", "patch_precision"}


@pytest.mark.parametrize("name", TOKENIZER + NAMES)
def test_what_the_token_counter_may_use_needs_the_standard_library_alone(name):
    path = ROOT.joinpath(*name.strip(".").split(".")).with_suffix(".py")
    engine = {name for name in imported(path) if name.split(".")[0] not in sys.stdlib_module_names}
    assert all(name.startswith(TOKENIZER) for name in engine), engine


@pytest.mark.parametrize("name", PREPROCESSORS)
def test_what_the_map_maker_may_use_needs_numpy_and_cv2_alone(name):
    path = ROOT.joinpath(*name.strip(".").split(".")).with_suffix(".py")
    assert roots(path) <= {"numpy", "cv2"} | set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", [*under("modules", "worker"), *under("modules", "async_worker.py"),
                                  *under("modules", "patch.py")], ids=ids)  # fmt: skip
def test_the_worker_knows_no_page(path):
    assert not roots(path) & (PAGE | {"fastapi"})
    assert not rooms_of_modules(path) & {"ui", "api"}


def imported_root(node: ast.expr, known: set[str]) -> bool:
    """Whether an attribute belongs to something that was imported: x, x.y, x.y.z."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id in known


def patches(path: Path) -> set[str]:
    """Attributes that a file sets or deletes on what it imports, by whatever name it has it."""
    nodes = list(ast.walk(tree_of(path)))
    known: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            known |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            known |= {alias.asname or alias.name for alias in node.names}
    for node in nodes:  # name = package.module
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute):
            names = {target.id for target in node.targets if isinstance(target, ast.Name)}
            known |= names if imported_root(node.value, known) else set()
    found = set()
    for node in nodes:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("setattr", "delattr"):
            targets = [ast.Attribute(node.args[0], "?")]
        elif not isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Delete):
            continue
        for target in targets:
            parts = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
            owned = (part for part in parts if isinstance(part, ast.Attribute))
            found |= {ast.unparse(part) for part in owned if imported_root(part.value, known)}
    return found


# The one patch that is wanted, moments of an import and of making the page that end with them, the
# only way to a script that runs before Gradio's, and switches of PyTorch that are there to be set.
WANTED = {
    "modules/patch_precision.py": {
        "openaimodel.timestep_embedding",
        "sampling.ModelSamplingDiscrete._register_schedule",
    },
    "modules/api/server.py": {"inspect.getfile", "routes.App.create_app"},
    "modules/ui/early_script.py": {"routes.templates.env.loader"},
}
SWITCHES = {"torch.backends.cudnn.allow_tf32", "torch.backends.cuda.matmul.allow_tf32"}


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_nothing_is_set_on_what_belongs_to_others(path):
    assert patches(path) - SWITCHES == WANTED.get(ids(path), set())


def test_what_the_patch_finder_finds(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "import a.b as c, d.e\nfrom f import G as H\nm = d.e\nc.x = 1\nm.y, z = 1, 2\n"
        "del H.t\nsetattr(H.u, 'v', 1)\nd.e.w += 1\nself.q = 1\nz.r = 1\n"
    )
    assert patches(path) == {"c.x", "m.y", "H.t", "H.u.?", "d.e.w"}


def test_importing_has_no_side_effect(tmp_path):
    """Every module, imported in one fresh process: no output, thread, file or child."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in FILES
        if path.name not in ("__init__.py", "launch.py")
    ]
    code = f"""
import importlib, sys, threading
sys.dont_write_bytecode = True
written = []
def watch(event, arguments):
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        written.append(str(arguments[0]))
    elif event in ("subprocess.Popen", "os.fork", "socket.connect", "os.mkdir"):
        written.append(event)
import torch, PIL.Image, fastapi, uvicorn
first = threading.active_count()
sys.addaudithook(watch)
from modules.api.server import import_gradio
ours, threads = list(written), threading.active_count()
import_gradio()  # as the server does it, which takes half as long
written.clear()
first += threading.active_count() - threads
for name in {names!r}:
    importlib.import_module(name)
ours += [what for what in written if what not in ("/dev/null",)]
print(ours, threading.active_count() - first)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[] 0", done.stdout
