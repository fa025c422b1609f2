"""The decoder as a next-item model: its first slot at every place of a sequence, and whole slates that see themselves.

Knows nothing of users, rewards or metrics. With plain ids (K = 1) the loss runs over the whole catalogue at once
(models/softmax_loss.py); with more levels it is the walk that slates are scored with (models/scoring.py).
Shapes: B sequences, L history, P places, S slots, D width, R item rows (0 = none), F leaves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from models.content import FloatArray
from models.decoder import Context, Decoder
from models.neighbours import Neighbours, let_in
from models.next_item import right_aligned
from models.remembered import Remembered
from models.scoring import Scored, Wanted, inner_contents
from models.softmax_loss import ExtraLogits, softmax_loss
from models.successors import ACT, Successors
from models.tokenizer import Tokenizer
from models.trie import IntArray, Legal, Trie
from models.vectors import Vectors
from models.walk import Asked, Rule

NUM_KINDS = ACT + 1
"""Blank, shown, and the one kind that a sequence has: the user did something with the item."""
COLD = 3.0
"""How much more a target counts in the weighing that nothing is known to come before: what is rare is most of what is not known yet."""
LOUD_AT_FIRST = 0.2
"""Where its weighing begins (models/silence.py): from 0 on it may as well end below, where all likeness speaks against what is known."""
SLATES_AT_ONCE = 64
AT_ONCE = 64
"""Requests whose whole tree is scored at a time."""


@dataclass(frozen=True)
class NextItemDecoder:
    """A NextItemModel. Row r of the sequences is item row r of the tree."""

    decoder: Decoder
    tokenizer: Tokenizer
    trie: Trie
    successors: Successors
    dtype: torch.dtype
    """Of the products over the whole catalogue."""

    @staticmethod
    def of(decoder: Decoder, tokenizer: Tokenizer, successors: Successors, dtype: torch.dtype) -> "NextItemDecoder":
        """Over all ids of a tokenizer."""
        trie = Trie.built(tokenizer.ids_NK, np.zeros(len(tokenizer.ids_NK), bool))
        return NextItemDecoder(decoder, tokenizer, trie, successors, dtype)

    def with_items(self, vectors_NC: FloatArray) -> "NextItemDecoder":
        """The same model with new items behind the last, known by their content and what was learned of their neighbours."""
        first = len(self.tokenizer.ids_NK) + 1
        self.tokenizer.append(vectors_NC)
        let_in(self.decoder, torch.as_tensor(vectors_NC), first)
        return NextItemDecoder.of(self.decoder, self.tokenizer, self.successors, self.dtype)

    @property
    def module(self) -> nn.Module:
        """See NextItemModel."""
        return self.decoder

    @property
    def history(self) -> int:
        """See NextItemModel."""
        return self.decoder.config.history

    def loss(self, item_BL: IntArray, target_BL: IntArray) -> Tensor:
        """See NextItemModel. Successors and likeness of content stay out: what is trained on is in the counts already."""
        vectors = self._vectors()
        at_B, at_L = target_BL.nonzero()
        state_PD = self.decoder.place_states(vectors, context_of(item_BL))[torch.as_tensor(at_B), torch.as_tensor(at_L)]
        remembered = Remembered.of(context_of(_upto(item_BL, at_B, at_L)), self.trie, Successors.none()).without_content()
        target_P = target_BL[at_B, at_L]
        if self.trie.levels > 1:
            return -self._scored(vectors).logprobs(state_PD, self._asked(remembered), target_P).mean()
        return self._whole_loss(vectors, state_PD, remembered, target_P).mean()

    def slate_loss(self, item_BL: IntArray, later_BT: IntArray, num_slots: int, random: np.random.Generator) -> Tensor:
        """Mean -log p of what came later, in every slot of slates that the model itself drew, (right or wrong) picks and all; there are
        as many slots as items, at most.

        Each slot is asked for one of the later items (0 = none) that the slots before it do not hold. So a slot learns what is
        still worth showing after those picks, not what follows had they been taken.
        """
        later_BT, scores_BR, num_slots = later_BT.copy(), self.scores(item_BL), min(num_slots, self.trie.num_items)
        noise_BR = random.gumbel(size=scores_BR.shape).astype(np.float32)
        slate_BS = np.argsort(-(scores_BR + noise_BR), axis=1)[:, :num_slots]
        vectors = self._vectors()
        state_BSD = self.decoder.states(vectors, context_of(item_BL), torch.as_tensor(slate_BS))
        asked, scored = self._asked(Remembered.of(context_of(item_BL), self.trie, self.successors)), self._scored(vectors)
        losses = []
        for slot in range(num_slots):
            chance_BT = random.random(later_BT.shape) * (later_BT > 0)
            at_B = np.flatnonzero(later_BT.any(1))
            target_Q = later_BT[at_B, chance_BT[at_B].argmax(1)]
            before_QS = self.trie.leaf_of_item[slate_BS[at_B, :slot]].astype(np.int64)
            losses.append(-scored.logprobs(state_BSD[torch.as_tensor(at_B), slot], asked.at(at_B).without(before_QS), target_Q))
            later_BT[later_BT == slate_BS[:, slot : slot + 1]] = 0
        return torch.cat(losses).mean()

    def weighing_loss(self, item_BL: IntArray, target_B: IntArray) -> Tensor:
        """See NextItemModel. Targets count by how little is known of what they follow: 1 + COLD where it is nothing."""
        with torch.no_grad():
            vectors = self._vectors()
            state_BD = self.decoder.first_states(vectors, context_of(item_BL))
        remembered = Remembered.of(context_of(item_BL), self.trie, self.successors)
        logprob_B = self._scored(vectors).logprobs(state_BD, self._asked(remembered), target_B)
        share_B = torch.as_tensor(1 + COLD * self.successors.unmet(target_B))
        return -(share_B @ logprob_B) / share_B.sum()

    def weighing(self) -> Sequence[nn.Parameter]:
        """See NextItemModel."""
        decoder = self.decoder
        return [decoder.log_scale, decoder.repeat, decoder.follow, decoder.match, *decoder.silence.parameters()]

    def _whole_loss(self, vectors: Vectors, state_PD: Tensor, remembered: Remembered, target_P: IntArray) -> Tensor:
        """-log p of one target for each place, (P,), where every item is a child of the root."""
        decoder, trie = self.decoder, self.trie
        hits = remembered.hits_anywhere(0, np.arange(len(target_P)))
        (what_H, kind_H, age_H), *_ = remembered.numbers(hits)
        weight_H = decoder.hint_logits()[torch.as_tensor(what_H), 0, torch.as_tensor(kind_H), torch.as_tensor(age_H)]
        extra = ExtraLogits(torch.as_tensor(hits.walk_H), torch.as_tensor(hits.child_H), weight_H)
        row_F = torch.as_tensor(trie.item_of_leaf.astype(np.int64))
        leaf_P = torch.as_tensor(trie.leaf_of_item[target_P].astype(np.int64))
        return softmax_loss(decoder.query(state_PD, []), vectors.leaves(row_F), decoder.leaf_bias[row_F], extra, leaf_P, self.dtype)

    def _asked(self, remembered: Remembered) -> Wanted:
        """One walk a place, everything allowed, nothing added."""
        places = len(remembered.item_BL)
        one_P, nothing = np.ones(places, np.float32), np.zeros(0, np.int64)
        legal = Legal.of(self.trie, [nothing] * places, [None] * places)
        return Asked.of(legal, Rule(one_P, 0 * one_P, 0 * one_P, 0 * one_P), remembered)

    @torch.no_grad()
    def scores(self, item_BL: IntArray) -> FloatArray:
        """See NextItemModel: log p of every row, summed over the levels of its id."""
        vectors, parts = self._vectors(), []
        for part_BL in np.split(item_BL, range(AT_ONCE, len(item_BL), AT_ONCE)):
            state_BD = self.decoder.first_states(vectors, context_of(part_BL))
            remembered = Remembered.of(context_of(part_BL), self.trie, self.successors)
            parts.append(self._scored(vectors).all_logprobs(state_BD, self._asked(remembered)).cpu().numpy())
        score_BR = np.full((len(item_BL), self.trie.num_items + 1), -np.inf, np.float32)
        score_BR[:, self.trie.item_of_leaf] = np.concatenate(parts)
        return score_BR

    def _vectors(self) -> Vectors:
        return self.decoder.vectors(np.arange(self.trie.num_items + 1))

    @cached_property
    def _contents(self) -> list[FloatArray]:
        return inner_contents(self.decoder, self.trie)

    def _scored(self, vectors: Vectors) -> Scored:
        nothing_R = np.zeros(self.trie.num_items + 1, np.float32)
        return Scored(self.decoder, vectors, self.trie, self._contents, nothing_R, self.successors)


def settle(model: NextItemDecoder, times_R: IntArray, weighed: Callable[[], float], kappas: Sequence[float] = (0, 1, 3, 8)) -> float:
    """Let rare items lean on their neighbours; `times_R` says how often each row was met.

    As much as is best once `weighed`, which weighs the model and returns its loss on what it was not trained on: what the sources are
    worth depends on how the items lean. All that this moves begins anew each time, and before what is returned.
    """
    torch.nn.init.constant_(model.decoder.silence.loud, LOUD_AT_FIRST)
    moved = [*model.decoder.row_parameters(), *model.weighing()]
    own = [parameter.detach().clone() for parameter in moved]
    near, times_N = Neighbours.of(model.decoder, torch.arange(1, len(times_R)), len(times_R)), torch.as_tensor(times_R[1:]).float()

    def settled(kappa: float) -> None:
        with torch.no_grad():
            torch._foreach_copy_([*moved], own)
        near.lean(model.decoder, times_N, kappa)

    reached = {}
    for kappa in kappas:
        settled(kappa)
        reached[kappa] = weighed()
    best = min(reached, key=lambda kappa: (reached[kappa], kappa))
    settled(best)
    return best


def fit_slates(
    model: NextItemDecoder, sequences: Sequence[IntArray], seed: int, *, num_slots: int, later: int, epochs: int = 2, lr: float = 3e-4
) -> None:
    """Teach the slots behind the first: from random places of the sequences, slates for up to `later` items that came next."""
    random = np.random.Generator(np.random.PCG64(seed))
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(model.module.parameters(), lr=lr)
    long = [rows for rows in sequences if len(rows) > 1]
    for _ in range(epochs if long else 0):
        for part in np.array_split(random.permutation(len(long)), -(-len(long) // SLATES_AT_ONCE)):
            cuts = [int(random.integers(1, len(long[at]))) for at in part]
            item_BL = right_aligned([long[at][:cut] for at, cut in zip(part, cuts, strict=True)], model.history)
            later_BT = right_aligned([long[at][cut : cut + later] for at, cut in zip(part, cuts, strict=True)], later)
            model.module.train()
            loss = model.slate_loss(item_BL, later_BT, num_slots, random)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.module.parameters(), 1.0)
            optimizer.step()
    model.module.eval()


def context_of(item_BL: IntArray) -> Context:
    """Items of a sequence as a memory: one kind, no times, nothing said by the request."""
    return Context(item_BL, ACT * (item_BL > 0), 0 * item_BL, np.zeros((len(item_BL), 0), np.int64))


def _upto(item_BL: IntArray, at_B: IntArray, at_L: IntArray) -> IntArray:
    """For each place, what stood up to it, right-aligned, (P, L)."""
    length = item_BL.shape[1]
    column_PL = np.arange(length) - (length - 1 - at_L[:, None])
    return np.where(column_PL >= 0, item_BL[at_B[:, None], np.maximum(column_PL, 0)], 0)
