"""SASRec, the sequence model that most teams would take (Kang and McAuley 2018, arXiv:1808.09781): what the decoder is compared with.

Knows nothing of slates, ids or requests. As published: item plus position, causal blocks of attention and feed-forward, and the
inner product with the item table; here with a softmax over all items in place of one sampled negative, which is better
(Klenitskiy and Vasilev 2023, arXiv:2309.07602). The decoder's own parts can be switched on, so that a comparison shows what is
left of its lead. Shapes: B sequences, L history, D width, H heads, R item rows (0 = none), C content dimensions, P places.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.content import FloatArray
from models.softmax_loss import ExtraLogits, softmax_loss
from models.trie import IntArray


@dataclass(frozen=True, kw_only=True)
class SasrecConfig:
    """Sizes, and which of the decoder's parts it gets."""

    width: int = 128
    layers: int = 2
    heads: int = 4
    history: int = 50
    dropout: float = 0.5
    cosine: bool = False
    """Unit vectors and a learned temperature in place of the inner product."""
    content: bool = False
    """An item is its own vector plus a projection of its content."""
    repeat: bool = False
    """A learned logit for items used before, by age."""
    dtype: str = "bfloat16"
    """Of the products over the catalogue while training."""


class Sasrec(nn.Module):
    """A NextItemModel."""

    content_RC: Tensor

    def __init__(self, config: SasrecConfig, content_RC: Tensor) -> None:
        super().__init__()
        self.config = config
        rows, width = len(content_RC), config.width
        self.item = nn.Parameter(torch.randn(rows, width) * 0.02)
        self.position = nn.Parameter(torch.randn(config.history, width) * 0.02)
        self.bias = nn.Parameter(torch.zeros(rows))
        self.blocks = nn.ModuleList(_Block(width, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("content_RC", content_RC)
        self.from_content = nn.Linear(content_RC.shape[1], width, bias=False) if config.content else None
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.repeat = nn.Parameter(torch.full((config.history,), -0.1)) if config.repeat else None

    @property
    def module(self) -> nn.Module:
        """See NextItemModel."""
        return self

    @property
    def history(self) -> int:
        """See NextItemModel."""
        return self.config.history

    def loss(self, item_BL: IntArray, target_BL: IntArray) -> Tensor:
        """See NextItemModel."""
        item_RD, items_BL, targets_BL = self._items(), torch.from_numpy(item_BL), torch.from_numpy(target_BL)
        at_B, at_L = (targets_BL > 0).nonzero(as_tuple=True)
        query_PD = self._queries(item_RD, items_BL)[at_B, at_L]
        extra = self._repeats(items_BL[at_B], at_L)
        dtype = getattr(torch, self.config.dtype)
        return softmax_loss(query_PD, self._leaves(item_RD), self.bias, extra, targets_BL[at_B, at_L], dtype).mean()

    @torch.no_grad()
    def scores(self, item_BL: IntArray) -> FloatArray:
        """See NextItemModel."""
        item_RD, items_BL = self._items(), torch.from_numpy(item_BL)
        logits_BR = self._queries(item_RD, items_BL)[:, -1] @ self._leaves(item_RD).T + self.bias
        extra = self._repeats(items_BL, torch.full((len(items_BL),), items_BL.shape[1] - 1))
        logits_BR.index_put_((extra.position_X, extra.row_X), extra.value_X, accumulate=True)
        scores: FloatArray = logits_BR.numpy()
        return scores

    def _items(self) -> Tensor:
        return self.item if self.from_content is None else self.item + self.from_content(self.content_RC)

    def _leaves(self, item_RD: Tensor) -> Tensor:
        return F.normalize(item_RD, dim=-1) if self.config.cosine else item_RD

    def _queries(self, item_RD: Tensor, item_BL: Tensor) -> Tensor:
        length, real_BL = item_BL.shape[1], item_BL > 0
        x_BLD = self.dropout(F.embedding(item_BL, item_RD) * self.config.width**0.5 + self.position[-length:])
        ahead_LL = torch.ones(length, length, dtype=torch.bool).tril()
        itself_LL = torch.eye(length, dtype=torch.bool)
        may_B1LL = ((ahead_LL & real_BL[:, None]) | itself_LL)[:, None]
        for block in self.blocks:
            x_BLD = block(x_BLD, may_B1LL)
        state_BLD: Tensor = self.norm(x_BLD)
        return F.normalize(state_BLD, dim=-1) * self.log_scale.exp().clamp(max=40) if self.config.cosine else state_BLD

    def _repeats(self, item_PL: Tensor, at_P: Tensor) -> ExtraLogits:
        if self.repeat is None:
            return ExtraLogits.none()
        age_PL = at_P[:, None] - torch.arange(item_PL.shape[1])
        place_X, column_X = ((age_PL >= 0) & (item_PL > 0)).nonzero(as_tuple=True)
        return ExtraLogits(place_X, item_PL[place_X, column_X], 10 * self.repeat[age_PL[place_X, column_X]])


class _Block(nn.Module):
    """Attention, then feed-forward, each on a normed input (pre-norm)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inward, self.outward = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor, may_B1LL: Tensor) -> Tensor:
        batch, length = x_BLD.shape[:2]
        parts = self.inward(self.before(x_BLD)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        read = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], may_B1LL)
        x_BLD = x_BLD + self.dropout(self.outward(read.transpose(1, 2).flatten(2)))
        fed: Tensor = x_BLD + self.dropout(self.narrow(self.dropout(F.relu(self.wide(self.between(x_BLD))))))
        return fed
