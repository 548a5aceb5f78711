"""Joins several data sets into one: the domains of a company, with shared users, shared items or neither."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from tfllmrec.columns import DOMAIN, EVENT_TYPES, ITEM, ITEM_INDEX, ORDER, TEST_EVENT, TIMESTAMP, USER, USER_INDEX
from tfllmrec.data.cleaning.order_checks import by_id
from tfllmrec.data.cleaning.tags import no_tags
from tfllmrec.data.dataset import Dataset
from tfllmrec.data.findings import CleaningReport
from tfllmrec.data.schema import Schema
from tfllmrec.errors import ConfigError, DataError

#: Separates the name of a domain from the id, in ids that are not shared.
SEPARATOR = ":"
#: Separates the domains of a shared item.
BOTH = "|"


@dataclass(frozen=True)
class Overlap:
    """What two domains share.

    Attributes:
      domains: Their names.
      users: Number of ids of users that both have.
      items: Number of ids of items that both have.
      user_share: ``users`` as a share of the users of the smaller domain.
      item_share: ``items`` as a share of the items of the smaller domain.
      events: Number of events of the shared users in each of the two domains.
    """

    domains: tuple[str, str]
    users: int
    items: int
    user_share: float
    item_share: float
    events: tuple[int, int]

    def __str__(self) -> str:
        first, second = self.domains
        return (
            f"{first} and {second} share {self.users:,} users ({self.user_share:.1%} of the smaller domain; "
            f"{self.events[0]:,} and {self.events[1]:,} events) and {self.items:,} items ({self.item_share:.1%})"
        )

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Overlap:
        """Creates the overlap from the result of :meth:`as_dict`."""
        return cls(**{**plain, "domains": tuple(plain["domains"]), "events": tuple(plain["events"])})

    def as_dict(self) -> dict[str, Any]:
        """Returns the overlap as plain JSON types."""
        return {**asdict(self), "domains": list(self.domains), "events": list(self.events)}


def overlaps(datasets: Mapping[str, Dataset], share_users: bool = True, share_items: bool = False) -> list[Overlap]:
    """Returns the overlap of each pair of data sets, with ids compared as :func:`join_datasets` does."""
    return [_overlap((a, b), datasets[a], datasets[b], share_users, share_items) for a, b in combinations(datasets, 2)]


def _overlap(names: tuple[str, str], a: Dataset, b: Dataset, share_users: bool, share_items: bool) -> Overlap:
    users = np.intersect1d(a.users[USER], b.users[USER]) if share_users else np.empty(0, object)
    items = np.intersect1d(a.items[ITEM], b.items[ITEM]) if share_items else np.empty(0, object)
    return Overlap(
        names,
        len(users),
        len(items),
        len(users) / min(a.n_users, b.n_users),
        len(items) / min(a.n_items, b.n_items),
        (int(a.events[USER].isin(users).sum()), int(b.events[USER].isin(users).sum())),
    )


def join_datasets(
    datasets: Mapping[str, Dataset], *, name: str | None = None, share_users: bool = True, share_items: bool = False
) -> Dataset:
    """Joins the data sets of several domains; the column ``domain`` of events and items names the domain of each row.

    - A user with the same id in two domains is one user, unless ``share_users`` is False. An item with the same id in
      two domains is two items, unless ``share_items`` is True. Ids that are not shared are always written as
      ``DOMAIN:ID``, so that they stay the same when a domain is added.
    - If all events of all domains have times, a user's events are ordered by time. Otherwise the domains have no common
      clock: a user's events of the first domain come first, then those of the second one, and so on, each in the order
      of its own domain. The report counts the affected users. Name the domain for which you want recommendations last.
    - A shared item has the values of the first domain; empty values are filled from the others. Its ``domain`` holds
      the names of all its domains, separated by ``|``.

    Args:
      datasets: The data sets by the name of their domain, at least two.
      name: Name of the result; by default the names of the domains, joined by ``+``.
      share_users: Whether equal user ids are one user.
      share_items: Whether equal item ids are one item.

    Raises:
      ConfigError: There are fewer than two domains, or a name is empty or contains ``:``, ``|`` or ``>``.
      DataError: A domain has test events or a column ``domain``, two domains declare a field differently, or only some
        of them allow repeats.
    """
    _check(datasets)
    overlap = overlaps(datasets, share_users, share_items)
    items = _joined_table(datasets, "items", ITEM, share_items)
    users = _joined_table(datasets, "users", USER, share_users)
    parts = []
    for place, (domain, dataset) in enumerate(datasets.items()):
        ids = {
            USER: _ids(domain, dataset.events[USER], share_users),
            ITEM: _ids(domain, dataset.events[ITEM], share_items),
        }
        parts.append(dataset.events.assign(**ids, **{DOMAIN: domain}, _place=place))
    events = pd.concat(parts, ignore_index=True)
    for column in events.columns.difference([*EVENT_TYPES, DOMAIN, "_place"]):
        events[column] = events[column].fillna("").astype("str")
    events[USER_INDEX] = pd.Index(users[USER]).get_indexer(events[USER]).astype(np.int64)
    events[ITEM_INDEX] = pd.Index(items[ITEM]).get_indexer(events[ITEM]).astype(np.int64)
    timed = bool(events[TIMESTAMP].notna().all()) and all(dataset.ordered for dataset in datasets.values())
    events = events.sort_values([USER_INDEX, *([TIMESTAMP] if timed else []), "_place", ORDER], kind="stable")
    report = _report(datasets, overlap)
    if not timed:
        several = events.groupby(USER_INDEX)["_place"].nunique() > 1
        what = "users of several domains, which have no common clock: events in the order in which domains are named"
        report.add("users", what, int(several.sum()), "kept")
    repeats = next(iter(datasets.values())).repeats
    if share_items and not repeats:
        again = events.duplicated([USER_INDEX, ITEM_INDEX], keep="last")
        report.add("events", "the same user and item in several domains (kept: the last)", int(again.sum()), "dropped")
        report.rows_kept["events"] = report.rows_kept.get("events", 0) - int(again.sum())
        events = events[~again]
    events = events.drop(columns="_place").reset_index(drop=True)
    events[ORDER] = events.groupby(USER_INDEX).cumcount().astype(np.int64)
    columns = [*EVENT_TYPES, *(column for column in events if column not in EVENT_TYPES)]
    return Dataset(
        name=name or "+".join(datasets),
        events=events[columns].astype(EVENT_TYPES),
        items=items,
        users=users,
        tags=_joined_tags(datasets, share_users, share_items),
        ordered=all(dataset.ordered for dataset in datasets.values()),
        repeats=repeats,
        fields={key: known for dataset in datasets.values() for key, known in dataset.fields.items()},
        report=report,
    )


def item_domains(items: pd.DataFrame, schema: Schema) -> np.ndarray | None:
    """Returns the domain of each item, object ``[N]``; ``None`` if the data is not joined.

    Joined data has a column ``domain`` both in the items and in the events, where models may read it. A catalogue of
    one domain may have such a column, too, with another meaning.
    """
    of_events = any(field.name == DOMAIN for field in schema.of("event", "request"))
    return items[DOMAIN].to_numpy(object) if of_events and DOMAIN in items else None


def domain_names(domains: np.ndarray | None) -> list[str]:
    """Returns the names in the result of :func:`item_domains`, in the order of their first occurrence."""
    cells = dict.fromkeys([] if domains is None else domains)
    return list(dict.fromkeys(name for cell in cells if cell for name in cell.split(BOTH)))


def with_event_domains(dataset: Dataset) -> Dataset:
    """Returns a data set whose events have the domain of their item if only the items have a column ``domain``."""
    if DOMAIN in dataset.events or DOMAIN not in dataset.items:
        return dataset
    cells = dataset.items[DOMAIN].to_numpy(object)[dataset.events[ITEM_INDEX]]
    return replace(dataset, events=dataset.events.assign(**{DOMAIN: cells}).astype({DOMAIN: "str"}))


def with_new_domains(
    items: pd.DataFrame, is_new: np.ndarray, names: Sequence[str], default: str | None
) -> pd.DataFrame:
    """Fills the empty ``domain`` of new items: with the prefix of their id if it is a known domain, or else a default.

    Args:
      items: An items table of joined data.
      is_new: Bool ``[N]``: the new items.
      names: The known domains.
      default: The domain of ids without such a prefix; ``None``: they need a domain of their own.

    Raises:
      DataError: An item has no domain.
    """
    empty = is_new & (items[DOMAIN] == "").to_numpy()
    prefix = items[ITEM].str.extract(f"^([^{SEPARATOR}]+){SEPARATOR}", expand=False)
    found = prefix.where(prefix.isin(names), default)
    unknown = items[ITEM][empty & found.isna().to_numpy()]
    if len(unknown):
        raise DataError(
            f"Expected a value in the column '{DOMAIN}' of each new item ({', '.join(names)}), found none for "
            f"{len(unknown):,}, such as {unknown.iloc[0]!r}. Add it, or begin the ids with the domain, as in "
            f"{names[0] + SEPARATOR + unknown.iloc[0]!r}."
        )
    return items.assign(**{DOMAIN: items[DOMAIN].mask(empty, found)})


def items_of_domain(items: pd.DataFrame, domain: str) -> np.ndarray:
    """Returns a bool ``[N]`` mask of the items of a domain, including those that it shares with others."""
    return items[DOMAIN].str.split(BOTH, regex=False).map(lambda names: domain in names).to_numpy(dtype=bool)


def domain_bits(domains: np.ndarray) -> np.ndarray:
    """Returns the domains of each item as bits, int64 ``[N]``: two items share a domain if ``a & b`` is not 0.

    Args:
      domains: Object ``[N]``, the column ``domain``; an item without a value belongs to all domains.

    Raises:
      DataError: There are more than 62 domains.
    """
    names = sorted(domain_names(domains))
    if len(names) > 62:
        raise DataError(f"Expected at most 62 domains, found {len(names)}. Join fewer of them.")
    of_cell = {cell: sum(1 << names.index(name) for name in cell.split(BOTH)) for cell in set(domains) if cell}
    of_cell[""] = (1 << len(names)) - 1
    return np.array([of_cell[cell] for cell in domains], np.int64)


def domain_filters(items: pd.DataFrame, schema: Schema) -> list[list[str]]:
    """Returns the filters ``domain=NAME`` with which a request selects items of a domain, for each item.

    The list of an item is empty without domains. A served model accepts the filters in ``categories``.
    """
    domains = item_domains(items, schema)
    cells = [""] * len(items) if domains is None else domains
    return [[f"{DOMAIN}={name}" for name in cell.split(BOTH) if name] for cell in cells]


def only_domains(domains: Iterable[str]) -> list[str]:
    """Returns the domain of each item; "" for an item of several domains, or of none."""
    return ["" if BOTH in cell else cell for cell in domains]


def with_domains(events: pd.DataFrame, items: pd.DataFrame, report: CleaningReport) -> pd.DataFrame:
    """Fills the empty domains of events of joined data from their items; an item of several domains does not tell."""
    empty = (events[DOMAIN] == "").to_numpy()
    of_item = np.array(only_domains(items[DOMAIN]), object)
    filled = events[DOMAIN].where(~empty, of_item[events[ITEM_INDEX]])
    left = int((filled == "").sum())
    report.add("events", f"no {DOMAIN}: that of the item", int(empty.sum()) - left, "repaired")
    report.add("events", f"no {DOMAIN}, and the item has several or none", left, "kept")
    return events.assign(**{DOMAIN: filled})


def note_without_domain(known: pd.DataFrame, extended: pd.DataFrame, report: CleaningReport) -> None:
    """Reports the new items of joined data that have no domain; the items are the ``known`` ones and then the new."""
    new = extended[len(known) :]
    bare = new[ITEM][new[DOMAIN] == ""]
    what = (
        f"{len(bare):,} new items have no {DOMAIN}, so no request for a domain finds them: expected ids as in the "
        f"joined data, such as {known[ITEM].iloc[0]!r}, and the column {DOMAIN!r} in the file of new items"
    )
    report.add("items", what, len(bare), "doubted", f"{bare.iloc[0]!r}" if len(bare) else "")


def _check(datasets: Mapping[str, Dataset]) -> None:
    if len(datasets) < 2:
        raise ConfigError(f"Expected at least two domains to join, got {len(datasets)}.")
    for domain, dataset in datasets.items():
        if not domain or {SEPARATOR, BOTH, ">"} & set(domain):
            raise ConfigError(
                f"Expected a name of a domain, without '{SEPARATOR}', '{BOTH}' and '>', found {domain!r}. Rename it."
            )
        if TEST_EVENT in dataset.events:
            raise DataError(f"{domain}: expected data without test events. Read it again without split.test_events.")
        if DOMAIN in dataset.events and DOMAIN in dataset.items:
            raise DataError(
                f"{domain}: expected the data of one domain, found joined data. Join the data sets that it was made of "
                "with the new one. With 'tfllmrec transfer', pass their runs as several --source."
            )
        for table in ("events", "items"):
            if DOMAIN in getattr(dataset, table):
                raise DataError(
                    f"{domain}: its {table} have a column '{DOMAIN}' already, which joined data uses for the name of "
                    "the domain. Rename the column."
                )
    for key in {key for dataset in datasets.values() for key in dataset.fields}:
        declared = {domain: dataset.fields[key] for domain, dataset in datasets.items() if key in dataset.fields}
        if any(known != next(iter(declared.values())) for known in declared.values()):
            raise DataError(
                f"data.fields: expected one declaration of {key!r}, because joined data has one such column; "
                f"{' and '.join(declared)} declare it differently. Read them again with the same declaration."
            )
    if len({dataset.repeats for dataset in datasets.values()}) > 1:
        raise DataError("Expected data.repeats to be 'all' for every domain or for none, because it is one task.")


def _ids(domain: str, ids: pd.Series, shared: bool) -> pd.Series:
    return ids if shared else (domain + SEPARATOR + ids.astype("str")).astype("str")


def _joined_table(datasets: Mapping[str, Dataset], table: str, key: str, shared: bool) -> pd.DataFrame:
    """Returns the rows of all domains: in natural order of their ids if these are shared, else domain after domain."""
    parts = []
    for domain, dataset in datasets.items():
        rows = getattr(dataset, table)
        rows = rows.assign(**{key: _ids(domain, rows[key], shared)})
        parts.append(rows.assign(**{DOMAIN: domain}) if table == "items" else rows)
    joined = pd.concat(parts, ignore_index=True).fillna("").astype("str")
    if not shared:
        return joined
    grouped = joined.replace("", None).groupby(key, sort=False)
    first = grouped.first()  # the first non-empty value
    if table == "items":
        first[DOMAIN] = grouped[DOMAIN].agg(BOTH.join)
    merged = first.reset_index().fillna("").astype("str")[list(joined.columns)]
    return merged.iloc[by_id(merged[key])].reset_index(drop=True)


def _joined_tags(datasets: Mapping[str, Dataset], share_users: bool, share_items: bool) -> pd.DataFrame:
    parts = [
        dataset.tags.assign(
            **{
                USER: _ids(domain, dataset.tags[USER], share_users).where(dataset.tags[USER] != "", ""),
                ITEM: _ids(domain, dataset.tags[ITEM], share_items),
            }
        )
        for domain, dataset in datasets.items()
        if len(dataset.tags)
    ]
    return pd.concat(parts, ignore_index=True) if parts else no_tags()


def _report(datasets: Mapping[str, Dataset], overlap: list[Overlap]) -> CleaningReport:
    """Combines the reports of all domains and adds a line for the overlap of each pair of domains."""
    report = CleaningReport()
    for domain, dataset in datasets.items():
        findings = [replace(found, what=f"{domain}: {found.what}") for found in dataset.report.findings]
        sources = [f"{domain}: {source}" for source in dataset.report.sources]
        report = report.followed_by(replace(dataset.report, findings=findings, sources=sources))
    report.sources = [*report.sources, *map(str, overlap)]
    return report
