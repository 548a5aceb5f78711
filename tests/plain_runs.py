"""Writes run folders as ``fit`` does, but of recommenders in a few lines of numpy, without TensorFlow."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from tfllmrec.config import DataConfig, EvaluationConfig, ExperimentConfig, RankingConfig, SplitConfig, dump_config
from tfllmrec.data.splits import Split
from tfllmrec.evaluation.protocol import evaluate
from tfllmrec.runs.run import PER_QUERY, SCHEMA, Run
from tfllmrec.runs.scoreboard import report, save_per_query


@dataclass
class Next:
    """A recommender that ranks the targets and the item after the newest one first, in a ``share`` of the queries.

    Which queries these are depends on the history only.
    """

    n_items: int
    share: float

    def score(self, queries):
        scores = np.tile(np.linspace(0, 0.5, self.n_items), (len(queries), 1)).astype(np.float32)
        for row, history in enumerate(queries.history):
            newest = int(history[-1]) if len(history) else 0
            if np.random.default_rng(newest + 7 * len(history)).random() < self.share:
                scores[row, [(newest + 1) % self.n_items, *queries.targets[row]]] = 1
        return scores


def stand_in(n_items: int, share: float = 0.6) -> SimpleNamespace:
    """Returns a stand-in for a hybrid, with the attributes that a report reads."""
    gates = SimpleNamespace(trainable=True, gate=lambda counts: 1 / (1 + counts))
    names = ("meaning", "feedback", "behaviour")

    def explain(queries, items):
        return {name: np.full(items.shape, number, np.float32) for number, name in enumerate(names, start=1)}

    score = Next(n_items, share).score
    return SimpleNamespace(score=score, gates=gates, term_names=names, reads=["event.rating"], explain=explain)


def write_run(folder: Path, split: Split, share: float = 0.6, domain: str | None = None, **settings) -> Run:
    """Writes a complete run folder of ``split``, whose results are those of :func:`stand_in`.

    Args:
      folder: The folder to create.
      split: The split.
      share: The share of queries that the hybrid answers correctly, see :class:`Next`.
      domain: The domain that the split asks for.
      settings: Further settings of the config.
    """
    n_items, counts = split.dataset.n_items, split.train_counts
    config = ExperimentConfig(
        data=DataConfig(name=split.dataset.name, source="data", format="tfllmrec"),
        split=SplitConfig(kind=split.kind, domain=domain),
        ranking=RankingConfig(epochs=0),
        evaluation=EvaluationConfig(baselines=["popularity"], bootstrap=20),
        **settings,
    )
    config.text.template = "{title}"
    recommenders = {
        "hybrid": Next(n_items, share),
        "popularity": SimpleNamespace(score=lambda queries: np.tile(counts, (len(queries), 1)).astype(np.float32)),
    }
    results = {
        name: evaluate(
            recommender, split.test, train_counts=counts, strata=split.strata(), ks=config.evaluation.ks, bootstrap=20
        )
        for name, recommender in recommenders.items()
    }
    folder.mkdir(parents=True)
    split.dataset.save(folder / "data")
    (folder / SCHEMA).write_text(json.dumps(split.schema.as_dict(), ensure_ascii=False))
    save_per_query(folder / PER_QUERY, split.test, results)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "state.json").write_text(
        json.dumps({"epochs_done": 3, "best_epoch": 1, "values": [0.2, share, 0.3]})
    )
    record = {
        "seed": config.seed,
        "data_sha256": split.dataset.fingerprint,
        "date": "2026-01-31",
        "seconds": 12.5,
        "peak_memory_mb": 900,
        "versions": {"python": "3.11.0", "tfllmrec": "0.1.0", "tensorflow": None},
        "source": {"events": "/somewhere/events.csv", "items": "items.csv"},
        "parent": None,
        "chosen": ["training.negatives 0 (the whole catalogue)"],
        "cleaning": split.dataset.report.as_dict(),
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "config.yaml").write_text(dump_config(config))
    measured = report(split, config, results) | {"validation": {"popularity": {"selection": 0.15}}}
    (folder / "metrics.json").write_text(json.dumps(measured))
    return Run.open(folder)
