"""Measures how much each use of an item graph helps and how long it takes to build; writes sections of RESULTS.md.

    python benchmarks/graph.py runs/quality/movielens-100k --edges ml-100k.csv
    python benchmarks/graph.py runs/quality/movielens-100k --fit
    python benchmarks/graph.py --citeulike ../shared/data/citeulike-a
    python benchmarks/graph.py --recbole ml-100k.kg ml-100k.link --out ml-100k.csv
    python benchmarks/graph.py --items 1000000

With --fit, the hybrid of a run is trained again without a graph and with each use of it: item vectors that include
those of their neighbours (in two forms), and the graph as a view of the item-item weights. Each training takes as long
as the run's did. Finished fits are stored in RUN/ablation/; delete them to fit again.

Without --fit, nothing is trained, and three uses are measured separately: text vectors that are smoothed over the
graph, as input of the text baseline and of the item-item weights; the graph as a view of the item-item weights; and the
neighbours of the items in the history, added to the text baseline. The relations, the share of the neighbours' text and
the strength of the view are chosen on validation queries; the choice is then measured once on test queries and compared
with no graph.

With --items, measures the time and memory of building a graph of synthetic items, and those of ScaNN (extra scann) for
the relation of texts.
"""

from __future__ import annotations

import argparse
import gzip
import multiprocessing
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from item_weights import Clock
from scipy import sparse
from sections import made_by, replace_section

from tfllmrec.assets import cache_folder
from tfllmrec.config import DataConfig, GraphConfig, ItemWeightSettings, SplitConfig, TextConfig
from tfllmrec.data.graph import ItemGraph, Relation
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.readers import read_dataset
from tfllmrec.data.schema import Field
from tfllmrec.data.splits import make_split
from tfllmrec.evaluation.protocol import Result, evaluate, paired_differences, selection_gain, selection_value
from tfllmrec.evaluation.recommender import Recommender
from tfllmrec.evaluation.report import markdown_table
from tfllmrec.models.baselines import fit_baseline
from tfllmrec.models.fitting import TrainingData
from tfllmrec.models.graph import build_graph, similarity_of, text_relation, use_relation, view_of
from tfllmrec.models.item_weights import PrunedWeights, event_weights, recency_matrix, score_history, solve
from tfllmrec.progress import peak_memory_mb, to_stderr
from tfllmrec.runs.run import ABLATION, Run
from tfllmrec.runs.search_space import with_settings
from tfllmrec.text.centring import centred_unit
from tfllmrec.training.fit import fit_hybrid
from tfllmrec.training.item_weight_search import item_weights_value, starting_item_weights

SEED = 42
SHARES, STRENGTHS, STEPS = (0.3, 0.6, 0.9), (10.0, 100.0, 1000.0), 2
NEAR = (0.1, 0.3, 1.0)
TEXTS = (30.0, 300.0, 3000.0)
LABELS = ("ndcg@10", "recall@10", "recall@10/tail", "recall@10/cold")
MIN_TARGETS, EVENTS_PER_ITEM, NEIGHBOURS = 20, 10, 20
#: The settings of a fit without the graph, and of a fit for each use of it. Strengths are fixed, not chosen.
NO_GRAPH = {"model.propagation": "none", "item_weights.graph": 0.0}
FITTED: dict[str, dict[str, object]] = {
    "item vectors of neighbours, lightgcn": {"model.propagation": "lightgcn"},
    "item vectors of neighbours, relations": {"model.propagation": "relations"},
    "view of the item-item weights, strength 30": {"item_weights.graph": 30.0},
}


class Text:
    """The text baseline with the given vectors in place of those of the data."""

    def __init__(self, baseline: Recommender, vectors: np.ndarray) -> None:
        self.baseline, self.vectors = baseline, vectors

    def score(self, queries: Queries) -> np.ndarray:
        before, self.baseline.vectors = self.baseline.vectors, self.vectors  # type: ignore[attr-defined]
        try:
            return self.baseline.score(queries)
        finally:
            self.baseline.vectors = before  # type: ignore[attr-defined]


class Near:
    """The text baseline plus ``weight`` times the product of the history, weighted by recency, and the graph's view."""

    def __init__(self, baseline: Recommender, view: sparse.csr_array, weight: float) -> None:
        self.baseline, self.view, self.weight = baseline, view, weight

    def score(self, queries: Queries) -> np.ndarray:
        decay = self.baseline.decay  # type: ignore[attr-defined]
        near = (recency_matrix(queries.choices, self.view.shape[0], decay) @ self.view).toarray()
        return self.baseline.score(queries) + np.float32(self.weight) * near


class Weights:
    """Item-item weights as a recommender."""

    def __init__(self, weights: PrunedWeights, settings: ItemWeightSettings, kind: Field | None) -> None:
        self.weights, self.settings, self.kind = weights, settings.settled(), kind

    def score(self, queries: Queries) -> np.ndarray:
        assert self.settings.decay is not None
        of_events = event_weights(queries, self.settings, self.kind)
        return score_history(queries.history, self.weights, self.settings.decay, of_events)


def variants(graph: ItemGraph) -> Iterator[tuple[str, sparse.csr_array]]:
    """Yields the name and adjacency matrix of each kind of relation, and of all together if there are several."""
    kinds = list(dict.fromkeys(each.kind for each in graph.relations))
    for kind in kinds:
        yield kind, graph.adjacency([kind])
    if len(kinds) > 1:
        yield "all", graph.adjacency()


def smoothed(vectors: np.ndarray, adjacency: sparse.csr_array, share: float, steps: int = STEPS) -> np.ndarray:
    """Mixes vectors with those of their neighbours: ``x <- (1 - share) x_0 + share D^-1 A x``, then scales to length 1.

    This is personalized propagation with restart (Gasteiger et al., "Predict then Propagate", ICLR 2019, eq. 4-5, with
    row normalization). An item without text gets the texts of its neighbours. An item without neighbours keeps its own.

    Args:
      vectors: Text vectors, float32 ``[N, D]``.
      adjacency: Weights of the edges, ``[N, N]``, not below 0.
      share: Share of the neighbours, 0 to 1.
      steps: Number of edges that a text travels.
    """
    degree = np.asarray(adjacency.sum(axis=1)).ravel()
    mean = sparse.diags_array(np.divide(1, degree, out=np.zeros_like(degree), where=degree > 0)) @ adjacency
    own = np.where(degree > 0, 1 - share, 1.0).astype(np.float32)[:, np.newaxis]
    out = vectors
    for _ in range(steps):
        out = own * vectors + np.float32(share) * (mean @ out)
    length = np.linalg.norm(out, axis=1, keepdims=True)
    return np.divide(out, length, out=np.zeros(out.shape, np.float32), where=length > 0, casting="same_kind")


def measured(data: TrainingData, settings: ItemWeightSettings, graph: ItemGraph) -> list[list[str]]:
    """Returns a row for each use of the graph, and one for each recommender without it."""
    text = fit_baseline(data, "text").model
    statistics, unit = data.item_weight_statistics(settings), data.unit_text

    def weights(vectors: np.ndarray, view: sparse.csr_array | None = None, strength: float = 0.0) -> Weights:
        used = settings.model_copy(update={"graph": strength})
        return Weights(solve(statistics, used, vectors, view), used, data.split.schema.kind_of_event)

    texts = {
        f"{name}, share {share:g}": partial(smoothed, unit, adjacency, share)
        for name, adjacency in variants(graph)
        for share in SHARES
    }
    mixed = {name: lambda make=make: Text(text, make()) for name, make in texts.items()}
    near = {
        f"{name}, weight {weight:g}": partial(Near, text, similarity_of(adjacency), weight)
        for name, adjacency in variants(graph)
        for weight in NEAR
    }
    rows = used("text baseline", data, lambda: text, mixed, "smooth")
    rows += used("text baseline", data, lambda: text, near, "near")[1:]
    whole = {
        name: lambda make=make: weights(make())
        for name, make in texts.items()
        if name.startswith("all") or len(graph.relations) == 1
    }
    plain = partial(weights, unit)
    rows += used("item-item weights", data, plain, whole, "smooth")
    view = view_of(graph)
    viewed = {f"strength {strength:g}": partial(weights, unit, view, strength) for strength in STRENGTHS}
    return rows + used("item-item weights", data, plain, viewed, "view")[1:]


def used(
    name: str,
    data: TrainingData,
    plain: Callable[[], Recommender],
    tries: dict[str, Callable[[], Recommender]],
    use: str,
) -> list[list[str]]:
    """Returns the row of a recommender without the graph and that of the try that is best on validation queries."""
    without = plain()
    base = data.measure(without)
    results: dict[str, Result] = {}
    for key, make in tries.items():
        results[key] = data.measure(make())
        to_stderr(f"{name}, {use}: {key}: {selection_value(results[key]):.4f} (without {selection_value(base):.4f})")
    best = max(results, key=lambda key: selection_value(results[key]))
    gain = selection_gain(results[best], base, confidence=1 - 0.05 / len(tries))
    strata = data.strata

    def on_test(model: Recommender) -> Result:
        return evaluate(model, data.split.test, train_counts=data.split.train_counts, strata=strata, ks=(10,))

    before, after = on_test(without), on_test(tries[best]())
    shown = [label for label in LABELS if enough(before, label)]
    gains = paired_differences(after, before, shown)

    def cells(result: Result, differences: bool) -> list[str]:
        return [
            "-"
            if label not in shown
            else f"{result.metrics[label]:.4f}"
            + (f" ({gains[label][0]:+.4f} [{gains[label][1]:+.4f}, {gains[label][2]:+.4f}])" if differences else "")
            for label in LABELS
        ]

    how = {
        "smooth": "smoothed texts",
        "near": "plus the history's neighbours",
        "view": "view of the graph",
        "fit": "fitted with the graph",
    }[use]
    said = f"{gain[0]:+.4f} [{gain[1]:+.4f}, {gain[2]:+.4f}]"
    return [[name, "", *cells(before, False)], [f"{name}, {how} ({best})", said, *cells(after, True)]]


def enough(result: Result, label: str) -> bool:
    """Returns whether a column has enough targets to be shown."""
    return result.counts[targets_of(label)] >= MIN_TARGETS


def targets_of(label: str) -> str:
    """Returns the key of a metric's number of targets in the counts of a result."""
    return "/".join(["targets", *label.split("/")[1:]])


def listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def fitted(run: Run, data: TrainingData, overrides: Mapping[str, object], name: str) -> Recommender:
    """Returns the run's hybrid, trained again with some settings changed."""
    config = with_settings(run.config, {**NO_GRAPH, **overrides})
    folder = run.folder / ABLATION / f"graph, {name}".replace(",", "").replace(" ", "_")
    return fit_hybrid(data, config, folder, to_stderr).model


def of_fits(run: Run, graph: ItemGraph, overrides: Mapping[str, object]) -> list[list[str]]:
    """Returns a row for the hybrid without the graph, and one for each use of it."""
    data = replace(run.training_data, graph=graph)
    plain = fitted(run, data, overrides, "none")
    rows: list[list[str]] = []
    for name, settings in FITTED.items():
        tries = {name: partial(fitted, run, data, {**overrides, **settings}, name)}
        rows += used("hybrid", data, lambda: plain, tries, "fit")[1 if rows else 0 :]
    return rows


UNTRAINED = (
    f"Nothing is trained. Shares {listed(SHARES)} of the neighbours' texts in {STEPS} steps, weights {listed(NEAR)} of "
    f"the history's neighbours and strengths {listed(STRENGTHS)} of the view were tried: the text baseline with each "
    "kind of relation and with all, the item-item weights with all (their view has all but use). The best on "
    "validation is shown, with its gain in the selection value there (interval for all tries together, by Bonferroni)."
)
TRAINED = (
    "The hybrid was trained again for each row, with the run's other settings{}. All uses read all relations but use. "
    "Neighbours that do not help on validation are left out of item vectors. The gain is that in the selection value "
    "on validation, with its 95 % interval."
)


def section(
    data: TrainingData,
    config: DataConfig,
    wanted: GraphConfig,
    rows_of: Callable[[ItemGraph], list[list[str]]],
    about: str,
    cmd: str,
) -> str:
    begun = time.monotonic()
    graph = build_graph(data.split, data.text, wanted, config, data.text_widths)
    took = time.monotonic() - begun
    counts = data.measure(fit_baseline(data, "popularity").model, data.split.test).counts
    targets = ["targets", "", *(f"{counts[targets_of(label)]:,}" for label in LABELS)]
    return "\n".join(
        [
            made_by(cmd, data.seed),
            "",
            f"{data.n_items:,} items, {data.split.kind} split, {len(data.split.test):,} test queries. The graph was "
            f"built in {took:.1f} s: {'; '.join(graph.lines())}.",
            "",
            f"{about} Test figures with the graph have the paired difference to those without it, with its 95 % "
            "interval.",
            "",
            *markdown_table(["", "gain on validation", *LABELS], [*rows_of(graph), targets]),
        ]
    )


def of_run(folder: Path, edges: Path | None, fits: bool, overrides: Mapping[str, object], command: str) -> None:
    run = Run.open(folder)
    data, wanted = run.training_data, GraphConfig(relations=["text", "use", "values"], edges=edges)
    if fits:
        given = "".join(f", {name}={value}" for name, value in overrides.items())
        body = section(
            data, DataConfig(), wanted, lambda graph: of_fits(run, graph, overrides), TRAINED.format(given), command
        )
    else:
        settings = run.config.item_weights
        body = section(data, DataConfig(), wanted, partial(measured, data, settings), UNTRAINED, command)
    replace_section(f"graph{', in the hybrid' if fits else ''}: {run.split.dataset.name}", body)
    print(body)


def of_citeulike(folder: Path, command: str) -> None:
    """Measures the uses of the graph on CiteULike: users' libraries of articles, whose text is their tags.

    A tenth of the articles is held out with all their events.
    """
    from tfllmrec.text.encoder import TextEncoder
    from tfllmrec.text.store import VectorStore, encode_items
    from tfllmrec.text.template import ItemTemplate

    with tempfile.TemporaryDirectory() as scratch:
        files = citeulike_files(folder, Path(scratch))
        config = DataConfig(name=folder.name, events=files["events"], items=files["items"])
        split = make_split(read_dataset(config), SplitConfig(kind="cold_items"), seed=SEED)
        texts = ItemTemplate.from_items(split.items).texts(split.items)
        vectors = encode_items(texts, TextEncoder.from_config(TextConfig()), VectorStore(cache_folder() / "vectors"))
        data = TrainingData(split, vectors, seed=SEED)
        settings, value = best_text(data)
        wanted = GraphConfig(relations=["values"], edges=files["edges"])
        body = section(data, config, wanted, partial(measured, data, settings), UNTRAINED, command)
    said = (
        "The item-item weights have the starting settings for events without order; of the "
        f"strengths {listed(TEXTS)} of the text, {settings.text:g} was best on validation "
        f"({value:.4f})."
    )
    replace_section(f"graph: {split.dataset.name}", f"{body}\n\n{said}")
    print(body, said, sep="\n\n")


def best_text(data: TrainingData) -> tuple[ItemWeightSettings, float]:
    """Returns the starting settings with the best strength of the text, and their selection value."""
    start = starting_item_weights(data)
    tried = {}
    for text in TEXTS:
        settings = start.model_copy(update={"text": text})
        tried[text] = item_weights_value(data, settings)
        to_stderr(f"item-item weights, text {text:g}: {tried[text]:.4f}")
    best = max(TEXTS, key=tried.__getitem__)
    return start.model_copy(update={"text": best}), tried[best]


def citeulike_files(folder: Path, out: Path) -> dict[str, Path]:
    """Converts the files of CiteULike to the CSV files ``events``, ``items`` and ``edges``.

    The first number of each line in the source files is the number of entries that follow.
    """

    def lists(name: str) -> list[list[str]]:
        with gzip.open(folder / name, "rt") as lines:
            return [line.split()[1:] for line in lines]

    with gzip.open(folder / "tags.dat.gz", "rt") as lines:
        names = [line.strip() for line in lines]
    users, tags, cited = lists("users.dat.gz"), lists("item-tag.dat.gz"), lists("citations.dat.gz")
    tables = {
        "events": pd.DataFrame(
            [(f"u{u}", f"a{a}") for u, own in enumerate(users) for a in own], columns=["user", "item"]
        ),
        "items": pd.DataFrame(
            [(f"a{a}", "|".join(names[int(t)].replace("|", " ") for t in own)) for a, own in enumerate(tags)],
            columns=["item", "tags"],
        ),
        "edges": pd.DataFrame(
            [(f"a{a}", "cites", f"a{b}") for a, own in enumerate(cited) for b in own],
            columns=["head", "relation", "tail"],
        ),
    }
    paths = {name: out / f"{name}.csv" for name in tables}
    for name, table in tables.items():
        table.to_csv(paths[name], index=False)
    return paths


def convert_recbole(triples: Path, links: Path, out: Path) -> None:
    """Converts RecBole's atomic files to a file of edges; heads and tails that are items have item ids.

    Relations have a name for each direction; only the name whose head is the film is kept.
    """
    frame = pd.read_csv(triples, sep="\t", names=["head", "relation", "tail"], skiprows=1, dtype=str)
    link = pd.read_csv(links, sep="\t", names=["item", "entity"], skiprows=1, dtype=str)
    item_of = dict(zip(link["entity"], link["item"], strict=True))
    frame = frame[frame["relation"].str.startswith("film.film.")]
    for end in ("head", "tail"):
        frame[end] = frame[end].map(lambda entity: item_of.get(entity, entity))
    frame["relation"] = frame["relation"].str.removeprefix("film.film.").replace({"prequel": "sequel"})
    frame.drop_duplicates().to_csv(out, index=False)


class Built(NamedTuple):
    """A relation and its cost."""

    relation: Relation
    seconds: float
    cpu_seconds: float
    peak_gb: float


def made_up_texts(n_items: int) -> np.ndarray:
    """Returns random text vectors of width 384 around topics, one topic per hundred items."""
    rng = np.random.default_rng(SEED)
    topics = rng.standard_normal((max(n_items // 100, 1), 384), np.float32)
    text = topics[rng.integers(len(topics), size=n_items)]
    text += rng.standard_normal((n_items, 384), np.float32)
    return centred_unit(text)


def texts_by_cells(n_items: int) -> Built:
    """Builds the relation of texts as ``tfllmrec graph`` does."""
    text, clock = made_up_texts(n_items), Clock()
    return Built(text_relation(text, NEIGHBOURS), *clock.cost(), peak_memory_mb() / 1000)


def texts_by_scann(n_items: int) -> Built:
    """Builds the same relation by ScaNN with settings from its documentation: a tree, 4-bit codes, exact reordering."""
    import scann

    text, clock, leaves = made_up_texts(n_items), Clock(), round(2 * n_items**0.5)
    builder = scann.scann_ops_pybind.builder(text, NEIGHBOURS + 1, "dot_product")
    tree = builder.tree(leaves, round(leaves**0.5 / 2), training_sample_size=min(n_items, 250_000))
    searcher = tree.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(5 * NEIGHBOURS).build()
    items, scores = searcher.search_batched_parallel(text)
    rows = np.repeat(np.arange(n_items), items.shape[1])
    found = np.isfinite(scores.ravel())
    places = (rows[found], items.ravel()[found].astype(np.int64))
    pairs = sparse.coo_array((scores.ravel()[found], places), shape=(n_items, n_items))
    return Built(Relation.of("text", "text", pairs, NEIGHBOURS, mutual=True), *clock.cost(), peak_memory_mb() / 1000)


def use_together(n_items: int) -> Built:
    """Builds the relation of use from ten events per item, by users with ten events on items of nearby indices."""
    rng, users = np.random.default_rng(SEED), n_items * EVENTS_PER_ITEM // 10
    near = rng.integers(n_items, size=(users, 1)) + rng.laplace(scale=30, size=(users, 10))
    histories = Ragged(near.round().astype(np.int64).ravel() % n_items, np.arange(0, users * 10 + 1, 10))
    clock = Clock()
    return Built(use_relation(histories, n_items, NEIGHBOURS, 2), *clock.cost(), peak_memory_mb() / 1000)


def of_size(n_items: int, command: str) -> None:
    """Measures time and memory for synthetic items, each relation in a separate process."""
    makers = {"text": texts_by_cells, "text, by ScaNN": texts_by_scann, "use": use_together}
    spawn, built = multiprocessing.get_context("spawn"), {}
    for name, make in makers.items():
        to_stderr(f"{n_items:,} items: {name}")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            built[name] = pool.submit(make, n_items).result()
    text = made_up_texts(n_items)
    found = {name: recall(built[name].relation, text) for name in makers if name != "use"}
    graph, clock = ItemGraph(n_items, (built["text"].relation, built["use"].relation)), Clock()
    with tempfile.TemporaryDirectory() as folder:
        graph.save(Path(folder) / "graph")
        seconds, cpu_seconds = clock.cost()
        size = sum(path.stat().st_size for path in (Path(folder) / "graph").iterdir())
    rows = [
        [name, *(f"{cost:.0f}" for cost in each[1:3]), f"{each.peak_gb:.1f}", f"{len(each.relation):,}",
         f"{found[name]:.1%}" if name in found else ""]
        for name, each in built.items()
    ]  # fmt: skip
    edges = sum(map(len, graph.relations))
    rows.append([f"written, {size / 1e6:.0f} MB", f"{seconds:.0f}", f"{cpu_seconds:.0f}", "", f"{edges:,}", ""])
    body = "\n".join(
        [
            made_by(command, SEED),
            "",
            f"{n_items:,} made-up items: texts of width 384 around {max(n_items // 100, 1):,} topics, "
            f"{n_items * EVENTS_PER_ITEM:,} events. Recall is that of the exact mutual neighbours of 200 items. Peak "
            "memory includes the texts and the libraries.",
            "",
            *markdown_table(["", "seconds", "CPU s", "peak GB", "edges", "recall"], rows),
        ]
    )
    replace_section(f"graph: {n_items:,} items", body)
    print(body)


def recall(relation: Relation, text: np.ndarray, k: int = NEIGHBOURS, asked: int = 200) -> float:
    """Returns the share of the exact mutual neighbours of ``asked`` random items that are edges of the relation."""

    def nearest(rows: np.ndarray) -> np.ndarray:
        cosines = text[rows] @ text.T
        cosines[np.arange(len(rows)), rows] = -np.inf
        return np.argpartition(-cosines, k, axis=1)[:, :k]

    some = np.random.default_rng(SEED).choice(len(text), asked, replace=False)
    key = set(map(int, relation.heads.astype(np.int64) * len(text) + relation.tails))
    found = wanted = 0
    for item, others in zip(some, nearest(some), strict=True):
        for other in others[[item in back for back in nearest(others)]]:
            wanted += 1
            found += int(min(item, other)) * len(text) + int(max(item, other)) in key
    return found / max(wanted, 1)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="*", help="Complete runs.")
    parser.add_argument("--edges", type=Path, help="Further edges of the runs' items, as graph.edges.")
    parser.add_argument("--fit", action="store_true", help="Train the runs' hybrids again, with each use of the graph.")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="A setting of all fits.")
    parser.add_argument("--citeulike", type=Path, metavar="FOLDER", help="The folder of citeulike-a.")
    parser.add_argument("--recbole", type=Path, nargs=2, metavar=("KG", "LINK"), help="RecBole's files to convert.")
    parser.add_argument("--out", type=Path, default=Path("edges.csv"), help="Where --recbole writes.")
    parser.add_argument("--items", type=int, help="How many made-up items to build a graph of.")
    asked, command = parser.parse_args(arguments), shlex.join(["python", *sys.argv])
    if asked.recbole:
        convert_recbole(*asked.recbole, asked.out)
    for folder in asked.runs:
        of_run(folder, asked.edges, asked.fit, dict(each.split("=", 1) for each in asked.set), command)
    if asked.citeulike:
        of_citeulike(asked.citeulike, command)
    if asked.items:
        of_size(asked.items, command)


if __name__ == "__main__":
    main(sys.argv[1:])
