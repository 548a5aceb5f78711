"""Measures how much each field of a data set tells about the chosen items, and which fields can be left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import chi2_contingency, entropy

from tfllmrec.columns import CATEGORIES, EVENT_KIND, ITEM_INDEX, ORDER, RATING, USER_INDEX, setting_names
from tfllmrec.data.cleaning.names import category_names
from tfllmrec.data.cleaning.values import strings
from tfllmrec.data.sampling import evenly_spread
from tfllmrec.data.schema import BINS, FAR, RATING_KEY, VECTOR_ROWS, Field, missing
from tfllmrec.errors import not_installed
from tfllmrec.progress import Progress

if TYPE_CHECKING:
    from tfllmrec.data.dataset import Dataset

#: Bins of the popularity of items, by quantiles.
STRATA = 10
#: Number of item labels that are distinguished, the most frequent ones; the others count as one.
LABELS = 50
#: Number of values of a field that are distinguished, the most frequent ones; the others count as one.
VALUES = 200
#: A field with fewer values than this share of its rows is nearly empty.
FEW = 0.05
#: The lowest association of a pair that is listed, and the lowest :attr:`Pair.same` at which one field is enough.
LISTED, SAME = 0.5, 0.95
#: The number of permutations of a field's cells, and the p-value above which an association may be chance.
PERMUTATIONS, CHANCE = 99, 0.05
#: A vector of items with this many numbers is wide; its components are suggested if they are at most this share, and
#: there are this many times more distinct vectors.
WIDE, NARROW, MORE = 256, 0.5, 4
#: A category is treated as an id if more than this share of its values occur only once.
ID_LIKE = 0.5
#: Maps owners to their table if the two have different names.
_TABLES = {"request": "event"}
#: The targets, in the order of the columns of a table.
_TARGETS = ("item", "popularity", "rating")

#: Computes the two sides of a contingency table, codes of equal length, from the codes of a field.
Sides = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Association:
    """The strength of the association between a field and a target.

    Attributes:
      target: ``item``, ``rating`` or ``popularity`` (number of events of the item). ``item`` is the item's first
        category, or the item itself if there are no categories. For a field of items, ``item`` is the value of that
        field for the next item of the same user.
      part: For times ``by hour`` or ``by weekday``; ``""`` for other fields.
      information: Mutual information above chance, as a share of the target's entropy above chance: 0 if the field
        tells nothing about the target, 1 if it determines the target.
      p: P-value of the permutation test with the chi-squared statistic: (1 + number of permutations at least as high) /
        100.
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
        """Returns a text such as ``0.0310 by hour``, in brackets if the association may be chance."""
        text = f"{max(self.information, 0.0):.4f} {self.part}".rstrip()
        return f"({text})" if self.by_chance else text


@dataclass(frozen=True)
class FieldFigures:
    """The figures of one field.

    Attributes:
      key: ``OWNER.NAME``.
      kind: The kind of the field in the schema.
      rows: Number of examined cells.
      missing: Share of cells without a value.
      distinct: Number of distinct values.
      outliers: For a number, the share of values that are more than :data:`~tfllmrec.data.schema.FAR` spreads from the
        median, where encoders clip them; ``None`` for other kinds.
      width: For a vector, how many numbers models read; ``None`` for other kinds.
      components: For a vector, the numbers of principal components that explain 90 % and 99 % of the variance.
      tells: The associations with the targets; empty for texts, ids and vectors.
      drop: Why the field can be left out, such as ``has one value only``, or ``""``.
    """

    key: str
    kind: str
    rows: int
    missing: float
    distinct: int
    outliers: float | None
    width: int | None
    components: tuple[int, int] | None
    tells: tuple[Association, ...]
    drop: str = ""

    def told(self, target: str) -> list[Association]:
        """Returns the associations with a target; a time has one for each part."""
        return [each for each in self.tells if each.target == target]

    def cells(self, targets: Sequence[str]) -> list[str]:
        """Returns the row of the field in a table with a column for each of ``targets``."""
        outliers = "" if self.outliers is None else f"{self.outliers:.1%}"
        kind = self.kind if self.components is None else "vector: {} to {} components".format(*self.components)
        told = ["  ".join(each.worded() for each in self.told(target)) for target in targets]
        return [self.key, kind, f"{self.missing:.1%}", f"{self.distinct:,}", outliers, *told, self.drop]


@dataclass(frozen=True)
class Pair:
    """Two associated fields of one table.

    Attributes:
      first: Key of the first field; for a time with its part.
      second: Key of the second field; for a time with its part.
      association: Cramer's V of the binned values, corrected for bias (Bergsma 2013). 0: they are independent; 1: the
        one with fewer values follows from the other.
      same: The share of a field's entropy that the other field explains, the lower of both directions. 1: each follows
        from the other.
      correlation: Spearman's correlation of two numbers; ``None`` for other kinds.
    """

    first: str
    second: str
    association: float
    same: float
    correlation: float | None

    def line(self) -> str:
        """Returns the pair in words."""
        also = "" if self.correlation is None else f", Spearman's correlation {self.correlation:.2f}"
        return f"{self.first} and {self.second} go together: Cramer's V {self.association:.2f}{also}"


@dataclass(frozen=True)
class FeatureReport:
    """The result of :func:`feature_report`.

    Attributes:
      events: Number of events of the data set.
      sampled: Number of events that were examined.
      label: The label used for an item: ``category`` or ``item``.
      fields: The figures of the fields, in the order of the schema.
      pairs: The pairs with an association or a correlation of at least :data:`LISTED`, the strongest association first.
      asked: The ``data.fields`` that the data was read with.
    """

    events: int
    sampled: int
    label: str
    fields: tuple[FieldFigures, ...]
    pairs: tuple[Pair, ...]
    asked: Mapping[str, Any]

    @property
    def _targets(self) -> list[str]:
        """The targets of the columns of the table; without ratings, there is no column for them."""
        found = {each.target for field in self.fields for each in field.tells}
        return [target for target in _TARGETS if target != "rating" or target in found]

    @property
    def rows(self) -> list[list[str]]:
        """The rows of the table of the fields."""
        return [field.cells(self._targets) for field in self.fields]

    @property
    def header(self) -> list[str]:
        """The names of the columns of :attr:`rows`."""
        told = [f"tells of {self.label if target == 'item' else target}" for target in self._targets]
        return ["field", "kind", "missing", "distinct", "outliers", *told, "leave out because it"]

    @property
    def _narrower(self) -> dict[str, int]:
        """The number of components with 99 % of the variance, by field; only for wide vectors of which that is few.

        There must be several times more vectors than components, because any few vectors have few components.
        """
        return {
            field.key: field.components[1]
            for field in self.fields
            if field.key.startswith("item.") and field.components and field.width and field.width >= WIDE
            if field.components[1] <= min(NARROW * field.width, field.distinct / MORE) and not field.drop
        }

    @property
    def advice(self) -> str:
        """What :attr:`suggestion` does, in words; ``""`` if nothing is suggested."""
        leaves_out = "leave these fields out" if any(field.drop for field in self.fields) else ""
        narrows = "read wide vectors by the components with 99% of their variance" if self._narrower else ""
        return " and ".join(filter(None, (leaves_out, narrows)))

    @property
    def suggestion(self) -> str:
        """The setting that follows :attr:`advice`, in addition to ``asked``; ``""`` without advice."""
        changes: dict[str, dict[str, Any]] = {field.key: {"use": False} for field in self.fields if field.drop}
        changes |= {key: {"components": components} for key, components in self._narrower.items()}
        fields = {name: dict(asked) for name, asked in self.asked.items()}
        for key, change in changes.items():
            owner, _, column = key.partition(".")
            of_field = setting_names(owner, column)[:-1]  # a name without an owner may also be that of other fields
            name = next((name for name in of_field if name in fields), key)
            fields[name] = fields.get(name, fields.get(column, {})) | change
        return f"data.fields={json.dumps(fields, ensure_ascii=False)}" if changes else ""

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as plain JSON types."""
        return asdict(self) | {"advice": self.advice, "suggestion": self.suggestion}


def require_scikit_learn() -> None:
    """Checks that scikit-learn is installed, before the computation starts.

    Raises:
      ConfigError: scikit-learn is not installed.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise not_installed("Measuring fields needs scikit-learn", error, "features") from error


def feature_report(
    dataset: Dataset, at_most: int = 200_000, seed: int = 42, progress: Progress | None = None
) -> FeatureReport:
    """Measures the association of every field of a data set with the chosen item, its rating and its popularity.

    Fields of events, requests and users are compared with the item and the rating of each event. Fields of items are
    compared with the same field of the user's next item, with the rating and with the popularity of the item. Numbers
    are binned by quantiles, times of events by hour and by weekday (UTC); of a cell with several names only the first
    one is used.

    The chance level is the mean over random permutations of the field's cells among the rows of its table. The events
    of one user depend on each other, so a test that ignored this would find every column of the users significant.
    (Columns of events are permuted event by event, so they are still judged too favourably.)

    A large log is sampled so that items of each popularity keep their share.

    Args:
      dataset: The events, items and users.
      at_most: The largest number of events to examine.
      seed: Seed of the sample and of the permutations.
      progress: Called after each field, see :func:`tfllmrec.progress.show_progress`.

    Raises:
      ConfigError: scikit-learn is not installed.
    """
    require_scikit_learn()
    events = dataset.events.iloc[_sample(dataset, at_most, seed)]
    chosen, rated, label = _targets(dataset, events)
    popularity = _binned(np.bincount(dataset.events[ITEM_INDEX], minlength=dataset.n_items).astype(float), STRATA)
    before, after = _successive(dataset, at_most)
    generator = np.random.default_rng(seed)

    figures: list[FieldFigures] = []
    codes_of: dict[tuple[str, str], np.ndarray] = {}
    numbers_of: dict[str, np.ndarray] = {}
    fields = dataset.schema.with_values
    for done, field in enumerate(fields, start=1):
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
            progress(done, len(fields))
    pairs = _pairs(codes_of, numbers_of)
    asked = {name: field.model_dump(mode="json", exclude_defaults=True) for name, field in dataset.fields.items()}
    kept = {field.key for field in fields if _is_always_read(field)}
    figures = _without_twins(figures, pairs, kept)
    return FeatureReport(len(dataset.events), len(events), label, tuple(figures), tuple(pairs), asked)


def _is_always_read(field: Field) -> bool:
    """Returns whether models read a field however little it tells: ratings, and what weighs events."""
    return field.key in (RATING_KEY, f"event.{EVENT_KIND}") or bool(field.weights or field.medians)


def _without_twins(figures: list[FieldFigures], pairs: list[Pair], kept: set[str]) -> list[FieldFigures]:
    """Returns the figures, with a reason to leave out one field of each pair with the same information.

    The fields with the keys ``kept`` are not left out.
    """
    drop = {each.key: each.drop for each in figures}
    for pair in sorted(pairs, key=lambda pair: -pair.same):
        one, other = pair.first, pair.second
        if pair.same < SAME or drop.get(one, "part") or drop.get(other, "part"):  # a part of a time is not a field
            continue
        if other in kept:
            one, other = other, one
        if other not in kept:
            drop[other] = f"says the same as {one}"
    return [replace(each, drop=drop[each.key]) for each in figures]


def _sample(dataset: Dataset, at_most: int, seed: int) -> np.ndarray:
    """Returns up to ``at_most`` rows of the events, ascending, so that items of each popularity keep their share."""
    items = dataset.events[ITEM_INDEX].to_numpy()
    stratum = _binned(np.bincount(items, minlength=dataset.n_items).astype(float)[items], STRATA)
    order = np.lexsort([np.random.default_rng(seed).random(len(items)), stratum])
    return np.sort(order[evenly_spread(len(items), at_most)])


def _successive(dataset: Dataset, at_most: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns up to ``at_most`` pairs of successive items of the same user."""
    events = dataset.events.sort_values([USER_INDEX, ORDER])
    items, users = events[ITEM_INDEX].to_numpy(), events[USER_INDEX].to_numpy()
    pairs = np.flatnonzero(users[1:] == users[:-1])
    pairs = pairs[evenly_spread(len(pairs), at_most)] if len(pairs) else pairs
    return items[pairs], items[pairs + 1]


def _targets(dataset: Dataset, events: pd.DataFrame) -> tuple[np.ndarray, np.ndarray | None, str]:
    """Returns the targets of the events.

    Returns:
      The code of each event's item; the code of its rating (``None`` without ratings); and what stands for an item: its
      first ``category`` or the ``item`` itself.
    """
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
    """Returns the codes of encoded values by :attr:`Association.part`; as in encoders, missing values have a code."""
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
    """Returns codes from 0: quantile bins, or one code per value if there are few values; -1 for missing values."""
    there = np.isfinite(values)
    distinct = np.unique(values[there])
    edges = distinct if len(distinct) <= bins else np.unique(np.quantile(values[there], np.linspace(0, 1, bins + 1)))
    return np.where(there, np.searchsorted(edges, np.where(there, values, 0.0), side="right") - 1, -1)


def _most_frequent(values: np.ndarray, at_most: int) -> np.ndarray:
    """Returns codes of the most frequent values, one more code for all others, and -1 for ``""``."""
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
    """Measures the association of the two sides that ``sides`` computes from ``codes``; ``None`` if one is constant."""
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
    """Returns the contingency table of two code arrays, without the code -1 and without empty rows and columns."""
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
    if _is_always_read(field):
        pass
    elif distinct <= 1 and not without:
        drop = "has one value only"
    elif 1.0 - without < FEW:
        drop = f"is missing in {without:.1%} of the rows"
    elif field.kind == "category" and not field.width and (written.value_counts() == 1).sum() > ID_LIKE * there.sum():
        drop = "has a value of its own in most rows"
    elif tells and all(each.by_chance for each in tells):
        drop = "tells nothing beyond chance"
    width = field.width if field.kind == "vector" else None
    return FieldFigures(field.key, field.kind, rows, without, distinct, outliers, width, components, tells, drop)


def _components(vectors: np.ndarray) -> tuple[int, int]:
    """Returns how many principal components explain 90 % and 99 % of the variance."""
    from sklearn.decomposition import PCA

    some = vectors[evenly_spread(len(vectors), VECTOR_ROWS)]
    shares = np.cumsum(PCA(svd_solver="covariance_eigh").fit(some).explained_variance_ratio_)
    few, most = (min(int(np.searchsorted(shares, share)) + 1, len(shares)) for share in (0.9, 0.99))
    return few, most


def _pairs(codes_of: dict[tuple[str, str], np.ndarray], numbers_of: dict[str, np.ndarray]) -> list[Pair]:
    """Returns the associated pairs of fields whose rows belong to one table, the strongest association first."""
    found = []
    for one, other in combinations(codes_of, 2):
        owners = [key.partition(".")[0] for key, _ in (one, other)]
        if one[0] == other[0] or len({_TABLES.get(owner, owner) for owner in owners}) > 1:
            continue
        table, correlation = _table(codes_of[one], codes_of[other]), None
        association = _cramers_v(table)
        if one[0] in numbers_of and other[0] in numbers_of:
            both = pd.DataFrame({0: numbers_of[one[0]], 1: numbers_of[other[0]]}).dropna()
            if both.nunique().min() > 1:
                correlation = float(both[0].corr(both[1], method="spearman"))
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
    """Computes :attr:`Pair.same`."""
    alone = [entropy(table.sum(axis=axis)) for axis in (0, 1)]
    shared = sum(alone) - entropy(table.ravel())
    return float(shared / max(alone)) if max(alone) > 0 else 0.0
