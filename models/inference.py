"""The decoder of one version, frozen for the request path: its incremental forward pass in numpy.

Knows nothing of training. A slate is a long chain of tiny matrix products, where the cost is the calls and not the
arithmetic: numpy makes a slate of 10 four times faster than torch on one core (models/EXPERIMENTS.md). Norms and
scales are folded into the matrices once. `tests/test_generate.py` holds it to `Decoder.states` within 1e-5.

Shapes: B requests, L history, X features, D width, H heads, d = D / H, S slots, V codes, R item rows, F leaves in tree order.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import Linear

from models.content import FloatArray
from models.decoder import LOGIT_SCALE_MAX, NORM_EPS, Block, Context, Decoder
from models.trie import IntArray, Trie


@dataclass(frozen=True)
class Memory:
    """Keys and values (B, H, L + 1, d) that all layers read, and the attention bias (B, H, L + 1)."""

    keys: FloatArray
    values: FloatArray
    bias: FloatArray


@dataclass(frozen=True)
class Slots:
    """Keys and values of the slots so far, by layer, (layers, B, H, S, d): filled as slots are decoded."""

    keys: FloatArray
    values: FloatArray


@dataclass(frozen=True)
class _Block:
    inward: FloatArray
    outward: FloatArray


class FrozenDecoder:
    """Weights as numpy arrays, item vectors in the order of the tree's leaves."""

    def __init__(self, decoder: Decoder, trie: Trie) -> None:
        with torch.no_grad():
            vectors = decoder.vectors(trie.num_items + 1)
        config = decoder.config
        self.width, self.heads, self.history = config.width, config.heads, config.history
        self.item_RD = vectors.item_RD.numpy()
        self.leaf_FD = vectors.leaf_RD.numpy()[trie.item_of_leaf]
        self.leaf_bias_F = _array(decoder.leaf_bias)[trie.item_of_leaf]
        self.code_VD = [code.numpy() for code in vectors.code_VD]
        self.code_bias = [_array(bias) for bias in decoder.code_bias]
        self.told_VD = [_array(weight) for weight in decoder.code_weights()]
        self.deeper = [(_array(linear.weight).T.copy(), _array(linear.bias)) for linear in decoder.deeper if isinstance(linear, Linear)]
        self.scale = [float(x) for x in np.minimum(np.exp(_array(decoder.log_scale)), LOGIT_SCALE_MAX)]
        self.kind, self.gap, self.feature = _array(decoder.kind.weight), _array(decoder.gap.weight), _array(decoder.feature.weight)
        self.slot = _array(decoder.slot.weight)
        self.from_slot = _array(decoder.from_slot.weight).T.copy()
        self.keys_values = _array(decoder.row_norm)[:, None] * _array(decoder.keys_values.weight).T
        self.nothing = _array(decoder.nothing).reshape(2 * self.heads, -1)
        self.recency = _array(decoder.recency)
        self.norm = _array(decoder.norm)
        self.blocks = [_frozen(block) for block in decoder.blocks if isinstance(block, Block)]

    def memory(self, context: Context) -> Memory:
        """See `Decoder.memory`; columns that are blank in the whole batch are left out."""
        blank_BL = context.kind_BL == 0
        first = int(blank_BL.all(0).argmin()) if not blank_BL.all() else blank_BL.shape[1]
        item_BL, kind_BL, gap_BL = context.item_BL[:, first:], context.kind_BL[:, first:], context.gap_BL[:, first:]
        batch, length = item_BL.shape
        row_BLD = self.item_RD[item_BL] + self.kind[kind_BL] + self.gap[gap_BL]
        pair = np.empty((batch, 2 * self.heads, length + 1, self.width // self.heads), np.float32)
        pair[:, :, 0] = self.nothing
        rows = (_unit(row_BLD) @ self.keys_values).reshape(batch, length, 2 * self.heads, self.width // self.heads)
        pair[:, :, 1:] = rows.transpose(0, 2, 1, 3)
        bias = np.empty((batch, self.heads, length + 1), np.float32)
        bias[:, :, 0] = self.recency[:, 0]
        bias[:, :, 1:] = np.where(blank_BL[:, None, first:], -np.inf, self.recency[:, length:0:-1])
        return Memory(pair[:, : self.heads], pair[:, self.heads :], bias)

    def slots(self, batch: int, slots: int) -> Slots:
        """Room for the keys and values of `slots` slots."""
        shape = (len(self.blocks), batch, self.heads, slots, self.width // self.heads)
        return Slots(np.empty(shape, np.float32), np.empty(shape, np.float32))

    def first_input(self, context: Context) -> FloatArray:
        """See `Decoder.first_input`."""
        total_BD: FloatArray = self.slot[0] + self.feature[context.feature_BX].sum(1)
        return total_BD

    def next_input(self, chosen_B: IntArray, slot: int) -> FloatArray:
        """See `Decoder.next_input`."""
        return self.slot[slot] + self.item_RD[chosen_B] @ self.from_slot

    def state(self, memory: Memory, slots: Slots, x_BD: FloatArray, slot: int) -> FloatArray:
        """The state of slot `slot`, (B, D), after those before it; keeps its keys and values in `slots`."""
        batch, width = x_BD.shape
        for layer, block in enumerate(self.blocks):
            inner = _unit(x_BD) @ block.inward
            parts = inner[:, : 4 * width].reshape(batch, 4, self.heads, -1)
            keys, values = slots.keys[layer], slots.values[layer]
            keys[:, :, slot], values[:, :, slot] = parts[:, 2], parts[:, 3]
            mixed = np.empty((batch, 4 * width), np.float32)
            mixed[:, :width] = _read(parts[:, 0], memory.keys, memory.values, memory.bias).reshape(batch, -1)
            mixed[:, width : 2 * width] = _read(parts[:, 1], keys[:, :, : slot + 1], values[:, :, : slot + 1]).reshape(batch, -1)
            np.square(np.maximum(inner[:, 4 * width :], 0), out=mixed[:, 2 * width :])
            x_BD = np.add(x_BD, mixed @ block.outward, dtype=np.float32)
        return _unit(x_BD) * self.norm

    def query(self, state_BD: FloatArray, prefix: list[IntArray]) -> FloatArray:
        """See `Decoder.query`."""
        level = len(prefix)
        if level:
            told_BD = state_BD
            for told_VD, code_B in zip(self.told_VD, prefix, strict=False):
                told_BD = np.add(told_BD, told_VD[code_B], dtype=np.float32)
            weight, bias = self.deeper[level - 1]
            state_BD = np.add(state_BD, np.square(np.maximum(told_BD, 0)) @ weight + bias, dtype=np.float32)
        length_B1 = np.sqrt(np.vecdot(state_BD, state_BD))[:, None]
        scaled: FloatArray = state_BD * (self.scale[level] / np.maximum(length_B1, 1e-12))
        return scaled

    def code_logits(self, query_BD: FloatArray, level: int) -> FloatArray:
        """See `Decoder.code_logits`."""
        return query_BD @ self.code_VD[level].T + self.code_bias[level]

    def leaf_logits(self, query_BD: FloatArray, leaf_BC: IntArray, *, shared: bool) -> FloatArray:
        """Logits of leaves, (B, C); `shared` says that every request asks for the same leaves."""
        if shared or len(query_BD) == 1:
            leaf_C = slice(leaf_BC[0, 0], leaf_BC[0, -1] + 1) if leaf_BC.size else slice(0, 0)
            return query_BD @ self.leaf_FD[leaf_C].T + self.leaf_bias_F[leaf_C]
        fit_BC: FloatArray = (self.leaf_FD[leaf_BC] @ query_BD[:, :, None])[:, :, 0]
        return fit_BC + self.leaf_bias_F[leaf_BC]


def _read(query_BHd: FloatArray, keys: FloatArray, values: FloatArray, bias: FloatArray | None = None) -> FloatArray:
    scores_BHL = (keys @ query_BHd[..., None])[..., 0]
    if bias is not None:
        scores_BHL += bias
    scores_BHL -= scores_BHL.max(-1, keepdims=True)
    weight_BHL = np.exp(scores_BHL)
    weight_BHL /= weight_BHL.sum(-1, keepdims=True)
    read_BHd: FloatArray = (weight_BHL[:, :, None] @ values)[:, :, 0]
    return read_BHd


def _unit(x_D: FloatArray) -> FloatArray:
    """RMS norm without its gain, which is folded into the matrix behind it (Zhang and Sennrich 2019)."""
    scaled: FloatArray = x_D * (1 / np.sqrt(np.vecdot(x_D, x_D) / np.float32(x_D.shape[-1]) + np.float32(NORM_EPS)))[..., None]
    return scaled


def _frozen(block: Block) -> _Block:
    inward = _array(block.norm)[:, None] * _array(block.inward.weight).T
    width = inward.shape[0]
    inward[:, : 2 * width] *= (width // block.heads) ** -0.5
    return _Block(inward, _array(block.outward.weight).T.copy())


def _array(tensor: torch.Tensor) -> FloatArray:
    array: FloatArray = tensor.detach().numpy().copy()
    return array
