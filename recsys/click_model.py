"""A model of real clicks, from which worlds take their truth: logistic factorisation, numpy, some seconds. Knows no world.

logit p(click) = tab + user + (item + attributes) + taste(user) · (factor(item) + factors of its attributes), where the taste
is the sum of learned vectors of the videos the user watched *before* the log, over the root of their number (NSVD, Paterek
2007; SVD++, Koren 2008, without the explicit user vector, which on a dozen rows a user only fits noise). Every group of
parameters has its Gaussian prior. Fitted by Adam on all rows at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_PRIOR_PRECISION = {"tab": 0.1, "user": 4.0, "item": 4.0, "attribute": 4.0, "factor": 40.0, "attribute_factor": 80.0, "watched": 40.0}
_UNIQUE_ATTRIBUTES = {"author_id"}
"""Nearly one value per item: as an attribute it would be a second item bias."""


class SampleFrames(Protocol):
    """The frames a model is fitted to: columns as in `datasets.Sample`."""

    @property
    def log(self) -> pl.DataFrame:
        """Exposures in time order: user_id, item_id, event_time_ms, click, tab."""

    @property
    def history(self) -> pl.DataFrame:
        """What each user watched before: user_id, item_ids."""

    @property
    def items(self) -> pl.DataFrame:
        """item_id, title and attributes (a list of key and value)."""

    @property
    def warm_start_until_ms(self) -> int:
        """What lies before may be learned from; worlds begin here."""


@dataclass(frozen=True, kw_only=True)
class ClickModelConfig:
    """How the model is fitted."""

    rank: int = 12
    iterations: int = 120
    step: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= 64:
            raise ValueError(f"rank is {self.rank}; 1..64")
        if not 1 <= self.iterations <= 10_000:
            raise ValueError(f"iterations is {self.iterations}; 1..10000")
        if not 0 < self.step <= 1:
            raise ValueError(f"step is {self.step}; above 0, at most 1")


@dataclass(frozen=True, kw_only=True)
class Clicks:
    """The rows of a log as indices into `user_ids`, `item_ids` and `tabs`, with what explains them."""

    user_ids: list[str]
    item_ids: list[str]
    tabs: list[str]
    user: Ints
    item: Ints
    tab: Ints
    click: Floats
    time_ms: Ints
    watched: Any
    """Users × items, sparse: 1/√n for each of the n videos in the history."""
    attributes: Any
    """Items × attribute values, sparse, 0 or 1."""


@dataclass(frozen=True, kw_only=True)
class ClickModel:
    """Fitted parameters, in logits. Rows as in the Clicks it was fitted to."""

    tab_bias: Floats
    user_bias: Floats
    item_bias: Floats
    tastes: Floats
    factors: Floats

    def probability(self, clicks: Clicks) -> Floats:
        """The probability of a click in every row of `clicks`."""
        taste = np.einsum("nr,nr->n", self.tastes[clicks.user], self.factors[clicks.item])
        return sigmoid(self.tab_bias[clicks.tab] + self.user_bias[clicks.user] + self.item_bias[clicks.item] + taste)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """How well clicks after the split in time are predicted: mean log-loss (nats) and area under the ROC curve."""

    log_loss: float
    auc: float


def sigmoid(logit: Floats) -> Floats:
    """1 / (1 + e^-logit), without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logit)))


def clicks_of(sample: SampleFrames) -> Clicks:
    """The log of `sample` as indices. KeyError when it speaks of an item that `sample.items` doesn't have."""
    log = sample.log
    user_ids = sorted(log["user_id"].unique().to_list())
    item_ids = sample.items["item_id"].to_list()
    tabs = sorted(log["tab"].cast(pl.String).unique().to_list())
    users, items, tab_index = ({name: i for i, name in enumerate(names)} for names in (user_ids, item_ids, tabs))
    return Clicks(
        user_ids=user_ids,
        item_ids=item_ids,
        tabs=tabs,
        user=indices(log["user_id"], users),
        item=indices(log["item_id"], items),
        tab=indices(log["tab"].cast(pl.String), tab_index),
        click=log["click"].cast(pl.Float64).to_numpy(),
        time_ms=log["event_time_ms"].to_numpy(),
        watched=_watched(sample.history, users, items),
        attributes=_attributes(sample.items),
    )


def rows_before(clicks: Clicks, time_ms: int, *, after: bool = False) -> Clicks:
    """The rows before `time_ms`, or with `after` those from it on."""
    keep = (clicks.time_ms < time_ms) != after
    rows = {name: getattr(clicks, name)[keep] for name in ("user", "item", "tab", "click", "time_ms")}
    shared = {name: getattr(clicks, name) for name in ("user_ids", "item_ids", "tabs", "watched", "attributes")}
    return Clicks(**rows, **shared)


def fit_click_model(clicks: Clicks, config: ClickModelConfig) -> ClickModel:
    """Fit to every row of `clicks` (about 2 s for 70,000). The same rows and seed give the same model."""
    parameters = _initial(clicks, config)
    first = {name: np.zeros_like(value) for name, value in parameters.items()}
    second = {name: np.zeros_like(value) for name, value in parameters.items()}
    by_user, by_item = (_incidence(clicks.user, len(clicks.user_ids)), _incidence(clicks.item, len(clicks.item_ids)))
    for iteration in range(1, config.iterations + 1):
        for name, gradient in _gradient(parameters, clicks, by_user, by_item).items():
            # Adam (Kingma & Ba 2015), second moment .99: the gradient is exact, so a short memory will do.
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.99 * second[name] + 0.01 * gradient**2
            scale = np.sqrt(second[name] / (1 - 0.99**iteration)) + 1e-8
            parameters[name] -= config.step * first[name] / (1 - 0.9**iteration) / scale
    return _model(parameters, clicks)


def held_out(sample: SampleFrames, config: ClickModelConfig) -> dict[str, HeldOut]:
    """Fit to the warm-start days and predict the rest: this model (`model`), the click `rates` of user and item, a `constant`."""
    clicks = clicks_of(sample)
    seen, later = (rows_before(clicks, sample.warm_start_until_ms, after=after) for after in (False, True))
    predictions = {
        "model": fit_click_model(seen, config).probability(later),
        "rates": _rates(seen, later),
        "constant": np.full(later.click.size, seen.click.mean()),
    }
    return {name: HeldOut(log_loss=_log_loss(later.click, p), auc=_auc(later.click, p)) for name, p in predictions.items()}


def indices(names: pl.Series, index: Mapping[str, int]) -> Ints:
    """The number of each name. KeyError for one that has none."""
    return np.array([index[name] for name in names], dtype=np.int64)


def _watched(history: pl.DataFrame, users: Mapping[str, int], items: Mapping[str, int]) -> Any:
    rows, columns, values = [], [], []
    for user_id, item_ids in history.select("user_id", "item_ids").iter_rows():
        known = [items[item_id] for item_id in item_ids if item_id in items]
        if user_id in users and known:
            rows += [users[user_id]] * len(known)
            columns += known
            values += [len(known) ** -0.5] * len(known)
    return sparse.csr_matrix((values, (rows, columns)), shape=(len(users), len(items)))


def _attributes(items: pl.DataFrame) -> Any:
    rows, columns = [], []
    values: dict[tuple[str, str], int] = {}
    for row, pairs in enumerate(items["attributes"].to_list()):
        for pair in pairs:
            if pair["key"] not in _UNIQUE_ATTRIBUTES:
                rows.append(row)
                # tag1, tag2, ... are places in one list: the same tag in another place is the same tag.
                columns.append(values.setdefault((pair["key"].rstrip("0123456789"), pair["value"]), len(values)))
    return sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(items.height, len(values)))


def _incidence(index: Ints, size: int) -> Any:
    """Sparse size × rows: times a column it sums the rows of each index, several times faster than np.add.at."""
    return sparse.csr_matrix((np.ones(index.size), (index, np.arange(index.size))), shape=(size, index.size))


def _initial(clicks: Clicks, config: ClickModelConfig) -> dict[str, Floats]:
    rng = np.random.default_rng(config.seed)
    users, items, attributes = len(clicks.user_ids), len(clicks.item_ids), clicks.attributes.shape[1]
    zeros = {"tab": len(clicks.tabs), "user": users, "item": items, "attribute": attributes}
    small = {"factor": items, "attribute_factor": attributes, "watched": items}
    biases = {name: np.zeros(size) for name, size in zeros.items()}
    return biases | {name: rng.normal(0, 0.1, (size, config.rank)) for name, size in small.items()}


def _model(parameters: Mapping[str, Floats], clicks: Clicks) -> ClickModel:
    return ClickModel(
        tab_bias=parameters["tab"],
        user_bias=parameters["user"],
        item_bias=parameters["item"] + clicks.attributes @ parameters["attribute"],
        tastes=clicks.watched @ parameters["watched"],
        factors=parameters["factor"] + clicks.attributes @ parameters["attribute_factor"],
    )


def _gradient(parameters: Mapping[str, Floats], clicks: Clicks, by_user: Any, by_item: Any) -> dict[str, Floats]:
    """Of the negative log-likelihood and the log-priors."""
    model = _model(parameters, clicks)
    error = model.probability(clicks) - clicks.click
    item = by_item @ error
    factor = by_item @ (error[:, None] * model.tastes[clicks.user])
    taste = by_user @ (error[:, None] * model.factors[clicks.item])
    likelihood = {
        "tab": np.bincount(clicks.tab, error, len(clicks.tabs)),
        "user": by_user @ error,
        "item": item,
        "attribute": clicks.attributes.T @ item,
        "factor": factor,
        "attribute_factor": clicks.attributes.T @ factor,
        "watched": clicks.watched.T @ taste,
    }
    return {name: gradient + _PRIOR_PRECISION[name] * parameters[name] for name, gradient in likelihood.items()}


def _rates(seen: Clicks, later: Clicks, prior_rows: float = 20.0) -> Floats:
    """Log-odds of the user's and the item's shrunk click rate, added."""
    mean = seen.click.mean()

    def log_odds(index: Ints, size: int) -> Floats:
        rate = (np.bincount(index, seen.click, size) + prior_rows * mean) / (np.bincount(index, minlength=size) + prior_rows)
        return np.asarray(np.log(rate / (1 - rate)))

    base = np.log(mean / (1 - mean))
    users, items = log_odds(seen.user, len(seen.user_ids)), log_odds(seen.item, len(seen.item_ids))
    return sigmoid(users[later.user] + items[later.item] - base)


def _log_loss(click: Floats, probability: Floats) -> float:
    p = np.clip(probability, 1e-9, 1 - 1e-9)
    return float(-(click * np.log(p) + (1 - click) * np.log(1 - p)).mean())


def _auc(click: Floats, probability: Floats) -> float:
    """The Mann–Whitney statistic over the pairs; ties count half."""
    values, inverse, counts = np.unique(probability, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives = click.sum()
    return (
        float((ranks[click > 0].sum() - positives * (positives + 1) / 2) / (positives * (click.size - positives))) if values.size else 0.5
    )
