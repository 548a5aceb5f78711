"""Detects changes since a reference period in users' reactions, inputs, scores and shown items.

**Alarms.** A report makes many comparisons. Each has a p-value of no change; the p-values are adjusted together (Holm
1979), so that at most :data:`ALPHA` of the reports without any change have an alarm. An alarm also needs a change that
matters: at least :data:`LEAST_CHANGE` of the reference in the wrong direction for rates and means, :data:`PSI_ALARM`
for distributions, and :data:`LEAST_COVERAGE` or :data:`LEAST_SPREAD` for exposure. The mix of users and the time of day
are part of the comparison: compare whole days with whole days, or the daily cycle counts as a change, too.

**Canary.** A new version has no reference. So the lists of a canary are compared with those of the stable version from
the same time, together with the other comparisons.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd

from tfllmrec.columns import (
    BEST_SCORE,
    HISTORY_IDS,
    ITEM,
    LETTERS,
    LISTED,
    SCRIPT,
    STRATUM,
    TIME_S,
    TRAIN_EVENTS,
    UNKNOWN_IDS,
    VERSION,
)
from tfllmrec.errors import ConfigError, DataError
from tfllmrec.feedback.drift import Change, Shift, Spread, changes, exposure, shift
from tfllmrec.feedback.observed import FIELD, Observed, ends_of, newest_event_s, read_period
from tfllmrec.feedback.rates import MIN_USERS, Estimate, estimate, p_of_difference
from tfllmrec.feedback.repeated_looks import holm
from tfllmrec.wording import clipped

#: The maximum share of reports without a change that have an alarm.
ALPHA = 0.01
#: A change of a rate or mean below this share of the reference is no alarm.
LEAST_CHANGE = 0.05
#: A population stability index is moderate from the first limit on, and large and a possible alarm from the second on.
PSI_MODERATE, PSI_ALARM = 0.1, 0.25
#: Smaller differences of coverage, as a share of the expected one, and of Gini's index are no alarm.
LEAST_COVERAGE, LEAST_SPREAD = 0.2, 0.05
#: The maximum number of groups of a kind, such as scenes (the largest are shown), and of hours (the last are shown).
MOST_GROUPS, MOST_HOURS = 8, 14 * 24
#: Nothing is compared if the log covers less than this share of the reference period; or if the hours with lists are
#: less than this share as frequent in one of the periods as in the other.
LEAST_COVERED = 0.5
#: A field with at most this many different numbers is treated as a category.
FEW_VALUES = 10
DAY_S, HOUR_S = 86400.0, 3600.0


@dataclass(frozen=True)
class Measure:
    """A monitored quantity.

    Attributes:
      rate: Whether it is between 0 and 1.
      worse: 1 if an increase is bad, -1 if a decrease is bad.
      means: Its meaning in words.
      advice: What to do when it gets worse.
    """

    rate: bool
    worse: int
    means: str
    advice: str


MEASURES = {
    "ctr": Measure(
        True, -1, "shown items that a click or a stronger event followed",
        "look up in which stratum, version or scene it fell; if it is one version, roll back; if it is all of them, "
        "check that events still carry the request_id",
    ),
    "conversion": Measure(
        True, -1, "shown items that a purchase or the like followed",
        "check prices, stock and the checkout before the model: clicks tell them apart",
    ),
    "dwell_s": Measure(
        False, -1, "mean seconds with an item, of events that say so",
        "look at the items that are shown more than before: titles may promise too much",
    ),
    "bounce": Measure(
        True, 1, "lists that no click or stronger event followed",
        "as for ctr; lists may also load too slowly, see the latency in /metrics",
    ),
    "unknown_ids": Measure(
        True, 1, "ids of histories that the model does not know",
        "the catalogue is ahead of the model: update or export it with the new items, and check the form of the ids",
    ),
    "empty_lists": Measure(
        True, 1, "lists without an item",
        "look at filters and exclusions of the requests: they leave nothing over",
    ),
    "no_history": Measure(
        True, 1, "lists for an empty history",
        "check that clients still send the history: without one every user gets the same list",
    ),
}  # fmt: skip
_ADVICE = {
    BEST_SCORE: "check that all servers have the version that you expect, and what went into its last update",
    "shown items": "the lists moved to items of other popularity: check the version and the list's rules",
    "used items": "users moved to items of other popularity: update the model with the newest events",
}


_NARROWER = "look at the most shown items: a model that collapsed shows the same ones to all"
_WIDER = "lists are spread over more items: check the version, its exploration and the list's rules"
#: (measure of exposure, whether it increased) -> what to do.
_EXPOSURE_ADVICE = {
    ("coverage", False): _NARROWER,
    ("coverage", True): _WIDER,
    ("gini", False): _WIDER,
    ("gini", True): f"{_NARROWER}; look at the caps and shares of the list's rules, too",
}


@dataclass(frozen=True)
class Trial:
    """A canary beside the stable version.

    Attributes:
      canary: The canary, as ``MODEL/VERSION``.
      stable: The stable version, as ``MODEL/VERSION``.
      since_s: When the canary got its label, in seconds since 1970.
    """

    canary: str
    stable: str
    since_s: float

    @property
    def group(self) -> str:
        """The group of its figures."""
        return f"canary {self.canary}"


@dataclass(frozen=True)
class Figure:
    """A measure of a group in both periods.

    Attributes:
      measure: A key of :data:`MEASURES`.
      group: ``all`` recommendations, ``stratum tail``, ``version shop/3``, ``scene feed``, or ``searches``; or
        ``canary shop/4``, whose reference is the stable version in the same time.
      value: The value in the period.
      low: The lower end of its 95 % interval.
      high: The upper end of its 95 % interval.
      count: The number of observations in the value.
      users: The number of users of these observations.
      reference: The value in the reference; ``None`` without a reference.
      reference_count: The number of observations in the reference; ``None`` without a reference.
      change: The change relative to the reference.
      p: The p-value of no change; ``None`` with too few users.
      p_adjusted: The p-value adjusted for all comparisons of the report; ``None`` with too few users.
      since_s: The approximate time of the change, by ADWIN.
      alarm: Whether the change is an alarm; see the module.
    """

    measure: str
    group: str
    value: float
    low: float
    high: float
    count: float
    users: int
    reference: float | None = None
    reference_count: float | None = None
    change: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    since_s: float | None = None
    alarm: bool = False


@dataclass(frozen=True)
class Drift(Shift):
    """The shift of a field, with its assessment.

    Attributes:
      name: The name of the field.
      size: *small*, *moderate* or *large*, by the population stability index alone.
      p_adjusted: See :class:`Figure`.
      alarm: See :class:`Figure`.
    """

    name: str
    size: str
    p_adjusted: float | None = None
    alarm: bool = False


@dataclass(frozen=True)
class Exposed(Spread):
    """A measure of how evenly items are shown, with its assessment; see :class:`Figure` for the attributes."""

    name: str
    p_adjusted: float | None = None
    alarm: bool = False


@dataclass(frozen=True)
class Alarm:
    """A change that requires attention.

    Attributes:
      about: The measure and group, or the field, such as ``ctr (stratum tail)``.
      message: The change in figures, and what to do.
    """

    about: str
    message: str


@dataclass(frozen=True)
class Report:
    """The result of :func:`monitor`.

    Attributes:
      log: The name of the log.
      after_s: The start of the period.
      upto_s: The end of the period.
      reference: The reference in words; empty without one.
      lists: The number of lists in the period and in the reference.
      shown_items: The number of shown items in the period and in the reference.
      figures: The measures of all groups.
      drifts: The shifts of fields.
      exposed: The measures of exposure.
      hours: For each hour of the period, and of a reference right before it, its time, the click-through rate, and the
        low and high end of its interval.
      changes: The changes of streams by measure (ADWIN).
      notes: What could not be compared, and why.
      alarms: The alarms.
      state: *compared*; *first* if there is nothing to compare with, because the log has just begun; *gap* if one of
        the periods has far fewer hours with lists than the other; *waiting* if a canary has too few users yet to be
        compared with the stable version; or *old* if the newest list is older than the length of the period: then
        nothing is compared, and the only alarm says so.
    """

    log: str
    after_s: float
    upto_s: float
    reference: str
    lists: tuple[int, int]
    shown_items: tuple[int, int]
    figures: list[Figure]
    drifts: list[Drift]
    exposed: list[Exposed]
    hours: list[tuple[float, float, float, float]]
    changes: dict[str, list[Change]]
    notes: list[str]
    alarms: list[Alarm] = field(default_factory=list)
    state: Literal["compared", "first", "gap", "waiting", "old"] = "compared"

    @property
    def headline(self) -> str:
        """A one-sentence summary."""
        lists = f"{self.lists[0]:,} lists from {clock_of(self.after_s)} to {clock_of(self.upto_s)} UTC"
        if self.state == "old":
            return f"The log is old: {lists} are its newest, and are not compared."
        count = {0: "no alarm", 1: "one alarm"}.get(len(self.alarms), f"{len(self.alarms)} alarms")
        compared = f", compared with {self.reference}: {count}"
        if not self.reference:
            compared = "; nothing to compare them with" + (" yet" if self.state != "gap" else "")
            compared += f": {count}" if self.alarms else ""
        return f"{lists}{compared}{'; the canary cannot be judged yet' if self.state == 'waiting' else ''}."

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as plain JSON types; NaN becomes ``None``."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def monitor(
    log: Path,
    reference: float | Path | None = None,
    items: pd.DataFrame | None = None,
    *,
    since_s: float = DAY_S,
    within_s: float = 1800.0,
    scene: str = "scene",
    dwell: str = "dwell_s",
    alpha: float = ALPHA,
    until_s: float | None = None,
    trial: Trial | None = None,
) -> Report:
    """Compares the newest lists of a log with earlier ones.

    The period ends ``within_s`` before the newest list, because later lists have not had their events yet. If the
    newest list is older than the length of the period, nothing writes to the log any more: nothing is compared, the
    period ends with the newest list, and the report has the state *old* and one alarm.

    Args:
      log: The folder of the event log.
      reference: The length of the reference before the period in seconds, by default that of the period; or the folder
        of another log, which is used as a whole.
      items: The items of the model, with ``item_id``, ``train_events`` and ``stratum``, as returned by
        :func:`tfllmrec.serving.layout.read_catalogue`; ``None``: nothing by stratum or popularity.
      since_s: The length of the period.
      within_s: An event belongs to a list if it came within this time.
      scene: The field of the request by which figures are grouped.
      dwell: The field of events with the seconds that the user stayed with the item.
      alpha: An alarm needs an adjusted p-value below this.
      until_s: The time of the report in seconds since 1970, such as the end of an archived log; by default now. Later
        lists are ignored.
      trial: The canary that is compared with the stable version; ``None`` for none.

    Raises:
      DataError: There is no log, it is damaged, or it has no lists in the period.
    """
    end_s = time.time() if until_s is None else until_s
    first, newest = ends_of(log, end_s)
    if end_s - newest > since_s:
        last = read_period(log, newest - since_s, newest, within_s, dwell, items)
        old = compare(last, None, log=log.name, scene=scene, alpha=alpha, items=items)
        return replace(old, state="old", alarms=[_old(newest, newest_event_s(log, end_s), end_s)])
    upto = max(newest - within_s, first)
    after = upto - since_s
    now = read_period(log, after, upto, within_s, dwell, items)
    notes: list[str] = []
    before: Observed | None
    if isinstance(reference, Path):
        begin, end = ends_of(reference)
        before = read_period(reference, begin - 1, max(end - within_s, begin), within_s, dwell, items)
        words = f"the log {reference.name}"
    else:
        length = since_s if reference is None else reference
        words, covered = f"the {words_of(length)} before", after - first
        if 0 < covered < length:
            notes.append(f"the log has only {covered / HOUR_S:.1f} hours of {words}")
        begun = covered < length * LEAST_COVERED
        before = None if begun else read_period(log, after - length, after, within_s, dwell, items)
    gap = False
    if before is not None:
        shares = _hours_with_lists(now), _hours_with_lists(before)
        if shares[0] != shares[1]:
            notes.append(f"{shares[0]:.0%} of the hours of the period have lists, and {shares[1]:.0%} of {words}")
        gap = min(shares) < max(shares) * LEAST_COVERED
    trial = trial if trial and trial.since_s < end_s else None
    found = compare(now, None if gap else before, words, log.name, scene, alpha, items, trial)
    return replace(found, notes=[*notes, *found.notes], state="gap" if gap else found.state)


def _hours_with_lists(period: Observed) -> float:
    """Returns the share of the hours of a period that have lists."""
    hours = np.ceil((period.lists[TIME_S] - period.after_s) / HOUR_S)
    return hours.nunique() / max(np.ceil((period.upto_s - period.after_s) / HOUR_S), 1)


def _old(newest_list: float, newest_event: float | None, end_s: float) -> Alarm:
    def before(time_s: float) -> str:
        return f"{(end_s - time_s) / HOUR_S:.1f} hours before ({clock_of(time_s)})"

    events = "it has no events" if newest_event is None else f"its last event happened {before(newest_event)}"
    return Alarm(
        "log",
        f"the log is old at {clock_of(end_s)} UTC: its newest list was made {before(newest_list)}, and {events}. "
        "To do: check that the server runs with --log, that clients send requests to it, and that the disk is "
        "not full. For a report "
        "on an archived log, give its end with --until.",
    )


def compare(
    now: Observed,
    before: Observed | None,
    reference: str = "the reference",
    log: str = "",
    scene: str = "scene",
    alpha: float = ALPHA,
    items: pd.DataFrame | None = None,
    trial: Trial | None = None,
) -> Report:
    """Compares two periods read by :func:`tfllmrec.feedback.observed.read_period` or ``observed``; see :func:`monitor`.

    Args:
      now: The period.
      before: The reference; ``None``: figures without a comparison.
      reference: The reference in words.
      log: The name of the log.
      scene: See :func:`monitor`.
      alpha: See :func:`monitor`.
      items: See :func:`monitor`.
      trial: See :func:`monitor`.

    Raises:
      DataError: There are no lists in the period.
    """
    if not len(now.lists):
        raise DataError(
            f"No lists from {clock_of(now.after_s)} to {clock_of(now.upto_s)} UTC: expected some. Take a longer period "
            "(--since), or look whether the server runs with --log."
        )
    notes = []
    if items is None:
        notes.append("no strata and no popularity: --model names the exported model that has them")
    for period in (now, before):
        if period is not None and period.one_in > 1:
            notes.append(f"of the lists up to {clock_of(period.upto_s)} UTC one request in {period.one_in} was read")
    figures = [*_figures(now, before, scene), *([] if trial is None else _figures_of_trial(now, trial))]
    waiting = trial is not None and not any(each.group == trial.group and each.p is not None for each in figures)
    if trial is not None and waiting:
        notes.append(
            f"the canary {trial.canary} is not compared yet: expected {MIN_USERS} users who got its lists, and "
            f"{MIN_USERS} who got lists of {trial.stable} in the same time, since {clock_of(trial.since_s)} UTC; "
            "'tfllmrec serve --canary-share 0.1' gives the canary to a tenth of the users"
        )
    drifts = [] if before is None else list(_drifts(now, before, notes))
    exposed = [] if before is None else _exposed(now, before, items)
    streams = _streams(now, before, notes)
    figures, drifts, exposed = _judged(figures, drifts, exposed, streams, now.after_s, alpha)
    report = Report(
        log,
        now.after_s,
        now.upto_s,
        "" if before is None else reference,
        (len(now.lists), 0 if before is None else len(before.lists)),
        (len(now.shown), 0 if before is None else len(before.shown)),
        figures,
        drifts,
        exposed,
        _hours(now, before),
        streams,
        notes,
        state="waiting" if waiting else "first" if before is None else "compared",
    )
    return replace(report, alarms=list(_alarms(report, trial)))


# Figures --------------------------------------------------------------------------------------------------------------


def _groups(now: Observed, scene: str) -> list[tuple[str, str, str, Any]]:
    """Returns (group, table, column, value) of each group; *all* has no column."""
    found: list[tuple[str, str, str, Any]] = [("all", "", "", "")]
    if len(now.found):
        found.append(("searches", "found", "", ""))
    if (now.shown[STRATUM] != "").any():
        found += [(f"stratum {name}", "shown", STRATUM, name) for name in ("head", "tail", "cold")]
    recommended = now.lists[~now.lists["searched"]]
    for kind, column in (("version", VERSION), (scene, f"{FIELD}{scene}")):
        if column in recommended:
            values = recommended[column].value_counts(dropna=False).index
            if len(values) > 1:  # a single group would equal all
                found += [
                    (f"{kind} {clipped(str(value), 40)}", "lists", column, value)
                    for value in values.dropna()[:MOST_GROUPS]
                ]
    return found


def _measured(period: Observed, table: str, column: str, value: Any) -> dict[str, Estimate]:
    """Returns the measures of a group."""
    shown, lists = period.shown, period.lists[~period.lists["searched"]]
    if table == "found":
        shown, lists = period.found, lists.head(0)
    elif table == "shown":
        shown, lists = shown[shown[column] == value], lists.head(0)
    elif table == "lists":
        if column not in lists:
            return {}
        chosen = (period.lists[column] == value).to_numpy(bool)
        shown, lists = shown[chosen[shown["list"]]], lists[lists[column] == value]
    seen, of_shown, of_lists = np.ones(len(shown)), shown["user"].to_numpy(), lists["user"].to_numpy()
    told = {
        "ctr": estimate(shown["used"].to_numpy(float), seen, of_shown),
        "conversion": estimate(shown["bought"].to_numpy(float), seen, of_shown),
    }
    stayed = shown["dwell_s"].notna().to_numpy()
    told["dwell_s"] = estimate(shown["dwell_s"].to_numpy(float)[stayed], seen[stayed], of_shown[stayed], rate=False)
    full = (lists[LISTED] > 0).to_numpy()
    told["bounce"] = estimate((~lists["used"].to_numpy(bool)).astype(float) * full, full.astype(float), of_lists)
    known = lists[HISTORY_IDS].notna().to_numpy()
    asked, of_asked = lists[known], of_lists[known]
    ids = asked[HISTORY_IDS].to_numpy(float)
    told["unknown_ids"] = estimate(asked[UNKNOWN_IDS].to_numpy(float), ids, of_asked)
    told["empty_lists"] = estimate((asked[LISTED] == 0).to_numpy(float), np.ones(len(asked)), of_asked)
    told["no_history"] = estimate((ids == 0).astype(float), np.ones(len(asked)), of_asked)
    return told


def _figures(now: Observed, before: Observed | None, scene: str) -> Iterator[Figure]:
    for group, table, column, value in _groups(now, scene):
        earlier = {} if before is None else _measured(before, table, column, value)
        yield from _against(group, _measured(now, table, column, value), earlier)


def _figures_of_trial(now: Observed, trial: Trial) -> Iterator[Figure]:
    """Yields the measures of the canary; their reference is the stable version while both answered."""
    time_s, version = now.lists[TIME_S], now.lists[VERSION]
    first = time_s[(version == trial.canary) & (time_s > trial.since_s)].min()
    last = time_s[version == trial.stable].max()
    during = replace(now, lists=now.lists.assign(both=version.where(time_s.between(first, last), "")))
    canary, stable = (_measured(during, "lists", "both", version) for version in (trial.canary, trial.stable))
    yield from _against(trial.group, canary, stable)


def _against(group: str, measured: dict[str, Estimate], reference: dict[str, Estimate]) -> Iterator[Figure]:
    """Yields the measures of a group, compared with its measures in the reference."""
    for name, new in measured.items():
        if not new.count:
            continue
        figure = Figure(name, group, new.value, new.low, new.high, new.count, new.users)
        old = reference.get(name)
        if old is not None and old.count:
            change = (new.value - old.value) / old.value if old.value else None
            p = p_of_difference(old, new, MEASURES[name].rate)
            figure = replace(figure, reference=old.value, reference_count=old.count, change=change, p=p)
        yield figure


def _hours(now: Observed, before: Observed | None) -> list[tuple[float, float, float, float]]:
    """Returns hour, click-through rate, and its interval for each hour of the period, and of a reference before it."""
    follows = before is not None and before.upto_s == now.after_s
    shown = pd.concat([before.shown, now.shown]) if follows and before is not None else now.shown
    told = []
    for hour, rows in shown.groupby(np.floor(shown[TIME_S] / HOUR_S)):
        rate = estimate(rows["used"].to_numpy(float), np.ones(len(rows)), rows["user"].to_numpy())
        told.append((float(hour) * HOUR_S, rate.value, rate.low, rate.high))
    return told[-MOST_HOURS:]


# Drift ----------------------------------------------------------------------------------------------------------------


def _drifts(now: Observed, before: Observed, notes: list[str]) -> Iterator[Drift]:
    pairs: dict[str, tuple[pd.DataFrame, pd.DataFrame, str]] = {}
    asked = [period.lists[period.lists[HISTORY_IDS].notna()] for period in (before, now)]
    lists = [table[~table["searched"]] for table in asked]
    pairs["history ids"] = (lists[0], lists[1], HISTORY_IDS)
    pairs["list length"] = (lists[0], lists[1], LISTED)
    fields = [str(column) for column in lists[1] if str(column).startswith(FIELD)]
    gone = [str(column) for column in lists[0] if str(column).startswith(FIELD) and column not in fields]
    for column in (*fields, *gone):
        name = column.removeprefix(FIELD)
        # If no request of a period has the field, it counts as missing in all of them.
        old, new = (each if column in each else each.assign(**{column: None}) for each in lists)
        pairs[f"field {name}"] = (old, new, column)
        if column in gone or column not in lists[0]:
            notes.append(f"no request of {'the period' if column in gone else 'the reference'} has the field {name}")
    texts = [table[table[LETTERS].notna()] for table in asked]
    pairs["letters of texts"] = (texts[0], texts[1], LETTERS)
    pairs["script of texts"] = (texts[0], texts[1], SCRIPT)
    both = set(lists[0][VERSION]) & set(lists[1][VERSION])
    scored = [table[table[VERSION].isin(both) & table[BEST_SCORE].notna()] for table in lists]
    if len(scored[0]) and len(scored[1]):
        pairs["best score"] = (scored[0], scored[1], BEST_SCORE)
    elif len(lists[0]) and len(lists[1]):
        notes.append("scores are not compared: no version answered in both periods")
    for name, tables in (("shown items", (before.shown, now.shown)), ("used items", (before.events, now.events))):
        known = [table[table[TRAIN_EVENTS].notna()] for table in tables]
        pairs[f"popularity of {name}"] = (known[0], known[1], TRAIN_EVENTS)
    for name, (old, new, column) in pairs.items():
        first, second = _as_numbers(old[column], new[column])
        found = shift(first, second, old["user"].to_numpy(), new["user"].to_numpy())
        if found is not None:
            size = "large" if found.psi >= PSI_ALARM else "moderate" if found.psi >= PSI_MODERATE else "small"
            yield Drift(**vars(found), name=name, size=size)


def _as_numbers(before: pd.Series, after: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Converts a field of both periods to numbers if all its values are and more than a few of them differ."""
    both = pd.concat([before, after])
    numbers = pd.to_numeric(both, errors="coerce")
    if numbers.nunique() <= FEW_VALUES or not numbers.notna().equals(both.notna()):
        return before, after
    return numbers.iloc[: len(before)], numbers.iloc[len(before) :]


def _exposed(now: Observed, before: Observed, items: pd.DataFrame | None) -> list[Exposed]:
    if not len(before.shown) or not len(now.shown):
        return []
    ids = pd.concat([before.shown[ITEM], now.shown[ITEM]])
    codes, known = pd.factorize(ids)
    catalogue = max(len(known), 0 if items is None else len(items))
    shown = pd.concat([before.shown, now.shown])[["user", "list"]].assign(item=codes)
    n = len(before.shown)
    found = exposure(shown.iloc[:n], shown.iloc[n:], catalogue)
    return [Exposed(**vars(each), name=name) for name, each in found.items()]


def _streams(now: Observed, before: Observed | None, notes: list[str]) -> dict[str, list[Change]]:
    """Returns the changes of the shares of used items and of unknown ids in the lists."""
    lists = pd.concat([period.lists for period in (before, now) if period is not None])
    lists = lists[~lists["searched"]]
    used = np.concatenate(
        [
            np.bincount(period.shown["list"], period.shown["used"], minlength=len(period.lists))[
                ~period.lists["searched"]
            ]
            for period in (before, now)
            if period is not None
        ]
    )
    streams = {
        "ctr": (used, lists[LISTED].to_numpy(float)),
        "unknown_ids": (lists[UNKNOWN_IDS].to_numpy(float), lists[HISTORY_IDS].to_numpy(float)),
    }
    found = {}
    try:
        for name, (part, whole) in streams.items():
            there = whole > 0
            values = np.clip(part[there] / whole[there], 0, 1)
            if where := changes(values.tolist(), lists[TIME_S].to_numpy(float)[there].tolist()):
                found[name] = where
    except ConfigError as error:
        notes.append(f"{error}")
    return found


# Alarms ---------------------------------------------------------------------------------------------------------------

_Compared = TypeVar("_Compared", Figure, Drift, Exposed)


def _judged(
    figures: list[Figure],
    drifts: list[Drift],
    exposed: list[Exposed],
    streams: dict[str, list[Change]],
    after_s: float,
    alpha: float,
) -> tuple[list[Figure], list[Drift], list[Exposed]]:
    """Adjusts all p-values together, and decides which changes are alarms."""
    given: list[float | None] = [*(f.p for f in figures), *(d.p for d in drifts), *(e.p for e in exposed)]
    adjusted = iter(holm([p for p in given if p is not None]))

    def with_adjusted(parts: Sequence[_Compared]) -> list[_Compared]:
        return [each if each.p is None else replace(each, p_adjusted=next(adjusted)) for each in parts]

    judged_figures = []
    for figure in with_adjusted(figures):
        worse = MEASURES[figure.measure].worse
        grown = figure.reference is not None and (figure.value - figure.reference) * worse
        enough = grown and grown >= LEAST_CHANGE * (figure.reference or 0)
        since = next((each.time_s for each in reversed(streams.get(figure.measure, ())) if each.time_s > after_s), None)
        alarm = bool(enough and figure.p_adjusted is not None and figure.p_adjusted < alpha)
        judged_figures.append(replace(figure, alarm=alarm, since_s=since if figure.group == "all" else None))
    judged_drifts = [
        replace(each, alarm=each.psi >= PSI_ALARM and each.p_adjusted is not None and each.p_adjusted < alpha)
        for each in with_adjusted(drifts)
    ]
    judged_exposed = []
    for each in with_adjusted(exposed):
        least = LEAST_COVERAGE * each.expected if each.name == "coverage" else LEAST_SPREAD
        enough = abs(each.after - each.expected) >= least
        judged_exposed.append(replace(each, alarm=enough and each.p_adjusted is not None and each.p_adjusted < alpha))
    return judged_figures, judged_drifts, judged_exposed


def _alarms(report: Report, trial: Trial | None) -> Iterator[Alarm]:
    for each in report.figures:
        if each.alarm:
            assert each.reference is not None
            measure = MEASURES[each.measure]
            since = "" if each.since_s is None else f", since about {clock_of(each.since_s)} UTC"
            change = "" if each.change is None else f" ({each.change:+.0%})"
            reference, value = _value(each.measure, each.reference), _value(each.measure, each.value)
            if trial is not None and each.group == trial.group:
                said, advice = f"is {value}, and {reference} in the stable version", "run 'tfllmrec rollback MODEL'"
            else:
                said, advice = f"went from {reference} to {value}", measure.advice
            about = f"{each.measure} ({each.group})"
            yield Alarm(about, f"{about} {said}{change}{since}. To do: {advice}.")
    for drift in report.drifts:
        if drift.alarm:
            advice = next(
                (advice for name, advice in _ADVICE.items() if name.replace("_", " ") in drift.name),
                "look up what changed in the clients that send it; if the change stays, update the model",
            )
            yield Alarm(
                drift.name,
                f"{drift.name} moved: population stability index {drift.psi:.2f} (an alarm from {PSI_ALARM}); "
                f"{drift.moved}. To do: {advice}.",
            )
    for spread in report.exposed:
        if spread.alarm:
            yield Alarm(
                spread.name,
                f"{spread.name} of shown items is {spread.after:.4f}: expected {spread.expected:.4f}, with "
                f"{spread.before:.4f} in the reference. To do: "
                f"{_EXPOSURE_ADVICE[spread.name, spread.after > spread.expected]}.",
            )


# Words ----------------------------------------------------------------------------------------------------------------


def figure_rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """Returns the header and rows of a table of the figures."""
    header = ["measure", "group", "value", "95 % interval", "of", "reference", "change", "p adjusted", "alarm"]
    return header, [
        [
            each.measure,
            each.group,
            _value(each.measure, each.value),
            f"[{_value(each.measure, each.low)}, {_value(each.measure, each.high)}]",
            f"{each.count:,.0f}",
            "" if each.reference is None else _value(each.measure, each.reference),
            "" if each.change is None else f"{each.change:+.0%}",
            _p(each.p_adjusted),
            "alarm" if each.alarm else "",
        ]
        for each in report.figures
    ]


def drift_rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """Returns the header and rows of a table of the drifts."""
    header = ["field", "PSI", "Jensen-Shannon", "largest move", "of", "size", "p adjusted", "alarm"]
    return header, [
        [
            each.name,
            f"{each.psi:.3f}",
            f"{each.jensen_shannon:.3f}",
            each.moved,
            f"{each.counts[1]:,}",
            each.size,
            _p(each.p_adjusted),
            "alarm" if each.alarm else "",
        ]
        for each in report.drifts
    ]


def exposure_rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """Returns the header and rows of a table of the exposure."""
    header = ["exposure", "reference", "expected now", "now", "p adjusted", "alarm"]
    return header, [
        [
            each.name,
            f"{each.before:.4f}",
            f"{each.expected:.4f}",
            f"{each.after:.4f}",
            _p(each.p_adjusted),
            "alarm" if each.alarm else "",
        ]
        for each in report.exposed
    ]


def change_lines(report: Report) -> list[str]:
    """Returns a line for each change of a stream."""
    return [
        f"{name} changed about {clock_of(each.time_s)} UTC, "
        f"from {_value(name, each.before)} to {_value(name, each.after)}"
        for name, found in report.changes.items()
        for each in found
    ]


def clock_of(time_s: float) -> str:
    """Formats a time in UTC, such as ``2026-11-28 03:10``."""
    return f"{datetime.datetime.fromtimestamp(time_s, datetime.UTC):%Y-%m-%d %H:%M}"


def words_of(seconds: float) -> str:
    """Formats a duration, such as ``24 hours``, ``7 days`` or ``30 minutes``."""
    if seconds == HOUR_S:
        return "hour"
    for unit, length in (("days", DAY_S), ("hours", HOUR_S), ("minutes", 60.0)):
        if seconds >= 2 * length and seconds % length == 0:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:g} seconds"


def _value(measure: str, value: float) -> str:
    return f"{value:.2%}" if MEASURES[measure].rate else f"{value:.2f}"


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
