"""The other end of the wire: what a program that uses the server needs, in Python. Imports grpc for clients as `server` does for servers.

Knows nothing of the server's insides. Refusals are errors here: who drives a world wants to hear of each.
"""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import grpc

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
    """Nobody answers at the address, or not this."""


class Client:
    """One connection, for any number of threads. Keeps the wall time of every Recommend, in ms."""

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
        """Ask for one slate; Unreachable, with code and reason, when none comes."""
        started = time.perf_counter()
        try:
            response: RecommendResponse = self._stub.Recommend(request)
        except grpc.RpcError as error:
            raise Unreachable(f"{error.code().name}: {error.details()}") from None
        self.recommend_ms.append(1000 * (time.perf_counter() - started))
        return response

    def record(self, events: Sequence[Event]) -> None:
        """Send events; Refused names the first that was not taken."""
        started = time.perf_counter()
        response = self._stub.RecordEvents(RecordEventsRequest(events=events))
        self.record_s += time.perf_counter() - started
        _check(response.rejected)

    def upsert(self, items: Sequence[Item]) -> None:
        """Send items, in calls that stay below the message limit; Refused names the first that was not taken."""
        for first in range(0, len(items), ITEMS_PER_CALL):
            response = self._stub.UpsertItems(UpsertItemsRequest(items=items[first : first + ITEMS_PER_CALL]))
            _check(response.rejected)

    def status(self) -> GetStatusResponse:
        """What is served now; Unreachable when nobody answers."""
        try:
            response: GetStatusResponse = self._stub.GetStatus(GetStatusRequest())
        except grpc.RpcError as error:
            raise Unreachable(str(error)) from None
        return response


def _check(rejected: Sequence[Rejection]) -> None:
    if rejected:
        raise Refused(f"{len(rejected)} not taken; number {rejected[0].index}: {rejected[0].reason}")
