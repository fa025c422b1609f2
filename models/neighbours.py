"""What was learned of an item that is hardly known, from the items most like it: rare items lean on their content neighbours.

Knows nothing of users or training. An item met n times keeps n / (n + κ) of what was learned of it and takes the rest from the mean
of its neighbours (shrinkage to a local mean, James and Stein 1961 in spirit); a new one, n = 0, begins as that mean. Without it a
new item's content vector stands nearer to every state than the trained ones do, and is shown to everybody.
Shapes: N items, R item rows (0 = none), M neighbours.
"""

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
    lean(decoder, rows_N, torch.zeros(len(rows_N)), 1.0, first_row)


@torch.no_grad()
def lean(decoder: Decoder, rows_N: Tensor, times_N: Tensor, kappa: float, num_rows: int) -> None:
    """Let these rows lean on the others of 1..num_rows - 1, by how often each was met. All neighbours are taken as they were before."""
    parts, times = torch.split(rows_N, AT_ONCE), torch.split(times_N, AT_ONCE)
    leaned = [_leaned(decoder, part, met, kappa, num_rows) for part, met in zip(parts, times, strict=True)]
    for at, parameter in enumerate(decoder.row_parameters()):
        for part, values in zip(parts, leaned, strict=True):
            parameter[part] = values[at]


def _leaned(decoder: Decoder, rows_N: Tensor, times_N: Tensor, kappa: float, num_rows: int) -> list[Tensor]:
    """New values of each row parameter."""
    likeness_NR = decoder.content_RC[rows_N] @ decoder.content_RC[:num_rows].T
    likeness_NR[:, 0] = -1
    inside_N = rows_N < num_rows
    likeness_NR[torch.arange(len(rows_N))[inside_N], rows_N[inside_N]] = -1
    cosine_NM, neighbour_NM = likeness_NR.topk(min(NEIGHBOURS, num_rows), 1)
    weight_NM = cosine_NM.clamp(min=0) ** SHARPNESS
    weight_NM = weight_NM / (weight_NM.sum(1, keepdim=True) + RESERVE)
    own_N = times_N / (times_N + kappa) if kappa else torch.ones(len(times_N))
    values = []
    for parameter in decoder.row_parameters():
        near_NMD = parameter[neighbour_NM].flatten(2) if parameter.dim() > 1 else parameter[neighbour_NM][..., None]
        mean_N = (weight_NM[:, None] @ near_NMD)[:, 0].view(len(rows_N), *parameter.shape[1:])
        share_N = own_N.view(-1, *[1] * (parameter.dim() - 1))
        values.append(share_N * parameter[rows_N] + (1 - share_N) * mean_N)
    return values
