"""Items as of any offset of their stream, and the way from names to rows and back."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.catalogue import Catalogue, Vocabulary, change_of, item_key
from recsys.live_model import ItemsFeed
from streaming.events import Item, ItemChange, Tick, UnreadableRecord, encode
from streaming.log import Entry, MemoryLog

EXAMPLES = settings(max_examples=80, deadline=None)

seeds = st.integers(0, 2**32 - 1)
Stream = list[tuple[int, Item]]


def random_stream(seed: int, length: int, num_items: int = 0) -> Stream:
    """Items that come, change, go and are told of again, at offsets that rise by more than one at times."""
    random = np.random.default_rng(seed)
    stream, offset = [], int(random.integers(3))
    for _ in range(length):
        item = Item(
            item_id=f"i{random.integers(num_items or max(2, length // 3))}", title=f"t{random.integers(3)}", retired=random.random() < 0.15
        )
        for key in "ab":
            if random.random() < 0.6:
                item.attributes[key] = str(random.integers(2))
        stream.append((offset, item))
        offset += int(random.choice([1, 1, 4]))
    return stream


def catalogue_of(stream: Stream) -> Catalogue:
    catalogue = Catalogue()
    for offset, item in stream:
        catalogue.apply(offset, ItemChange(item=item))
    return catalogue


def before(stream: Stream, offset: int) -> Stream:
    return [entry for entry in stream if entry[0] < offset]


def last_of(stream: Stream) -> dict[str, Item]:
    """Each item as last told of, in order of first appearance."""
    return {item.item_id: item for _, item in stream}


@EXAMPLES
@given(seeds, st.integers(1, 30))
def test_rows_attributes_and_retirement_are_as_of_the_offset(seed: int, length: int) -> None:
    stream = random_stream(seed, length)
    catalogue = catalogue_of(stream)
    row_of = {item_id: row for row, item_id in enumerate(last_of(stream), 1)}
    assert catalogue.item_ids == list(row_of)
    assert catalogue.next_offset == stream[-1][0] + 1
    for offset in range(stream[-1][0] + 2):
        known = last_of(before(stream, offset))
        assert catalogue.num_rows(offset) == len(known) + 1
        retired = {row_of[item.item_id] for _, item in before(stream, offset) if item.retired}
        assert set(catalogue.retired_rows(offset).tolist()) == retired
        for where in ({}, {"a": "0"}, {"a": "1", "b": "0"}, {"b": "nowhere"}, {"nothing": ""}):
            matching = [row_of[item_id] for item_id, item in known.items() if where.items() <= dict(item.attributes).items()]
            assert catalogue.matching_rows(where, offset).tolist() == sorted(matching)


@EXAMPLES
@given(seeds, st.integers(1, 30))
def test_texts_are_what_was_told_last(seed: int, length: int) -> None:
    stream = random_stream(seed, length)
    catalogue = catalogue_of(stream)
    for item_id, item in last_of(stream).items():
        (text,) = catalogue.texts([catalogue.row_of(item_id)])
        assert (text.item_id, text.title, text.attributes) == (item_id, item.title, dict(item.attributes))
    assert catalogue.row_of("never told of") == 0


def test_a_retired_item_stays_retired_and_counts_once() -> None:
    catalogue = catalogue_of([(0, Item(item_id="a", retired=True)), (1, Item(item_id="a")), (2, Item(item_id="a", retired=True))])
    assert catalogue.retired_rows(3).tolist() == [1]
    assert catalogue.retired_rows(0).tolist() == []


def test_applying_says_the_row_and_skipping_moves_the_offset() -> None:
    catalogue = Catalogue()
    assert [catalogue.apply(n, ItemChange(item=Item(item_id=item_id))) for n, item_id in enumerate("aba")] == [1, 2, 1]
    catalogue.skip(9)
    assert catalogue.next_offset == 10
    assert catalogue.num_rows(10) == 3


def test_an_embedding_is_kept_with_its_item() -> None:
    catalogue = catalogue_of([(0, Item(item_id="a", embedding=[0.5, 2.0])), (1, Item(item_id="b", title="words"))])
    assert [tuple(text.embedding) for text in catalogue.texts([1, 2])] == [(0.5, 2.0), ()]


def test_a_record_of_the_stream_is_a_change_a_tick_or_unreadable() -> None:
    change = ItemChange(event_time_ms=5, item=Item(item_id="a", title="t"))
    assert change_of(encode(change, 6)) == change
    assert change_of(encode(Tick(event_time_ms=5), 6)) is None
    with pytest.raises(UnreadableRecord):
        change_of(b"\xff")


# Vocabulary -----------------------------------------------------------------------------------------------------------


@EXAMPLES
@given(st.lists(st.text(max_size=8), unique=True, max_size=30), st.lists(st.text(max_size=8), max_size=10))
def test_keys_lead_back_to_rows_and_unknown_ones_to_none(item_ids: list[str], asked: list[str]) -> None:
    vocabulary = Vocabulary(item_ids)
    row_of = {item_id: row for row, item_id in enumerate(item_ids, 1)}
    everything = [*item_ids, *asked]
    keys = np.array([*map(item_key, everything), 0, -1, 2**63 - 1, -(2**63)], np.int64)
    assert vocabulary.rows(keys).tolist() == [row_of.get(item_id, 0) for item_id in everything] + [0] * 4
    assert vocabulary.known_rows(everything).tolist() == [row_of[item_id] for item_id in everything if item_id in row_of]
    assert vocabulary.known_rows(everything).dtype == np.int64
    assert vocabulary.num_rows == len(item_ids) + 1


def test_keys_keep_their_shape() -> None:
    vocabulary = Vocabulary(["a", "b"])
    keys = np.array([[item_key("b"), 7, item_key("a")], [0, 0, item_key("b")]])
    assert vocabulary.rows(keys).tolist() == [[2, 0, 1], [0, 0, 2]]
    assert Vocabulary([]).rows(keys).tolist() == [[0] * 3] * 2


def test_two_items_of_one_key_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="item 'a' has the same key as another item; one of the two must be renamed"):
        Vocabulary(["a", "b", "a"])


@pytest.mark.parametrize(("item_id", "key"), [("a", 3405396810240292928), ("", -5426141060434712860)])
def test_keys_are_what_they_were(item_id: str, key: Any) -> None:
    """Pinned: memory, checkpoints and archives name items by them."""
    assert item_key(item_id) == key


def test_a_change_that_comes_late_counts_from_when_it_came() -> None:
    """A minute that was cut without it stays so, for a replay too, which knows of it before."""
    log = MemoryLog(1)
    entries = [Tick(event_time_ms=100_000), ItemChange(event_time_ms=50_000, item=Item(item_id="late"))]
    log.append([Entry(b"", encode(body, 100_000)) for body in entries])
    feed = ItemsFeed(log, disorder_ms=2_000)
    feed.read()
    assert feed.next_change_ms == feed.watermark_ms == 98_000
    assert not feed.has_before(98_000)
    assert feed.has_before(98_001)
