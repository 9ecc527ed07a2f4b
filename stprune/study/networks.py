"""The models of a study, at widths for two cores; the models' own defaults are those of their papers."""

from __future__ import annotations

from torch import nn

from stprune.models import STID, GraphWaveNet, STAEformer, TSMixer
from stprune.study.problem import HISTORY, HORIZON, Problem
from stprune.study.spec import MODELS, Spec


def build(spec: Spec, problem: Problem) -> nn.Module:
    """A new model of the run; its initial weights are drawn from torch's global generator.

    With d = `spec.dim`:

    - "stid": four embeddings of width d, three layers of width 4 d. The paper's d is 32.
    - "tsmixer": channel-independent; patches of 3 steps with d features, two layers; three in its authors' library.
    - "graph-wavenet": residual and dilation channels d, skip 4 d, end 8 d; the paper's are 32, 256 and 512. One block of
      dilations 1, 2, 4 and 8 in place of four blocks of 1 and 2: it sees all 12 steps as well, with a quarter of the products
      with the graph. Layer norm in place of batch norm, whose statistics would be worse the smaller the batch. On the problem's
      adjacency and a learned one.
    - "staeformer": value, day, week and adaptive embeddings of width d / 2, tokens of width 2 d, feed-forward maps of 4 d, one
      layer over time and one over nodes, heads of 16 channels (else one head); the paper's are 24 and 80, 152, 256, three and
      38.

    Args:
        spec: of the run.
        problem: the series.

    Raises:
        ValueError: `spec.model` is no name from `MODELS`; the width is below 1, or odd with "staeformer".
    """
    nodes, per_day, d = problem.num_nodes, problem.steps_per_day, spec.dim
    sizes = {"history": HISTORY, "horizon": HORIZON}
    if spec.model == "stid":
        return STID(nodes, steps_per_day=per_day, dim=d, **sizes)
    if spec.model == "tsmixer":
        return TSMixer(patch_length=3, dim=d, num_layers=2, **sizes)
    if spec.model == "graph-wavenet":
        widths = {"residual_dim": d, "dilation_dim": d, "skip_dim": 4 * d, "end_dim": 8 * d}
        return GraphWaveNet(nodes, problem.adjacency, num_blocks=1, num_layers=4, norm="layer", **widths, **sizes)
    if spec.model == "staeformer":
        if d % 2:
            raise ValueError(f"build: dim must be even with staeformer, got {d}")
        widths = {"dim": d // 2, "adaptive_dim": d // 2, "feed_forward_dim": 4 * d, "num_layers": 1}
        widths["num_heads"] = d // 8 if d % 8 == 0 else 1
        return STAEformer(nodes, steps_per_day=per_day, **widths, **sizes)
    raise ValueError(f"build: model must be one of {', '.join(MODELS)}, got {spec.model}")
