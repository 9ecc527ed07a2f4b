"""Real processes with torch.distributed on gloo: they run the cases of a module, or one function as torchrun starts it."""

import datetime
import importlib
import os
import pathlib
import socket
import sys
import time

import torch
from torch import distributed, multiprocessing

TIMEOUT = datetime.timedelta(seconds=60)
WORLD = 2


def process(rank, folder, module, cases):
    """Run the cases of a module in which this rank takes part, each in a process group of its own."""
    torch.set_num_threads(1)
    known = importlib.import_module(module).CASES
    for name in cases:
        world, case = known[name]
        if rank >= world:
            continue

        def start(name=name, world=world):
            store = distributed.FileStore(f"{folder}/{name}", world)
            distributed.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=TIMEOUT)
            return pathlib.Path(folder)

        try:
            result = case(rank, start)
        except Exception as error:  # a case's fault is its own test's
            result = f"{type(error).__name__}: {error}"
        torch.save(result, f"{folder}/{name} on {rank}")
        if distributed.is_initialized():
            distributed.destroy_process_group()


def results(module, folder, world, limit=100):
    """What each rank found, by case; of a rank that did not end a case, "the process ended"."""
    cases = importlib.import_module(module).CASES
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=process, args=(rank, str(folder), module, list(cases))) for rank in range(world)]
    for each in processes:
        each.start()
    end = time.monotonic() + limit
    for each in processes:
        each.join(max(0.0, end - time.monotonic()))
        if each.is_alive():
            print("a process was still running", file=sys.stderr)
            each.kill()
    files = {name: [folder / f"{name} on {rank}" for rank in range(cases[name][0])] for name in cases}
    return {
        name: [torch.load(file, weights_only=True) if file.is_file() else "the process ended" for file in each]
        for name, each in files.items()
    }


def refusal(call):
    """The error that a call raises, by its type and words; "" where it raises none."""
    try:
        call()
        return ""
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def started(rank, work, folder, port, arguments):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.save(work(rank, folder, *arguments), f"{folder}/result of rank {rank}")
    if distributed.is_initialized():
        distributed.destroy_process_group()


def on_two_processes(work, folder, *arguments):
    """What `work(rank, folder, *arguments)`, a function of a module, returns on each of two processes."""
    multiprocessing.spawn(started, (work, folder, free_port(), arguments), nprocs=WORLD)
    return [torch.load(f"{folder}/result of rank {rank}", weights_only=True) for rank in range(WORLD)]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
