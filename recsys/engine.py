"""The request path: what happens between a request and its slate, between an event and its place in the log.

Knows nothing of gRPC or of how weights are made. All that it answers with is a function of the records it has applied;
whatever it acknowledges is in the log before it says so, and in the user's memory before the next request is answered.
"""

import hashlib
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recsys.catalogue import Catalogue, change_of
from recsys.experiment import ExperimentConfig, assign
from recsys.features import Wish
from recsys.ledger import Ledger
from recsys.memory import Memory, MemoryConfig
from recsys.policy import Asked, Policy, UniformPolicy
from recsys.tokens import BadToken, TokenMint
from streaming.clock import Clock
from streaming.events import Decision, Event, Item, ItemChange, Tick, UnreadableRecord, decode, encode
from streaming.joiner import MAX_VALUE
from streaming.log import Entry, EventLog, partition_of
from streaming.proto.recommender_pb2 import Degraded, RecommendRequest, RecommendResponse, Rejection, Seen, Slot

MAX_ID_BYTES = 256
MAX_ENTRIES = 10_000
MAX_TEXT_BYTES = 10_000
MAX_REQUEST_BYTES = 500_000
"""A Decision repeats its request and must fit a record of the log, 1,000,000 bytes."""


class BadRequest(ValueError):
    """A request that can't be answered; the message names the field, its value and what is allowed."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Behaviour of the request path."""

    default_slate_size: int = 10
    exclude_seen: bool = True
    future_ms: int = 60_000
    """How far ahead of now an event may claim to be."""
    token_lifetime_ms: int = 600_000

    def __post_init__(self) -> None:
        if not 1 <= self.default_slate_size <= 100:
            raise ValueError(f"engine.default_slate_size is {self.default_slate_size}; it must be 1..100")
        if not 1_000 <= self.token_lifetime_ms <= 30 * 86_400_000:
            raise ValueError(f"engine.token_lifetime_ms is {self.token_lifetime_ms}; it must be 1000..2592000000")


@dataclass(frozen=True)
class Identity:
    """What is stamped on Decisions: the run's seed and the digest of the configuration that acts."""

    run_seed: int
    behavior_digest: str


class Engine:
    """One server's state over one log. Safe to call from many threads; requests are answered one at a time."""

    def __init__(
        self,
        config: EngineConfig,
        memory: MemoryConfig,
        experiment: ExperimentConfig,
        identity: Identity,
        *,
        clock: Clock,
        log: EventLog,
        items_log: EventLog,
        mint: TokenMint,
    ) -> None:
        self.config, self.experiment, self.identity, self.clock = config, experiment, identity, clock
        self._log, self._items_log, self._mint = log, items_log, mint
        self._lock = threading.RLock()
        self._policies: dict[str, Policy] = {}
        self._cold = UniformPolicy()
        self._degraded: dict[str, Degraded] = {}
        self.memory = Memory(memory, log.num_partitions)
        self.catalogue = Catalogue()
        self._ledger = Ledger(config.token_lifetime_ms)
        self.catch_up()

    # What is served --------------------------------------------------------------------------------------------------

    def serve(self, variant: str, policy: Policy, degraded: Degraded = Degraded.DEGRADED_NONE) -> None:
        """Answer for this variant with this policy from now on: one reference is swapped."""
        with self._lock:
            self._policies[variant] = policy
            self._degraded[variant] = degraded

    def catch_up(self) -> None:
        """Apply what others appended: all that is in the log now."""
        with self._lock:
            for partition in range(self._log.num_partitions):
                self._read_on(partition)
            while records := self._items_log.read(0, self.catalogue.next_offset):
                for record in records:
                    self._apply_item(record.offset, record.value)

    def tick(self) -> None:
        """Tell every partition what time it is, so that an idle one holds nobody up."""
        tick = Tick(event_time_ms=self.clock.now_ms())
        value = encode(tick, tick.event_time_ms)
        with self._lock:
            self._append([Entry(b"", value, partition) for partition in range(self._log.num_partitions)])
            self._append_items([value])

    # Recommend -------------------------------------------------------------------------------------------------------

    def recommend(self, request: RecommendRequest) -> RecommendResponse:
        """Generate a slate and append the Decision. BadRequest; LogUnavailable when the Decision can't be kept."""
        with self._lock:
            now_ms = self.clock.now_ms()
            self._check_request(request, now_ms)
            before = self._ledger.decision(request.user_id, request.request_id)
            if before is None:
                before = self._decide(request, request.event_time_ms or now_ms)
                self._append([Entry(request.user_id.encode(), encode(before, now_ms))])
            return _response(before)

    def _decide(self, request: RecommendRequest, time_ms: int) -> Decision:
        variant = assign(self.experiment, request.user_id)
        policy = self._policies.get(variant)
        degraded = self._degraded[variant] if policy else Degraded.DEGRADED_NO_POLICY
        policy = policy or self._cold
        partition = self._partition(request.user_id)
        seen_excluded = self.config.exclude_seen if request.seen == Seen.SEEN_DEFAULT else request.seen == Seen.SEEN_EXCLUDE
        wish = Wish(
            list(request.exclude_item_ids),
            list(request.candidate_item_ids),
            dict(request.where),
            seen_excluded,
            self.catalogue.next_offset,
        )
        # "=" and "#": a request called "#0" must not get the seed and the id of the user's first unnamed one
        name = f"={request.request_id}" if request.request_id else f"#{self.memory.num_decisions(request.user_id)}"
        digest = hashlib.sha256(f"{self.identity.run_seed}\0{request.user_id}\0{name}".encode()).digest()
        size = request.slate_size or self.config.default_slate_size
        seed = int.from_bytes(digest[16:24], "big")
        context = dict(request.context)
        choice = policy.decide(Asked(self.memory.view(request.user_id), context, size, wish, seed), self.catalogue)
        decision = Decision(
            decision_id=digest[:16].hex(),
            user_id=request.user_id,
            event_time_ms=time_ms,
            variant=variant,
            policy_version=policy.policy_version,
            item_ids=choice.item_ids,
            slot_logprobs=choice.logprobs,
            memory_offset=self.memory.next_offset[partition],
            items_offset=wish.items_offset,
            request_id=request.request_id,
            slate_size=size,
            context=context,
            exclude_item_ids=wish.exclude_item_ids,
            candidate_item_ids=wish.candidate_item_ids,
            where=wish.where,
            seen_excluded=seen_excluded,
            way=policy.drawing.way,
            temperature=policy.drawing.temperature,
            floor=policy.drawing.floor,
            novelty_bonus=policy.drawing.novelty_bonus,
            behavior_digest=self.identity.behavior_digest,
            seed=seed,
            degraded=degraded,
            trained_through_ms=policy.trained_through_ms,
        )
        decision.decision_token = self._mint.token(decision)
        return decision

    def _check_request(self, request: RecommendRequest, now_ms: int) -> None:
        if request.ByteSize() > MAX_REQUEST_BYTES:
            raise BadRequest(f"the request has {request.ByteSize()} bytes; at most {MAX_REQUEST_BYTES}")
        _check_id("user_id", request.user_id, required=True)
        _check_id("request_id", request.request_id, required=False)
        if request.slate_size > 100:
            raise BadRequest(f"slate_size is {request.slate_size}; it must be 1..100, or 0 for the default")
        if request.seen not in Seen.values():
            raise BadRequest(f"seen is {request.seen}; it must be one of {', '.join(map(str, Seen.values()))}")
        self._check_time(request.event_time_ms, now_ms)
        if request.event_time_ms and self.clock.is_wall:
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

    # RecordEvents ----------------------------------------------------------------------------------------------------

    def record(self, events: Sequence[Event]) -> tuple[int, list[Rejection]]:
        """Append the good events; how many were accepted (repeats too) and why each other one was not. LogUnavailable."""
        if len(events) > MAX_ENTRIES:
            raise BadRequest(f"events has {len(events)} entries; at most {MAX_ENTRIES} in one call")
        with self._lock:
            now_ms = self.clock.now_ms()
            accepted, rejected, entries = 0, [], []
            ids: set[str] = set()
            for index, event in enumerate(events):
                try:
                    self._check_event(event, now_ms)
                except BadRequest as error:
                    rejected.append(Rejection(index=index, reason=str(error)))
                    continue
                accepted += 1
                if event.event_id in ids or self._ledger.has_event(event.event_id):
                    continue
                ids.add(event.event_id)
                event.DiscardUnknownFields()
                if not event.event_time_ms:
                    event.event_time_ms = now_ms
                entries.append(Entry(event.user_id.encode(), encode(event, now_ms)))
            self._append(entries)
            return accepted, rejected

    def _check_event(self, event: Event, now_ms: int) -> None:
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
                if not self.catalogue.row_of(interaction.item_id):
                    raise BadRequest(f"interaction.item_id {interaction.item_id[:80]!r} is not in the catalogue")
            case _:
                raise BadRequest("the event has no body; it must be one of exposure, feedback, interaction")

    def _num_slots(self, token: str, user_id: str, now_ms: int) -> int:
        try:
            return self._mint.check(token, user_id, now_ms).num_slots
        except BadToken as error:
            raise BadRequest(str(error)) from None

    def _check_time(self, event_time_ms: int, now_ms: int) -> None:
        if not 0 <= event_time_ms <= now_ms + self.config.future_ms:
            raise BadRequest(
                f"event_time_ms is {event_time_ms}; it must be 0 (now) or up to {self.config.future_ms} ms after now, {now_ms}"
            )

    # UpsertItems -----------------------------------------------------------------------------------------------------

    def upsert(self, items: Sequence[Item]) -> tuple[int, list[Rejection]]:
        """Append the good items to the items stream; how many, and why each other one was not. LogUnavailable."""
        if len(items) > MAX_ENTRIES:
            raise BadRequest(f"items has {len(items)} entries; at most {MAX_ENTRIES} in one call")
        with self._lock:
            now_ms = self.clock.now_ms()
            values, rejected = [], []
            for index, item in enumerate(items):
                try:
                    _check_item(item)
                except BadRequest as error:
                    rejected.append(Rejection(index=index, reason=str(error)))
                else:
                    item.DiscardUnknownFields()
                    values.append(encode(ItemChange(event_time_ms=now_ms, item=item), now_ms))
            self._append_items(values)
            return len(values), rejected

    # The log ---------------------------------------------------------------------------------------------------------

    def _partition(self, user_id: str) -> int:
        return partition_of(user_id.encode(), self._log.num_partitions)

    def _append(self, entries: Sequence[Entry]) -> None:
        """Make durable, then apply; what another server appended in between is applied before, in the log's order."""
        if not entries:
            return
        for entry, position in zip(entries, self._log.append(entries), strict=True):
            if position.offset == self.memory.next_offset[position.partition]:
                self._apply(position.partition, position.offset, entry.value)
            else:
                self._read_on(position.partition)

    def _append_items(self, values: Sequence[bytes]) -> None:
        positions = self._items_log.append([Entry(b"", value, 0) for value in values]) if values else []
        for value, position in zip(values, positions, strict=True):
            while self.catalogue.next_offset < position.offset:
                for record in self._items_log.read(0, self.catalogue.next_offset):
                    self._apply_item(record.offset, record.value)
            if position.offset == self.catalogue.next_offset:
                self._apply_item(position.offset, value)

    def _read_on(self, partition: int) -> None:
        while records := self._log.read(partition, self.memory.next_offset[partition]):
            for record in records:
                self._apply(partition, record.offset, record.value)

    def _apply(self, partition: int, offset: int, value: bytes) -> None:
        try:
            record = decode(value)
        except UnreadableRecord:  # the joiner quarantines it; memory passes it
            self.memory.next_offset[partition] = offset + 1
            return
        self.memory.apply(partition, offset, record)
        self._ledger.remember(record)

    def _apply_item(self, offset: int, value: bytes) -> None:
        try:
            change = change_of(value)
        except UnreadableRecord:
            change = None
        if change is None:
            self.catalogue.skip(offset)
        else:
            self.catalogue.apply(offset, change)


def _response(decision: Decision) -> RecommendResponse:
    slots = [Slot(item_id=item, logprob=logprob) for item, logprob in zip(decision.item_ids, decision.slot_logprobs, strict=True)]
    return RecommendResponse(
        decision_id=decision.decision_id,
        decision_token=decision.decision_token,
        slots=slots,
        policy_version=decision.policy_version,
        variant=decision.variant,
        trained_through_ms=decision.trained_through_ms,
        degraded=decision.degraded,
    )


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


def _check_item(item: Item) -> None:
    _check_id("item_id", item.item_id, required=True)
    _check_text(item.title, item.attributes)
    if len(item.embedding) > 4096:
        raise BadRequest(f"embedding has {len(item.embedding)} values; at most 4096")
    for value in item.embedding:
        if not math.isfinite(value) or abs(value) > 1e6:
            raise BadRequest(f"embedding holds {value}; each value must be a number of at most 1e6 in size")
    if len(item.embedding) and not any(item.embedding):
        raise BadRequest("embedding is all zeros; leave it out to use title and attributes")


def _check_text(title: str, attributes: Mapping[str, str]) -> None:
    total_bytes = len(title.encode()) + sum(len(key.encode()) + len(value.encode()) for key, value in attributes.items())
    if total_bytes > MAX_TEXT_BYTES:
        raise BadRequest(f"title and attributes have {total_bytes} bytes; at most {MAX_TEXT_BYTES}")
    if any(not key for key in attributes):
        raise BadRequest("attributes has an empty key")
