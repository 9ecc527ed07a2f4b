"""The CUDA library as nvcc compiled it, on a simulated GPU, against the references bit for bit.

tests/test_cuda_host.py runs the same sources compiled as C++. Here run nvcc's launchers and its PTX: intrinsics, barriers,
grids, arguments, aligned vector loads, in orders of threads that the kernels do not choose (gpu/simulator.cpp). Needs the
objects of a build, which .ci/cuda.sh names in STPRUNE_CUDA_OBJECTS; it takes the PTX out of them.
"""

import itertools
import os
import pathlib
import re
import subprocess

import pytest
import torch
from engine_cases import REFERENCES, assert_all_same, inputs, outcome
from stand_in import COSTS
from test_cuda_host import FEW_SIZES, INPUTS, Kernels, taken, with_types

ROOT = pathlib.Path(__file__).resolve().parents[1]
OBJECTS = os.environ.get("STPRUNE_CUDA_OBJECTS")
pytestmark = pytest.mark.skipif(OBJECTS is None, reason="no objects of nvcc: .ci/cuda.sh makes them")


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    device = pytest.importorskip("gpu.device", reason="triton is not installed, whose cuobjdump takes the PTX out")
    from triton_kernels import CUOBJDUMP

    objects = sorted(pathlib.Path(OBJECTS).glob("*.cu.o"))
    names = sorted(set(re.findall(r"\b(stprune_cuda_\w+)\(", (ROOT / "csrc" / "cuda" / "launchers.h").read_text())))
    gpu = device.Gpu(device.build(tmp_path_factory.mktemp("gpu"), objects, names), names)
    with_types(gpu.library)
    for one in objects:
        listing = subprocess.run([CUOBJDUMP, "-ptx", one], capture_output=True, text=True, check=True).stdout
        gpu.define(listing[listing.index(".version") :])
    return gpu


class OnGpu(Kernels):
    """As in test_cuda_host; kernels may use no memory but what they are given, and read no scratch they have not written."""

    def __init__(self, gpu):
        super().__init__(gpu.library)
        self.gpu, self.made = gpu, {}
        gpu.forget()

    def empty(self, shape, dtype=torch.int64):
        tensor = super().empty(shape, dtype)
        self.made[tensor.data_ptr()] = tensor
        self.gpu.allow(tensor.data_ptr(), tensor.nbytes, known=False)
        return tensor

    def copied(self, tensor):
        tensor = super().copied(tensor)
        self.gpu.allow(tensor.data_ptr(), tensor.nbytes)
        return tensor

    def at(self, tensor):
        if tensor.data_ptr() not in self.made:
            self.gpu.allow(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        return super().at(tensor)

    def error(self):
        return self.gpu.error


# Slow inputs, by op: every so many of them are run.
STEPS = {"topk": 60, "inclusion_budget": 60, "select": 20, "draw_weighted": 20, "draw_threshold": 20, "plan_budget": 21}


@pytest.mark.parametrize("name", INPUTS)
def test_matches_the_reference(gpu, name):
    op, every = inputs(name, FEW_SIZES)
    first = sum(name.encode()) % 5  # not the same sizes of every input
    for turn, arguments in enumerate(itertools.islice(taken(op, every), first, None, STEPS.get(op, 3))):
        gpu.set(seed=(0, 5, 6)[turn % 3], processors=(2, 1, 5)[turn % 3])
        assert_all_same(outcome(op, getattr(OnGpu(gpu), op), arguments), outcome(op, REFERENCES[op], arguments))


def test_wrong_arguments_stop_the_kernels(gpu):
    gpu.set()
    with pytest.raises(AssertionError, match="draw: count must be the sum"):
        OnGpu(gpu).draw(torch.full((100,), 0.5), 60, 0, 0)
    for bad in (-1, 5):
        with pytest.raises(AssertionError, match=r"gather_nodes: node must lie in \[0, num_nodes\)"):
            OnGpu(gpu).gather_nodes(torch.rand(1, 1, 5, 1), torch.tensor([[0, bad]]))
        with pytest.raises(AssertionError, match=r"gather_nodes: node must lie in \[0, num_nodes\)"):
            OnGpu(gpu).gather_nodes_backward(torch.rand(1, 1, 2, 1), torch.tensor([[0, bad]]), 5)


def test_views_that_begin_at_any_element(gpu):
    """Vector loads need aligned addresses, which a view does not have."""
    generator = torch.Generator().manual_seed(0)
    for dtype, offset in itertools.product((torch.float32, torch.float64), (1, 2, 3)):
        gpu.set(seed=5)
        scores = torch.rand(5003, generator=generator, dtype=dtype)[offset:]
        for op, arguments in {
            "select": (scores, 1234),
            "finite_stats": (scores,),
            "check_range": (scores, 1.0, True),
            "draw_threshold": (scores, 0.5, True, 1, 2),
            "inclusion_budget": (scores, 0.5, 1000, 0.1),
            "draw": (scores / 2, None, 1, 2),
            "shuffle": (scores, 1, 2),
        }.items():
            assert_all_same(outcome(op, getattr(OnGpu(gpu), op), arguments), outcome(op, REFERENCES[op], arguments))


def test_bytes_moved_are_those_of_the_readme(gpu):
    n = 300_000
    scores = torch.rand(n, generator=torch.Generator().manual_seed(0))
    readme = (ROOT / "csrc" / "cuda" / "README.md").read_text()
    for name, op, arguments in (
        ("`select`, half of them", "select", (scores, n // 2)),
        ("`select`, a tenth", "select", (scores, n // 10)),
        ("`topk`, a tenth", "topk", (scores, n // 10, False)),
        ("`draw`, half of them", "draw", (torch.full((n,), 0.5), n // 2, 1, 2)),
        ("`draw_threshold`, half of them", "draw_threshold", (scores, 0.5, True, 1, 2)),
        ("`draw_weighted`, a tenth", "draw_weighted", (scores + 0.1, n // 10, 1, 2, False)),
        ("`plan_budget`, half of them", "plan_budget", (scores, 0.5, n // 2, 0.1, None, None, 1, 2)),
    ):
        gpu.set(processors=8)
        getattr(OnGpu(gpu), op)(*arguments)
        reads, writes = (moved / scores.nbytes for moved in gpu.traffic)
        assert f"| {name} | {reads:.1f} | {writes:.1f} |" in readme


@pytest.mark.parametrize("name", ["select", "select ties", "draw_weighted", "inclusion_budget", "draw"])
def test_rounds_of_several_blocks(gpu, name):
    """Of more keys than one block of a kernel of rounds works on at a time."""
    n = 140_000
    scores = torch.rand(n, generator=torch.Generator().manual_seed(0))
    arguments = {
        "select": (scores, n // 2),
        "select ties": ((16 * scores).floor(), n // 2),
        "draw_weighted": (scores + 0.1, n // 2, 1, 2, False),
        "inclusion_budget": (scores, 0.5, n / 2, 0.1),
        "draw": (scores, round(float(scores.double().sum())), 1, 2),
    }[name]
    op = name.split()[0]
    gpu.set(seed=5, processors=5)
    assert_all_same(outcome(op, getattr(OnGpu(gpu), op), arguments), outcome(op, REFERENCES[op], arguments))


def test_launches_and_waits_are_those_that_plans_are_counted_by(gpu):
    n = 140_000
    scores = torch.rand(n, generator=torch.Generator().manual_seed(0))
    for op, arguments in {
        "finite_stats": (scores,),
        "shuffle": (torch.arange(n), 1, 2),
        "count_nonfinite": (scores, torch.zeros(n, dtype=torch.uint8)),
    }.items():
        gpu.set(processors=8)
        getattr(OnGpu(gpu), op)(*arguments)
        assert (gpu.launches, gpu.waits) == COSTS[op]
