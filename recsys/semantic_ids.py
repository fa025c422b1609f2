"""What the ids of a catalogue look like, in figures: how full the levels are, what collides, whether neighbours share codes.

Knows nothing of files, events or decoders.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from models.content import ContentRule, FloatArray, ItemText, first_vectors
from models.tokenizer import IdArray, Tokenizer, TokenizerConfig

NEIGHBOURS = 10
ITEMS_ASKED = 2_000
"""Neighbour purity is taken over at most this many items, drawn by the seed; their neighbours are sought among all."""
FIRST_SHARE = 0.8
"""The items, in order of arrival, that are there before the others are appended."""
SIMILARITIES_AT_ONCE = 16_000_000


def id_figures(items: Sequence[ItemText], pairs_P2: npt.NDArray[np.int64], config: TokenizerConfig) -> dict[str, Any]:
    """Give the items ids and describe them; `pairs_P2` as in `first_vectors`.

    `levels`: codes in use and entropy of their frequencies, the suffix last. `collisions_before` / `collisions_after`: items
    that share all codes but the suffix / the whole id with another item. `neighbour_purity`: the mean, over items, of the share
    of its 10 nearest by content vector (cosine) that have its first code; `neighbour_purity_by_chance` is that of two items
    drawn at random. `ids_unchanged_after_append`: ids are given to the first 80 % and then to the others; the share of the
    first that kept theirs. Both None where there is no other item.
    """
    _, vectors_NC, tokenizer = _built(items, pairs_P2, config)
    ids_NK = tokenizer.ids_NK
    return {
        "items": len(items),
        "known_by": known_by(items),
        "levels": [_level(codes_N) for codes_N in ids_NK.T],
        "collisions_before": sharing(ids_NK[:, :-1]),
        "collisions_after": sharing(ids_NK),
        "neighbour_purity": neighbour_purity(vectors_NC, ids_NK[:, 0], config.seed),
        "neighbour_purity_by_chance": _purity_by_chance(ids_NK[:, 0]),
        "ids_unchanged_after_append": _unchanged_after_append(items, pairs_P2, config),
    }


def known_by(items: Sequence[ItemText]) -> dict[str, int]:
    """How many items are known by what: the first of these that an item has."""
    by_embedding = sum(bool(item.embedding) for item in items)
    by_text = sum(bool(item.title or item.attributes) and not item.embedding for item in items)
    return {"embedding": by_embedding, "text": by_text, "id": len(items) - by_embedding - by_text}


def sharing(codes_NJ: IdArray) -> int:
    """How many rows are equal to some other row."""
    _, counts = np.unique(codes_NJ, axis=0, return_counts=True)
    return int(counts[counts > 1].sum())


def neighbour_purity(vectors_NC: FloatArray, codes_N: IdArray, seed: int) -> float | None:
    """The mean share of an item's nearest others, by inner product, that have its code; None for a single item."""
    num_items = len(vectors_NC)
    nearest = min(NEIGHBOURS, num_items - 1)
    if not nearest:
        return None
    asked = np.random.Generator(np.random.PCG64(seed)).permutation(num_items)[:ITEMS_ASKED]
    shares = []
    for rows in np.array_split(asked, -(-len(asked) * num_items // SIMILARITIES_AT_ONCE)):
        likeness = vectors_NC[rows] @ vectors_NC.T
        likeness[np.arange(len(rows)), rows] = -np.inf
        others = np.argpartition(-likeness, nearest - 1, axis=1)[:, :nearest]
        shares.append((codes_N[others] == codes_N[rows, None]).mean(1))
    return float(np.concatenate(shares).mean())


def _purity_by_chance(codes_N: IdArray) -> float | None:
    counts = np.bincount(codes_N).astype(np.float64)
    total = len(codes_N)
    return float((counts * (counts - 1)).sum() / (total * (total - 1))) if total > 1 else None


def _level(codes_N: IdArray) -> dict[str, Any]:
    counts = np.bincount(codes_N)
    shares = counts[counts > 0] / len(codes_N)
    return {"codes_used": len(shares), "entropy_bits": abs(float((shares * np.log2(shares)).sum()))}


def _unchanged_after_append(items: Sequence[ItemText], pairs_P2: npt.NDArray[np.int64], config: TokenizerConfig) -> float | None:
    first = int(len(items) * FIRST_SHARE)
    if not first:
        return None
    content, _, tokenizer = _built(items[:first], pairs_P2[(pairs_P2 < first).all(1)], config)
    before = tokenizer.ids_NK.copy()
    tokenizer.append(content.vectors(items[first:]))
    return float((tokenizer.ids_NK[:first] == before).all(1).mean())


def _built(
    items: Sequence[ItemText], pairs_P2: npt.NDArray[np.int64], config: TokenizerConfig
) -> tuple[ContentRule, FloatArray, Tokenizer]:
    content = ContentRule.fitted(items, config.content_dim)
    vectors_NC = first_vectors(content, items, pairs_P2, config.seed)
    return content, vectors_NC, Tokenizer.built(config, vectors_NC)
