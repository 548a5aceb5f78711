"""Measures the model and every baseline on the test queries of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfllmrec.config import EvaluationConfig, ExperimentConfig
from tfllmrec.data.domains import domain_names
from tfllmrec.data.queries import Queries
from tfllmrec.data.splits import Split
from tfllmrec.durable import replacing
from tfllmrec.errors import ModelError
from tfllmrec.evaluation.groups import figures_of_groups, groups_of
from tfllmrec.evaluation.protocol import Result, evaluate, shown_length
from tfllmrec.evaluation.recommender import Recommender
from tfllmrec.evaluation.report import alarm_lines, as_json
from tfllmrec.models.baselines import ages, fit_baseline, segmented
from tfllmrec.models.domain_map import users_of_several
from tfllmrec.models.fitting import TrainingData
from tfllmrec.progress import Tell, show_progress
from tfllmrec.runs.run import Run

if TYPE_CHECKING:
    from tfllmrec.models.hybrid import Hybrid
    from tfllmrec.models.ranking import RankingModel


def fit_all_baselines(data: TrainingData, config: EvaluationConfig, tell: Tell) -> dict[str, Recommender]:
    """Fits every baseline of the config on the training events.

    Their settings and epochs are chosen by the same measure and on the same validation queries as those of the hybrid.
    Baselines that the data does not support are left out.
    """
    names = [name for name in config.baselines if name != "two_tower"]
    if not any(map(segmented, data.split.schema.of_query())):  # it would equal popularity
        names = [name for name in names if name != "popularity_by_segment"]
    if ages(data) is None:
        names = [name for name in names if name != "recent_popularity"]
    mapping = [name for name in names if name in ("emcdr", "domain_map")]
    joined = len(domain_names(data.domains)) > 1
    if mapping and not (joined and len(users_of_several(data))):
        names = [name for name in names if name not in mapping]
        if joined:
            tell(f"no user has training events in two domains, so there is no baseline {', '.join(mapping)}")
    if not np.any(data.text) and (reading := [name for name in names if name in ("text", "ease_text", "star")]):
        names = [name for name in names if name not in reading]
        tell(f"no item has text, so there is no baseline {', '.join(reading)}")
    fitted: dict[str, Recommender] = {}
    for name in names:
        tell(f"baseline: {name}")
        fitted[name] = fit_baseline(data, name).model
    if "two_tower" in config.baselines:
        from tfllmrec.models.two_tower import fit_two_tower

        tell("baseline: two_tower")
        with show_progress("Training the two-tower", "epochs") as progress:
            data.baselines["two_tower"] = fit_two_tower(data, progress=progress)
        fitted["two_tower"] = data.baselines["two_tower"].model
    return fitted


def measure_all(recommenders: Mapping[str, Recommender], split: Split, config: ExperimentConfig) -> dict[str, Result]:
    """Measures each recommender on the test queries and returns the results by name."""
    results: dict[str, Result] = {}
    total = len(split.test) * len(recommenders)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    with show_progress("Measuring on the test queries", "queries") as progress:
        for name, recommender in recommenders.items():
            results[name] = measure_one(recommender, split.test, split, config, advance)
    return results


def measure_with_ranking(
    hybrid: Hybrid, model: RankingModel, split: Split, config: ExperimentConfig, hybrids: Result, tell: Tell
) -> dict[str, Any]:
    """Returns the content of ``metrics.json`` under ``ranking`` for a ranking model that is not left out."""
    from tfllmrec.models.ranking import Reranked
    from tfllmrec.training.ranking.measure import measure_ranking, ranking_lines

    reranked = Reranked(hybrid, model, config.ranking.candidates)
    result = measure_one(reranked, split.test, split, config) if model.reorders else None
    measured = measure_ranking(reranked, split, result, hybrids, config.seed)
    for line in ranking_lines(measured, hybrids.metrics):
        tell(f"ranking: {line}")
    return measured


def measure_one(
    recommender: Recommender,
    queries: Queries,
    split: Split,
    config: ExperimentConfig,
    progress: Callable[[int], None] | None = None,
) -> Result:
    """Measures one recommender on queries of a split, with all metrics that the config asks for."""
    settings = config.evaluation
    return evaluate(
        recommender,
        queries,
        train_counts=split.train_counts,
        strata=split.strata(settings.head_share),
        ks=settings.ks,
        further=settings.metrics,
        batch_size=settings.batch_size,
        bootstrap=settings.bootstrap,
        seed=config.seed,
        progress=progress,
    )


def measured_again(run: Run, recommenders: dict[str, Recommender]) -> dict[str, Any]:
    """Returns the run's report and alarms with newly measured figures of ``recommenders``, and all others as recorded.

    Raises:
      ModelError: The run was measured by an earlier version on another number of test queries.
    """
    if len(run.split.test) != run.metrics["split"]["queries"]:
        raise ModelError(
            f"{run.folder} was measured on {run.metrics['split']['queries']:,} test queries by an earlier version, and "
            f"this version makes {len(run.split.test):,} of the data, because rejections are not targets. Fit again."
        )
    results = run.results | measure_all(recommenders, run.split, run.config)
    figures = {
        "results": as_json(results),
        "intervals": {name: _intervals(result) for name, result in results.items()},
        "groups": _groups(run.split, run.config, results),
    }
    return run.metrics | figures | {"alarms": alarm_lines(results)}


def save_per_query(path: Path, queries: Queries, results: Mapping[str, Result]) -> None:
    """Writes the file that :attr:`Run.per_query` reads."""
    columns = {f"{name}:{label}": v for name, result in results.items() for label, v in result.per_query.items()}
    with replacing(path) as fresh, fresh.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, user_ids=queries.user_ids.astype(str), **columns)


def report(split: Split, config: ExperimentConfig, results: dict[str, Result]) -> dict[str, Any]:
    """Returns the content of ``metrics.json``, which is also printed by ``evaluate --json``."""
    dataset = split.dataset
    return {
        "data": {
            "name": dataset.name,
            "users": dataset.n_users,
            "items": dataset.n_items,
            "events": len(dataset.events),
            "sha256": dataset.fingerprint,
        },
        "split": {
            "kind": split.kind,
            "seed": config.seed,
            "train_events": len(split.train),
            "head_share": config.evaluation.head_share,
            **next(iter(results.values())).counts,
        },
        "results": as_json(results),
        "intervals": {name: _intervals(result) for name, result in results.items()},
        "groups": _groups(split, config, results),
        "alarms": alarm_lines(results),
    }


def _groups(split: Split, config: ExperimentConfig, results: Mapping[str, Result]) -> dict[str, Any]:
    """Returns, by the key of the scene and of each field of ``evaluation.by``, the figures for each of its values."""
    k = shown_length(config.evaluation.ks)
    keys = {f"request.{config.model.scene}", *config.evaluation.by}
    fields = [field for field in split.schema.of_query() if field.key in keys and field.kind == "category"]
    return {
        field.key: figures_of_groups(results, groups_of(split.test, field), [f"ndcg@{k}", f"recall@{k}"])
        for field in fields
    }


def _intervals(result: Result) -> dict[str, list[float]]:
    return {label: [low, high] for label, (low, high) in result.intervals.items()}
