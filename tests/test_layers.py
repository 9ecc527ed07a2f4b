"""Imports go one way through the rooms of the package."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "stprune"

ALLOWED = {
    # room: rooms of ours it may import
    "reference": {"reference"},
    "ops": {"ops", "reference", "kernels"},
    "schedule": set(),
    "methods": {"ops", "methods"},
    "table": {"ops"},
    "plan": {"ops", "methods"},
    "plan_memory": {"ops", "methods", "plan"},
    "batches": set(),
    "uniform_plan": {"ops"},
    "unscored_table": {"ops"},
    "ranks": {"ops"},
    "laws": {"ops", "laws"},
    "granularity": {"ops", "laws"},
    "resume": {"plan", "uniform_plan", "unscored_table"},
    "sampler": {
        "ops",
        "table",
        "plan",
        "plan_memory",
        "methods",
        "schedule",
        "batches",
        "laws",
        "granularity",
        "ranks",
        "uniform_plan",
        "unscored_table",
        "resume",
    },
    "scaling": {"ops", "reference"},
    "loss": {"ops", "sampler", "scaling"},
    "prefetch": set(),
    "loader": {"ops", "prefetch", "sampler", "windows"},
    "windows": {"ops", "reference", "windows"},
    "headroom": {"ops", "reference", "headroom"},
    "data": {"ops", "data"},
    "models": {"models", ""},
    "demo": {"demo", "models", ""},
    "cli": {"demo", ""},
    "testing": {"reference", ""},
    "_load": set(),
}


def rooms_imported(path):
    """Rooms of stprune that a file imports at run time; "" is the public API."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module] if node.module != "stprune" else [f"stprune.{a.name}" for a in node.names]
        for name in names:
            head, _, rest = name.partition(".")
            if head == "stprune":
                room = rest.partition(".")[0]
                yield room if room == "kernels" or (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file() else ""


def test_every_room_imports_only_what_it_may():
    files = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    assert len(files) > 20
    for path in files:
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        assert room in ALLOWED, f"{path}: a room without a rule"
        for imported in rooms_imported(path):
            assert imported in ALLOWED[room], f"{path} imports {imported or 'the public API'}"


def test_nothing_shipped_imports_testing():
    for path in PACKAGE.rglob("*.py"):
        assert "testing" not in set(rooms_imported(path)), path


def test_kernels_import_nothing_of_ours():
    for path in (ROOT / "kernels").rglob("*.py"):
        assert not set(rooms_imported(path)), path


def test_compiled_code_uses_only_stable_headers():
    for path in (ROOT / "csrc").rglob("*"):
        if path.suffix in {".cpp", ".cu", ".h"}:
            for line in path.read_text().splitlines():
                if line.startswith("#include <torch/") or line.startswith("#include <ATen") or line.startswith("#include <c10"):
                    # The C shim beneath the stable ABI is the only way to the current CUDA stream before torch 2.13.
                    stable = ("torch/csrc/stable/", "torch/headeronly/", "torch/csrc/inductor/aoti_torch/c/shim.h")
                    assert line.startswith(tuple(f"#include <{header}" for header in stable)), f"{path}: {line}"
                assert "Python.h" not in line, path


def test_files_stay_small():
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "csrc").rglob("*.cpp")]:
        assert len(path.read_text().splitlines()) <= 400, path


def test_no_global_random_state_and_no_patching():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        for word in ("np.random.seed", "torch.manual_seed", "random.seed("):
            assert word not in text or path.parts[-2] == "demo", f"{path}: {word}"
