"""What may come in: each request, event and item is looked at before anything else is done with it.

Knows nothing of slates or of the log. What is refused is refused in words that name the field, its value and what is allowed.
"""

import math
from collections.abc import Mapping

from recsys.catalogue import Catalogue
from recsys.tokens import BadToken, TokenMint
from streaming.events import Event, Item
from streaming.joiner import MAX_VALUE
from streaming.proto.recommender_pb2 import RecommendRequest, Seen

MAX_ID_BYTES = 256
MAX_ENTRIES = 10_000
MAX_TEXT_BYTES = 10_000
MAX_EMBEDDING, MAX_EMBEDDING_VALUE = 4096, 1e6
"""Dimensions of an item's embedding, and the size of one of them."""
MAX_REQUEST_BYTES = 500_000
"""A Decision repeats its request and must fit a record of the log, 1,000,000 bytes."""


class BadRequest(ValueError):
    """A request that can't be answered; the message names the field, its value and what is allowed."""


class Admission:
    """`future_ms` is how far ahead of now an event may claim to be; `is_wall`: nobody but the server says what time it is."""

    def __init__(self, future_ms: int, mint: TokenMint, *, is_wall: bool) -> None:
        self._future_ms, self._mint, self._is_wall = future_ms, mint, is_wall

    def check_request(self, request: RecommendRequest, now_ms: int) -> None:
        """BadRequest for one that can't be answered."""
        if request.ByteSize() > MAX_REQUEST_BYTES:
            raise BadRequest(f"the request has {request.ByteSize()} bytes; at most {MAX_REQUEST_BYTES}")
        _check_id("user_id", request.user_id, required=True)
        _check_id("request_id", request.request_id, required=False)
        if request.slate_size > 100:
            raise BadRequest(f"slate_size is {request.slate_size}; it must be 1..100, or 0 for the default")
        if request.seen not in Seen.values():
            raise BadRequest(f"seen is {request.seen}; it must be one of {', '.join(map(str, Seen.values()))}")
        self._check_time(request.event_time_ms, now_ms)
        if request.event_time_ms and self._is_wall:
            raise BadRequest(f"event_time_ms is {request.event_time_ms}; this server is on the wall clock: it must be 0")
        for name in ("exclude_item_ids", "candidate_item_ids", "context", "where"):
            if len(getattr(request, name)) > MAX_ENTRIES:
                raise BadRequest(f"{name} has {len(getattr(request, name))} entries; at most {MAX_ENTRIES}")
        for name in ("exclude_item_ids", "candidate_item_ids"):
            for item_id in getattr(request, name):
                _check_id(f"an entry of {name}", item_id, required=True)
        for name in ("context", "where"):
            for key in getattr(request, name):
                _check_id(f"a key of {name}", key, required=True)

    def check_event(self, event: Event, now_ms: int, catalogue: Catalogue) -> None:
        """BadRequest for one that can't be taken."""
        _check_id("event_id", event.event_id, required=True)
        _check_id("user_id", event.user_id, required=True)
        self._check_time(event.event_time_ms, now_ms)
        match event.WhichOneof("body"):
            case "exposure":
                num_slots = self._num_slots(event.exposure.decision_token, event.user_id, now_ms)
                if not event.exposure.slots:
                    raise BadRequest("exposure.slots is empty; name at least one slot")
                if len(event.exposure.slots) > num_slots:
                    raise BadRequest(f"exposure.slots has {len(event.exposure.slots)} entries; the slate has {num_slots} slots")
                for slot in event.exposure.slots:
                    _check_slot(slot, num_slots)
            case "feedback":
                feedback = event.feedback
                _check_slot(feedback.slot, self._num_slots(feedback.decision_token, event.user_id, now_ms))
                _check_id("feedback.kind", feedback.kind, required=True)
                _check_value("feedback.value", feedback.value)
            case "interaction":
                interaction = event.interaction
                _check_id("interaction.kind", interaction.kind, required=True)
                _check_value("interaction.value", interaction.value)
                if not catalogue.row_of(interaction.item_id):
                    raise BadRequest(f"interaction.item_id {interaction.item_id[:80]!r} is not in the catalogue")
            case _:
                raise BadRequest("the event has no body; it must be one of exposure, feedback, interaction")

    def _num_slots(self, token: str, user_id: str, now_ms: int) -> int:
        try:
            return self._mint.check(token, user_id, now_ms).num_slots
        except BadToken as error:
            raise BadRequest(str(error)) from None

    def _check_time(self, event_time_ms: int, now_ms: int) -> None:
        if not 0 <= event_time_ms <= now_ms + self._future_ms:
            raise BadRequest(f"event_time_ms is {event_time_ms}; it must be 0 (now) or up to {self._future_ms} ms after now, {now_ms}")


def check_item(item: Item) -> None:
    """BadRequest for one that can't be taken."""
    _check_id("item_id", item.item_id, required=True)
    _check_text(item.title, item.attributes)
    if len(item.embedding) > MAX_EMBEDDING:
        raise BadRequest(f"embedding has {len(item.embedding)} values; at most {MAX_EMBEDDING}")
    for value in item.embedding:
        if not math.isfinite(value) or abs(value) > MAX_EMBEDDING_VALUE:
            raise BadRequest(f"embedding holds {value}; each value must be a number of at most 1e6 in size")
    if len(item.embedding) and not any(item.embedding):
        raise BadRequest("embedding is all zeros; leave it out to use title and attributes")


def _check_id(name: str, value: str, *, required: bool) -> None:
    if required and not value:
        raise BadRequest(f"{name} is empty")
    if "\0" in value:  # what stands between the parts of what is signed
        raise BadRequest(f"{name} holds a NUL character")
    if len(value.encode()) > MAX_ID_BYTES:
        raise BadRequest(f"{name} has {len(value.encode())} bytes; at most {MAX_ID_BYTES}")


def _check_slot(slot: int, num_slots: int) -> None:
    if slot >= num_slots:
        raise BadRequest(f"slot {slot} is outside the slate; it has slots 0..{num_slots - 1}" if num_slots else "the slate has no slots")


def _check_value(name: str, value: float) -> None:
    if not math.isfinite(value) or abs(value) > MAX_VALUE:
        raise BadRequest(f"{name} is {value}; it must be a number of at most {MAX_VALUE:g} in size")


def _check_text(title: str, attributes: Mapping[str, str]) -> None:
    total_bytes = len(title.encode()) + sum(len(key.encode()) + len(value.encode()) for key, value in attributes.items())
    if total_bytes > MAX_TEXT_BYTES:
        raise BadRequest(f"title and attributes have {total_bytes} bytes; at most {MAX_TEXT_BYTES}")
    if any(not key for key in attributes):
        raise BadRequest("attributes has an empty key")
