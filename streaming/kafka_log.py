"""The log for production: a topic of Apache Kafka. The one importer of `kafka`.

Knows nothing of what the bytes mean, and keeps no place in the broker: readers say where they are (`assign` + `seek`,
no consumer group). Records carry the broker's idea of time in their headers; nobody here reads it.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError, KafkaConfigurationError, KafkaError, OffsetOutOfRangeError, TopicAlreadyExistsError
from kafka.net.compat import KafkaNetClient

from streaming.log import Entry, LogChanged, LogRecord, LogUnavailable, OffsetGone, Position, place
from streaming.record_batch import BrokenBatch, unpacked

# A value of 1,000,000 bytes with its key and the batch around it; the broker's default of 1,048,588 leaves little.
MAX_BATCH_BYTES = 2 * 1024 * 1024
LONGEST_MS = 2**63 - 1
# World time may lie years from the broker's wall clock, and the log is what everything is rebuilt from.
TOPIC_CONFIGS = {
    "cleanup.policy": "delete",
    "retention.ms": "-1",
    "message.timestamp.before.max.ms": str(LONGEST_MS),
    "message.timestamp.after.max.ms": str(LONGEST_MS),
    "max.message.bytes": str(MAX_BATCH_BYTES),
}
SECURITY_FILES = frozenset({"ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_crlfile"})
SECURITY_SETTINGS = SECURITY_FILES | {
    "security_protocol",
    "ssl_check_hostname",
    "ssl_ciphers",
    "ssl_password",
    "sasl_mechanism",
    "sasl_plain_username",
    "sasl_plain_password",
    "sasl_kerberos_service_name",
    "sasl_kerberos_domain_name",
}
SECURITY_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
POLL_MS = 100
METADATA_AGE_MS = 5_000
"""How old what is known of a topic may get: by then somebody else's change of its partitions is noticed."""


class KafkaLog:
    """One topic of the cluster at `bootstrap` (HOST:PORT, several with commas), created by the first call when absent.

    `security` holds kafka-python's settings by name (security_protocol, ssl_*, sasl_*), all as text. A topic made here
    has TOPIC_CONFIGS and the broker's default replication factor. No call waits for the broker much longer than
    `timeout_s`: then LogUnavailable; a later call finds the broker again by itself.
    ValueError for settings that make no sense; LogChanged by any call for a topic with another number of partitions.
    With `existing` nothing is made: ValueError by any call when there is no such topic.
    """

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        num_partitions: int = 4,
        *,
        security: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
        existing: bool = False,
    ) -> None:
        if num_partitions < 1:
            raise ValueError(f"num_partitions is {num_partitions}; at least 1")
        if timeout_s <= 0:
            raise ValueError(f"timeout_s is {timeout_s}; more than 0")
        self.num_partitions, self._existing = num_partitions, existing
        self._bootstrap, self._topic, self._timeout_s = bootstrap, topic, timeout_s
        self._places = [TopicPartition(topic, partition) for partition in range(num_partitions)]
        self._known_ends = [0] * num_partitions
        self._connection = self._connection_settings(security or {})
        self._producer: Any = None  # opened by the first append, and again by the one after a failure
        self._consumer: Any = None  # opened by the first question
        self._producer_lock = threading.Lock()
        self._consumer_lock = threading.Lock()  # a consumer isn't safe between threads

    def append(self, entries: Sequence[Entry]) -> list[Position]:
        """See EventLog. After LogUnavailable some of the entries may be in the log all the same."""
        places = [place(entry, self.num_partitions) for entry in entries]
        deadline_s = time.monotonic() + self._timeout_s
        with self._producing() as producer:
            # All sent before any is waited for: one round trip for the batch, and the producer keeps a partition's order.
            futures = [
                producer.send(self._topic, key=entry.key, value=entry.value, partition=partition)
                for entry, partition in zip(entries, places, strict=True)
            ]
            sent = [future.get(timeout=max(0.0, deadline_s - time.monotonic())) for future in futures]
        return [Position(metadata.partition, metadata.offset) for metadata in sent]

    def read(self, partition: int, offset: int, max_records: int = 10_000) -> list[LogRecord]:
        """See EventLog. At the end it asks the broker (1 ms), so that it sees every record acknowledged to anybody."""
        here = self._places[partition]
        with self._reading():
            if offset >= self._known_ends[partition]:
                (self._known_ends[partition],) = self._consumer.end_offsets([here], timeout_ms=self._timeout_ms).values()
            if offset >= self._known_ends[partition]:
                return []
            try:
                return self._fetch(partition, offset, self._known_ends[partition], max_records)
            except OffsetOutOfRangeError as error:
                begin_offset = self._begin_offsets()[partition]
                if offset < begin_offset:
                    raise OffsetGone(self.name, partition, offset, begin_offset) from error
                raise LogUnavailable(f"{self.name}: partition {partition} lost records; offset {offset} was in it") from error

    def begin_offsets(self) -> list[int]:
        """See EventLog."""
        with self._reading():
            return self._begin_offsets()

    def end_offsets(self) -> list[int]:
        """See EventLog."""
        with self._reading():
            offsets = self._consumer.end_offsets(self._places, timeout_ms=self._timeout_ms)
        return [offsets[place] for place in self._places]

    @property
    def name(self) -> str:
        """See EventLog."""
        return f"kafka://{self._bootstrap}/{self._topic}"

    def close(self) -> None:
        """See EventLog."""
        if self._producer is not None:
            _abandon(self._producer, self._timeout_s)
        if self._consumer is not None:
            self._consumer.close(timeout_ms=self._timeout_ms)

    @property
    def _timeout_ms(self) -> int:
        return max(1, round(self._timeout_s * 1000))

    def _connection_settings(self, security: Mapping[str, str]) -> dict[str, Any]:
        """What every client of this log is given to reach the brokers."""
        unknown = sorted(set(security) - SECURITY_SETTINGS)
        if unknown:
            raise ValueError(f"unknown Kafka security settings {unknown}; known are {sorted(SECURITY_SETTINGS)}")
        for name in sorted(SECURITY_FILES & set(security)):
            if not Path(security[name]).is_file():
                raise ValueError(f"{name}: no file {security[name]!r}")
        # The client itself would try to connect with any other until it gives up.
        if security.get("security_protocol", SECURITY_PROTOCOLS[0]) not in SECURITY_PROTOCOLS:
            raise ValueError(f"security_protocol is {security['security_protocol']!r}; one of {', '.join(SECURITY_PROTOCOLS)}")
        settings: dict[str, Any] = dict(security)
        if "ssl_check_hostname" in security:
            settings["ssl_check_hostname"] = _truth("ssl_check_hostname", security["ssl_check_hostname"])
        return {
            "bootstrap_servers": self._bootstrap.split(","),
            "bootstrap_timeout_ms": self._timeout_ms,
            "request_timeout_ms": self._timeout_ms,
            "reconnect_backoff_max_ms": 1000,  # a broker that comes back is found within about a second
            "metadata_max_age_ms": METADATA_AGE_MS,
            **settings,
        }

    def _open_topic(self) -> None:
        """Create the topic when absent, unless it must be there, and check its partitions."""
        with _closing_failed(self._connection) as settings:
            admin = KafkaAdminClient(**settings)
        with contextlib.closing(admin):
            if not admin.describe_topics([self._topic])[0]["partitions"]:
                if self._existing:
                    raise ValueError(f"{self.name}: there is no such log")
                # Another process may create it at the same moment.
                with contextlib.suppress(TopicAlreadyExistsError):
                    admin.create_topics({self._topic: {"num_partitions": self.num_partitions, "configs": TOPIC_CONFIGS}})
                admin.wait_for_topics([self._topic], timeout_ms=self._timeout_ms)
            stored = len(admin.describe_topics([self._topic])[0]["partitions"])
        self._check(stored)

    def _check(self, num_partitions: int) -> None:
        if num_partitions != self.num_partitions:
            raise LogChanged(f"{self.name} has {num_partitions} partitions and was opened with {self.num_partitions}")

    def _open_producer(self) -> Any:
        with _closing_failed(self._connection) as settings:
            return KafkaProducer(
                **settings,
                acks="all",
                enable_idempotence=True,
                max_block_ms=self._timeout_ms,
                delivery_timeout_ms=self._timeout_ms,
                batch_size=MAX_BATCH_BYTES // 8,
                max_request_size=MAX_BATCH_BYTES,
                allow_auto_create_topics=False,
                metrics_enabled=False,
            )

    def _open_consumer(self) -> Any:
        with _closing_failed(self._connection) as settings:
            consumer = KafkaConsumer(
                **settings,
                group_id=None,
                enable_auto_commit=False,
                auto_offset_reset="none",
                # The broker answers at once: a waiting fetch would hold up every other question on its connection.
                fetch_max_wait_ms=0,
                max_partition_fetch_bytes=MAX_BATCH_BYTES,
                # A fetch names the one partition being read; a session would have to be told of each change of it.
                enable_incremental_fetch_sessions=False,
                allow_auto_create_topics=False,
                metrics_enabled=False,
            )
        consumer._fetcher.PartitionRecords = _Records
        return consumer

    def _fetch(self, partition: int, offset: int, end_offset: int, max_records: int) -> list[LogRecord]:
        """Records of offset..end_offset, which the broker is known to have; LogUnavailable when it doesn't give them."""
        here = self._places[partition]
        # One partition at a time, by assignment: with all assigned and the others paused, the client can wait for itself
        # (what it had fetched of a paused partition keeps that partition from being fetched after a seek).
        if here not in self._consumer.assignment():
            self._consumer.assign([here])
        self._consumer.seek(here, offset)
        deadline_s = time.monotonic() + self._timeout_s
        records: list[LogRecord] = []
        while offset < end_offset and len(records) < max_records:
            polled = self._consumer.poll(timeout_ms=POLL_MS, max_records=max_records - len(records)).get(here, ())
            records += polled
            # Moves over offsets without a record too: the marks of other people's transactions.
            offset = self._consumer.position(here, timeout_ms=self._timeout_ms)
            if not polled and offset < end_offset and time.monotonic() > deadline_s:
                raise LogUnavailable(f"{self.name}: no answer for partition {partition}, offset {offset}, in {self._timeout_s} s")
        return records

    def _begin_offsets(self) -> list[int]:
        offsets = self._consumer.beginning_offsets(self._places, timeout_ms=self._timeout_ms)
        return [offsets[place] for place in self._places]

    @contextlib.contextmanager
    def _producing(self) -> Iterator[Any]:
        """The producer, shared between threads. One that failed is given up with all it holds.

        It would send those records later and so twice, and after a record that expired once sent it never sends again.
        """
        with self._unavailable():
            with self._held(self._producer_lock):
                if self._producer is None:
                    self._open_topic()
                    self._producer = self._open_producer()
                producer = self._producer
            try:
                self._check(len(producer.partitions_for(self._topic)))
                yield producer
            except KafkaError:
                with self._producer_lock:
                    if self._producer is producer:
                        self._producer = None
                _abandon(producer, self._timeout_s)
                raise

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Alone with the consumer."""
        with self._unavailable(), self._held(self._consumer_lock):
            if self._consumer is None:
                self._open_topic()
                self._consumer = self._open_consumer()
            self._check(len(self._consumer.partitions_for_topic(self._topic)))
            yield

    @contextlib.contextmanager
    def _held(self, lock: threading.Lock) -> Iterator[None]:
        """The queue before a broker that is away isn't waited for."""
        if not lock.acquire(timeout=self._timeout_s):
            raise LogUnavailable(f"{self.name}: another call has been waiting for {self._timeout_s} s")
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _unavailable(self) -> Iterator[None]:
        try:
            yield
        except KafkaConfigurationError as error:
            raise ValueError(f"{self.name}: {error}") from error
        except (KafkaError, BrokenBatch) as error:
            raise LogUnavailable(f"{self.name}: {error}") from error


class _Records(Fetcher.PartitionRecords):  # type: ignore[misc]  # kafka-python has no types
    """What was fetched of a partition, as LogRecords: kafka-python makes an object of 13 fields of each, which is most of its time."""

    def _unpack_records(self, tp: TopicPartition, records: Any, *_: Any) -> Iterator[LogRecord]:
        while (batch := records.next_batch()) is not None:
            if not batch.validate_crc():
                raise CorruptRecordError(f"partition {tp.partition}: the batch at offset {batch.base_offset} is not what was written")
            if batch.magic < 2 or batch.compression_type:
                found = [LogRecord(tp.partition, record.offset, record.key or b"", record.value or b"") for record in batch]
            else:
                found = unpacked(bytes(batch._buffer), tp.partition)
            if not (batch.magic >= 2 and batch.is_control_batch):  # marks of other people's transactions
                yield from found
            if batch.magic >= 2:
                self.next_fetch_offset = batch.next_offset
        self.drain()

    def take(self, n: int | None = None) -> list[LogRecord]:
        """The next `n` records at most."""
        taken: list[LogRecord] = super().take(n)
        if taken:
            self.next_fetch_offset = max(self.next_fetch_offset, taken[-1].offset + 1)
        return taken


def _truth(name: str, text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ValueError(f"{name} is {text!r}; true or false")
    return text.lower() == "true"


def _abandon(producer: Any, timeout_s: float) -> None:
    """Close a producer without sending what it still holds; its own `close` waits for that, for ever when it is stuck."""
    producer._sender.force_close()
    producer._sender.join(timeout_s)
    producer.close(timeout=0)


@contextlib.contextmanager
def _closing_failed(connection: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Settings for one client. A client whose constructor raises leaves its thread and sockets behind: they are closed here."""
    opened: list[Any] = []

    def open_client(**settings: Any) -> Any:
        opened.append(KafkaNetClient(**settings))
        return opened[-1]

    try:
        yield {**connection, "kafka_client": open_client}
    except KafkaError:
        for client in opened:
            client.close()
        raise
