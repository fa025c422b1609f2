"""The decoder of one version, frozen for the request path: its incremental forward pass in numpy, its attention in models/kernels.py.

Knows nothing of training. A slate is a long chain of tiny matrix products, where the cost is the calls and not the
arithmetic: numpy makes a slate of 10 four times faster than torch on one core (models/EXPERIMENTS.md). Norms and
scales are folded into the matrices once. `tests/test_generate.py` holds it to `Decoder.states` within 1e-5.

Shapes: B requests, Q walks, L history, X features, D width, H heads, d = D / H, S slots, V codes, C children, F leaves in tree order.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import Linear

from models.affinity import row_weights
from models.content import FloatArray
from models.decoder import LOGIT_SCALE_MAX, NORM_EPS, Block, Context, Decoder
from models.kernels import attend
from models.silence import ROW_SCALE
from models.trie import Children, CountArray, IntArray, Trie

ROWS_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Memory:
    """Keys (B, H, d, L + 1) and values (B, H, L + 1, d) that all layers read, and the attention bias (B, H, L + 1); all in C order."""

    keys: FloatArray
    values: FloatArray
    bias: FloatArray
    newest_BD: FloatArray
    """What the newest row says; 0 where there is none. A slate begins there."""


@dataclass(frozen=True)
class Slots:
    """Keys and values of the slots so far, by layer, (layers, B, H, S, d): filled as slots are decoded."""

    keys: FloatArray
    values: FloatArray


@dataclass(frozen=True)
class _Block:
    inward: FloatArray
    outward: FloatArray


@dataclass(frozen=True)
class LeafVectors:
    """The items in the order of the tree's leaves, so that siblings lie side by side: one matrix for input and output."""

    vector_FD: FloatArray
    """As input, (N + 1, D); the last is that of row 0, the item not known here."""
    inverse_F: FloatArray
    """1 / length: the output is the unit vector."""
    bias_F: FloatArray
    value_bias_F: FloatArray
    content_FC: FloatArray
    """Content, (N + 1, C); the last is that of row 0, zeros."""
    leaf_of_item: CountArray
    """By item row; -1, the last, for row 0."""

    @staticmethod
    def of(decoder: Decoder, trie: Trie) -> "LeafVectors":
        """Taken over piece by piece: beside the decoder nothing is held twice."""
        row_F = np.append(trie.item_of_leaf, np.int32(0))
        vector_FD = np.empty((len(row_F), decoder.config.width), np.float32)
        for first in range(0, len(row_F), ROWS_AT_ONCE):
            vector_FD[first : first + ROWS_AT_ONCE] = decoder.item_vectors(torch.from_numpy(row_F[first : first + ROWS_AT_ONCE])).numpy()
        inverse_F = 1 / np.maximum(np.sqrt(np.vecdot(vector_FD, vector_FD)), np.float32(1e-12))
        content_FC = decoder.content_RC.numpy()[row_F]
        bias_F, value_bias_F = _array(decoder.leaf_bias)[row_F], _array(decoder.value_bias)[row_F]
        return LeafVectors(vector_FD, inverse_F, bias_F, value_bias_F, content_FC, trie.leaf_of_item)

    def of_rows(self, rows: IntArray) -> FloatArray:
        """Vectors of item rows, (..., D)."""
        return self.vector_FD[self.leaf_of_item[rows]]

    def contents(self, rows: IntArray) -> FloatArray:
        """Contents of item rows, (..., C)."""
        return self.content_FC[self.leaf_of_item[rows]]


class FrozenDecoder:
    """Weights as numpy arrays. The decoder's own item tables are not read: `leaves` stands for them."""

    def __init__(self, decoder: Decoder, leaves: LeafVectors) -> None:
        config = decoder.config
        self.width, self.heads, self.history, self.reach = config.width, config.heads, config.history, config.reach
        self.rows_read, self.leaves, self.mix = config.rows_read, leaves, _array(decoder.mix)
        self.code_bias = [_array(bias) for bias in decoder.code_bias]
        self.told_VD, self.centroids = [_array(weight) for weight in decoder.code_weights()], decoder.centroids
        self.from_content_CD = _array(decoder.from_content.weight).T
        self.deeper = [(_array(linear.weight).T.copy(), _array(linear.bias)) for linear in decoder.deeper if isinstance(linear, Linear)]
        self.scale = [float(x) for x in np.minimum(np.exp(_array(decoder.log_scale)), LOGIT_SCALE_MAX)]
        trust = _array(decoder.value_trust)
        self.told_value = (trust * _array(decoder.value.weight).T.copy(), trust * _array(decoder.value.bias))
        self.affinity_ZS, self._against = _array(decoder.affinity.weight), decoder.affinity.against
        self.value_met = _array(decoder.value_met)
        self.code_value = [_array(bias) for bias in decoder.code_value]
        self.hint_logits, self.match_logits = _array(decoder.hint_logits()), _array(decoder.match_logits())
        silence = decoder.silence
        self.silent_hint_logits, self.silent_match_logits = _array(silence.hint_logits()), _array(silence.match_logits())
        self.soft_K1, self.loud = _array(silence.soft)[:, None], ROW_SCALE * float(silence.loud)
        self.event = _array(decoder.kind.weight)[:, None] + _array(decoder.gap.weight)
        self.feature = _array(decoder.feature.weight)
        self.slot = _array(decoder.slot.weight)
        self.from_slot = _array(decoder.from_slot.weight).T.copy()
        self.keys_values = _gain(decoder.row_norm)[:, None] * _array(decoder.keys_values.weight).T
        self.nothing = _array(decoder.nothing).reshape(2 * self.heads, -1)
        self.recency = _array(decoder.recency)
        self.norm = _gain(decoder.norm)
        self.blocks = [_frozen(block) for block in decoder.blocks if isinstance(block, Block)]

    def memory(self, context: Context) -> Memory:
        """See `Decoder.memory`; columns that are blank in the whole batch are left out."""
        blank_BL = context.kind_BL == 0
        first = int(blank_BL.all(0).argmin()) if not blank_BL.all() else blank_BL.shape[1]
        before = self.reach - 1  # rows that say nothing, and colour the first
        said_BLD = np.zeros((len(blank_BL), before + blank_BL.shape[1] - first, self.width), np.float32)
        rows_BLD = self.said(context.item_BL[:, first:], context.kind_BL[:, first:], context.gap_BL[:, first:])
        np.multiply(rows_BLD, ~blank_BL[:, first:, None], out=said_BLD[:, before:])
        row_BLD = self.coloured(said_BLD)[:, -self.history :]
        batch, length = row_BLD.shape[:2]
        rows = np.empty((batch, length + 1, 2 * self.heads, self.width // self.heads), np.float32)
        rows[:, 0] = self.nothing
        rows[:, 1:] = self.keys_and_values(row_BLD)
        keys = np.ascontiguousarray(rows[:, :, : self.heads].transpose(0, 2, 3, 1))
        values = np.ascontiguousarray(rows[:, :, self.heads :].transpose(0, 2, 1, 3))
        bias = self.recency_bias(length)[None].repeat(batch, 0)
        bias[:, :, 1:][np.broadcast_to(blank_BL[:, None, blank_BL.shape[1] - length :], bias[:, :, 1:].shape)] = -np.inf
        return Memory(keys, values, bias, row_BLD[:, -1] if length else np.zeros((batch, self.width), np.float32))

    def recency_bias(self, length: int) -> FloatArray:
        """What the ages of `length` rows add to attention, (H, L + 1); the first stands for having nothing to read."""
        return np.concatenate([self.recency[:, :1], self.recency[:, length:0:-1]], 1)

    def said(self, item_BL: IntArray, kind_BL: IntArray, gap_BL: IntArray) -> FloatArray:
        """What memory rows say by themselves, (B, L, D)."""
        rows: FloatArray = self.leaves.of_rows(item_BL) + self.event[kind_BL, gap_BL]
        return rows

    def coloured(self, said_BLD: FloatArray) -> FloatArray:
        """What rows say after the rows just before them, (B, L - reach + 1, D)."""
        length = said_BLD.shape[1] - self.reach + 1
        row_BLD = said_BLD[:, :length] * self.mix[0]
        for back in range(1, self.reach):
            row_BLD += said_BLD[:, back : back + length] * self.mix[back]
        return row_BLD

    def keys_and_values(self, row_BLD: FloatArray) -> FloatArray:
        """Of each row, (B, L, 2 H, d)."""
        both: FloatArray = (_unit(row_BLD) @ self.keys_values).reshape(*row_BLD.shape[:2], 2 * self.heads, self.width // self.heads)
        return both

    def slots(self, memory: Memory, slots: int) -> Slots:
        """Room for the keys and values of `slots` slots."""
        batch, heads, _ = memory.bias.shape
        shape = (len(self.blocks), batch, heads, slots, self.width // heads)
        return Slots(np.empty(shape, np.float32), np.empty(shape, np.float32))

    def start(self, memory: Memory, context: Context) -> FloatArray:
        """See `Decoder.start`."""
        total_BD: FloatArray = memory.newest_BD + self.feature[context.feature_BX].sum(1)
        return total_BD

    def slot_input(self, start_BD: FloatArray, slot: int, leaf_B: IntArray | None = None) -> FloatArray:
        """The input of a slot, (B, D), after the leaf chosen in the one before it, if any; -1 stands for an item not known here."""
        x_BD = start_BD + self.slot[slot]
        if leaf_B is not None:
            x_BD += self.leaves.vector_FD[leaf_B] @ self.from_slot
        return x_BD

    def state(self, memory: Memory, slots: Slots, x_BD: FloatArray, slot: int) -> FloatArray:
        """The state of slot `slot`, (B, D), after those before it; keeps its keys and values in `slots`."""
        batch, width = x_BD.shape
        for layer, block in enumerate(self.blocks):
            inner = _unit(x_BD) @ block.inward
            mixed = np.empty((batch, 4 * width), np.float32)
            attend(inner, memory.keys, memory.values, memory.bias, slots.keys[layer], slots.values[layer], slot, mixed)
            moved_BD: FloatArray = mixed @ block.outward
            moved_BD += x_BD
            x_BD = moved_BD
        return _unit(x_BD) * self.norm

    def query(self, state_QD: FloatArray, prefix: list[CountArray]) -> FloatArray:
        """See `Decoder.query`."""
        level = len(prefix)
        if level:
            told_QD = state_QD
            for told_VD, code_Q in zip(self.told_VD, prefix, strict=False):
                told_QD = told_QD + told_VD[code_Q]
            weight, bias = self.deeper[level - 1]
            np.square(np.maximum(told_QD, 0, out=told_QD), out=told_QD)
            step_QD = told_QD @ weight
            step_QD += bias
            step_QD += state_QD
            state_QD = step_QD
        length_Q = np.sqrt(np.vecdot(state_QD, state_QD))
        scaled: FloatArray = state_QD * (self.scale[level] / np.maximum(length_Q, 1e-12))[:, None]
        return scaled

    def value(self, state_QD: FloatArray) -> FloatArray:
        """See `Decoder.fit`: what items and codes are compared with for their expected reward, as far as it is believed, (Q, D)."""
        weight, bias = self.told_value
        vector_QD: FloatArray = state_QD @ weight + bias
        return vector_QD

    def suited(self, item_BL: IntArray, kind_BL: IntArray, content_BLC: FloatArray) -> FloatArray:
        """See `Affinity.suited`."""
        told = (len(self.affinity_ZS) - 1) // 2
        mean_BT = (row_weights(item_BL, kind_BL, self._against) @ content_BLC[..., :told]).reshape(len(item_BL), 2 * told)
        suited_BS: FloatArray = self.affinity_ZS[0] + mean_BT @ self.affinity_ZS[1:]
        return suited_BS

    def node_vectors(self, level: int, code_P: CountArray, content_PC: FloatArray) -> FloatArray:
        """See `Decoder.node_vectors`."""
        return _unit_rows(self.told_VD[level][code_P] + content_PC @ self.from_content_CD)

    def leaf_logits(self, query_QD: FloatArray, children: Children) -> FloatArray:
        """Logits of leaves, (Q, C); what stands in padded places is finite and means nothing."""
        fit_QC = products(query_QD, self.leaves.vector_FD, children)
        return fit_QC * children.of(self.leaves.inverse_F) + children.of(self.leaves.bias_F)


def products(asked_QD: FloatArray, vector_PD: FloatArray, children: Children) -> FloatArray:
    """Inner products of each walk with the vectors at its children's places, (Q, C); 0 in padded places."""
    start_Q, end_Q = children.start_Q.tolist(), children.end_Q.tolist()
    if len(set(start_Q)) == 1:  # one node: all walks share one list
        return asked_QD @ vector_PD[start_Q[0] : end_Q[0]].T
    # a slice for each walk is several times faster than gathering all their rows into one array
    fit_QC = np.zeros((len(asked_QD), children.bound_QX.shape[1] - 1), np.float32)
    for walk, (start, end) in enumerate(zip(start_Q, end_Q, strict=True)):
        np.dot(vector_PD[start:end], asked_QD[walk], out=fit_QC[walk, : end - start])
    return fit_QC


def _unit(x_D: FloatArray) -> FloatArray:
    """Unit vectors: RMS norm without its gain and √D, which are folded into the matrix behind it (Zhang and Sennrich 2019)."""
    square_1 = np.vecdot(x_D, x_D)
    square_1 += np.float32(NORM_EPS * x_D.shape[-1])
    unit_D: FloatArray = x_D / np.sqrt(square_1, out=square_1)[..., None]
    return unit_D


def _frozen(block: Block) -> _Block:
    inward = _gain(block.norm)[:, None] * _array(block.inward.weight).T
    width = inward.shape[0]
    inward[:, : 2 * width] *= (width // block.heads) ** -0.5
    return _Block(inward, _array(block.outward.weight).T.copy())


def _gain(norm: torch.Tensor) -> FloatArray:
    return _array(norm) * np.float32(norm.shape[0] ** 0.5)


def _unit_rows(x_VD: FloatArray) -> FloatArray:
    return x_VD / np.maximum(np.sqrt(np.vecdot(x_VD, x_VD)), np.float32(1e-12))[:, None]


def _array(tensor: torch.Tensor) -> FloatArray:
    array: FloatArray = tensor.detach().numpy().copy()
    return array
