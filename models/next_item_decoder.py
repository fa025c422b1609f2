"""The decoder as a next-item model: its first slot at every place of a sequence, and whole slates that see themselves.

Knows nothing of users, rewards or metrics. With plain ids (K = 1) the loss runs over the whole catalogue at once
(models/softmax_loss.py); with more levels it is the walk that slates are scored with (models/scoring.py).
Shapes: B sequences, L history, P places, S slots, D width, R item rows (0 = none), F leaves.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from models.content import FloatArray
from models.decoder import Context, Decoder, Vectors
from models.repeat import Remembered
from models.scoring import Asked, Scored
from models.softmax_loss import ExtraLogits, softmax_loss
from models.trie import IntArray, Legal, Trie
from models.walk import Rule

KIND = 1
"""All that a sequence says of its items: they were there."""
AT_ONCE = 16
"""Requests whose whole tree is scored at a time: each node of it is asked with a query of its own."""


@dataclass(frozen=True)
class NextItemDecoder:
    """A NextItemModel. Row r of the sequences is item row r of the tree."""

    decoder: Decoder
    trie: Trie
    dtype: torch.dtype = torch.bfloat16
    """Of the products over the whole catalogue."""

    @property
    def module(self) -> nn.Module:
        """See NextItemModel."""
        return self.decoder

    @property
    def history(self) -> int:
        """See NextItemModel."""
        return self.decoder.config.history

    def loss(self, item_BL: IntArray, target_BL: IntArray) -> Tensor:
        """See NextItemModel."""
        vectors = self.decoder.vectors(self.trie.num_items + 1)
        at_B, at_L = target_BL.nonzero()
        state_BLD = self.decoder.place_states(vectors, context_of(item_BL))
        state_PD = state_BLD[torch.from_numpy(at_B), torch.from_numpy(at_L)]
        return self._loss(vectors, state_PD, _upto(item_BL, at_B, at_L), target_BL[at_B, at_L]).mean()

    @torch.no_grad()
    def scores(self, item_BL: IntArray) -> FloatArray:
        """See NextItemModel: log p of every row, summed over the levels of its id; a few requests at a time."""
        vectors = self.decoder.vectors(self.trie.num_items + 1)
        parts = []
        for first in range(0, len(item_BL), AT_ONCE if self.trie.levels > 1 else len(item_BL)):
            part_BL = item_BL[first : first + AT_ONCE] if self.trie.levels > 1 else item_BL
            state_BD = self.decoder.place_states(vectors, context_of(part_BL))[:, -1]
            parts.append(self._all_logprobs(vectors, state_BD, Remembered.of(context_of(part_BL), self.trie)))
        leaf_BF = np.concatenate(parts)
        score_BR = np.full((len(leaf_BF), self.trie.num_items + 1), -np.inf, np.float32)
        score_BR[:, self.trie.item_of_leaf] = leaf_BF
        return score_BR

    def _all_logprobs(self, vectors: Vectors, state_BD: Tensor, remembered: Remembered) -> FloatArray:
        """log p of all leaves, (B, F): every child of every node of a level at once."""
        trie, batch = self.trie, len(state_BD)
        logprob_BN = np.zeros((batch, 1), np.float32)
        prefix: list[Tensor] = []
        repeat = self.decoder.repeat_logits().numpy()
        at_B, at_L = (remembered.kind_BL > 0).nonzero()
        for level, start_N in enumerate(trie.starts):
            node_P = np.repeat(np.arange(len(start_N) - 1), np.diff(start_N))
            told = [code_N.expand(batch, -1).flatten() for code_N in prefix]
            query_BND = self.decoder.query(state_BD.repeat_interleave(len(start_N) - 1, 0), told).unflatten(0, (batch, -1))
            logits_BP = self._child_logits(vectors, query_BND, node_P, level).numpy()
            child_B = remembered.child_KBL[level][at_B, at_L]
            known = child_B >= 0
            moved = repeat[level, remembered.kind_BL[at_B, at_L], remembered.age_L[at_L]]
            np.add.at(logits_BP, (at_B[known], child_B[known]), moved[known])
            total_BN = np.logaddexp.reduceat(logits_BP, start_N[:-1], 1)
            logprob_BN = logits_BP - total_BN[:, node_P] + logprob_BN[:, node_P]
            if level + 1 < trie.levels:
                prefix = [code_N[torch.from_numpy(node_P)] for code_N in prefix]
                prefix.append(torch.from_numpy(trie.codes[level].astype(np.int64)))
        return logprob_BN

    def _child_logits(self, vectors: Vectors, query_BND: Tensor, node_P: IntArray, level: int) -> Tensor:
        """Logits of all children of a level, (B, P), each asked with its own node's query."""
        if level + 1 < self.trie.levels:
            code_P = torch.from_numpy(self.trie.codes[level].astype(np.int64))
            child_PD, bias_P = vectors.code_VD[level][code_P], self.decoder.code_bias[level][code_P]
        else:
            row_P = torch.from_numpy(self.trie.item_of_leaf.astype(np.int64))
            child_PD, bias_P = vectors.leaf_RD[row_P], self.decoder.leaf_bias[row_P]
        if level == 0:
            return query_BND[:, 0] @ child_PD.T + bias_P
        return (query_BND[:, torch.from_numpy(node_P)] * child_PD).sum(-1) + bias_P

    def _loss(self, vectors: Vectors, state_PD: Tensor, item_PL: IntArray, target_P: IntArray) -> Tensor:
        """-log p of one target for each place, (P,), given the items that stood before it."""
        remembered = Remembered.of(context_of(item_PL), self.trie)
        if self.trie.levels > 1:
            places = len(target_P)
            one_P = np.ones(places, np.float32)
            nothing = np.zeros(0, np.int64)
            legal = Legal.of(self.trie, [nothing] * places, [None] * places)
            asked = Asked(legal, Rule(one_P, 0 * one_P, 0 * one_P), remembered)
            return -self._scored(vectors).logprobs(state_PD, asked, target_P)
        hits = remembered.hits(0, np.arange(len(target_P)), np.zeros(len(target_P), np.int64), np.zeros(len(target_P), np.int64))
        kind_H, age_H = (torch.from_numpy(x) for x in (KIND + 0 * hits.row_H, remembered.age_L[hits.row_H]))
        extra = ExtraLogits(torch.from_numpy(hits.walk_H), torch.from_numpy(hits.child_H), self.decoder.repeat_logits()[0, kind_H, age_H])
        row_F = torch.from_numpy(self.trie.item_of_leaf.astype(np.int64))
        leaf_P = torch.from_numpy(self.trie.leaf_of_item[target_P].astype(np.int64))
        query_PD = self.decoder.query(state_PD, [])
        return softmax_loss(query_PD, vectors.leaf_RD[row_F], self.decoder.leaf_bias[row_F], extra, leaf_P, self.dtype)

    def _scored(self, vectors: Vectors) -> Scored:
        return Scored(self.decoder, vectors, self.trie, np.zeros(self.trie.num_items + 1, np.float32))


def context_of(item_BL: IntArray) -> Context:
    """Items of a sequence as a memory: one kind, no times, nothing said by the request."""
    return Context(item_BL, KIND * (item_BL > 0), 0 * item_BL, np.zeros((len(item_BL), 0), np.int64))


def _upto(item_BL: IntArray, at_B: IntArray, at_L: IntArray) -> IntArray:
    """For each place, what stood up to it, right-aligned, (P, L)."""
    length = item_BL.shape[1]
    column_PL = np.arange(length) - (length - 1 - at_L[:, None])
    return np.where(column_PL >= 0, item_BL[at_B[:, None], np.maximum(column_PL, 0)], 0)
