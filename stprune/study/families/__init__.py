"""Families: rules that decide on which windows, and on which of their nodes, each optimizer step trains."""

from stprune.study.families.base import Draw, Family
from stprune.study.families.graphs import NodesCluster, NodesRoots
from stprune.study.families.groups import NodesFrequency, NodesStratified
from stprune.study.families.nodes import NodesBatch, NodesGrowing, NodesPartition, NodesPriority, NodesUniform
from stprune.study.families.pairs import Pairs, WindowsAndNodes
from stprune.study.families.windows import (
    RS2,
    EvenWindows,
    Full,
    InfoBatch,
    SeTa,
    SoftRandom,
    STPrune,
    STPruneConstant,
    STPruneCosine,
    STPruneLoss,
    STPruneSpatial,
    STPruneUnstratified,
    STPruneUnweighted,
)
from stprune.study.problem import Problem
from stprune.study.spec import Spec

__all__ = ["FAMILIES", "Draw", "Family", "make"]

FAMILIES: dict[str, type[Family]] = {
    "full": Full,
    "rs2": RS2,
    "soft-random": SoftRandom,
    "infobatch": InfoBatch,
    "seta": SeTa,
    "st-prune": STPrune,
    "st-prune-loss": STPruneLoss,
    "st-prune-spatial": STPruneSpatial,
    "st-prune-unstratified": STPruneUnstratified,
    "st-prune-unweighted": STPruneUnweighted,
    "st-prune-cosine": STPruneCosine,
    "st-prune-constant": STPruneConstant,
    "even-windows": EvenWindows,
    "nodes-uniform": NodesUniform,
    "nodes-batch": NodesBatch,
    "nodes-partition": NodesPartition,
    "nodes-frequency": NodesFrequency,
    "nodes-stratified": NodesStratified,
    "nodes-priority": NodesPriority,
    "nodes-cluster": NodesCluster,
    "nodes-roots": NodesRoots,
    "nodes-growing": NodesGrowing,
    "pairs": Pairs,
    "windows-and-nodes": WindowsAndNodes,
}
"""Families by name, in the report's order."""


def make(spec: Spec, problem: Problem) -> Family:
    """The family of a spec, ready to draw.

    Args:
        spec: of the run.
        problem: the series that `spec.data` names, prepared.

    Raises:
        ValueError: the name is unknown, or a setting does not fit the family; nothing was made.
    """
    if spec.family not in FAMILIES:
        raise ValueError(f"make: family must be one of {', '.join(FAMILIES)}, got {spec.family!r}")
    FAMILIES[spec.family].check(spec, problem)
    return FAMILIES[spec.family](spec, problem)
