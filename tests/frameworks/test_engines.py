"""Loader and loss for engines with a loop of their own: LargeST's and Graph WaveNet's real classes where STPRUNE_EXTERNAL names
a folder with their code, which no registry has, and small engines of the same calls everywhere."""

import importlib
import logging
import os
import sys
import types

import numpy as np
import pytest
import torch
from example_checks import example
from readme import code_of

import stprune
from stprune.integrations.engines import EngineLoader, GraphWaveNetLoader, LargeSTLoader

NUM_NODES, BATCH_SIZE, NUM_EPOCHS = 5, 32, 4
LARGEST, GRAPH_WAVENET = "liuxu77+LargeST", "nnzhan+Graph-WaveNet"


EXAMPLE = example("engine")


def external(monkeypatch, folder, *names):
    """Modules of a project without a package, gone again after the test."""
    if "STPRUNE_EXTERNAL" not in os.environ:
        pytest.skip(f"STPRUNE_EXTERNAL is not set: it names a folder with {folder}")
    before = set(sys.modules)
    monkeypatch.syspath_prepend(os.path.join(os.environ["STPRUNE_EXTERNAL"], folder))
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(os.environ["STPRUNE_EXTERNAL"]):
                del sys.modules[name]


def made_sampler(size, **options):
    return stprune.PruningSampler(size, **{"num_epochs": NUM_EPOCHS, "keep_ratio": 0.5, **options})


def assert_same(model, other):
    for (name, value), again in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, again), name


# --- LargeST ---------------------------------------------------------------------------------------------------------

SERIES, MEAN, STD = EXAMPLE.made(420, NUM_NODES)
IDX = np.arange(11, 420 - 12)
TRAIN, VAL = IDX[:300], IDX[300:364]


@pytest.fixture(params=["small", "real"])
def largest(request, monkeypatch, tmp_path):
    """What makes LargeST's loaders and its engine; and its masked MAE."""
    if request.param == "small":
        return types.SimpleNamespace(
            loader=lambda idx, **options: EXAMPLE.Windows(SERIES, idx, 12, 12, BATCH_SIZE),
            engine=lambda model, loaders, loss: EXAMPLE.Engine(model, loaders, MEAN, STD, loss),
            masked_mae=EXAMPLE.masked_mae,
        )
    engine, loader, metrics = external(monkeypatch, LARGEST, "src.base.engine", "src.utils.dataloader", "src.utils.metrics")
    logger = logging.getLogger("LargeST")

    def make_engine(model, loaders, loss):
        model.param_num = lambda: sum(parameter.numel() for parameter in model.parameters())
        return engine.BaseEngine(
            device="cpu",
            model=model,
            dataloader=loaders,
            scaler=loader.StandardScaler(MEAN, STD),
            sampler=None,
            loss_fn=loss,
            lrate=1e-2,
            optimizer=torch.optim.Adam(model.parameters(), lr=1e-2),
            scheduler=None,
            clip_grad_value=0,
            max_epochs=NUM_EPOCHS,
            patience=NUM_EPOCHS,
            log_dir=str(tmp_path),
            logger=logger,
            seed=0,
        )

    return types.SimpleNamespace(
        loader=lambda idx, **options: loader.DataLoader(SERIES, idx, 12, 12, BATCH_SIZE, logger, **options),
        engine=make_engine,
        masked_mae=metrics.masked_mae,
    )


def largest_run(largest, sampler, idx=TRAIN, **settings):
    torch.manual_seed(0)
    model = EXAMPLE.Forecaster(NUM_NODES)
    loaders = {"train_loader": LargeSTLoader(largest.loader(idx), sampler), "val_loader": largest.loader(VAL)}
    return largest.engine(model, loaders, loaders["train_loader"].loss(model, **settings)), loaders["train_loader"]


def test_largest_trains_on_the_plan_and_validation_reaches_no_score(largest):
    sampler = made_sampler(len(TRAIN))
    engine, loader = largest_run(largest, sampler)
    batches = []
    engine.model.register_forward_hook(lambda model, args, output: batches.append(len(output)) if model.training else None)
    lengths = []
    for epoch in range(NUM_EPOCHS):
        batches.clear()
        engine.train_batch()
        table = sampler.table
        scores = table.scores.clone()
        engine.evaluate("val")
        assert (sampler.epoch, table.num_trained, table.num_losses) == (epoch, len(sampler.plan), len(sampler.plan))
        assert torch.equal(table.scores, scores)
        assert (len(batches), sum(batches)) == (loader.num_batch, loader.size)
        lengths.append(loader.num_batch)
    assert lengths == [10, 5, 5, 10]


def test_largest_has_the_metrics_of_a_loop_written_by_hand(largest):
    engine, _ = largest_run(largest, made_sampler(len(TRAIN)))
    metrics = []
    for _ in range(2):
        engine.train_batch()
        metrics.append(engine.evaluate("val"))
    metrics = [each[0] if isinstance(each, tuple) else each for each in metrics]

    torch.manual_seed(0)
    sampler, model = made_sampler(len(TRAIN)), EXAMPLE.Forecaster(NUM_NODES)
    criterion = stprune.PrunedLoss(sampler, null_value=0.0, null_tolerance=1e-4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    options = {"batch_size": BATCH_SIZE, "target_channels": 0, "dtype": torch.float32}
    train = stprune.WindowLoader(SERIES, sampler, stop=300 + 23, **options)
    val = stprune.WindowLoader(SERIES, start=300, stop=364 + 23, **options)
    by_hand = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for index, x, y in train:
            optimizer.zero_grad()
            criterion(model(x) * STD + MEAN, y * STD + MEAN, index).backward()
            optimizer.step()
        with torch.no_grad():
            prediction, target = (
                torch.cat(parts) * STD + MEAN for parts in zip(*((model(x), y) for _, x, y in val), strict=True)
            )
            by_hand.append(criterion(prediction, target).item())
    assert metrics == by_hand
    assert_same(engine.model, model)


def test_largest_loss_leaves_out_zeros_as_its_own_does_where_every_batch_has_some(largest):
    sampler = made_sampler(len(TRAIN), method="full")
    engine, loader = largest_run(largest, sampler)
    ours, losses, own = loader.loss(engine.model), [], []

    def both(prediction, label, null_value):
        assert abs(null_value.item()) < 1e-4  # a zero that was scaled forth and back
        own.append(largest.masked_mae(prediction, label, null_value).item())
        loss = ours(prediction, label, null_value)
        losses.append(loss.item())
        return loss

    engine = largest.engine(engine.model, {"train_loader": loader}, both)
    engine.train_batch()
    np.testing.assert_allclose(losses, own, rtol=1e-5)


def test_largest_copies_of_padding_are_left_out(largest):
    padded = largest.loader(np.concatenate([TRAIN, TRAIN[-1:].repeat(320 - 300)]))
    sampler = made_sampler(len(TRAIN))
    loader = LargeSTLoader(padded, sampler)
    assert (loader.num_batch, loader.size) == (10, 300)
    sizes = []
    for x, _ in loader.get_iterator():
        sizes.append((len(x), len(loader.take())))
    assert sizes == [(32, 32)] * 9 + [(12, 12)]


def test_largest_refusals(largest):
    shuffled = largest.loader(TRAIN)
    shuffled.shuffle()
    with pytest.raises(ValueError, match="LargeSTLoader: loader must hold neighbouring windows in their order"):
        LargeSTLoader(shuffled, made_sampler(len(TRAIN)))
    with pytest.raises(ValueError, match="sampler must have one sample for each of the loader's windows .*most 300., got 299"):
        LargeSTLoader(largest.loader(TRAIN), made_sampler(299))
    with pytest.raises(ValueError, match="LargeSTLoader: sampler must have granularity 'window', .* got 'node'"):
        LargeSTLoader(largest.loader(TRAIN), made_sampler(len(TRAIN), num_nodes=NUM_NODES, node_ratio=0.4))
    with pytest.raises(TypeError, match="EngineLoader: loader must have a PruningSampler, got NoneType"):
        EngineLoader(stprune.WindowLoader(SERIES, batch_size=BATCH_SIZE))


def test_a_loss_without_its_batch_and_a_batch_without_its_loss_are_refused(largest):
    engine, loader = largest_run(largest, made_sampler(len(TRAIN)))
    loss, batches = loader.loss(engine.model), loader.get_iterator()
    _, y = next(batches)
    prediction = torch.zeros(y.shape, requires_grad=True)
    loss(prediction, torch.tensor(y))
    with pytest.raises(RuntimeError, match="a training loss must be the first one of a batch of this loader"):
        loss(prediction, torch.tensor(y))
    next(batches)
    with pytest.raises(RuntimeError, match="every batch must have a training loss before the next is asked for"):
        next(batches)
    batches = loader.get_iterator()
    for _ in range(loader.num_batch - 1):
        next(batches), loader.take()
    next(batches)
    with pytest.raises(RuntimeError, match="every batch must have a training loss"):
        next(batches)
    _, y = next(loader.get_iterator())
    with pytest.raises(ValueError, match="index must hold one id for each of 31 samples, got 32"):
        loss(prediction[1:], torch.tensor(y[1:]))


def test_chunk_order_keeps_every_loss_on_its_own_window():
    sampler = made_sampler(len(TRAIN))
    chunks = {"order": "chunk", "chunk_rows": 50, "memory_chunks": 2}
    loader = EngineLoader(stprune.WindowLoader(SERIES[:, :, :1], sampler, stop=300 + 23, batch_size=BATCH_SIZE, **chunks))
    loss, model = loader.loss(torch.nn.Identity(), spatial=0.0, temporal=0.0), torch.ones(1, requires_grad=True)
    for _, y in loader.get_iterator():
        loss(0.0 * model * torch.tensor(y), torch.tensor(y))
    expected = [np.abs(SERIES[i + 12 : i + 24, :, 0]).mean() for i in range(300)]
    np.testing.assert_allclose(sampler.table.scores.numpy(), expected, rtol=1e-5)


def test_a_resumed_run_goes_on_with_the_next_epoch(largest):
    engine, _ = largest_run(largest, sampler := made_sampler(len(TRAIN)))
    engine.train_batch()
    engine.train_batch()
    state = sampler.state_dict()
    again = made_sampler(len(TRAIN))
    engine, loader = largest_run(largest, again)
    again.load_state_dict(state)
    engine.train_batch()
    assert again.epoch == 2
    assert again.table.num_trained == len(again.plan)
    loader.shuffle()
    loader.shuffle()
    assert again.epoch == 3


def test_largest_own_train_takes_the_run_to_its_end(largest):
    engine, _ = largest_run(largest, sampler := made_sampler(len(TRAIN)))
    if not hasattr(engine, "train"):
        pytest.skip("the small engine has no loop over epochs")
    engine._dataloader["test_loader"] = largest.loader(VAL)
    engine.train()
    assert (sampler.epoch, sampler.table.num_trained) == (NUM_EPOCHS - 1, len(sampler.plan))


# --- Graph WaveNet ---------------------------------------------------------------------------------------------------


class Scaler:
    def inverse_transform(self, data):
        return data * STD + MEAN


class Trainer:
    """A small engine with the calls of Graph WaveNet's: it validates with gradients enabled."""

    def __init__(self):
        self.model = torch.nn.Conv2d(2, 12, (1, 13))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        self.loss = lambda prediction, real, null: (prediction - real)[real != null].abs().mean()

    def predict(self, x):
        return Scaler().inverse_transform(self.model(torch.nn.functional.pad(x, (1, 0, 0, 0))).transpose(1, 3))

    def train(self, x, real):
        self.model.train()
        self.optimizer.zero_grad()
        loss = self.loss(self.predict(x), real.unsqueeze(1), 0.0)
        loss.backward()
        self.optimizer.step()
        return loss.item(), 0.0, 0.0

    def eval(self, x, real):
        self.model.eval()
        return self.loss(self.predict(x), real.unsqueeze(1), 0.0).item(), 0.0, 0.0


class Arrays:
    """A small loader with what Graph WaveNet's has: windows in arrays, filled up with copies of the last one."""

    def __init__(self, xs, ys, batch_size):
        copies = -len(xs) % batch_size
        self.xs, self.ys = (np.concatenate([a, np.repeat(a[-1:], copies, axis=0)]) for a in (xs, ys))
        self.batch_size = batch_size

    def get_iterator(self):
        for first in range(0, len(self.xs), self.batch_size):
            yield self.xs[first : first + self.batch_size], self.ys[first : first + self.batch_size]


WINDOWS = np.lib.stride_tricks.sliding_window_view(SERIES, 24, axis=0).transpose(0, 3, 1, 2)
X, Y = WINDOWS[:, :12].copy(), WINDOWS[:, 12:] * [STD, 1.0] + [MEAN, 0.0]  # y is in the series' unit
COUNT = 310  # 320 with the copies


@pytest.fixture(params=["small", "real"])
def graph_wavenet(request, monkeypatch):
    """What makes Graph WaveNet's trainer and its loaders."""
    if request.param == "small":
        return types.SimpleNamespace(trainer=Trainer, loader=Arrays)
    engine, util = external(monkeypatch, GRAPH_WAVENET, "engine", "util")
    scaler = util.StandardScaler(MEAN, STD)

    def make_trainer():
        trainer = engine.trainer(scaler, 2, 12, NUM_NODES, 4, 0.0, 1e-2, 0.0, "cpu", [torch.eye(NUM_NODES)], True, True, None)
        # torch of today refuses its Conv1d with a kernel of two dimensions; a Conv2d with the same parameters does its work.
        for convolutions in (trainer.model.gate_convs, trainer.model.residual_convs, trainer.model.skip_convs):
            for i, old in enumerate(convolutions):
                convolutions[i] = torch.nn.Conv2d(old.in_channels, old.out_channels, old.kernel_size, dilation=old.dilation)
                convolutions[i].weight, convolutions[i].bias = old.weight, old.bias
        return trainer

    return types.SimpleNamespace(trainer=make_trainer, loader=util.DataLoader)


def graph_wavenet_epoch(engine, train, val):
    """An epoch as its train.py has it; the mean validation loss."""
    train.shuffle()
    for loader, step in ((train, engine.train), (val, engine.eval)):
        losses = []
        for x, y in loader.get_iterator():
            x, y = (torch.Tensor(part).transpose(1, 3) for part in (x, y))
            losses.append(step(x, y[:, 0])[0])
    return np.mean(losses)


def graph_wavenet_run(graph_wavenet, sampler):
    torch.manual_seed(0)
    engine = graph_wavenet.trainer()
    train = GraphWaveNetLoader(graph_wavenet.loader(X[:COUNT], Y[:COUNT], BATCH_SIZE), sampler)
    engine.loss = train.loss(engine.model)
    return engine, train, graph_wavenet.loader(X[COUNT : COUNT + 64], Y[COUNT : COUNT + 64], BATCH_SIZE)


def test_graph_wavenet_trains_on_the_plan_and_validation_reaches_no_score(graph_wavenet):
    sampler = made_sampler(COUNT)
    engine, train, val = graph_wavenet_run(graph_wavenet, sampler)
    batches = []
    engine.model.register_forward_hook(lambda model, args, output: batches.append(len(output)) if model.training else None)
    for epoch, length in enumerate([10, 5, 5, 10]):
        batches.clear()
        graph_wavenet_epoch(engine, train, val)
        table = sampler.table
        assert (sampler.epoch, table.num_trained, table.num_losses) == (epoch, len(sampler.plan), len(sampler.plan))
        assert (len(batches), sum(batches)) == (length, len(sampler.plan)) == (train.num_batch, train.size)


def test_graph_wavenet_has_the_metrics_of_a_loop_written_by_hand(graph_wavenet):
    engine, train, val = graph_wavenet_run(graph_wavenet, made_sampler(COUNT))
    metrics = [graph_wavenet_epoch(engine, train, val) for _ in range(2)]

    torch.manual_seed(0)
    sampler, model = made_sampler(COUNT), graph_wavenet.trainer().model
    criterion = stprune.PrunedLoss(sampler, null_value=0.0, dims="BCNT")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    dataset = stprune.IndexedDataset(torch.utils.data.TensorDataset(torch.tensor(X[:COUNT]), torch.tensor(Y[:COUNT])))
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH_SIZE, sampler=sampler)

    def forecast(x):
        return model(torch.nn.functional.pad(x.float().transpose(1, 3), (1, 0, 0, 0))).transpose(1, 3) * STD + MEAN

    by_hand = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        model.train()
        for index, (x, y) in loader:
            optimizer.zero_grad()
            criterion(forecast(x), y.float().transpose(1, 3)[:, :1], index).backward()
            if not isinstance(engine, Trainer):
                torch.nn.utils.clip_grad_norm_(model.parameters(), 5)
            optimizer.step()
        model.eval()
        with torch.no_grad():
            parts = [torch.tensor(part[COUNT : COUNT + 64]).split(BATCH_SIZE) for part in (X, Y)]
            by_hand.append(
                np.mean([criterion(forecast(x), y.float().transpose(1, 3)[:, :1]).item() for x, y in zip(*parts, strict=True)])
            )
    assert metrics == by_hand
    assert_same(engine.model, model)


def test_graph_wavenet_refusals(graph_wavenet):
    with pytest.raises(ValueError, match="sampler must have one sample for each of the loader's windows .*most 320., got 270"):
        GraphWaveNetLoader(graph_wavenet.loader(X[:COUNT], Y[:COUNT], BATCH_SIZE), made_sampler(270))
    mixed = graph_wavenet.loader(X[:COUNT], Y[:COUNT], BATCH_SIZE)
    mixed.xs, mixed.ys = mixed.xs[::-1], mixed.ys[::-1]
    with pytest.raises(ValueError, match="loader must hold copies of its last window after 310 windows, unshuffled"):
        GraphWaveNetLoader(mixed, made_sampler(COUNT))


# --- README and the example ------------------------------------------------------------------------------------------


def test_readme_of_largest(largest):
    torch.manual_seed(0)
    model = EXAMPLE.Forecaster(NUM_NODES)
    dataloader = {"train_loader": largest.loader(TRAIN), "val_loader": largest.loader(VAL)}
    names = {"stprune": stprune, "dataloader": dataloader, "model": model, "args": types.SimpleNamespace(max_epochs=2)}
    exec(code_of("LargeST"), names)
    engine = largest.engine(model, dataloader, names["loss_fn"])
    for _ in range(2):
        engine.train_batch()
        engine.evaluate("val")
        assert names["sampler"].table.num_losses == len(names["sampler"].plan)


def test_readme_of_graph_wavenet(graph_wavenet):
    engine, val = graph_wavenet.trainer(), graph_wavenet.loader(X[COUNT:], Y[COUNT:], BATCH_SIZE)
    dataloader = {"train_loader": graph_wavenet.loader(X[:COUNT], Y[:COUNT], BATCH_SIZE), "x_train": X[:COUNT]}
    names = {"stprune": stprune, "dataloader": dataloader, "engine": engine, "args": types.SimpleNamespace(epochs=2)}
    exec(code_of("Graph WaveNet"), names)
    for _ in range(2):
        graph_wavenet_epoch(engine, dataloader["train_loader"], val)
        assert names["sampler"].table.num_losses == len(names["sampler"].plan)


def test_the_example(capsys):
    EXAMPLE.main(["--epochs", "3", "--rows", "400"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert lines[3].endswith("282 of 282 planned windows")
    assert lines[4].endswith("141 of 141 planned windows")
