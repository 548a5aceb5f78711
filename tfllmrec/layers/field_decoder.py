"""Decodes the fields of a request, inside the served graph, from the clients' notation to the values models read."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import tensorflow as tf

from tfllmrec.data.cleaning.event_kinds import GROUP_OF_PART, LEFT_OUT, MOST_WORDS, NOISE, SYMBOLS
from tfllmrec.data.cleaning.kind_words import GROUPS
from tfllmrec.data.cleaning.names import SEPARATOR
from tfllmrec.data.schema import MISSING_CODE, NUMBER, UNKNOWN_CODE, VECTOR, Field
from tfllmrec.layers.static_table import static_table

_SPACE = r"[\t-\r\x1c-\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]"
"""The characters that ``str.strip`` removes."""
_DATE = r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d(?:\.\d+)?))?)?(?:Z|\+00:00)?"
_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
DAY_S = 86_400.0
#: Kinds of fields whose values stay strings.
_STRINGS = ("text", "id")
#: Largest number of entries of one event that are read.
ENTRIES = 32


class FieldDecoder(tf.Module):
    """Decodes entries ``name=value`` to encoded values, as :meth:`tfllmrec.data.schema.Field.encode` returns them.

    The name of an entry is the name of a field (``device``) or its key (``user.country``). The key distinguishes a
    field of the request from a field of the user with the same name. If several entries name the same field, the last
    one is used. Spaces around names and values are ignored. An entry without a value counts as a missing field, which
    gets the field's default, or else its padding.

    Values are written as in data files, with two exceptions, because the notation of a single request cannot be
    inferred from a whole file: numbers are plain (``1234.5``, ``1e-3``; no decimal comma, no thousands separators),
    and times are seconds since 1970 (UTC) or ISO dates in UTC (``2014-05-26``, ``2014-05-26T10:11``,
    ``2014-05-26T10:11:12.5Z``). Whether ``-1`` or 1970-01-01 stands for "unknown" cannot be inferred either, so they
    are times. Texts are returned as strings, even if the model reads them as vectors.

    Args:
      fields: All fields that entries may name, such as ``schema.of_query()``.
      reads: The keys of the fields that the model reads; no other field is decoded.
    """

    def __init__(self, fields: Sequence[Field], reads: Collection[str]) -> None:
        super().__init__(name="field_decoder")
        self.fields = [field for field in fields if field.key in reads]
        self._missing = {
            field.key: tf.constant(field.encode([""])[0], tf.string if field.kind in _STRINGS else field.dtype)
            for field in self.fields
        }
        known = {name for field in fields for name in (field.name, field.key)}
        self._names = static_table({"": 0} | dict.fromkeys(known, 1), 0)
        codes = {"": UNKNOWN_CODE} | {
            f"{field.key}={value}": code
            for field in self.fields
            if field.kind == "category"
            for code, value in enumerate(field.vocabulary, start=2)
        }
        self._codes = static_table(codes, UNKNOWN_CODE)
        self._kinds = {field.key: _KindDecoder(field) for field in self.fields if field.is_kind_of_event}

    def missing(self, shape: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the values of missing fields, ``[*shape]`` or ``[*shape, width]``, by the keys of the fields."""
        return {
            key: tf.broadcast_to(value, tf.concat([shape, np.array(value.shape, np.int32)], axis=0))
            for key, value in self._missing.items()
        }

    def __call__(
        self, entries: tf.Tensor, elsewhere: tf.Tensor | None = None
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Decodes the entries of R requests, or of R events.

        Args:
          entries: String ``[R, C]``. Padding ``""`` may be at any position.
          elsewhere: Bool ``[R, C]``, the entries that something else reads, such as business rules: they may have any
            name. ``None`` for none.

        Returns:
          The values of the fields that the model reads, ``[R]`` or ``[R, width]``, by their keys; and int32 ``[R]``,
          the number of unreadable entries, whose name is not the name of a field, or whose value does not fit the kind
          of the field or is not in its vocabulary. Such a value of a category is decoded as the unknown category.
          Kinds of events are known in any spelling, and by names of the same meaning.
        """
        entries = _stripped(tf.concat([entries, tf.fill((tf.shape(entries)[0], 1), "")], axis=1))
        names, texts = names_and_texts(entries)
        foreign = (entries != "") & (self._names.lookup(names) == 0)
        if elsewhere is not None:
            foreign &= ~tf.pad(elsewhere, [[0, 0], [0, 1]])
        unread = tf.reduce_sum(tf.cast(foreign, tf.int32), axis=1)
        places = tf.range(tf.shape(entries)[1])
        values = {}
        for field in self.fields:
            place = tf.reduce_max(tf.where((names == field.name) | (names == field.key), places, -1), axis=1)
            text = tf.where(place >= 0, tf.gather(texts, tf.maximum(place, 0), batch_dims=1), "")
            decoded, readable = self._decoded(field, text)
            given = text != ""
            missing = self._missing[field.key]
            values[field.key] = tf.where(tf.reshape(given, [-1, *[1] * missing.shape.rank]), decoded, missing)
            unread += tf.cast(given & ~readable, tf.int32)
        return values, unread

    def decode_lines(self, texts: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Decodes texts, string ``[R]``, with one entry on each line; the result is that of :meth:`__call__`.

        Only the first :data:`ENTRIES` lines are read, which bounds the memory; the others are counted as unread.
        """
        lines = tf.strings.split(texts, "\n")
        values, unread = self(lines[:, :ENTRIES].to_tensor(""))
        return values, unread + tf.cast(tf.maximum(lines.row_lengths() - ENTRIES, 0), tf.int32)

    def _decoded(self, field: Field, texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the values of ``texts``, string ``[R]``, and whether each is readable, bool ``[R]``."""
        if field.key in self._kinds:
            codes = self._kinds[field.key](texts, self._categories(field, texts))
            return codes, codes != UNKNOWN_CODE
        if field.kind == "category":
            codes = self._categories(field, texts)
            known = (codes != UNKNOWN_CODE) | bool(field.dropped)  # rare values share the vector of the unknown one
            return codes, tf.reduce_all(known, axis=1) if field.width else known
        if field.kind in _STRINGS:
            return texts, tf.ones_like(texts, tf.bool)
        if field.kind == "vector":
            numbers = _vectors(texts, field.width)
        else:
            numbers = tf.cast(times(texts) if field.kind == "time" else plain_numbers(texts), field.dtype)
        finite = tf.math.is_finite(numbers)
        if field.kind == "vector":
            finite = tf.reduce_all(finite, axis=1, keepdims=True)
        return tf.where(finite, numbers, np.nan), tf.reshape(finite, [-1])

    def _categories(self, field: Field, texts: tf.Tensor) -> tf.Tensor:
        if not field.width:
            codes = self._codes.lookup(tf.strings.join([field.key, texts], "="))
            return tf.where(texts == "", MISSING_CODE, codes)
        names = tf.strings.split(texts, SEPARATOR)
        codes = tf.ragged.map_flat_values(
            lambda name: self._codes.lookup(tf.strings.join([field.key, name], "=")), names
        )
        codes = codes.to_tensor(MISSING_CODE, shape=(None, field.width))
        return tf.where(texts[:, tf.newaxis] == "", MISSING_CODE, codes)


class _KindDecoder(tf.Module):
    """Finds the codes of kinds of events that are not spelt as in the vocabulary, as :meth:`Field.encode` does."""

    def __init__(self, field: Field) -> None:
        super().__init__(name="kind_decoder")
        self._codes = static_table(field.codes_of_kinds, -1)
        self._groups = static_table(GROUP_OF_PART, len(GROUPS))
        self._noise = static_table(dict.fromkeys(NOISE, 1), 0)
        self._codes_of_groups = tf.constant([*field.codes_of_groups, UNKNOWN_CODE], tf.int32)

    def __call__(self, texts: tf.Tensor, codes: tf.Tensor) -> tf.Tensor:
        """Replaces unknown codes.

        Args:
          texts: The kinds, string ``[R]``.
          codes: Their codes by the vocabulary, int32 ``[R]``.
        """
        unknown = tf.where(codes == UNKNOWN_CODE)
        words = self._words(tf.gather_nd(texts, unknown))
        parts = tf.strings.ngrams(words, tuple(range(1, MOST_WORDS + 1)), separator="")
        group = tf.reduce_min(tf.ragged.map_flat_values(self._groups.lookup, parts), axis=1)
        by_parts = tf.gather(self._codes_of_groups, tf.minimum(group, len(GROUPS)))
        found = self._codes.lookup(tf.strings.reduce_join(words, axis=1))
        return tf.tensor_scatter_nd_update(codes, unknown, tf.where(found < 0, by_parts, found))

    def _words(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Splits kinds, string ``[R]``, into the words by which they are compared."""
        texts = tf.strings.regex_replace(texts, "([a-z0-9])([A-Z])", r"\1 \2")
        texts = tf.strings.lower(tf.strings.regex_replace(texts, LEFT_OUT, ""), encoding="utf-8")
        words = tf.strings.split(tf.strings.regex_replace(texts, rf"[^\p{{L}}\p{{N}}{SYMBOLS}]+", " "))
        return tf.ragged.boolean_mask(words, tf.ragged.map_flat_values(self._noise.lookup, words) == 0)


def names_and_texts(entries: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Splits entries ``name=value``, string of any shape, into names and texts of values.

    Spaces around both are removed. The name of an entry of any other form is ``""``.
    """
    named = tf.strings.regex_full_match(entries, r"(?s)[^=]+=.*")
    names = tf.where(named, _stripped(tf.strings.regex_replace(entries, r"(?s)=.*", "")), "")
    return names, _stripped(tf.strings.regex_replace(entries, r"(?s)^[^=]*=", ""))


def _stripped(texts: tf.Tensor) -> tf.Tensor:
    return tf.strings.regex_replace(texts, f"^{_SPACE}+|{_SPACE}+$", "")


def plain_numbers(texts: tf.Tensor) -> tf.Tensor:
    """Converts texts to float64 of the same shape; NaN where a text is not a plain number."""
    plain = tf.strings.regex_full_match(texts, NUMBER)
    return tf.where(plain, tf.strings.to_number(tf.where(plain, texts, "0"), tf.float64), np.nan)


def _vectors(texts: tf.Tensor, width: int) -> tf.Tensor:
    """Converts texts to float32 ``[R, width]``; NaN where a text is not a vector of that width."""
    parts = tf.strings.split(tf.strings.regex_replace(texts, r"[\s,;\[\]()]+", " "))
    fits = tf.strings.regex_full_match(texts, VECTOR) & (parts.row_lengths() == width)
    numbers = plain_numbers(parts.to_tensor("", shape=(None, width)))
    return tf.cast(tf.where(fits[:, tf.newaxis], numbers, np.nan), tf.float32)


def times(texts: tf.Tensor) -> tf.Tensor:
    """Converts texts to float64 seconds since 1970; NaN where a text is neither a number nor an ISO date."""
    is_date = tf.strings.regex_full_match(texts, _DATE)
    dates = tf.where(is_date, texts, "1970-01-01")
    parts = [tf.strings.regex_replace(dates, f"^{_DATE}$", rf"0\{group}") for group in range(1, 7)]
    year, month, day, hour, minute, second = (tf.strings.to_number(part, tf.float64) for part in parts)
    leap = ((year % 4 == 0) & (year % 100 != 0)) | (year % 400 == 0)
    of_month = tf.cast(tf.clip_by_value(month, 1, 12), tf.int32) - 1
    days_of_month = tf.gather(tf.constant(_DAYS, tf.float64), of_month) + tf.cast(leap & (month == 2), tf.float64)
    valid = (year >= 1) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= days_of_month)
    valid &= (minute < 60) & (second < 61)
    valid &= (hour < 24) | ((hour == 24) & (minute == 0) & (second == 0))  # midnight at the end of the day
    # Days since 1970 are the sum of the days of the previous years, those of the previous months, and the leap day.
    before = year - 1
    years = before * 365 + before // 4 - before // 100 + before // 400 - 719_162
    months = tf.gather(tf.constant(np.cumsum((0, *_DAYS[:-1])), tf.float64), of_month)
    days = years + months + tf.cast(leap & (month > 2), tf.float64) + day - 1
    seconds = days * DAY_S + hour * 3600 + minute * 60 + second
    return tf.where(is_date, tf.where(valid, seconds, np.nan), plain_numbers(texts))
