"""Cleans the catalogue, its additional files and the users."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tfllmrec.columns import (
    CATEGORIES,
    DESCRIPTION,
    ITEM,
    NAME_COLUMNS,
    TAGS,
    TITLE,
    USER,
)
from tfllmrec.config import DataConfig
from tfllmrec.data.cleaning.item_text import strip_html, words_for_nothing
from tfllmrec.data.cleaning.names import category_names, read_name_column, structured_text, translations
from tfllmrec.data.cleaning.rows import Rows
from tfllmrec.data.cleaning.tags import MAY_LEAK
from tfllmrec.data.cleaning.values import MISSING, is_row_number, strings
from tfllmrec.data.files.column_names import plain_name
from tfllmrec.data.files.raw_table import RawTable
from tfllmrec.data.findings import CleaningReport

TEXT_COLUMNS = (TITLE, DESCRIPTION, CATEGORIES, TAGS)
#: Finds cells that may hold a list or a record. Vectors, which are long, are told apart without parsing them.
_STRUCTURE = r"^[\[{(][ \t\r\n0-9.,;eE+\-)\]]*[^ \t\r\n0-9.,;eE+\-)\]]"


def clean_items(
    raw: RawTable, config: DataConfig, report: CleaningReport, known: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Returns the clean catalogue.

    Of several rows with the same id, the one with the most filled cells is kept; of equally full ones, the one with the
    most text. The order of the rows does not matter. HTML is stripped from text and counted. Tags in the catalogue have
    no times, which is reported. Cells of categories, tags and authors (:data:`tfllmrec.columns.NAME_COLUMNS`) hold
    names, separated as :mod:`tfllmrec.data.cleaning.names` says.

    Args:
      raw: The file.
      config: Provides ``max_bad_rows`` and ``inexact_ids``.
      report: Receives the findings.
      known: Clean items from elsewhere, whose names help to tell commas inside names from commas between them.

    Returns:
      ``item_id``, then title, description, categories and tags if present, then the other columns, all str.

    Raises:
      DataError: More than ``config.max_bad_rows`` of the rows have no id or cannot be read.
    """
    rows, columns = _clean_entities(raw, ITEM, config, report)
    others = [column for column in map(str, raw.frame) if column not in (ITEM, *TEXT_COLUMNS)]
    for column in [c for c in others if is_row_number(c, raw.frame[c])]:
        rows.note(rows.keep, f"column {column!r} holds row numbers, as pandas writes them: left out", "kept", column)
        others.remove(column)
    for column in [*(c for c in TEXT_COLUMNS if c in raw.frame), *others]:
        values = raw.frame[column]
        if column in NAME_COLUMNS:
            names_known = set() if known is None or column not in known else _names_of(known[column])
            columns[column] = _name_cells(values, column, rows, names_known)
        elif column in TEXT_COLUMNS:
            columns[column] = _running_text(values, column, rows)
        else:
            columns[column] = rows.texts(_structures(values, ", "), column)
    items = _finished(rows, columns)
    for column in (CATEGORIES, TAGS):
        if column in items and plain_name(raw.names.get(column, column)) == TAGS:
            tagged = int((items[column] != "").sum())
            report.add(raw.table, f"tags without a time: {MAY_LEAK}", tagged, "kept")
    return items


def clean_users(raw: RawTable, config: DataConfig, report: CleaningReport) -> pd.DataFrame:
    """Returns the clean users: ``user_id``, then the other columns, all str.

    Of several rows with the same id, the one with the most filled cells is kept, as in :func:`clean_items`.

    Raises:
      DataError: More than ``config.max_bad_rows`` of the rows have no id or cannot be read.
    """
    rows, columns = _clean_entities(raw, USER, config, report)
    columns |= {column: rows.texts(raw.frame[column], column) for column in map(str, raw.frame) if column != USER}
    return _finished(rows, columns)


def _clean_entities(
    raw: RawTable, key: str, config: DataConfig, report: CleaningReport
) -> tuple[Rows, dict[str, pd.Series]]:
    """Drops the rows of items or users without a readable id or with a repeated one; returns the rows and the ids."""
    rows = Rows(raw, config, report)
    ids = rows.ids(key)
    rows.drop_unreadable(ids.isin(MISSING).to_numpy(), f"no {key}", key)
    rows.drop_unreadable(ids.str.contains("\n").to_numpy(dtype=bool), f"a line break in {key}", key)
    rows.check_unreadable(config.max_bad_rows)
    rows.drop(
        _lesser_copies(raw.frame, ids, rows.keep),
        f"the {key} occurs again (kept: the row with the most filled cells)",
        key,
    )
    rows.finish()
    return rows, {key: ids}


def _lesser_copies(frame: pd.DataFrame, ids: pd.Series, keep: np.ndarray) -> np.ndarray:
    """Returns bool ``[R]``: rows whose id is also in a fuller row, or in an equally full one that sorts first."""
    lesser = np.zeros(len(ids), dtype=bool)
    copies = np.flatnonzero(keep & (ids[keep].duplicated(keep=False).reindex(ids.index, fill_value=False)).to_numpy())
    if len(copies):
        cells = [strings(frame[column].iloc[copies]) for column in frame]
        lengths = np.array([cell.str.len() for cell in cells])
        codes = [pd.factorize(cell, sort=True)[0] for cell in cells]
        fullest = copies[np.lexsort([*codes, -lengths.sum(axis=0), -(lengths > 0).sum(axis=0)])]
        lesser[fullest[ids.iloc[fullest].duplicated().to_numpy()]] = True
    return lesser


def _finished(rows: Rows, columns: dict[str, pd.Series]) -> pd.DataFrame:
    clean = pd.DataFrame({name: values.to_numpy() for name, values in columns.items()})
    return clean[rows.keep].reset_index(drop=True).astype("str")


def _running_text(values: pd.Series, column: str, rows: Rows) -> pd.Series:
    """Cleans a column of titles or descriptions: removes HTML, and words that stand for "nothing"."""
    text = strings(_structures(values, " "), separator=" ")
    translated = translations(text)
    what = f"{column} in several languages: one of them is read, the English one if there is one"
    rows.note(text.index.isin(translated.index), what, "repaired", column)
    text = translated.reindex(text.index).fillna(text)
    text = text.mask(text == r"\N", "")  # how MySQL exports NULL
    nothing = words_for_nothing(text)
    rows.note(nothing, f"{column} is a word for nothing that recurs as no {column} does: blanked", "repaired", column)
    rows.note_encoding(text, column)
    text = text.mask(nothing, "").astype(object)
    marked = _has_markup(text)
    stripped = np.array([strip_html(v) for v in text[marked]], dtype=object)
    changed = np.zeros(len(text), dtype=bool)
    changed[marked] = stripped != text[marked].to_numpy(dtype=object)
    rows.note(changed, f"HTML in {column}", "repaired", column)
    text[marked] = stripped
    return text.astype("str")


def _name_cells(values: pd.Series, column: str, rows: Rows, known: set[str]) -> pd.Series:
    """Converts a column of names to clean cells; reports what had to be decided and what was left out."""
    read = read_name_column(values, known)
    text = strings(values)
    rows.note_encoding(text, column)
    marked = _has_markup(text)
    changed = np.zeros(len(text), dtype=bool)
    changed[marked] = [strip_html(v) != v for v in text[marked]]
    rows.note(changed, f"HTML in {column}", "repaired", column)
    rows.note(read.nameless, f"{column}: records without a name or words such as 'null' left out", "repaired", column)
    rows.note(
        read.commas & read.split_at_commas,
        f"{column}: commas are taken to separate names; if they belong to the names, write '|' between names",
        "kept",
        column,
    )
    rows.note(
        read.commas & ~np.bool_(read.split_at_commas),
        f"{column}: commas are taken to belong to the names; if they separate names, write '|' instead",
        "kept",
        column,
    )
    rows.note(read.slashes, f"{column}: slashes are taken to separate the names of a path", "kept", column)
    return read.cells


def _structures(values: pd.Series, separator: str) -> pd.Series:
    """Converts lists and records with a name to text, whether they are strings or objects."""
    if isinstance(values.dtype, pd.StringDtype):
        written = values.str.strip().str.contains(_STRUCTURE).fillna(False).to_numpy(dtype=bool)
    elif values.dtype == object:
        written = np.array([not isinstance(v, (float, int)) for v in values], dtype=bool)
    else:
        return values
    if not written.any():
        return values
    text = values.astype(object)
    text[written] = [structured_text(value, separator) for value in text[written]]
    return text


def _has_markup(text: pd.Series) -> np.ndarray:
    return text.str.contains(r"[<&]|/>").to_numpy(dtype=bool)


def _names_of(cells: pd.Series) -> set[str]:
    return {name for cell in cells.unique() for name in category_names(cell)}


def join_more_items(items: pd.DataFrame, more: pd.DataFrame, raw: RawTable, report: CleaningReport) -> pd.DataFrame:
    """Adds the columns of ``more`` to ``items`` by id; in a column that both have, only empty cells are filled.

    Rows of ``more`` whose item is not in the catalogue are dropped and counted.
    """
    index = pd.Index(more[ITEM]).get_indexer(items[ITEM])
    unknown = ~more[ITEM].isin(items[ITEM]).to_numpy()
    if unknown.any():
        example = f"{raw.file}, column {raw.names.get(ITEM, ITEM)!r}: {more[ITEM].iloc[int(unknown.argmax())]!r}"
        what = "the item is not in the catalogue"
        if 2 * unknown.sum() > len(more):
            what += (
                f"; only {len(more) - int(unknown.sum()):,} of {len(more):,} rows name one: if the column is the wrong "
                f"one, map another: data.columns: {{{ITEM}: NAME IN THE FILE}}"
            )
        report.add(raw.table, what, int(unknown.sum()), "dropped", example)
        report.rows_kept[raw.table] -= int(unknown.sum())
    joined = items.copy()
    for column in more.columns.drop(ITEM):
        values = np.where(index >= 0, more[column].to_numpy(dtype=object)[index] if len(more) else "", "")
        own = joined[column].to_numpy(dtype=object) if column in joined else ""
        joined[column] = pd.Series(np.where(np.equal(own, ""), values, own), dtype="str")
    return joined
