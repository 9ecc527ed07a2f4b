"""PyTorch Geometric Temporal's index batching, by its own loader of METR-LA, on a small made series."""

import importlib.util
import sys
import types

import example_checks
import pytest
import torch
from readme import code_of

pytest.importorskip("torch_geometric", reason="PyTorch Geometric is not installed")
pytest.importorskip("dask.array", reason="Dask, which index batching imports, is not installed")
from torch.utils.data import DataLoader

import stprune

PACKAGE = "torch_geometric_temporal"


@pytest.fixture(scope="module")
def example():
    """The example. The package imports all its models, one of which needs torch_sparse, which no registry has compiled; where
    that is missing the package's files for index batching are imported without the models."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None:
        pytest.skip("PyTorch Geometric Temporal is not installed")
    if importlib.util.find_spec("torch_sparse") is None:
        sys.modules[PACKAGE] = types.ModuleType(PACKAGE)
        sys.modules[PACKAGE].__path__ = list(package.submodule_search_locations)
    yield example_checks.example("pyg_temporal")
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        del sys.modules[name]


def test_the_example(example, capsys):
    example.main(["--epochs", "3", "--rows", "400"])
    # 400 rows have 377 windows, of which 264 are for training: epochs of 264, 132 and, annealed, 264.
    lines = [line.split(":")[1].split(", validation")[0].strip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "264 of 264 planned windows, 5 steps",
        "132 of 132 planned windows, 8 steps",
        "264 of 264 planned windows, 13 steps",
    ]


def test_readme(example, tmp_path):
    example.write_data(tmp_path, rows=300, num_nodes=4)
    data = example.METRLADatasetLoader(raw_data_dir=str(tmp_path), index=True)
    names = {"stprune": stprune, "DataLoader": DataLoader, "data": data}
    exec(code_of("PyTorch Geometric Temporal"), names)
    sampler, weight = names["sampler"], torch.ones(1, requires_grad=True)
    sampler.set_epoch(1)
    delivered, plain = [], data.get_index_dataset()[0].dataset
    for index, (x, y) in names["train"]:
        delivered += index.tolist()
        for each, i in enumerate(index.tolist()):
            assert torch.equal(x[each], plain[i][0])
            assert torch.equal(y[each], plain[i][1])
        names["criterion"](weight * x, y, index).backward()
    assert sorted(delivered) == sorted(sampler.plan.indices.tolist())
    assert sampler.table.num_trained == len(sampler.plan)
