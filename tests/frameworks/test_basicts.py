"""The callback for BasicTS, in BasicTS's own runner, on a small series in its file format."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("basicts", reason="BasicTS is not installed")
from basicts import BasicTSLauncher
from basicts.configs import BasicTSForecastingConfig
from basicts.models.STID import STID, STIDConfig
from basicts.runners.callback import BasicTSCallback
from basicts.utils import RunnerStatus
from readme import code_of
from torch.utils.data.distributed import DistributedSampler

from stprune.integrations.basicts import Pruning

ROOT = pathlib.Path(__file__).resolve().parents[2]
NUM_WINDOWS, NUM_NODES, BATCH_SIZE, NUM_EPOCHS = 96, 3, 4, 4


class Stopped(BaseException):
    """A run that is killed."""


class Watch(BasicTSCallback):
    """What a run did, epoch by epoch: ids of every training step, the plan, the losses, the table, the validations."""

    def __init__(self):
        self.ids, self.planned, self.validations = {}, {}, []
        self.losses, self.own, self.kept = [], [], None
        self.stop_in = None  # an epoch

    def on_train_start(self, runner):
        self.runner = runner
        self.sampler = next(each for each in runner.callback_handler.callbacks if isinstance(each, Pruning)).sampler

    def on_epoch_start(self, runner, epoch):
        self.ids[epoch], self.planned[epoch] = [], sorted(self.sampler.plan.indices.tolist())

    def on_compute_loss(self, runner, forward_return, **kwargs):
        if runner.status == RunnerStatus.TRAINING:
            if kwargs["epoch"] == self.stop_in and len(self.ids[self.stop_in]) == 5:
                raise Stopped
            self.ids[kwargs["epoch"]].append(forward_return["stprune_index"].tolist())
            self.losses.append(forward_return["loss"].item())
            batch = {name: value for name, value in forward_return.items() if name != "loss"}
            self.own.append(runner._metric_forward(runner.loss, batch).item())

    def on_epoch_end(self, runner, epoch, step):
        table = self.sampler.table
        assert (table.num_trained, table.num_losses) == (len(self.planned[epoch]), len(self.planned[epoch]))
        self.kept = table.scores.clone()

    def on_validate_end(self, runner, **kwargs):
        self.validations.append(kwargs["train_epoch"])
        assert torch.equal(self.sampler.table.scores, self.kept)


@pytest.fixture
def data(tmp_path):
    """A folder with a series in the format of BasicTS; its training part has NUM_WINDOWS windows."""
    folder = tmp_path / "data"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for mode, count in (("train", NUM_WINDOWS), ("val", 8), ("test", 8)):
        length = count + 12 - 1
        series = generator.normal(size=(length, NUM_NODES)).cumsum(0).astype(np.float32)
        series[5] = 0.0  # missing
        np.save(folder / f"{mode}_data.npy", series)
        np.save(folder / f"{mode}_timestamps.npy", np.zeros((length, 1), np.float32))
    return folder


def settings_of(data):
    sizes = {"input_len": 8, "output_len": 4}
    return {
        "model_config": STIDConfig(num_features=NUM_NODES, input_hidden_size=4, spatial_hidden_size=4, **sizes),
        "dataset_name": "walk",
        "dataset_params": {"data_file_path": str(data)},
        "use_timestamps": True,
        "null_val": 0.0,
        "batch_size": BATCH_SIZE,
        "num_epochs": NUM_EPOCHS,
        "ckpt_save_dir": str(data.parent / "checkpoints"),
        **sizes,
    }


def configured(data, pruning, watch=None, model=STID, **settings):
    callbacks = [pruning, *([] if watch is None else [watch])]
    return BasicTSForecastingConfig(model=model, callbacks=callbacks, **settings_of(data) | settings)


def trained(data, pruning=None, stop_in=None, **settings):
    """What a run did, until it was stopped in the middle of an epoch."""
    watch = Watch()
    watch.stop_in = stop_in
    config = configured(data, pruning or Pruning(keep_ratio=0.5), watch, **settings)
    if stop_in is None:
        BasicTSLauncher.launch_training(config)
    else:
        with pytest.raises(Stopped):
            BasicTSLauncher.launch_training(config)
    return watch


def test_every_epoch_has_all_its_batches_and_one_validation(data):
    watch = trained(data)
    assert {epoch: len(batches) for epoch, batches in watch.ids.items()} == {1: 12, 2: 12, 3: 12, 4: 12}
    for epoch, batches in watch.ids.items():
        assert sorted(i for batch in batches for i in batch) == watch.planned[epoch]
        assert len(watch.planned[epoch]) == NUM_WINDOWS // 2
    assert watch.validations == [1, 2, 3, 4]
    assert watch.sampler.epoch == 3
    # Of a DistributedSampler BasicTS sets the epoch itself under DDP, counted from 1.
    assert not isinstance(watch.runner.train_data_loader.sampler, DistributedSampler)


def test_a_stopped_run_resumes_with_the_epochs_that_are_left(data):
    whole = trained(data, Pruning(keep_ratio=0.5))
    (data.parent / "checkpoints").rename(data.parent / "of the whole run")
    stopped = trained(data, Pruning(keep_ratio=0.5), stop_in=3)
    resumed = trained(data, Pruning(keep_ratio=0.5))
    assert (list(stopped.ids), list(resumed.ids)) == ([1, 2, 3], [3, 4])
    assert {epoch: len(batches) for epoch, batches in resumed.ids.items()} == {3: 12, 4: 12}
    assert stopped.ids | resumed.ids == whole.ids  # of the third epoch: the resumed run's
    assert stopped.losses[:24] + resumed.losses == whole.losses
    assert resumed.validations == [3, 4]
    for name, value in whole.runner.model.state_dict().items():
        assert torch.equal(value, resumed.runner.model.state_dict()[name]), name


def test_a_run_killed_between_the_two_files_of_an_epoch_resumes(data):
    trained(data, stop_in=3)
    (folder,) = (data.parent / "checkpoints").iterdir()
    assert sorted(path.name for path in folder.glob("*.state")) == ["stprune-1.state", "stprune-2.state"]
    (folder / "STID_2.pt").unlink()
    (folder / "STID_1.pt.bak").rename(folder / "STID_1.pt")
    assert list(trained(data).ids) == [2, 3, 4]


def test_a_checkpoint_without_the_samplers_state_is_refused(data):
    trained(data, stop_in=3)
    (folder,) = (data.parent / "checkpoints").iterdir()
    (folder / "stprune-2.state").unlink()
    with pytest.raises(FileNotFoundError, match=r"stprune-2\.state"):
        BasicTSLauncher.launch_training(configured(data, Pruning(keep_ratio=0.5), Watch()))


@pytest.mark.parametrize("loss", ["MAE", "MSE"])
def test_with_nothing_pruned_it_is_basicts_own_loss(data, loss):
    watch = trained(data, Pruning(method="full"), loss=loss, num_epochs=1)
    assert len(watch.losses) == NUM_WINDOWS // BATCH_SIZE
    np.testing.assert_allclose(watch.losses, watch.own, rtol=1e-5)


def test_options_are_part_of_the_config(data):
    configs = [configured(data, Pruning(keep_ratio=ratio)) for ratio in (0.5, 0.3)]
    assert configs[0].md5 != configs[1].md5
    assert configs[0].md5 == configured(data, Pruning(keep_ratio=0.5)).md5
    path = data / "config.json"
    path.write_text(str(configs[0]))
    (again,) = BasicTSForecastingConfig._construct_obj(json.loads(path.read_text())["callbacks"])
    assert (again.loss, again.options) == (None, {"fixed_length": True, "keep_ratio": 0.5})


@pytest.mark.parametrize(
    ("pruning", "settings", "message"),
    [
        (Pruning(fixed_length=False), {}, "sampler must have fixed_length=True, as BasicTS counts epochs in steps"),
        (Pruning(), {"num_epochs": None, "num_steps": 10}, "num_epochs must be given in the config, got None"),
        (Pruning(), {"loss": "HUBER"}, r"loss must be given where the config's is not one of \['MAE', 'MSE'\], got 'HUBER'"),
        (Pruning(num_nodes=3, node_ratio=0.5), {}, "sampler must have granularity 'window', .* got 'node'"),
        (Pruning(keep_ratio=2.0), {}, r"keep_ratio must lie in \(0, 1\], got 2"),
    ],
)
def test_refusals(data, pruning, settings, message):
    with pytest.raises(ValueError, match=message):
        BasicTSLauncher.launch_training(configured(data, pruning, **settings))


class OwnLoss(STID):
    def forward(self, inputs, inputs_timestamps):
        prediction = super().forward(inputs, inputs_timestamps)
        return {"prediction": prediction, "loss": prediction.sum()}


def test_a_model_with_a_loss_of_its_own_is_refused(data):
    config = configured(data, Pruning(), model=OwnLoss)
    with pytest.raises(ValueError, match="model must leave the loss to BasicTS"):
        BasicTSLauncher.launch_training(config)


def own_collate(samples):
    return {name: torch.stack([torch.as_tensor(sample[name]) for sample in samples]) for name in samples[0]}


@pytest.mark.parametrize(
    "settings", [{"train_data_prefetch": True}, {"train_data_num_workers": 1, "train_data_collate_fn": own_collate}]
)
def test_the_configs_loader_stays(data, settings):
    plain = trained(data, num_epochs=1)
    (data.parent / "checkpoints").rename(data.parent / "of the plain run")
    watch = trained(data, num_epochs=1, **settings)
    assert watch.ids == plain.ids
    assert watch.losses == plain.losses


def test_readme(data):
    names = {"BasicTSForecastingConfig": BasicTSForecastingConfig, "BasicTSLauncher": BasicTSLauncher, "STID": STID}
    names["settings"] = settings_of(data) | {"num_epochs": 2}
    exec(code_of("BasicTS"), names)
    (pruning,) = names["config"].callbacks
    assert pruning.sampler.epoch == 1
    assert pruning.sampler.table.num_trained == NUM_WINDOWS // 2


def test_the_example():
    command = [sys.executable, str(ROOT / "examples" / "basicts_stid.py"), "--epochs", "2", "--rows", "400"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    lines = [line.split(", validation MAE")[0] for line in done.stdout.splitlines() if line.startswith("epoch")]
    assert lines == [
        "epoch 0: 108 of 108 planned windows, 2 steps, 1 validations",
        "epoch 1: 108 of 108 planned windows, 4 steps, 2 validations",
    ]
