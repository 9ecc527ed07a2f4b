"""Thousands of clients, each with a sampler of its own."""

from own_process import run as run_alone

BYTES = """
import gc
import torch, stprune

def memory():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def client():
    sampler = stprune.PruningSampler(100, num_epochs=None, keep_ratio=0.5, process_group="none")
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for ids in sampler.batches(20):
            sampler.update(torch.from_numpy(ids), torch.ones(len(ids)))
    sampler.finish()
    return sampler

torch.set_num_threads(1)
first = [client() for _ in range(500)]
before = memory()
clients = [client() for _ in range(3000)]
print((memory() - before) / len(clients))
"""


def test_a_client_takes_a_few_thousand_bytes():
    """100 samples: 500 bytes of table, 600 of plan, the rest is objects; 11,500 where each kept its plan's memory."""
    assert float(run_alone(BYTES)) < 9_000
