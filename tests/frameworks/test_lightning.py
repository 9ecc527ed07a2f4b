"""Lightning as its users use it, under both of its names: whole epochs with their validations, totals, resumed runs, ranks."""

import copy
import importlib
import itertools
import json
import logging
import pathlib
import pickle
import runpy
import subprocess
import sys
import types
import warnings

import pytest
import torch
from lightning_watch import QUIET
from loops import BATCH_SIZE, DATA, NUM_EPOCHS, NUM_WINDOWS, STEPS, Run
from readme import code_of
from torch.utils.data import DataLoader

import stprune
from stprune.integrations.lightning import Pruning

HERE = pathlib.Path(__file__).parent
NAMES = ["lightning.pytorch", "pytorch_lightning"]
KINDS = ["sampler", "batches", "windows"]
ENDS = [sum(STEPS[: epoch + 1]) for epoch in range(NUM_EPOCHS)]


def package_of(name):
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        pytest.skip(f"{name} is not installed: pip install stprune[frameworks]")
    logging.getLogger(name).setLevel(logging.ERROR)
    return importlib.import_module(name)


class Fit:
    """A user's run, and what came of it.

    Attributes:
        ids: of every batch trained on.
        validations: number of batches trained on before each validation.
        estimate: `trainer.estimated_stepping_batches` in `configure_optimizers`.
        rates: OneCycleLR's rate in every optimizer step.
        places: the checkpoints: batches trained on before each, by the file's name.
        told: stprune's warnings, of which there is none unless `told` is set.
    """

    def __init__(self, name, kind="sampler", *, run=None, folder=None, checkpoint=None, callback=True, told=False, **options):
        package = package_of(name)
        self.run = run = Run(kind) if run is None else run
        self.ids, self.validations, self.rates, self.places = run.ids, [], [], {}
        outer = self

        class Module(package.LightningModule):
            def __init__(self):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.ones(1))

            def training_step(self, batch, _):
                return run.loss(batch, self.weight)

            def validation_step(self, batch, _):
                _, x, y = run.parts(batch)
                run.criterion(self.weight * x, y)
                if not self.trainer.sanity_checking:
                    outer.validations.append(len(run.ids))

            def configure_optimizers(self):
                outer.estimate = self.trainer.estimated_stepping_batches
                optimizer = torch.optim.SGD(self.parameters(), 0.0)
                schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-9, total_steps=outer.estimate)
                return [optimizer], [{"scheduler": schedule, "interval": "step"}]

            def optimizer_step(self, *arguments, **options):
                super().optimizer_step(*arguments, **options)
                outer.rates.append(self.optimizers().param_groups[0]["lr"])

        class Save(package.Callback):
            def save(self, trainer, kind):
                if folder is not None and not trainer.sanity_checking:
                    outer.places[f"{kind} {len(run.ids)}"] = len(run.ids)
                    trainer.save_checkpoint(folder / f"{kind} {len(run.ids)}")

            def on_train_batch_end(self, trainer, *_):
                self.save(trainer, "step")

            def on_validation_end(self, trainer, *_):
                self.save(trainer, "validation")

            def on_train_epoch_end(self, trainer, *_):
                self.save(trainer, "epoch")

        callbacks = [*([Pruning(run.sampler, batch_size=BATCH_SIZE)] if callback else []), Save()]
        self.trainer = package.Trainer(**QUIET | {"callbacks": callbacks, "max_epochs": NUM_EPOCHS} | options)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.trainer.fit(Module(), run.loader, DataLoader(DATA, batch_size=NUM_WINDOWS), ckpt_path=checkpoint)
        self.told = [message for message in (str(warning.message) for warning in caught) if message.startswith("stprune")]
        assert told == bool(self.told), self.told


def plain(kind):
    """The batches of a plain loop."""
    run = Run(kind)
    for epoch in range(NUM_EPOCHS):
        run.epoch(epoch)
    return run.ids


def ids_of(batches, begin, end):
    return sorted(itertools.chain(*batches[begin:end]))


# --- length ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_the_plain_loops_run(name, kind):
    """The same batches, so that the sampler's epochs began once each, and nothing of a validation reached the table."""
    fit = Fit(name, kind)
    assert fit.ids == plain(kind)
    assert fit.validations == ENDS
    assert fit.estimate == len(fit.rates) == sum(STEPS)
    assert fit.rates[-1] == min(fit.rates), "OneCycleLR came to its end"


@pytest.mark.parametrize("options", [{}, {"num_workers": 1}, {"num_workers": 1, "persistent_workers": True}])
def test_eight_epochs_of_changing_length(options):
    ratios = [1.0, 0.5, 0.25, 0.75, 0.375, 1.0, 0.125, 1.0]
    run = Run(**options)
    run.sampler = stprune.PruningSampler(NUM_WINDOWS, num_epochs=8, schedule=ratios.__getitem__)
    run.criterion = stprune.PrunedLoss(run.sampler)
    run.loader = run.new_loader()
    fit = Fit(NAMES[0], run=run, max_epochs=8)
    steps = [round(8 * ratio) for ratio in ratios]
    assert fit.validations == [sum(steps[: epoch + 1]) for epoch in range(8)]
    assert len(fit.ids) == fit.estimate == sum(steps)
    for epoch in (0, 5, 7):  # whole, also after shorter ones
        last = fit.validations[epoch]
        assert ids_of(fit.ids, last - 8, last) == list(range(NUM_WINDOWS))


class Hidden:
    """A loader that shows no sampler, so that Lightning cannot begin its epochs; it counts how often it is begun."""

    def __init__(self, loader):
        self.loader, self.begun = loader, 0

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        self.begun += 1
        return iter(self.loader)


def test_a_loader_that_hides_its_sampler_is_asked_for_anew_where_lengths_change():
    run = Run()
    run.loader = Hidden(run.loader)
    fit = Fit(NAMES[0], run=run)
    assert (fit.ids, fit.validations) == (plain("sampler"), ENDS)
    # Lightning asks for it before epochs 0, 1 and 3 and begins it twice then; once more in each epoch but the first.
    assert run.loader.begun == 3 * 2 + 3


def test_lightning_alone_still_needs_the_callback():
    """Where this fails, Lightning reads lengths anew by itself, and the callback has less to do."""
    fit = Fit(NAMES[0], callback=False)
    assert fit.validations == [8, 24]
    assert fit.estimate == 32 > len(fit.ids)


@pytest.mark.parametrize(
    ("options", "steps", "validations", "estimate"),
    [
        ({"accumulate_grad_batches": 3}, 24, ENDS, 3 + 2 + 2 + 3),
        ({"max_steps": 18}, 18, [8, 12, 16], 18),
        ({"max_steps": 18, "max_epochs": None}, 18, [8, 12, 16], 18),
        ({"val_check_interval": 0.5}, 24, [4, 8, 10, 12, 14, 16, 20, 24], 24),
        ({"val_check_interval": 2}, 24, list(range(2, 25, 2)), 24),
        ({"val_check_interval": 5, "check_val_every_n_epoch": None}, 24, [5, 10, 15, 20], 24),
        ({"check_val_every_n_epoch": 2}, 24, [12, 24], 24),
        ({"reload_dataloaders_every_n_epochs": 1}, 24, ENDS, 24),
        ({"num_sanity_val_steps": 0}, 24, ENDS, 24),
    ],
    ids=str,
)
def test_options_of_the_trainer(options, steps, validations, estimate, tmp_path):
    whole = Fit(NAMES[0], folder=tmp_path, **options)
    assert whole.ids == plain("sampler")[:steps]
    assert (whole.validations, whole.estimate) == (validations, estimate)
    for file, step in whole.places.items():
        if not file.startswith("step") or step in ENDS or step % 5 == 0:
            assert Fit(NAMES[0], checkpoint=tmp_path / file, **options).ids == whole.ids[step:], file


@pytest.mark.parametrize(("limit", "steps", "validations"), [(3, 12, [3, 6, 9, 12]), (0.5, 12, [4, 6, 8, 12])])
def test_epochs_that_lightning_cuts_are_told(limit, steps, validations):
    fit = Fit(NAMES[0], limit_train_batches=limit, told=True)
    assert (len(fit.ids), fit.validations) == (steps, validations)
    (message,) = fit.told
    assert "were left out, as the epoch was cut short" in message


def test_a_validation_interval_longer_than_an_epoch_is_refused_by_lightning():
    with pytest.raises(ValueError, match=r"`val_check_interval` \(6\) must be less than or equal"):
        Fit(NAMES[0], val_check_interval=6)


# --- resume ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [*((NAMES[0], kind) for kind in KINDS), (NAMES[1], "sampler")])
def test_every_checkpoint_continues_the_run(name, kind, tmp_path):
    """After each step, at the end of each validation and of each epoch: also the last step of an epoch before a longer one."""
    whole = Fit(name, kind, folder=tmp_path)
    assert len(whole.places) == sum(STEPS) + 2 * NUM_EPOCHS
    for file, step in whole.places.items():
        again = Fit(name, kind, checkpoint=tmp_path / file)
        assert again.ids == whole.ids[step:], file
        assert again.rates == whole.rates[step:], file
        if file != f"epoch {ENDS[-1]}":  # from which nothing is left to begin
            assert torch.equal(again.run.sampler.table.scores, whole.run.sampler.table.scores), file
            state = again.run.sampler.state_dict()
            assert (state["epoch"], state["finished"]) == (NUM_EPOCHS - 1, True), file
        # Lightning does not catch up on the validation that would have followed an epoch's last step.
        assert again.validations == [end - step for end in ENDS if end > step], file


def test_workers_that_read_ahead_do_not_move_a_resumed_run(tmp_path):
    whole = Fit(NAMES[0], run=Run(num_workers=2), folder=tmp_path)
    for file in ("step 12", "validation 16", "epoch 8"):
        again = Fit(NAMES[0], run=Run(num_workers=2), checkpoint=tmp_path / file)  # they read a whole epoch of 4 batches ahead
        assert again.ids == whole.ids[whole.places[file] :], file


def test_a_resumed_run_is_saved_and_continued_again(tmp_path):
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        folder.mkdir()
    whole = Fit(NAMES[0], folder=folders[0])
    for first in ("step 12", "validation 16"):
        again = Fit(NAMES[0], folder=folders[1], checkpoint=folders[0] / first)
        for file, step in again.places.items():
            assert Fit(NAMES[0], checkpoint=folders[1] / file).ids == again.ids[step:], (first, file)
        assert again.ids == whole.ids[whole.places[first] :]


def test_a_fit_begun_again_after_a_failure_is_a_new_run(tmp_path):
    """As in a notebook: the sampler is the first fit's, whose samples of the epoch do not count in the second."""
    run = Run()
    train, run.loss = run.loss, lambda batch, weight: train(batch, weight) if len(run.ids) < 5 else 1 / 0
    with pytest.raises(ZeroDivisionError):
        Fit(NAMES[0], run=run)
    run.loss = train
    run.ids.clear()
    whole = Fit(NAMES[0], run=run, folder=tmp_path)
    assert whole.ids == plain("sampler")
    for step in (1, 3, 6):
        assert Fit(NAMES[0], checkpoint=tmp_path / f"step {step}").ids == whole.ids[step:]


def test_an_evaluation_leaves_the_run_alone(tmp_path):
    fit = Fit(NAMES[0], folder=tmp_path)
    run = fit.run
    module = fit.trainer.lightning_module
    before = copy.deepcopy(run.sampler.state_dict())
    fit.trainer.validate(module, DataLoader(DATA, batch_size=NUM_WINDOWS), ckpt_path=tmp_path / "step 3", verbose=False)
    after = run.sampler.state_dict()
    assert (after["epoch"], after["position"]) == (before["epoch"], before["position"])
    assert torch.equal(after["table"]["scores"], before["table"]["scores"])


# --- ranks -----------------------------------------------------------------------------------------------------------


def test_two_ddp_processes(tmp_path):
    """Samples shared out once, validations, totals, and resume, by a script that is started as a user starts it."""
    package_of(NAMES[0])
    script = subprocess.run(
        [sys.executable, str(HERE / "lightning_ranks.py"), str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert script.returncode == 0, script.stderr
    outcomes = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    ends = [end // 2 for end in ENDS]
    for kind in KINDS:
        for begin, end in itertools.pairwise([0, *ends]):
            shares = [ids_of(outcome[kind]["whole"]["ids"], begin, end) for outcome in outcomes]
            assert sorted(itertools.chain(*shares)) == ids_of(plain(kind), 2 * begin, 2 * end), kind
        for outcome in outcomes:
            whole = outcome[kind]["whole"]
            assert whole["validations"] == ends
            assert whole["estimate"] == len(whole["ids"]) == ends[-1]
            for file, again in outcome[kind].items():
                if file != "whole":
                    assert again["ids"] == whole["ids"][int(file.split()[1]) :], (kind, file)


# --- the callback ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 4}, "batch_size must be the training loader's 8, got 4"),
        ({"other": True}, "the training loader must have the callback's sampler, got PruningSampler"),
        ({"overfit_batches": 2}, "the training loader must have the callback's sampler, got SequentialSampler"),
        ({"max_epochs": 5}, "trainer.max_epochs must be at most the sampler's 4 epochs, got 5"),
        ({"max_epochs": -1}, "trainer.max_epochs must be at most the sampler's 4 epochs, got -1"),
    ],
    ids=str,
)
def test_refusals(change, message):
    run = Run()
    sampler = stprune.PruningSampler(NUM_WINDOWS, num_epochs=NUM_EPOCHS) if change.pop("other", False) else run.sampler
    package_of(NAMES[0])
    callback = Pruning(sampler, batch_size=change.pop("batch_size", BATCH_SIZE))
    with pytest.raises(ValueError, match=message):
        Fit(NAMES[0], run=run, callbacks=[callback], **change)
    assert run.ids == []


def test_a_sampler_is_asked_for():
    package_of(NAMES[0])
    with pytest.raises(TypeError, match="sampler must be a PruningSampler, got int"):
        Pruning(64, batch_size=8)
    with pytest.raises(ValueError, match="batch_size must"):
        Pruning(stprune.PruningSampler(64, num_epochs=4), batch_size=0)


def test_the_trainer_has_its_own_max_steps_back():
    fit = Fit(NAMES[0])
    assert fit.trainer.max_steps == -1
    module = type(fit.trainer.lightning_module)
    module.configure_optimizers = lambda self: 1 / 0
    with pytest.raises(ZeroDivisionError):
        fit.trainer.fit(module(), fit.run.loader)
    assert fit.trainer.max_steps == -1


def test_a_stream_has_no_total():
    """Without an end of the sampler's epochs the callback keeps lengths and state, and leaves estimates to Lightning."""
    run = Run()
    run.sampler = stprune.PruningSampler(NUM_WINDOWS, num_epochs=None, method="soft-random")
    run.criterion, run.loader = stprune.PrunedLoss(run.sampler), None
    run.loader = run.new_loader()
    fit = Fit(NAMES[0], run=run, max_epochs=3)
    assert (fit.estimate, fit.validations) == (12, [4, 8, 12])


def test_only_the_package_in_use_is_needed(monkeypatch):
    """Nothing is imported for the callback: it is a Callback of what is there."""
    sampler = stprune.PruningSampler(64, num_epochs=4)
    stubs = {name: types.SimpleNamespace(Callback=type("Callback", (), {})) for name in NAMES}
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(RuntimeError, match=r"lightning\.pytorch or pytorch_lightning must be imported first"):
        Pruning(sampler, batch_size=8)
    for here in ([NAMES[0]], [NAMES[1]], NAMES):
        with monkeypatch.context() as patch:
            for name in here:
                patch.setitem(sys.modules, name, stubs[name])
            callback = Pruning(sampler, batch_size=8)
            assert [isinstance(callback, stubs[name].Callback) for name in NAMES] == [name in here for name in NAMES]
            again = pickle.loads(pickle.dumps(callback))
            assert (type(again).__name__, again.batch_size) == ("Pruning", 8)


# --- README and example ------------------------------------------------------------------------------------------------


def test_readme():
    package = package_of(NAMES[0])

    class Trainer(package.Trainer):
        def __init__(self, **given):
            super().__init__(**QUIET, **given)

    class Module(package.LightningModule):
        def __init__(self, criterion):
            super().__init__()
            self.criterion, self.weight, self.ids = criterion, torch.nn.Parameter(torch.ones(1)), []

        def training_step(self, batch, _):
            index, (x, y) = batch
            self.ids.append(index.tolist())
            return self.criterion(self.weight * x.unsqueeze(1), y.unsqueeze(1), index)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    names = {"L": types.SimpleNamespace(Trainer=Trainer), "Module": Module, "train_set": DATA.dataset, "val_loader": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="stprune")
        names |= {"stprune": stprune, "DataLoader": DataLoader}
        exec(code_of("Lightning"), names)
    module, sampler = names["module"], names["sampler"]
    assert len(module.ids) == names["trainer"].global_step == sampler.total_steps(64) == 30
    assert sorted(module.ids[-1]) == list(range(NUM_WINDOWS))
    assert sampler.epoch == 29


def test_example(capsys, monkeypatch):
    package_of(NAMES[0])
    example = HERE.parents[1] / "examples" / "lightning_callback.py"
    monkeypatch.setattr(sys, "argv", [str(example), "--epochs", "4", "--steps", "600"])
    with warnings.catch_warnings():
        runpy.run_path(str(example), run_name="__main__")
    said = capsys.readouterr().out
    assert len(example.read_text().splitlines()) <= 120
    planned = said.split("planned ")[1].split()[0]
    for words in (f"delivered {planned}, planned {planned}", "steps 42, of OneCycleLR 42; validations 4", "same batches True"):
        assert words in said, said
