"""A graph of the catalogue's items: named relations with weighted, undirected edges, read from tables and files.

:mod:`tfllmrec.models.graph` adds the relations that need vectors or events, and builds the whole graph.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field
from scipy import sparse

from tfllmrec.config import DataConfig
from tfllmrec.data.cleaning.names import category_names
from tfllmrec.data.files.tables import read_table
from tfllmrec.durable import read_json, replacing, write_folder
from tfllmrec.errors import DataError, ModelError
from tfllmrec.progress import Tell, to_stderr
from tfllmrec.wording import nearest_hint, shown

#: The origin of an edge: *text*: similar vectors; *use*: the same users; *value*: the same value of a column or of a
#: triple; *link*: a row of a file that names both items.
Kind = Literal["text", "use", "value", "link"]

EDGES, MANIFEST = "edges.parquet", "graph.json"
REMEDY = "copy it back, build it again with 'tfllmrec graph RUN', or, if the model was fitted with it, fit again"
#: The largest number of relations in a graph: the bits of an int64 store which of them join two items.
MOST_RELATIONS = 62
#: The largest number of items that a value may join. A more frequent value tells little, and would give each of its
#: items that many edges.
LARGEST_GROUP = 500
#: The kinds of relations that a model reads. *use* is not among them: the model already learns from events which items
#: are used together, and *use* contains events that are held out when the gates are fitted.
READ: tuple[Kind, ...] = ("text", "value", "link")
#: Characters that XML 1.0 cannot contain, not even escaped, and their replacement.
_NOT_XML = dict.fromkeys([*range(9), 11, 12, *range(14, 32), 0xFFFE, 0xFFFF, *range(0xD800, 0xE000)], "\ufffd")


@dataclass(frozen=True, eq=False)
class Relation:
    """The edges of one relation.

    Attributes:
      name: Name, such as ``text``, ``author`` or ``cites``.
      kind: The origin of the edges.
      heads: Int32 ``[E]``, the first item of each edge. Each pair of items occurs once, in ascending order.
      tails: Int32 ``[E]``, the second item of each edge, with ``head < tail``.
      weights: Float32 ``[E]`` in (0, 1]; the strongest edge has 1.
    """

    name: str
    kind: Kind
    heads: np.ndarray
    tails: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, name: str, kind: Kind, pairs: sparse.coo_array, neighbours: int, mutual: bool = False) -> Relation:
        """Creates a relation from the strongest edges of each item, with scaled weights.

        Args:
          name: Name of the relation.
          kind: The origin of the edges.
          pairs: ``[N, N]``, weights from row to column. Weights of 0 or below and edges from an item to itself are left
            out. Of the two weights of a pair the larger one counts.
          neighbours: K. An edge is kept if it is among the K strongest of its head or of its tail; equal weights are
            ranked in the order of the items.
          mutual: Whether an edge must be among the K strongest of both.
        """
        rows, columns = pairs.coords
        real = (rows != columns) & (pairs.data > 0)
        rows, columns, weights = rows[real].astype(np.int64), columns[real].astype(np.int64), pairs.data[real]
        n_items = pairs.shape[0]
        key = np.minimum(rows, columns) * n_items + np.maximum(rows, columns)
        key, place = np.unique(key, return_inverse=True)
        strongest = np.zeros(len(key), np.float32)
        np.maximum.at(strongest, place, weights.astype(np.float32))
        heads, tails = key // n_items, key % n_items
        among = _among_strongest(heads, tails, strongest, neighbours)
        kept = among[0] & among[1] if mutual else among[0] | among[1]
        weights = strongest[kept] / max(float(strongest[kept].max(initial=0)), np.finfo(np.float32).tiny)
        return cls(name, kind, heads[kept].astype(np.int32), tails[kept].astype(np.int32), weights)

    def __len__(self) -> int:
        return len(self.heads)

    @property
    def n_joined(self) -> int:
        """The number of items with an edge."""
        return len(np.unique(np.concatenate([self.heads, self.tails])))

    @property
    def words(self) -> str:
        """The name shown to people: ``similar text``, ``same author``, or the name of the relation."""
        fixed = {"text": "similar text", "use": "often used together"}
        plain = self.name.replace("_", " ")
        return fixed.get(self.kind, f"same {plain}" if self.kind == "value" else plain)


def _among_strongest(heads: np.ndarray, tails: np.ndarray, weights: np.ndarray, neighbours: int) -> np.ndarray:
    """Returns whether each edge is among the ``neighbours`` strongest of its head, and of its tail: bool ``[2, E]``."""
    ends, others = np.concatenate([heads, tails]), np.concatenate([tails, heads])
    kept = np.zeros(len(ends), bool)
    kept[strongest_of_rows(ends, others, np.concatenate([weights, weights]), neighbours)] = True
    return kept.reshape(2, -1)


def strongest_of_rows(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, kept: int) -> np.ndarray:
    """Returns the positions of the ``kept`` largest ``values`` [E] of each row, row by row; equal values by column."""
    order = np.lexsort((columns, -values, rows))
    ordered = rows[order]
    return order[np.arange(len(order)) - np.searchsorted(ordered, ordered) < kept]


@dataclass(frozen=True, eq=False)
class ItemGraph:
    """The relations between N items.

    Attributes:
      n_items: The number of items N.
      relations: The relations that have edges; each name occurs once.
    """

    n_items: int
    relations: tuple[Relation, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the number of items and of the relations with their edges."""
        digest = hashlib.sha256(f"{self.n_items} items".encode())
        for each in self.relations:
            digest.update(f"\n{each.kind} {len(each)} {each.name}\n".encode())
            for values in (each.heads, each.tails, each.weights):
                digest.update(values.tobytes())
        return digest.hexdigest()

    def adjacency(self, kinds: Collection[Kind] | None = None) -> sparse.csr_array:
        """Returns the sum of the weights of the relations: symmetric float32 ``[N, N]``.

        Args:
          kinds: The kinds of relations to include; ``None`` for all.
        """
        chosen = [each for each in self.relations if kinds is None or each.kind in kinds]
        shape = (self.n_items, self.n_items)
        rows = np.concatenate([np.empty(0, np.int32), *(each.heads for each in chosen)])
        columns = np.concatenate([np.empty(0, np.int32), *(each.tails for each in chosen)])
        weights = np.concatenate([np.empty(0, np.float32), *(each.weights for each in chosen)])
        half = sparse.coo_array((weights, (rows, columns)), shape=shape).tocsr()
        return (half + half.T).tocsr()

    def lines(self) -> list[str]:
        """Returns a readable line for each relation."""
        return [
            f"{each.name} ({each.kind}): {len(each):,} edges, {each.n_joined:,} of {self.n_items:,} items"
            for each in self.relations
        ]

    def save(self, folder: Path) -> None:
        """Writes ``edges.parquet`` (head, tail, relation, weight; items by their index) and ``graph.json``.

        Raises:
          WriteError: The disk is full, read-only or broken; a graph that was saved there before is unchanged.
        """

        def write(fresh: Path) -> None:
            fresh.mkdir()
            self.frame().to_parquet(fresh / EDGES, index=False)
            relations = [{"name": each.name, "kind": each.kind, "edges": len(each)} for each in self.relations]
            manifest = json.dumps({"items": self.n_items, "relations": relations}, indent=1)
            (fresh / MANIFEST).write_text(manifest, encoding="utf-8")

        write_folder(folder, write, replace=True)

    @classmethod
    def load(cls, folder: Path) -> ItemGraph:
        """Reads a graph that :meth:`save` wrote.

        Raises:
          ModelError: A file is missing or damaged.
        """
        about = read_json(folder / MANIFEST, _Manifest, REMEDY)
        try:
            frame = pd.read_parquet(folder / EDGES)
            relations = []
            for each in about.relations:
                own = frame[frame["relation"] == each.name]
                heads, tails = own["head"].to_numpy(np.int32), own["tail"].to_numpy(np.int32)
                if len(own) != each.edges or ((heads < 0) | (tails <= heads) | (tails >= about.items)).any():
                    raise ValueError(f"edges of {each.name}")
                relations.append(Relation(each.name, each.kind, heads, tails, own["weight"].to_numpy(np.float32)))
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).partition("\n")[0]
            raise ModelError(f"{folder / EDGES} cannot be read ({reason}): {REMEDY}.") from error
        return cls(about.items, tuple(relations))

    def frame(self) -> pd.DataFrame:
        """Returns all edges as a table with the columns ``head``, ``tail``, ``relation`` and ``weight``."""
        names = [each.name for each in self.relations]
        codes = np.repeat(np.arange(len(names)), [len(each) for each in self.relations])
        empty = np.empty(0, np.int32)
        return pd.DataFrame(
            {
                "head": np.concatenate([empty, *(each.heads for each in self.relations)]),
                "tail": np.concatenate([empty, *(each.tails for each in self.relations)]),
                "relation": np.asarray(names, object)[codes],
                "weight": np.concatenate([np.empty(0, np.float32), *(each.weights for each in self.relations)]),
            }
        )

    def strongest(self, neighbours: int) -> Neighbours:
        """Returns the strongest neighbours of each item, over all relations.

        Args:
          neighbours: The largest number of neighbours of an item.
        """
        total = self.adjacency()
        rows = np.repeat(np.arange(self.n_items), np.diff(total.indptr))
        order = strongest_of_rows(rows, total.indices, total.data, neighbours)
        counts = np.minimum(np.diff(total.indptr), neighbours)
        return Neighbours(
            np.concatenate([[0], np.cumsum(counts)]),
            total.indices[order].astype(np.int32),
            total.data[order],
            self._sets(rows[order], total.indices[order]),
            tuple(each.words for each in self.relations),
        )

    def _sets(self, heads: np.ndarray, tails: np.ndarray) -> np.ndarray:
        """Returns which relations join each pair: int64 ``[E]``, with one bit for each relation."""
        asked = np.minimum(heads, tails).astype(np.int64) * self.n_items + np.maximum(heads, tails)
        sets = np.zeros(len(asked), np.int64)
        for bit, each in enumerate(self.relations):
            sets |= np.isin(asked, each.heads.astype(np.int64) * self.n_items + each.tails).astype(np.int64) << bit
        return sets

    def write_graphml(self, path: Path, ids: Sequence[str], titles: Sequence[str]) -> None:
        """Writes the graph as GraphML, which Gephi, Cytoscape, yEd and networkx read.

        Nodes are the item ids with their ``title``; edges have ``relation`` and ``weight``. Characters that XML cannot
        contain are replaced by U+FFFD.

        Raises:
          WriteError: The disk is full, read-only or broken; ``path`` is unchanged.
        """

        def quoted(text: str) -> str:
            return quoteattr(str(text).translate(_NOT_XML))

        def content(text: str) -> str:
            return escape(str(text).translate(_NOT_XML), {"\r": "&#13;"})

        with replacing(path) as fresh, fresh.open("w", encoding="utf-8") as out:
            out.write(
                '<?xml version="1.0" encoding="UTF-8"?>\n<graphml xmlns="http://graphml.graphdrawing.org/xmlns">\n'
                '<key id="title" for="node" attr.name="title" attr.type="string"/>\n'
                '<key id="relation" for="edge" attr.name="relation" attr.type="string"/>\n'
                '<key id="weight" for="edge" attr.name="weight" attr.type="double"/>\n'
                '<graph edgedefault="undirected">\n'
            )
            nodes = [quoted(item) for item in ids]
            for node, title in zip(nodes, titles, strict=True):
                out.write(f'<node id={node}><data key="title">{content(title)}</data></node>\n')
            for each in self.relations:
                name = content(each.name)
                for head, tail, weight in zip(each.heads, each.tails, each.weights, strict=True):
                    out.write(
                        f'<edge source={nodes[head]} target={nodes[tail]}><data key="relation">{name}</data>'
                        f'<data key="weight">{weight:.6g}</data></edge>\n'
                    )
            out.write("</graph>\n</graphml>\n")


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The neighbours of each item, strongest first.

    Attributes:
      offsets: Int64 ``[N + 1]``; the neighbours of item i are ``items[offsets[i]:offsets[i + 1]]``.
      items: Int32 ``[E]``, the neighbours.
      weights: Float32 ``[E]``, the sum of the weights over the relations.
      sets: Int64 ``[E]``; bit r is set if relation r joins the two items.
      names: Names of the relations, as shown to people.
    """

    offsets: np.ndarray
    items: np.ndarray
    weights: np.ndarray
    sets: np.ndarray
    names: tuple[str, ...]

    def words(self) -> tuple[list[str], np.ndarray]:
        """Describes which relations join two items, in words.

        Returns:
          The distinct descriptions, and for each edge the index of its description, int32 ``[E]``.
        """
        different, place = np.unique(self.sets, return_inverse=True)
        words = [", ".join(name for bit, name in enumerate(self.names) if held >> bit & 1) for held in different]
        return words, place.astype(np.int32)


class _Relation(BaseModel):
    name: str
    kind: Kind
    edges: int = Field(ge=0)


class _Manifest(BaseModel):
    """The content of ``graph.json``."""

    items: int = Field(ge=0)
    relations: list[_Relation] = Field(max_length=MOST_RELATIONS)


def shared_values(name: str, cells: Sequence[str], neighbours: int, last_only: bool = False) -> Relation:
    """Returns the relation between items that share a value of a column: the same author, director or series.

    A value of g items joins each two of them with weight ``1 / log2(g)``, so popular values count less. Weights of
    several shared values are added. Values of only one item, or of more than :data:`LARGEST_GROUP`, join nothing.

    Args:
      name: Name of the relation.
      cells: A clean cell for each item, see :func:`tfllmrec.data.cleaning.names.category_names`.
      neighbours: As in :meth:`Relation.of`.
      last_only: Whether only the last name of a cell counts, as for a path of categories.
    """
    rows, values = [], []
    for item, cell in enumerate(cells):
        names = category_names(cell)[-1 if last_only else 0 :]
        rows += [item] * len(names)
        values += names
    pairs, _ = _same_values(np.asarray(rows, np.int64), np.asarray(values, object), len(cells))
    return Relation.of(name, "value", pairs, neighbours)


def _same_values(rows: np.ndarray, values: np.ndarray, n_items: int) -> tuple[sparse.coo_array, np.ndarray]:
    """Joins those of the items ``rows`` [V] that have equal ``values`` [V].

    Returns:
      The weights of the pairs, sparse ``[N, N]``; and the number of items that have each value, ``[V]``.
    """
    codes, _ = pd.factorize(values)
    groups = sparse.coo_array(
        (np.ones(len(rows), np.float32), (rows, codes)), shape=(n_items, int(codes.max(initial=-1)) + 1)
    ).tocsr()
    groups.data[:] = 1
    sizes = groups.sum(axis=0)
    kept = (sizes > 1) & (sizes <= LARGEST_GROUP)
    groups, weights = groups[:, kept], sparse.diags_array((1 / np.log2(sizes[kept])).astype(np.float32))
    return (groups @ weights @ groups.T).tocoo(), sizes[codes]


def edges_of_file(
    path: Path, item_ids: Sequence[str], config: DataConfig, neighbours: int, tell: Tell = to_stderr
) -> list[Relation]:
    """Reads the relations from a file of triples or pairs.

    The columns are ``head``, ``relation``, ``tail`` and optionally ``weight``; without ``relation`` all rows belong to
    the relation ``link``. If both ends of a row are items, the row is an edge. If only one end is an item, the other
    end is a value (a person, a subject), and items that share it are joined as by :func:`shared_values`. Other rows,
    and values that join nothing, have no effect.

    Args:
      path: A table in any format in which events are read.
      item_ids: The item ids of the catalogue, in its order.
      config: The ``data`` section, for its limits and encoding.
      neighbours: As in :meth:`Relation.of`.
      tell: Called with a line that counts the rows without effect, by reason, and with the findings of the reading.

    Raises:
      DataError: The file cannot be read, lacks a column, names no item, or has a weight that is not a number above 0.
    """
    raw = read_table(path, "edges", config)
    frame = raw.frame
    found = list(map(str, frame.columns))
    if missing := [f"{name}{nearest_hint(name, found)}" for name in ("head", "tail") if name not in found]:
        raise DataError(
            f"{path}: expected the columns head, relation, tail and optionally weight, found {', '.join(found)}; "
            f"{' and '.join(missing)} missing. Rename the columns."
        )
    ids, ends = pd.Index(item_ids), [frame[name].fillna("").astype(str) for name in ("head", "tail")]
    head, tail = (ids.get_indexer(pd.Index(end)) for end in ends)
    if not ((head >= 0) | (tail >= 0)).any():
        example = f"{ends[0].iloc[0]!r} and {ends[1].iloc[0]!r}" if len(frame) else "no rows"
        raise DataError(
            f"{path}: expected item ids of the catalogue among head and tail, found none ({example}). Write the ids as "
            f"the catalogue does, such as {str(item_ids[0]) if len(item_ids) else ''!r}."
        )
    weights = np.ones(len(frame), np.float32)
    if "weight" in frame:
        weights = pd.to_numeric(frame["weight"], errors="coerce").to_numpy(np.float32)
        wrong = ~(np.isfinite(weights) & (weights > 0))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise DataError(
                f"{path}: expected a weight above 0, found {frame['weight'].iloc[row]!r} in row {row + 1}. Leave out "
                "rows that join nothing."
            )
    names = np.full(len(frame), "link", object)
    if "relation" in frame:
        named = frame["relation"].fillna("").astype(str).to_numpy(object)
        names = np.where(named == "", names, named)
    n_items, relations = len(item_ids), []
    values, known = np.where(head >= 0, ends[1], ends[0]), np.maximum(head, tail)
    linked, single = (head >= 0) & (tail >= 0), (head >= 0) != (tail >= 0)
    shared = single & (values != "")
    sizes = np.zeros(len(frame), np.int64)
    for name in dict.fromkeys(names):
        own, joined = (names == name) & linked, (names == name) & shared
        # For repeated rows the largest weight counts, as it does for the two directions of a pair.
        links = pd.DataFrame({"head": head[own], "tail": tail[own], "weight": weights[own]})
        links = links.groupby(["head", "tail"], as_index=False).max()
        places = (links["head"].to_numpy(), links["tail"].to_numpy())
        pairs = sparse.coo_array((links["weight"].to_numpy(), places), shape=(n_items, n_items)).tocsr()
        alike, sizes[joined] = _same_values(known[joined], values[joined], n_items)
        pairs = (pairs + alike.tocsr()).tocoo()
        relations.append(Relation.of(name, "link" if own.any() else "value", pairs, neighbours))
    without_effect = {
        "no item of the catalogue": known < 0,
        "an item alone": single & ~shared,
        "the same item twice": linked & (head == tail),
        "a value of one item only": sizes == 1,
        f"a value of more than {LARGEST_GROUP} items": sizes > LARGEST_GROUP,
    }
    for finding in raw.findings:
        tell(str(finding))
    if counts := {why: int(rows.sum()) for why, rows in without_effect.items() if rows.any()}:
        first = {why: [shown(end.iloc[np.argmax(without_effect[why])]) for end in ends] for why in counts}
        said = [f"{count:,} with {why} (first: {', '.join(first[why])})" for why, count in counts.items()]
        tell(f"{path.name}: {sum(counts.values()):,} of {len(frame):,} rows join nothing: {'; '.join(said)}")
    return relations
