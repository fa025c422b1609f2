"""The model as it stands now: decoder, tokenizer and counts, growing with the catalogue. Knows nothing of rewards or logs of events.

Also the items stream as a learner reads it: changes wait until a minute's cut passes them, so that what a version knows
is a function of the stream and the minute, not of when it was polled.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.artifact import Artifact
from models.content import ContentRule, FloatArray, first_vectors
from models.decoder import Decoder, DecoderConfig
from models.generate import novelty
from models.neighbours import let_in
from models.objective import Batch, ObjectiveConfig, asked_slots
from models.scoring import Scored, inner_contents
from models.successors import SuccessorCounts, Successors
from models.tokenizer import Tokenizer, TokenizerConfig
from models.trie import Trie
from recsys.catalogue import Catalogue, Rows, Vocabulary
from recsys.features import Shelf
from recsys.memory import MemoryConfig
from streaming.events import ItemChange, UnreadableRecord, decode
from streaming.log import EventLog

Optimizer = torch.optim.Optimizer


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of ids and decoder."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)


class LiveModel:
    """A decoder over the items of one catalogue. Rows it has no content for yet are let in by `admit`."""

    def __init__(
        self,
        catalogue: Catalogue,
        decoder: Decoder,
        tokenizer: Tokenizer,
        content: ContentRule,
        followed: SuccessorCounts,
    ) -> None:
        self.catalogue, self.decoder, self.tokenizer, self.content = catalogue, decoder, tokenizer, content
        self.followed = followed
        self._frozen: Successors | None = None
        self._shelf: Shelf | None = None
        self._contents: list[FloatArray] = []
        self._set_vocabulary()

    @staticmethod
    def built(config: ModelConfig, catalogue: Catalogue, memory: MemoryConfig, seed: int, neighbours_P2: Rows) -> "LiveModel":
        """New ids for all items of the catalogue (at least one), and untrained weights.

        `neighbours_P2` are pairs of rows that users met next to each other, both ways: all there is to tell items by of which
        neither text nor embedding is known.
        """
        items = catalogue.texts(range(1, len(catalogue.item_ids) + 1))
        content = ContentRule.fitted(items, config.tokenizer.content_dim)
        vectors_NC = first_vectors(content, items, neighbours_P2 - 1, config.tokenizer.seed)
        tokenizer = Tokenizer.built(config.tokenizer, vectors_NC)
        torch.manual_seed(seed)
        content_RC = torch.from_numpy(np.concatenate([np.zeros((1, vectors_NC.shape[1]), np.float32), vectors_NC]))
        decoder = Decoder(
            config.decoder,
            centroids=tokenizer.centroids,
            content_RC=content_RC,
            num_kinds=memory.num_kinds,
            against=memory.against_kinds,
        )
        return LiveModel(catalogue, decoder, tokenizer, content, SuccessorCounts())

    @staticmethod
    def of(artifact: Artifact, catalogue: Catalogue) -> "LiveModel":
        """The model of a version; `catalogue` must know its items in the same rows."""
        if tuple(catalogue.item_ids[: len(artifact.item_ids)]) != artifact.item_ids:
            raise ValueError("the items stream is not the one this version was made from: its first items differ")
        return LiveModel(catalogue, artifact.decoder, artifact.tokenizer, artifact.content, artifact.followed)

    @property
    def num_rows(self) -> int:
        """Item rows that have an id, row 0 included."""
        return len(self.tokenizer.ids_NK) + 1

    def admit(self, changed_rows: Iterable[int], optimizer: Optimizer | None = None) -> None:
        """Let in what the catalogue has learned: ids and content for new rows, new content for changed ones, zero else."""
        self._shelf = None
        first, end = self.num_rows, len(self.catalogue.item_ids) + 1
        known = sorted({row for row in changed_rows if row < first})
        if known:
            vectors_NC = self.content.vectors(self.catalogue.texts(known))
            self.decoder.content_RC[torch.tensor(known)] = torch.from_numpy(vectors_NC)
        if end > first:
            vectors_NC = self.content.vectors(self.catalogue.texts(range(first, end)))
            self.tokenizer.append(vectors_NC)
            self._begin_rows(torch.from_numpy(vectors_NC), first, optimizer)

    def grow_like(self, other: "LiveModel", optimizer: Optimizer | None = None) -> None:
        """Take the ids and content of `other`, which went on from here (a published id never moves). New rows begin as in `admit`."""
        first, end = self.num_rows, other.num_rows
        content_RC = other.decoder.content_RC[:end].clone()
        self.decoder.content_RC[:first] = content_RC[:first]
        self.tokenizer, self.content = other.tokenizer, other.content
        if end > first:
            self._begin_rows(content_RC[first:], first, optimizer)

    def _begin_rows(self, content_NC: Tensor, first: int, optimizer: Optimizer | None) -> None:
        """Rows from `first` on, whose ids are there already."""
        let_in(self.decoder, content_NC, first, optimizer)
        self._set_vocabulary()

    def shelf(self, items_offset: int) -> Shelf:
        """All rows in the tree of their ids, alive unless retired before `items_offset`; kept until that is something else."""
        alive_R = self._alive(items_offset)
        if self._shelf is None or not np.array_equal(self._shelf.alive_R, alive_R):
            self._shelf = Shelf(self.vocabulary, alive_R, Trie.built(self.tokenizer.ids_NK, ~alive_R[1:]))
            self._contents = inner_contents(self.decoder, self._shelf.trie)
        return self._shelf

    def scored(self, shelf: Shelf, batches: Sequence[Batch], config: ObjectiveConfig) -> Scored:
        """What scores the slates of these batches, of this shelf, by this objective, with the present weights, with gradient."""
        met_R = np.zeros(self.num_rows, bool)
        met_R[0] = True
        for batch in batches:
            siblings = shelf.trie.siblings(batch.slate_BS[asked_slots(batch, config)])
            for rows in (siblings, batch.slate_BS, batch.context.item_BL):
                met_R[rows] = True
        vectors = self.decoder.vectors(np.flatnonzero(met_R))
        return Scored(self.decoder, vectors, shelf.trie, self._contents, novelty(self.decoder, self.num_rows), self._successors())

    def artifact(self, facts: Mapping[str, Any]) -> Artifact:
        """The present state as a version; shares memory with it."""
        retired_N = ~self._alive(self.catalogue.next_offset)[1:]
        return Artifact(
            decoder=self.decoder,
            tokenizer=self.tokenizer,
            content=self.content,
            item_ids=tuple(self.vocabulary.item_ids),
            retired_N=retired_N,
            trie=Trie.built(self.tokenizer.ids_NK, retired_N),
            followed=self.followed,
            facts=facts,
        )

    def _alive(self, items_offset: int) -> npt.NDArray[np.bool_]:
        alive_R = np.ones(self.num_rows, bool)
        alive_R[0] = False
        retired = self.catalogue.retired_rows(items_offset)
        alive_R[retired[retired < self.num_rows]] = False
        return alive_R

    def count(self, source_P: Rows, row_P: Rows, weight_P: FloatArray, fade: float) -> None:
        """Count what followed what, after all that was counted before has faded."""
        self.followed = SuccessorCounts(self.followed.key_P, self.followed.count_P)  # an artifact may hold the one so far
        self.followed.fade(fade)
        self.followed.add(source_P, row_P, weight_P)
        self._frozen = None

    def _successors(self) -> Successors:
        """Frozen once until more is counted or items come."""
        if self._frozen is None or len(self._frozen.start_R) != self.num_rows + 1:
            self._frozen = self.followed.frozen(self.num_rows)
        return self._frozen

    def _set_vocabulary(self) -> None:
        self.vocabulary = Vocabulary(self.catalogue.item_ids[: self.num_rows - 1])


class ItemsFeed:
    """Reads the items stream ahead and hands it to a catalogue up to a cut of event time."""

    def __init__(self, log: EventLog, disorder_ms: int) -> None:
        self._log, self._disorder_ms = log, disorder_ms
        self._next_offset = 0
        self._waiting: deque[tuple[int, int, ItemChange]] = deque()
        """Offset, the time from which it counts, and what it says."""
        self.watermark_ms = -1
        """All changes before this time are here."""
        self.warm_start_until_ms: int | None = None
        """Set by a `warm_start` Control: everything before this time is history to start from."""

    def read(self) -> None:
        """Take what is in the stream now."""
        while records := self._log.read(0, self._next_offset):
            for record in records:
                self._next_offset = record.offset + 1
                self._take(record.offset, record.value)

    def has_before(self, cut_ms: int) -> bool:
        """Whether a change waits whose time is before the cut."""
        return bool(self._waiting) and self._waiting[0][1] < cut_ms

    @property
    def next_change_ms(self) -> int | None:
        """When the first change that waits counts from."""
        return self._waiting[0][1] if self._waiting else None

    def apply_before(self, cut_ms: int, catalogue: Catalogue) -> list[int]:
        """Apply waiting changes, in offset order, up to the first that is not before the cut; the rows they speak of."""
        rows = []
        while self.has_before(cut_ms):
            offset, _, change = self._waiting.popleft()
            rows.append(catalogue.apply(offset, change))
        return rows

    def apply_up_to(self, items_offset: int, catalogue: Catalogue) -> None:
        """Apply waiting changes that stand before `items_offset`: what a checkpoint had applied."""
        while self._waiting and self._waiting[0][0] < items_offset:
            offset, _, change = self._waiting.popleft()
            catalogue.apply(offset, change)

    def _take(self, offset: int, value: bytes) -> None:
        try:
            record = decode(value)
        except UnreadableRecord:
            return
        body = record.WhichOneof("body")
        if body == "item":
            # one that comes later than it should, by a clock that is behind, is not in minutes that may have been cut without it
            self._waiting.append((offset, max(record.item.event_time_ms, self.watermark_ms), record.item))
        elif body == "tick":
            self.watermark_ms = max(self.watermark_ms, record.tick.event_time_ms - self._disorder_ms)
        elif body == "control" and record.control.kind == "warm_start" and self.warm_start_until_ms is None:
            self.warm_start_until_ms = int(record.control.arguments["until_ms"])
