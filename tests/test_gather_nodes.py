"""gather_nodes against plain indexing, and its gradient against autograd's."""

import os
import subprocess
import sys

import pytest
import torch

import stprune
from stprune.reference import gather_nodes as reference

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OTHERS = (torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.complex128)


def draw(samples, nodes, m, seed=0, distinct=True):
    generator = torch.Generator().manual_seed(seed)
    if not distinct:
        return torch.randint(nodes, (samples, m), generator=generator)
    return torch.stack([torch.randperm(nodes, generator=generator)[:m] for _ in range(samples)])


def values(shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 50
    return x.to(dtype) if not dtype.is_complex else torch.complex(x, x.flip(0)).to(dtype)


def by_slicing(x, node, dim=2):
    return torch.stack([row.index_select(dim - 1, ids) for row, ids in zip(x, node, strict=True)])


# matches slicing and the reference ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, *OTHERS], ids=str)
def test_equals_slicing(dtype):
    for channels in (1, 2, 3, 5, 64):
        x = values((3, 4, 7, channels), dtype)
        for node in (draw(3, 7, 5), draw(3, 7, 20, distinct=False)):
            out = stprune.gather_nodes(x, node)
            assert out.dtype == dtype
            assert out.is_contiguous()
            assert torch.equal(out, by_slicing(x, node))
            assert torch.equal(reference.gather_nodes(x, node), out)


@pytest.mark.parametrize(
    ("shape", "dim"), [((3, 7), 1), ((3, 7), -1), ((3, 4, 7), 2), ((3, 7, 4), 1), ((3, 2, 4, 7, 5), 3), ((3, 4, 5, 7), -1)]
)
def test_any_shape_and_dim(shape, dim):
    x, node = values(shape), draw(3, 7, 4)
    positive = dim % len(shape)
    assert torch.equal(stprune.gather_nodes(x, node, dim=dim), by_slicing(x, node, positive))


def test_large_enough_for_threads():
    x, node = values((8, 12, 300, 3)), draw(8, 300, 90)
    assert torch.equal(stprune.gather_nodes(x, node), by_slicing(x, node))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_backward_matches_reference(dtype, channels):
    node = draw(3, 9, 30, distinct=False)
    grad = values((3, 4, 30, channels), dtype)
    actual = torch.ops.stprune.gather_nodes_backward(grad, node, 9)
    expected = reference.gather_nodes_backward(grad, node, 9)
    assert torch.equal(actual, expected)
    exact = reference.gather_nodes_backward(grad.double(), node, 9)
    torch.testing.assert_close(
        actual.double(), exact, rtol=torch.finfo(dtype).eps, atol=2e-3 if dtype != torch.float64 else 1e-10
    )


# edges ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "m"),
    [((0, 4, 7, 2), 3), ((3, 4, 7, 2), 0), ((3, 0, 7, 2), 3), ((3, 4, 7, 0), 3), ((3, 4, 0, 2), 0), ((1, 1, 1, 1), 1)],
)
def test_empty_and_one(shape, m):
    x = torch.ones(shape, requires_grad=True)
    out = stprune.gather_nodes(x, torch.zeros(shape[0], m, dtype=torch.int64))
    assert out.shape == (*shape[:2], m, shape[3])
    out.sum().backward()
    assert x.grad.shape == x.shape
    assert x.grad.sum() == out.numel()


def test_all_nodes_in_order_is_the_input():
    x = values((3, 4, 7, 2))
    assert torch.equal(stprune.gather_nodes(x, torch.arange(7).expand(3, 7)), x)


def test_nan_and_infinity_pass():
    x = torch.tensor([[float("nan"), float("inf"), -0.0]]).reshape(1, 1, 3, 1)
    out = stprune.gather_nodes(x, torch.tensor([[2, 1, 0]])).flatten()
    assert torch.equal(out.view(torch.int32), x.flatten().flip(0).view(torch.int32))


def test_layouts_and_nothing_written():
    node = draw(3, 7, 4)
    x = values((3, 4, 7, 2))
    expected = by_slicing(x, node)
    misaligned = torch.zeros(x.numel() + 1)[1:].view(x.shape).copy_(x)
    inputs = {
        "strided": torch.zeros(3, 4, 7, 4)[..., ::2].copy_(x),
        "permuted": x.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0),
        "misaligned": misaligned,
        "wide rows": torch.zeros(3, 4, 9, 2)[:, :, 1:8].copy_(x),
    }
    for name, y in inputs.items():
        before = y.clone()
        assert torch.equal(stprune.gather_nodes(y, node), expected), name
        assert torch.equal(y, before)
    assert torch.equal(stprune.gather_nodes(x, node.t().contiguous().t()), expected)
    assert torch.equal(node, draw(3, 7, 4))
    conjugate = values((3, 4, 7, 2), torch.complex64).conj()
    assert torch.equal(stprune.gather_nodes(conjugate, node), by_slicing(conjugate.resolve_conj(), node))


def test_overlapping_windows_of_one_series():
    """Windows that share memory are read in place: strides of zero and overlaps give the right values."""
    series = values((20, 7, 2))
    windows = series.unfold(0, 4, 3).permute(0, 3, 1, 2)  # [6, 4, 7, 2]
    node = draw(6, 7, 5)
    assert torch.equal(stprune.gather_nodes(windows, node), by_slicing(windows.contiguous(), node))
    same = series[:4].expand(6, 4, 7, 2)
    assert torch.equal(stprune.gather_nodes(same, node), by_slicing(same.contiguous(), node))


# errors ---------------------------------------------------------------------------------------------------

X = torch.zeros(2, 3, 5, 1)
NODE = torch.tensor([[0, 4], [1, 1]])


@pytest.mark.parametrize(
    ("x", "node", "options", "error", "message"),
    [
        ([1.0], NODE, {}, TypeError, "x must be a tensor, got list"),
        (X, [[0], [1]], {}, TypeError, "node must be a tensor, got list"),
        (X, NODE.int(), {}, TypeError, "node must be int64, got torch.int32"),
        (X, NODE.double(), {}, TypeError, "node must be int64, got torch.float64"),
        (X, NODE[0], {}, ValueError, r"node must have shape \[B, m\] with B = 2, got \(2,\)"),
        (X, NODE[:1], {}, ValueError, r"node must have shape \[B, m\] with B = 2, got \(1, 2\)"),
        (X[0, 0, 0], NODE, {}, ValueError, r"x must have at least two dimensions, got shape \(1,\)"),
        (X, NODE, {"dim": 0}, ValueError, "dim must not be the sample dimension 0, got 0"),
        (X, NODE, {"dim": -4}, ValueError, "dim must not be the sample dimension 0, got -4"),
        (X, NODE, {"dim": 4}, ValueError, r"dim must lie in \[-4, 3\], got 4"),
        (X[:, :, :, 0][:, 0], NODE, {}, ValueError, r"dim must lie in \[-2, 1\], got 2"),
        (X, NODE, {"dim": 2.0}, TypeError, "dim must be an integer, got 2.0"),
        (X, NODE + 1, {}, ValueError, r"node must lie in \[0, 4\], got 5"),
        (X, NODE - 1, {}, ValueError, r"node must lie in \[0, 4\], got -1"),
        (X[:, :, :0], NODE, {}, ValueError, r"node must be empty where x has no nodes, got shape \(2, 2\)"),
        (X, NODE.to("meta"), {}, RuntimeError, "node must be on the device of x, cpu, got meta"),
    ],
)
def test_errors(x, node, options, error, message):
    with pytest.raises(error, match=f"^gather_nodes: {message}"):
        stprune.gather_nodes(x, node, **options)


def test_the_kernels_read_nothing_out_of_range():
    """Where the door cannot look at the ids (inside torch.compile), the kernel refuses them."""
    for bad in (NODE + 1, NODE - 1, NODE + 2**62):
        with pytest.raises(RuntimeError):
            torch.ops.stprune.gather_nodes(X, bad)
        with pytest.raises(RuntimeError):
            torch.ops.stprune.gather_nodes_backward(torch.zeros(2, 3, 2, 1), bad, 5)


# gradient -------------------------------------------------------------------------------------------------


def test_gradcheck_with_repeated_nodes():
    x = values((2, 3, 4, 2), torch.float64).requires_grad_()
    node = torch.tensor([[3, 0, 3], [1, 1, 1]])
    assert torch.autograd.gradcheck(lambda x: stprune.gather_nodes(x, node), (x,))
    assert torch.autograd.gradgradcheck(lambda x: stprune.gather_nodes(x, node), (x,))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_gradient(dtype):
    node = torch.tensor([[3, 0, 3], [1, 1, 1]])
    grads = []
    for gather in (stprune.gather_nodes, by_slicing):
        x = values((2, 3, 4, 2), dtype).requires_grad_()
        gather(x, node).abs().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


def test_gradient_equals_slicing():
    node = draw(3, 7, 4)
    grads = []
    for gather in (stprune.gather_nodes, by_slicing):
        x = values((3, 4, 7, 2)).requires_grad_()
        (gather(x, node) ** 2).sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


# torch ----------------------------------------------------------------------------------------------------


def test_opcheck():
    node = draw(3, 7, 4)
    for x in (values((3, 4, 7, 2)), values((3, 4, 7, 2)).requires_grad_(), values((3, 4, 7, 2), torch.bfloat16)):
        torch.library.opcheck(torch.ops.stprune.gather_nodes, (x, node))
        grad = values((3, 4, 4, 2), x.dtype).requires_grad_(x.requires_grad)
        torch.library.opcheck(torch.ops.stprune.gather_nodes_backward, (grad, node, 7))
    torch.library.opcheck(torch.ops.stprune.gather_nodes, (values((3, 4, 9, 2))[:, :, 1:8], node))


def test_traces_without_a_break():
    x, node = values((3, 4, 7, 2)), draw(3, 7, 4)
    compiled = torch.compile(lambda x: stprune.gather_nodes(x, node) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), by_slicing(x, node) * 2)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_same_bits_for_any_number_of_threads(dtype, threads):
    x, node = values((7, 60, 300, 2), dtype), draw(7, 300, 900, distinct=False)
    results = []
    for count in (1, 2, 3):
        threads(count)
        y = x.clone().requires_grad_()
        out = stprune.gather_nodes(y, node)
        (out * out.detach()).sum().backward()
        results.append((out.detach(), y.grad))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_without_the_compiled_library():
    code = """
import torch, stprune
assert not stprune.library_status()["_C"].loaded
x = torch.arange(24.0).reshape(2, 1, 4, 3).requires_grad_()
out = stprune.gather_nodes(x, torch.tensor([[3, 3], [0, 1]]))
assert torch.equal(out[0, 0, 1], x[0, 0, 3]) and torch.equal(out[1, 0], x[1, 0, :2])
out.sum().backward()
assert x.grad[..., 0].tolist() == [[[0, 0, 0, 2]], [[1, 1, 0, 0]]]
try:
    stprune.gather_nodes(x, torch.tensor([[3, 4], [0, 1]]))
except ValueError as error:
    assert "got 4" in str(error)
    print("done")
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "STPRUNE_DISABLE_NATIVE": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert result.stdout == "done\n"
