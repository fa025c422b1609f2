"""One variant through one world, on the world's time: the loop of `recsys loop` with the engine called in this process.

Knows nothing of what the variant or the world is made of, nor of what the figures mean.
"""

import heapq
import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from recsys.click_model import Floats, Ints
from recsys.engine import Engine, Identity
from recsys.experiment import ExperimentConfig
from recsys.loop import MINUTE_MS
from recsys.policy import GenerativePolicy, Policy
from recsys.simulate.diary import Diary, Record
from recsys.simulate.stage import Stage
from recsys.simulate.understanding import second_tries, understood
from recsys.simulate.variants import Variant
from recsys.tokens import TokenMint
from recsys.worlds import KnownWorld, Turn
from streaming.events import Event
from streaming.proto.recommender_pb2 import RecommendResponse
from streaming.rewards import rule_named

LOOKS = (2, 5, 10, 20, 40, 80, 160, 320, 480)
"""World minutes after which it is measured how well users are understood."""
STEPS_MS = tuple(1000 * seconds for seconds in (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60))
"""How often, in the world's time, what is due is delivered, the engine ticks and the variant learns."""


class Run:
    """Plays a stage to its end."""

    def __init__(self, stage: Stage, variant: Variant) -> None:
        self._stage, self._variant, self._world = stage, variant, stage.world
        self._known = stage.world if isinstance(stage.world, KnownWorld) else None
        config = stage.config
        self._rule, self._window_ms = rule_named(config.join.reward), config.join.window_ms
        self._step_ms = max(step for step in STEPS_MS if step == STEPS_MS[0] or step < config.join.lateness_ms + config.join.disorder_ms)
        """Events are in the log that much after their time, at most: less than the join waits for them."""
        self._waiting: list[Turn] = []
        self._diary = Diary()
        self._pending: list[tuple[int, int, Event]] = []
        self._num_pending = 0
        self._arrived: dict[str, tuple[int, int]] = {}
        """By item, its number, by order of arrival, and the minute it came."""
        self._policy: Policy | None = None
        self._last_shown: dict[str, tuple[list[str], float]] = {}
        self._seconds: dict[str, float] = defaultdict(float)
        mint = TokenMint([f"simulate {stage.beginning.seed}".encode().ljust(32, b"\0")], config.engine.token_lifetime_ms)
        self.engine = Engine(
            config.engine,
            config.memory,
            ExperimentConfig(variants=((stage.variant, 1.0),)),
            Identity(stage.beginning.seed, stage.beginning.seeds.behavior_digest),
            clock=stage.clock,
            log=stage.log,
            items_log=stage.items_log,
            mint=mint,
        )

    def play(self) -> Record:
        """To the end of the world, or of the time there is for it."""
        started = time.perf_counter()
        clock, beginning = self._stage.clock, self._stage.beginning
        self._learn()
        turn = self._world.next_turn()
        looks_ms = [beginning.start_ms + minute * MINUTE_MS for minute in LOOKS if minute <= beginning.minutes]
        step_ms, end_ms = self._step_ms, beginning.start_ms + beginning.minutes * MINUTE_MS
        for now_ms in range(beginning.start_ms + step_ms, end_ms + 1, step_ms):
            while turn is not None and turn.event_time_ms < now_ms:
                clock.advance_to(turn.event_time_ms)
                self._play(turn)
                turn = self._world.next_turn()
            clock.advance_to(now_ms)
            self._answer()
            self._deliver(now_ms)
            self.engine.tick()
            self._learn()
            if now_ms in looks_ms:
                self._look(last=now_ms == looks_ms[-1])
        figures = self._diary.figures
        figures |= self._variant.figures()
        figures["behavior_digest"] = beginning.seeds.behavior_digest
        figures |= {"seconds": time.perf_counter() - started, "compute_parts_s": dict(self._seconds)}
        self._variant.close()
        return self._diary.record()

    def _play(self, turn: Turn) -> None:
        """Take one turn. Requests wait to be answered together until one of them, or what it must know, says that it can't wait."""
        waiting = {one.request.user_id for one in self._waiting if one.request is not None}
        touched = {event.user_id for due_ms, _, event in self._pending if due_ms <= turn.event_time_ms}
        if turn.request is None or turn.request.user_id in waiting | touched or waiting & {event.user_id for event in turn.organic}:
            self._answer()
            self._deliver(turn.event_time_ms)
        if self._known is not None:
            self._upsert(self._known)
        self.engine.record(turn.organic)
        if turn.request is not None:
            self._waiting.append(turn)
        if self._known is None:
            self._answer()

    def _upsert(self, world: KnownWorld) -> None:
        changes = world.upserts()
        if not changes:
            return
        self._answer()
        for time_ms, item in changes:
            if not item.retired:
                self._arrived[item.item_id] = len(self._arrived), self._minute(time_ms)
                self._diary.new_rows.append((*self._arrived[item.item_id], np.nan, np.nan))
        self.engine.upsert([item for _, item in changes])

    def _answer(self) -> None:
        """All that wait: no two of one user, and nothing is due that one of them must know."""
        turns, self._waiting = self._waiting, []
        if not turns:
            return
        requests = [self._variant.asks(turn.request) for turn in turns if turn.request is not None]
        started = time.perf_counter()
        responses = self.engine.recommend_many(requests)
        self._seconds["deciding"] += time.perf_counter() - started
        for turn, request, response in zip(turns, requests, responses, strict=True):
            events = self._known.respond_to(request.request_id, response) if self._known else self._world.respond(response)
            self._note(turn, response, events)
            for event in events:
                self._num_pending += 1
                heapq.heappush(self._pending, (event.event_time_ms, self._num_pending, event))

    def _deliver(self, now_ms: int) -> None:
        due = []
        while self._pending and self._pending[0][0] <= now_ms:
            due.append(heapq.heappop(self._pending)[2])
        started = time.perf_counter()
        self.engine.record(due)
        self._seconds["recording"] += time.perf_counter() - started

    def _learn(self) -> None:
        started = time.perf_counter()
        policy = self._variant.step()
        self._seconds["learning"] += time.perf_counter() - started
        if policy is not None:
            self.engine.serve(self._stage.variant, policy)
            self._policy = policy

    def _look(self, *, last: bool) -> None:
        """Ask the policy, in passing, how well it understands its users, and at last what it would try next."""
        if self._known is not None and isinstance(self._policy, GenerativePolicy):
            found = understood(self._known, self.engine, self._policy, self._diary.turns())
            self._diary.figures.setdefault("understanding", []).extend((one.turns, one.ndcg) for one in found)
            if last:
                self._diary.figures["second_tries"] = second_tries(self.engine, self._policy, self._diary.turns())

    def _note(self, turn: Turn, response: RecommendResponse, events: Sequence[Event]) -> None:
        """Write down one decision and what the world answered to it; feedback counts as the reward rule and the window say."""
        assert turn.request is not None
        shown = {slot for event in events for slot in event.exposure.slots}
        said: dict[int, dict[str, float]] = {slot: {} for slot in shown}
        for event in events:
            if event.feedback.kind and event.feedback.slot in said and event.event_time_ms <= turn.event_time_ms + self._window_ms:
                said[event.feedback.slot].setdefault(event.feedback.kind, event.feedback.value)
        places = np.array(sorted(shown), np.int64)
        item_ids = [response.slots[place].item_id for place in places]
        expected, best = self._expected(turn.request.user_id, item_ids, places)
        user, number = self._diary.user(turn.request.user_id)
        minute = self._minute(turn.event_time_ms)
        reward = sum(self._rule(feedback) for feedback in said.values())
        repeated, before = self._repeated(turn.request.user_id, [slot.item_id for slot in response.slots])
        if item_ids:
            self._last_shown[turn.request.user_id] = item_ids, reward
        self._diary.rows.append((minute, user, number, len(shown), reward, expected.sum(), best.sum(), repeated, before))
        for item_id, worth in zip(item_ids, expected.tolist(), strict=True):
            if item_id in self._arrived:
                self._diary.new_rows.append((*self._arrived[item_id], minute, worth))

    def _minute(self, time_ms: int) -> int:
        return (time_ms - self._stage.beginning.start_ms) // MINUTE_MS

    def _repeated(self, user_id: str, item_ids: list[str]) -> tuple[float, float]:
        if user_id not in self._last_shown:
            return np.nan, np.nan
        last, reward = self._last_shown[user_id]
        return len(set(last) & set(item_ids)) / len(last), reward

    def _expected(self, user_id: str, item_ids: list[str], places: Ints) -> tuple[Floats, Floats]:
        """Of what was shown, and of the best slate in the same places; NaN where the world doesn't tell."""
        if self._known is None:
            return np.full(places.size, np.nan), np.full(places.size, np.nan)
        best = self._known.best_slate(user_id, int(places.max()) + 1) if places.size else []
        best = [best[place] for place in places if place < len(best)]
        return (
            self._known.expected_reward(user_id, item_ids, places),
            self._known.expected_reward(user_id, best, places[: len(best)]),
        )
