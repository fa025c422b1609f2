"""Record batches as Kafka stores them, unpacked beside kafka-python's own unpacking."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from streaming.log import LogRecord
from streaming.record_batch import COUNT_AT, RECORDS_AT, BrokenBatch, unpacked

SIZES = [0, 1, 62, 63, 64, 65, 127, 128, 8_190, 8_192, 1_000_000]
"""Lengths whose coded number has one byte, two, three and four."""
BYTES = st.one_of(st.none(), st.binary(max_size=70), st.sampled_from(SIZES).map(bytes))
HEADERS = st.lists(st.tuples(st.text(max_size=3), st.one_of(st.none(), st.binary(max_size=3))), max_size=2)
RECORDS = st.lists(st.tuples(st.integers(0, 2**45), BYTES, BYTES, HEADERS), min_size=1, max_size=5)


def batch_of(records: list[tuple[int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]], first_offset: int = 0) -> bytes:
    builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 1 << 30)
    for number, (time_ms, key, value, headers) in enumerate(records):
        assert builder.append(number, time_ms, key, value, headers) is not None
    return first_offset.to_bytes(8) + bytes(builder.build())[8:]


@settings(max_examples=150, deadline=None)
@given(RECORDS, st.integers(0, 2**60))
def test_what_kafka_python_unpacks_is_unpacked(records: list, first_offset: int) -> None:
    batch = batch_of(records, first_offset)
    theirs = [LogRecord(3, record.offset, record.key or b"", record.value or b"") for record in DefaultRecordBatch(batch)]
    assert unpacked(batch, 3) == theirs
    assert [record.offset for record in theirs] == [*range(first_offset, first_offset + len(records))]


def test_many_records_have_longer_offsets() -> None:
    batch = batch_of([(n, b"%d" % n, b"v", []) for n in range(20_000)])
    assert [(record.offset, record.key) for record in unpacked(batch, 0)] == [(n, b"%d" % n) for n in range(20_000)]


@settings(max_examples=150, deadline=None)
@given(RECORDS, st.data())
def test_bytes_that_are_no_batch_are_refused_or_read_as_records(records: list, data: st.DataObject) -> None:
    """With a checksum that is right for them, as only a faulty producer makes; whatever they are, nothing else is raised."""
    batch = bytearray(batch_of(records)[:5000])
    for at in data.draw(st.lists(st.integers(COUNT_AT + 2, len(batch) - 1), max_size=4)):
        batch[at] = data.draw(st.integers(0, 255))
    try:
        found = unpacked(bytes(batch), 0)
    except BrokenBatch:
        return
    assert len(found) == int.from_bytes(batch[COUNT_AT:RECORDS_AT])


@pytest.mark.parametrize("cut", [1, 3, 30])
def test_a_batch_cut_short_is_refused(cut: int) -> None:
    batch = batch_of([(0, b"key", bytes(20), []), (0, b"key", bytes(20), [])])
    with pytest.raises(BrokenBatch, match="the batch at offset 0 does not end with its last record"):
        unpacked(batch[:-cut], 0)
