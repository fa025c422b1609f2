"""The request path: what happens between a request and its slate, between an event and its place in the log.

Knows nothing of gRPC or of how weights are made. All that it answers with is a function of the records it has applied;
whatever it acknowledges is in the log before it says so, and in the user's memory before the next request is answered.
While the log is away it answers from what it knows, if it has a spool to keep the Decisions in.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from recsys.admission import MAX_ENTRIES, Admission, BadRequest, check_item
from recsys.experiment import ExperimentConfig, assign
from recsys.features import Wish
from recsys.journal import Journal
from recsys.ledger import Ledger
from recsys.memory import Memory, MemoryConfig
from recsys.policy import Asked, Choice, Policy, UniformPolicy
from recsys.spool import Spool
from recsys.tokens import TokenMint
from streaming.clock import Clock
from streaming.events import Decision, Event, Item, ItemChange, encode
from streaming.log import Entry, EventLog, partition_of
from streaming.proto.recommender_pb2 import Degraded, RecommendRequest, RecommendResponse, Rejection, Seen, Slot


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
        if not 0 <= self.future_ms <= 86_400_000:
            raise ValueError(f"engine.future_ms is {self.future_ms}; it must be 0..86400000")
        if not 1_000 <= self.token_lifetime_ms <= 30 * 86_400_000:
            raise ValueError(f"engine.token_lifetime_ms is {self.token_lifetime_ms}; it must be 1000..2592000000")


@dataclass(frozen=True)
class Identity:
    """What is stamped on Decisions: the run's seed and the digest of the configuration that acts."""

    run_seed: int
    behavior_digest: str
    server: str = ""
    """Tells servers of one log apart: part of the ids of Decisions for requests without an id."""


class Engine:
    """One server's state over one log. Safe to call from many threads; one call is answered at a time."""

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
        spool: Spool | None = None,
        known: tuple[Memory, Ledger] | None = None,
        accept_gap: bool = False,
    ) -> None:
        """Begins with the log away too. Without a `spool` no request is answered while it is.

        `known`: what the log says up to the offsets in it; it is read on from there. OffsetGone when that is gone, unless `accept_gap`.
        """
        self.config, self.experiment, self.identity, self.clock = config, experiment, identity, clock
        self._mint = mint
        self._admission = Admission(config.future_ms, mint, is_wall=clock.is_wall)
        self._policies: dict[str, Policy] = {}
        self._cold = UniformPolicy()
        self._degraded: dict[str, Degraded] = {}
        self.memory, self._ledger = known or (Memory(memory, log.num_partitions), Ledger(config.token_lifetime_ms))
        self._journal = Journal(log, items_log, self.memory, self._ledger, spool, accept_gap=accept_gap)
        self._lock = self._journal.lock
        self.catalogue = self._journal.catalogue

    # What is served --------------------------------------------------------------------------------------------------

    def serve(self, variant: str, policy: Policy, degraded: Degraded = Degraded.DEGRADED_NONE) -> None:
        """Answer for this variant with this policy from now on: one reference is swapped."""
        with self._lock:
            self._policies[variant] = policy
            self._degraded[variant] = degraded

    @property
    def num_spooled(self) -> int:
        """Decisions that wait for the log."""
        return self._journal.num_waiting

    def catch_up(self) -> None:
        """Apply what others appended, all that is in the log now; first what waits for the log goes in. LogUnavailable."""
        self._journal.catch_up()

    def with_known(self, take: Callable[[Memory, Ledger], None]) -> None:
        """Hand out what is known of users and of what was taken, while nothing changes it."""
        with self._lock:
            take(self.memory, self._ledger)

    def tick(self) -> None:
        """Tell every partition what time it is, so that an idle one holds nobody up; after an absence of the log, catch up."""
        self._journal.tick(self.clock.now_ms())

    # Recommend -------------------------------------------------------------------------------------------------------

    def check(self, request: RecommendRequest) -> None:
        """BadRequest for one that can't be answered. Waits for nobody."""
        self._admission.check_request(request, self.clock.now_ms())

    def recommend(self, request: RecommendRequest) -> RecommendResponse:
        """Generate a slate and append the Decision. BadRequest; LogUnavailable when the Decision can't be kept."""
        return self.recommend_many([request])[0]

    def recommend_many(self, requests: Sequence[RecommendRequest]) -> list[RecommendResponse]:
        """A slate for each, as if they had come one after the other; those of different users are drawn and appended together.

        BadRequest for the first that can't be answered, before any of them is; LogUnavailable when Decisions can't be kept.
        """
        with self._lock:
            now_ms = self.clock.now_ms()
            for request in requests:
                self._admission.check_request(request, now_ms)
            decisions: dict[int, Decision] = {}
            for places in _rounds([request.user_id for request in requests]):
                decisions.update(zip(places, self._answer([requests[place] for place in places], now_ms), strict=True))
            return [_response(decisions[place]) for place in range(len(requests))]

    def _answer(self, requests: Sequence[RecommendRequest], now_ms: int) -> list[Decision]:
        """The Decisions of requests of different users: those that were answered before, and new ones, made durable."""
        before = [self._ledger.decision(request.user_id, request.request_id, now_ms) for request in requests]
        asked = [self._asked(request) for request, known in zip(requests, before, strict=True) if known is None]
        made = self._decide(asked, now_ms)
        self._journal.keep([Entry(decision.user_id.encode(), encode(decision, now_ms)) for decision in made])
        new = iter(made)
        return [known or next(new) for known in before]

    def _asked(self, request: RecommendRequest) -> "_Asked":
        seen_excluded = self.config.exclude_seen if request.seen == Seen.SEEN_DEFAULT else request.seen == Seen.SEEN_EXCLUDE
        wish = Wish(
            list(request.exclude_item_ids),
            list(request.candidate_item_ids),
            dict(request.where),
            seen_excluded,
            self.catalogue.next_offset,
        )
        # "=" and "#": a request called "#0" must not get the seed and the id of the user's first unnamed one
        name = f"={request.request_id}" if request.request_id else f"{self.identity.server}{self._journal.ordinal(request.user_id)}"
        digest = hashlib.sha256(f"{self.identity.run_seed}\0{request.user_id}\0{name}".encode()).digest()
        size = request.slate_size or self.config.default_slate_size
        seed = int.from_bytes(digest[16:24], "big")
        asked = Asked(request.user_id, self.memory.view(request.user_id), dict(request.context), size, wish, seed)
        return _Asked(request, assign(self.experiment, request.user_id), digest[:16].hex(), asked)

    def _decide(self, requests: Sequence["_Asked"], now_ms: int) -> list[Decision]:
        """In order; each variant's policy draws all of its slates at once."""
        decisions: dict[str, Decision] = {}
        for variant in {one.variant: None for one in requests}:
            own = [one for one in requests if one.variant == variant]
            policy = self._policies.get(variant, self._cold)
            for one, choice in zip(own, policy.decide([one.asked for one in own], self.catalogue), strict=True):
                decisions[one.decision_id] = self._decision(one, choice, policy, now_ms)
        return [decisions[one.decision_id] for one in requests]

    def _decision(self, one: "_Asked", choice: Choice, policy: Policy, now_ms: int) -> Decision:
        request, asked, wish = one.request, one.asked, one.asked.wish
        decision = Decision(
            decision_id=one.decision_id,
            user_id=request.user_id,
            event_time_ms=request.event_time_ms or now_ms,
            variant=one.variant,
            policy_version=policy.policy_version,
            item_ids=choice.item_ids,
            slot_logprobs=choice.logprobs,
            memory_offset=self.memory.next_offset[partition_of(request.user_id.encode(), self._journal.num_partitions)],
            items_offset=wish.items_offset,
            request_id=request.request_id,
            slate_size=asked.slate_size,
            context=asked.context,
            exclude_item_ids=wish.exclude_item_ids,
            candidate_item_ids=wish.candidate_item_ids,
            where=wish.where,
            seen_excluded=wish.seen_excluded,
            way=policy.drawing.way,
            temperature=policy.drawing.temperature,
            floor=policy.drawing.floor,
            novelty_bonus=policy.drawing.novelty_bonus,
            value_weight=policy.drawing.value_weight,
            behavior_digest=self.identity.behavior_digest,
            seed=asked.seed,
            degraded=self._degraded.get(one.variant, Degraded.DEGRADED_NO_POLICY),
            trained_through_ms=policy.trained_through_ms,
        )
        decision.decision_token = self._mint.token(decision)
        return decision

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
                    self._admission.check_event(event, now_ms, self.catalogue)
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
            self._journal.append(entries)
            return accepted, rejected

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
                    check_item(item)
                except BadRequest as error:
                    rejected.append(Rejection(index=index, reason=str(error)))
                else:
                    item.DiscardUnknownFields()
                    values.append(encode(ItemChange(event_time_ms=now_ms, item=item), now_ms))
            self._journal.append_items(values)
            return len(values), rejected


@dataclass(frozen=True)
class _Asked:
    """A request, who answers it, and the id that its Decision will have."""

    request: RecommendRequest
    variant: str
    decision_id: str
    asked: Asked


def _rounds(user_ids: Sequence[str]) -> list[list[int]]:
    """Places by round: the first request of each user, then the second of each, and so on."""
    rounds: list[list[int]] = []
    num_before: Counter[str] = Counter()
    for place, user_id in enumerate(user_ids):
        if num_before[user_id] == len(rounds):
            rounds.append([])
        rounds[num_before[user_id]].append(place)
        num_before[user_id] += 1
    return rounds


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
