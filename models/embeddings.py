"""The table of what was learned of each item: one torchrec embedding row an item, grown as items arrive, wiped when they die.

Knows nothing of content, ids or events. Row 0 stands for an unknown item. Shapes: R item rows, D width.
"""

import warnings

import torch
from torch import Tensor, nn

ROWS_STEP = 1024
"""Tables grow by whole steps, so that growing is rare."""


def capacity_for(num_rows: int) -> int:
    """The number of table rows that holds `num_rows`: the next multiple of ROWS_STEP."""
    return -(-num_rows // ROWS_STEP) * ROWS_STEP


class ItemTable(nn.Module):
    """Rows of width D. New rows are zero: an item nobody has met is known by its content alone."""

    def __init__(self, num_rows: int, width: int) -> None:
        super().__init__()
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # torchrec imports what fbgemm has deprecated
            from torchrec.modules.embedding_configs import EmbeddingConfig  # noqa: PLC0415  seconds to import: only where there is a table
            from torchrec.modules.embedding_modules import EmbeddingCollection  # noqa: PLC0415
        capacity = capacity_for(num_rows)
        config = EmbeddingConfig(
            name="item_table", embedding_dim=width, num_embeddings=capacity, feature_names=["item"], init_fn=nn.init.zeros_
        )
        self.collection = EmbeddingCollection(tables=[config])

    @property
    def weight(self) -> nn.Parameter:
        """The table itself, (capacity, D): on the request path it is indexed directly."""
        weight = self.collection.embeddings["item_table"].weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def forward(self, rows_R: Tensor) -> Tensor:
        """Embeddings of the rows, (R, D), with gradient."""
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor  # noqa: PLC0415  as above

        jagged = KeyedJaggedTensor(keys=["item"], values=rows_R, lengths=torch.ones(len(rows_R), dtype=torch.int64))
        values: Tensor = self.collection(jagged)["item"].values()
        return values


def load() -> None:
    """Have torchrec load now, for this process and its forks, what it loads otherwise when the first table is made."""
    ItemTable(1, 1)


def grow_rows(parameter: nn.Parameter, capacity: int, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Pad dimension 0 of a parameter, and of what the optimizer keeps of it, with zeros; the object stays the same."""
    state = optimizer.state.get(parameter, {}) if optimizer else {}
    shape = parameter.shape
    parameter.data = _padded(parameter.data, capacity)
    parameter.grad = None
    for name, value in state.items():
        if isinstance(value, Tensor) and value.shape == shape:
            state[name] = _padded(value, capacity)


def wipe_rows(parameter: nn.Parameter, rows_R: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Set rows, and what the optimizer keeps of them, to zero: what was learned of a dead item is gone."""
    state = optimizer.state.get(parameter, {}) if optimizer else {}
    with torch.no_grad():
        parameter[rows_R] = 0
    for value in state.values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value[rows_R] = 0


def _padded(values: Tensor, capacity: int) -> Tensor:
    more = values.new_zeros((capacity - len(values), *values.shape[1:]))
    return torch.cat([values, more])
