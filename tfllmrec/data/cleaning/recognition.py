"""Recognises the columns of a table by their usual names and by their values, or by a mapping."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from tfllmrec.columns import (
    CATEGORIES,
    DESCRIPTION,
    EVENT_KIND,
    ITEM,
    ORDER,
    RATING,
    TAG,
    TIMESTAMP,
    TITLE,
    USER,
)
from tfllmrec.data.cleaning.event_kinds import (
    are_event_kinds,
    count_kinds,
    event_kinds,
    has_few_kinds,
    is_known_kind,
    kind_weight,
)
from tfllmrec.data.cleaning.values import numbers, strings
from tfllmrec.data.files.column_names import ALIASES, plain_name, words_of_name
from tfllmrec.data.files.raw_table import RawTable
from tfllmrec.data.findings import Finding
from tfllmrec.data.sampling import evenly_spread
from tfllmrec.errors import ConfigError, DataError
from tfllmrec.wording import nearest, nearest_hint

EVENT_COLUMNS = (USER, ITEM, RATING, TIMESTAMP, ORDER, EVENT_KIND)
TAG_COLUMNS = (USER, ITEM, TAG, TIMESTAMP)
ITEM_COLUMNS = (ITEM, TITLE, DESCRIPTION, CATEGORIES)

_SAMPLE = 1000  # rows of a column that are searched for kinds of events
_IDS = {"id", "uuid", "guid", "sku", "isbn", "asin", "number", "code", "key"}  # words in names of columns of ids
_QUANTITY = {"quantity", "qty"}
_TRUE = ("1", "true", "1.0")


def check_mapping(mapping: dict[str, str]) -> None:
    known = [*EVENT_COLUMNS, *ITEM_COLUMNS[1:]]
    for column in mapping:
        if column not in known:
            raise ConfigError(
                f"data.columns: {column!r} is not a column that tfllmrec knows; expected one of {', '.join(known)}"
                f"{nearest_hint(plain_name(column), _by_plain_name(known))}. "
                "It goes on the left: data.columns: {canonical: name in the file}."
            )


def check_mapped(mapping: dict[str, str], tables: list[RawTable]) -> None:
    for column, name in mapping.items():
        if not any(raw.names.get(column) == name for raw in tables):
            seen = [c for raw in tables for c in [*raw.frame.columns, *raw.names.values()]]
            raise DataError(
                f"data.columns maps {column} to {name!r}, which no file that could hold it has"
                f"{nearest_hint(plain_name(name), _by_plain_name(seen))}."
            )


def _by_plain_name(names: Sequence[str]) -> dict[str, str]:
    """Maps plain forms to names; leaves out those of one or two characters, which resemble too many others."""
    return {plain_name(name): name for name in names if len(plain_name(name)) > 2}


def _shown(name: str) -> str:
    return repr(name if len(name) <= 60 else f"{name[:57]}...")


def name_columns(raw: RawTable, wanted: Sequence[str], required: Sequence[str], mapping: dict[str, str]) -> RawTable:
    """Gives the wanted columns their canonical names: by ``mapping``, or else by their usual names.

    A column is recognised as the kind of events only if its values are known kinds, too: "type" may be the type of an
    item. Another column that already has one of the canonical names is renamed to ``source_NAME``. In a table whose
    columns are named already, such as an event log, usual names mean nothing.

    Raises:
      DataError: A required column is missing.
    """
    present = list(raw.frame.columns)
    plain = {plain_name(name): name for name in reversed(present)}
    names: dict[str, str] = {}
    findings = list(raw.findings)
    lists_one = len(required) == 1
    for column in wanted:
        usual = [plain[plain_name(a)] for a in ALIASES[column] if plain_name(a) in plain and (a != "id" or lists_one)]
        if raw.names:
            usual = [raw.names[column]] if column in raw.names else []
        free = [name for name in usual if name not in names.values() and name not in mapping.values()]
        if column == EVENT_KIND:
            kinds = [name for name in free if are_event_kinds(raw.frame[name])]
            if not kinds and mapping.get(column) not in present:
                findings += _no_kinds(raw, [name for name in free if has_few_kinds(raw.frame[name])])
            free = kinds
        if mapping.get(column) in present:
            names[column] = mapping[column]
        elif free:
            names[column] = free[0]
    if EVENT_KIND in wanted and EVENT_KIND not in names:
        rest = [name for name in present if name not in names.values()]
        findings += [*_kinds_in_columns(raw, rest), *_kinds_elsewhere(raw, rest), *_returns(raw, rest)]
    if missing := [column for column in required if column not in names]:
        raise _lacking(raw, missing, [name for name in present if name not in names.values()], mapping)
    renamed = {name: column for column, name in names.items()}
    for name in present:
        if name not in renamed and name in wanted:
            renamed[name] = f"source_{name}"
    return replace(raw, frame=raw.frame.rename(columns=renamed), names=names, findings=tuple(findings))


def _lacking(raw: RawTable, missing: Sequence[str], left: Sequence[str], mapping: dict[str, str]) -> DataError:
    """Returns the error on ``missing`` columns, which says which of ``left``, the file's other names, may be meant."""
    present = list(raw.frame.columns)
    unsplit = len(present) == 1 and re.search(r"\w\W+\w", present[0])
    expected, flags = [], []
    for column in missing:
        near = None if unsplit else _similar(mapping.get(column), column, left)
        sought = [mapping[column]] if column in mapping else ALIASES[column][:6]
        expected.append(f"one named {' or '.join(sought)}" + (f" (nearest: {near!r})" if near else ""))
        guess = near or "NAME_IN_THE_FILE"
        flags.append(f"--set {shlex.quote(f'data.columns.{column}={guess}')}")
    hints = [f"In reading it: {finding.what}." for finding in raw.findings if finding.action != "dropped"]
    values = [name for name in present if re.fullmatch(r"[0-9][0-9.,:/T+ -]*(?:Z|[AP]M)?", name)]
    if values:
        hints.append(f"{_shown(values[0])} looks like a value: if the file has no header, add one.")
    if unsplit:
        hints.append(
            "If the file has several columns, separate them by a tab, a comma, ';' or '|', or name another separator "
            "in a line above the header, such as sep=^."
        )
    for column in missing:
        hints += [
            f"{_shown(name)} holds records with a field {key!r}: write that field as a column of its own."
            for name in present
            if (key := _usual_key(raw.frame[name], column)) is not None
        ]
    return DataError(
        f"{raw.file}: no column for {' nor for '.join(missing)}. Expected {', and '.join(expected)}; "
        f"found {', '.join(_shown(name) for name in present[:20])}. {''.join(f'{hint} ' for hint in hints)}"
        f"Map it: {' '.join(flags)}, or data.columns in a config."
    )


def _similar(mapped: str | None, column: str, names: Sequence[str]) -> str | None:
    """Returns the name most like the one that a column is mapped to, or else like its usual names; or ``None``.

    A name of an id with the words of a usual name goes before one that is spelt alike. Short words resemble too many
    others.
    """
    plain = _by_plain_name(names)
    if mapped is not None:
        return next((plain[found] for found in nearest(plain_name(mapped), plain)), None)
    usual = [name for name in ALIASES[column] if name != "id"]
    with_words = (
        name
        for sought in usual
        for name in names
        if _singular(sought) <= _singular(name) and (_singular(sought) == _singular(name) or _IDS & _singular(name))
    )
    alike = (plain[n] for sought in usual if len(sought) > 4 for n in nearest(plain_name(sought), plain, cutoff=0.8))
    return next(with_words, next(alike, None))


def _singular(name: str) -> set[str]:
    return {word.removesuffix("s") for word in words_of_name(name)}


def _usual_key(values: pd.Series, column: str) -> str | None:
    """Returns a usual name of ``column`` in the first record that a column of records or of lists of them holds."""
    if values.dtype != object:
        return None
    record = next((cell for cell in values if cell is not None), None)
    record = record[0] if isinstance(record, list) and record else record
    usual = {plain_name(name) for name in ALIASES[column] if name != "id"}
    return next((key for key in record if plain_name(key) in usual), None) if isinstance(record, dict) else None


def _kinds_in_columns(raw: RawTable, columns: Sequence[str]) -> list[Finding]:
    """Returns a finding on flags (0 and 1) in columns that are named like kinds of events, if events have no kind."""
    flags = [name for name in columns if is_known_kind(re.sub("^(is|has)_", "", name)) and _is_flag(raw.frame[name])]
    if not flags:
        return []
    none = np.all([~strings(raw.frame[name]).str.lower().isin(_TRUE) for name in flags], axis=0)
    what = (
        f"flags in {', '.join(map(repr, flags))} are not read as kinds of events: every row counts as an event, "
        f"including the {none.sum():,} rows without any flag. Write one row for each thing that the user did, with its "
        "name in a column 'kind'"
    )
    return [Finding(raw.table, what, len(raw.frame), "doubted")]


def _returns(raw: RawTable, columns: Sequence[str]) -> list[Finding]:
    """Returns a finding on each column of quantities with negative numbers, if events have no kind."""
    findings = []
    for name in columns:
        if _QUANTITY.intersection(words_of_name(name)) and (back := numbers(raw.frame[name])[0] < 0).any():
            what = (
                f"{name!r} is negative, as for returns and cancellations, but such a row still counts as an event. "
                "Drop such rows, or name what the user did in a column 'kind' (purchase, refund)"
            )
            findings.append(Finding(raw.table, what, int(back.sum()), "doubted", raw.example(int(back.argmax()), name)))
    return findings


def _kinds_elsewhere(raw: RawTable, columns: Sequence[str]) -> list[Finding]:
    """Returns a finding on columns of other names whose values are kinds of events, judged by an even sample."""
    sample = raw.frame.iloc[evenly_spread(len(raw.frame), _SAMPLE)]
    return [
        Finding(
            raw.table,
            f"column {name!r} looks like the kind of event ({count_kinds(event_kinds(raw.frame[name])[0])}), but is "
            f"not used as such, so all events count the same. Map it ({shlex.quote(f'data.columns.kind={name}')}), or "
            "give its values weights in data.fields",
            len(raw.frame),
            "kept",
            raw.example(0, name),
        )
        for name in columns
        if has_few_kinds(sample[name]) and are_event_kinds(sample[name]) and _has_choices(sample[name])
    ]


def _has_choices(values: pd.Series) -> bool:
    return any(is_known_kind(kind) and kind_weight(kind) > 0 for kind in strings(values).unique())


def _is_flag(values: pd.Series) -> bool:
    return set(strings(values).str.lower()) in ({"0", "1"}, {"false", "true"}, {"0.0", "1.0"})


def _no_kinds(raw: RawTable, columns: Sequence[str]) -> list[Finding]:
    """Returns findings on columns that are named like kinds of events, but mostly hold other values, such as codes."""
    return [
        Finding(
            raw.table,
            f"column {name!r} is not used as the kind of event: most of its values are not known kinds "
            f"({count_kinds(event_kinds(raw.frame[name])[0])}), so all events count the same. If they are kinds, map "
            f"the column ({shlex.quote(f'data.columns.kind={name}')}) and give each value a weight "
            "(data.fields.kind.weights)",
            len(raw.frame),
            "kept",
            raw.example(0, name),
        )
        for name in columns
    ]
