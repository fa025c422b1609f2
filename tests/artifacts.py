"""What the tests of serving serve: a few items and small published versions that know them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from models.artifact import Artifact
from models.content import ContentRule, ItemText
from models.decoder import Decoder, DecoderConfig
from models.successors import SuccessorCounts
from models.tokenizer import Tokenizer, TokenizerConfig
from models.trie import Trie
from recsys import publisher
from recsys.memory import MemoryConfig
from recsys.publisher import Published
from streaming.events import Item

NOW_MS = 1_700_000_000_000
VARIANT = "online"
TOKENIZER = TokenizerConfig(levels=2, codes=4, content_dim=16, iterations=3)
DECODER = DecoderConfig(width=16, layers=1, heads=2, history=8, max_slots=100, features=32, dropout=0)


# Items and versions ---------------------------------------------------------------------------------------------------


def item_ids(num_items: int, first: int = 0) -> list[str]:
    return [f"item{number}" for number in range(first, first + num_items)]


def item(item_id: str) -> Item:
    """An item whose genre is its number modulo 3."""
    number = int(item_id.removeprefix("item"))
    return Item(item_id=item_id, title=f"Title {number}", attributes={"genre": "abc"[number % 3]})


def small_artifact(
    names: Sequence[str],
    policy_version: int = 1,
    *,
    trained_through_ms: int | None = None,
    retired: Sequence[str] = (),
    decoder: DecoderConfig = DECODER,
) -> Artifact:
    """An untrained version that knows the items `names`, rows in this order; milliseconds to build."""
    texts = [ItemText(name, f"Title {name}") for name in names]
    content = ContentRule.fitted(texts, TOKENIZER.content_dim)
    vectors_NC = content.vectors(texts)
    tokenizer = Tokenizer.built(TOKENIZER, vectors_NC)
    content_RC = torch.from_numpy(np.concatenate([np.zeros((1, TOKENIZER.content_dim), np.float32), vectors_NC]))
    with torch.random.fork_rng():
        torch.manual_seed(policy_version)
        weights = Decoder(decoder, centroids=tokenizer.centroids, content_RC=content_RC, num_kinds=MemoryConfig().num_kinds)
    retired_N = np.array([name in retired for name in names], bool)
    return Artifact(
        decoder=weights.eval(),
        tokenizer=tokenizer,
        content=content,
        item_ids=tuple(names),
        retired_N=retired_N,
        trie=Trie.built(tokenizer.ids_NK, retired_N),
        followed=SuccessorCounts(),
        facts={
            "policy_version": policy_version,
            "trained_through_ms": 1000 * policy_version if trained_through_ms is None else trained_through_ms,
        },
    )


def publish(state_dir: Path, names: Sequence[str], policy_version: int = 1, *, now_ms: int = NOW_MS, variant: str = VARIANT) -> Published:
    """Publish a small version of `variant`, trained through `1000 * policy_version`."""
    return publisher.publish(small_artifact(names, policy_version), state_dir / variant, now_ms)
