"""Saves results in files and loads them, for measurements that take long."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tfllmrec.durable import reading_npz, replacing
from tfllmrec.evaluation.protocol import Result


def save_result(path: Path, result: Result) -> None:
    """Saves a result of one seed for :func:`load_result`; creates the folder if it is missing.

    Raises:
      WriteError: The disk is full, read-only or broken.
    """
    known = {"metrics": result.metrics, "counts": result.counts, "alarms": result.alarms}
    with replacing(path) as fresh, fresh.open("wb") as stream:
        users = {} if result.users is None else {"users": result.users}
        known_array = np.array(json.dumps(known))
        np.savez_compressed(stream, allow_pickle=False, known=known_array, **users, **result.per_query)


def load_result(path: Path) -> Result:
    """Loads a result that :func:`save_result` saved, without intervals.

    Raises:
      ModelError: The file is missing, damaged or of another version.
    """
    with reading_npz(path, "delete it, to measure again") as arrays:
        known = json.loads(str(arrays["known"]))
        users = arrays.get("users")
        per_query = {label: arrays[label] for label in arrays if label not in ("known", "users")}
        return Result(**known, intervals={}, per_query=per_query, users=users)
