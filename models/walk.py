"""One step down the tree: what the decoder says of the children of the nodes that walks have reached, in numpy.

Knows nothing of how a child is then chosen. Both ways of drawing (models/generate.py, models/beam.py) take this step;
models/scoring.py takes it in torch. Shapes: B requests, Q walks, C children, X = C + 1 bounds, D width, R item rows, F leaves.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from models.content import FloatArray
from models.decoder import Context
from models.inference import FrozenDecoder
from models.repeat import Remembered
from models.trie import Children, CountArray, IntArray, Legal, Trie

DoubleArray = npt.NDArray[np.float64]
Real = TypeVar("Real", np.float32, np.float64)


@dataclass(frozen=True)
class Rule:
    """How each request is drawn, all (B,) float32: part of the policy, so part of the logged number."""

    temperature_B: FloatArray
    floor_B: FloatArray
    """Share of the draw that is spread evenly over all legal items."""
    bonus_B: FloatArray
    """Added to a leaf's logit times its novelty."""

    def at(self, at_Q: IntArray) -> "Rule":
        """One row for each walk."""
        return Rule(self.temperature_B[at_Q], self.floor_B[at_Q], self.bonus_B[at_Q])


@dataclass(frozen=True)
class Asked:
    """What Q walks may be given and by which rule, and the memory of the request that each is for."""

    legal: Legal
    rule: Rule
    remembered: Remembered | None
    """None where nothing was learned of repeats."""
    of_Q: IntArray

    @staticmethod
    def of(legal: Legal, rule: Rule, remembered: Remembered | None) -> "Asked":
        """One walk a request."""
        return Asked(legal, rule, remembered, np.arange(len(rule.floor_B)))

    def at(self, at_Q: IntArray) -> "Asked":
        """Other walks for the same requests."""
        return Asked(self.legal.at(at_Q), self.rule.at(at_Q), self.remembered, self.of_Q[at_Q])

    def without(self, leaf_QS: IntArray) -> "Asked":
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

    def total(self) -> IntArray:
        """How many legal leaves each request has, (B,)."""
        return self.count_BC.sum(1, dtype=np.int64)


class Walker:
    """One version's decoder and tree. `novelty_R` says how novel each item row is (0..1)."""

    def __init__(self, decoder: FrozenDecoder, trie: Trie, novelty_R: FloatArray) -> None:
        self.decoder, self.trie = decoder, trie
        self._novelty_F = novelty_R[trie.item_of_leaf]
        self._repeats = bool(decoder.repeat.any())

    def remembered(self, context: Context) -> Remembered | None:
        """What the repeat logit needs of the requests' memory; None while every weight of it is 0."""
        return Remembered.of(context, self.trie) if self._repeats else None

    def logits(self, state_QD: FloatArray, node_Q: IntArray, children: Children, prefix: list[CountArray], asked: Asked) -> FloatArray:
        """Logits of the children of level `len(prefix)` after bonus, repeats and temperature, (Q, C); illegal ones not yet out."""
        level, decoder = len(prefix), self.decoder
        query_QD = decoder.query(state_QD, prefix)
        if level + 1 < self.trie.levels:
            logits_QC = decoder.code_logits(query_QD, level, children.of(self.trie.codes[level]))
        else:
            logits_QC = decoder.leaf_logits(query_QD, children)
            logits_QC += asked.rule.bonus_B[:, None] * children.of(self._novelty_F)
        if (remembered := asked.remembered) is not None:
            hits = remembered.hits(level, asked.of_Q, node_Q, np.broadcast_to(children.start_Q, len(node_Q)))
            kind_H, age_H = remembered.kind_BL[hits.request_H, hits.row_H], remembered.age_L[hits.row_H]
            np.add.at(logits_QC, (hits.walk_H, hits.child_H), decoder.repeat[level, kind_H, age_H])
        logits_QC /= asked.rule.temperature_B[:, None]
        return logits_QC


def weights(logits_QC: npt.NDArray[Real], count_QC: CountArray) -> npt.NDArray[Real]:
    """exp(logit - largest legal logit), 0 where nothing is legal, (Q, C), as wide as the logits; zeros for a walk with nothing legal."""
    weight_QC: npt.NDArray[Real] = np.where(count_QC > 0, logits_QC, logits_QC.dtype.type(-np.inf))
    weight_QC -= weight_QC.max(1, keepdims=True, initial=-3e38)
    np.exp(weight_QC, out=weight_QC)
    return weight_QC
