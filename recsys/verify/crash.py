"""A learner killed again and again, beside one that never was: weights, optimizer, reservoir and books must be the same bytes.

Knows nothing of how a learner works. What is killed is what `recsys learn` runs, forked from this process so that a new life does
not begin with seconds of imports; the stream grows while it lives, as it does in production.
"""

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from models import embeddings
from models.artifact import BadArtifact
from recsys import checkpoint as checkpoints
from recsys import publisher
from recsys.config import Config
from recsys.durable import numbered
from recsys.verify import faults, journal
from recsys.verify.lives import LifeFailed, Lives, Work, learn
from recsys.verify.stream import Teller, telling
from streaming import compiled

WARM_UP_MINUTES = 4
LOADED = compiled, embeddings
"""What a learner loads besides its imports."""
DISK_MB = 128
"""All that is kept of a learner of this size is some 70 MB."""
ANY_MOMENT, FULL_DISK = "any moment", "full disk"
WRITES = {"within a write of a checkpoint": ("checkpoints", faults.SAVING), "within a write of a version": ("versions", faults.PUBLISHING)}
ALONE = {
    "the copy that saves alone": faults.POINTS["before the manifest of a checkpoint"],
    "the copy that publishes alone": faults.PUBLISHING,
}
DAMAGES: dict[str, tuple[tuple[str, ...], Callable[[Path, np.random.Generator], None]]] = {
    "torn checkpoint": (("checkpoints",), faults.tear),
    "flipped version": (("versions",), faults.flip),
    "flipped checkpoint and version": (("checkpoints", "versions"), faults.flip),
    "torn version": (("versions",), faults.tear),
    "flipped checkpoint": (("checkpoints",), faults.flip),
    "torn checkpoint and version": (("checkpoints", "versions"), faults.tear),
}
"""In which newest directories one file is damaged, and how."""


@dataclass(frozen=True)
class Verified:
    """What was done and found."""

    log: str
    kills: int
    faults: dict[str, int]
    """Kills by where they struck, damages, and full disks."""
    identical: bool
    trained_twice: int
    lost: int
    recovery_s: dict[str, float | None]
    """From the restart at a kill to the first update; a process of its own takes `process_start_s()` before."""
    unreadable: int
    """Kills after which CURRENT.json did not name a version that can be loaded."""
    differing: list[str]
    """Files of the last checkpoint and version that are not what the uninterrupted learner wrote."""
    versions: int
    examples: int
    disk: str
    """What the full disk was."""

    @property
    def holds(self) -> bool:
        """Whether the learner kept what it promises."""
        return self.identical and not (self.trained_twice or self.lost or self.unreadable)


def verify_crash(config: Config, url: str, out: Path, kills: int, seed: int, work: Work = learn) -> Verified:
    """Kill a learner `kills` times on a stream told to the empty log at `url`, and compare its end with an uninterrupted one's.

    `out` gets the states of both; that of the killed one is on a small disk of its own where this user may mount one.
    """
    for module in LOADED:  # once, before all that is forked
        module.load()
    ways = _ways(kills, np.random.default_rng([seed, 1]))
    minutes = WARM_UP_MINUTES + len(ways)
    with faults.small_disk(out / "state", DISK_MB) as has_disk, telling(config, url, minutes, seed) as teller:
        lives = Lives(config, url, out / "state", seed, work)
        trial = _Trial(lives, teller, np.random.default_rng([seed, 2]), has_disk=has_disk)
        trial.warm_up()
        for way in ways:
            trial.strike(way)
        lives.live_until(trial.told_ms)
        reference = Lives(config, url, out / "reference", seed)
        reference.live_until(trial.told_ms)
        differing = [name for folder in ("checkpoints", "versions") for name in _differing(lives.directory, reference.directory, folder)]
        counted = _in_weights(lives)
    return Verified(
        log="kafka" if url.startswith("kafka:") else "sqlite",
        kills=kills,
        faults=dict(sorted(trial.faults.items())),
        identical=not differing,
        trained_twice=counted.total() - len(counted),
        lost=len(teller.taught_ids - counted.keys()),
        recovery_s={
            "p50": float(np.median(trial.recovery_s)) if trial.recovery_s else None,
            "max": max(trial.recovery_s, default=None),
        },
        unreadable=trial.unreadable,
        differing=differing,
        versions=publisher.newest_version(reference.directory),
        examples=len(teller.taught_ids),
        disk=f"tmpfs of {DISK_MB} MB" if has_disk else "RLIMIT_FSIZE",
    )


def process_start_s() -> float:
    """How long a process takes to be there with all that a learner loads."""
    began_s = time.monotonic()
    program = "from recsys import cli; from recsys.verify.crash import LOADED; [module.load() for module in LOADED]"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    return time.monotonic() - began_s


def _ways(kills: int, random: np.random.Generator) -> list[str]:
    """How each life ends: one in three at any moment, the others at the named points in turn; and between them disks that are full."""
    named = [*faults.POINTS, *WRITES, *ALONE]
    order = [named[at] for _ in range(kills // len(named) + 1) for at in random.permutation(len(named)).tolist()]
    ways = [ANY_MOMENT if number % 3 == 0 else order[number - number // 3 - 1] for number in range(kills)]
    for place in np.linspace(0, kills, 2 + kills // 25).astype(int)[:0:-1].tolist():
        ways.insert(place, FULL_DISK)
    return ways


class _Trial:
    """The lives of one learner that end badly."""

    def __init__(self, lives: Lives, teller: Teller, random: np.random.Generator, *, has_disk: bool) -> None:
        self.faults: Counter[str] = Counter()
        self.recovery_s: list[float] = []
        self.unreadable = 0
        self.told_ms = 0
        self._lives, self._teller, self._random, self._has_disk = lives, teller, random, has_disk
        self._damages = list(DAMAGES)
        self._damaged: set[int] = set()
        self._life_s = 0.0

    def warm_up(self) -> None:
        """Two lives that end well: one for the first versions, one to see how long a life with one minute to learn takes."""
        for _ in range(WARM_UP_MINUTES - 1):
            self.told_ms = self._teller.tell()
        self._lives.live_until(self.told_ms)
        self.told_ms = self._teller.tell()
        began_s = time.monotonic()
        self._lives.live_until(self.told_ms)
        self._life_s = time.monotonic() - began_s

    def strike(self, way: str) -> None:
        """One more minute comes, and a life that ends in this way; after each third of them a file is damaged too."""
        self.told_ms = self._teller.tell()
        self.faults[way] += 1
        began_s = time.monotonic()
        if way == FULL_DISK:
            self._on_full_disk()
        else:
            self._killed(way)
        updated_s = self._lives.first_update_s()
        if updated_s is not None:
            self.recovery_s.append(updated_s - began_s)
        self._look()
        if way == ANY_MOMENT:
            self._damage()

    def _killed(self, way: str) -> None:
        if way == ANY_MOMENT:
            life = self._lives.begin()
            time.sleep(self._random.uniform(0, 1.3 * self._life_s))
            self._lives.end(life, signal.SIGKILL)
            return
        if way in WRITES:
            folder, pattern = WRITES[way]
            longest = max(path.stat().st_size for path in self._newest(folder).rglob("*.safetensors"))
            strike: Callable[[], None] = partial(faults.die_writing, int(self._random.integers(1, longest)))
        elif way in ALONE:
            pattern, strike = ALONE[way], faults.die_alone
        else:
            pattern, strike = faults.POINTS[way], faults.die
        self._expect_failure(partial(faults.at_point, self._lives.directory, pattern, strike))

    def _on_full_disk(self) -> None:
        size = sum(path.stat().st_size for path in self._newest("checkpoints").rglob("*.*"))
        left = int(self._random.integers(size // 4, size))
        if self._has_disk:
            with faults.filled(self._lives.directory.parent, left):
                self._expect_failure(None)
        else:
            self._expect_failure(partial(faults.at_point, self._lives.directory, faults.SAVING, partial(faults.fail_writing, left // 4)))

    def _expect_failure(self, blow: Callable[[], None] | None) -> None:
        if not self._lives.end(self._lives.begin(blow)):
            raise LifeFailed("a life that could not save ended as if all were well")

    def _look(self) -> None:
        """Whatever happened, what is current can be loaded; but for a version that was damaged here."""
        published = publisher.current(self._lives.directory)
        if published is None or published.policy_version in self._damaged:
            return
        try:
            publisher.load(published)
        except (BadArtifact, OSError):
            self.unreadable += 1

    def _damage(self) -> None:
        name = self._damages.pop(0)
        self._damages.append(name)
        folders, damage = DAMAGES[name]
        for folder in folders:
            newest = self._newest(folder)
            damage(faults.any_file(newest, self._random), self._random)
            if folder == "versions":
                self._damaged.add(int(newest.name))
        self.faults[name] += 1

    def _newest(self, folder: str) -> Path:
        return _newest(self._lives.directory, folder)


def _newest(directory: Path, folder: str) -> Path:
    return numbered(directory / folder, "ckpt-" if folder == "checkpoints" else "")[-1][1]


def _differing(one: Path, other: Path, folder: str) -> list[str]:
    """Files of the newest checkpoint or version that are not byte for byte the same in both, or only in one."""
    found = [{path.relative_to(top).as_posix(): path.read_bytes() for path in _newest(top, folder).rglob("*.*")} for top in (one, other)]
    return sorted(name for name in found[0].keys() | found[1].keys() if found[0].get(name) != found[1].get(name))


def _in_weights(lives: Lives) -> Counter[str]:
    """How often each decision was learned as new on the way to the weights that were saved last."""
    saved = checkpoints.restore(lives.directory / "checkpoints")
    if saved is None:
        raise LifeFailed(f"{lives.directory} has no checkpoint that can be read")
    steps = [float(array) for name, array in saved.arrays.items() if name.startswith("optimizer.") and name.endswith(".step")]
    updates = [learned for path in lives.journals for learned in journal.read(path)]
    return journal.in_weights(updates, journal.fingerprint(saved.model.decoder, steps))
