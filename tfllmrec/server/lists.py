"""Facts about the lists of an answer, for metrics and for the log: lengths, scores, unknown ids and strata.

Needs only numpy, except for :meth:`Items.of` and :func:`letters_and_script`.
"""

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

#: The strata of items; *unknown* if an export does not contain them, or the model was not exported by tfllmrec.
STRATA = ("head", "tail", "cold", "unknown")
#: Largest number of fields of a request that are logged, and of characters of each.
MOST_FIELDS, MOST_LETTERS = 16, 64
_USER = f"{USER}=".encode()


@dataclass(frozen=True)
class Lists:
    """Facts about the B lists of an answer.

    Attributes:
      listed: Int64 ``[B]``, the number of items of each list.
      history_ids: Int64 ``[B]``, the number of ids in each history; ``None`` if the request has no histories, as for
        similar items.
      unknown_ids: Int64 ``[B]``, the number of unknown ids of each row.
      best_score, mean_score: Float64 ``[B]``; NaN if a list is empty or has no scores.
      texts: The texts that were searched for, bytes; empty if there are none.
      strata: The number of items of all lists in each stratum.
    """

    listed: np.ndarray
    history_ids: np.ndarray | None
    unknown_ids: np.ndarray
    best_score: np.ndarray
    mean_score: np.ndarray
    texts: list[bytes] = field(default_factory=list)
    strata: Counter[str] = field(default_factory=Counter)


def lists_of(inputs: Tensors, outputs: Tensors, about: Items) -> Lists | None:
    """Returns the facts about the lists of an answer; ``None`` if it has no lists of items.

    Inputs and outputs with an unexpected type or shape, which other models may have, are ignored.

    Args:
      inputs: The inputs of the request.
      outputs: The outputs of the answer.
      about: The strata of the model's items.
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
    """The strata of a model's items, and the fields of a request that may be logged.

    An item takes about nine bytes.

    Attributes:
      digests: Uint64 ``[N]``, the digests of the ids in ascending order.
      codes: Uint8 ``[N]``, the indices of the strata in :data:`STRATA`.
      fields: The names of the categorical and numeric fields of requests. Texts, ids and the fields of users are never
        logged.
    """

    digests: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    codes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    fields: frozenset[str] = frozenset()

    @classmethod
    def of(cls, version: Path, manifest: Mapping[str, Any]) -> Items:
        """Reads the folder of a version; the result has no strata if the export does not contain them.

        Args:
          version: The folder of the version.
          manifest: Its manifest.
        """
        import pyarrow.parquet  # loaded only in the process of a model, and not in that of the server

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
        """Returns the number of ids in each stratum."""
        wanted = _digests(ids)
        if not len(self.digests):
            return Counter({STRATA[-1]: len(wanted)} if len(wanted) else {})
        at = np.minimum(np.searchsorted(self.digests, wanted), len(self.digests) - 1)
        codes = np.where(self.digests[at] == wanted, self.codes[at], len(STRATA) - 1)
        return Counter({name: int(n) for name, n in zip(STRATA, np.bincount(codes, minlength=4), strict=True) if n})


def _digests(ids: Iterable[bytes]) -> np.ndarray:
    """Returns the digests of ids, uint64 ``[N]``.

    Among a million ids, the probability of a collision is below 1 in 30 million.
    """
    return np.frombuffer(b"".join(hashlib.blake2b(each, digest_size=8).digest() for each in ids), np.uint64)


def entries_of(context: np.ndarray | None, rows: int) -> list[list[bytes]]:
    """Returns the entries ``name=value`` of each row.

    Args:
      context: Object ``[B, C]`` or ``[1, C]``, bytes. If it has another type or shape, which other models may have,
        there are no entries.
      rows: B.
    """
    if context is None or context.dtype != object or context.ndim != 2 or len(context) not in (1, rows):
        return [[]] * rows
    entries = context.tolist()
    return entries if len(entries) == rows else entries * rows


def user_of(entries: Iterable[bytes]) -> str | None:
    """Returns the value of the entry ``user_id=ID``; ``None`` if there is none."""
    return next((text_of(entry.partition(b"=")[2]) for entry in entries if entry.startswith(_USER)), None) or None


def context_of(entries: Iterable[bytes], fields: frozenset[str]) -> str | None:
    """Returns the entries that may be logged, at most :data:`MOST_FIELDS`, as a JSON object; ``None`` without any."""
    kept: dict[str, str] = {}
    for entry in entries:
        name, _, value = text_of(entry).partition("=")
        if name in fields and len(kept) < MOST_FIELDS:
            kept[name] = value[:MOST_LETTERS]
    return json.dumps(kept, sort_keys=True, ensure_ascii=False, separators=(",", ":")) if kept else None


def letters_and_script(text: bytes) -> tuple[int | None, str | None]:
    """Returns the length of a text, and the most frequent script of its first :data:`MOST_LETTERS` characters."""
    plain = text_of(text)
    if not plain:
        return None, None
    from tfllmrec.data.cleaning.scripts import scripts_of  # not at the top: it loads pandas, which only a log needs

    return len(plain), next(iter(scripts_of([plain[:MOST_LETTERS]])), "none")


def text_of(value: bytes) -> str:
    """Decodes bytes to text that can be stored in the log; replaces invalid characters and NUL."""
    return value.decode(errors="replace").replace("\0", "�")
