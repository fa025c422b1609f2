"""A world that somebody else might bring: ten items, slates of two, users who like one half of the items. It tells no truth."""

from collections.abc import Sequence

import numpy as np

from recsys.worlds import Turn
from streaming.events import Event, Exposure, Feedback, Item
from streaming.proto.recommender_pb2 import RecommendRequest, RecommendResponse

START_MS = 1_700_000_040_000


class HalvesWorld:
    """Every two seconds one of six users asks; he clicks what is of his half."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._turn = 0
        self._user = 0

    def catalog(self) -> Sequence[Item]:
        """Ten items of two colours."""
        return [Item(item_id=f"i{at}", title=f"{'red' if at % 2 else 'blue'} thing {at}") for at in range(10)]

    def next_turn(self) -> Turn | None:
        """Ends after half an hour."""
        if self._turn == 900:
            return None
        self._turn += 1
        self._user = int(self._random.integers(6))
        now_ms = START_MS + 2000 * self._turn
        request = RecommendRequest(user_id=f"u{self._user}", slate_size=2, request_id=f"r{self._turn}", event_time_ms=now_ms)
        return Turn(event_time_ms=now_ms, request=request)

    def respond(self, decision: RecommendResponse) -> Sequence[Event]:
        """All is seen, his colour is clicked."""
        now_ms, name, token = START_MS + 2000 * self._turn, decision.decision_id, decision.decision_token
        user_id = f"u{self._user}"
        shown = Exposure(decision_token=token, slots=range(len(decision.slots)))
        events = [Event(event_id=f"{name}-e", user_id=user_id, event_time_ms=now_ms + 100, exposure=shown)]
        for at, slot in enumerate(decision.slots):
            if int(slot.item_id[1:]) % 2 == self._user % 2:
                feedback = Feedback(decision_token=token, slot=at, kind="click", value=1)
                events.append(Event(event_id=f"{name}-{at}", user_id=user_id, event_time_ms=now_ms + 3000, feedback=feedback))
        return events


def make_world(seed: int) -> HalvesWorld:
    """What `--world tests.foreign_world:make_world` names."""
    return HalvesWorld(seed)
