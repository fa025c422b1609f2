"""The industry's habit: a two-tower recall that rewards never reach hands a ranker a hundred items, and only the ranker learns online.

The ranker is the whole system of this project, so that what differs is the recall alone. Knows nothing of runs or measures.
"""

from collections.abc import Sequence

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.content import ContentRule, FloatArray, ItemText
from recsys.catalogue import Catalogue, Rows, Vocabulary
from recsys.features import Lesson
from recsys.memory import View
from recsys.simulate.baselines import taken

WIDTH = 32
TEMPERATURE = 0.1


class TwoTowers(nn.Module):
    """Items: an embedding plus their projected content. Users: the projected mean of the items they acted on. Unit vectors both."""

    def __init__(self, content_NC: FloatArray) -> None:
        super().__init__()
        self.content = nn.Linear(content_NC.shape[1], WIDTH, bias=False)
        self.item = nn.Embedding(len(content_NC) + 1, WIDTH)
        self.user = nn.Linear(WIDTH, WIDTH)
        nn.init.normal_(self.item.weight, std=0.1)

    def items(self, row_N: Tensor, content_NC: Tensor) -> Tensor:
        """Vectors of item rows, (N, D); rows that came after the fit have their content only."""
        known_N = row_N * (row_N < self.item.num_embeddings)
        return F.normalize(self.content(content_NC) + self.item(known_N) * (known_N > 0)[:, None], dim=-1)

    def users(self, items_ND: Tensor, acted_BN: Tensor) -> Tensor:
        """Vectors of users, (B, D), from how often each item is among what they acted on."""
        return F.normalize(self.user(acted_BN @ items_ND / acted_BN.sum(1, keepdim=True).clamp(min=1)), dim=-1)


class Recall:
    """Fitted once to a history: which item was rewarded, given what its user had acted on before. Then it finds, and never learns."""

    def __init__(self, texts: Sequence[ItemText], history: Sequence[Lesson], seed: int) -> None:
        self._content = ContentRule.fitted(texts, WIDTH)
        content_NC = self._content.vectors(texts)
        torch.manual_seed(seed)
        self._towers = TwoTowers(content_NC)
        vocabulary = Vocabulary([text.item_id for text in texts])
        acted, row = [], []
        for lesson in history:
            rewarded = [item_id for item_id, reward in zip(lesson.item_ids, lesson.rewards, strict=True) if reward > 0]
            rows = vocabulary.known_rows(rewarded)
            acted += [taken(lesson.view, vocabulary)] * len(rows)
            row += rows.tolist()
        self._fit(torch.from_numpy(content_NC), acted, np.array(row, np.int64), seed)
        self._index = faiss.IndexFlatIP(WIDTH)
        self._vocabulary = Vocabulary([])
        self._items_ND = torch.zeros(0, WIDTH)

    def find(self, view: View, catalogue: Catalogue, number: int) -> list[str]:
        """The items nearest to a user."""
        if len(catalogue.item_ids) != self._vocabulary.num_rows - 1:
            self._shelve(catalogue)
        with torch.no_grad():
            user_D = self._towers.users(self._items_ND, _counts([taken(view, self._vocabulary)], len(self._items_ND)))
        _, places = self._index.search(user_D.numpy(), min(number, len(self._items_ND)))
        return [self._vocabulary.item_ids[place] for place in places[0].tolist()]

    def _shelve(self, catalogue: Catalogue) -> None:
        """Index what is in the catalogue now."""
        self._vocabulary = Vocabulary(list(catalogue.item_ids))
        row_N = np.arange(1, self._vocabulary.num_rows)
        content_NC = self._content.vectors(catalogue.texts(row_N.tolist()))
        with torch.no_grad():
            self._items_ND = self._towers.items(torch.from_numpy(row_N), torch.from_numpy(content_NC))
        self._index.reset()
        self._index.add(self._items_ND.numpy())

    def _fit(self, content_NC: Tensor, acted: list[Rows], row: Rows, seed: int, epochs: int = 5, batch: int = 128) -> None:
        """Softmax over all items, temperature .1, Adam at 3e-3."""
        row_N = torch.arange(1, len(content_NC) + 1)
        optimizer = torch.optim.Adam(self._towers.parameters(), lr=3e-3)
        random = np.random.default_rng(seed)
        for _ in range(epochs if len(row) else 0):
            order = random.permutation(len(row))
            for first in range(0, len(order), batch):
                chosen = order[first : first + batch]
                items_ND = self._towers.items(row_N, content_NC)
                users_BD = self._towers.users(items_ND, _counts([acted[at] for at in chosen], len(content_NC)))
                loss = F.cross_entropy(users_BD @ items_ND.T / TEMPERATURE, torch.from_numpy(row[chosen] - 1))
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()


def _counts(acted: Sequence[Rows], num_items: int) -> Tensor:
    counts_BN = np.zeros((len(acted), num_items), np.float32)
    for at, rows in enumerate(acted):
        np.add.at(counts_BN[at], rows - 1, 1)
    return torch.from_numpy(counts_BN)
