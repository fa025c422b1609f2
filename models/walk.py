"""One step down the tree: what the decoder says of the children of the nodes that walks have reached, in numpy.

Knows nothing of how a child is then chosen. Both ways of drawing (models/generate.py, models/beam.py) take this step;
models/scoring.py takes it in torch. Shapes: B requests, Q walks, C children, X = C + 1 bounds, D width, R item rows, F leaves.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from models.content import FloatArray
from models.decoder import Context
from models.inference import FrozenDecoder, products
from models.remembered import Remembered
from models.successors import Successors
from models.trie import Children, CountArray, IntArray, Legal, Trie

DoubleArray = npt.NDArray[np.float64]
Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Rule:
    """How each request is drawn, all (B,) float32: part of the policy, so part of the logged number."""

    temperature_B: FloatArray
    floor_B: FloatArray
    """Share of the draw that is spread evenly over all legal items."""
    bonus_B: FloatArray
    """Added to a leaf's logit times its novelty."""
    value_B: FloatArray
    """Added to the logit of each code and item times what the value head says of it (less what it says of the whole slot)."""

    def at(self, at_Q: IntArray) -> "Rule":
        """One row for each walk."""
        return Rule(self.temperature_B[at_Q], self.floor_B[at_Q], self.bonus_B[at_Q], self.value_B[at_Q])


@dataclass(frozen=True)
class Asked(Generic[Kept]):
    """What Q walks may be given and by which rule, and what the memory of the request that each is for adds."""

    legal: Legal
    rule: Rule
    remembered: Kept
    of_Q: IntArray

    @staticmethod
    def of(legal: Legal, rule: Rule, remembered: Kept) -> "Asked[Kept]":
        """One walk a request."""
        return Asked(legal, rule, remembered, np.arange(len(rule.floor_B)))

    def at(self, at_Q: IntArray) -> "Asked[Kept]":
        """Other walks for the same requests."""
        return Asked(self.legal.at(at_Q), self.rule.at(at_Q), self.remembered, self.of_Q[at_Q])

    def requests(self) -> "tuple[Asked[Kept], IntArray]":
        """One walk for each request that there are walks for, before anything was chosen; and which of them each walk here is for."""
        request_G, first_G, group_Q = np.unique(self.of_Q, return_index=True, return_inverse=True)
        return Asked(self.legal.unchosen().at(first_G), self.rule.at(first_G), self.remembered, request_G), group_Q

    def without(self, leaf_QS: IntArray) -> "Asked[Kept]":
        """Without these leaves of each walk; see Legal."""
        return Asked(self.legal.without(leaf_QS), self.rule, self.remembered, self.of_Q)


@dataclass(frozen=True)
class Root:
    """The children of the root, which all walks share, and how many legal leaves each request has under each of them."""

    children: Children
    count_BC: CountArray

    @staticmethod
    def of(legal: Legal) -> "Root":
        """Counted once per request."""
        children = legal.trie.children(np.zeros(1, np.int64), 0)
        return Root(children, legal.count(children.bound_QX))

    def at(self, now: slice) -> "Root":
        """Of some of the requests; its counts are these, not copies."""
        return Root(self.children, self.count_BC[now])

    def total(self) -> IntArray:
        """How many legal leaves each request has, (B,)."""
        return self.count_BC.sum(1, dtype=np.int64)


@dataclass(frozen=True)
class Told:
    """What the requests' memory adds to logits, beside what the decoder makes of it."""

    remembered: Remembered
    wish_KBC: list[FloatArray]
    """By level, the content that each request asks for by its likeness to what is remembered."""
    suited_BS: FloatArray
    """Of leaves, the leading content that the value head asks for, times the rule's weight of it."""
    met_BJ: FloatArray
    """Of leaves, what the value head makes of a row for its own item, times the rule's weight of it; 0 for what followed one."""
    scale_KB: FloatArray
    """By level, what the state's part of the logits is multiplied by."""
    root_BC: FloatArray
    """All that it adds to the children of the root: the same for every slot."""


Wanted = Asked[Told | None]


class Walker:
    """One version's decoder and tree. `novelty_R` says how novel each item row is (0..1)."""

    def __init__(self, decoder: FrozenDecoder, trie: Trie, novelty_R: FloatArray, successors: Successors) -> None:
        self.decoder, self.trie, self._successors = decoder, trie, successors
        self._novelty_F = novelty_R[trie.item_of_leaf]
        inner = zip(trie.codes, trie.contents(decoder.centroids, decoder.leaves.content_FC), strict=True)
        self._inner = [
            np.concatenate([decoder.node_vectors(level, code_P, content_PC), content_PC], 1)
            for level, (code_P, content_PC) in enumerate(inner)
        ]
        """By inner level, vectors and contents of its children side by side, (P, D + content)."""
        self._suited_FS = decoder.leaves.content_FC[:, : decoder.affinity_ZS.shape[1]]
        self._loudness_F = (1 + decoder.loud * successors.unmet(trie.item_of_leaf)).astype(np.float32)
        hints, likeness = (decoder.hint_logits, decoder.silent_hint_logits), (decoder.match_logits, decoder.silent_match_logits)
        self._tells = any(weights.any() for weights in (*hints, *likeness, decoder.soft_K1, decoder.affinity_ZS, decoder.value_met))

    def asked(self, legal: Legal, rule: Rule, context: Context) -> Wanted:
        """One walk a request."""
        return Asked.of(legal, rule, self.told(context, rule))

    def told(self, context: Context, rule: Rule) -> Told | None:
        """Looked up once per request; None while all these weights are 0."""
        if not self._tells:
            return None
        decoder, remembered = self.decoder, Remembered.of(context, self.trie, self._successors)
        content_BLC = decoder.leaves.contents(remembered.item_BL)
        weight_KBL = decoder.match_logits[:, remembered.kind_BL, remembered.age_L]
        weight_KBL += decoder.silent_match_logits[:, remembered.kind_BL, remembered.age_L] * remembered.unfollowed_rows
        suited_BS = rule.value_B[:, None] * decoder.suited(remembered.item_BL, remembered.kind_BL, content_BLC)
        wish_KBC = list((weight_KBL[:, :, None] @ content_BLC)[:, :, 0])
        root, walks = self.trie.children(np.zeros(1, np.int64), 0), np.arange(len(context.item_BL))
        root_BC = np.zeros((len(walks), int(root.end_Q[0] - root.start_Q[0])), np.float32)
        met_BJ = rule.value_B[:, None] * decoder.value_met[remembered.kind_BJ] * remembered.met_rows
        told = Told(remembered, wish_KBC, suited_BS, met_BJ, np.exp(decoder.soft_K1 * remembered.unfollowed_B), root_BC)
        self._tell(told.root_BC, told, 0, walks, np.zeros(len(walks), np.int64), root)
        return told

    def logits(self, state_QD: FloatArray, node_Q: IntArray, children: Children, prefix: list[CountArray], asked: Wanted) -> FloatArray:
        """Logits of the children of level `len(prefix)` after all that is added and the temperature, (Q, C); illegal ones not yet out."""
        level, decoder = len(prefix), self.decoder
        query_QD, value_Q1 = decoder.query(state_QD, prefix), asked.rule.value_B[:, None]
        if asked.remembered is not None:
            query_QD *= asked.remembered.scale_KB[level, asked.of_Q][:, None]
        query_QD += value_Q1 * decoder.value(state_QD)
        if level + 1 < self.trie.levels:
            code_QC = children.of(self.trie.codes[level])
            logits_QC = self._inner_fit(query_QD, level, children, asked)
            logits_QC += decoder.code_bias[level][code_QC]
            logits_QC += value_Q1 * decoder.code_value[level][code_QC]
        else:
            logits_QC = decoder.leaf_logits(query_QD, children)
            logits_QC += value_Q1 * children.of(decoder.leaves.value_bias_F)
            logits_QC += asked.rule.bonus_B[:, None] * children.of(self._novelty_F)
        if asked.remembered is not None and level:
            self._tell(logits_QC, asked.remembered, level, asked.of_Q, node_Q, children)
        elif asked.remembered is not None:
            logits_QC += asked.remembered.root_BC[asked.of_Q]
        logits_QC /= asked.rule.temperature_B[:, None]
        return logits_QC

    def _inner_fit(self, query_QD: FloatArray, level: int, children: Children, asked: Wanted) -> FloatArray:
        """What decoder and likeness of content make of the children of inner nodes, (Q, C), in one product; at the root the first alone."""
        if asked.remembered is None or not level:
            return products(query_QD, self._inner[level][:, : self.decoder.width], children)
        wish_QC = asked.remembered.wish_KBC[level][asked.of_Q]
        return products(np.concatenate([query_QD, wish_QC], 1), self._inner[level], children)

    def _tell(self, logits_QC: FloatArray, told: Told, level: int, of_Q: IntArray, node_Q: IntArray, children: Children) -> None:
        """Add likeness of content where `_inner_fit` did not, what the value head makes of it, and the hints under these children."""
        if level + 1 == self.trie.levels:
            like_QC = products(told.wish_KBC[level][of_Q], self.decoder.leaves.content_FC, children)
            like_QC *= children.of(self._loudness_F)
            like_QC += products(told.suited_BS[of_Q], self._suited_FS, children)
            logits_QC += like_QC
        elif not level:
            logits_QC += products(told.wish_KBC[0][of_Q], self._inner[0][:, self.decoder.width :], children)
        remembered = told.remembered
        hits = remembered.hits(level, of_Q, node_Q, children.start_Q) if level else remembered.hits_anywhere(level, of_Q)
        (what_H, kind_H, age_H), strength_H, unfollowed_H = remembered.numbers(hits)
        weight_H = self.decoder.hint_logits[what_H, level, kind_H, age_H]
        weight_H += self.decoder.silent_hint_logits[what_H, level, kind_H, age_H] * unfollowed_H
        weight_H *= strength_H
        if level + 1 == self.trie.levels:
            weight_H += told.met_BJ[hits.request_H, hits.hint_H]
        np.add.at(logits_QC, (hits.walk_H, hits.child_H), weight_H)
