"""A memory kept from request to request is the memory made anew, whatever has grown, moved or become too old."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generate import HISTORY, NUM_KINDS, freed, one_request, random_model

from models.cache import MemoryCache
from models.decoder import Context


def context_of(rows: np.ndarray) -> Context:
    """The newest rows of (item, kind, gap) as a request has them, with the three that only colour; one blank row where there are none."""
    columns = rows[-HISTORY - 3 :].T[:, None] if len(rows) else np.zeros((3, 1, 1), np.int64)
    return Context(*columns, np.zeros((1, 1), np.int64))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 60))
def test_a_kept_memory_is_one_made_anew_and_draws_the_same(seed: int, length: int) -> None:
    model = random_model(seed, levels=2, num_items=20, retired=0)
    random = np.random.default_rng(seed)
    rows = np.stack([random.integers(0, 21, length), random.integers(1, NUM_KINDS, length), random.integers(0, 16, length)], 1)
    generator, request = model.generator, freed(one_request(0, model, 4, (1.0, 0.1, 0.0, 0.0)), model)
    cache = MemoryCache(generator.decoder)
    for done, row in enumerate([None, *rows]):
        if row is not None:
            cache.append(*row.tolist())
        context = context_of(rows[:done])
        kept, fresh = cache.memory(), generator.decoder.memory(context)
        assert cache.num_rows == min(done, HISTORY)
        for one, other in zip(
            (kept.keys, kept.values, kept.bias, kept.newest_BD), (fresh.keys, fresh.values, fresh.bias, fresh.newest_BD), strict=True
        ):
            assert one == pytest.approx(other, rel=1e-6, abs=1e-6)
    slates = [
        generator.draw(context, request.legal, request.rule, request.uniform_BSU, request.sizes_B, memory=memory) for memory in (kept, None)
    ]
    assert (slates[0].item_BS == slates[1].item_BS).all()
    assert slates[0].logprob_BS == pytest.approx(slates[1].logprob_BS, abs=1e-5)
