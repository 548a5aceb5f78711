"""What each field of a data set tells of what people choose, and which fields may be left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import chi2_contingency, entropy

from tfllmrec.columns import CATEGORIES, EVENT_KIND, ITEM_INDEX, ORDER, RATING, USER_INDEX
from tfllmrec.data.cleaning.names import category_names
from tfllmrec.data.cleaning.values import strings
from tfllmrec.data.sampling import evenly_spread
from tfllmrec.data.schema import BINS, FAR, RATING_KEY, Field, missing
from tfllmrec.errors import not_installed
from tfllmrec.progress import Progress

if TYPE_CHECKING:
    from tfllmrec.data.dataset import Dataset

#: Bins of the popularity of items, by quantiles.
STRATA = 10
#: Labels of items that are told apart; the others count as one.
LABELS = 50
#: Values of a field that are told apart, the most frequent ones; the others count as one.
VALUES = 200
#: A field with fewer values than this share of its rows is nearly empty.
FEW = 0.05
#: The least Cramer's V of a pair that is listed, and the least :attr:`Pair.same` of which one field is enough.
LISTED, SAME = 0.5, 0.95
#: Permutations of a field's cells, and the p-value above which an association may be chance.
PERMUTATIONS, CHANCE = 99, 0.05
#: A category of which more than this share of the values occurs once is an id in disguise.
ID_LIKE = 0.5
#: The table of an owner, where the two names differ.
_TABLES = {"request": "event"}
#: Fields that models read whatever they tell.
_READ = (RATING_KEY, f"event.{EVENT_KIND}")
#: Rows of a vector that principal components are computed from.
VECTOR_ROWS = 20_000


#: Makes the two sides of a contingency table, codes of equal length, from the codes of a field.
Sides = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Association:
    """How closely a field goes with a target.

    Attributes:
      target: ``item``, ``rating`` or ``popularity`` (events of the item). ``item`` is the item's first category, or the
        item itself without categories. For a field of items, it is the value of that field for the item that the user
        had just before.
      part: of a time, ``by hour`` or ``by weekday``; ``""`` for other fields.
      information: mutual information above chance, as a share of the target's entropy above chance: 0 tells nothing, 1
        tells all.
      p: of the permutation test by the chi-squared statistic, (1 + permutations at least as high) / 100.
    """

    target: str
    part: str
    information: float
    p: float

    @property
    def by_chance(self) -> bool:
        """Whether nothing more than chance was found."""
        return self.p > CHANCE or self.information <= 0

    def worded(self) -> str:
        """Such as ``0.031 by hour``, in brackets where it may be chance."""
        text = f"{max(self.information, 0.0):.4f} {self.part}".rstrip()
        return f"({text})" if self.by_chance else text


@dataclass(frozen=True)
class FieldFigures:
    """One field.

    Attributes:
      key: ``OWNER.NAME``. kind: of the schema.
      rows: cells looked at. missing: share of them without a value. distinct: different values.
      outliers: share of a number's values that are more than :data:`~tfllmrec.data.schema.FAR` spreads from the median,
        where encoders clip them; ``None`` of other kinds.
      components: of a vector, the principal components that hold 90 % and 99 % of the variance.
      tells: what it goes with; empty for texts, ids and vectors.
      drop: why it can be left out, such as ``has one value only``, or ``""``.
    """

    key: str
    kind: str
    rows: int
    missing: float
    distinct: int
    outliers: float | None
    components: tuple[int, int] | None
    tells: tuple[Association, ...]
    drop: str = ""


@dataclass(frozen=True)
class Pair:
    """Two fields of one owner that go together.

    Attributes:
      first, second: their keys, those of times with their part.
      association: Cramer's V, corrected for bias (Bergsma 2013), of the binned values. 0: they are independent; 1: the
        one with fewer values follows from the other.
      same: the share of a field's entropy that the other one tells, the lower one of both directions. 1: each follows
        from the other.
      correlation: Spearman's, of two numbers; ``None`` otherwise.
    """

    first: str
    second: str
    association: float
    same: float
    correlation: float | None


@dataclass(frozen=True)
class FeatureReport:
    """The result of :func:`feature_report`.

    Attributes:
      events, sampled: events of the data set, and those that were looked at.
      label: what stands for an item: ``category`` or ``item``.
      fields: in the order of the schema. pairs: those of :data:`LISTED` and more, the closest first.
      asked: the ``data.fields`` that the data was read with.
    """

    events: int
    sampled: int
    label: str
    fields: tuple[FieldFigures, ...]
    pairs: tuple[Pair, ...]
    asked: Mapping[str, Any]

    @property
    def suggestion(self) -> str:
        """The setting that leaves out every field with a reason to, beside what was asked for; ``""`` if none has."""
        keys = [field.key.partition(".") for field in self.fields if field.drop]
        dropped = {f"{_TABLES.get(owner, owner)}.{name}": {"use": False} for owner, _, name in keys}
        fields = {name: asked | dropped.pop(name, {}) for name, asked in self.asked.items()} | dropped
        return f"data.fields={json.dumps(fields, ensure_ascii=False)}" if keys else ""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self) | {"suggestion": self.suggestion}


def feature_report(
    dataset: Dataset, at_most: int = 200_000, seed: int = 42, progress: Progress | None = None
) -> FeatureReport:
    """Measures every field of a data set against the item that was chosen, its rating and its popularity.

    Fields of events, requests and users are compared with the item and the rating of each event. Fields of items are
    compared with the same field of the item that the user had just before, with the rating and with the popularity of
    the item. Numbers are binned by quantiles, times of events by hour and by
    weekday (UTC), and of a cell with several names the first one counts.

    The chance level is the mean over random permutations of the field's cells among the rows of its table. The events
    of one user depend on each other: a test that ignores this finds every column of the users significant. (Columns of
    events are permuted event by event, so theirs are still judged too favourably.)

    A large log is sampled so that items of each popularity keep their share.

    Args:
      dataset: the events, items and users.
      at_most: events that are looked at.
      seed: of the sample and of the permutations.
      progress: called after each field, see :func:`tfllmrec.progress.show_progress`.

    Raises:
      ConfigError: scikit-learn is not installed.
    """
    try:
        import sklearn  # noqa: F401 (what needs it comes late)
    except ImportError as error:
        raise not_installed("'tfllmrec data features' needs scikit-learn", error, "features") from error

    events = dataset.events.iloc[_sample(dataset, at_most, seed)]
    chosen, rated, label = _targets(dataset, events)
    popularity = _binned(np.bincount(dataset.events[ITEM_INDEX], minlength=dataset.n_items).astype(float), STRATA)
    before, after = _successive(dataset, at_most)
    generator = np.random.default_rng(seed)

    figures: list[FieldFigures] = []
    codes_of: dict[tuple[str, str], np.ndarray] = {}
    numbers_of: dict[str, np.ndarray] = {}
    schema = dataset.schema
    for done, field in enumerate(schema, start=1):
        table = {"user": dataset.users, "item": dataset.items}.get(field.owner, events)
        rows = {"user": events[USER_INDEX], "item": events[ITEM_INDEX]}.get(field.owner, np.arange(len(events)))
        rows = np.asarray(rows)
        values = field.encode(table[field.name])
        tells = []
        for part, codes in _codes(field, values).items():
            codes_of[field.key, part] = codes
            if field.owner == "item":
                sides = {"item": _both(before, after), "popularity": _against(popularity)}
            else:
                sides = {"item": _against(chosen, rows)}
            if rated is not None and field.key != RATING_KEY:
                sides["rating"] = _against(rated, rows)
            tells += [_association(target, part, codes, side, generator) for target, side in sides.items()]
        if field.kind == "number":
            numbers_of[field.key] = values
        figures.append(_figures(field, table[field.name], values, tuple(filter(None, tells))))
        if progress:
            progress(done, len(schema.fields))
    pairs = _pairs(codes_of, numbers_of)
    asked = {name: field.model_dump(mode="json", exclude_defaults=True) for name, field in dataset.fields.items()}
    return FeatureReport(
        len(dataset.events), len(events), label, tuple(_without_twins(figures, pairs)), tuple(pairs), asked
    )


def _without_twins(figures: list[FieldFigures], pairs: list[Pair]) -> list[FieldFigures]:
    """The figures, with a reason to leave out one field of each pair that says the same."""
    drop = {each.key: each.drop for each in figures}
    for pair in sorted(pairs, key=lambda pair: -pair.same):
        one, other = pair.first, pair.second
        if pair.same < SAME or drop.get(one, "part") or drop.get(other, "part"):  # a part of a time is not the field
            continue
        if other in _READ:
            one, other = other, one
        if other not in _READ:
            drop[other] = f"says the same as {one}"
    return [replace(each, drop=drop[each.key]) for each in figures]


def _sample(dataset: Dataset, at_most: int, seed: int) -> np.ndarray:
    """Up to ``at_most`` rows of the events, ascending: items of each popularity have their share."""
    items = dataset.events[ITEM_INDEX].to_numpy()
    stratum = _binned(np.bincount(items, minlength=dataset.n_items).astype(float)[items], STRATA)
    order = np.lexsort([np.random.default_rng(seed).random(len(items)), stratum])
    return np.sort(order[evenly_spread(len(items), at_most)])


def _successive(dataset: Dataset, at_most: int) -> tuple[np.ndarray, np.ndarray]:
    """Up to ``at_most`` pairs of items that the same user had one after the other."""
    events = dataset.events.sort_values([USER_INDEX, ORDER])
    items, users = events[ITEM_INDEX].to_numpy(), events[USER_INDEX].to_numpy()
    pairs = np.flatnonzero(users[1:] == users[:-1])
    pairs = pairs[evenly_spread(len(pairs), at_most)] if len(pairs) else pairs
    return items[pairs], items[pairs + 1]


def _targets(dataset: Dataset, events: pd.DataFrame) -> tuple[np.ndarray, np.ndarray | None, str]:
    """Of each event, the code of its item and that of its rating (``None``: there are none), and what the former is."""
    label = "item"
    names = pd.Series(np.arange(dataset.n_items).astype(str))
    if CATEGORIES in dataset.items:
        first = pd.Series([next(iter(category_names(cell)), "") for cell in strings(dataset.items[CATEGORIES])])
        if first[first != ""].nunique() > 1:
            label, names = "category", first
    chosen = _most_frequent(names.to_numpy(object)[events[ITEM_INDEX].to_numpy()], LABELS)
    ratings = events[RATING].to_numpy(float)
    return chosen, (_binned(ratings, BINS) if np.isfinite(ratings).any() else None), label


def _codes(field: Field, values: np.ndarray) -> dict[str, np.ndarray]:
    """Codes of encoded values by :attr:`Association.part`; a missing value has a code of its own, as for encoders."""
    match field.kind:
        case "category":
            codes = values[:, 0] if values.ndim > 1 else values
            parts = {"": _most_frequent(np.where(codes == 0, "", codes.astype(str)).astype(object), VALUES)}
        case "number":
            parts = {"": _binned(values.astype(float), BINS)}
        case "time" if field.owner in ("user", "item"):
            parts = {"": _binned(values, BINS)}
        case "time":
            there = np.isfinite(values)
            days = np.floor(np.where(there, values, 0.0) / 86_400)
            hours = np.floor(np.where(there, values, 0.0) % 86_400 / 3_600)
            parts = {"by weekday": (days + 3) % 7} | ({"by hour": hours} if len(np.unique(hours[there])) > 1 else {})
            parts = {part: np.where(there, codes, -1).astype(int) for part, codes in parts.items()}
        case _:
            parts = {}
    return {part: codes + 1 for part, codes in parts.items()}


def _binned(values: np.ndarray, bins: int) -> np.ndarray:
    """Codes from 0 by quantiles, or of each value where there are few; -1 where there is none."""
    there = np.isfinite(values)
    distinct = np.unique(values[there])
    edges = distinct if len(distinct) <= bins else np.unique(np.quantile(values[there], np.linspace(0, 1, bins + 1)))
    return np.where(there, np.searchsorted(edges, np.where(there, values, 0.0), side="right") - 1, -1)


def _most_frequent(values: np.ndarray, at_most: int) -> np.ndarray:
    """Codes of the most frequent values, one more for all others, -1 for ``""``."""
    found = pd.Series(values[values != ""]).value_counts().index[:at_most]
    codes = pd.Index(found).get_indexer(pd.Index(values))
    return np.where(values == "", -1, np.where(codes < 0, len(found), codes))


def _both(before: np.ndarray, after: np.ndarray) -> Sides:
    return lambda codes: (codes[before], codes[after])


def _against(target: np.ndarray, rows: np.ndarray | None = None) -> Sides:
    return lambda codes: (codes if rows is None else codes[rows], target)


def _association(
    target: str, part: str, codes: np.ndarray, sides: Sides, generator: np.random.Generator
) -> Association | None:
    """How closely the sides that ``sides`` makes of ``codes`` go together; ``None`` where one is always the same."""
    from sklearn.metrics import mutual_info_score

    def measured(table: np.ndarray) -> tuple[float, float]:
        if min(table.shape) < 2:
            return 0.0, 0.0
        return chi2_contingency(table, correction=False).statistic, mutual_info_score(None, None, contingency=table)

    table = _table(*sides(codes))
    if min(table.shape) < 2:
        return None
    statistic, information = measured(table)
    by_chance = [measured(_table(*sides(generator.permutation(codes)))) for _ in range(PERMUTATIONS)]
    statistics, informations = map(np.array, zip(*by_chance, strict=True))
    gained = (information - informations.mean()) / max(entropy(table.sum(axis=0)) - informations.mean(), 1e-12)
    p = (1 + (statistics >= statistic).sum()) / (1 + PERMUTATIONS)
    return Association(target, part, float(gained), float(p))


def _table(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The contingency table of two codes, without -1 and without empty rows and columns."""
    there = (first >= 0) & (second >= 0)
    first, second = first[there], second[there]
    width = int(second.max(initial=0)) + 1
    counts = np.bincount(first * width + second, minlength=(int(first.max(initial=0)) + 1) * width).reshape(-1, width)
    return counts[counts.any(axis=1)][:, counts.any(axis=0)]


def _figures(field: Field, cells: pd.Series, values: np.ndarray, tells: tuple[Association, ...]) -> FieldFigures:
    rows, there = len(values), ~missing(values)
    written = cells[there]
    distinct = int(written.astype(str).nunique())
    outliers = components = None
    if field.kind == "number" and there.any():
        outliers = float(np.mean(np.abs(values[there] - field.median) > FAR * field.spread))
    if field.kind == "vector" and there.sum() > 1:
        components = _components(values[there])
    without = 1.0 - float(there.mean()) if rows else 0.0
    drop = ""
    if field.key in _READ:
        pass
    elif distinct <= 1 and not without:
        drop = "has one value only"
    elif 1.0 - without < FEW:
        drop = f"is missing in {without:.1%} of the rows"
    elif field.kind == "category" and not field.width and (written.value_counts() == 1).sum() > ID_LIKE * there.sum():
        drop = "has a value of its own in most rows"
    elif tells and all(each.by_chance for each in tells):
        drop = "tells nothing beyond chance"
    return FieldFigures(field.key, field.kind, rows, without, distinct, outliers, components, tells, drop)


def _components(vectors: np.ndarray) -> tuple[int, int]:
    """How many principal components hold 90 % and 99 % of the variance."""
    from sklearn.decomposition import PCA

    some = vectors[evenly_spread(len(vectors), VECTOR_ROWS)]
    shares = np.cumsum(PCA(svd_solver="full").fit(some).explained_variance_ratio_)
    few, most = (min(int(np.searchsorted(shares, share)) + 1, len(shares)) for share in (0.9, 0.99))
    return few, most


def _pairs(codes_of: dict[tuple[str, str], np.ndarray], numbers_of: dict[str, np.ndarray]) -> list[Pair]:
    """The pairs of fields with rows of one table that go together, the closest first."""
    found = []
    for one, other in combinations(codes_of, 2):
        owners = [key.partition(".")[0] for key, _ in (one, other)]
        if one[0] == other[0] or len({_TABLES.get(owner, owner) for owner in owners}) > 1:
            continue
        table, correlation = _table(codes_of[one], codes_of[other]), None
        association = _cramers_v(table)
        if one[0] in numbers_of and other[0] in numbers_of:
            both = pd.Series(numbers_of[one[0]]).corr(pd.Series(numbers_of[other[0]]), method="spearman")
            correlation = float(both) if np.isfinite(both) else None
        if max(association, abs(correlation or 0.0)) >= LISTED:
            first, second = (" ".join(each).rstrip() for each in (one, other))
            found.append(Pair(first, second, association, _same(table), correlation))
    return sorted(found, key=lambda pair: -pair.association)


def _cramers_v(table: np.ndarray) -> float:
    n, (rows, columns) = table.sum(), table.shape
    if n < 2 or min(rows, columns) < 2:
        return 0.0
    phi = max(0.0, chi2_contingency(table, correction=False).statistic / n - (rows - 1) * (columns - 1) / (n - 1))
    rows, columns = rows - (rows - 1) ** 2 / (n - 1), columns - (columns - 1) ** 2 / (n - 1)
    return float(min(1.0, np.sqrt(phi / max(min(rows, columns) - 1, 1e-9))))


def _same(table: np.ndarray) -> float:
    """:attr:`Pair.same`."""
    alone = [entropy(table.sum(axis=axis)) for axis in (0, 1)]
    shared = sum(alone) - entropy(table.ravel())
    return float(shared / max(alone)) if max(alone) > 0 else 0.0
