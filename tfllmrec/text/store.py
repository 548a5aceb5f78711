"""An on-disk store of vectors by (encoder, text), so that no text is encoded twice."""

from __future__ import annotations

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

from tfllmrec.durable import replacing, reserve, writing
from tfllmrec.errors import ModelError
from tfllmrec.progress import Progress

_log = logging.getLogger(__name__)

_KEY_BYTES = 16
# Number of texts in a chunk; if the process is killed, at most the vectors of one chunk are lost.
_CHUNK = 2048
# Number of rows that are copied at a time between files that are too large for memory.
_ROWS = 8192


class _Encoder(Protocol):
    @property
    def dim(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> np.ndarray: ...


@dataclass(frozen=True)
class _Segment:
    """An open segment; both arrays are memory-mapped.

    Attributes:
      keys: Bytes ``[n]`` of 16, ascending.
      vectors: Float32 ``[n, D]``.
    """

    keys: np.ndarray
    vectors: np.ndarray


class _Corrupt(Exception):
    pass


class VectorStore:
    """Vectors by (encoder fingerprint, text), in append-only segments.

    A segment is a safetensors file ``FOLDER/FINGERPRINT/NAME.safetensors`` with sorted ``keys`` (the first 16 bytes of
    the text's sha256), ``vectors`` and their checksum. It is written to a temporary file, synced and renamed to a
    unique name, so that concurrent writers do not conflict and a killed process leaves no partial segment. Segments are
    memory-mapped, so that only requested vectors are read. A damaged segment is skipped with a warning; its texts count
    as missing.

    Args:
      folder: The folder of the store; created when the first vectors are added.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self._open: dict[Path, _Segment | None] = {}

    def fill(self, fingerprint: str, texts: Sequence[str], rows: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Writes the stored vectors of ``texts`` to ``rows`` of ``out``, and leaves the other rows unchanged.

        Args:
          fingerprint: The encoder's fingerprint.
          texts: n strings.
          rows: Int ``[n]``, the row of each text.
          out: Float32 ``[N, D]``; may be memory-mapped, as it is written a few rows at a time. Stored vectors of a
            width other than D are ignored.

        Returns:
          Bool ``[n]``, which texts are missing.
        """
        keys = _keys(texts)
        order = np.argsort(keys, kind="stable")
        wanted = keys[order]
        missing = np.ones(len(wanted), bool)
        for segment in self._segments(fingerprint):
            if not missing.any():
                break
            if segment.vectors.shape[1] != out.shape[1]:
                continue
            # The segment's keys are searched in the wanted ones: fast for few keys, and finds all rows of a text.
            first, last = (np.searchsorted(wanted, segment.keys, side) for side in ("left", "right"))
            stored = np.repeat(np.arange(len(segment.keys)), last - first)
            place = np.arange(len(stored)) + np.repeat(first - _before(last - first), last - first)
            new = missing[place]
            stored, place = stored[new], place[new]
            missing[place] = False
            for start in range(0, len(place), _ROWS):
                part = slice(start, start + _ROWS)
                out[rows[order[place[part]]]] = segment.vectors[stored[part]]
        unsorted = np.empty_like(missing)
        unsorted[order] = missing
        return unsorted

    def add(self, fingerprint: str, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Stores ``vectors`` (float ``[n, D]``) of ``texts`` as one segment, which is on disk when this returns.

        Raises:
          ValueError: The numbers of vectors and texts differ, or a vector is not finite.
          WriteError: The folder cannot be written.
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
        with (
            writing(self.folder, "The stored vectors are kept. TFLLMREC_CACHE names another cache."),
            replacing(self._folder_of(fingerprint) / f"{uuid.uuid4().hex}.safetensors") as fresh,
        ):
            save_file(arrays, fresh, {"crc32": str(checksum)})

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
    out: Path | None = None,
) -> np.ndarray:
    """Returns the vectors of ``texts``; encodes each distinct text that is not in the store once.

    Args:
      texts: N strings.
      encoder: A :class:`tfllmrec.text.encoder.TextEncoder`, or any object with its ``encode``, ``fingerprint`` and
        ``dim``. The vectors of several encoders are looked up and stored separately.
      store: The store for lookups and for new vectors; ``None`` for neither.
      progress: Called with (done, total) of the texts that are encoded; never if there are none.
      chunk: The number of texts that are encoded between two writes to the store, which is the most that can be lost.
      out: A ``.npy`` file for the vectors, which are then never in memory as a whole. It appears when it is complete.

    Returns:
      Float32 ``[N, D]``; with ``out``, this file, memory-mapped and read-only.

    Raises:
      WriteError: The store or ``out`` cannot be written.
    """
    if out is None:
        vectors = np.zeros((len(texts), encoder.dim), np.float32)
        _encode_into(vectors, texts, encoder, store, progress, chunk)
        return vectors
    with replacing(out) as fresh:
        shape = (len(texts), encoder.dim)
        if all(shape):
            mapped = np.lib.format.open_memmap(fresh, mode="w+", dtype=np.float32, shape=shape)
            reserve(fresh)
            _encode_into(mapped, texts, encoder, store, progress, chunk)
            mapped.flush()
        else:  # an empty array cannot be mapped
            with fresh.open("wb") as stream:
                np.save(stream, np.zeros(shape, np.float32))
    return read_vectors(out, len(texts), "encode the texts again")


def read_vectors(path: Path, rows: int, remedy: str) -> np.ndarray:
    """Opens a ``.npy`` file of vectors.

    Args:
      path: The file.
      rows: N, the number of vectors that it must have.
      remedy: What the error message advises if the file is damaged.

    Returns:
      Float32 ``[N, D]``, memory-mapped and read-only.

    Raises:
      ModelError: The file is missing or damaged, or has another number of vectors.
    """
    try:
        vectors = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError, MemoryError, OverflowError) as error:
        raise ModelError(f"{path} cannot be read ({error}): {remedy}.") from error
    if vectors.ndim != 2 or len(vectors) != rows or vectors.dtype != np.float32:
        raise ModelError(
            f"{path} is damaged: expected float32 [{rows}, D], found {vectors.dtype} {list(vectors.shape)}; {remedy}."
        )
    return vectors


def _encode_into(
    vectors: np.ndarray,
    texts: Sequence[str],
    encoder: _Encoder,
    store: VectorStore | None,
    progress: Progress | None,
    chunk: int,
) -> None:
    """Fills ``vectors`` (float32 ``[N, D]``, initially zero, memory-mapped or not)."""
    encoders = getattr(encoder, "encoders", (encoder,))
    if len(encoders) > 1:
        column = 0
        for each in encoders:
            _encode_into(vectors[:, column : column + each.dim], texts, each, store, progress, chunk)
            column += each.dim
        for row in range(0, len(vectors), _ROWS):
            vectors[row : row + _ROWS] *= np.float32(len(encoders) ** -0.5)
        return
    _, first_row, distinct = np.unique(_keys(texts), return_index=True, return_inverse=True)
    first = first_row[distinct]  # for each row, the first row with the same text
    todo = np.sort(first_row)
    if store is not None and len(todo):
        todo = todo[store.fill(encoder.fingerprint, [texts[row] for row in todo], todo, vectors)]
    # Texts of similar length are encoded together, the longest first, so that the time left is not underestimated.
    todo = todo[np.argsort([-len(texts[row]) for row in todo], kind="stable")]
    for start in range(0, len(todo), chunk):
        rows = todo[start : start + chunk]
        batch = [texts[row] for row in rows]
        vectors[rows] = came = encoder.encode(batch, _shifted(progress, start, len(todo)))
        if store is not None:
            store.add(encoder.fingerprint, batch, came)
    repeated = np.flatnonzero(first != np.arange(len(first)))
    for start in range(0, len(repeated), _ROWS):
        rows = repeated[start : start + _ROWS]
        vectors[rows] = vectors[first[rows]]


def _shifted(progress: Progress | None, start: int, total: int) -> Progress | None:
    """Returns the progress callback of a chunk that begins at text ``start``, which counts all texts."""
    return (lambda done, _: progress(start + done, total)) if progress else None


def _before(counts: np.ndarray) -> np.ndarray:
    """Returns the sum of all preceding counts for each count."""
    return np.cumsum(counts) - counts


def _keys(texts: Sequence[str]) -> np.ndarray:
    """Returns the first 16 bytes of each text's sha256, bytes ``[n]``."""
    # A lone surrogate has no UTF-8 form; encoders read it as a question mark, too.
    digests = b"".join(hashlib.sha256(text.encode(errors="replace")).digest()[:_KEY_BYTES] for text in texts)
    return np.frombuffer(digests, dtype=f"S{_KEY_BYTES}")


def _read(path: Path) -> _Segment:
    """Maps a segment into memory and verifies its checksum."""
    try:
        content = np.memmap(path, mode="r")
        start = 8 + int.from_bytes(content[:8].tobytes(), "little")
        header = json.loads(content[8:start].tobytes())
        arrays = {}
        for name, dtype in (("keys", np.uint8), ("vectors", np.float32)):
            first, last = header[name]["data_offsets"]
            arrays[name] = content[start + first : start + last].view(dtype).reshape(header[name]["shape"])
        expected = int(header["__metadata__"]["crc32"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise _Corrupt(f"its header cannot be read ({error!r})") from error
    came = zlib.crc32(arrays["vectors"].data, zlib.crc32(arrays["keys"].data))
    if came != expected:
        raise _Corrupt(f"expected checksum {expected}, got {came}")
    return _Segment(arrays["keys"].view(f"S{_KEY_BYTES}").reshape(-1), arrays["vectors"])
