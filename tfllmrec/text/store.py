"""Vectors on disk by (encoder, text): what was encoded once is never encoded again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors.numpy import save_file

from tfllmrec.durable import sync
from tfllmrec.errors import DataError
from tfllmrec.progress import Progress

_log = logging.getLogger(__name__)

_KEY_BYTES = 16
# A kill loses at most what was encoded since the last chunk was written.
_CHUNK = 2048


class _Encoder(Protocol):
    dim: int

    @property
    def fingerprint(self) -> str: ...

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> np.ndarray: ...


@dataclass(frozen=True)
class _Segment:
    """An open segment; both arrays are memory-mapped.

    Attributes:
      keys: bytes ``[n]`` of 16, ascending.
      vectors: float32 ``[n, D]``.
    """

    keys: np.ndarray
    vectors: np.ndarray


class _Corrupt(Exception):
    pass


class VectorStore:
    """Vectors by (encoder fingerprint, text), in append-only segments.

    A segment is a safetensors file ``FOLDER/FINGERPRINT/NAME.safetensors`` with sorted ``keys`` (the first 16 bytes of
    the text's sha256), ``vectors`` and their checksum. It is written beside, synced and renamed to a name of its own:
    two writers never meet, and a kill leaves nothing half-written behind. Segments are memory-mapped, so that only
    what is asked for is read. A damaged one is named in a warning and passed over; its texts count as missing.

    Args:
      folder: made when the first vectors are added.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self._open: dict[Path, _Segment | None] = {}

    def lookup(self, fingerprint: str, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """What is stored of ``texts``.

        Returns:
          vectors float32 ``[n, D]`` (rows of zeros where missing; D is 0 where the store knows no vector of this
          encoder), and bool ``[n]``: which are missing.
        """
        wanted = _keys(texts)
        segments = self._segments(fingerprint)
        width = segments[0].vectors.shape[1] if segments else 0
        vectors = np.zeros((len(wanted), width), np.float32)
        missing = np.ones(len(wanted), bool)
        for segment in segments:
            rows = np.flatnonzero(missing)
            if not len(rows):
                break
            position = np.minimum(np.searchsorted(segment.keys, wanted[rows]), len(segment.keys) - 1)
            found = segment.keys[position] == wanted[rows]
            vectors[rows[found]] = segment.vectors[position[found]]
            missing[rows[found]] = False
        return vectors, missing

    def add(self, fingerprint: str, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Stores ``vectors`` (float ``[n, D]``) of ``texts`` as one segment; it is on disk when this returns.

        Raises:
          ValueError: the two do not belong together, or a vector is not finite.
          DataError: the folder cannot be written.
        """
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise ValueError(f"expected vectors [{len(texts)}, D], got {list(vectors.shape)}")
        if not np.isfinite(vectors).all():
            raise ValueError("a vector is not finite: the encoder is broken, nothing is stored")
        if not len(texts):
            return
        keys, rows = np.unique(_keys(texts), return_index=True)
        arrays: dict[str, np.ndarray] = {
            "keys": keys.view(np.uint8).reshape(-1, _KEY_BYTES),
            "vectors": np.ascontiguousarray(vectors[rows], np.float32),
        }
        checksum = zlib.crc32(arrays["vectors"].data, zlib.crc32(arrays["keys"].data))
        target = self._folder_of(fingerprint) / f"{uuid.uuid4().hex}.safetensors"
        fresh = target.with_suffix(".new")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            save_file(arrays, fresh, {"crc32": str(checksum)})
            sync(fresh)
            fresh.rename(target)
            sync(target.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise DataError(f"the vector store {self.folder} cannot be written: {error.strerror or error}") from error

    def _folder_of(self, fingerprint: str) -> Path:
        if not fingerprint.isalnum():
            raise ValueError(f"expected a hexadecimal fingerprint, got {fingerprint!r}")
        return self.folder / fingerprint

    def _segments(self, fingerprint: str) -> list[_Segment]:
        for path in sorted(self._folder_of(fingerprint).glob("*.safetensors")):
            if path not in self._open:
                try:
                    self._open[path] = _read(path)
                except (_Corrupt, OSError) as error:
                    self._open[path] = None
                    _log.warning("the vector store's %s is damaged and passed over (delete it): %s", path, error)
        folder = self._folder_of(fingerprint)
        return [segment for path, segment in self._open.items() if segment is not None and path.parent == folder]


def encode_items(
    texts: Sequence[str],
    encoder: _Encoder,
    store: VectorStore | None = None,
    progress: Progress | None = None,
    chunk: int = _CHUNK,
) -> np.ndarray:
    """Vectors of ``texts``; each distinct text is encoded once, and not at all when the store has it.

    Args:
      texts: N strings.
      encoder: a :class:`tfllmrec.text.encoder.TextEncoder`, or what has its ``encode``, ``fingerprint``, ``dim``.
      store: where to look first, and to keep what is new; ``None`` for neither.
      progress: called with (done, total) of the texts that are encoded; not at all if there are none.
      chunk: texts encoded between two writes to the store: the most that a kill can lose.

    Returns:
      float32 ``[N, D]``.
    """
    row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    distinct = list(row_of)
    vectors = np.zeros((len(distinct), encoder.dim), np.float32)
    missing = np.ones(len(distinct), bool)
    if store is not None:
        known, missing = store.lookup(encoder.fingerprint, distinct)
        if known.shape[1]:
            vectors[~missing] = known[~missing]
    # Like lengths together over the whole catalogue, the longest first: the time left is then never too good.
    todo = sorted(np.flatnonzero(missing).tolist(), key=lambda row: -len(distinct[row]))
    for start in range(0, len(todo), chunk):
        rows = todo[start : start + chunk]
        batch = [distinct[row] for row in rows]
        vectors[rows] = encoder.encode(batch, _shifted(progress, start, len(todo)))
        if store is not None:
            store.add(encoder.fingerprint, batch, vectors[rows])
    return vectors[[row_of[text] for text in texts]]


def _shifted(progress: Progress | None, start: int, total: int) -> Progress | None:
    """What a chunk that begins at text ``start`` calls, so that the whole is counted."""
    return (lambda done, _: progress(start + done, total)) if progress else None


def _keys(texts: Sequence[str]) -> np.ndarray:
    """bytes ``[n]`` of 16: the start of each text's sha256."""
    digests = b"".join(hashlib.sha256(text.encode()).digest()[:_KEY_BYTES] for text in texts)
    return np.frombuffer(digests, dtype=f"S{_KEY_BYTES}")


def _read(path: Path) -> _Segment:
    """Maps a segment after checking every byte of it."""
    try:
        content = np.memmap(path, mode="r")
        start = 8 + int.from_bytes(content[:8].tobytes(), "little")
        header = json.loads(content[8:start].tobytes())
        arrays = {}
        for name, dtype in (("keys", np.uint8), ("vectors", np.float32)):
            first, last = header[name]["data_offsets"]
            arrays[name] = content[start + first : start + last].view(dtype).reshape(header[name]["shape"])
        expected = int(header["__metadata__"]["crc32"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise _Corrupt(f"its header cannot be read ({error!r})") from error
    came = zlib.crc32(arrays["vectors"].data, zlib.crc32(arrays["keys"].data))
    if came != expected:
        raise _Corrupt(f"expected checksum {expected}, got {came}")
    return _Segment(arrays["keys"].view(f"S{_KEY_BYTES}").reshape(-1), arrays["vectors"])
