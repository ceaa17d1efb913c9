"""A device that this machine has not: tensors that claim to be there, computed here, and never mixed with others.

torch refuses tensors of two devices in one operation, but for single numbers and indices. So does this, and so what is
made on the wrong device shows itself without a GPU.
"""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

# What may read or write across devices, and where single numbers are no exception.
ACROSS = ("_to_copy", "copy_", "index", "index_put_")
STRICT = ("equal", "cat", "stack", "mm", "bmm", "addmm")


class There(torch.Tensor):
    """A tensor on the other device, whose numbers are in ``here``."""

    @staticmethod
    def __new__(cls, here, device):
        layout = {"strides": here.stride(), "storage_offset": here.storage_offset()}
        found = torch.Tensor._make_wrapper_subclass(cls, here.shape, **layout, dtype=here.dtype, device=device)
        found.here = here
        return found

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})

    def tolist(self):  # which torch has for no subclass
        return self.here.tolist()


class OtherDevice(TorchDispatchMode):
    """Within it tensors can be made on the other device. Counts what is computed there and here, by operation.

    It goes by the name of a device that torch knows, of whose backward passes it takes care on the CPU's thread.
    """

    def __init__(self):
        super().__init__()
        self.device = torch.device("lazy", 0)
        self.there, self.here = Counter(), Counter()

    def __enter__(self):
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(1.0, device=...) is made here and then moved
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(False)
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        elsewhere = any(isinstance(value, There) for value in tree_flatten((args, kwargs))[0])
        (self.there if elsewhere else self.here)[named(function)] += 1
        wanted = kwargs.get("device")
        if wanted is None or torch.device(wanted).type != self.device.type:
            return compute(function, args, kwargs)
        return place(compute(function, args, {**kwargs, "device": torch.device("cpu")}), self.device)


def named(function):
    return function._schema.name.removeprefix("aten::")


def compute(function, args, kwargs):
    """The operation, computed here: on the other device where one of its tensors is."""
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    there = [value for value in tensors if isinstance(value, There)]
    name = named(function)
    if there and name not in ACROSS:
        mixed = [x for x in tensors if not isinstance(x, There) and (x.dim() or name in STRICT)]
        assert not mixed, (
            f"{name}: tensors {[tuple(x.shape) for x in mixed]} are on the CPU, others on {there[0].device}"
        )
    if name in ("index", "index_put_", "copy_") and there and not isinstance(args[0], There):
        assert name == "copy_", f"{name}: a tensor on the CPU, indexed by one on {there[0].device}"
    here = tree_map_only(There, lambda value: value.here, (args, kwargs))
    found = function(*here[0], **here[1])
    known = {id(value.here): value for value in there}  # written in place, they stay the tensors that they are
    moved = isinstance(kwargs.get("device"), torch.device)  # to here
    if not there or moved or (name == "copy_" and not isinstance(args[0], There)):
        return found
    device = there[0].device
    return tree_map_only(
        torch.Tensor, lambda value: known[id(value)] if id(value) in known else place(value, device), found
    )


def place(value, device):
    return tree_map_only(torch.Tensor, lambda x: x if isinstance(x, There) else There(x, device), value)
