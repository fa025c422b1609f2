"""Where users stand: what of a memory counts, that the posterior is the one there is, and that covariance and level are found."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.affinity import DIFFER, MOST, Affinity, Moments, evidence
from models.content import FloatArray
from models.trie import BoolArray, IntArray

SHOWN, CLICK, LIKE, DISLIKE = 1, 2, 3, 5
KINDS = 8
SAYS = np.array([0, 0, 1, 1, 1, -1, 1, 1], np.float32)


def test_what_was_taken_and_what_was_left_by_hand() -> None:
    """A blank, an item left, one taken, one unknown here, one taken once of twice, one liked as well, one disliked."""
    item_BL = np.array([[0, 5, 6, 6, 0, 7, 7, 7, 8, 8, 8, 9, 9]])
    kind_BL = np.array([[0, SHOWN, SHOWN, CLICK, SHOWN, SHOWN, CLICK, SHOWN, SHOWN, CLICK, LIKE, SHOWN, DISLIKE]])
    [taken_L], [count_L], [shown_L] = evidence(item_BL, kind_BL, SAYS)
    assert taken_L.tolist() == [0, 0, 0, 1, 0, 0, 1, 0, 0, 1, 1, 0, 0]
    assert count_L.tolist() == [0, 1, 0, 1, 0, 0.5, 1, 0.5, 0, 0.5, 0.5, 1, 1]
    assert shown_L.tolist() == [False] * 1 + [True] * 3 + [False] + [True] * 8
    assert not evidence(np.zeros((1, 4), np.int64), np.zeros((1, 4), np.int64), SAYS)[1].any()


def test_users_do_not_share_their_rows() -> None:
    """The same item, taken by one and left by the other."""
    _, count_BL, _ = evidence(np.array([[5, 5], [5, 5]]), np.array([[SHOWN, CLICK], [SHOWN, SHOWN]]), SAYS)
    assert count_BL.tolist() == [[0, 1], [1, 1]]


def told(affinity: Affinity, item_BL: IntArray, kind_BL: IntArray, content_BLS: FloatArray, bias_BL: FloatArray) -> FloatArray:
    return affinity.crowd().standing(item_BL, kind_BL, content_BLS, bias_BL).mean_BS


def shown_and_taken(took_BL: BoolArray) -> tuple[IntArray, IntArray]:
    """Memories of users who were shown as many items and took some: a row each, then a click of each that was taken."""
    item_BL = np.tile(np.arange(1, took_BL.shape[1] + 1), (len(took_BL), 2))
    return item_BL, np.concatenate([np.full(took_BL.shape, SHOWN), np.where(took_BL, CLICK, 0)], 1)


def test_the_posterior_is_the_one_that_a_grid_finds() -> None:
    """Two dimensions, so that a grid can hold the whole posterior: its mean and variance, within what the bound costs."""
    affinity, random = Affinity(2, KINDS), np.random.default_rng(0)
    affinity.covariance.copy_(torch.tensor([[2.0, 0.5], [0.5, 1.0]]))
    took_1L = random.random((1, 24)) < 0.5
    content_1LS, bias_1L = random.normal(size=(1, 24, 2)).astype(np.float32), random.normal(size=(1, 24)).astype(np.float32)
    standing = affinity.crowd().standing(*shown_and_taken(took_1L), np.tile(content_1LS, (1, 2, 1)), np.tile(bias_1L, (1, 2)))
    grid_G = np.linspace(-5, 5, 201)
    point_P2 = np.stack(np.meshgrid(grid_G, grid_G), -1).reshape(-1, 2)
    logit_PL = point_P2 @ content_1LS[0].T + bias_1L[0] + standing.level_B[0]
    likelihood_P = (np.where(took_1L[0], logit_PL, 0) - np.logaddexp(0, logit_PL)).sum(1)
    precision_SS = np.linalg.inv(affinity.covariance.numpy())
    weight_P = np.exp(likelihood_P - 0.5 * np.einsum("ps,st,pt->p", point_P2, precision_SS, point_P2))
    weight_P /= weight_P.sum()
    mean_S = weight_P @ point_P2
    variance_S = weight_P @ (point_P2 - mean_S) ** 2
    assert standing.mean_BS[0] == pytest.approx(mean_S, abs=0.12)
    assert np.diag(np.linalg.inv(standing.precision_BSS[0])) == pytest.approx(variance_S, rel=0.25)


def test_one_slate_that_was_left_turns_away_from_it_and_from_what_is_like_it() -> None:
    """The first mistake changes the second answer, with weights that stand still."""
    affinity = Affinity(8, KINDS)
    shown_1LS, away_S = np.tile(np.eye(8, dtype=np.float32)[0], (1, 6, 1)), np.eye(8, dtype=np.float32)[1]
    items, no_bias = np.arange(1, 7)[None], np.zeros((1, 6), np.float32)
    left = told(affinity, items, np.full((1, 6), SHOWN), shown_1LS, no_bias)[0]
    took = told(affinity, items, np.full((1, 6), CLICK), shown_1LS, no_bias)[0]
    assert left @ shown_1LS[0, 0] < -0.3 < 0.3 < took @ shown_1LS[0, 0]
    assert left @ away_S == pytest.approx(0, abs=1e-6)


def simulated(affinity: Affinity, covariance_SS: FloatArray, random: np.random.Generator) -> None:
    """Meet 30 users of a crowd like that: 40 items each, taken as they like."""
    users_BS = random.multivariate_normal(np.zeros(len(covariance_SS)), covariance_SS, 30)
    content_BLS = random.normal(size=(30, 40, len(covariance_SS))).astype(np.float32) / np.sqrt(len(covariance_SS))
    chance_BL = 1 / (1 + np.exp(1 - np.einsum("bs,bls->bl", users_BS, content_BLS)))
    item_BL, kind_BL = shown_and_taken(random.random(chance_BL.shape) < chance_BL)
    standing = affinity.crowd().standing(item_BL, kind_BL, np.tile(content_BLS, (1, 2, 1)), np.zeros((30, 80), np.float32))
    affinity.meet(standing.moments(np.ones(30, np.float32)))


def test_how_users_differ_is_found() -> None:
    """All of them along one of four directions: what is found there is far more than in the others."""
    affinity, random = Affinity(4, KINDS), np.random.default_rng(1)
    affinity.level.fill_(-1.0)
    for _ in range(60):
        simulated(affinity, np.diag([9.0, 0.01, 0.01, 0.01]).astype(np.float32), random)
    found_S = affinity.covariance.diagonal()
    assert 4 < float(found_S[0]) < 12
    assert float(found_S[1:].max()) < DIFFER


def test_nobody_differs_without_bounds() -> None:
    affinity = Affinity(4, KINDS)
    for _ in range(100):
        affinity.meet(Moments(30.0, np.zeros(4), 30 * np.diag([1000.0, 1, 1, 1])))
    assert float(torch.linalg.eigvalsh(affinity.covariance)[-1]) == pytest.approx(MOST)


def test_nobody_met_changes_nothing_and_the_level_is_what_slots_earn() -> None:
    affinity = Affinity(4, KINDS)
    before = affinity.covariance.clone()
    affinity.meet(Moments.none(4))
    assert torch.equal(affinity.covariance, before)
    for _ in range(50):
        chance_Q = torch.full((100,), float(affinity.level)).sigmoid()
        affinity.settle(0.2 - chance_Q, chance_Q * (1 - chance_Q))
    assert float(affinity.level.sigmoid()) == pytest.approx(0.2, abs=0.01)


def test_what_is_expected_is_what_everybody_likes_and_what_the_user_does() -> None:
    affinity = Affinity(48, KINDS)
    affinity.weight[0] = 1.0
    standing_QS, content_QC = torch.zeros(1, affinity.said), F.one_hot(torch.tensor([0]), 48).float()
    standing_QS[0, 0] = 0.5
    assert affinity(standing_QS, content_QC).tolist() == [1.5]
    assert affinity(standing_QS, content_QC.roll(40, 1)).tolist() == [0.0]  # beyond what is read
