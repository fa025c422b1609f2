"""Next-item training: windows that make each item a target once, one pass that is many requests, a fit that finds what is there."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.decoder import Decoder, DecoderConfig
from models.next_item import FitConfig, NextItemModel, Windows, fit, right_aligned, weigh
from models.next_item_decoder import NUM_KINDS, NextItemDecoder, context_of, fit_slates, settle
from models.sasrec import Sasrec, SasrecConfig, SasrecTrunk
from models.successors import SuccessorCounts, sequence_pairs
from models.tokenizer import Tokenizer, TokenizerConfig

NUM_ITEMS, HISTORY = 30, 6
CONFIG = DecoderConfig(width=16, layers=2, heads=2, history=HISTORY, features=2, max_slots=5, dropout=0.0)


def ring(num_users: int, length: int = 8) -> list[np.ndarray]:
    """Users who go round a ring of items, each from another place: what comes next is certain."""
    random = np.random.default_rng(0)
    return [1 + (random.integers(NUM_ITEMS) + np.arange(length)) % NUM_ITEMS for _ in range(num_users)]


def decoder_model(
    levels: int = 1, kind: type[Decoder] = Decoder, dtype: torch.dtype = torch.float32, seed: int = 0, num_items: int = NUM_ITEMS
) -> NextItemDecoder:
    random = np.random.default_rng(seed)
    vectors_NC = random.standard_normal((num_items, 8)).astype(np.float32)
    vectors_NC /= np.linalg.norm(vectors_NC, axis=1, keepdims=True)
    tokenizer = Tokenizer.built(TokenizerConfig(levels=levels, codes=4, content_dim=8), vectors_NC)
    torch.manual_seed(seed)
    content_RC = torch.from_numpy(np.concatenate([np.zeros((1, 8), np.float32), vectors_NC]))
    decoder = kind(CONFIG, centroids=tokenizer.centroids, content_RC=content_RC, num_kinds=NUM_KINDS)
    counts = SuccessorCounts()
    for rows in ring(40):
        counts.add(*sequence_pairs(rows))
    return NextItemDecoder.of(decoder.eval(), tokenizer, counts.frozen(num_items + 1), dtype)


def shaken(model: NextItemDecoder) -> NextItemDecoder:
    """Every weight at random, also those that begin at zero."""
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        model.decoder.kind.weight[0] = model.decoder.feature.weight[0] = 0
    return model


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 50))
def test_every_item_but_the_first_is_a_target_once_after_what_came_before_it(length: int, events: int) -> None:
    windows = Windows.of([np.arange(1, events + 1)], length)
    at_W, at_L = windows.target_WL.nonzero()
    assert sorted(windows.target_WL[at_W, at_L].tolist()) == list(range(2, events + 1))
    assert (windows.item_WL[at_W, at_L] == windows.target_WL[at_W, at_L] - 1).all()
    # at least half a window, or all there is, stands before each target
    before = (windows.item_WL[at_W] > 0)[np.arange(len(at_W))[:, None], np.arange(length)] & (np.arange(length) <= at_L[:, None])
    assert (before.sum(1) >= np.minimum(length - length // 2, windows.target_WL[at_W, at_L] - 1)).all()


def test_batches_hold_all_windows_once() -> None:
    windows = Windows.of([np.arange(1, 2 + n % 7) for n in range(50)], 4)
    met = [row for item_BL, _ in windows.batches(8, np.random.default_rng(1), chunk=2) for row in item_BL]
    assert len(met) == len(windows.item_WL)
    assert sorted(int(row.sum()) for row in met) == sorted(windows.item_WL.sum(1).tolist())


@pytest.mark.parametrize("kind", [Decoder, SasrecTrunk])
def test_the_state_at_a_place_is_that_of_a_request_made_there(kind: type[Decoder]) -> None:
    model = shaken(decoder_model(kind=kind))
    item_BL = np.array([[0, 0, 3, 4, 5, 6], [7, 8, 9, 1, 2, 3]])
    vectors = model.decoder.vectors(np.arange(NUM_ITEMS + 1))
    with torch.no_grad():
        whole_BLD = model.decoder.place_states(vectors, context_of(item_BL))
        for at, rows in enumerate(item_BL):
            for place in range(HISTORY):
                if rows[place]:
                    upto = right_aligned([rows[: place + 1][rows[: place + 1] > 0]], HISTORY)
                    alone_LD = model.decoder.place_states(vectors, context_of(upto))[0]
                    if kind is Decoder:  # and what a real request is asked with
                        asked_D = model.decoder.states(vectors, context_of(upto), torch.zeros((1, 1), dtype=torch.int64))[0, 0]
                        assert asked_D.numpy() == pytest.approx(alone_LD[-1].numpy(), abs=1e-5)
                        assert whole_BLD[at, place].numpy() == pytest.approx(asked_D.numpy(), abs=1e-5)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_scores_are_log_probabilities_and_the_loss_is_minus_one_of_them(levels: int) -> None:
    model = shaken(decoder_model(levels))
    histories = right_aligned([np.array([3, 4, 5]), np.array([9]), np.array([1, 2, 3, 4, 5, 6])], HISTORY)
    score_BR = model.scores(histories)
    assert np.exp(score_BR[:, 1:]).sum(1) == pytest.approx(np.ones(3), abs=1e-4)
    target_B = np.array([7, 2, 30])
    share_B = 1 + 3 * model.successors.unmet(target_B)  # what nothing is known to come before counts four times
    assert len(set(share_B)) > 1
    with torch.no_grad():
        expected = -np.average(score_BR[np.arange(3), target_B], weights=share_B)
        assert float(model.weighing_loss(histories, target_B)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("levels", [1, 2])
def test_training_leaves_counts_and_likeness_out(levels: int) -> None:
    """They have seen what is trained on."""
    model = shaken(decoder_model(levels))
    windows = Windows.of(ring(10), HISTORY)
    with torch.no_grad():
        before = float(model.loss(windows.item_WL, windows.target_WL))
        weighed = float(model.weighing_loss(windows.item_WL, windows.target_WL[:, -1]))
        for weights in (model.decoder.follow, model.decoder.match, *model.decoder.silence.parameters()):
            weights.add_(1)
        assert float(model.loss(windows.item_WL, windows.target_WL)) == pytest.approx(before, abs=1e-6)
        assert abs(float(model.weighing_loss(windows.item_WL, windows.target_WL[:, -1])) - weighed) > 0.1


def models() -> dict[str, NextItemModel]:
    sasrec = Sasrec(SasrecConfig(width=16, heads=2, history=HISTORY, dropout=0.1), NUM_ITEMS + 1, torch.float32)
    return {
        "decoder": decoder_model(),
        "two levels": decoder_model(2),
        "half precision": decoder_model(dtype=torch.bfloat16),
        "sasrec": sasrec,
        "trunk": decoder_model(kind=SasrecTrunk),
    }


@pytest.mark.parametrize("name", ["decoder", "two levels", "half precision", "sasrec", "trunk"])
def test_a_fit_finds_what_is_certain_and_the_same_seed_finds_the_same(name: str) -> None:
    train, asked = ring(300), ring(40, 5)
    histories, targets = [rows[:-1] for rows in asked], np.array([rows[-1] for rows in asked])

    def hits(model: NextItemModel) -> float:
        return float((model.scores(right_aligned(histories, HISTORY)).argmax(1) == targets).mean())

    found = []
    for _ in range(2):
        torch.manual_seed(1)
        model = models()[name]
        fitted = fit(model, train, FitConfig(lr=0.01, batch=32, max_epochs=12, mean_decay=0.9, rise_steps=5), 3, lambda m=model: hits(m))
        weigh(model, histories, targets, 3)
        found.append((hits(model), fitted.best_epoch, [p.detach().clone() for p in model.module.parameters()]))
    assert found[0][0] > 0.95
    assert found[0][1] == found[1][1]
    assert all(torch.equal(one, other) for one, other in zip(found[0][2], found[1][2], strict=True))


def test_each_lean_is_weighed_from_the_same_start_and_the_best_is_taken() -> None:
    model, losses, starts = decoder_model(), iter([3.0, 1.0, 2.0, 2.0]), []

    def weighed() -> float:
        loud = model.decoder.silence.loud
        starts.append(loud.item())
        torch.nn.init.constant_(loud, 5.0)
        return next(losses)

    assert settle(model, np.ones(model.trie.num_items + 1, np.int64), weighed, kappas=(0, 1, 3, 8)) == 1
    assert [*starts, model.decoder.silence.loud.item()] == pytest.approx([0.2] * 5)  # above 0: likeness is to speak for what is unknown


def test_a_fit_ends_with_the_weights_that_were_best() -> None:
    model = decoder_model()
    said = iter([0.1, 0.5, 0.3, 0.2, 0.1])
    kept: list[list[torch.Tensor]] = []

    def validate() -> float:
        kept.append([parameter.detach().clone() for parameter in model.module.parameters()])
        return next(said)

    fitted = fit(model, ring(40), FitConfig(max_epochs=9, batch=20, patience=12), 0, validate)
    assert (fitted.best_epoch, fitted.best, fitted.epochs) == (2, 0.5, 5)
    assert all(torch.equal(one, other) for one, other in zip(kept[1], model.module.parameters(), strict=True))


def test_weighing_moves_the_weights_of_sources_and_nothing_else() -> None:
    model = decoder_model()
    before = {name: value.clone() for name, value in model.decoder.state_dict().items()}
    weigh(model, [rows[:-1] for rows in ring(60)], np.array([rows[-1] for rows in ring(60)]), 0)
    moved = {name for name, value in model.decoder.state_dict().items() if not torch.equal(value, before[name])}
    names = {"repeat", "follow", "match"}
    assert moved == names | {"log_scale", "silence.soft", "silence.loud"} | {f"silence.{name}" for name in names}
    assert not any(weights.requires_grad for weights in model.decoder.silence.parameters())  # nothing else learns them
    assert model.decoder.follow.detach().max() > 0


def test_new_items_can_be_found_by_their_content() -> None:
    model = decoder_model()
    with torch.no_grad():
        model.decoder.match.fill_(1.0)
    like = model.decoder.content_RC[5:6].numpy().copy()
    grown = model.with_items(like)
    score_R = grown.scores(np.array([[5]]))[0]
    assert grown.trie.num_items == NUM_ITEMS + 1
    assert score_R[NUM_ITEMS + 1] > np.delete(score_R, [0, 5, NUM_ITEMS + 1]).max()
    assert np.isfinite(score_R[1:]).all()


def test_slates_learn_what_is_still_worth_showing() -> None:
    """After picks of the model's own, what is left of the later items becomes likelier in every slot."""
    model = replace(decoder_model(), dtype=torch.float32)
    sequences = ring(200, 10)
    fit(model, sequences, FitConfig(lr=0.01, batch=32, max_epochs=4, mean_decay=0.9, rise_steps=5), 0, lambda: 0.0)
    item_BL, later_BT = np.stack([rows[:5] for rows in sequences]), np.stack([rows[5:9] for rows in sequences])

    def loss() -> float:
        with torch.no_grad():
            return float(model.slate_loss(item_BL, later_BT, 5, np.random.default_rng(0)))

    before = loss()
    fit_slates(model, sequences, 0, num_slots=5, later=4, epochs=3, lr=0.003)
    assert loss() < before - 0.1


def test_slates_of_more_slots_than_there_are_items() -> None:
    model = decoder_model(num_items=4)
    fit_slates(model, [np.array([1, 2, 3, 4, 1, 2, 3])], 0, num_slots=10, later=4, epochs=1)
    assert np.isfinite(model.scores(np.array([[1, 2]]))[:, 1:]).all()


@pytest.mark.parametrize(("setting", "value"), [("batch", 0), ("lr", 0), ("max_epochs", 0), ("patience", 0), ("mean_decay", 1)])
def test_settings_outside_their_range_are_named(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"fit.{setting} is {value}; it must be"):
        FitConfig(**{setting: value})  # type: ignore[arg-type]
