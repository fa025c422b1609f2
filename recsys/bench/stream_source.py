"""A stream to measure joins on: decisions of ten slots, what was shown and clicked, ticks. Knows nothing of who joins it."""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush

from streaming.events import Decision, Event, Exposure, Feedback, Tick, encode
from streaming.log import Entry, partition_of

START_MS = 1_700_000_000_000
VARIANT = "online"
NUM_USERS = 50_000
SLOTS = 10


@dataclass(frozen=True, kw_only=True)
class StreamSize:
    """How much there is in a stream; world time passes as `rate` says."""

    decisions: int
    rate: float
    """Decisions a second of world time."""
    shown: float = 1.0
    """Share of the decisions that are shown, all ten slots at once."""
    clicked: float = 0.3
    """Share of the shown that get one click."""
    partitions: int = 4
    seed: int = 0


def stream(size: StreamSize) -> Iterator[Entry]:
    """Entries in order of time, each with its partition; ends with ticks three minutes later, which close everything."""
    random_ = random.Random(size.seed)
    held: list[tuple[int, int, Entry]] = []
    tick_ms = START_MS
    for number in range(size.decisions):
        now_ms = START_MS + int(number * 1000 / size.rate)
        while held and held[0][0] <= now_ms:
            yield heappop(held)[2]
        while tick_ms <= now_ms:
            yield from _ticks(tick_ms, size.partitions)
            tick_ms += 1000
        for order, (when_ms, entry) in enumerate(_told(number, now_ms, size, random_)):
            heappush(held, (when_ms, 4 * number + order, entry))
    while held:
        yield heappop(held)[2]
    yield from _ticks(START_MS + int(size.decisions * 1000 / size.rate) + 180_000, size.partitions)


def _told(number: int, now_ms: int, size: StreamSize, random_: random.Random) -> Iterator[tuple[int, Entry]]:
    """When and what: a decision, and maybe its exposure and a click."""
    decision_id = hashlib.sha256(f"{size.seed} {number}".encode()).hexdigest()[:32]
    user = f"user{random_.randrange(NUM_USERS)}"
    partition = partition_of(user.encode(), size.partitions)
    token = f"{decision_id}.{now_ms + 67_000}.{VARIANT}.{SLOTS}.{decision_id[:16]}.{decision_id}"
    decision = Decision(
        decision_id=decision_id,
        user_id=user,
        event_time_ms=now_ms,
        variant=VARIANT,
        policy_version=12,
        decision_token=token,
        item_ids=[f"item{random_.randrange(100_000)}" for _ in range(SLOTS)],
        slot_logprobs=[-1.5] * SLOTS,
        memory_offset=number,
        slate_size=SLOTS,
        way="slot",
        temperature=1.0,
        floor=0.02,
        behavior_digest=decision_id[:16],
        seed=number,
    )
    yield now_ms, Entry(user.encode(), encode(decision, now_ms), partition)
    if random_.random() >= size.shown:
        return
    shown_ms = now_ms + random_.randrange(100, 3000)
    event = Event(event_id=f"{decision_id}s", user_id=user, event_time_ms=shown_ms)
    event.exposure.CopyFrom(Exposure(decision_token=token, slots=range(SLOTS)))
    yield shown_ms, Entry(user.encode(), encode(event, shown_ms), partition)
    if random_.random() < size.clicked:
        clicked_ms = shown_ms + random_.randrange(500, 20_000)
        event = Event(event_id=f"{decision_id}c", user_id=user, event_time_ms=clicked_ms)
        event.feedback.CopyFrom(Feedback(decision_token=token, slot=random_.randrange(SLOTS), kind="click", value=1))
        yield clicked_ms, Entry(user.encode(), encode(event, clicked_ms), partition)


def _ticks(now_ms: int, partitions: int) -> Iterator[Entry]:
    value = encode(Tick(event_time_ms=now_ms), now_ms)
    return (Entry(b"", value, partition) for partition in range(partitions))
