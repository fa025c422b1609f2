"""What only Kafka can do to a log: partitions raised under it, other programs' batches, bytes that are not what was written."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaProducer

from streaming.kafka_log import METADATA_AGE_MS, KafkaLog
from streaming.log import Entry, LogRecord, LogUnavailable
from tests.broker import Broker
from tests.serving import wait_for


@pytest.fixture
def topic() -> str:
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def log(broker: Broker, topic: str) -> Iterator[KafkaLog]:
    with closing(KafkaLog(broker.bootstrap, topic)) as found:
        yield found


def test_partitions_raised_while_it_runs_are_noticed(broker: Broker, topic: str, log: KafkaLog) -> None:
    """By then all of its keys are still where they were; from then on nothing is written or read."""
    assert METADATA_AGE_MS <= 5_000
    log.append([Entry(b"ann", b"before")])
    log.end_offsets()
    with closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap)) as admin:
        admin.create_partitions({topic: 6})
    calls: list[Callable[[], object]] = [lambda: log.append([Entry(b"ann", b"after")]), lambda: log.read(0, 0), log.end_offsets]
    for call in calls:
        wait_for(lambda call=call: refused(call) == f"kafka://{broker.bootstrap}/{topic} has 6 partitions and was opened with 4")
    with closing(KafkaLog(broker.bootstrap, topic, 6)) as wider:
        assert wider.end_offsets()[4:] == [0, 0]


def refused(call: Callable[[], object]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


def test_batches_of_other_programs(broker: Broker, topic: str, log: KafkaLog) -> None:
    """Compressed, with headers, without key or value; read from the middle of each."""
    log.end_offsets()  # makes the topic
    for compression in (None, "gzip"):
        with closing(KafkaProducer(bootstrap_servers=broker.bootstrap, compression_type=compression, linger_ms=500)) as producer:
            for n in range(5):
                producer.send(topic, key=b"k" if n else None, value=b"%d" % n if n < 4 else None, headers=[("h", b"x" * n)], partition=1)
            producer.flush()
    expected = [LogRecord(1, n, b"k" if n % 5 else b"", b"%d" % (n % 5) if n % 5 < 4 else b"") for n in range(10)]
    for offset in range(11):
        for most in (2, 10_000):
            assert log.read(1, offset, most) == expected[offset : offset + most]


def test_a_flipped_byte_is_never_read_as_a_record(broker: Broker, topic: str) -> None:
    if broker.node is None:
        pytest.skip("this broker's files aren't ours to break")
    with closing(KafkaLog(broker.bootstrap, topic, 1, timeout_s=1)) as log:
        log.append([Entry(b"", b"good", 0)])
        log.append([Entry(b"", b"a value to break", 0)])
        broker.node.stop()
        segment = segment_of(broker.node.directory, topic)
        segment.write_bytes(segment.read_bytes().replace(b"a value to break", b"a value to breaK"))
        broker.node.start()
        wait_for(lambda: is_there(log))
        assert [record.value for record in log.read(0, 0, 1)] == [b"good"]
        with pytest.raises(LogUnavailable, match="partition 0: the batch at offset 1 is not what was written"):
            log.read(0, 1)


def is_there(log: KafkaLog) -> bool:
    try:
        return log.end_offsets() == [2]
    except LogUnavailable:
        return False


def segment_of(directory: Path, topic: str) -> Path:
    (found,) = directory.glob(f"node-1/data/{topic}-0/*.log")
    return found
