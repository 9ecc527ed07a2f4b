"""A GPU's place taken by the CPU: tensors that say "cuda", whose ops are counted.

What Python does with a device is the same there: which branch it takes, how many kernels it launches, where it waits. Ops of
ours run on the CPU's kernels; what they would cost on a GPU stands in `COSTS`.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

CUDA = torch.device("cuda", 0)
VIEWS = "view _unsafe_view slice select expand detach alias unsqueeze squeeze permute as_strided t transpose split unbind"
NO_KERNEL = {*VIEWS.split(), "empty", "new_empty", "empty_strided", "empty_like", "lift_fresh"}
WAITS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "_unique2", "bincount", "masked_select"}


class OnCuda(torch.Tensor):
    """A tensor of the CPU that says it is on a GPU."""

    @staticmethod
    def __new__(cls, inner):
        own = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, device=CUDA
        )
        own.inner = inner
        return own

    def __repr__(self):
        return f"OnCuda({self.inner})"

    def tolist(self):
        StandIn.now.waits.append("tolist")
        return self.inner.tolist()

    def item(self):
        StandIn.now.waits.append("item")
        return self.inner.item()

    def __int__(self):
        return int(self.item())

    def __float__(self):
        return float(self.item())

    def __bool__(self):
        return bool(self.item())

    # torch's own indexing, inversion and nonzero look for a GPU.
    def __getitem__(self, key):
        if isinstance(key, slice):
            return torch.ops.aten.slice.Tensor(self, 0, key.start, key.stop, key.step or 1)
        if isinstance(key, int):
            return torch.ops.aten.select.int(self, 0, key)
        if isinstance(key, tuple):
            rows, columns = key
            if isinstance(columns, int):
                return torch.ops.aten.select.int(self[rows], 1, columns)
            return torch.ops.aten.slice.Tensor(self[rows], 1, columns.start, columns.stop)
        StandIn.now.waits += ["nonzero"] * (key.dtype == torch.bool)
        return torch.ops.aten.index.Tensor(self, [key])

    def __setitem__(self, key, value):
        StandIn.now.waits += ["nonzero"] * (key.dtype == torch.bool)
        value = value if isinstance(value, torch.Tensor) else torch.full((), value, dtype=self.dtype, device=CUDA)
        torch.ops.aten.index_put_.default(self, [key], value)

    def nonzero(self):
        return torch.ops.aten.nonzero.default(self)

    def __invert__(self):
        return torch.bitwise_not(self)

    __torch_dispatch__ = None


class StandIn(TorchDispatchMode):
    """Takes the place of a GPU inside; counts.

    Attributes:
        launches: kernels of torch's, by name; and ops of ours, as (name, number of elements).
        waits: what made the host wait, by name.
        fetched: ops that took a tensor from the host.
    """

    now = None
    # torch looks for no CUDA under a mode of this kind.
    _mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __init__(self):
        super().__init__()
        torch._C._ensureCUDADeviceGuardSet()
        StandIn.now = self
        self.forget()

    def __enter__(self):
        # torch.tensor(..., device=...) makes its tensor on the CPU, and brings it over by an op.
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(False)
        super().__exit__(*error)

    def forget(self):
        self.launches, self.ops, self.waits, self.fetched = [], [], [], 0

    @property
    def cost(self):
        """Launches and waits, of torch's kernels and ours."""
        launches, waits = (sum(COSTS[name][i] for name in self.ops) for i in (0, 1))
        return launches + len(self.launches), waits + len(self.waits)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name, flat = func._schema.name.split("::")[1], []
        tree_map(flat.append, (args, kwargs))
        here = [x for x in flat if isinstance(x, OnCuda)]
        device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if not here and (device is None or device.type == "cpu"):
            return func(*args, **kwargs)
        ours = func.namespace == "stprune"
        to_host = (name == "copy_" and not isinstance(args[0], OnCuda)) or (device is not None and device.type == "cpu")
        self.fetched += any(isinstance(x, torch.Tensor) and not isinstance(x, OnCuda) and x.dim() > 0 for x in flat)
        if to_host or name in WAITS:
            self.waits.append(name)
        elif ours:
            self.ops.append(f"{name} with strata" if name == "plan_budget" and args[4] is not None else name)
        elif name not in NO_KERNEL:
            self.launches.append(name)
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        # An index may lie on the host: torch brings it over, and waits.
        plain = tree_map(lambda x: x.inner if isinstance(x, OnCuda) else x, (args, kwargs))
        result = func(*plain[0], **plain[1])
        if to_host:
            return args[0] if name == "copy_" else result
        written = next((x for x in here if x.inner is result), None)
        if written is not None:
            return written
        # What an op of ours says on the host lies on the host.
        on_host = {i for i, x in enumerate(result) if ours and name in ON_HOST.get(i, ())} if isinstance(result, tuple) else ()
        if isinstance(result, tuple):
            return type(result)(x if i in on_host else wrapped(x) for i, x in enumerate(result))
        return tree_map(wrapped, result)


# Launches and waits of ops with a CUDA kernel, of more than 2^17 elements: tests/test_cuda_host.py counts them.
COSTS = {
    "select": (6, 0),
    "finite_stats": (2, 0),
    "draw": (2, 0),
    "draw_threshold": (7, 1),
    "plan_budget": (9, 2),
    "plan_budget with strata": (11, 2),
    "calibrate": (2, 0),
    "draw_spaced": (4, 1),
    "shuffle": (1, 0),
    "permute": (1, 0),
    "table_age": (1, 0),
    "count_nonfinite": (1, 0),
}
# Which of their results ops write on the host.
ON_HOST = {1: ("select", "draw", "shuffle"), 2: ("plan_budget", "draw_threshold")}


def wrapped(x):
    return OnCuda(x) if isinstance(x, torch.Tensor) and not isinstance(x, OnCuda) else x
