"""How content suits a user: what everybody likes of it, and what his memory says that he likes more or less than everybody.

Users differ as a normal distribution says, whose covariance is learned from them all; what one of them took and left tells where
he stands in it (a logistic regression with random effects; the posterior by the bound of Jaakkola and Jordan 2000, which has
no step too far, the covariance by expectation-maximization). So his first slate says much in the few directions in which
users differ and nothing in the others, without any weight being moved.
Knows nothing of policies, of the tree or of what is learned of items.

Shapes: B requests, L history, Q shown slots, S dimensions of content that are read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.content import FloatArray
from models.successors import ACT
from models.trie import BoolArray, IntArray

SAID = 32
"""Dimensions of content, the leading ones, in which users are told apart."""
DIFFER = 0.5
"""The variance of what users like of a content, logits², before anything is known of users."""
MOST = 16.0
"""The largest variance along any content: whoever is shown only what he likes seems to like it without bounds."""
FEW, MANY = 30.0, 300.0
"""Requests that what is known of the covariance counts as: at first, and at most, so that it follows the users who come."""
PLAIN = 0.1
"""Share of the users met who count as one of whom nothing is known."""
FIRM = 2000.0
"""Curvature that the level is taken to be known of, at most: some 10⁴ shown slots, so that it moves slowly."""
TYPICAL, SHY, FAR = 8.0, 0.5, 2.0
"""A user's own rate of taking: rows of the typical rate beside his, how much of the difference is believed, and of how many logits."""

DoubleArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Standing:
    """Where users stand: what they like beside what everybody does."""

    mean_BS: FloatArray
    precision_BSS: DoubleArray
    """How well that is known."""
    level_B: FloatArray
    """What they take of anything, logits: between what is typical and what they took so far."""

    def moments(self, weight_B: FloatArray) -> "Moments":
        """The sums of what is expected of the users and of their squares, each by its weight."""
        mean_BS, each_B = self.mean_BS.astype(np.float64), weight_B.astype(np.float64)
        squares_SS = (mean_BS * each_B[:, None]).T @ mean_BS + np.tensordot(each_B, np.linalg.inv(self.precision_BSS), 1)
        return Moments(float(each_B.sum()), each_B @ mean_BS, squares_SS)


@dataclass(frozen=True)
class Moments:
    """Sums over users."""

    total: float
    sum_S: DoubleArray
    squares_SS: DoubleArray

    @staticmethod
    def none(said: int) -> "Moments":
        """Of nobody."""
        return Moments(0.0, np.zeros(said), np.zeros((said, said)))

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.total + other.total, self.sum_S + other.sum_S, self.squares_SS + other.squares_SS)


@dataclass(frozen=True)
class Crowd:
    """What is known of all users, to be read."""

    weight_S: FloatArray
    """What everybody likes of content, logits."""
    covariance_SS: DoubleArray
    precision_SS: DoubleArray
    """Its inverse."""
    level: float
    """What rows of a memory earn but for what is known of their items, as a logit."""
    says_K: FloatArray
    """By row kind: 1 that an item was taken, -1 that it was not liked, 0 that it was shown."""

    def standing(self, item_BL: IntArray, kind_BL: IntArray, content_BLS: FloatArray, bias_BL: FloatArray) -> Standing:
        """Given the rows' contents and what else is expected of their items, logits."""
        first = int(np.append((kind_BL > 0).any(0), True).argmax())  # columns that are blank in the whole batch say nothing
        taken_BL, count_BL, shown_BL = evidence(item_BL[:, first:], kind_BL[:, first:], self.says_K)
        row_BLS: DoubleArray = content_BLS[:, first:].astype(np.float64)
        half_BL, level_B = count_BL * (taken_BL - 0.5), _levels(taken_BL, count_BL, self.level)
        # of what nobody showed him nobody knows what he passed by: even odds, that move with nothing learned
        logit_BL: DoubleArray = shown_BL * (bias_BL[:, first:] + row_BLS @ self.weight_S + level_B[:, None])
        spread_BL: DoubleArray = ((row_BLS @ self.covariance_SS) * row_BLS).sum(2)
        told_BSS, pull_BS = self._told(row_BLS, count_BL, half_BL, logit_BL, logit_BL**2 + spread_BL)
        # the bound once more, at where the first one says that he stands
        covariance_BSS = np.linalg.inv(told_BSS)
        mean_BS1 = covariance_BSS @ pull_BS[:, :, None]
        spread_BL = ((row_BLS @ covariance_BSS) * row_BLS).sum(2)
        told_BSS, pull_BS = self._told(row_BLS, count_BL, half_BL, logit_BL, (logit_BL + (row_BLS @ mean_BS1)[:, :, 0]) ** 2 + spread_BL)
        mean_BS = np.linalg.solve(told_BSS, pull_BS[:, :, None])[:, :, 0]
        return Standing(mean_BS.astype(np.float32), told_BSS, level_B.astype(np.float32))

    def _told(
        self, row_BLS: DoubleArray, count_BL: DoubleArray, half_BL: DoubleArray, logit_BL: DoubleArray, square_BL: DoubleArray
    ) -> tuple[DoubleArray, DoubleArray]:
        """Precision, and precision times mean, where the bound touches at logits with these squares."""
        far_BL = np.sqrt(np.maximum(square_BL, 1e-12))
        curve_BL = count_BL * np.tanh(far_BL / 2) / (2 * far_BL)
        told_BSS: DoubleArray = self.precision_SS + (row_BLS * curve_BL[:, :, None]).swapaxes(1, 2) @ row_BLS
        pull_BS: DoubleArray = ((half_BL - curve_BL * logit_BL)[:, None] @ row_BLS)[:, 0]
        return told_BSS, pull_BS


def evidence(item_BL: IntArray, kind_BL: IntArray, says_K: FloatArray) -> tuple[DoubleArray, DoubleArray, BoolArray]:
    """1 where a row says that something was taken; for how much each row counts; and whether its item was shown, (B, L).

    Of the rows that say an item was shown only so many count as it was shown more often than taken; of those that say what was
    shown was taken, no more than it was shown: a click and a like of it are one choice.
    """
    known_BL, says_BL = (kind_BL > 0) & (item_BL > 0), says_K[kind_BL]
    taken_BL, shown_BL = known_BL & (says_BL > 0), known_BL & (says_BL == 0)
    key_BL = item_BL + np.arange(len(item_BL))[:, None] * (item_BL.max(initial=0) + 1)  # each user's items by themselves
    place_N = np.unique(key_BL, return_inverse=True)[1].ravel()
    taken_N, shown_N = (np.bincount(place_N, mask_BL.ravel())[place_N] for mask_BL in (taken_BL, shown_BL))
    left_N = np.maximum(shown_N - taken_N, 0) / np.maximum(shown_N, 1)
    took_N = np.where(shown_N > 0, np.minimum(shown_N / np.maximum(taken_N, 1), 1), 1)
    count_N = np.where(shown_BL.ravel(), left_N, np.where(taken_BL.ravel(), took_N, known_BL.ravel()))
    return taken_BL.astype(np.float64), count_N.reshape(item_BL.shape), (shown_N > 0).reshape(item_BL.shape)


def _levels(taken_BL: DoubleArray, count_BL: DoubleArray, level: float) -> DoubleArray:
    """What rows of each user earn, whatever their items, (B,)."""
    rate = 1 / (1 + np.exp(-level))
    took_B, rows_B = (taken_BL * count_BL).sum(1) + TYPICAL * rate, count_BL.sum(1) + TYPICAL
    levels_B: DoubleArray = level + SHY * np.clip(np.log(took_B / np.maximum(rows_B - took_B, 1e-9)) - level, -FAR, FAR)
    return levels_B


class Affinity(nn.Module):
    """What is known of all users: nothing is liked at first, and they differ evenly in all directions."""

    covariance: Tensor
    seen: Tensor
    """Requests that the covariance is known of, at most `MANY`."""
    level: Tensor
    known: Tensor
    """The curvature that the level is known of, at most `FIRM`."""

    says: Tensor
    """See `Crowd`."""

    def __init__(self, content_dim: int, num_kinds: int) -> None:
        super().__init__()
        self.said = min(SAID, content_dim)
        self.weight = nn.Parameter(torch.zeros(self.said), requires_grad=False)
        self.register_buffer("covariance", DIFFER * torch.eye(self.said, dtype=torch.float64))
        self.register_buffer("seen", torch.tensor(FEW, dtype=torch.float64))
        self.register_buffer("level", torch.zeros((), dtype=torch.float64))
        self.register_buffer("known", torch.zeros((), dtype=torch.float64))
        self.register_buffer("says", (torch.arange(num_kinds) >= ACT).float())

    def turn(self, kinds: Sequence[int]) -> None:
        """These row kinds speak against an item."""
        self.says[list(kinds)] = -1

    def crowd(self) -> Crowd:
        """As it is now."""
        covariance_SS = self.covariance.cpu().numpy().copy()
        weight_S, says_K = (values.detach().cpu().numpy().copy() for values in (self.weight, self.says))
        return Crowd(weight_S, covariance_SS, np.linalg.inv(covariance_SS), float(self.level), says_K)

    def forward(self, standing_QS: Tensor, content_QC: Tensor) -> Tensor:
        """What is expected of contents beside all else, logits, (Q,)."""
        suits_Q: Tensor = ((self.weight + standing_QS) * content_QC[:, : self.said]).sum(-1)
        return suits_Q

    @torch.no_grad()
    def meet(self, moments: Moments) -> None:
        """Learn of these users how users differ: from their mean, for what they all like is not theirs.

        A policy that shows each what he likes tells more and more of how much he does: a share of those who nothing is known of holds it.
        """
        if not moments.total:
            return
        squares_SS = moments.squares_SS - np.outer(moments.sum_S, moments.sum_S) / moments.total
        told_SS = (1 - PLAIN) * squares_SS + PLAIN * moments.total * DIFFER * np.eye(self.said)
        found_SS = (self.seen * self.covariance + torch.as_tensor(told_SS).to(self.covariance)) / (self.seen + moments.total)
        variance_S, direction_SS = torch.linalg.eigh(found_SS)
        self.covariance.copy_(direction_SS * variance_S.clamp(max=MOST) @ direction_SS.T)
        self.seen.add_(moments.total).clamp_(max=MANY)

    @torch.no_grad()
    def settle(self, error_Q: Tensor, curvature_Q: Tensor) -> None:
        """A Newton step of the level, of what was wrong about shown slots in all and how sharply that tells."""
        self.known.add_(curvature_Q.double().sum()).clamp_(min=1.0)
        self.level.add_(error_Q.double().sum() / self.known)
        self.known.clamp_(max=FIRM)
