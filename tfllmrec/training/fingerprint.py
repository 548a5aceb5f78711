"""Fingerprints of data, so that a fit never resumes from the files of another experiment."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from tfllmrec.data.queries import Queries, Ragged


def fingerprint(*arrays: np.ndarray) -> str:
    """Returns the SHA-256 (hex) of the types, shapes and values of arrays of numbers or strings."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        if array.dtype == object:
            for text in array.ravel():
                digest.update(f"{len(text)} {text}".encode(errors="replace"))
        else:
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def queries_fingerprint(queries: Queries, keys: Iterable[str] = ()) -> str:
    """Returns the :func:`fingerprint` of histories, ratings, exclusions and targets, and of the fields ``keys``."""
    parts = (queries.history, queries.ratings, queries.exclude, queries.targets)
    fields = [queries.fields[key] for key in keys]
    return fingerprint(
        *(array for part in parts for array in (part.values, part.offsets)),
        *(field.values if isinstance(field, Ragged) else field for field in fields),
    )
