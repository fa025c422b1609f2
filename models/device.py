"""Where the steps of training are computed: on the CPU, or on one GPU that the weights visit. Knows nothing of what is trained.

Before and after a visit all state is on the CPU: checkpoints, versions, forked savers and the request path know of no GPU.
During one, torch makes every tensor on the device, so whoever trains says `torch.as_tensor(array)` and never where.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

NAMES, PRECISIONS = ("cpu", "cuda"), ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Device:
    """Placement that weights depend on: other devices and precisions round otherwise."""

    name: str = "cpu"
    precision: str = "float32"
    """Of what `torch.autocast` takes to be safe in it; bfloat16 on cuda only."""

    def __post_init__(self) -> None:
        for field, known in (("name", NAMES), ("precision", PRECISIONS)):
            if getattr(self, field) not in known:
                raise ValueError(f"device.{field} is {getattr(self, field)!r}; it must be one of {', '.join(known)}")
        if self.precision != "float32" and self.name != "cuda":
            raise ValueError(f"device.precision is {self.precision!r}; on {self.name} it must be float32")

    def require(self) -> None:
        """ValueError where this machine, or this build of torch, has no such device."""
        if self.name == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device.name is 'cuda', but torch {torch.__version__} finds no GPU here; it must be cpu")

    def has_bfloat16(self) -> bool:
        """Whether it has instructions for matrix products of bfloat16: they take ten times as long as those of float32 where it has not."""
        capabilities = torch.cpu.get_capabilities()
        return self.name == "cuda" or any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))

    @contextmanager
    def visit(self, module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Iterator[None]:
        """Inside, the weights, what the optimizer keeps of them, and every tensor that is made are on the device.

        Gradients are not taken home.
        """
        if self.name == "cpu":
            yield
            return
        self.require()
        precise = torch.autocast(self.name, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()
        try:
            _move(module, optimizer, self.name)
            with torch.device(self.name), precise:
                yield
        finally:
            module.zero_grad(set_to_none=True)
            _move(module, optimizer, "cpu")


def _move(module: nn.Module, optimizer: torch.optim.Optimizer | None, place: str) -> None:
    module.to(place)
    for kept in optimizer.state.values() if optimizer else ():
        kept.update({name: value.to(place) for name, value in kept.items() if isinstance(value, torch.Tensor)})
