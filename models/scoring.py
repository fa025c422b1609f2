"""Says of given slates, with gradient, what models/generate.py and models/beam.py say of those they draw: the same walk in torch.

Shapes: B requests, S slots, Q walks to one item each, C children, N nodes of a level, P children of them all,
D width, R item rows, V codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.content import FloatArray
from models.decoder import Context, Decoder
from models.node_products import Nodes, level_products, node_products
from models.remembered import Hits, Remembered
from models.successors import Successors
from models.target_logprobs import Targets, target_logprobs
from models.trie import CountArray, IntArray, Trie
from models.value import Record
from models.vectors import Vectors, run_of
from models.walk import Asked

Wanted = Asked[Remembered]

NEVER = -1e30
"""A log-probability of nothing whose gradient is 0 and not nan."""


@dataclass(frozen=True)
class _Look:
    """What walks see of the children of their nodes."""

    start_Q: IntArray
    """Place of the first child."""
    logprob_QC: Tensor
    """Among the children that are legal; -inf for the others."""
    count_QC: CountArray


@dataclass(frozen=True)
class _Step(_Look):
    """One level of all walks: what they saw, and which child each item lies under."""

    node_Q: IntArray
    at_Q: IntArray


@dataclass(frozen=True)
class _Root:
    """What walks ask the children of the root, which are the same for all of them: logits are query · child + base of the request.

    After the temperature. All that does not depend on the slot is in the base: -inf where a request may have nothing under a child.
    """

    query_QD: Tensor
    child_CD: Tensor
    base_GC: Tensor
    count_GC: CountArray
    group_Q: IntArray
    """The row of the base of each walk."""


@dataclass(frozen=True)
class Scored:
    """What scoring needs beside the states: the decoder with its shared vectors, the tree, and the novelty of each row."""

    decoder: Decoder
    vectors: Vectors
    """Of all rows that the states are made of, and of the siblings of all items that are scored."""
    trie: Trie
    contents: Sequence[FloatArray]
    """By inner level, see `inner_contents`."""
    novelty_R: FloatArray
    successors: Successors

    def above(self, item_Q: IntArray) -> list[tuple[Tensor, Tensor]]:
        """What items lie under on each inner level: codes, (Q,), and vectors, (Q, D)."""
        leaf_Q = self.trie.leaf_of_item[item_Q]
        return [self._inner(level, self.trie.child_over(leaf_Q, level))[:2] for level in range(self.trie.levels - 1)]

    def record(self, context: Context, at_Q: IntArray, item_Q: IntArray) -> Record:
        """What the memories of requests `at_Q` say of items in numbers."""
        return self.decoder.record(context, self.trie.num_items, at_Q, item_Q)

    def remembered(self, context: Context) -> Remembered:
        """What the memory of requests adds; see models/remembered.py."""
        return Remembered.of(context, self.trie, self.successors)

    def logprobs(self, state_QD: Tensor, asked: Wanted, item_Q: IntArray) -> Tensor:
        """Log π of given legal items, (Q,), with gradient; each walk has its own state."""
        if not len(item_Q):
            return state_QD.sum(1)
        leaf_Q = self.trie.leaf_of_item[item_Q]
        product_Q = self._first_logprobs(state_QD, asked, self.trie.child_over(leaf_Q, 0))
        for step in self._steps(state_QD, asked, leaf_Q, 1):
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
        for step in self._steps(state_BD[torch.as_tensor(at_B)], asked_Q, self.trie.leaf_of_item[item_Q], 0):
            besides.append(_beside(step, product_Q, asked_Q, walk_BS))
            product_Q = product_Q + _at(step.logprob_QC, step.at_Q)
        logprob_Q = _mixed(product_Q, asked_Q, np.ones(len(at_B), np.int32))
        place = (torch.as_tensor(at_B), torch.as_tensor(at_S))
        logprob_BS = out_BS.index_put(place, logprob_Q)
        beside_BS = out_BS.index_put(place, torch.stack(besides, 1).logsumexp(1))
        from_here_BS = logprob_BS.flip(1).logcumsumexp(1).flip(1)
        left_BS = torch.logaddexp(from_here_BS, beside_BS.logsumexp(1, keepdim=True))
        return torch.where(torch.as_tensor(item_BS > 0), logprob_BS - left_BS, 0.0)

    def all_logprobs(self, state_BD: Tensor, asked: Wanted) -> Tensor:
        """Log Π p(code) of every leaf for each request, (B, F): all children of a level at once. All leaves must be legal."""
        trie, product_BN = self.trie, torch.zeros(len(state_BD), 1)
        codes: list[CountArray] = []
        for level, start_N in enumerate(trie.starts):
            facts = self._children(level, np.arange(start_N[-1]))
            fit_BP = level_products(partial(self._node_queries, state_BD, asked, codes), facts[0], start_N)
            logits_BP = (fit_BP + self._base(asked, level, *facts[1:])) / torch.as_tensor(asked.rule.temperature_B)[:, None]
            node_P = np.arange(len(start_N) - 1).repeat(np.diff(start_N))
            at_P = torch.as_tensor(node_P)
            product_BN = product_BN[:, at_P] + _log_softmax_of_nodes(logits_BP, at_P, len(start_N) - 1)
            if level + 1 < trie.levels:
                codes = [*(code_N[node_P] for code_N in codes), trie.codes[level]]
        return product_BN

    def _first_logprobs(self, state_QD: Tensor, asked: Wanted, child_Q: IntArray) -> Tensor:
        """Log p of one child of the root for each walk, (Q,)."""
        root = self._root(state_QD, asked)
        walk_M, closed_M = asked.legal.closed(root.count_GC, root.group_Q)
        targets = Targets(root.group_Q, child_Q, walk_M, closed_M)
        return target_logprobs(root.query_QD, root.child_CD, root.base_GC, targets)

    def _steps(self, state_QD: Tensor, asked: Wanted, leaf_Q: CountArray, first: int) -> list[_Step]:
        """The walks to these leaves, from level `first` on."""
        trie, steps = self.trie, []
        place_KQ = [trie.child_over(leaf_Q, level) for level in range(trie.levels)]
        node_KQ = [np.zeros(len(leaf_Q), np.int64), *place_KQ]
        prefix = [torch.as_tensor(codes[place_Q]) for codes, place_Q in zip(trie.codes, place_KQ, strict=False)]
        for level in range(first, trie.levels):
            look = self._look(state_QD, asked, node_KQ[level], prefix[:level])
            steps.append(_Step(**vars(look), node_Q=node_KQ[level], at_Q=place_KQ[level] - look.start_Q))
        return steps

    def _look(self, state_QD: Tensor, asked: Wanted, node_Q: IntArray, prefix: list[Tensor]) -> _Look:
        level = len(prefix)
        # under the root all walks share one list
        children = self.trie.children(node_Q if level else np.zeros(1, np.int64), level)
        count_QC = asked.legal.count(children.bound_QX)
        if level:
            hits = asked.remembered.hits(level, asked.of_Q, node_Q, children.start_Q)
            logits_QC = self._fit(state_QD, asked, node_Q, prefix) + self._hinted(asked, level, hits, count_QC.shape)
            logits_QC = logits_QC / torch.as_tensor(asked.rule.temperature_B)[:, None]
        else:
            root = self._root(state_QD, asked)
            logits_QC = root.query_QD @ root.child_CD.T + root.base_GC[torch.as_tensor(root.group_Q)]
        logprob_QC = logits_QC.masked_fill(torch.as_tensor(count_QC <= 0), -torch.inf).log_softmax(1)
        return _Look(children.start_Q, logprob_QC, count_QC)

    def _root(self, state_QD: Tensor, asked: Wanted) -> _Root:
        asked_G, group_Q = asked.requests()
        children = self.trie.children(np.zeros(1, np.int64), 0)
        vector_CD, content_CC, loudness_C, facts_CX = self._children(0, np.arange(children.start_Q[0], children.end_Q[0]))
        count_GC = asked_G.legal.count(children.bound_QX)
        base_GC = self._base(asked_G, 0, content_CC, loudness_C, facts_CX)
        base_GC = base_GC / torch.as_tensor(asked_G.rule.temperature_B)[:, None]
        base_GC = base_GC.masked_fill(torch.as_tensor(count_GC <= 0), -torch.inf)
        query_QD = self._query(state_QD, asked, []) / torch.as_tensor(asked.rule.temperature_B)[:, None]
        return _Root(query_QD, vector_CD, base_GC, count_GC, group_Q)

    def _fit(self, state_QD: Tensor, asked: Wanted, node_Q: IntArray, prefix: list[Tensor]) -> Tensor:
        """What decoder, likeness of content and novelty make of the children of inner nodes, (Q, C): one product for all of it."""
        level = len(prefix)
        nodes, place_P = Nodes.of(node_Q, self.trie.starts[level])
        asking_QX = torch.cat([self._query(state_QD, asked, prefix), self._told(asked, level)], 1)
        vector_PD, content_PC, loudness_P, facts_PX = self._children(level, place_P)
        return node_products(asking_QX, torch.cat([vector_PD, content_PC * loudness_P[:, None], facts_PX], 1), nodes)

    def _query(self, state_QD: Tensor, asked: Wanted, prefix: list[Tensor]) -> Tensor:
        """What the children's vectors are asked with, (Q, D); where states are (Q, 1, D), one for all nodes, (Q, N, D)."""
        each = slice(None), *(None,) * (state_QD.dim() - 1)
        scale_B = self.decoder.silence.scale(len(prefix), torch.as_tensor(asked.remembered.unfollowed_B))
        query_QD = self.decoder.query(state_QD, prefix) * scale_B[torch.as_tensor(asked.of_Q)][each]
        if not asked.rule.value_B.any():  # the value head costs as much as the query
            return query_QD
        # what the value head says is what rewards taught it: no other loss moves it
        return query_QD + torch.as_tensor(asked.rule.value_B)[each] * (self.decoder.value_trust * self.decoder.value(state_QD)).detach()

    def _node_queries(self, state_BD: Tensor, asked: Wanted, codes: Sequence[CountArray], node_N: IntArray) -> Tensor:
        """What the children of some nodes of a level are asked with by all requests, (B, N, D); `codes` lead to each node of the level."""
        return self._query(state_BD[:, None], asked, [torch.as_tensor(code_N[node_N]) for code_N in codes])

    def _told(self, asked: Wanted, level: int) -> Tensor:
        """What the facts of the children are asked with, whatever the slot, (Q, X)."""
        bonus_Q1, value_Q1 = (torch.as_tensor(rule_B)[:, None] for rule_B in (asked.rule.bonus_B, asked.rule.value_B))
        of_Q, remembered = torch.as_tensor(asked.of_Q), asked.remembered
        content_BLC = F.embedding(torch.as_tensor(remembered.item_BL), self.decoder.content_RC)
        asks = [self.wishes(remembered, level, content_BLC)[of_Q]]
        if level + 1 == self.trie.levels:
            suited_BS = self.decoder.affinity.suited(remembered.item_BL, remembered.kind_BL, content_BLC)
            asks += [value_Q1 * suited_BS[of_Q], bonus_Q1]
        return torch.cat([*asks, value_Q1, torch.ones_like(bonus_Q1)], 1)

    def _children(self, level: int, place_P: IntArray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the children at these places are asked by: vectors; contents, and how loud their likeness is; what `_told` asks for besides.

        The last is of leaves content as the value head reads it and novelty; then value and bias.
        """
        if level + 1 < self.trie.levels:
            code_P, vector_PD, content_PC = self._inner(level, place_P)
            value_P, bias_P = self.decoder.code_value[level].detach()[code_P], self.decoder.code_bias[level][code_P]
            return vector_PD, content_PC, torch.ones(len(place_P)), torch.stack([value_P, bias_P], 1)
        item_P, decoder = self.trie.item_of_leaf[place_P].astype(np.int64), self.decoder
        row_P = run_of(item_P)
        vector_PD, content_PC = self.vectors.leaves(row_P), decoder.content_RC[row_P]
        loudness_P = decoder.silence.loudness(torch.as_tensor(self.successors.unmet(item_P)))
        facts = [torch.as_tensor(self.novelty_R[item_P]), decoder.value_bias[row_P], decoder.leaf_bias[row_P]]
        return vector_PD, content_PC, loudness_P, torch.cat([content_PC[:, : decoder.affinity.said], torch.stack(facts, 1)], 1)

    def _inner(self, level: int, place_P: IntArray) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, vectors and contents of children of an inner level."""
        code_P, content_PC = torch.as_tensor(self.trie.codes[level][place_P]), torch.as_tensor(self.contents[level][place_P])
        return code_P, self.decoder.node_vectors(level, code_P, content_PC), content_PC

    def _base(self, asked: Wanted, level: int, content_PC: Tensor, loudness_P: Tensor, facts_PX: Tensor) -> Tensor:
        """What of the logits of all children of a level does not depend on the slot, before the temperature, (Q, P); see `_children`."""
        told_QX, facts = self._told(asked, level), facts_PX.shape[1]
        base_QP = told_QX[:, :-facts] @ content_PC.T * loudness_P + told_QX[:, -facts:] @ facts_PX.T
        return base_QP + self._hinted(asked, level, asked.remembered.hits_anywhere(level, asked.of_Q), base_QP.shape)

    def _hinted(self, asked: Wanted, level: int, hits: Hits, shape: Sequence[int]) -> Tensor:
        """What hints add to the children that they lie under; zeros of this shape else."""
        (what_H, kind_H, age_H), strength_H, unfollowed_H = asked.remembered.numbers(hits)
        at_H = torch.as_tensor(what_H), level, torch.as_tensor(kind_H), torch.as_tensor(age_H)
        weight_H = self.decoder.hint_logits()[at_H] + self.decoder.silence.hint_logits()[at_H] * torch.as_tensor(unfollowed_H)
        place = (torch.as_tensor(hits.walk_H), torch.as_tensor(hits.child_H))
        weight_H = weight_H * torch.as_tensor(strength_H)
        if level + 1 == self.trie.levels:
            met_H = self.decoder.value_met[at_H[2]] * torch.as_tensor(asked.remembered.met_rows[hits.request_H, hits.hint_H])
            weight_H = weight_H + torch.as_tensor(asked.rule.value_B)[place[0]] * met_H
        return torch.zeros(*shape).index_put(place, weight_H, accumulate=True)

    def wishes(self, remembered: Remembered, level: int, content_BLC: Tensor) -> Tensor:
        """The content that each request's memory asks for, (B, content): that of its rows, each times its weight."""
        kind_BL, age_L = torch.as_tensor(remembered.kind_BL), torch.as_tensor(remembered.age_L)
        at_BL = kind_BL, age_L.expand_as(kind_BL)
        unfollowed_BL = torch.as_tensor(remembered.unfollowed_rows)
        weight_BL = self.decoder.match_logits()[level][at_BL] + self.decoder.silence.match_logits()[level][at_BL] * unfollowed_BL
        return (weight_BL[:, None] @ content_BLC)[:, 0]


def inner_contents(decoder: Decoder, trie: Trie) -> list[FloatArray]:
    """What `Scored.contents` holds; see `Trie.contents`. It changes only with the tree and with what is known of its items."""
    return trie.contents(decoder.centroids, decoder.content_RC.cpu().numpy()[trie.item_of_leaf])


def _log_softmax_of_nodes(logits_BP: Tensor, node_P: Tensor, num_nodes: int) -> Tensor:
    """Log-softmax among the children of each node, (B, P), of logits of all of them; `node_P` says whose each is."""
    shape = (len(logits_BP), num_nodes)
    with torch.no_grad():
        largest_BN = logits_BP.new_full(shape, -torch.inf).scatter_reduce_(1, node_P.expand_as(logits_BP), logits_BP, "amax")
    below_BP = logits_BP - largest_BN[:, node_P]
    return below_BP - logits_BP.new_zeros(shape).index_add(1, node_P, below_BP.exp()).log()[:, node_P]


def _at(values_QC: Tensor, at_Q: IntArray) -> Tensor:
    return values_QC.gather(1, torch.as_tensor(at_Q)[:, None])[:, 0]


def _mixed(product_A: Tensor, asked: Wanted, count_A: IntArray | CountArray) -> Tensor:
    """log((1 - floor) p + floor · count / n) for nodes with `count` ≥ 1 legal leaves; the first dimension is Q."""
    shape = (-1,) + (1,) * (product_A.dim() - 1)
    floor_A, total_A = asked.rule.floor_B.reshape(shape), np.maximum(asked.legal.total(), 1).reshape(shape)
    with np.errstate(divide="ignore"):
        even_A = np.log(floor_A / total_A * count_A).astype(np.float32)
    return torch.logaddexp(torch.as_tensor(np.log1p(-floor_A)) + product_A, torch.as_tensor(even_A))


def _beside(step: _Step, product_Q: Tensor, asked: Wanted, walk_BS: IntArray) -> Tensor:
    """The log of the chance of what hangs beside the paths of a slate's items at one level, (Q,): each node said by its first item."""
    node_BS = np.where(walk_BS >= 0, step.node_Q[walk_BS], -1)
    same_BSS = (node_BS[:, :, None] == node_BS[:, None]) & (walk_BS >= 0)[:, :, None]
    at_B, at_S, other_S = same_BSS.nonzero()
    beside_QC = step.count_QC > 0
    beside_QC[walk_BS[at_B, at_S], step.at_Q[walk_BS[at_B, other_S]]] = False
    is_first_BS = same_BSS.argmax(2) == np.arange(walk_BS.shape[1])
    beside_QC[walk_BS[~is_first_BS & (walk_BS >= 0)]] = False
    mask_QC = torch.as_tensor(beside_QC)
    product_QC = product_Q[:, None] + step.logprob_QC.masked_fill(~mask_QC, 0)
    chance_QC = _mixed(product_QC, asked, np.maximum(step.count_QC, 1))
    return chance_QC.masked_fill(~mask_QC, NEVER).logsumexp(1)
