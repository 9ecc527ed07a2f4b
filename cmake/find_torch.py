"""Print torch's include directory without importing torch (an import costs seconds and may fail in a build sandbox)."""

import importlib.util
import os
import pathlib
import sys
import sysconfig

HEADER = pathlib.Path("include/torch/csrc/stable/library.h")


def candidates() -> list[pathlib.Path]:
    """Folders that may hold the torch package, nearest first.

    Under pip's build isolation the interpreter's own path is an empty overlay, so the environment that asked for the
    build is looked up as well: its site-packages as sysconfig knows them.
    """
    found = []
    if os.environ.get("STPRUNE_TORCH_DIR"):
        found.append(pathlib.Path(os.environ["STPRUNE_TORCH_DIR"]))
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin:
        found.append(pathlib.Path(spec.origin).parent)
    for key in ("purelib", "platlib"):
        found.append(pathlib.Path(sysconfig.get_path(key)) / "torch")
    return found


def main() -> int:
    for folder in candidates():
        if (folder / HEADER).is_file():
            print(folder / "include")
            return 0
    sys.stderr.write(
        "stprune needs torch >= 2.10 in the environment it is built for, and found no torch headers.\n"
        "Install torch first, then stprune without build isolation:\n"
        "    pip install torch\n"
        "    pip install --no-build-isolation stprune   (needs scikit-build-core, cmake and ninja)\n"
        "or set STPRUNE_TORCH_DIR to the folder of the installed torch package.\n"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
