"""A foreign log in one common form, and its way into an archive that replay reads. Knows no file format of anybody else's.

An exposure by somebody else's recommender becomes a Decision of variant "imported" with its Exposure and Feedback; what
users did on their own becomes an Interaction. Ids are SHA-256 of contents, so importing twice gives the same bytes.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.admission import MAX_ID_BYTES
from streaming.archive import write_archive
from streaming.events import IMPORTED, Decision, Event, Exposure, Feedback, Interaction, Item, ItemChange, Tick, encode
from streaming.joiner import MAX_VALUE
from streaming.log import MAX_RECORD_BYTES, Entry, MemoryLog

FEEDBACK: pl.DataType = pl.List(pl.Struct({"kind": pl.String, "value": pl.Float64, "delay_ms": pl.Int64}))
PAIRS: pl.DataType = pl.List(pl.Struct({"key": pl.String, "value": pl.String}))
INTERACTIONS = pl.Schema(
    {  # type: ignore[arg-type]
        "user_id": pl.String,
        "item_id": pl.String,
        "event_time_ms": pl.Int64,
        "shown": pl.Boolean,
        "feedback": FEEDBACK,
        "context": PAIRS,
    }
)
ITEMS = pl.Schema({"item_id": pl.String, "title": pl.String, "attributes": PAIRS})  # type: ignore[arg-type]

WATCH = "watch"
"""The kind of an organic row that says nothing but that it happened."""
MINUTE_MS = 60_000
CLOSING_MINUTES = 4
"""Ticks go on this long after an event: W 60 s + L 5 s + D 2 s of the join, the bucket of a minute, one spare."""


class ImportRefused(ValueError):
    """Data that can't become a log; the message names the column or file, what is wrong and what is there."""


@dataclass(frozen=True, kw_only=True)
class Frames:
    """A foreign log in the common form: `interactions` (schema INTERACTIONS, in time order) and `items` (schema ITEMS).

    `shown` is True where a recommender exposed the item and False where the user came to it on his own. `feedback` lists
    what the user did with it, `delay_ms` after `event_time_ms`. Every item of the interactions is in `items`.
    ImportRefused when a frame breaks any of this.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame

    def __post_init__(self) -> None:
        _check_schema("interactions", self.interactions, INTERACTIONS)
        _check_schema("items", self.items, ITEMS)
        if self.interactions.is_empty():
            raise ImportRefused("no interactions: the log is empty")
        times = self.interactions["event_time_ms"]
        if not times.is_sorted() or times[0] < 0:
            raise ImportRefused(
                f"event_time_ms must be 0 or more (UTC milliseconds) and rise; it begins at {times[0]}, ends at {times[-1]}"
            )
        _check_feedback(self.interactions["feedback"])
        for ids in (self.interactions["user_id"], self.items["item_id"]):
            _check_ids(ids)
        if self.items["item_id"].is_duplicated().any():
            raise ImportRefused(f"item_id {self.items['item_id'].filter(self.items['item_id'].is_duplicated())[0]!r} stands twice in items")
        unknown = self.interactions.join(self.items, on="item_id", how="anti")
        if unknown.height:
            raise ImportRefused(f"item_id {unknown['item_id'][0]!r} is in the interactions and not in items")

    def refuse_future(self, now_ms: int) -> None:
        """ImportRefused for a time after now: joins would go on to it, and call late whatever is logged until then."""
        later = self.interactions.filter(pl.col("event_time_ms") > now_ms)
        if later.height:
            row, when = later.row(-1, named=True), later.select(pl.col("event_time_ms").cast(pl.Datetime("ms")))["event_time_ms"][-1]
            of = f"user {row['user_id']!r}, item {row['item_id']!r}"
            raise ImportRefused(f"{of}: its time is {when:%Y-%m-%d %H:%M:%S} UTC, after now; {later.height} rows are in the future")


def make_frames(interactions: pl.DataFrame, items: pl.DataFrame) -> Frames:
    """Frames of these columns: sorted by time (ties keep their order), items that only the log knows added without attributes."""
    interactions = interactions.sort("event_time_ms", maintain_order=True)
    missing = interactions.select(pl.col("item_id").unique(maintain_order=True)).join(
        items, on="item_id", how="anti", maintain_order="left"
    )
    bare = missing.with_columns(title=pl.lit(""), attributes=pl.lit([], dtype=PAIRS)).select(ITEMS.names())
    return Frames(
        interactions=interactions.select(INTERACTIONS.names()),
        items=pl.concat([items.select(ITEMS.names()), bare]),
    )


def write_import(frames: Frames, directory: Path, num_partitions: int = 4) -> None:
    """Write `frames` as an archive: `directory/events` (`num_partitions` partitions) and `directory/items` (one).

    Exposures of one user at one time stamp are one slate, in the order of the rows; else a slate has one slot. The log has
    no propensities, so the Decisions have no slot_logprobs. Every partition is ticked on the minute, wherever something can
    still close; where nothing happened for longer there is nothing to close and no tick. ImportRefused when `directory` is not empty.
    """
    if directory.is_dir() and any(directory.iterdir()):
        # write_archive goes on where a stream ends: a second import would be cut off by the length of the first.
        raise ImportRefused(f"{directory} is not empty; an import needs a directory of its own")
    events, items = import_logs(frames, num_partitions)
    write_archive(events, directory / "events")
    write_archive(items, directory / "items")


def import_logs(frames: Frames, num_partitions: int = 4, ticks_until_ms: int | None = None) -> tuple[MemoryLog, MemoryLog]:
    """The events and the items stream of `frames`, in memory, each partition in time order.

    Ticks go on until all is closed, or until then: those of a log that goes on itself must not run ahead of it.
    """
    first_ms = int(frames.interactions["event_time_ms"][0])
    begin_ms = max(first_ms // MINUTE_MS - 1, 0) * MINUTE_MS
    bodies = list(_bodies(frames.interactions, items_offset=frames.items.height))
    minutes = _tick_minutes(np.array([time_ms for time_ms, _, _ in bodies], dtype=np.int64))
    minutes = [minute for minute in minutes if ticks_until_ms is None or minute * MINUTE_MS <= ticks_until_ms]
    events = MemoryLog(num_partitions)
    events.append(_in_time_order(bodies, minutes, num_partitions))
    items = MemoryLog(1)
    changes = [(begin_ms, b"", encode(ItemChange(event_time_ms=begin_ms, item=item), begin_ms)) for item in items_of(frames.items)]
    items.append(_in_time_order(changes, minutes, 1))
    return events, items


def items_of(items: pl.DataFrame) -> list[Item]:
    """The contract's Items of a frame of schema ITEMS, in its order."""
    return [
        Item(item_id=item_id, title=title, attributes={pair["key"]: pair["value"] for pair in attributes})
        for item_id, title, attributes in items.select(ITEMS.names()).iter_rows()
    ]


def _check_schema(name: str, frame: pl.DataFrame, schema: pl.Schema) -> None:
    if frame.schema != schema:
        raise ImportRefused(f"{name} has columns {dict(frame.schema)}; they must be {dict(schema)}")
    for column, nulls in frame.null_count().row(0, named=True).items():
        if nulls:
            raise ImportRefused(f"{name}.{column} is empty in {nulls} of {frame.height} rows")


def _check_ids(ids: pl.Series) -> None:
    bad = ids.filter((ids.str.len_bytes() == 0) | (ids.str.len_bytes() > MAX_ID_BYTES) | ids.str.contains("\0", literal=True))
    if bad.len():
        raise ImportRefused(f"{ids.name} {bad[0][:80]!r} has {len(bad[0].encode())} bytes; it must have 1..{MAX_ID_BYTES}, and no NUL")


def _check_feedback(feedback: pl.Series) -> None:
    entries = feedback.list.explode(keep_nulls=False, empty_as_null=False).struct.unnest()
    fits = (pl.col("value").abs() <= MAX_VALUE) & (pl.col("delay_ms") >= 0) & (pl.col("kind").str.len_chars() > 0)
    bad = entries.filter(~fits.fill_null(value=False))
    if bad.height:
        needed = f"value must be a number of at most {MAX_VALUE:.0e} in size, delay_ms 0 or more and kind not empty"
        raise ImportRefused(f"feedback {bad.row(0, named=True)}: {needed}; {bad.height} are not")


def _bodies(interactions: pl.DataFrame, items_offset: int) -> Iterator[tuple[int, bytes, bytes]]:
    """(event time, key, record bytes) of every row, a slate at a time; times rise within a slate only."""
    # A repeat of an item at one time stamp starts a second slate: no slate may hold an item twice.
    by = ["user_id", "event_time_ms", "shown", "repeat"]
    numbered = interactions.with_columns(repeat=pl.int_range(pl.len()).over("user_id", "event_time_ms", "shown", "item_id"))
    groups = numbered.group_by(by, maintain_order=True).agg("item_id", "feedback", pl.col("context").first())
    for user_id, time_ms, shown, repeat, item_ids, feedback, context in groups.iter_rows():
        key = user_id.encode()
        messages = (
            _exposed(user_id, time_ms, repeat, item_ids, feedback, context, items_offset)
            if shown
            else _organic(user_id, time_ms, repeat, item_ids, feedback)
        )
        for message in messages:
            value = encode(message, message.event_time_ms)
            if len(value) > MAX_RECORD_BYTES:
                held = f"{len(item_ids)} items at one time, {time_ms} ms, are one slate of {len(value)} bytes"
                raise ImportRefused(f"user {user_id!r}: {held}; a record may have {MAX_RECORD_BYTES}")
            yield message.event_time_ms, key, value


def _exposed(
    user_id: str,
    time_ms: int,
    repeat: int,
    item_ids: list[str],
    feedback: list[list[dict[str, Any]]],
    context: list[dict[str, str]],
    items_offset: int,
) -> Iterator[Decision | Event]:
    decision_id = _digest("decision", user_id, time_ms, repeat, *item_ids)
    token = f"{decision_id}.0.{IMPORTED}"
    yield Decision(
        decision_id=decision_id,
        user_id=user_id,
        event_time_ms=time_ms,
        variant=IMPORTED,
        decision_token=token,
        item_ids=item_ids,
        memory_offset=-1,
        items_offset=items_offset,
        slate_size=len(item_ids),
        context={pair["key"]: pair["value"] for pair in context},
    )
    shown = Exposure(decision_token=token, slots=range(len(item_ids)))
    yield Event(event_id=_digest(decision_id, "exposure"), user_id=user_id, event_time_ms=time_ms, exposure=shown)
    for slot, entries in enumerate(feedback):
        for entry in entries:
            kind = entry["kind"]
            yield Event(
                event_id=_digest(decision_id, "feedback", slot, kind),
                user_id=user_id,
                event_time_ms=time_ms + entry["delay_ms"],
                feedback=Feedback(decision_token=token, slot=slot, kind=kind, value=entry["value"]),
            )


def _organic(user_id: str, time_ms: int, repeat: int, item_ids: list[str], feedback: list[list[dict[str, Any]]]) -> Iterator[Event]:
    for item_id, entries in zip(item_ids, feedback, strict=True):
        for entry in entries or [{"kind": WATCH, "value": 1.0, "delay_ms": 0}]:
            yield Event(
                event_id=_digest("organic", user_id, time_ms, repeat, item_id, entry["kind"]),
                user_id=user_id,
                event_time_ms=time_ms + entry["delay_ms"],
                interaction=Interaction(item_id=item_id, kind=entry["kind"], value=entry["value"]),
            )


def _digest(*parts: object) -> str:
    """32 hex digits of the SHA-256 of the parts; the unit separator keeps ("ab", "c") apart from ("a", "bc")."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()[:32]


def _tick_minutes(times_ms: np.ndarray[Any, np.dtype[np.int64]]) -> list[int]:
    """The minutes in which something happened or could still close, ascending."""
    minutes = np.unique(times_ms // MINUTE_MS)
    return [int(minute) for minute in np.unique(minutes[:, None] + np.arange(CLOSING_MINUTES + 1))]


def _in_time_order(bodies: list[tuple[int, bytes, bytes]], minutes: list[int], num_partitions: int) -> list[Entry]:
    """The bodies and a tick of every partition at each of the minutes, by time; a tick stands before what bears its time."""
    timed = [(time_ms, Entry(key, value)) for time_ms, key, value in bodies]
    for minute in minutes:
        time_ms = minute * MINUTE_MS
        tick = encode(Tick(event_time_ms=time_ms), time_ms)
        timed.extend((time_ms, Entry(b"", tick, partition)) for partition in range(num_partitions))
    times_ms = np.array([time_ms for time_ms, _ in timed], dtype=np.int64)
    is_body = np.arange(len(timed)) < len(bodies)
    return [timed[i][1] for i in np.lexsort((is_body, times_ms))]
