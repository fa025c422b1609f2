"""What an item is, as a vector: from a given embedding, else its title and attributes, else who it occurs with.

Knows nothing of ids, users or events. Nothing here is fitted but a mean and a projection, so that an item that arrives a year
later gets its vector from the same rule. Shapes: N items, C content dimensions.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import sparse

FloatArray = npt.NDArray[np.float32]

TEXT_DIM = 512
"""Dimensions in which words are random directions, before the projection."""

_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ItemText:
    """What is known of one item. An empty embedding means that none was given."""

    item_id: str
    title: str = ""
    attributes: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    """A tuple says several things under one key, in no order."""
    embedding: Sequence[float] = ()


def normalize(vectors_NC: FloatArray) -> FloatArray:
    """Each row at length 1; a row of zeros stays zero."""
    norms = np.linalg.norm(vectors_NC, axis=1, keepdims=True)
    return (vectors_NC / np.maximum(norms, 1e-12)).astype(np.float32)


def token_vector(token: str, dim: int) -> FloatArray:
    """A fixed direction of ±1 for a word: sign random projection from the bits of its BLAKE2b digest."""
    bits = np.empty(0, np.uint8)
    for part in range(-(-dim // 512)):
        digest = hashlib.blake2b(token.encode(), digest_size=64, salt=part.to_bytes(16, "little")).digest()
        bits = np.concatenate([bits, np.unpackbits(np.frombuffer(digest, np.uint8))])
    return bits[:dim].astype(np.float32) * 2 - 1


def tokens_of(item: ItemText) -> list[str]:
    """Words of the title and `key=value` of the attributes; the id itself when there is nothing else to know it by."""
    words = [word.lower() for word in _WORD.findall(item.title)]
    listed = ((key, (value,) if isinstance(value, str) else value) for key, value in sorted(item.attributes.items()))
    pairs = [f"{key}={_said(value)}" for key, values in listed for value in values if value]
    return words + pairs or [f"item_id={item.item_id}"]


def _said(value: str) -> str:
    """A value as what it shares with others: a number that is not whole is hardly met again, so only its power of two is said."""
    number = float(value) if _NUMBER.fullmatch(value) else math.inf
    if number.is_integer() or not math.isfinite(number):
        return value
    part, power = math.frexp(number)
    return f"{'-' if part < 0 else ''}2^{power - 1}"


def text_vectors(items: Sequence[ItemText], dim: int) -> FloatArray:
    """Sums of token directions, (N, C), not normalized (feature hashing by random projection: Weinberger et al. 2009)."""
    number_of: dict[str, int] = {}
    tokens: list[int] = []
    ends = [0]
    for item in items:
        tokens += [number_of.setdefault(token, len(number_of)) for token in tokens_of(item)]
        ends.append(len(tokens))
    directions_TC = np.array([token_vector(token, dim) for token in number_of], np.float32).reshape(-1, dim)
    counts_NT = sparse.csr_array((np.ones(len(tokens), np.float32), tokens, ends), shape=(len(items), len(number_of)))
    return np.asarray(counts_NT @ directions_TC, np.float32)


def projected(embeddings: FloatArray, dim: int) -> FloatArray:
    """Embeddings of any length as (N, C): a random projection fixed by the two lengths (Johnson-Lindenstrauss)."""
    length = embeddings.shape[1]
    if length == dim:
        return embeddings
    matrix = np.random.Generator(np.random.PCG64([length, dim])).standard_normal((length, dim)).astype(np.float32)
    return (embeddings @ matrix / np.sqrt(dim)).astype(np.float32)


def cooccurrence_vectors(pairs: npt.NDArray[np.int64], num_items: int, dim: int, seed: int) -> FloatArray:
    """Random indexing (Sahlgren 2005): each item is the sum of fixed random directions of its neighbours.

    `pairs` (P, 2) are item numbers seen next to each other, in both orders; a common neighbour counts less (log idf).
    """
    directions_NC = np.random.Generator(np.random.PCG64(seed)).choice(np.array([-1, 1], np.float32), (num_items, dim))
    seen = np.bincount(pairs[:, 1], minlength=num_items)
    weight = np.log1p(len(pairs) / np.maximum(seen, 1)).astype(np.float32)
    vectors_NC = np.zeros((num_items, dim), np.float32)
    np.add.at(vectors_NC, pairs[:, 0], directions_NC[pairs[:, 1]] * weight[pairs[:, 1], None])
    return vectors_NC


@dataclass(frozen=True)
class Projection:
    """Raw vectors of G dimensions → unit vectors of C: what all share is taken off, then what tells items apart is brought out."""

    mean_G: FloatArray
    basis_GC: FloatArray

    @staticmethod
    def fitted(raw_NG: FloatArray, dim: int) -> "Projection":
        """Principal components, half whitened: each divided by the fourth root of its variance.

        Common themes have the largest variance and tell least; full whitening would make noise as loud as anything else. Of
        the neighbours by MiniLM titles in Amazon Beauty, half whitening finds 5 to 10 % more true next items than the raw vectors
        (models/EXPERIMENTS.md). With too few items for that, a random projection.
        """
        length = raw_NG.shape[1]
        mean_G = raw_NG.mean(0) if len(raw_NG) > 1 else np.zeros(length, np.float32)
        if len(raw_NG) < 2 * dim or length < dim:
            return Projection(mean_G, projected(np.eye(length, dtype=np.float32), dim))
        centred_NG = (raw_NG - mean_G).astype(np.float64)
        variance_G, direction_GG = np.linalg.eigh(centred_NG.T @ centred_NG / len(raw_NG))
        variance_C, direction_GC = variance_G[::-1][:dim], direction_GG[:, ::-1][:, :dim]
        direction_GC = direction_GC * np.sign(direction_GC[np.abs(direction_GC).argmax(0), np.arange(dim)])
        basis_GC = direction_GC / np.maximum(variance_C, 1e-6 * variance_C[0] + 1e-12) ** 0.25
        return Projection(mean_G, basis_GC.astype(np.float32))

    def vectors(self, raw_NG: FloatArray) -> FloatArray:
        """Unit vectors, (N, C)."""
        return normalize(((raw_NG - self.mean_G) @ self.basis_GC).astype(np.float32))


@dataclass(frozen=True)
class ContentRule:
    """Vectors of one catalogue, by what it looked like when it was built."""

    text: Projection
    embedding: Projection

    @staticmethod
    def fitted(items: Sequence[ItemText], dim: int) -> "ContentRule":
        """The rule for what `items` (maybe none) have."""
        texts = [item for item in items if not item.embedding]
        given = [item for item in items if item.embedding]
        length = int(np.bincount([len(item.embedding) for item in given]).argmax()) if given else dim
        return ContentRule(
            Projection.fitted(normalize(text_vectors(texts, TEXT_DIM)), dim), Projection.fitted(_given_vectors(given, length), dim)
        )

    def vectors(self, items: Sequence[ItemText]) -> FloatArray:
        """Unit vectors of the items, (N, C)."""
        vectors_NC = np.zeros((len(items), self.text.basis_GC.shape[1]), np.float32)
        given = np.array([bool(item.embedding) for item in items], bool)
        if (~given).any():
            vectors_NC[~given] = self.text.vectors(normalize(text_vectors([item for item in items if not item.embedding], TEXT_DIM)))
        if given.any():
            raw_NG = _given_vectors([item for item in items if item.embedding], len(self.embedding.mean_G))
            vectors_NC[given] = self.embedding.vectors(raw_NG)
        return vectors_NC


def first_vectors(content: ContentRule, items: Sequence[ItemText], pairs: npt.NDArray[np.int64], seed: int) -> FloatArray:
    """Unit vectors of the items a catalogue begins with, (N, C): by the rule, else by who they occur with.

    `pairs` (P, 2) as in `cooccurrence_vectors`: all there is to tell items by of which neither text nor embedding is known.
    """
    vectors_NC = content.vectors(items)
    bare_N = np.array([not (item.title or item.attributes or item.embedding) for item in items], bool)
    if not (bare_N.any() and len(pairs)):
        return vectors_NC
    met_NC = normalize(cooccurrence_vectors(pairs, len(items), vectors_NC.shape[1], seed))
    return np.where((bare_N & met_NC.any(1))[:, None], met_NC, vectors_NC)


def _given_vectors(items: Sequence[ItemText], dim: int) -> FloatArray:
    vectors_NC = np.zeros((len(items), dim), np.float32)
    lengths = np.array([len(item.embedding) for item in items])
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length).tolist()
        vectors_NC[rows] = projected(np.array([items[row].embedding for row in rows], np.float32), dim)
    return normalize(vectors_NC)
