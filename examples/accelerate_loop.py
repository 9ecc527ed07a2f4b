"""Accelerate: a small forecaster on a pruned set of windows, on one process or several, saved and continued inside an epoch.

python examples/accelerate_loop.py
torchrun --nproc-per-node 2 examples/accelerate_loop.py
On CPUs `accelerate launch --cpu --num_processes 2` takes one process, and no error tells so.
"""

import argparse
import tempfile

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, TensorDataset

import stprune
from stprune.integrations.accelerate import PruningLoader

HISTORY, HORIZON, NODES = 12, 4, 8


def windows(count, seed):
    """Waves of eight nodes, of which some are noisy: x [count, 12, 8], y [count, 4, 8]."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.arange(count + HISTORY + HORIZON).unsqueeze(1) / 6
    series = torch.sin(steps + torch.arange(NODES)) + 0.1 * torch.arange(NODES) * torch.randn(
        len(steps), NODES, generator=generator
    )
    cut = series.unfold(0, HISTORY + HORIZON, 1)[:count].transpose(1, 2)
    return TensorDataset(cut[:, :HISTORY].contiguous(), cut[:, HISTORY:].contiguous())


def made(options):
    """Accelerator, sampler, criterion, and what `prepare` returns: model, optimizer, and the two loaders."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=options.accumulate)
    train, test = windows(options.windows, 0), windows(options.windows // 4, 1)
    sampler = stprune.PruningSampler(len(train), num_epochs=options.epochs, keep_ratio=options.keep_ratio)
    loader = DataLoader(stprune.IndexedDataset(train), batch_size=options.batch, sampler=sampler)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(HISTORY, 32), torch.nn.ReLU(), torch.nn.Linear(32, HORIZON))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    # Not prepared, and stepped with the optimizer: its length is that of one process.
    total = sampler.total_steps(options.batch, accumulate=options.accumulate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=total)
    loader = PruningLoader(accelerator, loader)
    accelerator.register_for_checkpointing(loader, schedule)
    prepared = accelerator.prepare(model, optimizer, loader, DataLoader(test, batch_size=options.batch))
    return accelerator, sampler, stprune.PrunedMean(sampler), schedule, *prepared


def predicted(model, x):
    return model(x.transpose(1, 2)).transpose(1, 2)


def run(options, first=0, last=None, stop_at=None):
    """Train epochs; `stop_at` saves after so many batches of the last one and stops there. The ids of each epoch's batches."""
    accelerator, sampler, criterion, schedule, model, optimizer, loader, test = made(options)
    if first:
        accelerator.load_state(options.folder)
    say = accelerator.print if first == 0 and last is None else lambda _: None
    ids, steps, validations = [], 0, 0
    for epoch in range(first, options.epochs if last is None else last + 1):
        sampler.set_epoch(epoch)
        ids.append([])
        for batch, (index, (x, y)) in enumerate(loader, 1):
            ids[-1].append(index.tolist())
            with accelerator.accumulate(model):
                accelerator.backward(criterion((predicted(model, x) - y).abs(), index))
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                schedule.step()
                steps += 1
            if epoch == last and batch == stop_at:
                accelerator.save_state(options.folder)
                return ids
        delivered = {each for batch in gather_object(ids[-1]) for each in batch}
        model.eval()
        with torch.no_grad():
            errors = [accelerator.gather_for_metrics((predicted(model, x) - y).abs().mean((1, 2))) for x, y in test]
        model.train()
        validations += 1
        say(
            f"epoch {epoch}: {len(delivered)} ids delivered = planned: {delivered == set(sampler.plan.indices.tolist())}, "
            f"test MAE {torch.cat(errors).mean():.4f} of {len(torch.cat(errors))} windows"
        )
    sampler.finish()
    say(f"{steps} optimizer steps on each of {accelerator.num_processes} processes, {validations} validations")
    return ids


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--windows", type=int, default=2048)
    parser.add_argument("--keep-ratio", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=32, help="samples of a batch on one process")
    parser.add_argument("--accumulate", type=int, default=1, help="batches of an optimizer step")
    parser.add_argument(
        "--folder", default=f"{tempfile.gettempdir()}/stprune_accelerate", help="for a state, seen by all processes"
    )
    options = parser.parse_args(arguments)
    whole = run(options)
    PartialState().print("stopped inside epoch 1, and continued:")
    stopped = run(options, last=1, stop_at=2)
    rest = run(options, first=1)
    same = [stopped[0], stopped[1] + rest[0], *rest[1:]] == whole
    PartialState().print(f"the same batches as without a stop: {same}")


if __name__ == "__main__":
    main()
