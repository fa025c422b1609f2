"""What can answer in a world, by name: this system whole, with parts of it standing still, and what others do instead.

Knows nothing of how a run is driven or measured.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from models.artifact import Artifact
from recsys import publisher
from recsys.catalogue import Catalogue
from recsys.durable import numbered
from recsys.keeper import Keeper
from recsys.loop import MINUTE_MS
from recsys.policy import Asked, Choice, DrawingConfig, GenerativePolicy, Policy, UniformPolicy
from recsys.rollback import roll_back
from recsys.simulate.bandit import LinUcb
from recsys.simulate.baselines import Popular, Pupil
from recsys.simulate.cascade import Recall
from recsys.simulate.stage import NEVER, Stage
from recsys.simulate.worlds import DAY_MINUTES, FLIPPED_FROM
from recsys.worlds import KnownWorld
from streaming.proto.recommender_pb2 import RecommendRequest

ANY_LAG = 1_000_000
"""Versions: who reads a log from its beginning learns from decisions of any age."""


OWN_SETTINGS = (
    "drawing.novelty_bonus=3.0",
    "drawing.novelty_bonus=12.0",
    "drawing.temperature=0.4",
    "learner.trainer.objective.policy_weight=0.2",
)
"""What was tried of our own beside the defaults of the preset, one at a time."""


class Variant(Protocol):
    """A Component that makes policies."""

    def step(self) -> Policy | None:
        """Learn what is complete in the log; a policy where another than before is to answer from now on."""

    def asks(self, request: RecommendRequest) -> RecommendRequest:
        """The request as its policy is to get it."""

    def figures(self) -> Mapping[str, Any]:
        """What it says of itself at the end."""

    def close(self) -> None:
        """Let go of what is held."""


class Learning:
    """The decoder, learning every minute. Its first policy is the version of the beginning."""

    def __init__(self, stage: Stage, publish_every: int = 1, save_every: int = NEVER) -> None:
        """`publish_every`: world minutes between two policies; `save_every`: versions between two checkpoints."""
        self._stage, self._publish_every = stage, publish_every
        self.learner = stage.learner(save_every)
        self.freshness_s: list[float] = []
        self._served = 0
        self._due_ms = 0

    def asks(self, request: RecommendRequest) -> RecommendRequest:
        """See Variant."""
        return request

    def step(self) -> Policy | None:
        """See Variant."""
        self.learner.step()
        version, now_ms = self.learner.policy_version, self._stage.clock.now_ms()
        artifact = self.learner.version() if version > self._served and now_ms >= self._due_ms else None
        if artifact is None:
            return None
        trained_ms = self.learner.stats.trained_append_ms
        if self._served:
            self.freshness_s += [
                (now_ms - when_ms) / 1000 for told in range(self._served + 1, version + 1) for when_ms in trained_ms.get(told, [])
            ]
        self._served, self._due_ms = version, now_ms + (self._publish_every - 1) * MINUTE_MS + 1
        return GenerativePolicy(artifact, self._stage.config.drawing)

    def figures(self) -> Mapping[str, Any]:
        """See Variant."""
        learner, start_minute = self.learner, self._stage.beginning.start_ms // MINUTE_MS
        return {
            "versions_published": learner.policy_version,
            "freshness_s": self.freshness_s,
            "books": learner.joiner.books().as_dict(),
            "weights_digest": learner.weights_digest(),
            "refused": [(minute - start_minute, reason) for minute, reason in learner.stats.refusals],
            "capped": learner.stats.num_capped,
        }

    def close(self) -> None:
        """See Variant."""
        self.learner.close()


class RolledBack(Learning):
    """The same with an operator, who sees at the end of one minute that since another nothing told was true, and goes back."""

    def __init__(self, stage: Stage, since_minute: int, seen_minute: int) -> None:
        super().__init__(stage, save_every=1)
        self._since_ms, self._seen_ms = (stage.beginning.start_ms + minute * MINUTE_MS for minute in (since_minute, seen_minute))
        self._good, self._is_done = 0, False

    def step(self) -> Policy | None:
        """See Variant."""
        policy, now_ms = super().step(), self._stage.clock.now_ms()
        if now_ms <= self._since_ms:
            self._good = self.learner.policy_version
        if self._is_done or now_ms < self._seen_ms:
            return policy
        self._is_done = True
        there = [number for number, _ in numbered(self.learner.directory / "checkpoints", "ckpt-") if number <= self._good]
        roll_back(self._stage.log, self.learner.directory, max(there), now_ms)
        published = publisher.current(self.learner.directory)
        assert published is not None
        return GenerativePolicy(publisher.load(published), self._stage.config.drawing)


class Cascade(Learning):
    """The same, but what it chooses from was found by a recall that is fitted to the history and learns nothing more."""

    def __init__(self, stage: Stage, candidates: int = 200) -> None:
        super().__init__(stage)
        self._candidates = candidates
        catalogue = self.learner.catalogue
        texts = catalogue.texts(range(1, len(catalogue.item_ids) + 1))
        self._recall = Recall(texts, stage.beginning.history(), stage.beginning.seeds.of("recall", 0))

    def asks(self, request: RecommendRequest) -> RecommendRequest:
        """See Variant."""
        asked = RecommendRequest()
        asked.CopyFrom(request)
        view, catalogue = self.learner.memory.view(request.user_id), self.learner.catalogue
        asked.candidate_item_ids.extend(self._recall.find(view, catalogue, self._candidates))
        return asked


class Frozen:
    """The decoder as a version is, by default that of the start; its items follow the catalogue."""

    def __init__(self, stage: Stage, artifact: Artifact | None = None, state_dir: Path | None = None) -> None:
        self._drawing = stage.config.drawing
        self._keeper = Keeper(
            stage.variant,
            lambda: artifact or stage.beginning.artifact(),
            stage.config.join,
            clock=stage.clock,
            items_log=stage.items_log,
            state_dir=state_dir or stage.directory,
        )
        self._served = 0

    def asks(self, request: RecommendRequest) -> RecommendRequest:
        """See Variant."""
        return request

    def step(self) -> Policy | None:
        """See Variant."""
        self._keeper.step()
        published = publisher.current(self._keeper.directory)
        if published is None or published.policy_version == self._served:
            return None
        self._served = published.policy_version
        return GenerativePolicy(publisher.load(published), self._drawing)

    def figures(self) -> Mapping[str, Any]:
        """See Variant."""
        return {"versions_published": self._keeper.policy_version}

    def close(self) -> None:
        """See Variant."""


class Daily:
    """Made anew once a world day: a learner without weights reads the whole log, and stays as it is until the next day ends."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._today, self._day = stage, Frozen(stage), 0

    def asks(self, request: RecommendRequest) -> RecommendRequest:
        """See Variant."""
        return request

    def step(self) -> Policy | None:
        """See Variant."""
        stage = self._stage
        day = (stage.clock.now_ms() - stage.beginning.start_ms) // (DAY_MINUTES * MINUTE_MS)
        if day > self._day:
            self._day = day
            any_age = replace(stage.config, learner=replace(stage.config.learner, max_lag=ANY_LAG))
            learner = stage.beginning.learner(any_age, stage.clock, stage.log, stage.items_log, stage.directory / f"day {day}")
            learner.catch_up()
            learner.close()
            self._today = Frozen(stage, learner.version(), stage.directory / f"kept {day}")
        return self._today.step()

    def figures(self) -> Mapping[str, Any]:
        """See Variant."""
        return {"versions_published": self._day + 1}

    def close(self) -> None:
        """See Variant."""


class Untaught:
    """One policy for the whole run."""

    def __init__(self, policy: Policy) -> None:
        self._policy: Policy | None = policy

    def step(self) -> Policy | None:
        """See Variant."""
        policy, self._policy = self._policy, None
        return policy

    def asks(self, request: RecommendRequest) -> RecommendRequest:
        """See Variant."""
        return request

    def figures(self) -> Mapping[str, Any]:
        """See Variant."""
        return {}

    def close(self) -> None:
        """See Variant."""


class Oracle(Untaught):
    """Knows the truth and shows the best slate there is: what nobody can be above."""

    def __init__(self, stage: Stage) -> None:
        if not isinstance(stage.world, KnownWorld):
            raise ValueError(f"world {stage.beginning.population.name} does not say what is true of it: no oracle")
        self._best = BestSlate(stage.world)
        super().__init__(self._best)

    def asks(self, request: RecommendRequest) -> RecommendRequest:
        """See Variant."""
        self._best.user_ids.append(request.user_id)
        return request


class BestSlate:
    """The policy of the oracle: it is told whose turn it is."""

    policy_version = 0
    trained_through_ms = 0

    def __init__(self, world: KnownWorld) -> None:
        self.drawing = DrawingConfig()
        self.user_ids: deque[str] = deque()
        self._world = world

    def decide(self, asked: Sequence[Asked], catalogue: Catalogue) -> list[Choice]:
        """See Policy."""
        del catalogue
        slates = [self._world.best_slate(self.user_ids.popleft(), one.slate_size) for one in asked]
        return [Choice(slate, [0.0] * len(slate)) for slate in slates]


def _linucb(stage: Stage, alpha: float = 0.3) -> Variant:
    return Pupil(stage, LinUcb(alpha))


def _popular(stage: Stage, minutes: int = 60) -> Variant:
    return Pupil(stage, Popular(minutes))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a variant is made of a stage, and whether it sees what users did after the start."""

    make: Callable[[Stage], Variant]
    live_memory: bool = True
    settings: tuple[str, ...] = ()
    """What it needs beside the configuration that all begin with, as for `--set`."""


VARIANTS: dict[str, Recipe] = {
    "online": Recipe(make=Learning),
    "offline": Recipe(make=Frozen, live_memory=False),
    "memory_only": Recipe(make=Frozen),
    "weights_only": Recipe(make=Learning, live_memory=False),
    "daily": Recipe(make=Daily),
    "cascade": Recipe(make=Cascade),
    "linucb": Recipe(make=_linucb),
    "popular": Recipe(make=_popular),
    "random": Recipe(make=lambda _: Untaught(UniformPolicy())),
    "oracle": Recipe(make=Oracle),
}
"""`offline` is what a nightly batch knows: weights and users as of the start. `memory_only` is its weights with the users of now,
`weights_only` the users of the start with the weights of now."""

UNGUARDED = ("learner.trainer.guard.contradiction=0", "learner.trainer.guard.max_rate_change=1e9")
SEEN_AFTER = 15
"""Minutes after a lie began in which somebody sees it."""
LIED_TO: Mapping[str, Recipe] = {
    "unguarded": Recipe(make=Learning, settings=UNGUARDED),
    "rolled_back": Recipe(make=partial(RolledBack, since_minute=FLIPPED_FROM, seen_minute=FLIPPED_FROM + SEEN_AFTER), settings=UNGUARDED),
}
"""What world `flipped` does to a learner whose gates stand open; and what going back is worth."""

STALE = {f"stale_{minutes}": minutes for minutes in (5, 10, 60, 240)}
"""The whole system, each version answering for so many minutes."""

TRIED: Mapping[str, Mapping[str, Recipe]] = {
    "online": {setting: Recipe(make=Learning, settings=(setting,)) for setting in OWN_SETTINGS},
    "cascade": {f"{number} candidates": Recipe(make=partial(Cascade, candidates=number)) for number in (25, 50, 100, 200)},
    "linucb": {f"alpha {alpha}": Recipe(make=partial(_linucb, alpha=alpha)) for alpha in (0.1, 0.3, 1.0, 3.0)},
    "popular": {f"{minutes} minutes": Recipe(make=partial(_popular, minutes=minutes)) for minutes in (5, 15, 60, 240)},
}
"""The tuning budget: four settings of each, ours and theirs, on a seed that nothing is reported of."""


def trial(variant: str, place: int) -> str:
    """The name under which one setting of TRIED is run."""
    return f"{variant}_try_{place}"


RECIPES: Mapping[str, Recipe] = {
    **VARIANTS,
    **LIED_TO,
    **{
        name: Recipe(make=partial(Learning, publish_every=minutes), settings=(f"learner.max_lag={ANY_LAG}",))
        for name, minutes in STALE.items()
    },
    **{trial(name, place): recipe for name, tried in TRIED.items() for place, recipe in enumerate(tried.values())},
}
