"""A result in a file, for measurements that take long and are looked at later."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tfllmrec.durable import reading_npz, replacing
from tfllmrec.evaluation.protocol import Result


def save_result(path: Path, result: Result) -> None:
    """Writes what :func:`load_result` reads: a result of one seed. The folder is made where it is missing.

    Raises:
      WriteError: the disk is full, read-only or broken.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {"metrics": result.metrics, "counts": result.counts, "alarms": result.alarms}
    with replacing(path) as fresh, fresh.open("wb") as stream:
        users = {} if result.users is None else {"users": result.users}
        known_array = np.array(json.dumps(known))
        np.savez_compressed(stream, allow_pickle=False, known=known_array, **users, **result.per_query)


def load_result(path: Path) -> Result:
    """A result of :func:`save_result`, without intervals.

    Raises:
      ModelError: the file is missing or damaged.
    """
    with reading_npz(path, "delete it, to measure again") as arrays:
        known = json.loads(str(arrays["known"]))
        users = arrays.get("users")
        per_query = {label: arrays[label] for label in arrays if label not in ("known", "users")}
    return Result(**known, intervals={}, per_query=per_query, users=users)
