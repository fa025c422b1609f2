"""How a minute is learned in steps: a large one is divided among them, and looked at as a whole before."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_generate import one_thread  # noqa: F401  a fixture for the whole module

from models.artifact import weights_digest
from recsys.bench.update import Minute, prepared
from recsys.config import behavior_digest
from recsys.features import Lesson
from recsys.presets import configured
from recsys.trainer import PART_SLATES, Seeds, Trainer, Updated

PARTS = 5
MINUTE = Minute(decisions=PARTS * PART_SLATES, catalogue=40, history=3, slots=2)


def minute(*settings: str) -> tuple[Trainer, list[Lesson]]:
    return prepared(configured("tiny", ["learner.trainer.passes=2", *settings]), MINUTE, 0)


def learned(trainer: Trainer, lessons: list[Lesson]) -> Updated:
    return trainer.update(lessons, [], [trainer.model.num_rows] * len(lessons), 0)


def test_a_minute_that_is_not_too_large_is_read_by_every_step() -> None:
    digests = []
    for most in (MINUTE.decisions, 10**6, MINUTE.decisions - 1):
        trainer, lessons = minute(f"learner.trainer.divide_above={most}")
        trainer.seeds = Seeds("same", 0)
        learned(trainer, lessons)
        digests.append(weights_digest(trainer.model.decoder))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("divided", [True, False])
def test_each_step_of_a_large_minute_reads_its_share_and_all_of_it_is_read(divided: bool) -> None:
    """One bad number in a part spoils the step that reads it: the first, before anything moved, or a later one."""
    refused = []
    for part in range(PARTS):
        trainer, lessons = minute(f"learner.trainer.divide_above={100 if divided else 10**6}")
        trainer.seeds = Seeds("same", 0)
        bad = part * PART_SLATES
        lessons[bad] = replace(lessons[bad], logged=(float("nan"),) * MINUTE.slots, rewards=(1.0, 0.0))
        refused.append(learned(trainer, lessons).refused)
    assert set(refused) == ({"loss_not_finite", "weights_not_finite"} if divided else {"loss_not_finite"})


def test_all_of_a_large_minute_is_looked_at_before_anything_moves() -> None:
    whole, divided = (learned(*minute(f"learner.trainer.divide_above={most}")).terms.surprise for most in (10**6, 100))
    assert np.array_equal(whole.slate_Q, divided.slate_Q)
    for name in ("item_Q", "standing_QZ", "expected_Q", "earned_Q", "weight_Q"):
        assert torch.equal(getattr(whole, name), getattr(divided, name))


def test_a_setting_that_came_later_changes_no_draw_until_it_is_set() -> None:
    usual, set_anew, other = (
        behavior_digest(configured("tiny", settings))
        for settings in ([], ["learner.trainer.divide_above=4096"], ["learner.trainer.divide_above=100"])
    )
    assert usual == set_anew != other
