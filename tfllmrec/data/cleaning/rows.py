"""Tracks the rows of a raw table during cleaning: which are kept, and how many are dropped for each reason."""

from __future__ import annotations

import uuid

import numpy as np
import pandas as pd

from tfllmrec.config import DataConfig
from tfllmrec.data.cleaning.ids import clean_ids, lists
from tfllmrec.data.cleaning.values import MISSING, NO_NUMBER, decoded, strings
from tfllmrec.data.files.raw_table import RawTable
from tfllmrec.data.findings import Action, CleaningReport
from tfllmrec.errors import DataError

# These may also be ids, compared without case: "NA" is the country code of Namibia.
_PERHAPS_MISSING = {
    *(NO_NUMBER - {""}),
    *("(none)", "(null)", "(not set)", "missing", "anonymous", "guest", "[object object]", "-1", str(uuid.UUID(int=0))),
}


# Letters of UTF-8 as programs show them that read it as Windows-1252 or Latin-1: "SchÃ¶n", "itâ€™s", "Ð¿Ñ€Ð¸".
_CONTINUED = "[€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ\u0080-\u009f¡-¿]"
_MISREAD = f"Ã{_CONTINUED}|Â[¡-¿]|â[€\u0080]|(?:[ÐÑ]{_CONTINUED}){{2}}"


class Rows:
    """The rows of a raw table that are kept so far; each dropped row is counted once, under its first reason."""

    def __init__(self, raw: RawTable, config: DataConfig, report: CleaningReport):
        self.raw, self.config, self.report = raw, config, report
        self.keep = np.ones(len(raw.frame), dtype=bool)
        self.unreadable = np.zeros(len(raw.frame), dtype=bool)
        self.rows_in = len(raw.frame)
        # The findings on blank rows, which are dropped but not unreadable, come after those on broken rows.
        dropped = [f for f in raw.findings if f.action == "dropped"]
        self.first_unreadable = f"{dropped[0].example}: {dropped[0].what}" if raw.unreadable else ""
        for f in raw.findings:
            report.add(f.table, f.what, f.count, f.action, f.example)
            self.rows_in += f.count if f.action == "dropped" else 0

    def ids(self, column: str) -> pd.Series:
        """Returns a column of ids as strings; integers that a program wrote as floats (``7.0``) become integers again.

        Raises:
          DataError: A cell is a list or a record, or an id is a float that is too large or was printed with too few
            digits to be exact, and ``data.inexact_ids`` is ``refuse``.
        """
        values = decoded(self.raw.frame[column])
        if (cells := lists(values)) is not None:
            row = next(i for i, cell in enumerate(cells) if cell is not None)
            raise DataError(
                f"{self.raw.example(row, column)}: expected one {column}, found a list. Write one in each row."
            )
        records = [isinstance(cell, dict) for cell in values] if values.dtype == object else []
        if any(records):
            raise DataError(
                f"{self.raw.example(records.index(True), column)}: expected one {column}, found a record. Write the "
                "id alone."
            )
        ids = clean_ids(values)
        if ids.inexact.any() and self.config.inexact_ids == "refuse":
            raise DataError(
                f"{self.raw.example(int(ids.inexact.argmax()), column)}: the {column} is a rounded number, as "
                f"{int(ids.inexact.sum()):,} of {len(values):,} are. A float is exact only below 2**53 and to the "
                "digits shown, so different ids may have become one when the file was written. Export the ids as text "
                "or as integers, or set data.inexact_ids to accept to read them as they are."
            )
        findings: tuple[tuple[np.ndarray, str, Action], ...] = (
            (ids.inexact, "is a rounded number: different ids may have become one", "kept"),
            (ids.written_as_float, "is an integer written as a float", "repaired"),
            (ids.fractional, "is a number with a fraction; if ids are not numbers, export them as text", "kept"),
            (ids.zero_padded, "differs from another one in leading zeros only: they stay different", "kept"),
            (ids.of_other_case, "differs from another one in upper and lower case only: they stay different", "kept"),
            (ids.look_alike, "looks like another one, with other characters: they stay different", "kept"),
            (
                (ids.text.str.lower().isin(_PERHAPS_MISSING) & ~ids.text.isin(MISSING)).to_numpy(),
                "often means 'missing': it counts as one id; if it is not an id, drop these rows",
                "doubted",
            ),
            (ids.of_two_types, "is text here and a number elsewhere: taken for the same", "kept"),
        )
        for mask, what, action in findings:
            self.note(mask, f"{column} {what}", action, column)
        return ids.text

    def texts(self, values: pd.Series, column: str) -> pd.Series:
        """Returns the values of a column that is a field as strings, ``""`` where a file spells out a missing value."""
        text = strings(values)
        nothing = text.isin(MISSING[1:]).to_numpy(dtype=bool)
        self.note(nothing, f"column {column!r}: the cell says that there is no value: blanked", "repaired", column)
        self.note_encoding(text, column)
        return text.mask(nothing, "")

    def note_encoding(self, text: pd.Series, column: str) -> None:
        """Reports texts of a column that were damaged by a wrong encoding before the file was written."""
        for pattern, what in (
            (_MISREAD, "UTF-8 text that a program read in another encoding; it is kept as it is"),
            ("\ufffd", "text whose letters a program replaced by U+FFFD"),
        ):
            damaged = text.str.contains(pattern).to_numpy(dtype=bool)
            self.note(damaged, f"column {column!r}: {what}: export the data again", "kept", column)

    def drop(self, mask: np.ndarray, what: str, column: str | None = None) -> None:
        mask = mask & self.keep
        if mask.any():
            first = int(mask.argmax())
            self.report.add(self.raw.table, what, int(mask.sum()), "dropped", self.raw.example(first, column))
            self.keep &= ~mask

    def drop_unreadable(self, mask: np.ndarray, what: str, column: str) -> None:
        """Drops rows that cannot be read; a row that spans several lines of the file counts as that many rows."""
        mask = mask & self.keep
        if mask.any():
            example = self.raw.example(int(mask.argmax()), column)
            count = int(self.raw.spans[mask].sum())
            self.report.add(self.raw.table, what, count, "dropped", example)
            self.first_unreadable = self.first_unreadable or f"{example}: {what}"
            self.rows_in += count - int(mask.sum())
            self.unreadable |= mask
            self.keep &= ~mask

    def take_as_unknown(self, mask: np.ndarray, what: str, column: str) -> None:
        """Keeps rows whose cell in an optional column cannot be read, and counts them as unreadable."""
        mask = mask & self.keep
        if mask.any():
            self.note(mask, f"{what}: taken as unknown", "repaired", column)
            self.first_unreadable = self.first_unreadable or f"{self.raw.example(int(mask.argmax()), column)}: {what}"
            self.unreadable |= mask

    def note(self, mask: np.ndarray, what: str, action: Action, column: str | None = None) -> None:
        mask = mask & self.keep
        if mask.any():
            example = self.raw.example(int(mask.argmax()), column)
            self.report.add(self.raw.table, what, int(mask.sum()), action, example)

    def check_unreadable(self, max_bad_rows: float) -> None:
        """Raises DataError if more than ``max_bad_rows``, a share, of the rows cannot be read.

        An unreadable row counts once, however many of its cells cannot be read, as the number of lines that it spans.
        """
        unreadable = self.raw.unreadable + int(self.raw.spans[self.unreadable].sum())
        rows = self.rows_in + int((self.raw.spans - 1)[self.unreadable & self.keep].sum())
        if unreadable > max_bad_rows * rows:
            raise DataError(
                f"{self.first_unreadable}. {unreadable:,} of {rows:,} rows of {self.raw.file} cannot be "
                f"read, more than data.max_bad_rows = {max_bad_rows:g} allows. Correct the file, name its columns "
                "under data.columns, or raise data.max_bad_rows."
            )

    def finish(self) -> None:
        self.report.rows_in[self.raw.table] = self.rows_in
        self.report.rows_kept[self.raw.table] = int(self.keep.sum())
