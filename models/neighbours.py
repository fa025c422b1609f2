"""What was learned of an item that is hardly known, from the items most like it: rare items lean on their content neighbours.

Knows nothing of users or training. An item met n times keeps n / (n + κ) of what was learned of it and takes the rest from the mean
of its neighbours (shrinkage to a local mean, James and Stein 1961 in spirit); a new one, n = 0, begins as that mean. Without it a
new item's content vector stands nearer to every state than the trained ones do, and is shown to everybody.
Shapes: N items, R item rows (0 = none), M neighbours.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.decoder import Decoder

NEIGHBOURS = 8
SHARPNESS = 4
"""Power of the cosine that weighs a neighbour."""
RESERVE = 0.1
"""What stands beside the neighbours' weights and takes nothing: an item like no other leans on nobody."""
AT_ONCE = 1024


def let_in(decoder: Decoder, content_NC: Tensor, first_row: int, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Admit new items from `first_row` on; each begins as the mean of its neighbours among the rows before."""
    decoder.admit(content_NC, first_row, optimizer)
    rows_N = torch.arange(first_row, first_row + len(content_NC))
    Neighbours.of(decoder, rows_N, first_row).lean(decoder, torch.zeros(len(rows_N)), 1.0)


@dataclass(frozen=True)
class Neighbours:
    """The rows most like each of some rows, and how much each weighs; whoever has fewer has others at no weight."""

    rows_N: Tensor
    neighbour_NM: Tensor
    weight_NM: Tensor

    @staticmethod
    @torch.no_grad()
    def of(decoder: Decoder, rows_N: Tensor, num_rows: int) -> "Neighbours":
        """Among 1..num_rows - 1, by their content: all of it is compared, some rows at a time."""
        parts = [_nearest(decoder.content_RC, part_N, num_rows) for part_N in torch.split(rows_N, AT_ONCE)]
        cosine_NM, neighbour_NM = (torch.cat(part) for part in zip(*parts, strict=True))
        weight_NM = cosine_NM.clamp(min=0) ** SHARPNESS
        return Neighbours(rows_N, neighbour_NM, weight_NM / (weight_NM.sum(1, keepdim=True) + RESERVE))

    @torch.no_grad()
    def lean(self, decoder: Decoder, times_N: Tensor, kappa: float) -> None:
        """Let the rows lean on them, by how often each was met. All neighbours are taken as they were before."""
        own_N1 = (times_N / (times_N + kappa) if kappa else torch.ones(len(times_N)))[:, None]
        for parameter in decoder.row_parameters():
            row_RX = parameter.view(len(parameter), -1)
            parts = zip(*(torch.split(tensor, AT_ONCE) for tensor in (self.weight_NM, self.neighbour_NM)), strict=True)
            mean_NX = torch.cat([(weight_NM[:, None] @ row_RX[neighbour_NM])[:, 0] for weight_NM, neighbour_NM in parts])
            row_RX[self.rows_N] = own_N1 * row_RX[self.rows_N] + (1 - own_N1) * mean_NX


def _nearest(content_RC: Tensor, rows_N: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Cosine and row of the nearest others, (N, M)."""
    likeness_NR = content_RC[rows_N] @ content_RC[:num_rows].T
    likeness_NR[:, 0] = -1
    inside_N = rows_N < num_rows
    likeness_NR[torch.arange(len(rows_N))[inside_N], rows_N[inside_N]] = -1
    cosine_NM, neighbour_NM = likeness_NR.topk(min(NEIGHBOURS, num_rows), 1)
    return cosine_NM, neighbour_NM
