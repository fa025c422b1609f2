"""What weights and optimizer were before a step, so that it can be judged and taken back.

Knows nothing of why a step would be taken back. Its memory is used again as long as the shapes stay: to copy all weights one by one, each
into new memory, costs more than the step itself.
"""

import torch
from torch import Tensor


class Footing:
    """Where all that an optimizer moves stood last."""

    def __init__(self) -> None:
        self._parameters: list[torch.nn.Parameter] = []
        self._states: dict[Tensor, dict[str, Tensor]] = {}
        self._had_state: set[Tensor] = set()
        self._live: list[Tensor] = []
        self._kept: list[Tensor] = []
        self.weights = torch.zeros(0)
        """All weights in a row, as they were."""
        self._change = torch.zeros(0)

    @torch.no_grad()
    def take(self, optimizer: torch.optim.Optimizer) -> None:
        """From here on this is what can be gone back to."""
        self._parameters, self._states = parameters_of(optimizer), optimizer.state
        self._had_state = set(optimizer.state)
        self._live = [*self._parameters, *(value for state in optimizer.state.values() for value in state.values())]
        if list(map(_form, self._live)) != list(map(_form, self._kept)):
            self._make_room()
        torch._foreach_copy_(self._kept, self._live)

    @torch.no_grad()
    def change(self) -> Tensor:
        """By how much all weights have moved since, in a row; the next call overwrites it."""
        torch.cat([parameter.flatten() for parameter in self._parameters], out=self._change)
        return self._change.sub_(self.weights)

    @torch.no_grad()
    def go_back(self) -> None:
        """Make everything what it was."""
        torch._foreach_copy_(self._live, self._kept)
        for parameter in set(self._states) - self._had_state:
            del self._states[parameter]

    def _make_room(self) -> None:
        self.weights = torch.cat([parameter.flatten() for parameter in self._parameters])
        self._change = torch.empty_like(self.weights)
        rows = torch.split(self.weights, [parameter.numel() for parameter in self._parameters])
        views = [row.view_as(parameter) for row, parameter in zip(rows, self._parameters, strict=True)]
        self._kept = [*views, *map(torch.empty_like, self._live[len(views) :])]


def parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """All weights, as the optimizer holds them: a walk through the modules takes longer than a copy of them all."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _form(tensor: Tensor) -> tuple[torch.Size, torch.device]:
    return tensor.shape, tensor.device
