"""What one variant did in one world, decision by decision, as arrays that can be kept. Knows nothing of what is made of them."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

COLUMNS = ("minute", "user", "turn", "slots", "reward", "expected", "best", "repeated", "before")
"""One value a decision: world minute; the user, by order of first turn; how many turns he had before; slots shown; reward of the
feedback on them; what it was expected to be; what the best slate would have been expected to earn in their places (both NaN in worlds
that don't tell); the share of the items this user was last shown that this slate repeats, and the reward of that slate (NaN: the first)."""
ARRIVALS = ("arrival", "arrived_minute", "shown_minute", "expected_reward")
"""One value an exposure of an item that arrived in the run, and one with NaN for each that arrived: the item, by order of arrival, when it
came, when it was shown, and what that was expected to earn."""


@dataclass
class Diary:
    """Append decisions as they are made; `arrays` when all is done."""

    rows: list[tuple[float, ...]] = field(default_factory=list)
    new_rows: list[tuple[float, ...]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    """What the run and the variant said at the end."""
    _users: dict[str, int] = field(default_factory=dict)
    _turns: dict[str, int] = field(default_factory=dict)

    def user(self, user_id: str) -> tuple[int, int]:
        """The number of a user, and of this turn of his."""
        turn = self._turns[user_id] = self._turns.get(user_id, -1) + 1
        return self._users.setdefault(user_id, len(self._users)), turn

    def turns(self) -> dict[str, int]:
        """How many turns each user has had."""
        return {user_id: last + 1 for user_id, last in self._turns.items()}

    def record(self) -> "Record":
        """What was written so far."""
        return Record(_columns(COLUMNS, self.rows) | _columns(ARRIVALS, self.new_rows), list(self._users), self.figures)


@dataclass(frozen=True)
class Record:
    """A finished diary."""

    columns: Mapping[str, Array]
    user_ids: list[str]
    figures: Mapping[str, Any]

    def __getitem__(self, name: str) -> Array:
        return self.columns[name]

    def by_minute(self, name: str, minutes: int) -> Array:
        """The sum of a column over the decisions of each minute."""
        return np.bincount(self["minute"].astype(np.int64), self[name], minlength=minutes)[:minutes]

    def save(self, path: Path) -> None:
        """Write it as one .npz, by rename: a battery that is stopped leaves whole files only."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".tmp.npz")
        told = json.dumps({"user_ids": self.user_ids, "figures": dict(self.figures)})
        arrays = dict(self.columns) | {"told": np.frombuffer(told.encode(), np.uint8)}
        np.savez_compressed(unfinished, allow_pickle=False, **arrays)
        unfinished.replace(path)

    @staticmethod
    def kept(path: Path, name: str, digest: str) -> "Record | None":
        """What an earlier call left at `path`, if it is whole and its figure `name` is this digest: that of what it was made with."""
        with suppress(FileNotFoundError, KeyError, EOFError, ValueError, BadZipFile):
            record = Record.load(path)
            if record.figures[name] == digest:
                return record
        return None

    @staticmethod
    def load(path: Path) -> "Record":
        """What `save` wrote."""
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            told = json.loads(kept["told"].tobytes())
            return Record({name: kept[name] for name in COLUMNS + ARRIVALS}, told["user_ids"], told["figures"])


def _columns(names: tuple[str, ...], rows: list[tuple[float, ...]]) -> dict[str, Array]:
    return dict(zip(names, np.array(rows, np.float64).reshape(-1, len(names)).T, strict=True))
