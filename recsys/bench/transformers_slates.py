"""Slates from Hugging Face `transformers`: what a team would use without a decoder of its own.

A GPT-2 with random weights reads the codes of a history and `generate` continues them, held to the ids of the catalogue by
`prefix_allowed_tokens_fn`. Knows nothing of our own models, nor of clocks: whoever measures brings them.
Needs the extra `bench`. Shapes: B requests, L history, S slots, K levels, N items, T tokens.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, GPT2Config, GPT2LMHeadModel

IntArray = npt.NDArray[np.int64]


def random_ids(num_items: int, codes: int, levels: int, seed: int) -> IntArray:
    """Different random ids, (N, K), each code in 0..codes - 1."""
    place_N = np.random.default_rng(seed).choice(codes**levels, num_items, replace=False)
    return np.stack(np.unravel_index(place_N, (codes,) * levels), 1)


class TransformersSlates:
    """Slates of different items for histories of a fixed length. Items, in and out, are rows of `ids_NK`."""

    def __init__(self, ids_NK: IntArray, *, width: int, layers: int, heads: int, history_length: int, slate: int, seed: int) -> None:
        self.slate, self.history_length, self._levels = slate, history_length, ids_NK.shape[1]
        codes = int(ids_NK.max()) + 1
        # each level has tokens of its own
        self._token_NK = torch.from_numpy(ids_NK + codes * np.arange(self._levels))
        self._seed = seed
        config = GPT2Config(
            vocab_size=codes * self._levels,
            n_positions=(history_length + slate) * self._levels,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            bos_token_id=None,
            eos_token_id=None,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._model = GPT2LMHeadModel(config).eval()
        self._item_of = {tuple(tokens): item for item, tokens in enumerate(self._token_NK.tolist())}
        self._children: dict[tuple[int, ...], list[int]] = defaultdict(list)
        self._leaves: Counter[tuple[int, ...]] = Counter()
        for tokens in sorted(self._item_of):
            for level, token in enumerate(tokens):
                if not self._leaves[tokens[: level + 1]]:
                    self._children[tokens[:level]].append(token)
                self._leaves[tokens[: level + 1]] += 1

    def beam(self, history_BL: IntArray, *, prompt_once: bool = False) -> IntArray:
        """The S best items by beam search, (B, S), best first.

        `generate` alone repeats the prompt for every beam before it reads it. With `prompt_once` the prompt is read once and
        its keys and values are repeated: the same slates, several times faster, for whoever knows the trick.
        """
        prompt_BT = self._prompt(history_BL)
        config = GenerationConfig(
            num_beams=self.slate, num_return_sequences=self.slate, do_sample=False, max_new_tokens=self._levels, pad_token_id=0
        )
        cache = self._read(prompt_BT) if prompt_once else None
        return self._generated(prompt_BT, config, cache)

    def sample(self, history_BL: IntArray) -> IntArray:
        """S items drawn one after the other, (B, S): each slot sees those before it, and no item comes twice."""
        config = GenerationConfig(do_sample=True, top_k=0, top_p=1.0, max_new_tokens=self.slate * self._levels, pad_token_id=0)
        return self._generated(self._prompt(history_BL), config, None)

    def _prompt(self, history_BL: IntArray) -> Tensor:
        if history_BL.shape[1] != self.history_length:
            raise ValueError(f"histories have {history_BL.shape[1]} items, this model reads {self.history_length}")
        return self._token_NK[torch.from_numpy(history_BL)].flatten(1)

    @torch.inference_mode()
    def _read(self, prompt_BT: Tensor) -> DynamicCache:
        """Keys and values of all tokens but the last, which `generate` reads itself, repeated for each beam."""
        cache = DynamicCache(config=self._model.config)
        self._model(prompt_BT[:, :-1], cache=cache, logits_to_keep=1)
        cache.batch_repeat_interleave(self.slate)
        return cache

    @torch.inference_mode()
    def _generated(self, prompt_BT: Tensor, config: GenerationConfig, cache: DynamicCache | None) -> IntArray:
        """What follows the prompts, as items. Every call draws from the same seed and leaves torch's own generator alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            tokens = self._model.generate(
                prompt_BT,
                attention_mask=torch.ones_like(prompt_BT),
                generation_config=config,
                prefix_allowed_tokens_fn=self._allowed,
                cache=cache,
            )
        ids_XK = tokens[:, prompt_BT.shape[1] :].reshape(-1, self._levels).tolist()
        return self._items(ids_XK).reshape(len(prompt_BT), self.slate)

    def _allowed(self, _: int, tokens_T: Tensor) -> Sequence[int]:
        """The tokens that may come next: children in the tree of ids under which some item is not in the slate yet."""
        made = tokens_T[self.history_length * self._levels :].tolist()
        begun = len(made) // self._levels * self._levels
        prefix = tuple(made[begun:])
        children = self._children[prefix]
        deep = len(prefix) + 1
        given = Counter(tuple(made[at : at + deep]) for at in range(0, begun, self._levels))
        spent = {node[-1] for node, times in given.items() if node[:-1] == prefix and times == self._leaves[node]}
        return [token for token in children if token not in spent] if spent else children

    def _items(self, ids_XK: list[list[int]]) -> IntArray:
        """Items of generated ids; a KeyError says that one is not in the catalogue."""
        item_BS = np.array([self._item_of[tuple(tokens)] for tokens in ids_XK], np.int64).reshape(-1, self.slate)
        assert all(len(set(items)) == self.slate for items in item_BS.tolist()), "an item came twice"
        return item_BS
