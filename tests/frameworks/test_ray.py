"""Ray Train with two CPU workers: README's block through prepare_data_loader, and the example of ranks as it is."""

import json
import os
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason="ray is not installed")
pytest.importorskip("ray.train.torch", reason="ray's Train is not installed")

from readme import code_of  # noqa: E402  # isort: skip

EXAMPLES = str(Path(__file__).resolve().parents[2] / "examples")


def worker(config):
    """On a Ray worker: README's block with a small loop, then the example's main."""
    import json

    import ddp
    import ray
    import torch
    from torch.utils.data import DataLoader

    import stprune

    found = []

    def fit(model, loader, sampler, criterion, epochs):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            ids = []
            for index, (x, y) in loader:
                loss = criterion(model(x), y, index)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                ids += index.tolist()
            found.append({"ids": ids, "planned": sampler.plan.indices.tolist(), "batches": len(loader)})

    torch.manual_seed(0)
    x = torch.randn(101, 3, 1)
    train_set = torch.utils.data.TensorDataset(x, x * 2)
    names = {"stprune": stprune, "ray": ray, "DataLoader": DataLoader, "train_set": train_set, "fit": fit}
    exec(config["code"], names)
    names["train_worker"]({"epochs": 3, "model": torch.nn.Linear(1, 1)})
    rank = ray.train.get_context().get_world_rank()
    with open(f"{config['folder']}/block {rank}", "w") as file:
        json.dump(found, file)
    ddp.main(["--epochs", "3", "--days", "6", "--batch", "32", "--report", f"{config['folder']}/example"])


def test_the_block_and_the_example_train_on_every_worker(tmp_path):
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    paths = [EXAMPLES, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.cloudpickle.register_pickle_by_value(__import__(__name__))
    ray.init(
        num_cpus=3, include_dashboard=False, logging_level="ERROR", log_to_driver=False, runtime_env={"env_vars": environment}
    )
    try:
        TorchTrainer(
            worker,
            train_loop_config={"code": code_of("Ray Train"), "folder": str(tmp_path)},
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(storage_path=str(tmp_path / "ray")),
        ).fit()
    finally:
        ray.shutdown()
    for epochs in ([json.loads((tmp_path / f"block {rank}").read_text()) for rank in range(2)], examples_of(tmp_path)):
        assert len(epochs[0]) == 3
        for one, other in zip(*epochs, strict=True):
            ids, planned = one["ids"] + other["ids"], one["planned"]
            planned = planned if isinstance(planned, int) else len(planned)
            assert len(set(ids)) == planned
            assert len(ids) == planned + planned % 2
            if isinstance(one["planned"], list):
                assert sorted(set(ids)) == one["planned"] == other["planned"]
                assert one["batches"] == other["batches"] == -(-len(one["ids"]) // 16)


def examples_of(folder):
    found = [json.loads((folder / f"example.{rank}").read_text()) for rank in range(2)]
    assert [each["world"] for each in found] == [2, 2]
    return [each["epochs"] for each in found]
