"""The names of the files of an exported version.

They are not in :mod:`tfllmrec.serving.export`, because a server only needs the names, and that module imports the code
that trains models.

VERSION/
  saved_model.pb, variables/, assets/    written by TensorFlow
    assets/rules.bin                     the business rules, which :mod:`tfllmrec.serving.rules` replaces
  assets.extra/                          files that TensorFlow keeps with a model but does not read
    tfllmrec.json                        the manifest
    items.parquet                        ids, titles to show, categories, training events and strata, in the order of
                                         the ``score`` signature
    item_fields.parquet                  the other fields of the items, which rules select items by
    tf_serving_warmup_requests           requests that TF Serving sends to a version before it serves it
"""

from __future__ import annotations

import functools
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, NonNegativeInt

from tfllmrec.columns import ITEM
from tfllmrec.durable import read_json
from tfllmrec.errors import ModelError

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

EXTRA = "assets.extra"
MANIFEST = "tfllmrec.json"
ITEMS = "items.parquet"
ITEM_FIELDS = "item_fields.parquet"
ASSETS = "assets"
WARM_UP = "tf_serving_warmup_requests"  # the name that TF Serving looks for
#: Version numbers are int64 in TF Serving's messages.
LARGEST_VERSION = 2**63 - 1


_REMEDY = "export the run again"


class _Manifest(BaseModel, extra="allow"):
    """A manifest, of which only the keys that are read are checked.

    A server reads the numbers of items, the indexes and the texts.
    """

    class Index(BaseModel, extra="allow"):
        form: str

    class RunConfig(BaseModel, extra="allow"):
        class Evaluation(BaseModel, extra="allow"):
            head_share: float

        split: dict[str, Any]
        seed: int
        evaluation: Evaluation

    class Texts(BaseModel):
        fields: list[str]
        newest: NonNegativeInt

    items: NonNegativeInt = 0
    ranked: NonNegativeInt = 0
    indexes: dict[str, Index] = {}
    texts: Texts | None = None
    run: str = ""
    data_sha256: str = ""
    config: RunConfig | None = None


def read_manifest(version: Path) -> dict[str, Any]:
    """Returns the manifest of an exported version.

    Raises:
      ModelError: The manifest is missing or damaged.
    """
    return read_json(version / EXTRA / MANIFEST, _Manifest, _REMEDY).model_dump(exclude_unset=True)


def read_catalogue(version: Path) -> pd.DataFrame:
    """Returns the ids, titles, categories, training events and strata of the items of an exported version.

    Raises:
      ModelError: The table is missing or damaged.
    """
    path = version / EXTRA / ITEMS
    items = _read_table(path)
    if ITEM not in items or not items[ITEM].map(lambda item: isinstance(item, str)).all():
        raise ModelError(f"{path} is damaged (expected strings in the column {ITEM!r}): {_REMEDY}.")
    return items


def read_item_fields(version: Path) -> pd.DataFrame:
    """Returns the fields of the items of an exported version by name, in the order of :func:`read_catalogue`.

    Numbers and times are float64, NaN for none; categories with several names are lists; other values are texts.

    Raises:
      ModelError: The table is missing or damaged.
    """
    return _read_table(version / EXTRA / ITEM_FIELDS)


def _read_table(path: Path) -> pd.DataFrame:
    import pandas as pd  # not at the top: a server reads no tables, and starts faster without pandas

    try:
        return pd.read_parquet(path)
    except Exception as error:  # pyarrow raises nearly anything on a damaged file
        raise ModelError(f"{path} cannot be read ({error}): {_REMEDY}.") from error


def has_scann(manifest: dict[str, Any]) -> bool:
    """Returns whether an export contains operations of ScaNN, which must be registered before it is loaded."""
    return any(index["form"] == "scann" for index in manifest.get("indexes", {}).values())


def version_folders(base: Path) -> dict[int, Path]:
    """Returns the version folders in ``base`` by number, in ascending order.

    The name of a version folder is a number from 0 to ``LARGEST_VERSION`` in ASCII digits. Leading zeros are allowed;
    if several folders have the same number (``1`` and ``01``), the one with the shortest name counts. Other entries
    that look like a version (a file ``3``, a folder ``-1``) are ignored, with a warning the first time.

    Raises:
      OSError: ``base`` cannot be read.
    """
    folders: dict[int, Path] = {}
    for entry in sorted(base.iterdir(), key=lambda entry: (len(entry.name), entry.name)):
        if not re.fullmatch(r"[+-]?\d+", entry.name):
            continue
        if not (entry.name.isascii() and entry.name.isdigit()):
            ignore(entry, "expected a version number in the digits 0 to 9, without a sign")
        elif (number := int(entry.name)) > LARGEST_VERSION:
            ignore(entry, f"expected a version number of at most {LARGEST_VERSION} (int64)")
        elif not entry.is_dir():
            ignore(entry, "expected a version folder, found a file")
        elif number in folders:
            ignore(entry, f"{folders[number].name} beside it is version {number} too")
        else:
            folders[number] = entry
    return dict(sorted(folders.items()))


@functools.cache  # so that there is one warning, although servers read their folders every second
def ignore(path: Path, why: str) -> None:
    """Warns that a file or folder is ignored; a second call with the same arguments does nothing."""
    logger.warning("%s is ignored: %s", path, why)
