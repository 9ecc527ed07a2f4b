"""Two real processes, as torchrun starts them."""

import os
import socket

import torch
from torch import multiprocessing

WORLD = 2


def _process(rank, work, folder, port, arguments):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.save(work(rank, folder, *arguments), f"{folder}/result of rank {rank}")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def on_two_processes(work, folder, *arguments):
    """What `work(rank, folder, *arguments)`, a function of a module, returns on each of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_process, (work, folder, port, arguments), nprocs=WORLD)
    return [torch.load(f"{folder}/result of rank {rank}", weights_only=True) for rank in range(WORLD)]
