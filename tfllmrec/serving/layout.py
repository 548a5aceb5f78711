"""What the files of an exported version are called.

Apart from :mod:`tfllmrec.serving.export`, which loads what trained the model: a server only needs the names.

VERSION/
  saved_model.pb, variables/, assets/    what TensorFlow wrote
  assets.extra/                          what TensorFlow keeps with a model and does not read
    tfllmrec.json                        the manifest
    items.parquet                        ids, titles to show and categories, in the order of the ``score`` signature
    tf_serving_warmup_requests           what TF Serving asks a version before it serves it
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel

from tfllmrec.columns import ITEM
from tfllmrec.durable import read_json
from tfllmrec.errors import ModelError

EXTRA = "assets.extra"
MANIFEST = "tfllmrec.json"
ITEMS = "items.parquet"
WARM_UP = "tf_serving_warmup_requests"  # TF Serving looks for this name


_REMEDY = "export the run again"


class _Manifest(BaseModel):
    """The keys of a manifest that are read. A server needs only the indexes, which older exports lack."""

    class Index(BaseModel):
        form: str

    class Config(BaseModel):
        class Evaluation(BaseModel):
            head_share: float

        split: dict[str, Any]
        seed: int
        evaluation: Evaluation

    indexes: dict[str, Index] = {}
    run: str = ""
    data_sha256: str = ""
    config: Config | None = None


def read_manifest(version: Path) -> dict[str, Any]:
    """The manifest of an export.

    Raises:
      ModelError: it is missing or damaged.
    """
    path = version / EXTRA / MANIFEST
    read_json(path, _Manifest, _REMEDY)
    return read_json(path, dict[str, Any], _REMEDY)


def read_catalogue(version: Path) -> pd.DataFrame:
    """The ids, titles and categories of an export's items.

    Raises:
      ModelError: the table is missing or damaged.
    """
    path = version / EXTRA / ITEMS
    try:
        items = pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's are ValueErrors
        raise ModelError(f"{path} cannot be read ({error}): {_REMEDY}.") from error
    if ITEM not in items or not items[ITEM].map(lambda item: isinstance(item, str)).all():
        raise ModelError(f"{path} is damaged (expected strings in the column {ITEM!r}): {_REMEDY}.")
    return items


def has_scann(manifest: dict[str, Any]) -> bool:
    """Whether an export has operations of ScaNN's, which a process must know before it loads it."""
    return any(index["form"] == "scann" for index in manifest.get("indexes", {}).values())


def version_folders(base: Path) -> dict[int, Path]:
    """The folders in ``base`` whose name is a number.

    Raises:
      OSError: ``base`` cannot be read.
    """
    return {
        int(folder.name): folder
        for folder in base.iterdir()
        if folder.name.isascii() and folder.name.isdigit() and folder.is_dir()
    }
