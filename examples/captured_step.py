"""A training step as one CUDA graph: the host launches it whole, where a light model's step is a hundred launches or more.

python examples/captured_step.py trains a light model on drawn nodes of a made series, step by step and captured, and prints how
long a step took. Without a GPU nothing can be captured: it trains step by step alone.
"""

import argparse
import contextlib
import time

import torch

import stprune

HISTORY = HORIZON = 12


class Forecaster(torch.nn.Module):
    """Maps the history [B, T, m, C] of nodes [B, m] to their horizon [B, T, m, 1]; every node has features of its own."""

    def __init__(self, num_nodes, channels, width=32):
        super().__init__()
        self.nodes = torch.nn.Embedding(num_nodes, width)
        self.first, self.last = torch.nn.Linear(HISTORY * channels, width), torch.nn.Linear(2 * width, HORIZON)

    def forward(self, x, node):
        hidden = self.first(x.transpose(1, 2).flatten(2)).relu()
        return self.last(torch.cat([hidden, self.nodes(node)], -1)).transpose(1, 2).unsqueeze(-1)


class Step:
    """A step of training: forward, loss, scores into the sampler's table, backward, optimizer.

    With `captured` it is captured in a graph anew in each epoch, whose plan is another one: the first batch is trained on as it
    is, which compiles what is not compiled yet, and so is every batch of another size; all others are replays.
    """

    def __init__(self, model, criterion, optimizer, *, captured):
        self.model, self.criterion, self.optimizer, self.captured = model, criterion, optimizer, captured
        self.of, self.graph, self.batch, self.loss = None, None, (), None

    def run(self, index, node, x, y):
        self.optimizer.zero_grad()
        loss = self.criterion(self.model(x, node), y, index, node)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def __call__(self, epoch, batch):
        """The loss of the batch; a replay uses its memory again."""
        of = epoch, [part.shape for part in batch]
        if not self.captured or of != self.of:
            self.of, self.graph = of, None
            return self.run(*batch)
        if self.graph is None:
            # What a graph reads and writes stays where it was when it was captured. Capturing runs nothing.
            self.batch, self.graph = [part.clone() for part in batch], torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.loss = self.run(*self.batch)
        for to, part in zip(self.batch, batch, strict=True):
            to.copy_(part)
        self.graph.replay()
        return self.loss


def train(series, *, epochs, captured, batch_size=64, keep_ratio=0.5, node_ratio=0.5, seed=0):
    """A trained model, its sampler, the losses of all steps, and the seconds that the epochs after the first took."""
    torch.manual_seed(seed)
    device, (rows, num_nodes, channels) = series.device, series.shape
    sampler = stprune.PruningSampler(
        rows - HISTORY - HORIZON + 1, num_epochs=epochs, keep_ratio=keep_ratio, num_nodes=num_nodes, node_ratio=node_ratio
    )
    # The series lies on the device: there the batches are cut and the nodes drawn.
    loader = stprune.WindowLoader(series, sampler, batch_size=batch_size, history=HISTORY, horizon=HORIZON)
    model = Forecaster(num_nodes, channels).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, capturable=device.type == "cuda")
    step = Step(model, stprune.PrunedLoss(sampler), optimizer, captured=captured)
    # Steps that are captured later, and their replays, share a stream that is not the default one.
    stream = torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else contextlib.nullcontext()
    losses, seconds = [], []
    with stream:
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            begin = time.perf_counter()
            losses += [step(epoch, batch).clone() for batch in loader]
            losses[-1].item()  # waits for the device
            seconds.append(time.perf_counter() - begin)
    sampler.finish()
    return model, sampler, torch.stack(losses), sum(seconds[1:])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda where it is, or cpu")
    parser.add_argument("--epochs", type=int, default=6, help="of training; the times leave out the first")
    parser.add_argument("--rows", type=int, default=8000, help="of the series")
    parser.add_argument("--nodes", type=int, default=170, help="of the series")
    args = parser.parse_args(argv)
    on_gpu = torch.device(args.device).type == "cuda"
    if not on_gpu:
        print(f"nothing is captured on {args.device}, which is no GPU: the steps run one by one")
    hour = torch.arange(args.rows, device=args.device).view(-1, 1, 1) / 12
    series = torch.sin(hour * 0.26 + torch.arange(args.nodes, device=args.device).view(1, -1, 1)) + 2
    for captured in (False, True) if on_gpu else (False,):
        _, sampler, losses, seconds = train(series, epochs=args.epochs, captured=captured)
        steps = len(losses) - -(-sampler.num_windows // 64)  # the first epoch is full
        name = "captured" if captured else "step by step"
        print(f"{name}: {1e6 * seconds / max(1, steps):,.0f} us a step on {args.device}, last loss {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
