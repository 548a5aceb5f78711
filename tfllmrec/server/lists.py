"""Facts on the lists of an answer, for metrics and for the log: lengths, scores, unknown ids, strata; numpy alone."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tfllmrec.columns import ITEM, STRATUM, USER
from tfllmrec.server.tensors import Tensors

if TYPE_CHECKING:
    from pathlib import Path

#: The strata of items; *unknown* where an export does not say, or the model is of another kind.
STRATA = ("head", "tail", "cold", "unknown")
#: Fields of a request that are logged, and letters of each.
MOST_FIELDS, MOST_LETTERS = 16, 64
_USER = f"{USER}=".encode()


@dataclass(frozen=True)
class Lists:
    """The lists of an answer, a row each.

    Attributes:
      listed, unknown_ids: int64 ``[B]``: items of the list, unknown ids.
      history_ids: int64 ``[B]``, ids of the history; ``None`` where the request has none, as for similar items.
      best_score, mean_score: float64 ``[B]``; NaN where the list is empty or has no scores.
      texts: the free texts, bytes; empty without any.
      strata: how many items of all lists are of each stratum.
    """

    listed: np.ndarray
    history_ids: np.ndarray | None
    unknown_ids: np.ndarray
    best_score: np.ndarray
    mean_score: np.ndarray
    texts: list[bytes] = field(default_factory=list)
    strata: Counter[str] = field(default_factory=Counter)


def lists_of(inputs: Tensors, outputs: Tensors, about: Items) -> Lists | None:
    """The facts on an answer; ``None`` where it has no lists of items.

    Inputs and outputs of another type or shape, as a model of another kind may have them, count as absent.
    """
    items = outputs.get("item_ids")
    if items is None or items.dtype != object or items.ndim != 2:
        return None
    rows = len(items)
    there = np.asarray(items != b"", bool)
    listed = there.sum(axis=1, dtype=np.int64)
    best, mean = np.full((2, rows), np.nan)
    scores = outputs.get("scores")
    if scores is not None and scores.shape == items.shape and scores.dtype.kind == "f":
        known = there & np.isfinite(scores)
        count = known.sum(axis=1)
        highest = np.where(known, scores, -np.inf).max(axis=1, initial=-np.inf)
        total = np.where(known, scores, 0).sum(axis=1, dtype=np.float64)
        best, mean = (np.where(count > 0, each, np.nan) for each in (highest, total / np.maximum(count, 1)))
    history = inputs.get("history")
    ids = None
    if history is not None and history.dtype == object and history.ndim == 2 and len(history) in (1, rows):
        ids = np.broadcast_to(np.asarray(history != b"", bool).sum(axis=1, dtype=np.int64), rows)
    unknown = outputs.get("unknown")
    if unknown is None or unknown.dtype.kind != "i" or unknown.shape != (rows,):
        unknown = np.zeros(rows, np.int64)
    text, texts = inputs.get("text"), []
    if text is not None and text.dtype == object and text.ndim == 1 and len(text) in (1, rows):
        texts = (text if len(text) == rows else np.repeat(text, rows)).tolist()
    return Lists(listed, ids, unknown.astype(np.int64), best, mean, texts, about.strata(items[there].tolist()))


@dataclass(frozen=True)
class Items:
    """The strata of a model's items, and the fields of a request that may be logged; about nine bytes an item.

    Attributes:
      digests: uint64 ``[N]``, ascending, of the ids. codes: uint8 ``[N]``, places in :data:`STRATA`.
      fields: names of the request's categories and numbers. Texts, ids and the fields of users are never logged.
    """

    digests: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    codes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    fields: frozenset[str] = frozenset()

    @classmethod
    def of(cls, version: Path, manifest: Mapping[str, Any]) -> Items:
        """Of the folder of a version; without strata where it was exported before these were written."""
        import pyarrow.parquet  # the process of a model has it; the server's does without

        from tfllmrec.serving.layout import EXTRA, ITEMS

        fields = frozenset(
            each["name"]
            for each in manifest.get("schema") or ()
            if each.get("owner") == "request" and each.get("kind") in ("category", "number")
        )
        path = version / EXTRA / ITEMS
        if not path.is_file() or STRATUM not in pyarrow.parquet.read_schema(path).names:
            return cls(fields=fields)
        table = pyarrow.parquet.read_table(path, columns=[ITEM, STRATUM])
        digests = _digests(item.encode() for item in table[ITEM].to_pylist())
        place = {name: code for code, name in enumerate(STRATA)}
        codes = np.array([place.get(name, len(STRATA) - 1) for name in table[STRATUM].to_pylist()], np.uint8)
        order = np.argsort(digests)
        return cls(digests[order], codes[order], fields)

    def strata(self, ids: Iterable[bytes]) -> Counter[str]:
        """How many of the ids are of each stratum."""
        wanted = _digests(ids)
        if not len(self.digests):
            return Counter({STRATA[-1]: len(wanted)} if len(wanted) else {})
        at = np.minimum(np.searchsorted(self.digests, wanted), len(self.digests) - 1)
        codes = np.where(self.digests[at] == wanted, self.codes[at], len(STRATA) - 1)
        return Counter({name: int(n) for name, n in zip(STRATA, np.bincount(codes, minlength=4), strict=True) if n})


def _digests(ids: Iterable[bytes]) -> np.ndarray:
    """uint64 ``[N]``. Ids of a million items collide with a probability below one in 30 million."""
    return np.frombuffer(b"".join(hashlib.blake2b(each, digest_size=8).digest() for each in ids), np.uint64)


def entries_of(context: np.ndarray | None, rows: int) -> list[list[bytes]]:
    """The entries ``name=value`` of each row.

    Args:
      context: object ``[B, C]`` or ``[1, C]``, bytes. Of any other type or shape, as a model of another kind may have
        it, it has no entries.
    """
    if context is None or context.dtype != object or context.ndim != 2 or len(context) not in (1, rows):
        return [[]] * rows
    entries = context.tolist()
    return entries if len(entries) == rows else entries * rows


def user_of(entries: Iterable[bytes]) -> str | None:
    """The value of the entry ``user_id=ID``; ``None`` without one."""
    return next((text_of(entry.partition(b"=")[2]) for entry in entries if entry.startswith(_USER)), None) or None


def context_of(entries: Iterable[bytes], fields: frozenset[str]) -> str | None:
    """The entries that may be logged as one JSON object, at most :data:`MOST_FIELDS`; ``None`` without any."""
    kept: dict[str, str] = {}
    for entry in entries:
        name, _, value = text_of(entry).partition("=")
        if name in fields and len(kept) < MOST_FIELDS:
            kept[name] = value[:MOST_LETTERS]
    return json.dumps(kept, sort_keys=True, ensure_ascii=False, separators=(",", ":")) if kept else None


def letters_and_script(text: bytes) -> tuple[int | None, str | None]:
    """The length of a free text, and the script of most of its first :data:`MOST_LETTERS` letters."""
    plain = text_of(text)
    if not plain:
        return None, None
    from tfllmrec.data.cleaning.scripts import scripts_of  # it loads pandas, which only a log needs

    return len(plain), next(iter(scripts_of([plain[:MOST_LETTERS]])), "none")


def text_of(value: bytes) -> str:
    """Bytes as text that the log can keep."""
    return value.decode(errors="replace").replace("\0", "�")
