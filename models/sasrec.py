"""SASRec, the sequence model that most teams would take (Kang and McAuley 2018, arXiv:1808.09781): what the decoder is compared with.

Knows nothing of slates, ids or requests. `Sasrec` is as published: item plus position, causal blocks of attention and
feed-forward, the inner product with the item table; but with a softmax over all items in place of one sampled negative, which is
better (Klenitskiy and Vasilev 2023, arXiv:2309.07602). `SasrecTrunk` is its stack with all of the decoder's other parts around
it (content, cosine, repeats, successors, likeness), so that a comparison shows what the decoder's own trunk is worth.
Shapes: B sequences, L history, D width, H heads, R item rows (0 = none), P places.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.content import FloatArray
from models.decoder import Context, Decoder, DecoderConfig
from models.softmax_loss import ExtraLogits, softmax_loss
from models.trie import IntArray
from models.vectors import Vectors


@dataclass(frozen=True, kw_only=True)
class SasrecConfig:
    """Sizes."""

    width: int = 128
    layers: int = 2
    heads: int = 4
    history: int = 50
    dropout: float = 0.5


class Sasrec(nn.Module):
    """A NextItemModel over `num_rows` item rows."""

    def __init__(self, config: SasrecConfig, num_rows: int, dtype: torch.dtype) -> None:
        """`dtype` is that of the products over the catalogue while training."""
        super().__init__()
        self.config, self.dtype = config, dtype
        self.item = nn.Parameter(torch.randn(num_rows, config.width) * 0.02)
        self.bias = nn.Parameter(torch.zeros(num_rows))
        self.stack = _Stack(config.width, config.layers, config.heads, config.history, config.dropout)

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
        place = tuple(map(torch.as_tensor, target_BL.nonzero()))
        query_PD, target_P = self._states(item_BL)[place], torch.as_tensor(target_BL[target_BL > 0])
        return softmax_loss(query_PD, self.item, self.bias, ExtraLogits.none(), target_P, self.dtype).mean()

    def weighing_loss(self, item_BL: IntArray, target_B: IntArray) -> Tensor:
        """See NextItemModel; nothing here is weighed against anything."""
        target_BL = np.zeros_like(item_BL)
        target_BL[:, -1] = target_B
        return self.loss(item_BL, target_BL)

    def weighing(self) -> Sequence[nn.Parameter]:
        """See NextItemModel."""
        return ()

    @torch.no_grad()
    def scores(self, item_BL: IntArray) -> FloatArray:
        """See NextItemModel."""
        scores: FloatArray = (self._states(item_BL)[:, -1] @ self.item.T + self.bias).cpu().numpy()
        return scores

    def _states(self, item_BL: IntArray) -> Tensor:
        items_BL = torch.as_tensor(item_BL)
        states: Tensor = self.stack(F.embedding(items_BL, self.item) * self.config.width**0.5, items_BL > 0)
        return states


class SasrecTrunk(Decoder):
    """The decoder with SASRec's stack as the trunk of its first slot; it can be trained and ranked with, not drawn from."""

    def __init__(self, config: DecoderConfig, *, centroids: Sequence[FloatArray], content_RC: Tensor, num_kinds: int) -> None:
        super().__init__(config, centroids=centroids, content_RC=content_RC, num_kinds=num_kinds)
        self.stack = _Stack(config.width, config.layers, config.heads, config.history, config.dropout)

    def place_states(self, vectors: Vectors, context: Context) -> Tensor:
        """See Decoder."""
        items_BL = torch.as_tensor(context.item_BL)
        states: Tensor = self.stack(vectors.items(items_BL) * self.config.width**0.5, items_BL > 0)
        return states

    def first_states(self, vectors: Vectors, context: Context) -> Tensor:
        """See Decoder."""
        return self.place_states(vectors, context)[:, -1]


class _Stack(nn.Module):
    """Positions, blocks, a last norm."""

    def __init__(self, width: int, layers: int, heads: int, history: int, dropout: float) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(history, width) * 0.02)
        self.blocks = nn.ModuleList(_Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, row_BLD: Tensor, real_BL: Tensor) -> Tensor:
        """States at every place, (B, L, D); the newest place has the last position."""
        length = row_BLD.shape[1]
        x_BLD = self.dropout(row_BLD + self.position[-length:])
        upto_LL, itself_LL = torch.ones(length, length, dtype=torch.bool).tril(), torch.eye(length, dtype=torch.bool)
        may_B1LL = ((upto_LL & real_BL[:, None]) | itself_LL)[:, None]
        for block in self.blocks:
            x_BLD = block(x_BLD, may_B1LL)
        states: Tensor = self.norm(x_BLD)
        return states


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
