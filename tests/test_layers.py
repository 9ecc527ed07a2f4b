"""Imports go one way through the rooms of the package."""

import ast
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "stprune"

ALLOWED = {
    # room: rooms of ours it may import
    "reference": {"reference"},
    "ops": {"ops", "reference", "kernels"},
    "schedule": set(),
    "methods": {"ops", "methods"},
    "exchange": set(),
    "table": {"ops", "exchange"},
    "quota": {"ops", "methods"},
    "plan": {"ops", "methods", "quota"},
    "plan_memory": {"ops"},
    "planner": {"ops", "methods", "plan", "plan_memory", "quota", "ranks", "schedule", "table"},
    "passes": {"ops", "plan"},
    "ranks": {"ops", "exchange"},
    "nodes": {"ops", "reference", "nodes", "exchange"},
    "granularity": {"ops", "nodes", "ranks"},
    "running": {"ops", "plan", "table"},
    "sharded": {
        "ops",
        "reference",
        "exchange",
        "methods",
        "nodes",
        "plan",
        "plan_memory",
        "planner",
        "ranks",
        "sharded",
        "table",
    },
    "epochs": {"ops", "granularity", "passes", "plan", "plan_memory", "planner", "ranks", "running", "table"},
    "sampler": {
        "ops",
        "epochs",
        "plan_memory",
        "planner",
        "quota",
        "methods",
        "schedule",
        "nodes",
        "granularity",
        "ranks",
        "passes",
        "sharded",
    },
    "scaling": {"ops", "reference"},
    "criterion": {"ops", "sampler"},
    "pruned_mean": {"ops", "criterion", "sampler"},
    "loss": {"ops", "reference", "scaling", "criterion", "sampler"},
    "batch_queue": {"ops", "passes", "sampler"},
    "prefetch": set(),
    "loader": {"ops", "passes", "prefetch", "reference", "sampler", "windows"},
    "windows": {"ops", "reference", "windows"},
    "headroom": {"ops", "reference", "headroom"},
    "data": {"ops", "data"},
    "models": {"models", ""},
    "integrations": {"integrations", "checkpoint", ""},
    "checkpoint": {"ops"},
    "study": {"study", "models", ""},
    "cli": {"study", ""},
    "__main__": {"cli"},
    "testing": {"reference", ""},
    "_contract": set(),
    "_load": {"_contract", "ops"},
}


def rooms_imported(path):
    """Rooms of stprune that a file imports, also for types or inside a function; "" is the public API."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
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


def test_kernels_import_torch_triton_and_each_other_alone():
    files = {path.stem: path for path in (ROOT / "kernels").rglob("*.py")}
    for path in files.values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert (node.level, node.module in files) == (1, True), path
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                for name in names:
                    head = name.partition(".")[0]
                    assert head in {"torch", "triton"} | sys.stdlib_module_names, f"{path} imports {name}"


def test_compiled_code_uses_only_stable_headers():
    for path in (ROOT / "csrc").rglob("*"):
        if path.suffix in {".cpp", ".cu", ".h"}:
            for line in path.read_text().splitlines():
                if line.startswith("#include <torch/") or line.startswith("#include <ATen") or line.startswith("#include <c10"):
                    # The C shim beneath the stable ABI is the only way to the current CUDA stream before torch 2.13.
                    stable = ("torch/csrc/stable/", "torch/headeronly/", "torch/csrc/inductor/aoti_torch/c/shim.h")
                    assert line.startswith(tuple(f"#include <{header}" for header in stable)), f"{path}: {line}"
                assert "Python.h" not in line, path


def modules_imported(path):
    """Modules of stprune that a file imports, also for types or inside a function."""

    def file_of(name):
        place = PACKAGE.parent / name.replace(".", "/")
        files = [place.with_suffix(".py"), place / "__init__.py"] if name.startswith("stprune.") else []
        return next((file for file in files if file.is_file()), None)

    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from {file_of(f"{node.module}.{alias.name}") or file_of(node.module) for alias in node.names}
        elif isinstance(node, ast.Import):
            yield from {file_of(alias.name) for alias in node.names}


def test_no_module_imports_in_a_circle():
    """Not even for types, where an import at run time would fail."""
    imports = {path: set(modules_imported(path)) - {path, None} for path in PACKAGE.rglob("*.py")}
    done = set()

    def visit(path, way):
        assert path not in way, " -> ".join(str(p.relative_to(PACKAGE)) for p in [*way, path])
        if path not in done:
            for other in imports[path]:
                visit(other, [*way, path])
            done.add(path)

    for path in imports:
        visit(path, [])


def test_files_stay_small():
    for path in PACKAGE.rglob("*.py"):
        assert lines_of_code(path) <= 225, path
    for path in (path for path in (ROOT / "csrc").rglob("*.cpp") if not path.stem.endswith("kernels")):
        assert len(path.read_text().splitlines()) <= 400, path


def lines_of_code(path):
    """Lines of a Python file that are neither blank, comment nor docstring."""
    tree = ast.parse(path.read_text())
    docs = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docs |= set(range(node.lineno, node.end_lineno + 1))
    lines = enumerate(path.read_text().splitlines(), 1)
    return sum(1 for number, line in lines if number not in docs and line.strip() and not line.strip().startswith("#"))


def test_no_global_random_state_and_no_patching():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        for word in ("np.random.seed", "torch.manual_seed", "random.seed("):
            assert word not in text or "study" in path.parts, f"{path}: {word}"
