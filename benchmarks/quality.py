"""Fits a data set with default settings and compares its figures with published ones.

    python benchmarks/quality.py beauty --seeds 1 2 42

is ``tfllmrec fit --events .../interactions.tsv.gz --items .../items.jsonl.gz --out runs/quality/beauty`` for each seed
(seed 42 in runs/quality/beauty, others in runs/quality/beauty-seed1, ...), followed by a section of
benchmarks/RESULTS.md. An interrupted fit is resumed; a complete one is only read.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sections import ORDERED, made_by, replace_section
from seeds import ONE_SEED, SEEDS, averaged_runs

from tfllmrec.config import ExperimentConfig, contradictions, parse_config
from tfllmrec.evaluation.report import MODEL, REFIT, as_markdown, exported_of
from tfllmrec.runs.experiment import fit_experiment
from tfllmrec.runs.run import Run
from tfllmrec.training.callbacks import FitState
from tfllmrec.training.ranking.measure import ranking_lines

#: The event log and catalogue of each set, below the folder of all data; a set without files is fetched by its name.
SETS = {
    "movielens-100k": (),
    "beauty": ("amazon-2014/beauty/interactions.tsv.gz", "amazon-2014/beauty/items.jsonl.gz"),
    "toys": ("amazon-2014/toys/interactions.tsv.gz", "amazon-2014/toys/items.jsonl.gz"),
    "movielens-1m": ("movielens-1m/interactions.tsv.gz", "movielens-1m/items.jsonl.gz"),
    "movielens-small": ("movielens-small/ratings.csv", "movielens-small/movies.csv"),
    "goodbooks-10k": ("goodbooks-10k/ratings_random.csv", "goodbooks-10k/books.csv"),
}


class Published(NamedTuple):
    """Published figures of a model: leave-last-out, with the whole catalogue ranked and known items masked, as here.

    Attributes:
      ndcg: ndcg@10.
      recall: recall@10.
      source: The publication.
      reads: What the model reads.
      differs: What else differs from the measurement here.
    """

    ndcg: float
    recall: float
    source: str
    reads: str = "id-only"
    differs: str = ""


HSTU_TIES = "preprocessing of HSTU: ties in time are broken differently"

#: Published figures by data set and model.
PUBLISHED = {
    "beauty": {
        "LightGCN": Published(0.0242, 0.0480, "MTandHJ/RecBoard"),
        "SASRec (BCE)": Published(0.0354, 0.0668, "MTandHJ/RecBoard"),
        "TIGER": Published(0.0388, 0.0704, "MTandHJ/RecBoard", "semantic ids from text"),
        "BERT4Rec": Published(0.0406, 0.0730, "MTandHJ/RecBoard"),
        "eSASRec": Published(0.0523, 0.0928, "blondered/transformer_benchmark"),
        "SASRec (sampled softmax)": Published(0.0531, 0.0921, "blondered/transformer_benchmark"),
        "HSTU": Published(0.0543, 0.0945, "MTandHJ/RecBoard"),
        "BSARec": Published(0.0610, 0.1002, "MTandHJ/RecBoard"),
    },
    "toys": {
        "LightGCN": Published(0.0247, 0.0469, "MTandHJ/RecBoard"),
        "TIGER": Published(0.0387, 0.0703, "MTandHJ/RecBoard", "semantic ids from text"),
        "SASRec": Published(0.0432, 0.0766, "MTandHJ/RecBoard"),
        "HSTU": Published(0.0598, 0.0997, "MTandHJ/RecBoard"),
        "BSARec": Published(0.0663, 0.1078, "MTandHJ/RecBoard"),
    },
    "movielens-1m": {
        "MF-BPR": Published(0.0377, 0.0740, "asash/bert4rec_repro"),
        "SASRec (original)": Published(0.1078, 0.1993, "asash/bert4rec_repro"),
        "gSASRec": Published(0.1726, 0.3003, "asash/gSASRec-pytorch"),
        "eSASRec": Published(0.1772, 0.3133, "blondered/transformer_benchmark"),
        "SASRec+ (3000 negatives)": Published(0.1857, 0.3159, "antklen/sasrec-bert4rec-recsys23"),
        "RecTools HSTU": Published(0.1880, 0.3226, "RecTools benchmark", differs="preprocessing not compared"),
        "HSTU-large": Published(0.1893, 0.3294, "facebookresearch/generative-recommenders", differs=HSTU_TIES),
        "HSTU in TensorFlow, full softmax": Published(
            0.1944, 0.3419, "NetEase-Media/HSTU-Tensorflow", differs=HSTU_TIES
        ),
        "HSTU-large + MoL": Published(0.1979, 0.3412, "bailuding/rails", differs=HSTU_TIES),
        "RecTools HSTU-large": Published(0.2164, 0.3642, "RecTools benchmark", differs="preprocessing not compared"),
    },
}


def section(name: str, runs: Sequence[Run], command: str) -> str:
    """Returns the text of a section: how the runs were made, their figures and the published ones, and their course."""
    first = runs[0]
    data, split = first.metrics["data"], first.metrics["split"]
    published = {
        f"*{model}*, {'; '.join(filter(None, [row.reads, row.differs]))} ({row.source})": {
            "ndcg@10": row.ndcg,
            "recall@10": row.recall,
        }
        for model, row in PUBLISHED.get(name, {}).items()
    }
    orders = [run.metrics.get("ranking", {}) for run in runs]
    if any("reranked" in order for order in orders):  # a seed without such an order counts with its own
        lists = [o.get("reranked", exported_of(run.metrics["results"])) for o, run in zip(orders, runs, strict=True)]
        row = REFIT if REFIT in first.metrics["results"] else MODEL
        known = [label for label in lists[0] if all(each[label] is not None for each in lists)]
        published = {
            row + ORDERED: {label: float(np.mean([each[label] for each in lists])) for label in known}
        } | published
    versions = ", ".join(f"{package} {version}" for package, version in first.record["versions"].items() if version)
    return "\n".join(
        [
            made_by(command, [run.config.seed for run in runs], max(run.record["date"] for run in runs)),
            "",
            f"{data['users']:,} users, {data['items']:,} items, {data['events']:,} events; {split['kind']} split, "
            f"{split['queries']:,} test queries. {SEEDS if len(runs) > 1 else ONE_SEED}",
            "",
            as_markdown(averaged_runs(runs), published).rstrip(),
            "",
            *(line for run in runs for line in _course(run)),
            "",
            f"Versions: {versions}.",
        ]
    )


def _course(run: Run) -> list[str]:
    """Returns lines on the course of a run's fit."""
    record, trained, order = run.record, FitState.load(run.folder / "checkpoints"), run.metrics.get("ranking")
    lines = [
        f"{record['seconds']:.0f} s in all, peak memory {record['peak_memory_mb'] / 1000:.1f} GB; "
        f"{trained.epochs_done} epochs, the best one is number {trained.best_epoch + 1}.",
        f"Chosen from the data: {'; '.join(record['chosen'])}.",
    ]
    if order is not None:
        lines.append(f"Ranking model: {'; '.join(ranking_lines(order, exported_of(run.metrics['results'])))}.")
    return [f"- Seed {run.config.seed}: {line}" for line in lines]


def files_of(name: str, folder: Path) -> dict[str, str]:
    """Returns the ``data`` section of a set whose files are below ``folder``."""
    files = dict(zip(("events", "items"), (str(folder / path) for path in SETS[name]), strict=False))
    return {"name": name, **files} if files else {"source": name}


def folder_of(base: Path, seed: int) -> Path:
    """Returns the run folder of a seed; that of seed 42 has no suffix."""
    return base if seed == 42 else base.with_name(f"{base.name}-seed{seed}")


def fitted_run(config: ExperimentConfig, out: Path, base: Path = Path()) -> Run:
    """Returns the run in ``out``: fits it, resumes it if it was interrupted, or only reads it if it is complete.

    Args:
      config: The config of the run.
      out: The folder of the run.
      base: The folder that relative paths of the config start from.

    Raises:
      SystemExit: The run was started with other settings.
    """
    begun = (out / "config.yaml").is_file()
    if begun and (lines := contradictions(config, Run(out).config)):
        raise SystemExit(f"{out} was started with other settings: {'; '.join(lines)}. Name another folder with --out.")
    return fit_experiment(config, out, base=base, resume=begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="Folder of all data sets.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42], help="One run is fitted for each.")
    parser.add_argument("--out", type=Path, help="Run folder of seed 42; by default runs/quality/SET.")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C", help="A setting.")
    options = parser.parse_args()
    base = options.out or Path("runs/quality") / options.set
    runs = []
    for seed in dict.fromkeys(options.seeds):
        out = folder_of(base, seed)
        raw = {"data": files_of(options.set, options.data), "seed": seed}
        runs.append(fitted_run(parse_config(raw, options.overrides, origin="command line"), out))
    body = section(options.set, runs, shlex.join(["python", *sys.argv]))
    replace_section(options.set, body)
    print(body)


if __name__ == "__main__":
    main()
