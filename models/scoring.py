"""Says of given slates, with gradient, what models/generate.py and models/beam.py say of those they draw: the same walk in torch.

Shapes: B requests, S slots, Q walks to one item each, C children, D width, R item rows, V codes.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.content import FloatArray
from models.decoder import Context, Decoder, Vectors, node_contents
from models.remembered import Remembered
from models.successors import Successors
from models.trie import Children, CountArray, IntArray, Trie
from models.walk import Asked, Rule

Wanted = Asked[Remembered]

NEVER = -1e30
"""A log-probability of nothing whose gradient is 0 and not nan."""


@dataclass(frozen=True)
class _Step:
    """One level of all walks: where each item lies among the children, and the logarithms of the children's chances."""

    node_Q: IntArray
    at_Q: IntArray
    logprob_QC: Tensor
    """Among the children."""
    count_QC: CountArray


@dataclass(frozen=True)
class Scored:
    """What scoring needs beside the states: the decoder with its shared vectors, the tree, and the novelty of each row."""

    decoder: Decoder
    vectors: Vectors
    trie: Trie
    novelty_R: FloatArray
    successors: Successors

    @cached_property
    def node_contents(self) -> list[Tensor]:
        """See models/decoder.py."""
        leaf_FC = self.decoder.content_RC.numpy()[self.trie.item_of_leaf]
        return [torch.from_numpy(content_PC) for content_PC in node_contents(self.trie, leaf_FC)]

    def remembered(self, context: Context) -> Remembered:
        """What the memory of requests adds; see models/remembered.py."""
        return Remembered.of(context, self.trie, self.successors)

    def logprobs(self, state_QD: Tensor, asked: Wanted, item_Q: IntArray) -> Tensor:
        """Log π of given legal items, (Q,), with gradient; each walk has its own state."""
        if not len(item_Q):
            return state_QD.sum(1)
        product_Q = torch.zeros(len(item_Q))
        for step in self._steps(state_QD, asked, item_Q):
            product_Q = product_Q + _at(step.logprob_QC, step.at_Q)
        even_Q = np.ones(len(item_Q), np.int32)
        return _mixed(product_Q, asked, even_Q)

    def beam_logprobs(self, state_BD: Tensor, asked: Wanted, item_BS: IntArray) -> Tensor:
        """Log π of each slot of whole slates drawn as beams, (B, S), with gradient; 0 where the slate has no item.

        Everything is seen from the first slot's state; the items before a slot are taken out of its total. That total is the
        chance of what the slate does not hold and of what it holds from the slot on: never one minus something.
        """
        at_B, at_S = item_BS.nonzero()
        if not len(at_B):
            return torch.zeros(item_BS.shape)
        out_BS = torch.full(item_BS.shape, NEVER)
        asked_Q, item_Q = asked.at(at_B), item_BS[at_B, at_S]
        product_Q, besides = torch.zeros(len(at_B)), []
        walk_BS = np.full(item_BS.shape, -1)
        walk_BS[at_B, at_S] = np.arange(len(at_B))
        for step in self._steps(state_BD[torch.from_numpy(at_B)], asked_Q, item_Q):
            besides.append(_beside(step, product_Q, asked_Q, walk_BS))
            product_Q = product_Q + _at(step.logprob_QC, step.at_Q)
        logprob_Q = _mixed(product_Q, asked_Q, np.ones(len(at_B), np.int32))
        place = (torch.from_numpy(at_B), torch.from_numpy(at_S))
        logprob_BS = out_BS.index_put(place, logprob_Q)
        beside_BS = out_BS.index_put(place, torch.stack(besides, 1).logsumexp(1))
        from_here_BS = logprob_BS.flip(1).logcumsumexp(1).flip(1)
        left_BS = torch.logaddexp(from_here_BS, beside_BS.logsumexp(1, keepdim=True))
        return torch.where(torch.from_numpy(item_BS > 0), logprob_BS - left_BS, 0.0)

    def _steps(self, state_QD: Tensor, asked: Wanted, item_Q: IntArray) -> list[_Step]:
        trie, leaf_Q = self.trie, self.trie.leaf_of_item[item_Q]
        node_Q, steps = np.zeros(len(item_Q), np.int64), []
        prefix: list[Tensor] = []
        for level in range(trie.levels):
            # under the root all walks share one list
            children = trie.children(node_Q if level else np.zeros(1, np.int64), level)
            count_QC = asked.legal.count(children.bound_QX)
            logits_QC = self._logits(state_QD, asked, node_Q, children, prefix) / torch.from_numpy(asked.rule.temperature_B)[:, None]
            logprob_QC = logits_QC.masked_fill(torch.from_numpy(count_QC <= 0), -torch.inf).log_softmax(1)
            child_Q = trie.child_over(leaf_Q, level)
            steps.append(_Step(node_Q, child_Q - children.start_Q, logprob_QC, count_QC))
            node_Q = child_Q
            if level + 1 < trie.levels:
                prefix.append(torch.from_numpy(trie.codes[level][child_Q]))
        return steps

    def _logits(self, state_QD: Tensor, asked: Wanted, node_Q: IntArray, children: Children, prefix: list[Tensor]) -> Tensor:
        level = len(prefix)
        query_QD = self.decoder.query(state_QD, prefix)
        wish_QC = self.wishes(asked.remembered, level)[torch.from_numpy(asked.of_Q)]
        if level + 1 < self.trie.levels:
            codes_QC = torch.from_numpy(children.of(self.trie.codes[level]).astype(np.int64))
            logits_QC = self.decoder.code_logits(self.vectors, query_QD, level).gather(1, codes_QC.expand(len(state_QD), -1))
            place_QC = torch.from_numpy(children.of(np.arange(len(self.trie.codes[level]))))
            logits_QC = logits_QC + (self.node_contents[level][place_QC] @ wish_QC[:, :, None])[:, :, 0]
        else:
            logits_QC = self._leaf_logits(query_QD, wish_QC, asked.rule, children)
        hits = asked.remembered.hits(level, asked.of_Q, node_Q, np.broadcast_to(children.start_Q, len(node_Q)))
        (what_H, kind_H, age_H), strength_H = asked.remembered.numbers(hits)
        weight_H = self.decoder.hint_logits()[torch.from_numpy(what_H), level, torch.from_numpy(kind_H), torch.from_numpy(age_H)]
        place = (torch.from_numpy(hits.walk_H), torch.from_numpy(hits.child_H))
        return logits_QC.index_put(place, weight_H * torch.from_numpy(strength_H), accumulate=True)

    def wishes(self, remembered: Remembered, level: int) -> Tensor:
        """The content that each request's memory asks for, (B, content): that of its rows, each times its `match`."""
        kind_BL, age_L = torch.from_numpy(remembered.kind_BL), torch.from_numpy(remembered.age_L)
        weight_BL = self.decoder.match_logits()[level][kind_BL, age_L.expand_as(kind_BL)]
        content_BLC = F.embedding(torch.from_numpy(remembered.item_BL), self.decoder.content_RC)
        return (weight_BL[:, None] @ content_BLC)[:, 0]

    def _leaf_logits(self, query_QD: Tensor, wish_QC: Tensor, rule: Rule, children: Children) -> Tensor:
        items, bonus_Q = self.trie.item_of_leaf, torch.from_numpy(rule.bonus_B)
        leaf_RD, bias_R, content_RC = self.vectors.leaf_RD, self.decoder.leaf_bias, self.decoder.content_RC
        if children.place_QC is None:  # one list for all: a matrix product
            row_C = torch.from_numpy(items[children.start_Q[0] : children.end_Q[0]])
            fit_QC = query_QD @ leaf_RD[row_C].T + wish_QC @ content_RC[row_C].T + bias_R[row_C]
            return fit_QC + bonus_Q[:, None] * torch.from_numpy(self.novelty_R)[row_C]
        row_QC = children.of(items)
        real_QC = np.arange(row_QC.shape[1]) < (children.end_Q - children.start_Q)[:, None]
        at_Q, at_C = (torch.from_numpy(at) for at in real_QC.nonzero())
        row_F = torch.from_numpy(row_QC[real_QC])
        fit_F = (query_QD[at_Q] * F.embedding(row_F, leaf_RD)).sum(-1) + bias_R[row_F]
        fit_F = fit_F + (wish_QC[at_Q] * F.embedding(row_F, content_RC)).sum(-1)
        fit_F = fit_F + bonus_Q[at_Q] * torch.from_numpy(self.novelty_R)[row_F]
        return torch.full(row_QC.shape, NEVER).index_put((at_Q, at_C), fit_F)


def _at(values_QC: Tensor, at_Q: IntArray) -> Tensor:
    return values_QC.gather(1, torch.from_numpy(at_Q)[:, None])[:, 0]


def _mixed(product_A: Tensor, asked: Wanted, count_A: IntArray | CountArray) -> Tensor:
    """log((1 - floor) p + floor · count / n) for nodes with `count` ≥ 1 legal leaves; the first dimension is Q."""
    shape = (-1,) + (1,) * (product_A.dim() - 1)
    floor_A, total_A = asked.rule.floor_B.reshape(shape), np.maximum(asked.legal.total(), 1).reshape(shape)
    with np.errstate(divide="ignore"):
        even_A = np.log(floor_A / total_A * count_A).astype(np.float32)
    return torch.logaddexp(torch.from_numpy(np.log1p(-floor_A)) + product_A, torch.from_numpy(even_A))


def _beside(step: _Step, product_Q: Tensor, asked: Wanted, walk_BS: IntArray) -> Tensor:
    """The log of the chance of what hangs beside the paths of a slate's items at one level, (Q,): each node said by its first item."""
    node_BS = np.where(walk_BS >= 0, step.node_Q[walk_BS], -1)
    same_BSS = (node_BS[:, :, None] == node_BS[:, None]) & (walk_BS >= 0)[:, :, None]
    at_B, at_S, other_S = same_BSS.nonzero()
    beside_QC = step.count_QC > 0
    beside_QC[walk_BS[at_B, at_S], step.at_Q[walk_BS[at_B, other_S]]] = False
    is_first_BS = same_BSS.argmax(2) == np.arange(walk_BS.shape[1])
    beside_QC[walk_BS[~is_first_BS & (walk_BS >= 0)]] = False
    mask_QC = torch.from_numpy(beside_QC)
    product_QC = product_Q[:, None] + step.logprob_QC.masked_fill(~mask_QC, 0)
    chance_QC = _mixed(product_QC, asked, np.maximum(step.count_QC, 1))
    return chance_QC.masked_fill(~mask_QC, NEVER).logsumexp(1)
