"""Dask starts the processes: README's block, and the example of ranks, on the two workers of a real cluster."""

import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

distributed = pytest.importorskip("distributed", reason="dask's distributed is not installed")

import stprune  # noqa: E402

from rank_processes import free_port  # noqa: E402  # isort: skip
from readme import code_of  # noqa: E402  # isort: skip

EXAMPLES = str(Path(__file__).resolve().parents[2] / "examples")


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Two workers, each a process of its own."""
    folder = str(tmp_path_factory.mktemp("dask"))
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=folder)
    with cluster, distributed.Client(cluster) as client:
        yield client


def test_the_block_runs_the_script_on_every_worker(client):
    examples = EXAMPLES

    def main():
        import sys

        sys.path.insert(0, examples)
        import ddp

        return ddp.main(["--epochs", "3", "--days", "6", "--batch", "32"])

    names = {"os": os, "urlsplit": urlsplit, "client": client, "main": main, "port": free_port()}
    exec(code_of("Dask"), names)
    first, second = client.gather(names["jobs"])
    assert [(each["world"], each["rank"]) for each in (first, second)] == [(2, 0), (2, 1)]
    for one, other in zip(first["epochs"], second["epochs"], strict=True):
        ids = one["ids"] + other["ids"]
        assert len(set(ids)) == one["planned"]
        assert len(ids) == one["planned"] + one["planned"] % 2
    assert [each["planned"] for each in first["epochs"]] == [265, 132, 265]
    assert "ddp" not in sys.modules  # it ran over there
    assert stprune.PruningSampler(265, num_epochs=3).num_replicas == 1
