"""Many byte strings as two arrays, and back: what safetensors can hold. Knows nothing of what they say."""

from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]


def joined(name: str, parts: Sequence[bytes]) -> Arrays:
    """`<name>_bytes`, all of them behind each other, and `<name>_sizes`."""
    return {f"{name}_bytes": np.frombuffer(b"".join(parts), np.uint8), f"{name}_sizes": sizes(parts)}


def split(name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> list[bytes]:
    """What was joined under that name."""
    whole, lengths = arrays[f"{name}_bytes"].tobytes(), arrays[f"{name}_sizes"]
    return [whole[end - size : end] for end, size in zip(np.cumsum(lengths).tolist(), lengths.tolist(), strict=True)]


def sizes(parts: Iterable[Sized]) -> npt.NDArray[np.int64]:
    """How long each is, (N,)."""
    return np.fromiter(map(len, parts), np.int64)


def encoded(texts: Iterable[str]) -> list[bytes]:
    """Texts as bytes."""
    return [text.encode() for text in texts]


def decoded(parts: Iterable[bytes]) -> list[str]:
    """Bytes as texts."""
    return [part.decode() for part in parts]


def under(part: str, arrays: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    """The arrays by longer names, beside those of other parts."""
    return {f"{part}.{name}": array for name, array in arrays.items()}


def below(part: str, arrays: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    """The arrays of one part, by the names they had."""
    return {name.removeprefix(f"{part}."): array for name, array in arrays.items() if name.startswith(f"{part}.")}
