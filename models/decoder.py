"""The one model: a user's memory becomes keys and values once, and the slate is decoded slot by slot and code by code.

Knows nothing of sampling, legality, rewards or events. A lazy decoder (OneRec-V2, arXiv:2508.20900): the context is not
encoded by a stack; each memory row gives one key and one value, which all layers share, so appending a row changes no
other. The slots attend to the context and to the slots before them (parallel blocks: one matrix in, one out, Wang and
Komatsuzaki 2021). A small step per level turns a slot's state into the state of the next code given the codes before it.

Shapes: B requests, L history, X request-context features, S slots, K levels, V codes per level, D width, H heads,
R item rows (0 = unknown), C content dimensions, Q any set of (request, slot) pairs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.affinity import Affinity
from models.content import FloatArray
from models.embeddings import ItemTable, capacity_for, grow_rows, wipe_rows
from models.encounters import met
from models.paces import Paces
from models.silence import ROW_SCALE, Silence
from models.surprise import Surprise
from models.trie import IntArray
from models.value import Record, ValueLevel, counted
from models.vectors import Vectors, item_vectors, run_of

LOGIT_SCALE = 1 / 0.07
LOGIT_SCALE_MAX = 40.0
NORM_EPS = 1e-6
AGES = 16
"""Buckets of how many rows ago something happened, for what a row adds to the logits of its own item and of items like it."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes of the decoder."""

    width: int = 64
    layers: int = 2
    heads: int = 4
    history: int = 64
    """L: memory rows that are read, the newest."""
    reach: int = 4
    """Rows that a row's key and value are made of: itself and those just before it."""
    max_slots: int = 100
    gaps: int = 16
    """Buckets of the time between a row and the row before."""
    features: int = 512
    """Buckets of the request's context entries; the first is padding."""
    dropout: float = 0.1
    """Of what a block adds, while training."""
    row_dropout: float = 0.0
    """Of what a row says, while training."""

    def __post_init__(self) -> None:
        limits = {"width": (8, 4096), "layers": (1, 64), "heads": (1, 64), "history": (1, 4096), "reach": (1, 64), "max_slots": (1, 100)}
        for name, (low, high) in (
            limits | {"gaps": (2, 256), "features": (2, 1_000_000), "dropout": (0, 0.9), "row_dropout": (0, 0.9)}
        ).items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"decoder.{name} is {value}; it must be {low}..{high}")
        if self.width % self.heads:
            raise ValueError(f"decoder.width is {self.width}; it must be a multiple of decoder.heads, {self.heads}")

    @property
    def rows_read(self) -> int:
        """Memory rows that a context holds, at most: those attended to, and those that only colour the first of them."""
        return self.history + self.reach - 1


@dataclass(frozen=True)
class Context:
    """What the policy saw, int64. Memory rows are right-aligned: the newest is last; a padded row has kind 0.

    Up to `history + reach - 1` rows: those before the newest `history` are not attended to, they only colour the ones behind them,
    so that a row is the same whether it is read fresh or was kept.
    """

    item_BL: IntArray
    kind_BL: IntArray
    gap_BL: IntArray
    feature_BX: IntArray
    """Buckets of the request's context entries, padded with 0."""


@dataclass(frozen=True)
class Memory:
    """Keys and values of the context, (B, H, L + 1, D / H), shared by all layers, and the attention bias (B, H, 1, L + 1)."""

    keys: Tensor
    values: Tensor
    bias: Tensor
    row_BLD: Tensor
    """What each row says; the newest one is where a slate begins."""

    def newest(self) -> Tensor:
        """The newest row of each request, (B, D); 0 where there is none."""
        return self.row_BLD[:, -1] if self.row_BLD.shape[1] else self.row_BLD.sum(1)


class Block(nn.Module):
    """Cross-attention, causal self-attention and feed-forward (squared ReLU: So et al. 2021), side by side on one normed input."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.norm = nn.Parameter(torch.ones(width))
        self.inward = nn.Linear(width, 6 * width, bias=False)
        self.outward = nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BSD: Tensor, memory: Memory, *, alone: bool = False) -> Tensor:
        """The new states, (B, S, D). `alone`: each is a first slot, which sees no other."""
        batch, slots, width = x_BSD.shape
        inner = self.inward(normed(x_BSD, self.norm))
        heads_BHSd = inner[..., : 4 * width].view(batch, slots, 4 * self.heads, -1).transpose(1, 2)
        cross, query, key, value = heads_BHSd.chunk(4, 1)
        read = F.scaled_dot_product_attention(cross, memory.keys, memory.values, memory.bias)
        own = value if alone else F.scaled_dot_product_attention(query, key, value, is_causal=slots > 1)
        both = torch.cat([read, own], 1).transpose(1, 2).flatten(2)
        mixed = torch.cat([both, F.relu(inner[..., 4 * width :]).square()], -1)
        hidden: Tensor = x_BSD + self.dropout(self.outward(mixed))
        return hidden


def normed(x_D: Tensor, gain_D: Tensor) -> Tensor:
    """RMS norm over the last dimension (Zhang and Sennrich 2019)."""
    return F.rms_norm(x_D, x_D.shape[-1:], gain_D, NORM_EPS)


class Decoder(nn.Module):
    """The weights. `centroids` are those of the codes of each inner level, K - 1 times (V, C); the last level's codes are the items.
    `against` are the row kinds, of `num_kinds`, that speak against their item.
    """

    content_RC: Tensor
    value_information: Tensor
    """How much is known of `value_bias`, (R,): the sum of p (1 - p) over what was shown, faded."""

    def __init__(
        self, config: DecoderConfig, *, centroids: Sequence[FloatArray], content_RC: Tensor, num_kinds: int, against: Sequence[int] = ()
    ) -> None:
        super().__init__()
        codes = [len(centroid_VC) for centroid_VC in centroids]
        self.config, self.codes, self.num_kinds = config, tuple(codes), num_kinds
        width, rows = config.width, capacity_for(len(content_RC))
        self.table = ItemTable(rows, width)
        self.leaf_bias = nn.Parameter(torch.zeros(rows))
        self.value_bias = nn.Parameter(torch.zeros(rows), requires_grad=False)  # that of models/paces.py, not of a gradient
        self.register_buffer("value_information", torch.zeros(rows))
        self.register_buffer("content_RC", _rows(content_RC, rows))
        for level, centroid_VC in enumerate(centroids):
            self.register_buffer(centroids_name(level), torch.as_tensor(centroid_VC))
        self.from_content = nn.Linear(content_RC.shape[1], width, bias=False)
        self.kind = nn.Embedding(num_kinds, width, padding_idx=0)
        self.gap = nn.Embedding(config.gaps, width)
        self.feature = nn.Embedding(config.features, width, padding_idx=0)
        self.slot = nn.Embedding(config.max_slots, width)
        self.from_slot = nn.Linear(width, width, bias=False)
        self.mix = nn.Parameter(torch.zeros(config.reach, width))
        self.row_norm = nn.Parameter(torch.ones(width))
        self.keys_values = nn.Linear(width, 2 * width, bias=False)
        self.nothing = nn.Parameter(torch.zeros(2, width))
        self.recency = nn.Parameter(torch.zeros(config.heads, config.history + 1))
        self.blocks = nn.ModuleList(Block(width, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.Parameter(torch.ones(width))
        self.code = nn.ModuleList(nn.Embedding(count, width) for count in codes)
        self.code_bias = nn.ParameterList(torch.zeros(count) for count in codes)
        self.deeper = nn.ModuleList(nn.Linear(width, width) for _ in codes)
        self.log_scale = nn.Parameter(torch.full((len(codes) + 1,), math.log(LOGIT_SCALE)))
        self.repeat = nn.Parameter(torch.zeros(len(codes) + 1, num_kinds, AGES))
        self.follow = nn.Parameter(torch.zeros(len(codes) + 1, num_kinds, AGES))
        self.match = nn.Parameter(torch.zeros(len(codes) + 1, num_kinds, AGES))
        self.silence = Silence(len(codes) + 1, num_kinds, AGES)
        self.value = nn.Linear(width, width)
        self.code_value = nn.ParameterList(torch.zeros(count) for count in codes)
        self.value_level = ValueLevel(width, num_kinds)
        self.affinity = Affinity(content_RC.shape[1], against)
        self.value_met = nn.Parameter(torch.zeros(num_kinds), requires_grad=False)  # as is that of models/affinity.py, by models/paces.py
        self.value_trust = nn.Parameter(torch.ones(()), requires_grad=False)  # how far `fit` is believed: so too, 1 at first
        self.paces = Paces(rows, F.pad(torch.ones(1), (self.affinity.weight.numel() + num_kinds, 0)))
        self.row_dropout = nn.Dropout(config.row_dropout)
        self._start()

    def _start(self) -> None:
        for weight in (self.feature.weight, self.slot.weight, *self.code_weights()):
            nn.init.normal_(weight, std=0.1)
        for weight in (self.table.weight, self.kind.weight, self.gap.weight):  # no louder than an item's content
            nn.init.normal_(weight, std=0.02)
        with torch.no_grad():
            # every slot begins as the first one; what the others do differently is learned
            self.slot.weight.copy_(self.slot.weight[:1].expand_as(self.slot.weight))
            self.from_slot.weight.zero_()
            # what is random here is noise in every expectation
            self.value.weight.zero_()
            self.value.bias.zero_()
            self.kind.weight[0] = self.feature.weight[0] = 0
            self.mix[-1] = 1
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.normal_(block.outward.weight, std=0.02)

    @property
    def capacity(self) -> int:
        """How many item rows the tables hold, row 0 included."""
        return len(self.leaf_bias)

    @property
    def centroids(self) -> list[FloatArray]:
        """As the decoder was made with."""
        return [self.get_buffer(centroids_name(level)).cpu().numpy() for level in range(len(self.codes))]

    def code_weights(self) -> list[Tensor]:
        """Embeddings of the codes of each inner level, (V, D)."""
        return [embedding.weight for embedding in self.code if isinstance(embedding, nn.Embedding)]

    def row_parameters(self) -> list[nn.Parameter]:
        """What has one row an item."""
        return [self.table.weight, self.leaf_bias, self.value_bias]

    def head_parameters(self) -> list[nn.Parameter]:
        """What turns a state into logits and values."""
        modules = [*self.code, *self.deeper, self.value, self.value_level]
        return [
            *(parameter for module in modules for parameter in module.parameters()),
            *self.code_bias,
            *self.code_value,
            self.log_scale,
            self.repeat,
            self.follow,
            self.match,
        ]

    def admit(self, content_NC: Tensor, first_row: int, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Make room for items from `first_row` on, known by their content alone."""
        last = first_row + len(content_NC)
        capacity = max(self.capacity, capacity_for(last))
        if capacity > self.capacity:
            self.content_RC = _rows(self.content_RC, capacity)
            self.value_information = _rows(self.value_information, capacity)
            self.paces.grow(capacity)
            for parameter in self.row_parameters():
                grow_rows(parameter, capacity, optimizer)
        self.content_RC[first_row:last] = content_NC
        self.evict(torch.arange(first_row, last), optimizer)

    def evict(self, rows_N: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Forget what was learned of these items."""
        self.value_information[rows_N] = 0
        self.paces.evict(rows_N)
        for parameter in self.row_parameters():
            wipe_rows(parameter, rows_N, optimizer)

    def vectors(self, rows_N: IntArray) -> Vectors:
        """The shared vectors of these rows (ascending, each once), with gradient where it is on."""
        row_N = torch.as_tensor(rows_N)
        learned_ND = self.table(row_N) if torch.is_grad_enabled() else self.table.weight[row_N]
        return Vectors(row_N, *item_vectors(learned_ND, self.from_content.weight, self.content_RC[run_of(rows_N)]))

    def node_vectors(self, level: int, code_P: Tensor, content_PC: Tensor) -> Tensor:
        """Children of inner nodes as output, unit vectors, (P, D): what was learned of the code, and the content, as of items."""
        return F.normalize(F.embedding(code_P, self.code_weights()[level]) + self.from_content(content_PC), dim=-1)

    def hint_logits(self) -> Tensor:
        """What a row adds to the logits of its own item and of those that followed it, by level, kind and age, (2, K, kinds, AGES)."""
        return ROW_SCALE * torch.stack([self.repeat, self.follow])

    def match_logits(self) -> Tensor:
        """What it adds to that of an item whose content has cosine 1 with its own, (K, kinds, AGES)."""
        return ROW_SCALE * self.match

    def item_vectors(self, rows_N: Tensor) -> Tensor:
        """What some rows say as input, (N, D), without gradient."""
        with torch.no_grad():
            vectors_ND: Tensor = self.table.weight[rows_N] + self.from_content(self.content_RC[rows_N])
        return vectors_ND

    def memory(self, vectors: Vectors, context: Context) -> Memory:
        """Keys and values of the context rows, after a learned pair that stands for having nothing to read."""
        row_BLD = self._row_vectors(vectors, context)
        blank_BL = torch.as_tensor(context.kind_BL[:, context.kind_BL.shape[1] - row_BLD.shape[1] :] == 0)
        batch, length = blank_BL.shape
        pair = torch.cat([self.nothing.view(1, 1, -1).expand(batch, 1, -1), self.keys_values(normed(row_BLD, self.row_norm))], 1)
        keys, values = pair.view(batch, length + 1, 2 * self.config.heads, -1).transpose(1, 2).chunk(2, 1)
        # row 0 stands for nothing; then by age, so that a new row moves the bias and not the keys
        age = torch.cat([torch.zeros(1, dtype=torch.int64), torch.arange(length, 0, -1)])
        blank = F.pad(blank_BL, (1, 0))[:, None, None]
        return Memory(keys, values, self.recency[:, age][None, :, None].masked_fill(blank, -torch.inf), row_BLD)

    def _row_vectors(self, vectors: Vectors, context: Context) -> Tensor:
        """What each of the newest `history` rows says, coloured by the rows just before it (a causal depthwise convolution)."""
        item_BL, kind_BL, gap_BL = (torch.as_tensor(x) for x in (context.item_BL, context.kind_BL, context.gap_BL))
        said_BLD = vectors.items(item_BL) + self.kind(kind_BL) + self.gap(gap_BL)
        said_BLD = F.pad(self.row_dropout(said_BLD) * (kind_BL > 0)[..., None], (0, 0, self.config.reach - 1, 0))
        parts = [said_BLD[:, back : back + item_BL.shape[1]] * weight_D for back, weight_D in enumerate(self.mix)]
        return torch.stack(parts).sum(0)[:, -self.config.history :]

    def start(self, row_BLD: Tensor, context: Context) -> Tensor:
        """What every slot's input begins with, were this row the newest, (B, L, D): the row, and what the request itself says."""
        features_BD: Tensor = self.feature(torch.as_tensor(context.feature_BX)).sum(1)
        return row_BLD + features_BD[:, None]

    def place_states(self, vectors: Vectors, context: Context) -> Tensor:
        """The first slot's state as of each row of the memory, (B, L, D): what would be asked if that row were the newest.

        For training on whole sequences: it is what `states` gives for as many requests, at the cost of one.
        """
        memory = self.memory(vectors, context)
        length = memory.row_BLD.shape[1]
        age_LL = torch.arange(length)[:, None] - torch.arange(length)
        recency = torch.cat([self.recency[:, :1, None].expand(-1, length, -1), self.recency[:, 1 + age_LL.clamp(min=0)]], 2)
        hidden = F.pad(age_LL < 0, (1, 0)) | torch.isinf(memory.bias)
        upto = Memory(memory.keys, memory.values, recency[None].masked_fill(hidden, -torch.inf), memory.row_BLD)
        x_BLD = self.start(memory.row_BLD, context) + self.slot.weight[0]
        for block in self.blocks:
            assert isinstance(block, Block)
            x_BLD = block(x_BLD, upto, alone=True)
        return normed(x_BLD, self.norm)

    def first_states(self, vectors: Vectors, context: Context) -> Tensor:
        """The first slot's state of each request, (B, D)."""
        return self.states(vectors, context, torch.zeros((len(context.item_BL), 1), dtype=torch.int64))[:, 0]

    def states(self, vectors: Vectors, context: Context, slate_BS: Tensor) -> Tensor:
        """States of all slots of known slates, (B, S, D): each sees the context and the slots before it."""
        memory = self.memory(vectors, context)
        before_BSD = F.pad(self.from_slot(vectors.items(slate_BS[:, :-1])), (0, 0, 1, 0))
        x_BSD = self.start(memory.newest()[:, None], context) + self.slot.weight[: slate_BS.shape[1]] + before_BSD
        for block in self.blocks:
            x_BSD = block(x_BSD, memory)
        return normed(x_BSD, self.norm)

    def query(self, state_QD: Tensor, prefix: Sequence[Tensor]) -> Tensor:
        """What level `len(prefix)` is asked with, (Q, D): unit vectors times the level's learned scale."""
        level = len(prefix)
        if level:
            told_QD = state_QD
            for weight, code_Q in zip(self.code_weights(), prefix, strict=False):
                told_QD = told_QD + F.embedding(code_Q, weight)
            state_QD = state_QD + self.deeper[level - 1](F.relu(told_QD).square())
        return F.normalize(state_QD, dim=-1) * self.log_scale[level].exp().clamp(max=LOGIT_SCALE_MAX)

    def record(self, context: Context, num_items: int, at_Q: IntArray, item_Q: IntArray) -> Record:
        """What the memories of requests `at_Q` say of items in numbers, as far as they speak of the first `num_items` rows."""
        item_BL = np.where(context.item_BL <= num_items, context.item_BL, 0)
        content_BLT = F.embedding(torch.as_tensor(item_BL), self.content_RC[:, : self.affinity.told])
        standing_BZ, of_Q = self.affinity.standing(item_BL, context.kind_BL, content_BLT), torch.as_tensor(at_Q)
        met_QK = met(item_BL, context.kind_BL, at_Q, item_Q, self.num_kinds)
        return Record(counted(context.kind_BL, self.num_kinds)[of_Q], standing_BZ[of_Q], met_QK)

    def value_logits(self, fit_Q: Tensor, state_QD: Tensor, record: Record, item_Q: Tensor) -> Tensor:
        """q(context, slot, item) as a logit, (Q,), given all of the items' `fit`: what is learned. Believed is what Surprise says."""
        suits_Q = self._suited(record, self.content_RC[item_Q])
        return fit_Q + self.value_level(state_QD, record.counts_QK) + suits_Q + self.value_bias[item_Q]

    def code_value_logits(self, vector_QD: Tensor, state_QD: Tensor, record: Record, code_Q: Tensor, level: int) -> Tensor:
        """The same of a child of an inner level with this vector and code, (Q,): the reward of what was shown under it."""
        return self.fit(state_QD, vector_QD) + self.value_level(state_QD, record.counts_QK) + self.code_value[level][code_Q]

    def fit(self, state_QD: Tensor, vector_QD: Tensor) -> Tensor:
        """What gradients make of states and the items or codes with these vectors, logits, (Q,)."""
        fit_Q: Tensor = (self.value(state_QD) * vector_QD).sum(-1)
        return fit_Q

    def _suited(self, told: Record | Surprise, content_QC: Tensor) -> Tensor:
        """What memories make of contents and of the very items, logits, (Q,)."""
        suits_Q: Tensor = self.affinity(told.standing_QZ, content_QC) + told.met_QK @ self.value_met
        return suits_Q

    @torch.no_grad()
    def correct(self, surprise: Surprise, spread: float) -> None:
        """Move what is expected by what was wrong about the slots shown; `spread`: standard deviation, in logits, by which items differ."""
        item_Q, content_QC = surprise.item_Q, self.content_RC[surprise.item_Q]
        known_Q = self._suited(surprise, content_QC) + self.value_bias[item_Q] + self.value_trust * surprise.fit_Q
        x_QF = torch.cat([self.affinity.pairs(surprise.standing_QZ, content_QC), surprise.met_QK, surprise.fit_Q[:, None]], 1)
        self.paces.correct(item_Q, x_QF, surprise.logit_Q - known_Q, surprise.earned_Q, surprise.weight_Q, spread)
        share_P = self.paces.shares()
        suits_F, met_K, trust_1 = torch.split(share_P @ self.paces.weight, [self.affinity.weight.numel(), self.num_kinds, 1])
        self.affinity.weight.copy_(suits_F.view_as(self.affinity.weight))
        self.value_met.copy_(met_K)
        self.value_trust.copy_(trust_1[0])
        self.value_bias.copy_(self.paces.bias @ share_P)
        self.value_information.copy_(self.paces.known @ share_P)


def centroids_name(level: int) -> str:
    """What a decoder's state calls the centroids of an inner level."""
    return f"centroids_{level}"


def _rows(values: Tensor, capacity: int) -> Tensor:
    return torch.cat([values, values.new_zeros((capacity - len(values), *values.shape[1:]))])
