"""What tests of serving stand on: an engine over fresh logs, what users send it, and a server on a port with a client."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from recsys.catalogue import Catalogue
from recsys.engine import Engine, EngineConfig, Identity
from recsys.experiment import ExperimentConfig
from recsys.memory import MemoryConfig
from recsys.policy import Asked, Choice, DrawingConfig
from recsys.recommender_pb2_grpc import RecommenderStub
from recsys.server import Access, Server, ServerConfig
from recsys.spool import Spool
from recsys.tokens import TokenMint
from streaming.clock import Clock, ManualClock
from streaming.events import Decision, Event, Exposure, Feedback, Interaction, Record, decode
from streaming.log import EventLog, MemoryLog
from streaming.proto.recommender_pb2 import RecommendRequest, RecommendResponse
from tests.artifacts import NOW_MS, VARIANT, item, item_ids

KEY = b"0123456789abcdef"


# An engine ------------------------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """An engine with its logs and clock."""

    engine: Engine
    log: EventLog
    items_log: EventLog
    clock: Clock

    def records(self) -> list[Record]:
        """All records of the log but ticks, by partition."""
        found = [decode(record.value) for partition in range(self.log.num_partitions) for record in self.log.read(partition, 0)]
        return [record for record in found if record.WhichOneof("body") != "tick"]

    def decisions(self) -> list[Decision]:
        return [record.decision for record in self.records() if record.WhichOneof("body") == "decision"]

    def events(self) -> list[Event]:
        return [record.event for record in self.records() if record.WhichOneof("body") == "event"]


def bench(
    *,
    num_items: int = 12,
    clock: Clock | None = None,
    log: EventLog | None = None,
    items_log: EventLog | None = None,
    config: EngineConfig | None = None,
    variants: tuple[tuple[str, float], ...] = ((VARIANT, 1.0),),
    key: bytes = KEY,
    spool: Spool | None = None,
    name: str = "",
    accept_gap: bool = False,
) -> Bench:
    """An engine that has taken in `num_items` items; by default in memory, on a clock turned by hand."""
    config, clock = config or EngineConfig(), clock or ManualClock(NOW_MS)
    log, items_log = log or MemoryLog(2), items_log or MemoryLog(1)
    engine = Engine(
        config,
        MemoryConfig(),
        ExperimentConfig(variants=variants),
        Identity(run_seed=7, behavior_digest="digest", server=name),
        clock=clock,
        log=log,
        items_log=items_log,
        mint=TokenMint([key], config.token_lifetime_ms),
        spool=spool,
        accept_gap=accept_gap,
    )
    if num_items:
        engine.upsert([item(name) for name in item_ids(num_items)])
    return Bench(engine, log, items_log, clock)


@dataclass
class WatchedPolicy:
    """A policy that offers the first items of the catalogue, keeps what it was asked, and can be made to wait."""

    policy_version: int = 3
    trained_through_ms: int = 5
    drawing: DrawingConfig = field(default_factory=DrawingConfig)
    asked: list[Asked] = field(default_factory=list)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released each time a decision begins."""
    may_answer: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.may_answer.set()

    def decide(self, asked: Sequence[Asked], catalogue: Catalogue) -> list[Choice]:
        self.asked += asked
        self.entered.release()
        assert self.may_answer.wait(30)
        slates = [catalogue.item_ids[: one.slate_size] for one in asked]
        return [Choice(names, [-0.5] * len(names)) for names in slates]


# What users send -------------------------------------------------------------------------------------------------------


def ask(parts: Bench, user_id: str = "ann", **fields: object) -> RecommendResponse:
    return parts.engine.recommend(RecommendRequest(user_id=user_id, **fields))


def slate(answer: RecommendResponse) -> list[str]:
    return [slot.item_id for slot in answer.slots]


def shown(answer: RecommendResponse, *slots: int, event_id: str = "shown", user_id: str = "ann", **fields: object) -> Event:
    return Event(event_id=event_id, user_id=user_id, exposure=Exposure(decision_token=answer.decision_token, slots=slots), **fields)


def clicked(answer: RecommendResponse, slot: int = 0, value: float = 1.0, event_id: str = "click", user_id: str = "ann", **fields: object):
    feedback = Feedback(decision_token=answer.decision_token, slot=slot, kind="click", value=value)
    return Event(event_id=event_id, user_id=user_id, feedback=feedback, **fields)


def watched(item_id: str = "item1", value: float = 1.0, event_id: str = "watch", user_id: str = "ann", **fields: object) -> Event:
    interaction = Interaction(item_id=item_id, kind="watch", value=value)
    return Event(event_id=event_id, user_id=user_id, interaction=interaction, **fields)


# A server --------------------------------------------------------------------------------------------------------------


@dataclass
class Live:
    """A server on a port, what is behind it, and a client."""

    server: Server
    parts: Bench
    state_dir: Path
    channel: Any

    def __post_init__(self) -> None:
        self.stub = RecommenderStub(self.channel)

    def ask(self, user_id: str = "ann", **fields: object) -> RecommendResponse:
        return self.stub.Recommend(RecommendRequest(user_id=user_id, **fields), timeout=20)

    def health(self, service: str = "") -> int:
        stub = health_pb2_grpc.HealthStub(self.channel)
        return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20).status


@contextmanager
def serving(state_dir: Path, parts: Bench | None = None, *, access: Access | None = None, **config: Any) -> Iterator[Live]:
    parts = parts or bench()
    server = Server(ServerConfig(**config), parts.engine, parts.clock, state_dir, [VARIANT], DrawingConfig(), access)
    with closing(server), grpc.insecure_channel(f"127.0.0.1:{server.start()}") as channel:
        yield Live(server, parts, state_dir, channel)


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """The code and the details that a call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def wait_for(happened: Callable[[], bool], seconds: int = 20) -> None:
    for _ in range(20 * seconds):
        if happened():
            return
        threading.Event().wait(0.05)
    pytest.fail(f"it did not happen within {seconds} s")
