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


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How ids are made. `codes` is a ceiling: a level never has more clusters than an eighth of the items it is built on."""

    levels: int = 2
    codes: int = 128
    content_dim: int = 64
    iterations: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("levels", 1, 4), ("codes", 2, 65_536), ("content_dim", 8, 4096), ("iterations", 1, 1000)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"tokenizer.{name} is {value}; it must be {low}..{high}")


class Tokenizer:
    """Centroids by level and the ids given out so far."""

    def __init__(self, config: TokenizerConfig, centroids: list[FloatArray], ids_NK: IdArray) -> None:
        self.config = config
        self.centroids = centroids
        self.ids_NK = ids_NK
        self._next_suffix: dict[tuple[int, ...], int] = {}
        self._count(ids_NK)

    @staticmethod
    def built(config: TokenizerConfig, vectors_NC: FloatArray) -> "Tokenizer":
        """Cluster `vectors_NC` level by level and give every row its id, in row order. Deterministic given the seed."""
        centroids = []
        residual_NC = vectors_NC
        for level in range(config.levels - 1):
            num_codes = max(1, min(config.codes, len(vectors_NC) // 8))
            centroids.append(_cluster(residual_NC, num_codes, config.iterations, config.seed + level))
            residual_NC, _ = _next_residual(residual_NC, centroids[-1])
        tokenizer = Tokenizer(config, centroids, np.zeros((0, config.levels), np.int32))
        tokenizer.append(vectors_NC)
        return tokenizer

    def append(self, vectors_NC: FloatArray) -> IdArray:
        """Give each row the nearest codes and the next free suffix; returns the new ids (N, K). Earlier ids stay."""
        codes: list[IdArray] = []
        residual_NC = vectors_NC
        for centroids_VC in self.centroids:
            residual_NC, codes_N = _next_residual(residual_NC, centroids_VC)
            codes.append(codes_N)
        prefixes = np.stack(codes, 1) if codes else np.zeros((len(vectors_NC), 0), np.int32)
        ids_NK = np.empty((len(vectors_NC), self.config.levels), np.int32)
        ids_NK[:, :-1] = prefixes
        for row, prefix in enumerate(map(tuple, prefixes.tolist())):
            suffix = self._next_suffix.get(prefix, 0)
            ids_NK[row, -1] = suffix
            self._next_suffix[prefix] = suffix + 1
        self.ids_NK = np.concatenate([self.ids_NK, ids_NK])
        return ids_NK

    def _count(self, ids_NK: IdArray) -> None:
        if not len(ids_NK):
            return
        prefixes, where = np.unique(ids_NK[:, :-1], axis=0, return_inverse=True)
        last = np.full(len(prefixes), -1)
        np.maximum.at(last, where.ravel(), ids_NK[:, -1])
        self._next_suffix = {tuple(prefix): int(n) + 1 for prefix, n in zip(prefixes.tolist(), last, strict=True)}


def _cluster(vectors_NC: FloatArray, num_codes: int, iterations: int, seed: int) -> FloatArray:
    faiss.omp_set_num_threads(1)  # sums in one order: the same bytes on every run
    kmeans = faiss.Kmeans(
        vectors_NC.shape[1], num_codes, niter=iterations, seed=seed, min_points_per_centroid=1, max_points_per_centroid=1_000_000
    )
    kmeans.train(np.ascontiguousarray(vectors_NC))
    return np.asarray(kmeans.centroids, np.float32).reshape(num_codes, -1)


def _next_residual(vectors_NC: FloatArray, centroids_VC: FloatArray) -> tuple[FloatArray, IdArray]:
    """What the nearest centroid leaves over, at length 1 again, and which one that was."""
    if not len(vectors_NC):
        return vectors_NC, np.zeros(0, np.int32)
    index = faiss.IndexFlatL2(centroids_VC.shape[1])
    index.add(centroids_VC)
    _, nearest = index.search(np.ascontiguousarray(vectors_NC), 1)
    codes_N = nearest[:, 0].astype(np.int32)
    return normalize(vectors_NC - centroids_VC[codes_N]), codes_N
