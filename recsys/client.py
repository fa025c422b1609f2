"""The other end of the wire: what a program that uses the server needs, in Python. Imports grpc for clients as `server` does for servers.

Knows nothing of the server's insides. Refusals are errors here: who drives a world wants to hear of each.
"""

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.message import Message

from recsys.recommender_pb2_grpc import RecommenderStub
from streaming.events import Event, Item
from streaming.proto.recommender_pb2 import (
    GetStatusRequest,
    GetStatusResponse,
    RecommendRequest,
    RecommendResponse,
    RecordEventsRequest,
    Rejection,
    UpsertItemsRequest,
)

ITEMS_PER_CALL = 500


class Refused(ValueError):
    """The server named something that it did not take."""


class Unreachable(ConnectionError):
    """No answer came; the code says why."""


class Client:
    """One connection, for any number of threads; Unreachable where no answer comes. Keeps the wall time of every Recommend, in ms."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._stub = RecommenderStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        self.recommend_ms: list[float] = []
        self.record_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._channel.close()

    def recommend(self, request: RecommendRequest) -> RecommendResponse:
        """Ask for one slate."""
        started = time.perf_counter()
        response: RecommendResponse = _answer(self._stub.Recommend, request)
        self.recommend_ms.append(1000 * (time.perf_counter() - started))
        return response

    def record(self, events: Sequence[Event]) -> None:
        """Send events; Refused names the first that was not taken."""
        started = time.perf_counter()
        response = _answer(self._stub.RecordEvents, RecordEventsRequest(events=events))
        self.record_s += time.perf_counter() - started
        _check(response.rejected)

    def upsert(self, items: Sequence[Item]) -> None:
        """Send items, in calls that stay below the message limit; Refused names the first that was not taken."""
        for first in range(0, len(items), ITEMS_PER_CALL):
            response = _answer(self._stub.UpsertItems, UpsertItemsRequest(items=items[first : first + ITEMS_PER_CALL]))
            _check(response.rejected)

    def status(self) -> GetStatusResponse:
        """What is served now."""
        response: GetStatusResponse = _answer(self._stub.GetStatus, GetStatusRequest())
        return response


def _answer(method: Callable[[Any], Any], request: Message) -> Any:
    try:
        return method(request)
    except grpc.RpcError as error:
        raise Unreachable(f"{error.code().name}: {error.details()}") from None


def _check(rejected: Sequence[Rejection]) -> None:
    if rejected:
        raise Refused(f"{len(rejected)} not taken; number {rejected[0].index}: {rejected[0].reason}")
