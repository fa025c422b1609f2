"""Which user is in which variant. Knows nothing of what a variant does.

Unit = user; assignment = hash(salt, user), so it is the same in every process and needs no storage.
"""

import hashlib
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Variants and their shares of the users; the shares sum to 1."""

    salt: str = "recsys"
    variants: tuple[tuple[str, float], ...] = (("online", 0.5), ("offline", 0.5))

    def __post_init__(self) -> None:
        pairs = [pair for pair in self.variants if isinstance(pair, tuple) and list(map(type, pair)) in ([str, float], [str, int])]
        if len(pairs) < len(self.variants):
            raise ValueError(f'experiment.variants are {self.variants}; they must be pairs of a name and a share, like [["online", 1.0]]')
        names = [name for name, _ in self.variants]
        if not names or len(set(names)) != len(names) or not all(name.replace("_", "").isalnum() for name in names):
            raise ValueError(f"experiment.variants are {names}; they must be different names of letters, digits and _")
        shares = [share for _, share in self.variants]
        if any(not 0 <= share <= 1 for share in shares) or abs(sum(shares) - 1) > 1e-9:
            raise ValueError(f"experiment.variants have shares {shares}; each must be 0..1 and their sum 1")


def assign(config: ExperimentConfig, user_id: str) -> str:
    """The variant of a user: SHA-256 of salt and user as a number in [0, 1), against the running sum of shares."""
    digest = hashlib.sha256(f"{config.salt}\0{user_id}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    limits = accumulate(share for _, share in config.variants)
    return next((name for (name, _), limit in zip(config.variants, limits, strict=True) if place < limit), config.variants[-1][0])
