"""Draws slates from a decoder and says with which log-probability each slot was drawn; scores given slates by the same rule.

Knows nothing of users, events or training. At every level the softmax runs over the legal children alone, after the
novelty bonus and the temperature; a share `floor` of each slot is spread evenly over all legal items. So for each slot
the probabilities of the items that are still legal sum to one (property test: tests/test_generate.py), and
log π(item) = log((1 - floor) · Π_level p(code) + floor / legal items).

Drawing runs on a FrozenDecoder (numpy, fast); scoring runs on a Decoder (torch, with gradient); both walk one tree alike.
Shapes: B requests, S slots, K levels, C children, D width, E excluded, Q any set of (request, slot) pairs, R item rows.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from models.content import FloatArray
from models.decoder import Context, Decoder, Vectors
from models.inference import FrozenDecoder
from models.trie import CountArray, IntArray, Legal, Trie


@dataclass(frozen=True)
class Rule:
    """How each request is drawn, all (B,) float32: part of the policy, so part of the logged number."""

    temperature_B: FloatArray
    floor_B: FloatArray
    bonus_B: FloatArray
    """Added to a leaf's logit times its novelty."""


@dataclass(frozen=True)
class Slates:
    """What was drawn: item rows (B, S), 0 where nothing legal was left, and log-probabilities in nats, 0 there."""

    item_BS: IntArray
    logprob_BS: FloatArray


def novelty(exposures_R: FloatArray) -> FloatArray:
    """1 / sqrt(1 + exposures): the shape of a count-based bonus (Strehl and Littman 2008)."""
    return (1 / np.sqrt(1 + exposures_R)).astype(np.float32)


class Generator:
    """Draws slates under one version. `novelty_R` says how novel each item row is (0..1)."""

    def __init__(self, decoder: FrozenDecoder, trie: Trie, novelty_R: FloatArray) -> None:
        self.decoder, self.trie = decoder, trie
        self._novelty_F = novelty_R[trie.item_of_leaf]

    def draw(self, context: Context, legal: Legal, rule: Rule, uniform_BSU: FloatArray, sizes_B: IntArray) -> Slates:
        """Slot by slot: each slot sees those before it, and its items are not legal again.

        `uniform_BSU` (B, S, K + 1) in [0, 1) are all the randomness: one number decides whether the floor draws, one each level.
        """
        decoder = self.decoder
        batch, num_slots = uniform_BSU.shape[:2]
        before = legal.exclude_BE.shape[1]
        legal = replace(legal, exclude_BE=np.concatenate([legal.exclude_BE, np.zeros((batch, num_slots), np.int64)], 1))
        left_B = legal.total(self.trie)
        memory, slots = decoder.memory(context), decoder.slots(batch, num_slots)
        x_BD = decoder.first_input(context)
        item_BS, logprob_BS = np.zeros((batch, num_slots), np.int64), np.zeros((batch, num_slots), np.float32)
        for slot in range(num_slots):
            drawn_B = (left_B > 0) & (slot < sizes_B)
            if not drawn_B.any():
                break
            if slot:
                x_BD = decoder.next_input(item_BS[:, slot - 1], slot)
            state_BD = decoder.state(memory, slots, x_BD, slot)
            item_B, logprob_B = self._draw_slot(state_BD, legal, rule, uniform_BSU[:, slot], left_B)
            item_BS[:, slot] = item_B * drawn_B
            logprob_BS[:, slot] = np.where(drawn_B, logprob_B, 0)
            legal.exclude_BE[:, before + slot] = item_BS[:, slot]
            left_B = left_B - drawn_B
        return Slates(item_BS, logprob_BS)

    def _draw_slot(
        self, state_BD: FloatArray, legal: Legal, rule: Rule, uniform_BU: FloatArray, left_B: IntArray
    ) -> tuple[IntArray, FloatArray]:
        """One item for each request: by the model or, where the first number says so, evenly over what is legal."""
        trie, walks = self.trie, np.arange(len(state_BD))
        evenly_B = uniform_BU[:, 0] < rule.floor_B
        node_B, logprob_B = np.zeros(len(walks), np.int64), np.zeros(len(walks), np.float32)
        prefix: list[IntArray] = []
        for level in range(trie.levels):
            place_BC, real_BC = trie.children(node_B, level)
            live_BC = legal.live_leaves(trie, node_B, place_BC, real_BC, level)
            logits_BC = self._logits(state_BD, rule, place_BC, prefix, level) / rule.temperature_B[:, None]
            logprob_BC = _log_softmax(np.where(live_BC > 0, logits_BC, -np.inf))
            mass_BC = np.exp(logprob_BC)
            if evenly_B.any():
                mass_BC = np.where(evenly_B[:, None], live_BC, mass_BC)
            at_B = _pick(mass_BC, live_BC, uniform_BU[:, level + 1])
            node_B = place_BC[walks, at_B]
            logprob_B += logprob_BC[walks, at_B]
            prefix.append(trie.codes[level][node_B])
        return trie.item_of_leaf[node_B], _mixed(logprob_B, rule.floor_B, left_B)

    def _logits(self, state_BD: FloatArray, rule: Rule, place_BC: IntArray, prefix: list[IntArray], level: int) -> FloatArray:
        query_BD = self.decoder.query(state_BD, prefix)
        if level + 1 < self.trie.levels:
            logits_BV = self.decoder.code_logits(query_BD, level)
            return logits_BV[np.arange(len(state_BD))[:, None], self.trie.codes[level][place_BC]]
        logits_BC = self.decoder.leaf_logits(query_BD, place_BC, shared=level == 0)
        return logits_BC + rule.bonus_B[:, None] * self._novelty_F[place_BC]


def _pick(mass_BC: npt.NDArray[np.floating], live_BC: CountArray, uniform_B: FloatArray) -> IntArray:
    """The child at which the running sum of mass passes uniform × total; never one without legal leaves."""
    sum_BC = mass_BC.cumsum(1)
    at_B = (sum_BC <= uniform_B[:, None] * sum_BC[:, -1:]).sum(1)
    # rounding can leave the aim at the very end: then it is the last legal child
    last_B = live_BC.shape[1] - 1 - (live_BC[:, ::-1] > 0).argmax(1)
    return np.minimum(at_B, last_B)


def _log_softmax(logits_BC: FloatArray) -> FloatArray:
    """Over the last dimension; a row with nothing legal gives -inf everywhere, and its result is never used."""
    top_B1 = logits_BC.max(1, keepdims=True, initial=-3e38)
    shifted_BC = logits_BC - top_B1
    total_B1 = np.exp(shifted_BC).sum(1, keepdims=True)
    return shifted_BC - np.log(np.maximum(total_B1, 1e-30))


def _mixed(logprob_Q: FloatArray, floor_Q: FloatArray, left_Q: IntArray) -> FloatArray:
    """log((1 - floor) p + floor / n), n ≥ 1, without leaving logarithms."""
    with np.errstate(divide="ignore"):
        return np.logaddexp(np.log1p(-floor_Q) + logprob_Q, np.log(floor_Q / np.maximum(left_Q, 1)), dtype=np.float32)


@dataclass(frozen=True)
class Scored:
    """What scoring needs beside the states: the decoder with its shared vectors, the tree, and the novelty of each row."""

    decoder: Decoder
    vectors: Vectors
    trie: Trie
    novelty_R: FloatArray

    def logprobs(self, state_QD: Tensor, legal: Legal, rule: Rule, item_Q: IntArray) -> Tensor:
        """Log π of given legal items, (Q,), with gradient; `legal` and `rule` have one row for each of Q."""
        if not len(item_Q):
            return state_QD.sum(1)
        trie = self.trie
        node_Q = np.zeros(len(item_Q), np.int64)
        prefix: list[Tensor] = []
        logprob_Q = torch.zeros(len(item_Q))
        temperature_Q1 = torch.from_numpy(rule.temperature_B)[:, None]
        for level in range(trie.levels):
            place_QC, real_QC = trie.children(node_Q, level)
            live_QC = legal.live_leaves(trie, node_Q, place_QC, real_QC, level)
            logits_QC = self._logits(state_QD, rule, place_QC, real_QC, prefix, level) / temperature_Q1
            logprob_QC = logits_QC.masked_fill(torch.from_numpy(live_QC <= 0), -torch.inf).log_softmax(1)
            place_Q = trie.path_NK[item_Q, level]
            at_Q = torch.from_numpy(place_Q - trie.starts[level][node_Q])
            logprob_Q = logprob_Q + logprob_QC.gather(1, at_Q[:, None])[:, 0]
            node_Q = place_Q
            prefix.append(torch.from_numpy(trie.codes[level][place_Q]))
        with np.errstate(divide="ignore"):
            even_Q = np.log(rule.floor_B / np.maximum(legal.total(trie), 1)).astype(np.float32)
        return torch.logaddexp(torch.from_numpy(np.log1p(-rule.floor_B)) + logprob_Q, torch.from_numpy(even_Q))

    def _logits(
        self, state_QD: Tensor, rule: Rule, place_QC: IntArray, real_QC: npt.NDArray[np.bool_], prefix: list[Tensor], level: int
    ) -> Tensor:
        query_QD = self.decoder.query(state_QD, prefix)
        if level + 1 < self.trie.levels:
            codes_QC = torch.from_numpy(self.trie.codes[level][place_QC])
            return self.decoder.code_logits(self.vectors, query_QD, level).gather(1, codes_QC)
        items, bonus_Q = self.trie.item_of_leaf, torch.from_numpy(rule.bonus_B)
        leaf_RD, bias_R = self.vectors.leaf_RD, self.decoder.leaf_bias
        if level == 0:  # under the root all walks share one list: a matrix product
            row_C = torch.from_numpy(items[place_QC[0]])
            return query_QD @ leaf_RD[row_C].T + bias_R[row_C] + bonus_Q[:, None] * torch.from_numpy(self.novelty_R)[row_C]
        at_Q, at_C = (torch.from_numpy(at) for at in real_QC.nonzero())
        row_F = torch.from_numpy(items[place_QC[real_QC]])
        fit_F = (query_QD[at_Q] * F.embedding(row_F, leaf_RD)).sum(-1) + bias_R[row_F]
        fit_F = fit_F + bonus_Q[at_Q] * torch.from_numpy(self.novelty_R)[row_F]
        return torch.full(place_QC.shape, -torch.inf).index_put((at_Q, at_C), fit_F)
