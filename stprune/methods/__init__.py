"""How scores become inclusion probabilities and weights: ST-Prune and the known dynamic pruners (methods/README.md).

A method is a frozen value. One of your own is a small class with two functions, `inclusion` and `weights`:

    class Squared(stprune.Method):
        name = "squared"

        def inclusion(self, scores, *, keep_ratio, seed, epoch):
            return budget_probability(scores.square(), keep_ratio * len(scores), 0.0)

        def weights(self, probability):
            return 1.0 / probability
"""

from __future__ import annotations

from stprune.methods.base import Method, UserMethod, asked_count
from stprune.methods.greedy import UCB, EpsilonGreedy, TopK
from stprune.methods.infobatch import InfoBatch
from stprune.methods.seta import SeTa
from stprune.methods.spaced import Spaced
from stprune.methods.st_prune import STPrune
from stprune.methods.uniform import RS2, Full, SoftRandom

__all__ = [
    "METHODS",
    "RS2",
    "UCB",
    "EpsilonGreedy",
    "Full",
    "InfoBatch",
    "Method",
    "STPrune",
    "SeTa",
    "SoftRandom",
    "Spaced",
    "TopK",
    "UserMethod",
    "asked_count",
    "resolve",
]

METHODS: dict[str, type[Method]] = {
    kind.name: kind for kind in (STPrune, InfoBatch, SoftRandom, RS2, EpsilonGreedy, UCB, SeTa, TopK, Spaced, Full)
}
"""Methods by name."""


def resolve(op: str, method: str | Method | object) -> Method:
    """The method object for a name, an instance, or any object with `inclusion` and `weights`.

    Raises:
        ValueError: an unknown name.
        TypeError: an object without the two functions, or a class.
    """
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"{op}: method must be one of {', '.join(sorted(METHODS))} or an object, got {method!r}")
        return METHODS[method]()
    if isinstance(method, Method):
        return method
    if isinstance(method, type):
        raise TypeError(f"{op}: method must be an object, got the class {method.__name__}")
    if callable(getattr(method, "inclusion", None)) and callable(getattr(method, "weights", None)):
        return UserMethod(method)
    raise TypeError(f"{op}: method must have the functions inclusion and weights, got {type(method).__name__}")
