"""Divides a Dataset into train, validation and test, and checks that nothing leaks from one to another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from tfllmrec.columns import DOMAIN, ITEM, ITEM_INDEX, ORDER, TAG, TEST_EVENT, TIMESTAMP, USER, USER_INDEX
from tfllmrec.config import SplitConfig
from tfllmrec.data.cleaning.tags import MAY_LEAK, with_tags
from tfllmrec.data.dataset import Dataset
from tfllmrec.data.domains import domain_names, items_of_domain, with_event_domains
from tfllmrec.data.findings import Action, Finding
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.schema import TABLES, Field, Schema
from tfllmrec.errors import ConfigError, DataError

#: Kinds of split in which two events of each user are held out.
_LEAVE_OUT = ("leave_last_out", "leave_random_out")
# The use of each event. HISTORY events are part of the histories of held-out users, but not of the training events.
_TRAIN, _VALIDATION, _TEST, _HISTORY, _UNUSED = range(5)


@dataclass(frozen=True, eq=False)
class Split:
    """Training events, and the validation and test queries.

    Attributes:
      dataset: The divided data set; its events have the tags that users wrote (:attr:`Dataset.with_tags_written`) and,
        with ``split.domain``, the domain (:func:`~tfllmrec.data.domains.with_event_domains`).
      kind: One of the values of ``split.kind``; never ``auto``.
      schema: The fields, with the vocabularies and statistics of the training events, their users, and the catalogue.
      train: The training events, rows of ``dataset.events`` in their order, index 0 to E - 1.
      validation: The queries on which settings are chosen.
      test: The queries on which the reported figures are measured.
      validation_events: The held-out events for validation, rows of ``dataset.events`` in their order; ``None`` if
        nothing was divided.
      test_events: The held-out events for the test, rows of ``dataset.events`` in their order; ``None`` if nothing was
        divided.
      trained_before: The number of events that the kind of split would hold out, but that are training events because
        an earlier model was trained on them.
      between: The events in other domains than ``split.domain`` between a user's validation and test event in
        leave_last_out, rows of ``dataset.events`` in their order; ``None`` if there is no such domain.
    """

    dataset: Dataset
    kind: str
    schema: Schema
    train: pd.DataFrame
    validation: Queries
    test: Queries
    validation_events: pd.DataFrame | None = None
    test_events: pd.DataFrame | None = None
    trained_before: int = 0
    between: pd.DataFrame | None = None

    @cached_property
    def items(self) -> pd.DataFrame:
        """The catalogue that training may read: ``dataset.items`` with a text column ``tags`` of the allowed tags.

        In per-user splits (all except global_time and cold_items) a tag is allowed if it is not later than its user's
        last training event; a tag of a user without any event is allowed if it is older than all held-out events. In
        global_time a tag must be older than the validation period. In no split is a tag allowed whose user and item are
        those of a held-out event. If tags or events have no times, times are not compared, and :attr:`findings` says
        so. Without tags this is ``dataset.items`` itself.
        """
        tags = self.dataset.tags
        return self.dataset.items if tags.empty else with_tags(self.dataset.items, tags[self._tag_use[0]])

    @property
    def findings(self) -> list[Finding]:
        """The findings of the split.

        They count the tags that are left out of :attr:`items`, with the reason, and those that may have been written
        too late; the held-out events that are not targets because they are rejections or impressions; the events in
        other domains than ``split.domain`` that are too late to train on; and :attr:`trained_before`.
        """
        what = "to be held out, but an earlier model was trained on them: they stay training events"
        of_before = [Finding("events", what, self.trained_before, "kept")] if self.trained_before else []
        return [*self._tag_use[1], *self._not_asked_for, *self._late_elsewhere, *of_before]

    @property
    def _late_elsewhere(self) -> list[Finding]:
        """The events of each other domain that are later than their user's validation event in ``split.domain``."""
        if self.between is None or self.test_events is None:
            return []
        target, kept = self.test_events[DOMAIN].iloc[0], self.train[DOMAIN].value_counts()
        found = []
        for name, n in self.dataset.events[DOMAIN].value_counts().items():
            if name != target and (late := n - kept.get(name, 0)):
                where = f"in {name}" if name else "without a domain"
                late_for = f"because they are later than their user's validation event in {target}"
                what = f"of {n:,} events {where}: not trained on, {late_for}"
                if 2 * late > n:
                    what += (
                        ". The model learns little from these events: split.kind=leave_random_out trains on them all"
                    )
                found.append(Finding("events", what, int(late), "kept"))
        return found

    @cached_property
    def _not_asked_for(self) -> list[Finding]:
        kind, parts = self.schema.kind_of_event, [self.validation_events, self.test_events]
        events = pd.concat([part for part in parts if part is not None] or [self.train[:0]])
        if kind is None or events.empty:
            return []
        left_out = kind.code_weights[kind.encode(events[kind.name])] <= 0
        if not left_out.any():
            return []
        first = events.iloc[int(left_out.argmax())]
        user, item = (
            self.dataset.users[USER].iloc[first[USER_INDEX]],
            self.dataset.items[ITEM].iloc[first[ITEM_INDEX]],
        )
        what = "held-out events with a weight of 0 or less (rejections, impressions): not used as targets"
        return [
            Finding("events", what, int(left_out.sum()), "kept", f"user {user!r}, item {item!r}, {first[kind.name]!r}")
        ]

    @cached_property
    def _tag_use(self) -> tuple[np.ndarray, list[Finding]]:
        """Whether training may read each tag, bool ``[number of tags]``, and the findings on the tags."""
        tags, dataset = self.dataset.tags, self.dataset
        if tags.empty:
            return np.ones(0, dtype=bool), []
        width = int(dataset.events[ORDER].max()) + 1
        event, trained = (t[USER_INDEX].to_numpy() * width + t[ORDER].to_numpy() for t in (dataset.events, self.train))
        held_out = dataset.events[~np.isin(event, trained)]
        user = pd.Index(dataset.users[USER]).get_indexer(tags[USER])  # -1 for a user without events
        item = pd.Index(dataset.items[ITEM]).get_indexer(tags[ITEM])
        seconds = tags[TIMESTAMP].to_numpy()
        timed = not np.isnan(seconds).all() and dataset.events[TIMESTAMP].nunique() > 1
        per_user = self.kind not in ("global_time", "cold_items")

        on_target = (user >= 0) & np.isin(user * dataset.n_items + item, _pairs(held_out, dataset.n_items))
        reasons = [("its user and item are those of a held-out event", on_target)]
        if per_user:
            untrained = (user >= 0) & ~np.isin(user, self.train[USER_INDEX])
            reasons.append(("its user has events, but none in training", untrained))
        late = ~(seconds < held_out[TIMESTAMP].min())
        if timed and per_user:
            last = self.train.groupby(USER_INDEX)[TIMESTAMP].max().reindex(np.arange(dataset.n_users)).to_numpy()
            after_last = (user >= 0) & ~(seconds <= last[user])
            reasons.append(("it is later than the last training event of its user, or has no time", after_last))
            late_stranger = (user < 0) & late
            reasons.append(("its user has no event, and it is not older than all held-out events", late_stranger))
        elif timed and self.kind == "global_time":
            reasons.append(("it is not older than the validation period", late))

        allowed, findings = np.ones(len(tags), dtype=bool), []
        for reason, left_out in reasons:
            findings += _tag_finding(tags, left_out & allowed, f"left out of the items' text: {reason}", "dropped")
            allowed &= ~left_out
        if not timed:
            findings += _tag_finding(tags, allowed, f"no times to compare with the split: {MAY_LEAK}", "kept")
        return allowed, findings

    @cached_property
    def train_counts(self) -> np.ndarray:
        """Int64 ``[N]``: the number of training events of each item, without rejections and impressions."""
        items = self.train[ITEM_INDEX].to_numpy()
        weights = self.schema.event_weights(self.encoded)
        if weights is not None:
            items = items[weights[_rows(self.dataset, self.train)] > 0]
        return np.bincount(items, minlength=self.dataset.n_items).astype(np.int64)

    def strata(self, head_share: float = 0.2) -> dict[str, np.ndarray]:
        """Returns the catalogue by popularity, as bool ``[N]`` masks.

        ``head``: the items selected by :func:`head_items`. ``tail``: all other items. ``cold``: the items of the tail
        without any training events.
        """
        head = head_items(self.train_counts, head_share)
        return {"head": head, "tail": ~head, "cold": self.train_counts == 0}

    def train_queries(self, validation: bool = False) -> Queries:
        """One query for each user in train, by user index: the training history, no targets.

        Args:
          validation: The histories and users are those of :attr:`train_and_validation_events`.
        """
        events = self.train_and_validation_events if validation else self.train
        return _queries(self.dataset, self.schema, self.encoded, events, None, np.unique(events[USER_INDEX]))

    @property
    def train_and_validation_events(self) -> pd.DataFrame:
        """The training events, the validation events and :attr:`between`, rows of ``dataset.events`` in their order."""
        if self.validation_events is None:
            return self.train
        parts = [self.train, self.validation_events, self.between]
        rows = [_rows(self.dataset, part) for part in parts if part is not None]
        return self.dataset.events.iloc[np.sort(np.concatenate(rows))]

    @cached_property
    def encoded(self) -> dict[str, np.ndarray]:
        """The encoded fields of all events of the data set, by ``event.NAME``, and of all users, by ``user.NAME``."""
        return _encoded(self.dataset, self.schema)

    def check(self) -> None:
        """Checks that the split leaks nothing.

        For all kinds of split:

        - No event is used by two of train, validation targets and test targets, and no target is in the history of its
          own query.
        - A validation history contains no test target and, except for cold_users and cold_domain, only training events.
        - Queries of one user have the same history and differ in the fields of the request.
        - A query excludes its history except events of weight 0, or nothing if re-use is the task.

        For single kinds:

        - leave_last_out: the target is the user's next event; with ``split.domain``, the user's validation event is
          later than the training events, and the test event later than the validation event.
        - global_time: every target is later than all training events, and test targets are later than validation
          targets.
        - cold_items: held-out items are neither in train nor in a history.
        - cold_users: held-out users are not in train.
        - cold_domain: held-out users have no training events in the target domain.
        - fixed: test targets are among the named events, and no other part contains one of these.

        If the data keeps repeated events, the events of a user and item are counted, not distinguished.

        Raises:
          DataError: Something leaks; the message names the user or the item.
        """
        n_items = self.dataset.n_items
        pairs = _pairs(self.dataset.events, n_items)
        train = _pairs(self.train, n_items)
        asked = {name: self._asked(queries) for name, queries in (("validation", self.validation), ("test", self.test))}
        (_, validation_history, validation), (_, test_history, test) = asked["validation"], asked["test"]
        self._forbid(_excess([train, validation, test], pairs), "an event is used by two of train, validation and test")
        for name, (_, history, targets) in asked.items():
            self._forbid(_excess([history, targets], pairs), f"a {name} target is in its own history")
        self._forbid(_excess([validation_history, test], pairs), "a validation history holds a test target")
        if self.kind == "cold_users":
            known = np.unique(self.train[USER_INDEX])
            (first, *_), (second, *_) = asked["validation"], asked["test"]
            for name, users, others in (("validation", first, known), ("test", second, np.concatenate([known, first]))):
                seen = users[np.isin(users, others)]
                if len(seen):
                    raise DataError(self._leak(f"the held-out {name} user {self._user(seen[0])} is met before"))
        elif self.kind == "cold_domain":
            assert self.test_events is not None
            known = self.train[USER_INDEX][self.train[DOMAIN] == self.test_events[DOMAIN].iloc[0]]
            for name, (users, *_) in asked.items():
                seen = users[np.isin(users, known)]
                if len(seen):
                    raise DataError(self._leak(f"the {name} user {self._user(seen[0])} has trained events there"))
        else:
            self._forbid(_excess([validation_history], train), "a validation history holds an event outside train")
        if self.kind == "cold_items":
            self._forbid(_excess([test_history], train), "a test history holds an event outside train")
            known = np.concatenate([train, validation_history, test_history]) % n_items
            for name, targets, others in (
                ("validation", validation, known),
                ("test", test, np.concatenate([known, validation % n_items])),
            ):
                self._forbid(targets[np.isin(targets % n_items, others)], f"a held-out {name} item is met before")
        if self.kind == "leave_last_out" and self.test.candidates is None:
            self._check_next(self.test, 0)
            self._check_next(self.validation, 1)
        elif self.kind == "leave_last_out":
            self._check_later()
        if self.kind == "global_time":
            self._check_time(pairs, validation, test)
        if self.kind == "fixed":
            named = self.dataset.events[TEST_EVENT].to_numpy()
            self._forbid(_excess([test], pairs[named]), "a test target is not among the events of split.test_events")
            others = _excess([train, validation], pairs[~named])
            self._forbid(others, "an event of split.test_events is in train or validation")

    def _asked(self, queries: Queries) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Checks the users, histories and exclusions of queries, and returns what they contain.

        Returns:
          The users, int64 ``[U]``, and the (user, item) codes of all events of their histories and of all targets.
        """
        users = pd.Index(self.dataset.users[USER]).get_indexer(pd.Index(queries.user_ids))
        if (users < 0).any():
            raise DataError(self._leak(f"a query names the unknown user {queries.user_ids[users < 0][0]!r}"))
        distinct, first, of_query = np.unique(users, return_index=True, return_inverse=True)
        for query in np.flatnonzero(first[of_query] != np.arange(len(users))).tolist():
            if not np.array_equal(queries.history[query], queries.history[first[of_query[query]]]):
                raise DataError(self._leak(f"two queries of user {self._user(users[query])} have different histories"))
        if len(distinct) < len(users):
            requests = _codes_of_rows([queries.fields[field.key] for field in _separating(self.schema)], len(users))
            again = pd.MultiIndex.from_arrays([users, requests]).duplicated()
            if again.any():
                user = self._user(users[again.argmax()])
                raise DataError(self._leak(f"two queries of user {user} have the same fields of the request"))
        excluded = self.dataset.n_items * queries.exclude.row_of_value + queries.exclude.values
        known = self.dataset.n_items * queries.had.row_of_value + queries.had.values
        if not np.array_equal(excluded, known[:0] if self.dataset.repeats else known):
            expected = (
                "an item, though re-use is the task" if self.dataset.repeats else "something else than its history"
            )
            raise DataError(self._leak(f"a query excludes {expected}"))
        history = queries.history.take(first)
        return (
            distinct,
            distinct[history.row_of_value] * self.dataset.n_items + history.values,
            users[queries.targets.row_of_value] * self.dataset.n_items + queries.targets.values,
        )

    def _check_next(self, queries: Queries, left_out: int) -> None:
        """Checks that history and target are the user's first events, followed by ``left_out`` choices of the user."""
        events = self.dataset.events
        users = pd.Index(self.dataset.users[USER]).get_indexer(pd.Index(queries.user_ids))
        own, chosen = ragged_column(events, ITEM_INDEX, users), _by_user(events, self.dataset.choices, users)
        told = np.concatenate([queries.history.values, queries.targets.values])
        row = np.concatenate([queries.history.row_of_value, queries.targets.row_of_value])
        told = told[np.argsort(row, kind="stable")]
        lengths = queries.history.lengths + queries.targets.lengths
        place = np.arange(len(own.values)) - np.repeat(own.offsets[:-1], own.lengths)
        first = place < np.repeat(lengths, own.lengths)
        later = chosen.where(~first)
        if (
            not np.array_equal(told, own.values[first])
            or (np.bincount(later.row_of_value, later.values, len(users)) != left_out).any()
        ):
            raise DataError(self._leak("a target is not the event that comes next after its history"))

    def _check_later(self) -> None:
        """Checks that each user's validation event is later than training, and the test event later than all before."""
        steps = (
            ("validation", self.train, self.validation_events),
            ("test", self.train_and_validation_events, self.test_events),
        )
        for what, known, asked in steps:
            assert asked is not None
            before, after = (part.groupby(USER_INDEX)[ORDER].agg(["min", "max"]) for part in (known, asked))
            both = before.join(after, how="inner", lsuffix="_before")
            late = both.index[both["max_before"] >= both["min"]]
            if len(late):
                raise DataError(
                    self._leak(f"the {what} event of user {self._user(late[0])} is not later than the others")
                )

    def _check_time(self, pairs: np.ndarray, validation: np.ndarray, test: np.ndarray) -> None:
        times = self.dataset.events[TIMESTAMP].to_numpy()
        trained_until = self.train[TIMESTAMP].max()
        after_train = times > trained_until
        self._forbid(_excess([validation], pairs[after_train]), "a validation target is not later than all of train")
        validated = np.isin(pairs, validation) & after_train
        validated_until = pd.Series(times[validated]).groupby(pairs[validated]).min().max()
        self._forbid(
            _excess([test], pairs[times > validated_until]), "a test target is not later than all of validation"
        )

    def _forbid(self, leaking: np.ndarray, what: str) -> None:
        if len(leaking):
            user, item = divmod(int(leaking[0]), self.dataset.n_items)
            raise DataError(
                self._leak(f"{what}: user {self._user(user)}, item {self.dataset.items[ITEM].iloc[item]!r}")
            )

    def _user(self, user_index: int) -> str:
        return repr(self.dataset.users[USER].iloc[user_index])

    def _leak(self, what: str) -> str:
        return f"The {self.kind} split of {self.dataset.name} leaks: {what}."


def head_items(train_counts: np.ndarray, head_share: float = 0.2) -> np.ndarray:
    """Returns bool ``[N]``: the round(head_share * N) items with the most training events, ties by item index.

    Items without events are never among them.
    """
    head = np.zeros(len(train_counts), dtype=bool)
    head[np.argsort(-train_counts, kind="stable")[: round(head_share * len(train_counts))]] = True
    return head & (train_counts > 0)


def make_split(
    dataset: Dataset,
    config: SplitConfig,
    seed: int,
    schema: Schema | None = None,
    trained: np.ndarray | None = None,
) -> Split:
    """Divides ``dataset`` and checks that nothing leaks.

    If kinds of events have weights, events with a weight of 0 or less, such as dislikes and impressions, are not
    targets. A user's last events are then the last ones with a weight above 0; events after a target are in no history
    before it. :attr:`Split.findings` reports how many held-out events are not used as targets.

    - ``leave_last_out``: a user's last event is for the test, the one before it for validation; users with fewer than 3
      events are only used for training. The history of a query consists of the user's events before the target. With
      ``split.domain``, in joined data, the two are the user's last events in that domain: only its items are
      candidates. The user's events in other domains are training events until the validation event, only in the test
      history from there to the test event, and not used after it.
    - ``leave_random_out``: as leave_last_out, with two random events of each user, for data without an order.
    - ``global_time``: the latest ``test_share`` of the events are for the test, the ``validation_share`` before them
      for validation. A query is a user with events before and in the period; its targets are the events in the period.
    - ``cold_items``: shares of the items with events are removed from train completely. A query is a user with events
      in train and events on removed items; the latter are its targets. Items held out for validation are in no test
      history.
    - ``cold_users``: shares of the users with at least 2 events are removed from train completely. Their last event is
      the target, all events before it are the history.
    - ``cold_domain``: shares of the users with events in another domain and more than ``known_events`` in
      ``split.domain`` are held out. All their events in other domains are in train and in their histories; their first
      ``known_events`` in that domain are only in their histories; the others are the targets. Only items of that domain
      are candidates.
    - ``random``: ``test_share`` of each user's events, drawn at random, are for the test, and ``validation_share`` for
      validation. If a share is not a whole number of events, it is rounded up for some users and down for others, so
      that the total is right. A user keeps at least one training event. The history of a query consists of the user's
      training events; test histories also include the validation events. Its targets are the held-out events.
    - ``fixed``: the test events are those that ``test_events`` names, including those of users without other events,
      whose queries have no history. Validation events are drawn from the other events as for ``random``.
    - ``auto``: leave_last_out if the data has an order, else leave_random_out.

    If the data has no order, ``cold_users`` uses a random event as the last one.

    Held-out events of one user that differ in a field of the request, such as the device, are targets of different
    queries, each with its own context. Times do not separate queries, because nearly every event has its own; the time
    of a query with several targets is that of the first one.

    In some kinds of split, such as ``random`` and ``cold_items``, histories hold events that are later than a target.
    If the data has an order, the texts that users wrote with such events (reviews, tags) are removed, because they may
    describe the target. An event is late if it is later than the first target of the query.

    Args:
      dataset: The data set; some users must have the events that the kind needs. For ``fixed`` it must have been read
        with ``test_events``.
      config: The kind and the shares.
      seed: Random seed; the same seed and data give the same split.
      schema: The schema of an earlier split, if models fitted on it stay in use; by default that of the training
        events. All values of a field whose column the data lacks are missing.
      trained: Int ``[T]``, rows of ``dataset.events`` that such models were trained on: they are training events,
        whatever the kind of split says.

    Raises:
      ConfigError: Validation and test take everything; or the data set was not read with ``config.test_events``; or
        ``split.domain`` is missing or unknown.
      DataError: The data lacks the order or the times that the kind needs, or has too few events for three parts.
    """
    dataset, kind = dataset.with_tags_written, config.kind
    if config.domain is not None:
        dataset = with_event_domains(dataset)
    if schema is not None:
        dataset = dataset.with_columns((TABLES[field.owner], field.name) for field in schema)
    if kind == "auto":
        kind = "leave_last_out" if dataset.ordered else "leave_random_out"
    if (
        kind in ("global_time", "cold_items", "cold_users", "cold_domain", "random")
        and config.validation_share + config.test_share >= 1
    ):
        raise ConfigError(
            f"split: validation_share {config.validation_share:g} and test_share {config.test_share:g} leave nothing "
            "to train on; their sum must be below 1."
        )
    part = _PARTS[kind](dataset, config, np.random.default_rng(seed))
    held_out = (part == _VALIDATION) | (part == _TEST)
    stays = np.zeros(len(part), bool)
    if trained is not None:
        stays[trained] = held_out[trained]
        if kind == "leave_last_out":  # no target may precede a training event of its user
            users, rows = dataset.events[USER_INDEX].to_numpy(), np.arange(len(part))
            until = np.full(dataset.n_users, -1)
            np.maximum.at(until, users[stays], rows[stays])
            stays = held_out & (rows <= until[users])
        part[stays] = _TRAIN
    if kind == "cold_domain":
        known = [(part == _TRAIN) | (part == _HISTORY)] * 2
    elif kind == "cold_users":
        known = [part == _HISTORY, part == _HISTORY]
    elif kind == "cold_items":
        known = [part == _TRAIN, part == _TRAIN]
    else:
        known = [part == _TRAIN, (part == _TRAIN) | (part == _VALIDATION) | (part == _HISTORY)]

    events = dataset.events
    train = events[part == _TRAIN].reset_index(drop=True)
    users_of_train = dataset.users.iloc[np.unique(train[USER_INDEX])]
    schema = schema or dataset.schema_of(train, users_of_train)
    encoded, asked = _encoded(dataset, schema), []
    for held_out, history in zip((_VALIDATION, _TEST), known, strict=True):
        is_target = (part == held_out) & dataset.choices
        users = np.unique(events[USER_INDEX][is_target])
        if kind != "fixed":  # in a fixed split all test events are measured
            users = np.intersect1d(users, events[USER_INDEX][history])
        queries = _queries(dataset, schema, encoded, events[history], events[is_target], users)
        if config.domain is not None and kind in ("cold_domain", *_LEAVE_OUT):
            queries = replace(queries, candidates=items_of_domain(dataset.items, str(config.domain)))
        asked.append(queries)
    targets = events[part == _VALIDATION], events[part == _TEST]
    between = events[part == _HISTORY] if kind == "leave_last_out" and config.domain is not None else None
    split = Split(dataset, kind, schema, train, asked[0], asked[1], *targets, int(stays.sum()), between)
    sizes = {"training events": len(split.train), "validation queries": len(asked[0]), "test queries": len(asked[1])}
    empty = [name for name, size in sizes.items() if not size]
    if empty:
        raise DataError(
            f"{dataset.name} has too few events for a {kind} split: {dataset.n_users:,} users and {len(events):,} "
            f"events give no {' and no '.join(empty)}. {_NEEDS[kind]} Use more data or another split.kind."
        )
    split.check()
    return split


_NEEDS = {
    "leave_last_out": "It takes users with at least 3 events.",
    "leave_random_out": "It takes users with at least 3 events.",
    "random": "It takes users with at least 2 events; larger shares help.",
    "fixed": "It takes test events, and users with at least 2 others; a larger validation_share helps.",
    "global_time": "It takes users with events in several periods.",
    "cold_items": "It takes users with events on held-out and on other items; larger shares help.",
    "cold_domain": "It takes at least 3 users with events in two domains, two of them with more than "
    "split.known_events in split.domain; larger shares help.",
    "cold_users": "It takes at least 3 users, two of them with 2 events; larger shares help.",
}


def _leave_last_out(dataset: Dataset, config: SplitConfig, rng: np.random.Generator) -> np.ndarray:
    if not dataset.ordered:
        raise DataError(
            f"{dataset.name} does not say in which order events happened, so there is no last one: use split.kind "
            "leave_random_out, or name the order or timestamp column under data.columns."
        )
    inside = _in_domain(dataset, config)
    asked = dataset.choices & inside
    part = _last_two(dataset, _from_end(dataset, asked), asked)
    # Events in other domains reveal the future of the targets before them.
    part[(part == _VALIDATION) & ~inside] = _HISTORY
    part[(part == _TEST) & ~inside] = _UNUSED
    return part


def _leave_random_out(dataset: Dataset, config: SplitConfig, rng: np.random.Generator) -> np.ndarray:
    asked = dataset.choices & _in_domain(dataset, config)
    return _last_two(dataset, _shuffled(dataset, rng, asked), asked)


def _last_two(dataset: Dataset, from_end: np.ndarray, asked: np.ndarray) -> np.ndarray:
    users = dataset.events[USER_INDEX].to_numpy()
    part = np.full(len(from_end), _TRAIN)
    enough = np.bincount(users[asked], minlength=dataset.n_users)[users] >= 3
    part[enough & (from_end == 0)] = _TEST
    part[enough & (from_end == 1)] = _VALIDATION
    return part


def _in_domain(dataset: Dataset, config: SplitConfig) -> np.ndarray:
    """Returns bool ``[E]``: the events in ``split.domain``; all events if no domain is set."""
    if config.domain is None:
        return np.ones(len(dataset.events), dtype=bool)
    if DOMAIN not in dataset.events:
        raise ConfigError(
            f"split.domain needs a column '{DOMAIN}' of the items or the events: join several data sets with "
            "'tfllmrec data join', or leave it out."
        )
    domains = dataset.events[DOMAIN]
    if config.domain not in set(domains):
        known = ", ".join(sorted(domain_names(domains.to_numpy(object))))
        raise ConfigError(f"split.domain: expected one of {known}, found {config.domain!r}.")
    return (domains == config.domain).to_numpy()


def _global_time(dataset: Dataset, config: SplitConfig, rng: np.random.Generator) -> np.ndarray:
    times = dataset.events[TIMESTAMP].to_numpy()
    unknown = int(np.isnan(times).sum())
    if unknown:
        raise DataError(
            f"{unknown:,} of {len(times):,} events of {dataset.name} have no time, which split.kind global_time needs: "
            "use another kind, or name the timestamp column under data.columns."
        )
    ranked = np.sort(times)
    validation_from = ranked[int(len(times) * (1 - config.validation_share - config.test_share))]
    test_from = ranked[int(len(times) * (1 - config.test_share))]
    return np.where(times < validation_from, _TRAIN, np.where(times < test_from, _VALIDATION, _TEST))


def _cold_items(dataset: Dataset, config: SplitConfig, rng: np.random.Generator) -> np.ndarray:
    items = dataset.events[ITEM_INDEX].to_numpy()
    return _held_out(np.unique(items), dataset.n_items, config, rng)[items]


def _cold_users(dataset: Dataset, config: SplitConfig, rng: np.random.Generator) -> np.ndarray:
    users = dataset.events[USER_INDEX].to_numpy()
    of_user = _held_out(np.unique(users[_choices_of_user(dataset) >= 2]), dataset.n_users, config, rng)
    from_end = _from_end(dataset, dataset.choices) if dataset.ordered else _shuffled(dataset, rng)
    part = of_user[users]
    return np.where((part != _TRAIN) & (from_end > 0), _HISTORY, part)


def _cold_domain(dataset: Dataset, config: SplitConfig, rng: np.random.Generator) -> np.ndarray:
    if config.domain is None:
        raise ConfigError("split.kind cold_domain: expected the target domain as split.domain, found none.")
    users, inside = dataset.events[USER_INDEX].to_numpy(), _in_domain(dataset, config)
    own = np.flatnonzero(inside)  # sorted by user and order
    known = np.zeros(len(users), dtype=bool)
    known[own] = np.arange(len(own)) - np.searchsorted(users[own], users[own]) < config.known_events
    asked = users[inside & ~known & dataset.choices]
    of_both = np.intersect1d(asked, users[~inside & dataset.choices])
    part = np.where(inside, _held_out(of_both, dataset.n_users, config, rng)[users], _TRAIN)
    return np.where((part != _TRAIN) & known, _HISTORY, part)


def _random(dataset: Dataset, config: SplitConfig, rng: np.random.Generator) -> np.ndarray:
    counts = np.bincount(dataset.events[USER_INDEX][dataset.choices], minlength=dataset.n_users)
    share = config.validation_share + config.test_share
    held_out = np.minimum(_rounded(counts, share, rng), np.maximum(counts - 1, 0))
    tested = _rounded(held_out, config.test_share / share, rng)
    users, from_end = dataset.events[USER_INDEX].to_numpy(), _shuffled(dataset, rng)
    return np.where(from_end < tested[users], _TEST, np.where(from_end < held_out[users], _VALIDATION, _TRAIN))


def _fixed(dataset: Dataset, config: SplitConfig, rng: np.random.Generator) -> np.ndarray:
    if dataset.test_events is None or config.test_events not in (None, dataset.test_events):
        asked, known = config.test_events or "rows (0:20000) or a file", dataset.test_events or "no test events"
        raise ConfigError(
            f"split.test_events: expected {asked}, and the data set was read with {known}. Set split.kind=fixed and "
            "split.test_events when the data is read, or pass test_events to read_dataset in Python."
        )
    users, is_test = dataset.events[USER_INDEX].to_numpy(), dataset.events[TEST_EVENT].to_numpy()
    counts = np.bincount(users[~is_test], minlength=dataset.n_users)
    validated = np.minimum(_rounded(counts, config.validation_share, rng), np.maximum(counts - 1, 0))
    # Shuffle each user's events with the test events last, and use the first ones for validation.
    shuffled = np.lexsort((rng.random(len(users)), is_test, users))
    first = np.cumsum(np.bincount(users, minlength=dataset.n_users)) - np.bincount(users, minlength=dataset.n_users)
    place = np.empty(len(users), dtype=np.int64)
    place[shuffled] = np.arange(len(users)) - first[users]
    return np.where(is_test, _TEST, np.where(place < validated[users], _VALIDATION, _TRAIN))


def _rounded(counts: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Returns int64 ``[n]``: ``share`` of each count, randomly rounded so that the sum is right to within one.

    The counts are laid end to end in a random order, and every (1 / share)-th unit is taken, starting at a random
    position (systematic sampling).
    """
    order = rng.permutation(len(counts))
    taken = np.floor(np.cumsum(counts[order]) * share + rng.random()).astype(np.int64)
    out = np.empty(len(counts), dtype=np.int64)
    out[order] = np.diff(taken, prepend=0)
    return out


def _held_out(candidates: np.ndarray, n: int, config: SplitConfig, rng: np.random.Generator) -> np.ndarray:
    """Returns int ``[n]``: the part that each item or user belongs to; shares of the candidates are held out."""
    n_validation, n_test = (max(1, round(s * len(candidates))) for s in (config.validation_share, config.test_share))
    shuffled = rng.permutation(candidates)
    part = np.full(n, _TRAIN)
    part[shuffled[:n_test]] = _TEST
    part[shuffled[n_test : n_test + n_validation]] = _VALIDATION
    return part


_PARTS: dict[str, Callable[[Dataset, SplitConfig, np.random.Generator], np.ndarray]] = {
    "leave_last_out": _leave_last_out,
    "leave_random_out": _leave_random_out,
    "global_time": _global_time,
    "cold_items": _cold_items,
    "cold_users": _cold_users,
    "cold_domain": _cold_domain,
    "random": _random,
    "fixed": _fixed,
}


def _tag_finding(tags: pd.DataFrame, mask: np.ndarray, what: str, action: Action) -> list[Finding]:
    """Returns the finding on the tags in ``mask`` as a list, empty if there are no such tags."""
    if not mask.any():
        return []
    user, item, tag = tags[[USER, ITEM, TAG]].iloc[int(mask.argmax())]
    return [Finding("tags", what, int(mask.sum()), action, f"user {user!r}, item {item!r}, tag {tag!r}")]


def _choices_of_user(dataset: Dataset) -> np.ndarray:
    """Returns int64 ``[E]``: the number of choices of each event's user."""
    users = dataset.events[USER_INDEX].to_numpy()
    return np.bincount(users[dataset.choices], minlength=dataset.n_users)[users]


def _from_end(dataset: Dataset, counted: np.ndarray) -> np.ndarray:
    """Returns int64 ``[E]``: how many of the events ``counted``, bool ``[E]``, the user has after each event."""
    users = dataset.events[USER_INDEX].to_numpy()
    ends = np.cumsum(np.bincount(users, minlength=dataset.n_users))
    up_to = np.concatenate([[0], np.cumsum(counted)])
    return up_to[ends[users]] - up_to[1:]


def _shuffled(dataset: Dataset, rng: np.random.Generator, last: np.ndarray | None = None) -> np.ndarray:
    """Returns int64 ``[E]``: how many events of the user follow each event in a random order.

    Args:
      dataset: The data set.
      rng: Source of the order.
      last: Bool ``[E]``, the events that come last in the order of their user; by default the choices.
    """
    last = dataset.choices if last is None else last
    users = dataset.events[USER_INDEX].to_numpy()
    ends = np.cumsum(np.bincount(users, minlength=dataset.n_users))
    out = np.empty(len(users), dtype=np.int64)
    out[np.lexsort((rng.random(len(users)), last, users))] = ends[users] - 1 - np.arange(len(users))
    return out


def ragged_column(events: pd.DataFrame, column: str, users: np.ndarray) -> Ragged:
    """Returns the values of ``column``, one row for each of ``users`` (user indices); ``events`` are sorted by user."""
    return _by_user(events, events[column].to_numpy(), users)


def _by_user(events: pd.DataFrame, values: np.ndarray, users: np.ndarray) -> Ragged:
    own = events[USER_INDEX].to_numpy()
    starts, stops = np.searchsorted(own, users, "left"), np.searchsorted(own, users, "right")
    offsets = np.concatenate([[0], np.cumsum(stops - starts)])
    flat = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], stops - starts)
    return Ragged(values[flat], offsets)


def _encoded(dataset: Dataset, schema: Schema) -> dict[str, np.ndarray]:
    """Returns the encoded fields of all events, by ``event.NAME``, and of all users, by ``user.NAME``.

    Columns are encoded as a whole, because the format of numbers and times is recognised from the whole column.
    """
    of_events = {field.key: field.encode(dataset.events[field.name]) for field in schema.of_history()}
    return of_events | {field.key: field.encode(dataset.users[field.name]) for field in schema.of("user")}


def _separating(schema: Schema) -> list[Field]:
    """Returns the request fields that separate a user's targets into different queries."""
    return [field for field in schema.of("request") if field.kind != "time"]


def _codes_of_rows(columns: list[Any], n: int) -> np.ndarray:
    """Returns int64 ``[n]``: equal numbers for equal rows of ``columns``, where NaN equals NaN.

    Args:
      columns: Arrays ``[n]`` or ``[n, width]``.
      n: Number of rows.
    """
    parts = [part for column in columns for part in (column.T if column.ndim == 2 else [column])]
    if not parts:
        return np.zeros(n, dtype=np.int64)
    return (
        pd.DataFrame(dict(enumerate(parts)))
        .groupby(list(range(len(parts))), dropna=False, sort=False)
        .ngroup()
        .to_numpy()
    )


def _queries(
    dataset: Dataset,
    schema: Schema,
    encoded: Mapping[str, np.ndarray],
    history: pd.DataFrame,
    targets: pd.DataFrame | None,
    users: np.ndarray,
) -> Queries:
    """Creates the queries of ``users`` (user indices, ascending).

    If ``targets`` is ``None``, each user has one query without targets. Otherwise the queries of a user are in the
    order of their first targets. If the data has an order, history events later than the first target lose their texts,
    because these may describe the target.
    """
    if targets is None:
        of_query, asked = users, Ragged(np.empty(0, np.int64), np.zeros(len(users) + 1, np.int64))
        first = np.empty(0, dtype=np.int64)
    else:
        targets = targets[np.isin(targets[USER_INDEX], users)]
        rows, own = _rows(dataset, targets), targets[USER_INDEX].to_numpy()
        requests = _codes_of_rows([encoded[f"event.{field.name}"][rows] for field in _separating(schema)], len(rows))
        # Queries are numbered in the order of their first target, which is also the order of the users.
        query = (
            pd.DataFrame({"user": own, "request": requests})
            .groupby(["user", "request"], sort=False)
            .ngroup()
            .to_numpy()
        )
        by_query = np.argsort(query, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(query))])
        asked = Ragged(targets[ITEM_INDEX].to_numpy()[by_query], offsets)
        first = by_query[offsets[:-1]]
        of_query, first = own[first], rows[first]

    rows_of_history = _by_user(history, _rows(dataset, history), of_query)
    items = Ragged(dataset.events[ITEM_INDEX].to_numpy()[rows_of_history.values], rows_of_history.offsets)
    fields: dict[str, Ragged | np.ndarray] = {}
    for field in schema.of_history():
        values = encoded[field.key][rows_of_history.values]
        if field.kind == "text" and targets is not None and dataset.ordered:
            late = rows_of_history.values > np.repeat(first, items.lengths)
            values = np.where(late, field.encode([""])[0], values)
        fields[field.key] = Ragged(values, items.offsets)
    for field in schema.of("request"):
        known = encoded[f"event.{field.name}"]
        empty = np.full((len(of_query), *known.shape[1:]), field.padding, field.dtype)
        fields[field.key] = empty if targets is None else known[first]
    for field in schema.of("user"):
        fields[field.key] = encoded[field.key][of_query]
    weights = schema.event_weights(encoded)
    queries = Queries(
        user_ids=dataset.users[USER].to_numpy(dtype=object)[of_query],
        history=items,
        exclude=Ragged(items.values[:0], np.zeros_like(items.offsets)),
        targets=asked,
        fields=fields,
        weights=None if weights is None else Ragged(weights[rows_of_history.values], items.offsets),
    )
    return queries if dataset.repeats else replace(queries, exclude=queries.had)


def _rows(dataset: Dataset, events: pd.DataFrame) -> np.ndarray:
    """Returns int64 ``[E]``: the row of each event in ``dataset.events``, which are sorted by user and order."""
    width = int(dataset.events[ORDER].max()) + 1
    place, own = (table[USER_INDEX].to_numpy() * width + table[ORDER].to_numpy() for table in (dataset.events, events))
    return np.searchsorted(place, own)


def _pairs(events: pd.DataFrame, n_items: int) -> np.ndarray:
    """Returns int64 ``[E]``: a number that encodes the (user, item) pair of each event."""
    return events[USER_INDEX].to_numpy() * n_items + events[ITEM_INDEX].to_numpy()


def _excess(used: list[np.ndarray], there: np.ndarray) -> np.ndarray:
    """Returns the pairs that occur more often in all arrays of ``used`` together than in ``there``."""
    pairs, counts = np.unique(np.concatenate(used), return_counts=True)
    known, known_counts = np.unique(there, return_counts=True)
    if not len(known):
        return pairs
    at = np.minimum(np.searchsorted(known, pairs), len(known) - 1)
    allowed = np.where(known[at] == pairs, known_counts[at], 0)
    return pairs[counts > allowed]
