"""What each op refuses and how it says so, one row each; tests/test_ops.py has the refusals that all share."""

import math

import pytest
import torch

import stprune
from stprune.ops.budget import inclusion_budget
from stprune.ops.finite_mean import finite_stats
from stprune.ops.plan_budget import Buffers, plan_budget

SEED = {"seed": 0, "epoch": 0}
TEN, HALVES, IDS = torch.ones(10), torch.full((10,), 0.5), torch.arange(10)
LONG = torch.empty(20, dtype=torch.int64)
X, NODE = torch.zeros(2, 3, 5, 1), torch.tensor([[0, 4], [1, 1]])
ROWS = torch.ones(2, 3)
FINE = torch.zeros(2, 3, 4)
BUDGET = {"alpha": 0.5, "count": 2, "minimum": 0.0}

# function: its arguments where they are fine
GOOD = {
    stprune.select: {"keys": TEN, "k": 2},
    stprune.topk: {"keys": TEN, "k": 2},
    stprune.draw: {"probability": HALVES, **SEED},
    stprune.draw_weighted: {"weights": TEN, "k": 2, **SEED},
    stprune.draw_threshold: {"scores": TEN, "keep": 0.5, **SEED},
    stprune.draw_spaced: {"scores": TEN, "spacing": 3, "threshold": 1.0, **SEED},
    stprune.shuffle: {"indices": IDS, **SEED},
    stprune.permute: {"n": 10, **SEED},
    stprune.draw_nodes: {"index": IDS, "num_nodes": 10, "count": 3, **SEED},
    stprune.draw_nodes_weighted: {"weights": ROWS, "index": torch.tensor([0, 1]), "count": 2, **SEED},
    stprune.gather_nodes: {"x": X, "node": NODE},
    stprune.residual_stats: {"prediction": FINE, "target": FINE},
    stprune.score: {"prediction": FINE, "target": FINE},
    finite_stats: {"values": TEN},
    inclusion_budget: {"scores": TEN, **BUDGET},
    plan_budget: {"scores": TEN, **BUDGET, **SEED},
}

# function: what is changed, the error and what it says
REFUSED = {
    **{
        key: [
            ({"k": 11}, ValueError, r"k must lie in \[0, 10\], got 11"),
            ({"keys": IDS}, TypeError, "keys must be float32"),
            ({"keys": torch.tensor(1.0)}, ValueError, "keys must have at least one dimension"),
            ({"keys": torch.rand(2, 5), "k": 6}, ValueError, r"k must lie in \[0, 5\], got 6"),
        ]
        for key in (stprune.select, stprune.topk)
    },
    stprune.draw: [
        ({"count": 6}, ValueError, "count must be the sum of probability to within 0.5, got 6 for a sum of 5"),
        ({"count": 11}, ValueError, r"count must lie in \[0, 10\], got 11"),
        ({"probability": HALVES.half()}, TypeError, "probability must be float32 or float64"),
        ({"probability": HALVES.view(2, 5)}, ValueError, "probability must have one dimension"),
    ],
    stprune.draw_weighted: [
        ({"weights": (IDS < 3).float(), "k": 4}, ValueError, r"more .* than have weight: k must lie in \[0, 3\].*got 4"),
        ({"weights": TEN.double()}, TypeError, "weights must be float32, got torch.float64"),
        ({"weights": TEN * math.nan}, ValueError, "weights must be at least 0, got nan at index 0"),
        ({"weights": TEN * -math.inf}, ValueError, "weights must be at least 0, got -inf at index 0"),
        ({"weights": torch.tensor([0.0, math.inf, 1.0]), "k": 3}, ValueError, r"k must lie in \[0, 2\].*got 3"),
        ({"weights": TEN.view(2, 5)}, ValueError, "weights must have one dimension"),
        ({"law": "gumbel"}, ValueError, "law must be one of priority, race, got 'gumbel'"),
    ],
    stprune.draw_threshold: [
        ({"scores": IDS}, TypeError, "scores must be float32"),
        ({"scores": ROWS}, ValueError, "scores must have one dimension"),
        ({"keep": 0.0}, ValueError, r"keep must lie in \(0, 1\], got 0"),
        ({"keep": True}, TypeError, "keep must be a number"),
        ({"out": (TEN, TEN)}, TypeError, "out indices must be torch.int64, got torch.float32"),
        ({"out": (IDS, torch.empty(20)[::2])}, ValueError, "out weights must be contiguous"),
    ],
    stprune.draw_spaced: [
        ({"scores": IDS}, TypeError, "scores must be float32"),
        ({"scores": ROWS}, ValueError, "scores must have one dimension"),
        ({"spacing": 0}, ValueError, "spacing must lie in .* got 0"),
        ({"spacing": 3.0}, TypeError, "spacing must be an integer"),
        ({"threshold": None}, TypeError, "threshold must be a number"),
        ({"threshold": math.nan}, ValueError, "threshold must not be NaN"),
    ],
    stprune.shuffle: [
        ({"indices": IDS.view(2, 5)}, ValueError, "indices must have one dimension"),
        ({"epoch": 0.5}, TypeError, "epoch must be an integer"),
    ],
    stprune.permute: [
        ({"n": (1 << 40) + 1, "start": 0, "stop": 1}, ValueError, "n must lie in"),
        ({"start": 5, "stop": 11}, ValueError, r"stop must lie in \[5, 10\], got 11"),
        ({"out": LONG[:9]}, ValueError, "out must have 10 elements"),
        ({"out": TEN}, TypeError, "out must be int64"),
        ({"out": LONG[::2]}, ValueError, "out must be contiguous"),
    ],
    stprune.draw_nodes: [
        ({"count": 11}, ValueError, r"count must lie in \[1, 10\], got 11"),
        ({"count": 0}, ValueError, r"count must lie in \[1, 10\], got 0"),
        ({"num_nodes": 0}, ValueError, "num_nodes must lie in"),
        ({"index": TEN}, TypeError, "index must be int64"),
        ({"index": IDS.view(2, 5)}, ValueError, "index must have one dimension"),
        ({"index": torch.tensor([3, -1])}, ValueError, rf"index must lie in \[0, {(1 << 56) - 1}\], got -1"),
        ({"index": torch.tensor([1 << 56])}, ValueError, rf"index must lie in \[0, {(1 << 56) - 1}\]"),
    ],
    stprune.draw_nodes_weighted: [
        ({"weights": ROWS.double()}, TypeError, "weights must be float32"),
        ({"weights": ROWS[0]}, ValueError, "weights must have the shape"),
        ({"weights": torch.ones(3, 3)}, ValueError, "weights must have one row for each of 2 windows, got 3"),
        ({"weights": torch.tensor([[1.0, 0.0, 1.0]] * 2)}, ValueError, "weights must be positive, got 0 at 1"),
        ({"weights": ROWS * math.nan}, ValueError, "weights must be positive, got nan"),
        ({"weights": ROWS * -math.inf}, ValueError, "weights must be positive, got -inf"),
        ({"index": torch.tensor([0.0, 1.0])}, TypeError, "index must be int64"),
        ({"index": torch.tensor([0, -1])}, ValueError, "index must lie in"),
        ({"count": 0}, ValueError, "count must lie in"),
        ({"count": 4}, ValueError, "count must lie in"),
    ],
    stprune.gather_nodes: [
        ({"node": NODE.int()}, TypeError, "node must be int64, got torch.int32"),
        ({"node": NODE.double()}, TypeError, "node must be int64, got torch.float64"),
        ({"node": NODE[0]}, ValueError, r"node must have shape \[B, m\] with B = 2, got \(2,\)"),
        ({"node": NODE[:1]}, ValueError, r"node must have shape \[B, m\] with B = 2, got \(1, 2\)"),
        ({"x": X[0, 0, 0]}, ValueError, r"x must have at least two dimensions, got shape \(1,\)"),
        ({"dim": 0}, ValueError, "dim must not be the sample dimension 0, got 0"),
        ({"dim": -4}, ValueError, "dim must not be the sample dimension 0, got -4"),
        ({"dim": 4}, ValueError, r"dim must lie in \[-4, 3\], got 4"),
        ({"x": X[:, 0, :, 0]}, ValueError, r"dim must lie in \[-2, 1\], got 2"),
        ({"dim": 2.0}, TypeError, "dim must be an integer, got 2.0"),
        (
            {"node": NODE + 1},
            ValueError,
            r"node must lie in \[0, 4\], got 5; x of shape \(2, 3, 5, 1\) has .* dim=2",
        ),
        ({"node": NODE - 1}, ValueError, r"node must lie in \[0, 4\], got -1"),
        ({"x": X[:, :, :0]}, ValueError, r"node must be empty where x has no nodes, got shape \(2, 2\)"),
        ({"node": NODE.to("meta")}, RuntimeError, "node must be on the device of x, cpu, got meta"),
    ],
    stprune.residual_stats: [
        ({"prediction": 1.0}, TypeError, "prediction must be a tensor, got float"),
        ({"target": None}, TypeError, "target must be a tensor, got NoneType"),
        ({"prediction": FINE.long()}, TypeError, "prediction must be float32, .* got torch.int64"),
        ({"target": FINE.long()}, TypeError, "target must be float32, .* got torch.int64"),
        ({"target": FINE.double()}, TypeError, "target must have the prediction's dtype torch.float32, got torch.float64"),
        ({"target": FINE[:1]}, ValueError, r"target must have the prediction's shape \(2, 3, 4\), got \(1, 3, 4\)"),
        (
            {"prediction": FINE[0, 0], "target": FINE[0, 0]},
            ValueError,
            r"prediction must have at least two dimensions .* got shape \(4,\)",
        ),
        ({"mask": [True]}, TypeError, "mask must be a tensor, got list"),
        ({"mask": FINE}, TypeError, "mask must be bool, got torch.float32"),
        ({"mask": FINE[..., :1] > 0}, ValueError, r"mask must have .* \(2, 3, 4\), got \(2, 3, 1\)"),
        ({"null_value": "0"}, TypeError, "null_value must be a number, got '0'"),
        ({"null_value": True}, TypeError, "null_value must be a number, got True"),
        ({"loss": "rmse"}, ValueError, "loss must be one of mae, mse, huber, mape, quantile, got 'rmse'"),
        ({"loss": None}, ValueError, "loss must be one of mae, mse, huber, mape, quantile, got None"),
        ({"huber_delta": 0.0}, ValueError, r"huber_delta must lie in \(0, inf\], got 0"),
        ({"huber_delta": -1}, ValueError, r"huber_delta must lie in \(0, inf\], got -1"),
        ({"huber_delta": math.nan}, ValueError, r"huber_delta must lie in \(0, inf\], got nan"),
        ({"huber_delta": None}, TypeError, "huber_delta must be a number, got None"),
        ({"target": FINE.to("meta")}, RuntimeError, "target must be on the prediction's device cpu, got meta"),
        ({"mask": (FINE > 0).to("meta")}, RuntimeError, "mask must be on .* device cpu, got meta"),
        ({"dims": "TNC"}, ValueError, "dims must name each dimension once"),
        ({"dims": "BTNN"}, ValueError, "dims must name each dimension once"),
        ({"dims": "BTNX"}, ValueError, "dims must name each dimension once"),
        ({"dims": "BNHW"}, ValueError, "dims must name each dimension once"),
        ({"dims": "BTNC"}, ValueError, "dims must name the prediction's 3 dimensions, got 'BTNC'"),
        ({"dims": 3}, TypeError, "dims must be a string such as 'BTNC', got 3"),
    ],
    stprune.score: [
        *(
            ({name: value}, error, f"{name} {message}")
            for name in ("spatial", "temporal")
            for value, error, message in (
                (-0.5, ValueError, "must be finite and at least 0, got -0.5"),
                (math.nan, ValueError, "must be finite and at least 0, got nan"),
                (math.inf, ValueError, "must be finite and at least 0, got inf"),
                ("1", TypeError, "must be a number, got '1'"),
                (True, TypeError, "must be a number, got True"),
                (None, TypeError, "must be a number, got None"),
            )
        ),
        ({"target": FINE[:, :1]}, ValueError, "target must have the prediction's shape"),
        ({"loss": "rmse"}, ValueError, "loss must be one of"),
        ({"mask": FINE}, TypeError, "mask must be bool"),
    ],
    finite_stats: [
        ({"values": IDS}, TypeError, "values must be float32"),
        ({"values": ROWS}, ValueError, "values must have one dimension"),
    ],
    **{
        key: [
            ({"scores": TEN.bfloat16()}, TypeError, "scores must be float32 or float64, got torch.bfloat16"),
            ({"scores": ROWS}, ValueError, "scores must have one dimension"),
            ({"alpha": -0.5}, ValueError, "alpha must lie in"),
            ({"count": 11}, ValueError, r"count must lie in \[0, 10\], got 11"),
            ({"minimum": 1.5}, ValueError, r"minimum must lie in \[0, 1\], got 1.5"),
        ]
        for key in (inclusion_budget, plan_budget)
    },
}
REFUSED[plan_budget] = [
    *REFUSED[plan_budget],
    ({"count": 2.0}, TypeError, "count must be an integer"),
    ({"out": Buffers(IDS, TEN.double(), IDS.int())}, TypeError, "out weights must be"),
    ({"out": Buffers(IDS, TEN.clone(), TEN.clone())}, TypeError, "out scratch must be"),
]


@pytest.mark.parametrize(
    ("function", "change", "error", "message"),
    [(function, *row) for function, rows in REFUSED.items() for row in rows],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_refuses(function, change, error, message):
    with pytest.raises(error, match=f"^{function.__name__}: .*{message}"):
        function(**{**GOOD[function], **change})
