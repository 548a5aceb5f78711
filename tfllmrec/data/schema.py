"""Declares every field of a data set: its owner, its kind, and how its values become numbers.

A field is a column of the events, the items or the users. Queries, batches, signatures, the client's calls, warm-up
requests and the manifest of an export all use this declaration. A new column of a known kind therefore needs no code; a
new kind needs a branch here and a layer in :mod:`tfllmrec.layers.field_encoder`.

Fields are named ``OWNER.NAME`` in the inputs of models:

- ``event.rating``: a value of each event of the history, ``[B, L]``. Every column of the events is such a field.
- ``request.device``: a value of the request, ``[B]``, from a column of the events that is known before the event
  happens.
- ``user.age``: a value of the user, ``[B]``, sent with the request, because users do not need an account.
- ``item.year``: a value of each item of the catalogue, ``[N]``.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import scipy.linalg
from pydantic import TypeAdapter, ValidationError

from tfllmrec.columns import (
    DESCRIPTION,
    EVENT_KIND,
    ITEM,
    ITEM_INDEX,
    NAME_COLUMNS,
    ORDER,
    RATING,
    TAGS_WRITTEN,
    TIMESTAMP,
    TITLE,
    USER,
    USER_INDEX,
    setting_names,
)
from tfllmrec.config import FieldConfig
from tfllmrec.data.cleaning.event_kinds import (
    GROUP_OF_NAME,
    UNKNOWN_WEIGHT,
    AskedWeights,
    group_of_kind,
    plain_kind,
)
from tfllmrec.data.cleaning.kind_words import GROUPS
from tfllmrec.data.cleaning.names import SEPARATOR, category_names
from tfllmrec.data.cleaning.times import EARLY_S, times
from tfllmrec.data.cleaning.values import NO_NUMBER, numbers, strings
from tfllmrec.data.files.column_names import words_of_name
from tfllmrec.data.sampling import evenly_spread
from tfllmrec.errors import ConfigError, ModelError
from tfllmrec.wording import nearest_hint, shown

Owner = Literal["event", "request", "user", "item"]
Kind = Literal["id", "category", "number", "text", "vector", "time"]
#: The table of a data set that has the column of a field, by the owner of the field.
TABLES: dict[Owner, str] = {"event": "events", "request": "events", "user": "users", "item": "items"}

#: Codes of a category's values: a missing value, and a value that is not in the vocabulary. The codes of the vocabulary
#: follow.
MISSING_CODE, UNKNOWN_CODE = 0, 1
#: The largest size of a vocabulary: the most frequent values of a category; other values are unknown.
MAX_VOCABULARY = 10_000
#: The largest number of names that are read from a cell with several names.
MAX_NAMES = 32
#: Whole numbers with at most this many distinct values are categories: hours, age groups, days of a month.
MAX_CODES = 32
#: The largest share of the cells of a column of numbers, times or vectors that may be something else.
MAX_ODD = 0.05
#: The number of bins of a number; their edges are evenly spaced quantiles.
BINS = 16
#: A number more than this many spreads from the median is an outlier, and is clipped.
FAR = 5.0
#: The smallest factor of the weight of an event with a short dwell time. It is above 0: a user chose the item even so.
LEAST_SHARE = 0.05
#: The interquartile range of a normal distribution, in standard deviations.
QUARTILES = 1.349
RATING_KEY = f"event.{RATING}"

#: Names of field attributes in runs of earlier versions, which scale numbers by mean and deviation, and their new
#: names.
_EARLIER_NAMES = {"mean": "median", "deviation": "spread"}
_KEYS = (USER, ITEM, USER_INDEX, ITEM_INDEX, ORDER)
#: Names of event columns that are known before the event happens, without punctuation, and words that mark such names.
_CONTEXT_NAMES = frozenset(
    name
    for names in (
        "time date day week month quarter hour minute dayofweek dayofmonth dayofyear weekofyear timeofday partofday",
        "localtime timezone utcoffset state page pagetype pagename place query searchquery searchterm searchterms",
        "searchkeyword searchkeywords source trafficsource entrypoint screen screenname screentype tab tabname",
        "useragent operatingsystem",
    )
    for name in names.split()
)
_CONTEXT_WORDS = frozenset(
    word
    for words in (
        "hour daytime daypart weekday weekend isweekend dow month season holiday tz timezone",
        "device platform os browser app mobile ismobile client channel carrier network language locale",
        "referrer referer utm medium campaign surface placement slot scene homework companion mood",
        "location city region country geo latitude longitude lat lon lng weather temperature humidity",
    )
    for word in words.split()
)
#: Words that mark an event column as known only after the event, whatever else is in its name.
_OUTCOME_WORDS = frozenset(
    word
    for words in (
        "dwell watch watched watching play played listen listened view viewed views read spent total duration elapsed",
        "length count number times until end ended finish finished progress completion percent ratio",
        "delivery delivered shipping shipped return returned refund review reviewed comment order ordered payment paid",
        "purchase purchased checkout rating rated score label click clicked outcome result feedback response",
    )
    for word in words.split()
)
#: Names of columns that say how long a user stayed with an item, without punctuation; or else such names have a word of
#: each of two sets.
_DWELL_NAMES = frozenset({"dwell", "dwelltime", "watchtime", "playtime", "listentime", "viewtime", "timeonpage"})
_STAY_WORDS = frozenset(
    {"dwell", "watch", "watched", "play", "played", "listen", "listened", "view", "viewed", "read", "reading", "spent"}
)
_DURATION_WORDS = frozenset(
    {"time", "duration", "seconds", "secs", "sec", "s", "milliseconds", "millis", "ms", "minutes", "mins", "min"}
)
_ID_WORDS = {
    *("id", "uuid", "guid", "hash", "url", "uri", "link", "zip", "zipcode", "postcode", "postal", "postalcode"),
    *("pincode", "phone", "email", "session", "ip", "isbn", "asin", "sku", "ean", "gtin", "upc", "barcode"),
}
#: Words in the names of columns whose whole numbers are codes, however many distinct values there are.
_CODE_WORDS = {
    *("city", "region", "state", "country", "place", "location", "store", "device", "channel", "campaign"),
    *("category", "type", "code", "group", "class", "gender", "sex", "occupation", "job", "brand", "genre"),
}
#: Words in the names of columns whose large numbers are times.
_TIME_WORDS = {"time", "timestamp", "date", "at", "ts"}
#: Regular expressions, for Python and for TensorFlow: a plain number; a vector of at least two of them. A text matches
#: in one way only: otherwise Python would take exponential time for a long vector that ends with something else.
NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
#: Python and RE2 do not agree on ``\s``; the last one is the no-break space.
_SPACE = "[ \t\n\r\f\v\u00a0]"
VECTOR = rf"{_SPACE}*[\[(]?{_SPACE}*{NUMBER}(?:(?:{_SPACE}*[,;]{_SPACE}*|{_SPACE}+){NUMBER})+{_SPACE}*[\])]?{_SPACE}*"
_VECTOR_MARKS = str.maketrans("[](),;\u00a0", " " * 7)
_AMOUNT = r"[+-]?[0-9](?:[0-9.,' \u00a0]*[0-9])?"
_UNIT = r"(?:[^\W\d_]{1,8}\.?|[%°€$£¥₹])"
_CURRENCY = r"(?:[A-Z]{0,2}[$€£¥₹]|[A-Z]{3} ) ?"
#: A number with a unit, or with several (``3 m 20 s``), or a duration (``0:45``); and what of it is no unit.
_MEASURE = re.compile(rf"(?:{_CURRENCY})?{_AMOUNT}(?: ?{_UNIT}(?: {_AMOUNT} ?{_UNIT})*)?|[0-9]+(?::[0-9]{{2}}){{1,2}}")
_NO_UNIT = re.compile(r"[0-9.,' \u00a0+-]+")
#: The largest number of units in a column of numbers with units; more of them are parts of codes.
_MAX_UNITS = 5
#: The largest number of vectors from which principal components are computed.
VECTOR_ROWS = 20_000
#: How many numbers of vectors are parsed at once. Each takes about 20 bytes as text.
_NUMBERS = 1 << 20


@dataclass(frozen=True)
class Field:
    """A column of the events, requests, users or items.

    Attributes:
      name: The name of the column.
      owner: *request* for a column of the events that is known before the event happens, such as the device; *event*
        for one that is known only afterwards, such as the rating, and is therefore only read from events of the
        history.
      kind: How values are encoded, see :meth:`encode`.
      vocabulary: For a category, its values, the most frequent first.
      median: For a number, or a time of items, the median.
      spread: For a number, or a time of items, the interquartile range / 1.349. This is the standard deviation of
        normal numbers, but a few huge values do not change it. If half of the numbers are equal, it is the standard
        deviation.
      edges: For a number, or a time of items, its quantiles, ascending and distinct: bins for piecewise-linear
        encoding.
      width: For a vector, its length, or the number of its components that are read (:attr:`axes`); for a category, the
        number of names in a cell (0 if a cell holds one value); for a text of events, requests or users that a model
        reads, the length of its vector (0 if the text is not read). Texts are strings in queries, and vectors only
        where a model reads them; see :meth:`Schema.reading_text`.
      default: The value that is used if a request leaves the field out; with ``None`` the value is then missing.
      weights: For a kind of event, how much an event of each value counts as a choice of the item, in [0, 1]; below 0,
        down to -1, if the user rejected the item.
      medians: For a number that weighs events, its median by kind of event, and that of all choices by ``""``; only
        numbers above 0 count.
      dropped: For a category, the number of values that are not in the vocabulary because of its limit.
      axes: For a vector that is read by its principal components, their directions: float32 ``[length, width]``,
        little-endian, as base64.
      kept: The share of the variance that these components hold.
    """

    name: str
    owner: Owner
    kind: Kind
    vocabulary: tuple[str, ...] = ()
    median: float = 0.0
    spread: float = 1.0
    edges: tuple[float, ...] = ()
    width: int = 0
    default: str | None = None
    weights: Mapping[str, float] | None = None
    medians: Mapping[str, float] | None = None
    dropped: int = 0
    axes: str = ""
    kept: float = 1.0

    @classmethod
    def of(cls, field: Field | Mapping[str, Any]) -> Field:
        """Returns ``field`` as a Field; a mapping must be the result of ``asdict``."""
        return field if isinstance(field, Field) else cls(**field)

    @property
    def key(self) -> str:
        """``OWNER.NAME``, the name of the field among the inputs of a model."""
        return f"{self.owner}.{self.name}"

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the values in models: int32 codes, float32 numbers and vectors, float64 seconds, or text."""
        by_kind = {"category": np.int32, "number": np.float32, "vector": np.float32, "time": np.float64}
        return np.dtype(np.float32 if self.is_read_text else by_kind.get(self.kind, object))

    @property
    def padding(self) -> Any:
        """The missing value in models: 0 for categories, NaN for numbers, vectors and times, ``""`` for text."""
        return padding_of(self.dtype)

    @property
    def is_read_text(self) -> bool:
        """Whether the values are texts that models read as vectors of an encoder."""
        return self.kind == "text" and bool(self.width)

    @property
    def has_encoder(self) -> bool:
        """Whether :mod:`tfllmrec.layers.field_encoder` can encode the values; it cannot encode ids and unread texts."""
        return self.kind not in ("text", "id") or self.is_read_text

    @property
    def size_in_data(self) -> int:
        """The number of codes that the data can have: one for missing, one for unknown, and the vocabulary."""
        return len(self.vocabulary) + 2

    @property
    def size(self) -> int:
        """The number of codes of a category: :attr:`size_in_data`, and for a kind of event with weights those of
        :data:`GROUPS`, which only requests can have."""
        return self.size_in_data + (len(GROUPS) if self.weights else 0)

    @cached_property
    def projection(self) -> np.ndarray | None:
        """:attr:`axes` as an array; ``None`` if a vector is read as it is."""
        return np.frombuffer(base64.b64decode(self.axes), "<f4").reshape(-1, self.width) if self.axes else None

    @property
    def length(self) -> int:
        """The number of numbers in a cell of vectors."""
        return self.width if self.projection is None else len(self.projection)

    @property
    def is_kind_of_event(self) -> bool:
        """Whether the values are kinds of events, which may be spelt in other ways than in the vocabulary."""
        return self.kind == "category" and (bool(self.weights) or (self.owner, self.name) == ("event", EVENT_KIND))

    @cached_property
    def code_weights(self) -> np.ndarray:
        """Float32 ``[size]``: the weight of each code of a kind of event.

        A missing kind counts as the most frequent kind that is a choice, because requests may leave kinds out. Any
        other kind counts as it would in the training data.
        """
        weights = self.weights or {}
        known = [weights.get(value, 1.0) for value in self.vocabulary]
        choice = next((weight for weight in known if weight > 0), 1.0)
        usual = [group.weight for group in GROUPS] if self.weights else []
        return np.array([choice, UNKNOWN_WEIGHT, *known, *usual], np.float32)

    def code_factors(self, factors: Mapping[str, float]) -> np.ndarray:
        """Returns float32 ``[size]``: ``factors`` by kind of event (``item_weights.kinds``) for each code, else 1.

        As in :attr:`code_weights`, a missing kind counts as the most frequent kind that is a choice.
        """
        asked = AskedWeights(factors)
        found = np.ones(self.size, np.float32)
        for code, value in reversed([*enumerate(self.vocabulary, start=2)]):
            factor = asked.of(value)
            found[code] = 1.0 if factor is None else factor
            if self.code_weights[code] > 0:
                found[MISSING_CODE] = found[code]
        return found

    @cached_property
    def codes_of_groups(self) -> list[int]:
        """The code of a kind that is not in the vocabulary, for each of :data:`GROUPS`.

        It is the code of the most frequent kind of the group if that kind has the weight of the group. Otherwise it is
        a code that only has a weight, ``size_in_data + g`` for the group g, or :data:`UNKNOWN_CODE` without weights.
        """
        weights = self.weights or {}
        codes = [self.size_in_data + place if weights else UNKNOWN_CODE for place in range(len(GROUPS))]
        for code, value in reversed([*enumerate(self.vocabulary, start=2)]):
            place = group_of_kind(value)
            if place is not None and weights.get(value, GROUPS[place].weight) == GROUPS[place].weight:
                codes[place] = code
        return codes

    @cached_property
    def codes_of_kinds(self) -> dict[str, int]:
        """The codes of plain names of kinds, see :func:`plain_kind`: the usual ones, and those of the vocabulary."""
        codes = {name: self.codes_of_groups[place] for name, place in GROUP_OF_NAME.items()}
        for code, value in reversed([*enumerate(self.vocabulary, start=2)]):
            plain = plain_kind(value)
            codes |= {plain: code} if plain and not plain.isdecimal() else {}
        return codes

    def encode(self, values: pd.Series | Sequence[str]) -> np.ndarray:
        """Encodes cells as the values that models read.

        ===========  ===========================================================================================
        category     int32 ``[R]``; 0: missing, 1: not in the vocabulary, from 2 on: the vocabulary in order.
                     ``[R, width]``, padded with 0, if a cell holds several names. Kinds of events may be spelt in
                     other ways, see :attr:`codes_of_groups`
        number       float32 ``[R]``, as in the file; NaN: missing, or not a number in the range of float32
        time         float64 ``[R]``, seconds since 1970 UTC; NaN: missing, or not a time
        vector       float32 ``[R, width]``, the numbers or their principal components; NaN: missing, or another number
                     of values
        text, id     object ``[R]``; ``""``: missing
        ===========  ===========================================================================================
        """
        cells = values if isinstance(values, pd.Series) else pd.Series(list(values), dtype=object)
        if self.default is not None:
            written = strings(cells)
            cells = written.mask(written == "", self.default)
        clean = cells.dtype.kind == "f"  # ratings and times of the events table
        match self.kind:
            case "category":
                return self._codes(strings(cells))
            case "number":
                with np.errstate(over="ignore"):
                    plain = (cells.to_numpy() if clean else numbers(cells)[0]).astype(np.float32)
                return np.where(np.isfinite(plain), plain, np.float32(np.nan))
            case "time":
                return cells.to_numpy(np.float64) if clean else times(cells)[0]
            case "vector":
                vectors = _vectors(cells, self.length)
                return vectors if self.projection is None else vectors @ self.projection
        return strings(cells).to_numpy(object)

    def blank(self, rows: int) -> np.ndarray:
        """Returns the encoding of ``rows`` missing values."""
        return np.full((rows, *([self.width] if self.width else [])), self.padding, self.dtype)

    def without_text(self, rows: int) -> np.ndarray:
        """Returns the vectors, all NaN, for a read text that is missing.

        The shape is ``[rows, 1, width]`` for a field of events, for all events of a history, and else
        ``[rows, width]``.
        """
        return np.full((rows, *[1] * (self.owner == "event"), self.width), np.nan, np.float32)

    def _codes(self, texts: pd.Series) -> np.ndarray:
        if not self.width:
            codes = pd.Index(self.vocabulary).get_indexer(pd.Index(texts)).astype(np.int32) + 2
            codes[codes == 1] = UNKNOWN_CODE
            codes[(texts == "").to_numpy()] = MISSING_CODE
            if self.is_kind_of_event:
                unknown = codes == UNKNOWN_CODE
                code_of = {kind: self._code_of_kind(kind) for kind in texts[unknown].unique()}
                codes[unknown] = texts[unknown].map(code_of)
            return codes
        code_of = {value: code for code, value in enumerate(self.vocabulary, start=2)}
        codes = np.full((len(texts), self.width), MISSING_CODE, np.int32)
        for row, cell in enumerate(texts):
            for column, name in enumerate(category_names(cell)[: self.width]):
                codes[row, column] = code_of.get(name, UNKNOWN_CODE)
        return codes

    def _code_of_kind(self, kind: str) -> int:
        """Returns the code of a kind that is not spelt as in the vocabulary."""
        place = group_of_kind(kind)
        by_words = UNKNOWN_CODE if place is None else self.codes_of_groups[place]
        return self.codes_of_kinds.get(plain_kind(kind), by_words)

    def words(self, values: np.ndarray) -> list[str]:
        """Returns encoded values as a request writes them: the inverse of :meth:`encode`; ``""`` for missing values."""
        match self.kind:
            case "category":
                unknown = "?"  # any value that is not in the vocabulary
                while unknown in self.vocabulary:
                    unknown += "?"
                known = np.array(["", unknown, *self.vocabulary], object)
                if self.is_kind_of_event:
                    named = {code: name for name, code in self.codes_of_kinds.items()}
                    usual = [named.get(code, "") for code in range(self.size_in_data, self.size)]
                    known = np.array([*known, *usual], object)
                if not self.width:
                    return known[values].tolist()
                return [SEPARATOR.join(known[row[row != MISSING_CODE]]) for row in values]
            case "number" | "time":
                return ["" if value != value else repr(value) for value in values.astype(np.float64).tolist()]
            case "vector":
                absent = np.isnan(values).any(axis=1)
                return [
                    "" if none else " ".join(map(repr, row)) for none, row in zip(absent, values.tolist(), strict=True)
                ]
        return values.tolist()

    def line(self) -> str:
        """Returns a description such as ``request.device: category, 3 values (phone, tablet, tv)``."""
        match self.kind:
            case "category":
                some = ", ".join(self.vocabulary[:5]) + (", ..." if len(self.vocabulary) > 5 else "")
                about = f", {len(self.vocabulary):,} values" + (f" ({some})" if some else "")
                if self.dropped:
                    about += f", the most frequent ones; {self.dropped:,} others count as unknown"
                if self.weights:
                    about += "; weights " + ", ".join(f"{value} {weight:g}" for value, weight in self.weights.items())
            case "number":
                about = f", median {self.median:.4g}, spread {self.spread:.4g}"
                if self.medians:
                    of_kinds = [f"{kind or 'any event'} {median:.4g}" for kind, median in self.medians.items()]
                    about += "; events count less below " + ", ".join(of_kinds)
            case "vector":
                about = f" of {self.length} numbers"
                if self.axes:
                    about += f", read by {self.width} principal components with {self.kept:.1%} of the variance"
            case "text" if self.width:
                about = f", read as vectors of {self.width} numbers"
            case _:
                about = ""
        default = "" if self.default is None else f"; {self.default!r} where none is given"
        return f"{self.key}: {self.kind}{about}{default}"


@dataclass(frozen=True)
class Schema:
    """All fields of a data set, in the order event, request, user, item; the fields of an owner are sorted by name."""

    fields: tuple[Field, ...] = ()

    def __iter__(self) -> Iterator[Field]:
        return iter(self.fields)

    @property
    def with_values(self) -> list[Field]:
        """The fields that have values in the data: all, except the rating if there are no ratings."""
        return [field for field in self.fields if field.key != RATING_KEY or field.edges]

    def of(self, *owners: Owner) -> list[Field]:
        """Returns the fields of the given owners."""
        return [field for field in self.fields if field.owner in owners]

    def of_history(self) -> list[Field]:
        """Returns the fields of history events: those of events and of earlier requests, all named ``event.NAME``."""
        return [replace(field, owner="event") for field in self.of("event", "request")]

    def of_query(self) -> list[Field]:
        """Returns the fields of a request: its own and those of its user."""
        return self.of("request", "user")

    def of_inputs(self) -> list[Field]:
        """Returns all fields that a model may read from a query: those of its history, its request and its user."""
        return [*self.of_history(), *self.of_query()]

    def texts_of_users(self) -> list[Field]:
        """Returns the fields that users may have written: texts of events, requests and users."""
        return [field for field in self.of("event", "request", "user") if field.kind == "text"]

    def reading_text(self, width: int) -> Schema:
        """Returns this schema for a model that reads :meth:`texts_of_users` as vectors of ``width`` numbers."""
        read = self.texts_of_users()
        return Schema(tuple(replace(field, width=width) if field in read else field for field in self))

    @cached_property
    def kind_of_event(self) -> Field | None:
        """The event field whose values determine the weights of events; ``None`` if all events have equal weights."""
        return next((field for field in self.of_history() if field.weights), None)

    @cached_property
    def dwell_time(self) -> Field | None:
        """The event field, a number, that weighs events in addition to their kinds; ``None`` if there is none."""
        return next((field for field in self.of("event") if field.medians), None)

    @cached_property
    def code_medians(self) -> np.ndarray:
        """Float32 ``[size]``: the median of :attr:`dwell_time` for each code of :attr:`kind_of_event`.

        It is that of all choices for a kind without dwell times in the training data; without kinds, ``[1]``. As in
        :attr:`Field.code_weights`, a missing kind counts as the most frequent kind that is a choice.
        """
        assert self.dwell_time is not None and self.dwell_time.medians is not None
        medians, kind = self.dwell_time.medians, self.kind_of_event
        found = np.full(1 if kind is None else kind.size, medians[""], np.float32)
        for code, value in enumerate([] if kind is None else kind.vocabulary, start=2):
            found[code] = medians.get(value, medians[""])
        if kind is not None and (choices := np.flatnonzero(kind.code_weights[2 : kind.size_in_data] > 0)).size:
            found[MISSING_CODE] = found[2 + choices[0]]
        return found

    def event_weights(self, fields: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Returns how much events count as choices of their items, float32 ``[E]``; ``None`` if all count 1.

        It is the weight of the event's kind, or 1 without kinds. If that is above 0 and there is a dwell time, it is
        multiplied by dwell time / median, but by no less than :data:`LEAST_SHARE` and no more than 1 (Yi et al. 2014).
        A dwell time that is missing or below 0 does not change the weight.

        Args:
          fields: The encoded fields of events (:meth:`Field.encode`) by their keys.
        """
        kind, dwell = self.kind_of_event, self.dwell_time
        weights = None if kind is None else kind.code_weights[fields[kind.key]]
        if dwell is None:
            return weights
        times = fields[dwell.key]
        medians = self.code_medians[0 if kind is None else fields[kind.key]]
        shares = np.where(times >= 0, np.clip(times / medians, LEAST_SHARE, 1), 1).astype(np.float32)
        return shares if weights is None else np.where(weights > 0, weights * shares, weights)

    def __getitem__(self, key: str) -> Field:
        """Returns the field with a key such as ``user.age``, or ``event.device`` for a request field in the history.

        Raises:
          KeyError: No field has this key.
        """
        for field in (*self.fields, *self.of_history()):
            if field.key == key:
                return field
        raise KeyError(f"{key}: expected one of {', '.join(field.key for field in self.fields)}")

    def lines(self) -> list[str]:
        """Returns one line of description for each of :attr:`with_values`."""
        return [field.line() for field in self.with_values]

    @property
    def notes(self) -> list[str]:
        """A line on the fields that requests cannot have, if a user might expect them there, and one on dwell times."""
        known, notes = (RATING, EVENT_KIND, TAGS_WRITTEN), []
        of_events = [
            each for each in self.of("event") if each.name not in known and not each.weights and not each.medians
        ]
        if of_events:
            notes.append(
                "the context of a request cannot have these columns, because they are known only after the event: "
                f"{', '.join(field.name for field in of_events)}. If "
                "one is known before, set data.fields.NAME.owner=request"
            )
        dwell = [each.name for each in of_events if each.kind == "number" and _is_dwell_time(each.name)]
        if dwell and self.dwell_time is None:
            notes.append(
                f"{' and '.join(dwell)} may say how long a user stayed with an item: data.fields.{dwell[0]}.weighs=true"
                " lets events shorter than the median count less"
            )
        return notes

    def as_dict(self) -> list[dict[str, Any]]:
        """Returns the fields as plain JSON types, without attributes that have their default."""
        plain = asdict(Field("", "event", "id")) | dict.fromkeys(("name", "owner", "kind"))
        return [{k: v for k, v in asdict(field).items() if v != plain[k]} for field in self.fields]

    @classmethod
    def from_dict(cls, raw: Iterable[Mapping[str, Any]]) -> Schema:
        """Creates the schema from the result of :meth:`as_dict`.

        Raises:
          ModelError: ``raw`` is not a list of fields.
        """
        try:
            fields = [{_EARLIER_NAMES.get(name, name): value for name, value in field.items()} for field in raw]
            return cls(TypeAdapter(tuple[Field, ...]).validate_python(fields))
        except (ValidationError, AttributeError, TypeError) as error:
            raise ModelError(
                f"schema: expected fields with name, owner and kind, found {shown(raw)}: {error}"
            ) from error


def padding_of(dtype: np.dtype) -> Any:
    """Returns the padding for rows of encoded values: NaN for floats, 0 for codes, ``""`` for text."""
    return {"f": np.nan, "i": 0}.get(dtype.kind, "")


def infer_schema(
    events: pd.DataFrame,
    items: pd.DataFrame,
    users: pd.DataFrame,
    asked: Mapping[str, FieldConfig] | None = None,
    every_event: pd.DataFrame | None = None,
) -> Schema:
    """Recognises the fields of clean tables.

    The kind follows from the values of a column: numbers, times, vectors of equal length, few distinct values
    (category), long texts, and otherwise ids. Up to :data:`MAX_ODD` of the cells of a column of numbers, times or
    vectors may be something else (:func:`unreadable`). A column of the events belongs to the request if its name is a
    usual word for context (hour, device, city, weather, ...). Any other column may be known only after the event, and a
    model that read it before would see the future. ``data.fields`` overrides both.

    Args:
      events: As in :class:`~tfllmrec.data.dataset.Dataset`. Vocabularies and statistics come from the given events,
        items and users, so pass those of training.
      items: As in :class:`~tfllmrec.data.dataset.Dataset`.
      users: As in :class:`~tfllmrec.data.dataset.Dataset`.
      asked: The setting ``data.fields``, by the name of a column or the key of a field.
      every_event: All events, including held-out ones. All kinds of events in them belong to the vocabulary.

    Raises:
      ConfigError: ``asked`` names a column that does not exist, or a kind that its values do not have; or it gives
        weights to several columns, or to a column of items or users; or the same for ``weighs``.
    """
    asked = dict(asked or {})
    tables: dict[Owner, pd.DataFrame] = {"event": events, "user": users, "item": items}
    columns = [(owner, str(name)) for owner, table in tables.items() for name in table if name not in _KEYS]
    known = {name for owner, column in columns for name in setting_names(owner, column)}
    for name in asked:
        if name not in known:
            hint = nearest_hint(name, known)
            columns_known = ", ".join(sorted({column for _, column in columns}))
            raise ConfigError(f"data.fields.{name}: no table has such a column{hint}; expected one of {columns_known}.")
    fields: list[Field] = []
    for owner, name in columns:
        want = next((asked[key] for key in setting_names(owner, name) if key in asked), FieldConfig())
        if (owner, name) == ("event", RATING) and (not want.use or want.kind not in (None, "number") or want.owner):
            raise ConfigError(
                "data.fields.rating: ratings are numbers of events, and models read them; to leave them out, list "
                "their values in data.unrated."
            )
        if want.owner and name not in events:
            raise ConfigError(
                f"data.fields.{name}.owner: expected a column of the events, found one of the {owner}s, whose owner is "
                "known."
            )
        if want.weights and owner != "event":
            raise ConfigError(
                f"data.fields.{name}.weights: expected a column of the events, found one of the {owner}s."
            )
        if want.weighs and (owner != "event" or want.owner == "request" or name == RATING):
            raise ConfigError(
                f"data.fields.{name}.weighs: expected a column of the events, known after the event and no rating, "
                f"found {name!r} of the {want.owner or owner}s."
            )
        if want.weighs and not want.use:
            raise ConfigError(f"data.fields.{name}: expected either weighs=true or use=false, found both.")
        if want.components and owner != "item":
            raise ConfigError(
                f"data.fields.{name}.components: expected a column of the items, found one of the {owner}s."
            )
        every = tables[owner][name] if every_event is None or owner != "event" else every_event[name]
        if want.use and (found := _field(name, owner, tables[owner][name], want, every)):
            fields.append(found)
    weighted = [field.name for field in fields if field.weights]
    named = [name for name in weighted if name != EVENT_KIND]
    if len(named) > 1:
        raise ConfigError(f"data.fields: expected weights of one column, found those of {', '.join(named)}.")
    if named and len(weighted) > 1:  # the column named in the settings replaces the recognised one
        fields = [replace(field, weights=None) if field.name == EVENT_KIND else field for field in fields]
    if len(weighing := [field.name for field in fields if field.medians]) > 1:
        raise ConfigError(f"data.fields: expected one column that weighs events, found {', '.join(weighing)}.")
    order = {owner: place for place, owner in enumerate(get_args(Owner))}
    schema = Schema(tuple(sorted(fields, key=lambda field: (order[field.owner], field.name))))
    return _with_medians_of_kinds(schema, events)


def _field(name: str, owner: Owner, values: pd.Series, want: FieldConfig, every: pd.Series) -> Field | None:
    """Returns the field of one column; ``None`` if the column is empty, because its encoding could not be determined.

    ``every`` also contains the values of held-out events: the vocabulary of kinds of events is complete.
    """
    plain_floats = values.dtype.kind in "fi"
    texts = values.dropna() if plain_floats else strings(values)
    filled = texts if plain_floats else texts[texts != ""]
    if owner == "event":
        owner = want.owner or ("event" if want.weighs else _owner_of_event_column(name))
    if filled.empty and want.weighs:
        raise ConfigError(f"data.fields.{name}.weighs: expected numbers above 0, found none in the training events.")
    if filled.empty and name != RATING:
        return None
    kind = want.kind or ("number" if want.weighs else _kind_of(name, owner, filled))
    field = Field(name, owner, kind, default=want.default)
    if want.weights and kind != "category":
        raise ConfigError(f"data.fields.{name}.weights: expected a category, whose values are weighed, found a {kind}.")
    if want.weighs and kind != "number":
        raise ConfigError(f"data.fields.{name}.weighs: expected a number, such as a dwell time, found a {kind}.")
    if want.components and kind != "vector":
        raise ConfigError(f"data.fields.{name}.components: expected a vector, found a {kind}.")
    match kind:
        case "category":
            field = _category(field, name, filled, want, every)
        case "number":
            plain = numbers(filled)[0]
            plain = plain[np.isfinite(plain)]
            if want.weighs and not (plain > 0).any():
                raise ConfigError(f"data.fields.{name}.weighs: expected numbers above 0, found {filled.iloc[0]!r}.")
            if len(plain):
                field = _on_a_scale(field, plain)
                field = replace(field, medians={"": float(np.median(plain[plain > 0]))}) if want.weighs else field
            elif len(filled):
                raise ConfigError(f"data.fields.{name}.kind: expected numbers, found {filled.iloc[0]!r}.")
        case "time" if owner == "item":
            plain = times(filled)[0]
            plain = plain[np.isfinite(plain)]
            if len(plain):
                field = _on_a_scale(field, plain)
        case "vector":
            width = _vector_width(filled, asked=want.kind == "vector")
            if not width:
                widths = _widths(filled)
                odd = widths.index[widths != widths[widths > 0].mode().max()]
                raise ConfigError(
                    f"data.fields.{name}.kind: expected vectors of one length, such as [0.1, 0.2], found "
                    f"{shown(next(iter(odd), filled.iloc[0]))}."
                )
            field = replace(field, width=width)
            if want.components:
                field = _by_components(field, filled, want.components)
    if want.default is not None and kind != "text" and missing(field.encode([want.default]))[0]:
        raise ConfigError(f"data.fields.{name}.default: expected a {kind}, found {want.default!r}.")
    return field


def _is_dwell_time(name: str) -> bool:
    words = words_of_name(name)
    if {"at", "last", "first", "count"}.intersection(words):
        return False
    return "".join(words) in _DWELL_NAMES or bool(
        _STAY_WORDS.intersection(words) and _DURATION_WORDS.intersection(words)
    )


def _with_medians_of_kinds(schema: Schema, events: pd.DataFrame) -> Schema:
    """Returns the schema with the median dwell time of each kind that is a choice, if both have an effect."""
    kind, dwell = schema.kind_of_event, schema.dwell_time
    if kind is None or dwell is None:
        return schema
    codes, times = kind.encode(events[kind.name]), dwell.encode(events[dwell.name])
    medians = dict(dwell.medians or {})
    if len(chosen := times[(kind.code_weights[codes] > 0) & (times > 0)]):
        medians[""] = float(np.median(chosen))
    for code, value in enumerate(kind.vocabulary, start=2):
        own = times[(codes == code) & (times > 0)]
        if len(own) and kind.code_weights[code] > 0:
            medians[value] = float(np.median(own))
    return Schema(tuple(replace(field, medians=medians) if field == dwell else field for field in schema))


def _on_a_scale(field: Field, plain: np.ndarray) -> Field:
    """Returns the field with the statistics of its numbers, which must be finite."""
    edges = np.unique(np.quantile(plain, np.linspace(0, 1, BINS + 1)))
    low, median, high = map(float, np.quantile(plain, [0.25, 0.5, 0.75]))
    spread = (high - low) / QUARTILES or float(plain.std()) or 1.0
    return replace(field, median=median, spread=spread, edges=tuple(map(float, edges)))


def _by_components(field: Field, filled: pd.Series, components: int) -> Field:
    """Returns the field of vectors with the principal axes of its cells."""
    vectors = field.encode(filled.iloc[evenly_spread(len(filled), VECTOR_ROWS)])
    vectors = vectors[~missing(vectors)]
    most = min(field.width, len(vectors)) - 1
    if components > most:
        raise ConfigError(
            f"data.fields.{field.name}.components: expected at most {most} for {len(vectors):,} vectors of "
            f"{field.width} numbers, found {components}."
        )
    covariance = np.cov(vectors, rowvar=False)
    variances, axes = scipy.linalg.eigh(covariance, subset_by_index=[field.width - components, field.width - 1])
    kept = float(variances.sum() / max(np.trace(covariance), np.finfo(float).tiny))
    written = base64.b64encode(np.ascontiguousarray(axes[:, ::-1], "<f4").tobytes()).decode()
    return replace(field, width=components, axes=written, kept=kept)


def missing(values: np.ndarray) -> np.ndarray:
    """Returns which encoded values are missing, bool ``[R]``."""
    rows = values.reshape(len(values), -1)
    return np.isnan(rows).any(axis=1) if rows.dtype.kind == "f" else (rows == padding_of(rows.dtype)).all(axis=1)


def _owner_of_event_column(name: str) -> Owner:
    if name in (RATING, EVENT_KIND):
        return "event"
    # A column is called ``source_NAME`` if another column took the name NAME.
    words = words_of_name(name.removeprefix("source_"))
    if name == TIMESTAMP:
        return "request"
    context = "".join(words) in _CONTEXT_NAMES or _CONTEXT_WORDS.intersection(words)
    return "request" if context and not _OUTCOME_WORDS.intersection(words) else "event"


def _kind_of(name: str, owner: Owner, filled: pd.Series) -> Kind:
    known: dict[str, Kind] = {RATING: "number", TIMESTAMP: "time", EVENT_KIND: "category", TAGS_WRITTEN: "text"}
    if owner in ("event", "request") and name in known:
        return known[name]
    if owner == "item" and name in (TITLE, DESCRIPTION):
        return "text"
    if owner == "item" and name in NAME_COLUMNS:
        return "category"
    words = words_of_name(name)
    if _ID_WORDS.intersection(words):
        return "id"
    if _vector_width(filled):
        return "vector"
    codes, found = pd.factorize(filled)
    distinct = pd.Series(found)
    repeated = len(distinct) <= max(MAX_CODES, len(filled) // 2)

    def mostly(read: np.ndarray, odd: np.ndarray) -> bool:
        """Returns whether the distinct values were read, apart from a few cells."""
        return bool(np.isfinite(read).any() and odd[codes].mean() <= MAX_ODD)

    plain, odd = numbers(distinct)
    if mostly(plain, odd):
        plain = plain[np.isfinite(plain)]
        whole = bool((plain == np.floor(plain)).all())
        codes_among_words = repeated and odd.any()  # such as the years of films, of which a few are unknown
        if whole and (len(distinct) <= MAX_CODES or _CODE_WORDS.intersection(words) or codes_among_words):
            return "category"
        if whole and filled.astype("str").str.match(r"0\d").any():
            return "id"
        return "time" if (plain > EARLY_S).mean() > 0.9 and _TIME_WORDS.intersection(words) else "number"
    if mostly(*times(distinct)):
        return "time"
    texts = distinct.astype("str")
    if repeated and texts.str.len().mean() <= 40:
        return "category"
    return "text" if (texts.str.count(r"\s") + 1).mean() >= 2 else "id"


def _category(field: Field, name: str, filled: pd.Series, want: FieldConfig, every: pd.Series) -> Field:
    texts = filled.astype("str") if filled.dtype.kind not in "fi" else strings(filled)
    if field.owner == "item" and name in NAME_COLUMNS:
        cells = [category_names(cell) for cell in texts]
        width = min(max(map(len, cells), default=1), MAX_NAMES)
        return replace(field, width=width, vocabulary=_most_frequent(pd.Series([n for c in cells for n in c])))
    # Values that the settings name belong to the vocabulary even if they do not occur in these rows.
    named = [*([] if want.default is None else [want.default]), *(want.weights or {})]
    if name == EVENT_KIND or want.weights:
        kinds = strings(every)
        named += _most_frequent(kinds[kinds != ""])
    field = replace(field, vocabulary=tuple(dict.fromkeys([*_most_frequent(texts), *named])))
    if name == EVENT_KIND or want.weights:
        asked = AskedWeights(want.weights or {})
        weights = {kind: asked.weight(kind) for kind in field.vocabulary}
        # Weights are ignored if no value has a positive one, or if recognised weights are all equal.
        if max(weights.values(), default=0.0) > 0 and (want.weights or len(set(weights.values())) > 1):
            field = replace(field, weights=weights)
    return replace(field, dropped=max(texts.nunique() - MAX_VOCABULARY, 0))


def _most_frequent(values: pd.Series) -> tuple[str, ...]:
    """Returns the values, the most frequent first; equally frequent values in the order of their characters."""
    counts = values.value_counts()
    counts = counts.iloc[np.lexsort([counts.index.to_numpy(str), -counts.to_numpy()])]
    return tuple(map(str, counts.index[:MAX_VOCABULARY]))


def _vector_width(filled: pd.Series, asked: bool = False) -> int:
    """Returns the length of the vectors that the cells hold, at least 2; 0 if they hold something else.

    Lists of whole numbers may be ids, so at least half of the cells must have a decimal point, unless ``asked`` is
    true.
    """
    widths = _widths(filled)
    if widths.empty or (not asked and widths.index.str.contains(".", regex=False).mean() < 0.5):
        return 0
    width = int(widths.mode().max())
    return width if (widths != width).mean() <= MAX_ODD else 0


def _widths(filled: pd.Series) -> pd.Series:
    """Returns the length of the vector in each of up to 1,000 cells, by cell; 0 for anything else but a vector.

    Cells that say that there is no vector, such as ``n/a`` and ``[]``, are left out.
    """
    if filled.dtype.kind in "fi":
        return pd.Series([], dtype=np.int64)
    some = [cell for cell in filled.iloc[evenly_spread(len(filled), 1000)] if not _says_nothing(cell)]
    widths = [len(re.findall(NUMBER, cell)) if re.fullmatch(VECTOR, cell) else 0 for cell in some]
    return pd.Series(widths, index=pd.Index(some, dtype="str"), dtype=np.int64)


def _says_nothing(cell: str) -> bool:
    """Returns whether a cell says that there is no number, no time or no vector."""
    return cell.lower() in NO_NUMBER or NO_NUMBER.issuperset(cell.lower().translate(_VECTOR_MARKS).split())


def unreadable(field: Field, values: pd.Series) -> np.ndarray:
    """Returns which cells have a value that is no number, time or vector, though the field is; bool ``[R]``.

    They count as missing. Words for "nothing", such as ``n/a``, are not among them.
    """
    odd = np.zeros(len(values), dtype=bool)
    if field.kind not in ("number", "time", "vector") or values.dtype.kind == "f":
        return odd
    texts = strings(values)
    rows = np.flatnonzero(missing(replace(field, default=None).encode(texts)) & (texts != "").to_numpy())
    odd[rows] = [not _says_nothing(cell) for cell in texts.iloc[rows]]
    return odd


def have_units(field: Field, values: pd.Series) -> np.ndarray:
    """Returns which cells are numbers with a unit (``12 min``, ``1,99 €``, ``0:45``), bool ``[R]``.

    All are False if the field is a number or a time, or unless nearly all cells are numbers with a unit and the column
    has few different units and many different values.
    """
    found = np.zeros(len(values), dtype=bool)
    if field.kind not in ("category", "id", "text") or values.dtype.kind == "f":
        return found
    filled = values[values != ""]
    sample = [cell for cell in filled.iloc[evenly_spread(len(filled), 1000)] if not _says_nothing(cell)]
    units = [_NO_UNIT.sub("", cell) for cell in sample if _MEASURE.fullmatch(cell)]
    nearly_all = bool(units) and len(units) >= (1 - MAX_ODD) * len(sample)
    if nearly_all and units.count("") < len(units) / 2 and len({*units}) <= _MAX_UNITS and filled.nunique() > MAX_CODES:
        found[:] = [bool(_MEASURE.fullmatch(cell)) for cell in values]
    return found


def _vectors(values: pd.Series, width: int) -> np.ndarray:
    """Returns the vectors of cells, float32 ``[R, width]``; NaN for any other cell."""
    rows = np.full((len(values), width), np.nan, np.float32)
    texts = strings(values)
    at_once = max(1, _NUMBERS // width)
    for start in range(0, len(texts), at_once):
        some = texts.iloc[start : start + at_once]
        there = np.flatnonzero(pc.match_substring_regex(pa.array(some), f"^{VECTOR}$"))
        plain = [cell.translate(_VECTOR_MARKS).strip() for cell in some.iloc[there]]
        found = pc.ascii_split_whitespace(pa.array(plain, pa.string()))
        fits = pc.equal(pc.list_value_length(found), width)
        with np.errstate(over="ignore"):
            numbers = found.filter(fits).flatten().cast(pa.float64()).to_numpy().astype(np.float32)
        rows[start + there[fits.to_numpy(zero_copy_only=False)]] = numbers.reshape(-1, width)
    rows[~np.isfinite(rows).all(axis=1)] = np.nan
    return rows
