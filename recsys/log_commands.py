"""`recsys log …` and `recsys rollback`: looking into a log, keeping it as parquet, and undoing what was learned of it."""

import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from recsys.controls import CONTROL_PARTITION, foreseen
from recsys.options import AcceptGap, AsJson, LogUrl, Partitions, Settings, State, opened, print_figures, stop_on_signals
from recsys.presets import Preset, configured
from recsys.processes import run
from recsys.rollback import roll_back
from streaming.address import ITEMS_SUFFIX
from streaming.archive import EVENTS, ITEMS, ArchiveLog, Archiver
from streaming.books import MAX_QUARANTINED
from streaming.clock import SystemClock
from streaming.events import decode
from streaming.gaps import Gapped
from streaming.inspection import Inspection, inspected
from streaming.joiner import JoinConfig
from streaming.log import Entry, EventLog, place
from streaming.quarantine import ACCEPT, Kept, fetched, naming, refuse_foreign_place, repaired, write_lines
from streaming.quarantine import requeue as requeue_records

log = typer.Typer(help="What is in a log: its books, its quarantine, its archive.", no_args_is_help=True)

LISTED = 1_000
"""Records of a stream's quarantine that are listed, the newest."""

SomeLog = Annotated[str, typer.Option("--log", help="sqlite:///PATH or kafka://HOST:PORT/TOPIC")]
SomeArchive = Annotated[Path | None, typer.Option(help="In place of a log: a directory with events/ and items/.")]


@log.command()
def inspect(
    url: SomeLog = "",
    archive: SomeArchive = None,
    partitions: Partitions = 4,
    since: Annotated[str, typer.Option(help="Only what was appended since: 2026-11-25T04:00 (UTC where no zone is said).")] = "",
    preset: Preset = "standard",
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Join a log and print its books, how late feedback comes, what was put into quarantine, and where it stands."""
    started = time.perf_counter()
    streams = _streams(url, archive, partitions)
    found = _inspected(streams, configured(preset, settings).join, _milliseconds(since) if since else None)
    figures = found.figures()
    for stream, quarantined in found.quarantined.items():
        for one in quarantined[-10:]:
            typer.echo(f"quarantined: {stream} partition {one.partition} offset {one.offset}: {one.reason} ({one.detail})", err=True)
    print_figures(figures, None, started, as_json=as_json)


@log.command()
def quarantine(
    url: SomeLog = "",
    archive: SomeArchive = None,
    partitions: Partitions = 4,
    export: Annotated[Path | None, typer.Option(help="Write the records, bytes and all, a line each: to be repaired.")] = None,
    requeue: Annotated[Path | None, typer.Option(help="Put the repaired records of such a file back.")] = None,
    accept: Annotated[bool, typer.Option(help="Tell a learner that stopped for too many of them to go on without those listed.")] = False,
    preset: Preset = "standard",
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """List the newest 1,000 records of each stream that could not be used, and why; they stay in the log where they are.

    --export and --accept take the newest 20,000 of each.
    """
    started = time.perf_counter()
    streams = _streams(url, archive, partitions)
    found = _inspected(streams, configured(preset, settings).join)
    if export is not None:
        kept = _kept(streams, found)
        export.write_text(write_lines(kept))
        typer.echo(f"wrote {len(kept)} records to {export}", err=True)
    now_ms = SystemClock().now_ms()
    if requeue is not None:
        _put_back(requeue, streams, now_ms)
    if accept:
        places = [(one.partition, one.offset) for one in found.quarantined[EVENTS]]
        streams[EVENTS].append([Entry(b"", naming(ACCEPT, places, now_ms), CONTROL_PARTITION)] if places else [])
    newest = _kept(streams, found, LISTED)
    print_figures({"quarantined": [one.as_dict() for one in newest]} if as_json else _listed(newest), None, started, as_json=as_json)


@log.command("archive")
def archive_(
    url: LogUrl,
    out: Annotated[Path, typer.Option(help="Directory of events/ and items/; goes on where an earlier call stopped.")],
    partitions: Partitions = 4,
    follow: Annotated[bool, typer.Option(help="Go on until SIGTERM or Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, max=86_400, help="Seconds between two looks with --follow; each may write a file.")] = 60,
    accept_gap: AcceptGap = False,
    as_json: AsJson = False,
) -> None:
    """Keep both streams of a log as parquet files, for `recsys replay` and for anybody with SQL."""
    started = time.perf_counter()
    archiver = Archiver(_streams(url, None, partitions), out, accept_gap=accept_gap)
    if follow:
        run([archiver], stop_on_signals(), every)
    else:
        archiver.step()
    print_figures({"written": archiver.num_written}, None, started, as_json=as_json)


def rollback(
    url: LogUrl,
    state: State,
    to: Annotated[
        int | None, typer.Option(min=1, help="The version to go back to; by default the one served before the current one.")
    ] = None,
    partitions: Partitions = 4,
    preset: Preset = "standard",
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Serve an earlier version at once, and have the learner go on from it without anything that came since."""
    started = time.perf_counter()
    variant = configured(preset, settings).join.variant
    done = roll_back(opened(url, partitions=partitions, existing=True), state / variant, to, SystemClock().now_ms())
    figures = asdict(done)  # whose `version` would be taken for the program's
    print_figures({"to_version": figures.pop("version")} | figures, None, started, as_json=as_json)


def _streams(url: str, archive: Path | None, partitions: int) -> dict[str, EventLog]:
    """Events and items of a log, or of an archive."""
    if (archive is None) == (not url):
        raise ValueError("give one of --log URL and --archive DIR")
    if archive is not None:
        return {name: ArchiveLog(archive / name) for name in (EVENTS, ITEMS)}
    return {EVENTS: opened(url, partitions=partitions, existing=True), ITEMS: opened(url, ITEMS_SUFFIX, existing=True)}


def _inspected(streams: dict[str, EventLog], config: JoinConfig, since_ms: int | None = None) -> Inspection:
    """Without what the learner of this variant had to go on without."""
    events = streams[EVENTS]
    return inspected(Gapped(events, foreseen(events, config.variant).gaps), streams[ITEMS], config, since_ms)


def _milliseconds(text: str) -> int:
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"--since is {text!r}: {error}") from None
    return round((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)


def _put_back(lines: Path, streams: dict[str, EventLog], now_ms: int) -> None:
    """Repaired events behind a Control that names the broken ones; repaired items as what they are. ValueError before any of it."""
    records = repaired(lines)
    for name, stream in streams.items():
        for record in records[name]:
            refuse_foreign_place(stream, record.partition, record.offset)
            if decode(record.value).HasField("item") != (name == ITEMS):
                raise ValueError(f"{lines}: what stands for partition {record.partition}, offset {record.offset} is none of the {name}")
    items = [Entry(record.key, record.value, record.partition) for record in records[ITEMS]]
    for entry in items:
        place(entry, streams[ITEMS].num_partitions)
    if records[EVENTS]:
        requeue_records(records[EVENTS], streams[EVENTS], now_ms)
    streams[ITEMS].append(items)
    typer.echo(f"put back {sum(map(len, records.values()))} records of {lines}", err=True)


def _kept(streams: dict[str, EventLog], found: Inspection, most: int = MAX_QUARANTINED) -> list[Kept]:
    """The newest of each stream with their bytes: each is a read of the log."""
    return [one for name, stream in streams.items() for one in fetched(name, found.quarantined[name][-most:], stream)]


def _listed(kept: list[Kept]) -> dict[str, Any]:
    """For people."""
    names = ("stream", "partition", "offset", "reason", "detail")
    return {"quarantined": [{name: getattr(one, name) for name in names} for one in kept]}
