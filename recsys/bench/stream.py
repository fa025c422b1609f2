"""How fast the stream is joined: from a Kafka topic beside other stream processors, and from memory; what an open decision costs.

Knows nothing of what is learned from it. Times on the topic are of the wall clock; those from memory are processor time of
the one thread there is, so that other work on the machine does not count.
"""

import gc
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

from recsys.bench.stream_source import VARIANT, StreamSize, stream
from streaming.events import decode
from streaming.joiner import JoinConfig, Joiner
from streaming.kafka_log import KafkaLog
from streaming.log import Entry, LogRecord

OURS = "ours"
ALONE = "kafka-python alone"
QUIX, QUIX_JOIN, BYTEWAX = "quix", "quix join_interval", "bytewax"
CONFIG = JoinConfig(variant=VARIANT)
POLL = 10_000
FEW = 1_000
"""Records of a poll where its own memory must not count, or where it starts and ends does."""
TIMEOUT_S = 600


class Row(TypedDict):
    """One engine on the topic; None where it isn't installed."""

    engine: str
    events_per_s: float | None


def beside_others(bootstrap: str, decisions: int, seed: int) -> dict[str, Any]:
    """Every engine reads the same new topic once, its records written and once read before, so that none pays for being the first."""
    size = StreamSize(decisions=decisions, rate=300, seed=seed)
    topic = f"bench-stream-{time.time_ns():x}"
    entries = list(stream(size))
    log = _filled(bootstrap, topic, entries, size.partitions)
    _warmed_up()
    _filled(bootstrap, f"{topic}.left", [by_decision for entry in entries if (by_decision := _as_left(entry))], size.partitions).close()
    _filled(bootstrap, f"{topic}.right", [by_decision for entry in entries if (by_decision := _as_right(entry))], size.partitions).close()
    rates: dict[str, float | None] = {}
    job = {"engine": ALONE, "bootstrap": bootstrap, "topic": topic, "partitions": size.partitions, "records": len(entries)}
    with tempfile.TemporaryDirectory() as scratch:
        _measured(job)
        rates[OURS] = _joined_from(log, len(entries), Path(scratch))
        for engine in (ALONE, QUIX, QUIX_JOIN, BYTEWAX):
            records = sum(1 for entry in entries if _as_left(entry) or _as_right(entry)) if engine == QUIX_JOIN else len(entries)
            rates[engine] = _measured(job | {"engine": engine, "records": records, "state_dir": f"{scratch}/{engine}"})
    log.close()
    rows = [Row(engine=engine, events_per_s=rate) for engine, rate in rates.items()]
    ratios = {key: _ratio(rates[OURS], rates[engine]) for key, engine in RATIOS.items()}
    return {"rows": rows, **ratios, "records": len(entries)}


RATIOS = {"ratio_to_quix": QUIX, "ratio_to_quix_join": QUIX_JOIN, "share_of_consume_ceiling": ALONE}


def not_measured() -> dict[str, Any]:
    """The keys of `beside_others` without a broker."""
    return {"rows": [], **dict.fromkeys(RATIOS), "records": None}


def from_memory(decisions: int, seed: int) -> dict[str, float]:
    """Events and Examples a second through decoding, watermark, join and buckets, the better of two runs."""
    entries = stream(StreamSize(decisions=decisions, rate=300, partitions=1, seed=seed))
    records = [LogRecord(0, offset, entry.key, entry.value) for offset, entry in enumerate(entries)]
    gc.collect()
    gc.freeze()  # as a process does with what stays
    runs = [_joined(records) for _ in range(2)]
    seconds, examples = min(runs)
    return {"join_events_per_s": len(records) / seconds, "joined_per_s": examples / seconds}


def cost_ratio(rows: Sequence[dict[str, float]]) -> float | None:
    """Processor time an event at 10⁶ open decisions by that at 10⁴; None where the rows are of other numbers."""
    cost = {row["open_decisions"]: row["us_per_event"] for row in rows}
    return cost[10**6] / cost[10**4] if cost.keys() >= {10**4, 10**6} else None


def growth(open_decisions: Sequence[int], seed: int, counted: int = 40_000) -> dict[str, Any]:
    """What an open decision costs: bytes beyond its own logged ones, and processor time an event as they become more.

    Decisions come at the rate at which so many are open, each is shown and some are clicked; time is taken of about twice
    `counted` records, once as many decisions close as open.
    """
    rows = [_in_a_new_process(_grown, number, seed, counted) for number in open_decisions]
    return {
        "growth": rows,
        "bytes_per_open_decision": rows[-1]["bytes_per_open_decision"],
        "cost_ratio_1e6_to_1e4_open": cost_ratio(rows),
        "joiner_snapshot_s": rows[-1]["snapshot_s"],
        "joiner_block_ms": rows[-1]["block_ms"],
        "joiner_restore_s": rows[-1]["restore_s"],
    }


def _in_a_new_process(measure: Callable[[int, int, int], dict[str, float]], *arguments: int) -> dict[str, float]:
    """Where no memory was freed before that could be used again; with the collector as our processes set it."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=gc.set_threshold, initargs=gc.get_threshold()) as process:
        return process.submit(measure, *arguments).result()


def _grown(number: int, seed: int, counted: int) -> dict[str, float]:
    span_s = (CONFIG.open_ms + CONFIG.disorder_ms) / 1000
    rate = number / span_s
    bare = StreamSize(decisions=number, rate=rate, shown=0, partitions=1, seed=seed)
    _warmed_up()
    joiner, logged = Joiner(CONFIG, 1), 0
    before = _resident_bytes()
    for records in _polls(islice(stream(bare), number), FEW):
        logged += sum(len(record.value) for record in records)
        joiner.apply(0, records)
    bytes_each = (_resident_bytes() - before - logged) / number
    started = time.perf_counter()
    joiner.snapshot_parts()
    block_ms = 1000 * (time.perf_counter() - started)
    started = time.perf_counter()
    snapshot = joiner.snapshot()
    snapshot_s = time.perf_counter() - started
    started = time.perf_counter()
    Joiner.restore(CONFIG, snapshot)
    restore_s = time.perf_counter() - started
    del snapshot, joiner
    return {
        "open_decisions": number,
        "bytes_per_open_decision": bytes_each,
        "us_per_event": _cost_us(replace(bare, decisions=number + counted, shown=1.0), counted),
        "block_ms": block_ms,
        "snapshot_s": snapshot_s,
        "restore_s": restore_s,
    }


def _warmed_up() -> None:
    """Have loaded what is compiled: that is neither an event's cost nor an open decision's."""
    joiner = Joiner(CONFIG, 1)
    for records in _polls(stream(StreamSize(decisions=FEW, rate=300, partitions=1))):
        joiner.apply(0, records)
        _take(joiner)


def _cost_us(size: StreamSize, counted: int) -> float:
    """Processor time an event, of those that come while as many decisions close as open."""
    joiner, polls = Joiner(CONFIG, 1), list(_polls(stream(size), FEW))
    last = len(polls) - 2  # the last one closes all
    first = last - counted * 2 // FEW
    for records in polls[:first]:
        joiner.apply(0, records)
        _take(joiner)
    gc.collect()
    gc.freeze()
    begun = time.process_time()
    for records in polls[first:last]:
        joiner.apply(0, records)
        _take(joiner)
    return 1e6 * (time.process_time() - begun) / sum(len(records) for records in polls[first:last])


def _polls(entries: Iterator[Entry], size: int = POLL) -> Iterator[list[LogRecord]]:
    offset = 0
    while batch := list(islice(entries, size)):
        yield [LogRecord(0, offset + at, entry.key, entry.value) for at, entry in enumerate(batch)]
        offset += len(batch)


def _joined(records: Sequence[LogRecord]) -> tuple[float, int]:
    joiner, examples = Joiner(CONFIG, 1), 0
    begun = time.process_time()
    for at in range(0, len(records), POLL):
        joiner.apply(0, records[at : at + POLL])
        examples += _take(joiner)
    return time.process_time() - begun, examples


def _take(joiner: Joiner) -> int:
    taken = 0
    while (bucket := joiner.take_bucket()) is not None:
        taken += len(bucket.examples)
    return taken


def _joined_from(log: KafkaLog, num_records: int, directory: Path) -> float:
    """Events a second from the topic through the join, its state written and synced with every minute of world time."""
    joiner, done = Joiner(CONFIG, log.num_partitions), 0
    log.end_offsets()  # connected, as the others are when their first message comes
    begun = time.perf_counter()
    while done < num_records:
        for partition in range(log.num_partitions):
            records = log.read(partition, joiner.next_offset(partition), POLL)
            joiner.apply(partition, records)
            done += len(records)
        if _take(joiner):
            _write(joiner.snapshot_parts(), directory / "joiner.pb")
    if not joiner.books().balanced:
        raise RuntimeError(f"the books do not balance: {joiner.books()}")
    return num_records / (time.perf_counter() - begun)


def _write(parts: Sequence[bytes], path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _filled(bootstrap: str, topic: str, entries: Sequence[Entry], partitions: int) -> KafkaLog:
    log = KafkaLog(bootstrap, topic, partitions, timeout_s=60)
    for at in range(0, len(entries), POLL):
        log.append(entries[at : at + POLL])
    return log


def _as_left(entry: Entry) -> Entry | None:
    """A decision, keyed by its id."""
    record = decode(entry.value)
    return Entry(record.decision.decision_id.encode(), entry.value) if record.HasField("decision") else None


def _as_right(entry: Entry) -> Entry | None:
    """An exposure or feedback, keyed by its decision's id."""
    record = decode(entry.value)
    if not record.HasField("event"):
        return None
    spoken = record.event.exposure if record.event.HasField("exposure") else record.event.feedback
    return Entry(spoken.decision_token.partition(".")[0].encode(), entry.value)


def _measured(job: dict[str, Any]) -> float | None:
    """Events a second of one engine; None where it isn't installed. RuntimeError says why it failed."""
    command = [sys.executable, "-m", "recsys.bench.stream_engines"]
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    if "ModuleNotFoundError" in done.stderr:
        return None
    if done.returncode:
        raise RuntimeError(f"{job['engine']} failed: {done.stderr.strip().splitlines()[-1:]}")
    figures = json.loads(done.stdout.splitlines()[-1])
    return float(figures["events"] / figures["seconds"])


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours and theirs else None


def _resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
