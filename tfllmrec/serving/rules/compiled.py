"""The compiled rules of one version: tables with a value for each item, in one small file that the graph reads.

The file is gzip without compression, for the check sum that :func:`tf.io.decode_compressed` verifies. Its content is
:data:`MAGIC`, the SHA-256 of the catalogue's ids, the SHA-256 of the rules as they are stored beside the versions, the
sizes of the sections in bytes (int64 each), and the sections in the order of :data:`SECTIONS`; an empty section has no
effect. A version without rules has the text :data:`NO_RULES` in place of all that. Anything else makes requests fail,
so that no damaged file shows what the rules hide.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfllmrec.errors import ConfigError, ModelError

#: The file's name among a SavedModel's assets, and what a version without rules has in it.
RULES, NO_RULES = "rules.bin", b"tfllmrec: no rules\n"
MAGIC = b"tfrules1"
DIGEST_BYTES = 32
#: Bytes of the content: each request reads all of it.
MOST_BYTES = 64 << 20

#: Each section and the type of its values; ``bytes`` are texts with line breaks between them.
#:
#: hidden: ``[N]``, 1 for items that are never shown. price: ``[N]``, infinity where unknown. minimum_age: ``[N]``, 0
#: for none. region_set: ``[N]``, a row of the table. region_table: 0 or 1, a row for each set of regions and a column
#: for requests without a region, with another region, and with each of region_names. shown_from, shown_until: ``[N]``,
#: seconds. sponsored_item, sponsored_place (from 0 on, ascending), sponsored_from, sponsored_until: of each placement.
#: sponsored_share: one number. match_placement, match_name, match_value: of each field that a placement asks for.
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
    """What tells one catalogue from another: the SHA-256 of the ids in their order."""
    digest = hashlib.sha256()
    for item in item_ids:
        digest.update(item.encode("utf-8", "surrogatepass") + b"\0")
    return digest.digest()


def packed(catalogue: bytes, rules: bytes, sections: dict[str, np.ndarray | Sequence[str]]) -> bytes:
    """The content of a file.

    Args:
      catalogue, rules: SHA-256 of each.
      sections: those that have any effect, as :data:`SECTIONS` says.

    Raises:
      ConfigError: it would be larger than :data:`MOST_BYTES`.
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
    """The SHA-256 of the rules that a file was compiled from; ``None`` for a file without rules.

    Raises:
      ModelError: the file is missing, damaged, or no file of rules.
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
    """Whether the rules in a file have sponsored items; not if it is missing or damaged, because no request obeys it.

    Reads the head of the file alone.
    """
    try:
        with gzip.open(path) as content:
            head = content.read(HEADER_BYTES + SIZES_BYTES)
    except (OSError, EOFError, zlib.error):
        return False
    sizes = np.frombuffer(head[HEADER_BYTES:], "<i8")
    return len(sizes) == len(SECTIONS) and bool(sizes[list(SECTIONS).index("sponsored_item")])


_REMEDY = "requests fail until 'tfllmrec rules apply' or 'tfllmrec rules clear' has replaced it."
