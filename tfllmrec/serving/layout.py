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

import json
from pathlib import Path
from typing import Any

EXTRA = "assets.extra"
MANIFEST = "tfllmrec.json"
ITEMS = "items.parquet"
WARM_UP = "tf_serving_warmup_requests"  # TF Serving looks for this name


def read_manifest(version: Path) -> dict[str, Any]:
    """What an export says of itself.

    Raises:
      OSError, ValueError: there is none, or it is damaged.
    """
    return json.loads((version / EXTRA / MANIFEST).read_text())


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
