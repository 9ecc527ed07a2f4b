"""A script of two DDP processes, started by test_lightning.py: it trains, then continues from checkpoints of every kind.

Usage: python lightning_ranks.py FOLDER. Each rank writes what it trained on to FOLDER/RANK.json.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from test_lightning import KINDS, NAMES, Fit

FILES = ("step 2", "validation 4", "epoch 4", "step 8")
DDP = {"strategy": "ddp", "devices": 2, "num_sanity_val_steps": 0}


def outcome_of(kind, **options):
    fit = Fit(NAMES[0], kind, use_distributed_sampler=kind != "batches", **DDP, **options)
    return {"ids": fit.ids, "validations": fit.validations, "estimate": fit.estimate, "rank": fit.trainer.global_rank}


def main(folder):
    outcome = {}
    for kind in KINDS:
        outcome[kind] = {"whole": outcome_of(kind, folder=folder)}
        outcome[kind] |= {name: outcome_of(kind, checkpoint=folder / name) for name in FILES}
    rank = outcome["sampler"]["whole"]["rank"]
    (folder / f"{rank}.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
