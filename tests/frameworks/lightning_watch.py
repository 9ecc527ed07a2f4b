"""What a run of a library on Lightning must keep: ids = plan, validations = epochs, steps = the run's total."""

import itertools

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def watching(package, sampler, ids_of):
    """A callback that keeps what a run did; `ids_of` finds the ids [B] in a training batch."""

    class Watch(package.Callback):
        def __init__(self):
            self.batches, self.plans, self.validations, self.losses = [[]], [], [], []

        def on_train_batch_start(self, trainer, module, batch, _):
            self.batches[-1].append(ids_of(batch).tolist())

        def on_train_batch_end(self, trainer, module, outputs, *_):
            self.losses.append(float(outputs["loss"]))

        def on_validation_end(self, trainer, _):
            if not trainer.sanity_checking:
                self.validations.append(sum(map(len, self.batches)))

        def on_train_epoch_end(self, trainer, _):
            self.plans.append(sampler.plan.indices.tolist())
            self.batches.append([])

        def check(self, batch_size, epochs):
            steps = [len(batches) for batches in self.batches[:-1]]
            assert [sorted(itertools.chain(*batches)) for batches in self.batches[:-1]] == self.plans
            assert len(self.plans) == epochs
            assert self.validations == list(itertools.accumulate(steps))
            assert sum(steps) == sampler.total_steps(batch_size)
            assert sampler.table.scores.isfinite().all()

    return Watch()
