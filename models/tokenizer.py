"""Items → semantic ids by residual k-means (faiss), append-only: a published id never moves and is never reused.

Knows nothing of events, users or decoders. Levels 0..K-2 are clusters of the content vector and then of what the level
before left over; the last level is a suffix: the place among the items that share all codes before it, in order of
arrival. So K = 1 gives plain item ids, through the same code, and no two items ever share an id.
Shapes: N items, K levels, V codes per level, C content dimensions.
"""

from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

from models.content import FloatArray, normalize

IdArray = npt.NDArray[np.int32]
Keys = npt.NDArray[np.int64]

# Faiss has a faster way for many vectors at once, whose rounding differs: a code must not depend on who else is asked for.
faiss.cvar.distance_compute_blas_threshold = 2**31 - 1

CODE_BITS = 16
"""Codes of the levels before the last are packed into one number, at most three of them."""
POINTS_PER_CODE = 1024
"""Clusters are built on at most this many items a code, drawn by the seed: more cost time and move centroids little."""
BLOCK = 65_536
"""Items that are given codes at once: bounds the memory of what their centroids leave over."""

SEEDS = 2**31
"""faiss takes a C int."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How ids are made. `codes` is a ceiling: a level never has more clusters than an eighth of the items it is built on."""

    levels: int = 2
    codes: int = 128
    content_dim: int = 64
    iterations: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("levels", 1, 4), ("codes", 2, 2**CODE_BITS), ("content_dim", 8, 4096), ("iterations", 1, 1000)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"tokenizer.{name} is {value}; it must be {low}..{high}")
        if not 0 <= self.seed < SEEDS:
            raise ValueError(f"tokenizer.seed is {self.seed}; it must be 0..{SEEDS - 1}")


class Tokenizer:
    """Centroids by level and the ids given out so far."""

    def __init__(self, config: TokenizerConfig, centroids: list[FloatArray], ids_NK: IdArray) -> None:
        self.config = config
        self.centroids = centroids
        self.ids_NK = ids_NK
        keys_N = _packed(ids_NK[:, :-1])
        order_N, first_P = _by_key(keys_N)
        self._keys_P = keys_N[order_N[first_P]]
        """The packed prefixes that have items, ascending."""
        self._next_P = np.maximum.reduceat(ids_NK[order_N, -1], first_P).astype(np.int64) + 1 if len(ids_NK) else self._keys_P
        """The next free suffix of each."""

    @staticmethod
    def built(config: TokenizerConfig, vectors_NC: FloatArray) -> "Tokenizer":
        """Cluster `vectors_NC` level by level and give every row its id, in row order. Deterministic given the seed."""
        num_codes = max(1, min(config.codes, len(vectors_NC) // 8))
        centroids = []
        residual_MC = _drawn(vectors_NC, num_codes * POINTS_PER_CODE, config.seed)
        for level in range(config.levels - 1):
            centroids.append(_cluster(residual_MC, num_codes, config.iterations, (config.seed + level) % SEEDS))
            residual_MC, _ = _next_residual(residual_MC, centroids[-1])
        tokenizer = Tokenizer(config, centroids, np.zeros((0, config.levels), np.int32))
        tokenizer.append(vectors_NC)
        return tokenizer

    def append(self, vectors_NC: FloatArray) -> IdArray:
        """Give each row the nearest codes and the next free suffix; returns the new ids (N, K). Earlier ids stay."""
        ids_NK = np.empty((len(vectors_NC), self.config.levels), np.int32)
        for begin in range(0, len(vectors_NC), BLOCK):
            residual_NC = vectors_NC[begin : begin + BLOCK]
            for level, centroids_VC in enumerate(self.centroids):
                residual_NC, ids_NK[begin : begin + BLOCK, level] = _next_residual(residual_NC, centroids_VC)
        ids_NK[:, -1] = self._take_suffixes(_packed(ids_NK[:, :-1]))
        self.ids_NK = np.concatenate([self.ids_NK, ids_NK])
        return ids_NK

    def _take_suffixes(self, keys_N: Keys) -> Keys:
        """The place of each among the items of its prefix, those before it in the array and in earlier calls counted."""
        order_N, first_P = _by_key(keys_N)
        count_P = np.diff(first_P, append=len(keys_N))
        start_P = self._reserve(keys_N[order_N[first_P]], count_P)
        suffixes_N = np.empty(len(keys_N), np.int64)
        suffixes_N[order_N] = np.arange(len(keys_N)) + np.repeat(start_P - first_P, count_P)
        return suffixes_N

    def _reserve(self, keys_P: Keys, count_P: Keys) -> Keys:
        """The next free suffix of each prefix (ascending), which `count_P` items then take."""
        is_new_P = ~np.isin(keys_P, self._keys_P, assume_unique=True)
        at = np.searchsorted(self._keys_P, keys_P[is_new_P])
        self._keys_P = np.insert(self._keys_P, at, keys_P[is_new_P])
        self._next_P = np.insert(self._next_P, at, 0)
        places_P = np.searchsorted(self._keys_P, keys_P)
        start_P = self._next_P[places_P]
        self._next_P[places_P] += count_P
        return start_P


def _packed(codes_NJ: IdArray) -> Keys:
    """The codes of each row as one number, in the same order; 0 where there are none."""
    keys_N = np.zeros(len(codes_NJ), np.int64)
    for codes_N in codes_NJ.T:
        keys_N = (keys_N << CODE_BITS) | codes_N
    return keys_N


def _by_key(keys_N: Keys) -> tuple[Keys, Keys]:
    """An order in which equal keys stand together, each in order of arrival, and where in it each key begins."""
    order_N = np.argsort(keys_N, kind="stable")
    sorted_N = keys_N[order_N]
    is_first_N = np.ones(len(keys_N), bool)
    is_first_N[1:] = sorted_N[1:] != sorted_N[:-1]
    return order_N, np.flatnonzero(is_first_N)


def _drawn(vectors_NC: FloatArray, at_most: int, seed: int) -> FloatArray:
    """These rows, or as many as `at_most` of them."""
    if len(vectors_NC) <= at_most:
        return vectors_NC
    rows = np.random.Generator(np.random.PCG64(seed)).choice(len(vectors_NC), at_most, replace=False, shuffle=False)
    return vectors_NC[np.sort(rows)]


def _cluster(vectors_NC: FloatArray, num_codes: int, iterations: int, seed: int) -> FloatArray:
    faiss.omp_set_num_threads(1)  # sums in one order: the same bytes on every run
    kmeans = faiss.Kmeans(
        vectors_NC.shape[1], num_codes, niter=iterations, seed=seed, min_points_per_centroid=1, max_points_per_centroid=1_000_000
    )
    kmeans.train(np.ascontiguousarray(vectors_NC))
    return np.asarray(kmeans.centroids, np.float32).reshape(num_codes, -1)


def _next_residual(vectors_NC: FloatArray, centroids_VC: FloatArray) -> tuple[FloatArray, IdArray]:
    """What the nearest centroid leaves over, at length 1 again, and which one that was."""
    index = faiss.IndexFlatL2(centroids_VC.shape[1])
    index.add(centroids_VC)
    _, nearest = index.search(np.ascontiguousarray(vectors_NC), 1)
    codes_N = nearest[:, 0].astype(np.int32)
    return normalize(vectors_NC - centroids_VC[codes_N]), codes_N
