"""Memory does not grow: 5,000 steps of every op and of real loops, in processes of their own (benchmarks/soak.py)."""

import importlib
import pathlib
import sys

import pytest

from stprune import ops

BENCHMARKS = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))
try:
    soak = importlib.import_module("soak")
finally:
    sys.path.remove(str(BENCHMARKS))


def test_every_public_op_is_run():
    public = {name for name in ops.__all__ if not isinstance(getattr(ops, name), type)}
    assert public == set(soak.ops())


# PyTorch alone is there to compare with, and compiling is slow: one compiled loop here, the other in the long form.
LOOPS = [name for name in soak.jobs() if "loop" in name and name not in ("loop plain", "compiled loop windows")]


@pytest.mark.parametrize("job", ["op ", *(pytest.param(name, marks=pytest.mark.slow) for name in LOOPS)])
def test_memory_does_not_grow(job):
    rows = soak.in_a_process(job)
    assert rows
    assert all(row["steps"] >= soak.STEPS for row in rows)
    assert [row for row in rows if row["mib_per_5000_steps"] > soak.LIMIT_MIB] == []
