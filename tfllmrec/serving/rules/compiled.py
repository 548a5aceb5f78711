"""The file format of the compiled rules of one version, which contain a value for each item and are read by the graph.

The file is gzip without compression, for the checksum that :func:`tf.io.decode_compressed` verifies. Its content is
:data:`MAGIC`, the SHA-256 of the catalogue's ids, the SHA-256 of the rules as they are stored beside the versions, the
sizes of the sections in bytes (int64 each), and the sections in the order of :data:`SECTIONS`; an empty section has no
effect. The file of a version without rules contains the text :data:`NO_RULES` instead. With any other content, requests
fail, so that a damaged file never shows hidden items.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfllmrec.errors import ConfigError, ModelError

#: The name of the file among a SavedModel's assets, and its content in a version without rules.
RULES, NO_RULES = "rules.bin", b"tfllmrec: no rules\n"
MAGIC = b"tfrules1"
DIGEST_BYTES = 32
#: Largest size of the content in bytes; each request reads all of it.
MOST_BYTES = 64 << 20

#: Fields of a request's context that rules read, in addition to those named by placements.
MAX_PRICE, AGE, REGION, NOW = CONTEXT_NAMES = ("max_price", "age", "region", "now")

#: The sections and the types of their values; ``bytes`` are texts separated by line breaks.
#:
#: hidden: ``[N]``, 1 for items that are never shown.
#: price: ``[N]``, infinity if unknown.
#: minimum_age: ``[N]``, 0 for none.
#: region_set: ``[N]``, the item's row of region_table.
#: region_table: 1 if the item may be shown, otherwise 0; a row for each set of regions; columns for requests without a
#:   region, for those with a region not in region_names, and for each of region_names.
#: shown_from, shown_until: ``[N]``, seconds since 1970.
#: sponsored_item, sponsored_place (from 0, ascending), sponsored_from, sponsored_until: one value per placement.
#: sponsored_share: one number.
#: match_placement, match_name, match_value: one value per field of the context that a placement requires.
SECTIONS: dict[str, type[np.generic] | type[bytes]] = {
    "hidden": np.uint8,
    "price": np.float64,
    "minimum_age": np.uint8,
    "region_set": np.int32,
    "region_table": np.uint8,
    "region_names": bytes,
    "shown_from": np.float64,
    "shown_until": np.float64,
    "sponsored_item": np.int32,
    "sponsored_place": np.int32,
    "sponsored_from": np.float64,
    "sponsored_until": np.float64,
    "sponsored_share": np.float64,
    "match_placement": np.int32,
    "match_name": bytes,
    "match_value": bytes,
}
HEADER_BYTES = len(MAGIC) + 2 * DIGEST_BYTES
SIZES_BYTES = 8 * len(SECTIONS)


def digest_of_ids(item_ids: Sequence[str]) -> bytes:
    """Returns the SHA-256 of the ids in their order, which identifies a catalogue."""
    digest = hashlib.sha256()
    for item in item_ids:
        digest.update(item.encode("utf-8", "surrogatepass") + b"\0")
    return digest.digest()


def packed(catalogue: bytes, rules: bytes, sections: dict[str, np.ndarray | Sequence[str]]) -> bytes:
    """Returns the bytes of a file of compiled rules.

    Args:
      catalogue: The SHA-256 of the catalogue's ids.
      rules: The SHA-256 of the stored rules.
      sections: The sections that have an effect, see :data:`SECTIONS`.

    Raises:
      ConfigError: The content is larger than :data:`MOST_BYTES`.
    """
    parts = [_bytes_of(sections[name], kind) if name in sections else b"" for name, kind in SECTIONS.items()]
    sizes = np.array([len(part) for part in parts], "<i8").tobytes()
    content = b"".join([MAGIC, catalogue, rules, sizes, *parts])
    if len(content) > MOST_BYTES:
        raise ConfigError(
            f"The compiled rules have {len(content):,} bytes; expected {MOST_BYTES:,} at most, because each request "
            "reads them: leave out the kinds of rules (price, fresh, regions) that few items need, and block these "
            "items."
        )
    return gzip.compress(content, compresslevel=0, mtime=0)


def _bytes_of(values: np.ndarray | Sequence[str], kind: type) -> bytes:
    if kind is bytes:
        return "\n".join(values).encode()
    return np.asarray(values, np.dtype(kind).newbyteorder("<")).tobytes()


def rules_digest(path: Path) -> bytes | None:
    """Returns the SHA-256 of the rules that a file was compiled from; ``None`` for a file without rules.

    Raises:
      ModelError: The file is missing, damaged, or not a file of rules.
    """
    try:
        stored = path.read_bytes()
        if stored == NO_RULES:
            return None
        content = gzip.decompress(stored)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ModelError(f"{path} cannot be read ({error}): {_REMEDY}") from error
    sizes = np.frombuffer(content[HEADER_BYTES : HEADER_BYTES + SIZES_BYTES], "<i8")
    whole = len(sizes) == len(SECTIONS) and len(content) == HEADER_BYTES + SIZES_BYTES + sizes.sum()
    if not content.startswith(MAGIC) or not whole:
        raise ModelError(f"{path} is not a complete file of compiled rules: {_REMEDY}")
    return content[HEADER_BYTES - DIGEST_BYTES : HEADER_BYTES]


def places_items(path: Path) -> bool:
    """Returns whether the rules in a file have sponsored items.

    Reads only the head of the file. ``False`` if the file is missing or damaged, because requests fail then.
    """
    try:
        with gzip.open(path) as content:
            head = content.read(HEADER_BYTES + SIZES_BYTES)
    except (OSError, EOFError, zlib.error):
        return False
    sizes = np.frombuffer(head[HEADER_BYTES:], "<i8")
    return len(sizes) == len(SECTIONS) and bool(sizes[list(SECTIONS).index("sponsored_item")])


_REMEDY = "requests fail until 'tfllmrec rules apply' or 'tfllmrec rules clear' has replaced it."
