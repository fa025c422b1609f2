"""Decision tokens: signed, expiring, bound to user, variant and slate. Knows nothing of the log.

`<decision id>.<expiry, ms>.<variant>.<slots>.<slate digest>.<HMAC-SHA256>`: a server checks one without looking anything up.
"""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from streaming.events import Decision


class BadToken(ValueError):
    """A token that was not made here, was changed, is another user's, or is over."""


@dataclass(frozen=True)
class TokenClaims:
    """What a valid token says."""

    decision_id: str
    variant: str
    num_slots: int
    expires_ms: int


class TokenMint:
    """Makes tokens with the first key and accepts those of all keys (rotation: put the new key first)."""

    def __init__(self, keys: Sequence[bytes], lifetime_ms: int) -> None:
        if not keys or any(len(key) < 16 for key in keys):
            raise ValueError("token keys must be at least one, each of 16 bytes or more")
        self._keys = tuple(keys)
        self.lifetime_ms = lifetime_ms

    def token(self, decision: Decision) -> str:
        """The token of a Decision; it expires `lifetime_ms` after its event time."""
        slate = hashlib.sha256("\0".join(decision.item_ids).encode()).hexdigest()[:16]
        expires_ms = decision.event_time_ms + self.lifetime_ms
        said = f"{decision.decision_id}.{expires_ms}.{decision.variant}.{len(decision.item_ids)}.{slate}"
        return f"{said}.{self._signature(self._keys[0], said, decision.user_id)}"

    def check(self, token: str, user_id: str, now_ms: int) -> TokenClaims:
        """What the token says. BadToken names what is wrong with it."""
        said, _, signature = token.rpartition(".")
        # as bytes: compare_digest refuses str beyond ASCII, and a token can hold anything
        if not any(hmac.compare_digest(signature.encode(), self._signature(key, said, user_id).encode()) for key in self._keys):
            raise BadToken("decision_token was not made for this user here, or was changed")
        decision_id, expires_ms, variant, num_slots, _ = said.split(".")
        if now_ms > int(expires_ms):
            raise BadToken(f"decision_token expired {now_ms - int(expires_ms)} ms ago")
        return TokenClaims(decision_id, variant, int(num_slots), int(expires_ms))

    @staticmethod
    def _signature(key: bytes, said: str, user_id: str) -> str:
        return hmac.new(key, f"{said}\0{user_id}".encode(), hashlib.sha256).hexdigest()[:32]
