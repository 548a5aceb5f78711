"""Compiles rules for a version's catalogue to tables with a value for each item."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from tfllmrec.columns import CATEGORIES, ITEM, TITLE
from tfllmrec.data.schema import Schema
from tfllmrec.serving.layout import read_catalogue, read_item_fields, read_manifest
from tfllmrec.serving.rules.compiled import digest_of_ids, packed
from tfllmrec.serving.rules.document import Condition, RulesFile, Selector, seconds_of
from tfllmrec.wording import nearest_hint

DAY_S = 86_400.0
#: Largest number of names of regions; each request is compared with all of them.
MOST_REGIONS = 1000
_COMPARED: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "above": np.greater,
    "below": np.less,
    "at_least": np.greater_equal,
    "at_most": np.less_equal,
}
Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Decisions:
    """The inputs of the rules that are not in the rules file.

    Attributes:
      stock: The count of each item.
      prices: The present prices of items.
      approved: Ids that a person has approved.
      rejected: Ids that a person has rejected.
      seen: Ids that do not count as new.
    """

    stock: Mapping[str, float] = field(default_factory=dict)
    prices: Mapping[str, float] = field(default_factory=dict)
    approved: Collection[str] = ()
    rejected: Collection[str] = ()
    seen: Collection[str] = ()


@dataclass(frozen=True)
class RuleCount:
    """Statistics of one rule for a catalogue.

    Attributes:
      line: The line of the rule in the rules file.
      rule: The kind of the rule.
      items: The number of items that the rule selects.
      not_found: The ids and categories of the rule that are not in the catalogue.
      without_value: The number of items without a value in the field (or stock table) that the rule reads.
      never_shown: The number of items of a rule of the kind ``regions``, ``fresh`` or ``sponsored`` that no request is
        shown, because of other rules.
    """

    line: int
    rule: str
    items: int
    not_found: Sequence[str] = ()
    without_value: int = 0
    never_shown: int = 0


@dataclass(frozen=True)
class Compiled:
    """The compiled rules of one version.

    Attributes:
      content: The content of the file that the graph reads.
      counts: Statistics of each rule.
      hidden: The number of items that are hidden from all requests, regardless of the context and the time.
      restricted: The number of other items that may be hidden, depending on the context or the time of a request.
      waiting: The ids and titles of the items that wait for a review.
    """

    content: bytes
    counts: Sequence[RuleCount]
    hidden: int
    restricted: int
    waiting: Sequence[tuple[str, str]]


class RuledCatalogue:
    """The items of an exported version, with the data that rules select them by.

    Args:
      items: The ids, titles and, if there are any, lists of categories of the items.
      fields: The fields of the items, as :func:`tfllmrec.serving.layout.read_item_fields` returns them.
      kinds: The kinds of the fields, by name.
    """

    def __init__(self, items: pd.DataFrame, fields: pd.DataFrame, kinds: Mapping[str, str]) -> None:
        self.items, self.fields, self.kinds = items, fields, kinds
        self.ids: list[str] = items[ITEM].tolist()
        self.index = {item: number for number, item in enumerate(self.ids)}

    @classmethod
    def of(cls, version: Path) -> RuledCatalogue:
        """Reads the catalogue of an exported version.

        Raises:
          ModelError: A table of the version is missing or damaged.
        """
        schema = Schema.from_dict(read_manifest(version).get("schema", []))
        kinds = {field.name: field.kind for field in schema.of("item")}
        return cls(read_catalogue(version), read_item_fields(version), kinds)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def members(self) -> dict[str, list[int]]:
        """The indices of the items of each category, by the names of the categories."""
        found: dict[str, list[int]] = {}
        for number, names in enumerate(self.items.get(CATEGORIES, ())):
            for name in names:
                found.setdefault(name, []).append(number)
        return found

    def values(self, name: str, rules: RulesFile, place: Place) -> np.ndarray:
        """Returns the values of a field.

        Args:
          name: The name of the field.
          rules: The rules file, for messages.
          place: The place in the rules file that names the field.

        Returns:
          Float64 ``[N]`` for numbers and times, NaN for none; otherwise texts, or lists of texts.

        Raises:
          ConfigError: The items do not have the field.
        """
        if name not in self.fields:
            there = list(map(str, self.fields.columns))
            raise rules.error(
                place,
                f"the items have no field {name!r}{nearest_hint(name, there)}; expected one of "
                f"{', '.join(there) or 'none: the catalogue has only ids, titles and categories'}.",
            )
        return self.fields[name].to_numpy()

    def numbers(self, name: str, kind: str, rules: RulesFile, place: Place) -> np.ndarray:
        """Returns the values of a field that must be of a kind, *number* or *time*; see :meth:`values`.

        Raises:
          ConfigError: The items do not have the field, or it is of another kind.
        """
        values = self.values(name, rules, place)
        if self.kinds[name] != kind:
            raise rules.error(place, f"expected a field of kind {kind}, found {name!r} of kind {self.kinds[name]}.")
        return values


def compile_rules(rules: RulesFile, decisions: Decisions, digest: bytes, catalogue: RuledCatalogue) -> Compiled:
    """Compiles a rules file for a catalogue.

    Args:
      rules: The rules file.
      decisions: The stock and the decisions of reviews.
      digest: The SHA-256 that identifies the rules and the decisions; the compiled file contains it.
      catalogue: The items.

    Raises:
      ConfigError: A rule names a field that the items do not have, or a value that does not fit the field; or the
        compiled rules are too large.
    """
    return _Compiler(rules, decisions, catalogue).compiled(digest)


class _Compiler:
    def __init__(self, rules: RulesFile, decisions: Decisions, catalogue: RuledCatalogue) -> None:
        self.rules, self.decisions, self.catalogue = rules, decisions, catalogue
        self.n_items = len(catalogue)
        self.counts: list[RuleCount] = []
        self.sections: dict[str, np.ndarray | Sequence[str]] = {}
        self.hidden = np.zeros(self.n_items, bool)

    def compiled(self, digest: bytes) -> Compiled:
        self._present_prices()
        self._block()
        self._stock()
        waiting = self._review()
        restricted = self._price() | self._minimum_age() | self._regions() | self._fresh()
        if self.hidden.any():
            self.sections["hidden"] = self.hidden
        self._sponsored()
        content = packed(digest_of_ids(self.catalogue.ids), digest, self.sections)
        titles = self.catalogue.items[TITLE]
        return Compiled(
            content,
            self.counts,
            int(self.hidden.sum()),
            int((restricted & ~self.hidden).sum()),
            [(self.catalogue.ids[number], titles.iloc[number]) for number in np.flatnonzero(waiting)],
        )

    def _present_prices(self) -> None:
        """Replaces the prices of the catalogue, for all rules, by those that the table of prices has."""
        name = self.rules.document.price
        if name is None or self.rules.document.prices is None:
            return
        prices, index = self.decisions.prices, self.catalogue.index
        values = self.catalogue.numbers(name, "number", self.rules, ("price",)).copy()
        known = [item for item in prices if item in index]
        values[[index[item] for item in known]] = [prices[item] for item in known]
        self.catalogue = copy(self.catalogue)  # other versions have prices of their own
        self.catalogue.fields = self.catalogue.fields.assign(**{name: values})
        self._count(("prices",), len(known), [item for item in prices if item not in index])

    def _block(self) -> None:
        for number, rule in enumerate(self.rules.document.block):
            self.hidden |= self._selected(rule, "block", number)

    def _stock(self) -> None:
        if self.rules.document.stock is None:
            return
        counts, index = self.decisions.stock, self.catalogue.index
        out = [index[item] for item, count in counts.items() if item in index and count <= 0]
        self.hidden[out] = True
        without = self.n_items - sum(item in index for item in counts)
        not_found = [item for item in counts if item not in index]
        self._count(("stock",), len(out), not_found, without)

    def _review(self) -> np.ndarray:
        waiting = np.zeros(self.n_items, bool)
        approved, rejected, seen = map(set, (self.decisions.approved, self.decisions.rejected, self.decisions.seen))
        ids = self.catalogue.ids
        for number, rule in enumerate(self.rules.document.review):
            new = np.array([item not in seen for item in ids], bool) if rule.new else None
            waiting |= self._selected(rule, "review", number, new)
        waiting &= np.array([item not in approved for item in ids], bool)
        self.hidden |= waiting
        return waiting & np.array([item not in rejected for item in ids], bool)

    def _price(self) -> np.ndarray:
        if (name := self.rules.document.price) is None:
            return np.zeros(self.n_items, bool)
        price = self.catalogue.numbers(name, "number", self.rules, ("price",))
        self.sections["price"] = np.where(np.isnan(price), np.inf, price)
        self._count(("price",), self.n_items, (), int(np.isnan(price).sum()))
        return np.ones(self.n_items, bool)

    def _minimum_age(self) -> np.ndarray:
        ages = np.zeros(self.n_items, np.uint8)
        for number, rule in enumerate(self.rules.document.minimum_age):
            selected = self._selected(rule, "minimum_age", number)
            ages[selected] = np.maximum(ages[selected], rule.age)
        if ages.any():
            self.sections["minimum_age"] = ages
        return ages > 0

    def _regions(self) -> np.ndarray:
        """Adds the region rules; an item with several of them is shown only in regions that all of them permit."""
        rules = self.rules.document.regions
        names = list(dict.fromkeys(region_key(name) for rule in rules for name in rule.only or rule.except_ or ()))
        if len(names) > MOST_REGIONS:
            raise self.rules.error(("regions",), f"expected at most {MOST_REGIONS:,} regions, found {len(names):,}.")
        # Columns: requests without a region, requests with a region that no rule names, and each named region.
        rows, set_of = {(True,) * (2 + len(names)): 0}, np.zeros(self.n_items, np.int32)
        for number, rule in enumerate(rules):
            selected = self._selected(rule, "regions", number)
            named = set(map(region_key, rule.only or rule.except_ or ()))
            permitted = (False, rule.only is None, *((name in named) == (rule.only is not None) for name in names))
            before = list(rows)
            for old in np.unique(set_of[selected]):
                row = tuple(a and b for a, b in zip(before[old], permitted, strict=True))
                set_of[selected & (set_of == old)] = -1 - rows.setdefault(row, len(rows))
            set_of = np.where(set_of < 0, -1 - set_of, set_of)
            self._hide(selected & np.array([not any(row) for row in rows])[set_of])
        if set_of.any():
            table = np.array(list(rows), np.uint8)
            self.sections |= {"region_set": set_of, "region_table": table, "region_names": names}
        return set_of > 0

    def _fresh(self) -> np.ndarray:
        since, until = np.full(self.n_items, -np.inf), np.full(self.n_items, np.inf)
        for number, rule in enumerate(self.rules.document.fresh):
            time = self.catalogue.numbers(rule.field, "time", self.rules, ("fresh", number, "field"))
            without = np.isnan(time)
            selected = self._selected(rule, "fresh", number, without=without)
            self.hidden |= selected & without
            since = np.where(selected & ~without, np.maximum(since, time), since)
            if rule.days is not None:
                until = np.where(selected & ~without, np.minimum(until, time + DAY_S * rule.days), until)
            self._hide(selected & (since >= until))
        limited = np.isfinite(since) | np.isfinite(until)
        if limited.any():
            self.sections |= {"shown_from": since, "shown_until": until}
        return limited

    def _sponsored(self) -> None:
        if (sponsored := self.rules.document.sponsored) is None:
            return
        index = self.catalogue.index
        known = []
        for number, one in enumerate(sponsored.places):
            there = one.item in index
            never = there and self.hidden[index[one.item]]
            self._count(
                ("sponsored", "places", number), int(there), () if there else (one.item,), never_shown=int(never)
            )
            if there:
                known.append(one)
        if not known:
            return
        known.sort(key=lambda one: one.place)  # stable: of several items at a position, the first in the file counts
        asked = [
            (n, field_key(name), value.strip()) for n, one in enumerate(known) for name, value in one.context.items()
        ]
        self.sections |= {
            "sponsored_item": np.array([index[one.item] for one in known]),
            "sponsored_place": np.array([one.place - 1 for one in known]),
            "sponsored_from": np.array([-np.inf if one.since is None else one.since for one in known]),
            "sponsored_until": np.array([np.inf if one.until is None else one.until for one in known]),
            "sponsored_share": np.array([sponsored.share]),
            "match_placement": np.array([n for n, _, _ in asked], np.int32),
            "match_name": [name for _, name, _ in asked],
            "match_value": [value for _, _, value in asked],
        }

    def _selected(
        self,
        rule: Selector,
        kind: str,
        number: int,
        among: np.ndarray | None = None,
        without: np.ndarray | None = None,
    ) -> np.ndarray:
        """Returns the items that a rule selects, bool ``[N]``, and records their number in ``counts``.

        Args:
          rule: The selector of the rule.
          kind: The key of the rule's kind in the document.
          number: The index of the rule among those of its kind.
          among: Bool ``[N]``, the items to select from; ``None`` for all.
          without: Bool ``[N]``, the items without a value in the field that the rule reads; ``None`` if it reads none.
        """
        place = (kind, number)
        selected = np.ones(self.n_items, bool) if among is None else among.copy()
        not_found: list[str] = []
        for names, members in (
            (rule.items, {item: [n] for item in rule.items or () if (n := self.catalogue.index.get(item)) is not None}),
            (rule.categories, self.catalogue.members if rule.categories else {}),
        ):
            if names is not None:
                some = np.zeros(self.n_items, bool)
                for name in names:
                    some[members.get(name, [])] = True
                not_found += [name for name in names if name not in members]
                selected &= some
        for name, condition in (rule.where or {}).items():
            selected &= self._fulfils(name, condition, (*place, "where", name))
        missing = 0 if without is None else int((selected & without).sum())
        self._count(place, int(selected.sum()), not_found, missing)
        return selected

    def _fulfils(self, name: str, condition: Condition, place: Place) -> np.ndarray:
        values, kind = self.catalogue.values(name, self.rules, place), self.catalogue.kinds[name]
        compared = {each: text for each in _COMPARED if (text := getattr(condition, each)) is not None}
        fulfils = np.ones(self.n_items, bool)
        if kind in ("number", "time"):
            missing = np.isnan(values)

            def equals(text: str, word: str) -> np.ndarray:
                return values == self._number(kind, text, (*place, word))
        else:
            if compared:
                raise self.rules.error(
                    (*place, *compared),
                    f"expected a number or a time to compare, found the {kind} {name!r}: use is or not.",
                )
            missing = np.array([not len(value) for value in values], bool)
            several = np.array([not isinstance(value, str) for value in values], bool).any()

            def equals(text: str, word: str) -> np.ndarray:
                return np.array([text in value for value in values], bool) if several else values == text

        if condition.is_ is not None:
            fulfils &= np.any([equals(text, "is") for text in condition.is_], axis=0)
        if condition.is_not is not None:
            fulfils &= ~np.any([equals(text, "not") for text in condition.is_not], axis=0)
        for each, text in compared.items():
            fulfils &= _COMPARED[each](values, self._number(kind, text, (*place, each)))
        if condition.missing is not None:
            fulfils &= missing == condition.missing
        return fulfils

    def _number(self, kind: str, text: str, place: Place) -> float:
        try:
            return float(text) if kind == "number" else seconds_of(text)
        except ValueError:
            expected = "a number" if kind == "number" else "an ISO date, such as 2026-12-01"
            raise self.rules.error(place, f"expected {expected}, found {text!r}.") from None

    def _hide(self, contradicted: np.ndarray) -> None:
        """Hides the items, bool ``[N]``, for which the rule that was counted last contradicts others of its kind."""
        self.hidden |= contradicted
        self.counts[-1] = replace(self.counts[-1], never_shown=int(contradicted.sum()))

    def _count(
        self, place: Place, items: int, not_found: Sequence[str] = (), without: int = 0, never_shown: int = 0
    ) -> None:
        line = self.rules.line(*place)
        self.counts.append(RuleCount(line, str(place[0]), items, tuple(not_found), without, never_shown))


def region_key(name: str) -> str:
    """Normalises the name of a region for comparisons: ASCII letters become upper case, as in the graph."""
    return name.strip().encode().upper().decode()


def field_key(name: str) -> str:
    """Normalises the name of a field of the context for comparisons: ``user.country`` equals ``country``."""
    owner, dot, rest = name.strip().partition(".")
    return rest if dot and owner in ("user", "request") else name.strip()
