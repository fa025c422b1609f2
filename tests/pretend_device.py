"""A device that is not there: its tensors live in CPU memory, but an operation that mixes them with the CPU's fails, as it would on a GPU.

In place of torch's FakeTensorMode, which has no numbers (an update asks for some on its way) and which a build without CUDA can't
differentiate. Torch knows such a tensor as one of its `meta` device.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

PLACE = "meta"
MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
"""What may have tensors of both."""


class Distant(Tensor):
    """A tensor of the device."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> "Distant":
        tensor: Distant = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype, device=PLACE
        )
        tensor.raw = raw
        return tensor

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["raw"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: object) -> "Distant":
        return Distant(inner["raw"])

    @classmethod
    def __torch_dispatch__(cls, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} of a tensor of the device, after its time")


class PretendDevice(TorchDispatchMode):
    """While it is entered, `torch.device(PLACE)` is this device; `num_operations` were done on it."""

    def __init__(self) -> None:
        super().__init__()
        self.num_operations = 0

    def __enter__(self) -> "PretendDevice":
        torch._C._set_only_lift_cpu_tensors(True)  # so that making a tensor there is an operation of its own
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(False)

    def __torch_dispatch__(self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        distant = [tensor for tensor in tensors if isinstance(tensor, Distant)]
        strays = [tuple(tensor.shape) for tensor in tensors if not isinstance(tensor, Distant) and tensor.dim()]
        if distant and strays and func not in MOVES:
            raise AssertionError(f"{func} has tensors of the device and one of the CPU: {strays}")
        device = kwargs.get("device")
        is_there = torch.device(device).type == PLACE if device is not None else bool(distant)
        self.num_operations += is_there
        known = {id(tensor.raw): tensor for tensor in distant}

        def back(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return known.get(id(leaf)) if id(leaf) in known else Distant(leaf) if is_there else leaf

        return tree_map(back, func(*tree_map(_raw, args), **tree_map(_raw, kwargs)))


def _raw(leaf: Any) -> Any:
    if isinstance(leaf, Distant):
        return leaf.raw
    return torch.device("cpu") if isinstance(leaf, torch.device) else leaf
