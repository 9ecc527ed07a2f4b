"""gather_nodes against plain indexing, and its gradient against autograd's."""

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


# errors ---------------------------------------------------------------------------------------------------

X = torch.zeros(2, 3, 5, 1)
NODE = torch.tensor([[0, 4], [1, 1]])


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
