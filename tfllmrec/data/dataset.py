"""The Dataset: four clean tables with consecutive indices and a fingerprint, saved as Parquet with a JSON manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tfllmrec.columns import (
    DESCRIPTION,
    EVENT_KIND,
    EVENT_TYPES,
    ITEM,
    ITEM_INDEX,
    NAME_COLUMNS,
    RATING,
    TAGS_WRITTEN,
    TEST_EVENT,
    TIMESTAMP,
    TITLE,
    USER,
    USER_INDEX,
    setting_names,
)
from tfllmrec.config import DataConfig, FieldConfig
from tfllmrec.data.cleaning.names import names_as_text
from tfllmrec.data.cleaning.scripts import sample_of, script_doubts, scripts_of
from tfllmrec.data.cleaning.tags import TAG_TYPES, no_tags, with_tags
from tfllmrec.data.cleaning.titles import display_titles
from tfllmrec.data.event_tags import tags_of_events
from tfllmrec.data.findings import CleaningReport
from tfllmrec.data.schema import Schema, infer_schema
from tfllmrec.durable import read_json, write_folder
from tfllmrec.errors import DataError, ModelError

MANIFEST = "manifest.json"
FORMAT_VERSION = 2
_TABLES = ("events", "items", "users", "tags")
_AGAIN = "prepare the data again"
_REMEDY = f"copy the folder back, or {_AGAIN}"


@dataclass(frozen=True)
class _Version:
    format_version: int


@dataclass(frozen=True)
class _Manifest:
    """The parts of :data:`MANIFEST` that are read."""

    name: str
    ordered: bool
    fingerprint: str
    report: dict[str, Any]
    repeats: bool = False
    test_events: str | None = None
    fields: dict[str, FieldConfig] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Cleaned events, items, users and tags. Splits, models and reports start from it.

    Create it with :func:`tfllmrec.data.read_dataset` or :func:`tfllmrec.data.dataset_from_frames`. The order of the
    rows in the source files does not matter: the same rows in another order give an equal Dataset.

    Attributes:
      name: Name used in reports and folder names.
      events: One row per event, sorted by (user_index, order): user_id, item_id (str), user_index, item_index (int64),
        rating (float32, NaN: none; all NaN if the source has only one value), timestamp_s (float64 seconds since 1970
        UTC, NaN: none), order (int64, 0 to n - 1 within the user), kind (str, such as ``view`` or ``purchase``, spelt
        as in the source; ``""``: none); with :attr:`test_events` also test_event (bool); then the other columns of the
        source by name, all str.
      items: One row per item, including items without events; the row number is item_index. Columns: item_id, then
        title, description and categories if the source has them, then its other columns by name; all str, ``""`` for no
        value. The rows are in natural order of item_id: shorter ids first, then by character, so that 9 comes before
        10. Items that :meth:`extend` added follow, each time in natural order. Cells of
        :data:`tfllmrec.columns.NAME_COLUMNS` contain names, see :func:`tfllmrec.data.cleaning.names.category_names`.
      users: One row per user with events; the row number is user_index. Columns: user_id, then the other columns of the
        source by name, all str. The rows are in natural order of user_id; users that :meth:`extend` added follow.
      tags: One row for each time a user gave a tag to an item. Columns: user_id (``""``: unknown; may be a user without
        events), item_id, tag (str), timestamp_s (float64, NaN: none). Empty if the source has no tags. Tags are not
        part of ``items``, because a user may write a tag after the event that the model is tested on: see
        :attr:`tfllmrec.data.Split.items`.
      ordered: Whether a column of the source orders the events of a user. A hash of the user and item ids breaks ties
        in time; if ``ordered`` is False it orders all events.
      repeats: Whether a user may have several events with an item, because repeated use is the task
        (``data.repeats: all``). Items of a user's history may then be recommended, and queries do not exclude them.
      test_events: The ``split.test_events`` that marked the test events of a ``fixed`` split; None if no events are
        marked.
      fields: The ``data.fields`` of the config: declarations of columns.
      report: The recognised columns and the findings of reading and cleaning.
    """

    name: str
    events: pd.DataFrame
    items: pd.DataFrame
    users: pd.DataFrame
    tags: pd.DataFrame = field(default_factory=no_tags)
    ordered: bool = True
    repeats: bool = False
    test_events: str | None = None
    fields: Mapping[str, FieldConfig] = field(default_factory=dict)
    report: CleaningReport = field(default_factory=CleaningReport)

    @classmethod
    def empty(cls, name: str) -> Dataset:
        """Returns a data set without events, items and users."""
        events = pd.DataFrame({column: pd.Series([], dtype=kind) for column, kind in EVENT_TYPES.items()})
        items, users = (pd.DataFrame({key: pd.Series([], dtype="str")}) for key in (ITEM, USER))
        return cls(name, events, items, users)

    @property
    def n_users(self) -> int:
        return len(self.users)

    @property
    def n_items(self) -> int:
        return len(self.items)

    @property
    def has_ratings(self) -> bool:
        """Whether the ratings are informative, that is, have at least two distinct values."""
        return self.events[RATING].nunique() > 1

    @cached_property
    def schema(self) -> Schema:
        """The fields of all tables, with the vocabularies and statistics of all rows.

        Models use the schema of the training events instead: :attr:`tfllmrec.data.Split.schema`.

        Raises:
          ConfigError: :attr:`fields` do not fit the tables.
        """
        return self.schema_of(self.events, self.users)

    def schema_of(self, events: pd.DataFrame, users: pd.DataFrame) -> Schema:
        """Returns the fields with the vocabularies and statistics of the given events and users, and of all items.

        Raises:
          ConfigError: :attr:`fields` do not fit the tables.
        """
        events, asked = events.drop(columns=TEST_EVENT, errors="ignore"), self.fields
        if len(self.tags) and TAGS_WRITTEN not in events:  # added by :attr:`with_tags_written`
            asked = {name: want for name, want in asked.items() if name not in setting_names("event", TAGS_WRITTEN)}
        return infer_schema(events, self.items, users, asked, every_event=self.events)

    def with_columns(self, columns: Iterable[tuple[str, str]]) -> Dataset:
        """Returns this data set with an empty column for each (table, column) that it lacks."""
        dataset = self
        for table, name in columns:
            frame = getattr(dataset, table)
            if name not in frame:
                dataset = replace(dataset, **{table: frame.assign(**{name: ""}).astype({name: "str"})})
        return dataset

    @cached_property
    def with_tags_written(self) -> Dataset:
        """This data set with the additional event column ``tags_written``.

        See :func:`tfllmrec.data.event_tags.tags_of_events`.

        The data set is unchanged if there are no such texts, if its events have no order, or if they already have a
        column of that name.
        """
        if not self.ordered or TAGS_WRITTEN in self.events:
            return self
        texts = tags_of_events(self.events, self.users, self.tags)
        return self if texts is None else replace(self, events=self.events.assign(**{TAGS_WRITTEN: texts}))

    @cached_property
    def titles(self) -> dict[str, str]:
        """A short, never empty text for each item id, see :func:`tfllmrec.data.cleaning.titles.display_titles`."""
        return dict(zip(self.items[ITEM], display_titles(self.items), strict=True))

    @cached_property
    def choices(self) -> np.ndarray:
        """Bool ``[E]``: which events are choices of the item, that is, all except rejections and impressions.

        See :attr:`tfllmrec.data.schema.Field.weights`.
        """
        weighted = any(field.weights for field in self.fields.values())
        if not weighted and not (self.events[EVENT_KIND] != "").any():
            return np.ones(len(self.events), dtype=bool)
        kind = self.schema_of(self.events, self.users).kind_of_event
        if kind is None:
            return np.ones(len(self.events), dtype=bool)
        return kind.code_weights[kind.encode(self.events[kind.name])] > 0

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the content: the four tables, ``ordered`` and ``repeats``, but not the name and the report.

        It does not depend on the order of the rows in the source files, because the order of the rows in the tables
        does not.
        """
        task = f"ordered={self.ordered}" + (" repeats" if self.repeats else "")
        digest = hashlib.sha256(f"tfllmrec-dataset-{FORMAT_VERSION} {task}".encode())
        # Leave out user and item ids: the indices determine them and are cheaper to hash.
        events = self.events[[c for c in self.events if c not in (USER, ITEM)]]
        tables = {"events": events, "items": self.items, "users": self.users, "tags": self.tags}
        for table, frame in tables.items():
            for column in frame.columns:
                digest.update(f"\n{table}.{column} {len(frame)}\n".encode())
                _hash_column(digest, frame[column])
        return digest.hexdigest()

    def extend(
        self,
        events: pd.DataFrame | None = None,
        items: pd.DataFrame | None = None,
        users: pd.DataFrame | None = None,
        tags: pd.DataFrame | None = None,
        config: DataConfig | None = None,
    ) -> Dataset:
        """Returns this data set extended by further tables; known items and users keep their indices.

        New items and users follow the known ones, in natural order of their ids. Values of a known item or user replace
        the old ones; an empty value replaces nothing. New events are cleaned and merged by the same rules as the first
        ones, and each user's ``order`` is recomputed: see :func:`tfllmrec.data.extension.extended_events`. Tables may
        repeat known rows: these are dropped and counted. The order of the rows does not matter. The findings of the
        extension (rows added, replaced and dropped) follow those of the first reading in the report.

        Extending twice gives the same events, users and items as extending once with both tables, apart from the
        indices of new users and items, under these conditions: the tables do not describe the same item twice, a new
        user's row comes with or after the user's events, no user is dropped for ``min_user_events``, and events that
        are ordered by an order column are added in that order.

        Args:
          events: Further events, as in :func:`tfllmrec.data.dataset_from_frames`; not every known user and item needs
            to occur.
          items: Further items, or new values of known ones; known items may be missing.
          users: Further users, or new values of known ones; known users may be missing.
          tags: Further tags of known or new items.
          config: The ``data`` section that the data set was read with.

        Raises:
          ConfigError: ``data.repeats`` is ``all`` for only one of the two data sets.
          DataError: A column is missing, no event of the table of events is left, too many rows are broken, or no
            column tells where new events belong in the order of the known ones.
        """
        from tfllmrec.data.readers import dataset_from_frames

        return dataset_from_frames(events, items, users, config, tags, known=self)

    def save(self, folder: Path | str) -> None:
        """Writes events, items, users and tags as Parquet, and ``manifest.json``, to ``folder``.

        The folder is written completely or not at all. It replaces a data set that was saved there before.

        Raises:
          DataError: The folder contains something else.
          WriteError: The disk is full, read-only or broken; an earlier data set is kept.
        """
        folder = Path(folder)
        if folder.exists() and not (folder / MANIFEST).is_file() and (folder.is_file() or any(folder.iterdir())):
            raise DataError(f"{folder} already exists and is not a saved data set: name another folder, or empty it.")
        manifest = {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "ordered": self.ordered,
            "repeats": self.repeats,
            "test_events": self.test_events,
            "fingerprint": self.fingerprint,
            "fields": {name: known.model_dump(exclude_unset=True) for name, known in self.fields.items()},
            "users": self.n_users,
            "items": self.n_items,
            "events": len(self.events),
            "report": self.report.as_dict(),
        }

        def write(fresh: Path) -> None:
            fresh.mkdir()
            for table in _TABLES:
                getattr(self, table).to_parquet(fresh / f"{table}.parquet", index=False)
            (fresh / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")

        write_folder(folder, write, replace=True)

    @classmethod
    def load(cls, folder: Path | str) -> Dataset:
        """Reads a data set that :meth:`save` wrote.

        Raises:
          DataError: The folder is not a saved data set, has another format version, or its tables were modified.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.is_file():
            raise DataError(f"{folder} is not a saved data set: it has no {MANIFEST}.")
        try:
            version = read_json(path, _Version, _REMEDY).format_version
            if version != FORMAT_VERSION:
                raise DataError(f"{path}: format_version is {version}, expected {FORMAT_VERSION}; {_AGAIN}.")
            manifest = read_json(path, _Manifest, _REMEDY)
            tables = {table: pd.read_parquet(folder / f"{table}.parquet") for table in _TABLES}
            types = {**EVENT_TYPES, TEST_EVENT: "bool"}
            dataset = cls(
                name=manifest.name,
                events=tables["events"].astype({c: types.get(str(c), "str") for c in tables["events"]}),
                items=tables["items"].astype("str"),
                users=tables["users"].astype("str"),
                tags=tables["tags"].astype(TAG_TYPES),
                ordered=manifest.ordered,
                repeats=manifest.repeats,
                test_events=manifest.test_events,
                fields=manifest.fields,
                report=CleaningReport.from_dict(manifest.report),
            )
            fingerprint = dataset.fingerprint
        except ModelError as error:
            raise DataError(f"{folder} cannot be read as a saved data set: {error}") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
            raise DataError(f"{folder} cannot be read as a saved data set: {error!r}; {_REMEDY}.") from error
        if fingerprint != manifest.fingerprint:
            raise DataError(f"{folder}: the tables do not fit the manifest's fingerprint; {_REMEDY}.")
        return dataset

    def describe(self) -> dict[str, Any]:
        """Returns figures that describe the data, as plain JSON types.

        Keys: name, fingerprint, ordered, repeats, test_events (their number), users, items, events, density,
        events_per_user and events_per_item (min, 25 %, median, 75 %, 90 %, max, mean; items without events included),
        ratings ({value: events}, empty without ratings), kinds ({kind: events}, most frequent first, empty without
        kinds), items_with_text (share), mean_text_characters (over items with text, including all tags), scripts (the
        share of each script among the letters of the items' texts, from a sample), tags, tags_with_time, cold_items
        (items without events), time_span (ISO dates; None without times), repeated_pairs (events whose user had that
        item before), tied_users (users with events that no column separates in time), schema (one line per field),
        doubts (reasons to doubt the data, such as the order of the events, and whether the scripts need another text
        encoder than the default).
        """
        events = self.events
        items = with_tags(self.items, self.tags)
        text = [c for c in (TITLE, DESCRIPTION, *NAME_COLUMNS) if c in items]
        shown = [items[c].map(names_as_text) if c in NAME_COLUMNS else items[c] for c in text]
        lengths = sum((texts.str.len().to_numpy(dtype=np.int64) for texts in shown), np.zeros(self.n_items, np.int64))
        sampled = [sample_of(texts.tolist()) for texts in shown]
        scripts = scripts_of([" ".join(texts) for texts in zip(*sampled, strict=True)])
        per_item = np.bincount(events[ITEM_INDEX], minlength=self.n_items)
        ratings = events[RATING].dropna().value_counts().sort_index()
        kinds = events[EVENT_KIND][events[EVENT_KIND] != ""].value_counts()
        known_times = events[TIMESTAMP].dropna()
        span = [pd.Timestamp(t, unit="s").isoformat() for t in (known_times.min(), known_times.max()) if t == t]
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "ordered": self.ordered,
            "repeats": self.repeats,
            "test_events": int(events[TEST_EVENT].sum()) if TEST_EVENT in events else 0,
            "users": self.n_users,
            "items": self.n_items,
            "events": len(events),
            "density": len(events) / (self.n_users * self.n_items),
            "events_per_user": _quantiles(np.bincount(events[USER_INDEX], minlength=self.n_users)),
            "events_per_item": _quantiles(per_item),
            "ratings": {
                np.format_float_positional(value, trim="-"): int(n)  # the shortest text that no other value has
                for value, n in zip(ratings.index.to_numpy(), ratings, strict=True)
            },
            "kinds": {str(kind): int(n) for kind, n in kinds.items()},
            "items_with_text": float((lengths > 0).mean()),
            "mean_text_characters": float(lengths[lengths > 0].mean()) if lengths.any() else 0.0,
            "scripts": scripts,
            "tags": len(self.tags),
            "tags_with_time": int(self.tags[TIMESTAMP].notna().sum()),
            "cold_items": int((per_item == 0).sum()),
            "time_span": span or None,
            "repeated_pairs": int(events.duplicated([USER_INDEX, ITEM_INDEX]).sum()),
            "tied_users": self.report.tied_users,
            "schema": self.schema.lines(),
            "doubts": [*self.report.doubts(), *script_doubts(scripts)],
        }


def _quantiles(counts: np.ndarray) -> dict[str, float]:
    labels = ("min", "25%", "median", "75%", "90%", "max")
    values = np.quantile(counts, (0, 0.25, 0.5, 0.75, 0.9, 1))
    return {**{label: float(v) for label, v in zip(labels, values, strict=True)}, "mean": float(counts.mean())}


def _hash_column(digest: Any, column: pd.Series) -> None:
    """Hashes numbers as little-endian bytes and strings as UTF-8 with their lengths, however pandas stores them."""
    if pd.api.types.is_numeric_dtype(column.dtype):
        values = column.to_numpy()
        if values.dtype.kind == "f":
            values = np.where(np.isnan(values), np.array(np.nan, values.dtype), values)  # one bit pattern for NaN
        digest.update(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes())
    else:
        texts = pa.table({"": column})[""].cast(pa.large_string()).combine_chunks()
        digest.update(pc.binary_length(texts).to_numpy().astype("<i8").tobytes())
        all_of_them = pa.LargeListArray.from_arrays(pa.array([0, len(texts)], pa.int64()), texts)
        digest.update(pc.binary_join(all_of_them, pa.scalar("", pa.large_string()))[0].as_buffer())
