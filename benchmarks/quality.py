"""Fits a data set with no other setting than its files, and writes its figures beside the published ones.

    python benchmarks/quality.py beauty

is ``tfllmrec fit --events .../interactions.tsv.gz --items .../items.jsonl.gz --out runs/quality/beauty`` followed by a
section of benchmarks/RESULTS.md. An interrupted fit is gone on with; a complete one is only written down.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from sections import made_by, replace_section

from tfllmrec.config import contradictions, parse_config
from tfllmrec.evaluation.protocol import Result
from tfllmrec.evaluation.report import as_markdown
from tfllmrec.training.callbacks import FitState
from tfllmrec.training.ranking import ranking_lines
from tfllmrec.training.run import Run, fit_experiment

#: Event log and catalogue of each set, below the folder of all data; without any: fetched by its name.
SETS = {
    "movielens-100k": (),
    "beauty": ("amazon-2014/beauty/interactions.tsv.gz", "amazon-2014/beauty/items.jsonl.gz"),
    "toys": ("amazon-2014/toys/interactions.tsv.gz", "amazon-2014/toys/items.jsonl.gz"),
    "movielens-1m": ("movielens-1m/interactions.tsv.gz", "movielens-1m/items.jsonl.gz"),
    "movielens-small": ("movielens-small/ratings.csv", "movielens-small/movies.csv"),
    "goodbooks-10k": ("goodbooks-10k/ratings_random.csv", "goodbooks-10k/books.csv"),
}

#: Leave-last-out, whole catalogue, known items masked, as here: ndcg@10, recall@10, and where they were read.
PUBLISHED = {
    "beauty": {
        "LightGCN": (0.0242, 0.0480, "MTandHJ/RecBoard"),
        "SASRec (BCE)": (0.0354, 0.0668, "MTandHJ/RecBoard"),
        "TIGER": (0.0388, 0.0704, "MTandHJ/RecBoard"),
        "BERT4Rec": (0.0406, 0.0730, "MTandHJ/RecBoard"),
        "eSASRec": (0.0523, 0.0928, "blondered/transformer_benchmark"),
        "SASRec (sampled softmax)": (0.0531, 0.0921, "blondered/transformer_benchmark"),
        "HSTU": (0.0543, 0.0945, "MTandHJ/RecBoard"),
        "BSARec": (0.0610, 0.1002, "MTandHJ/RecBoard"),
    },
    "toys": {
        "LightGCN": (0.0247, 0.0469, "MTandHJ/RecBoard"),
        "TIGER": (0.0387, 0.0703, "MTandHJ/RecBoard"),
        "SASRec": (0.0432, 0.0766, "MTandHJ/RecBoard"),
        "HSTU": (0.0598, 0.0997, "MTandHJ/RecBoard"),
        "BSARec": (0.0663, 0.1078, "MTandHJ/RecBoard"),
    },
    "movielens-1m": {
        "MF-BPR": (0.0377, 0.0740, "asash/bert4rec_repro"),
        "SASRec (original)": (0.1078, 0.1993, "asash/bert4rec_repro"),
        "gSASRec": (0.1726, 0.3003, "asash/gSASRec-pytorch"),
        "eSASRec": (0.1772, 0.3133, "blondered/transformer_benchmark"),
        "SASRec+ (3000 negatives)": (0.1857, 0.3159, "antklen/sasrec-bert4rec-recsys23"),
        "HSTU-large": (0.1893, 0.3294, "facebookresearch/generative-recommenders"),
    },
}


def section(name: str, run: Run, command: str) -> str:
    """How the run was made, its table with the published rows, what was chosen."""
    metrics, record = run.metrics, run.record
    data, split = metrics["data"], metrics["split"]
    results = {
        model: Result(figures, metrics["intervals"][model], {}, {}, []) for model, figures in metrics["results"].items()
    }
    table = as_markdown(results).rstrip()
    unknown = " |" * (table.splitlines()[0].count("|") - 4)
    rows = [
        f"| *{model}* ({source}) | {ndcg:.4f} | {recall:.4f} |{unknown}"
        for model, (ndcg, recall, source) in PUBLISHED.get(name, {}).items()
    ]
    trained = FitState.load(run.folder / "checkpoints")
    took = f"{record['seconds']:.0f} s in all, peak memory {record['peak_memory_mb'] / 1000:.1f} GB"
    order = metrics.get("ranking")
    ranking = (
        []
        if order is None
        else ["", f"Ranking model: {'; '.join(ranking_lines(order, metrics['results']['hybrid']))}."]
    )
    versions = ", ".join(f"{package} {version}" for package, version in record["versions"].items() if version)
    return "\n".join(
        [
            made_by(command, record["seed"], record["date"]),
            "",
            f"{data['users']:,} users, {data['items']:,} items, {data['events']:,} events; {split['kind']} split, "
            f"{split['queries']:,} test queries, of whose targets {split['targets/tail']:,} are tail and "
            f"{split['targets/cold']:,} cold items. {took}; {trained.epochs_done} epochs, the best one is "
            f"number {trained.best_epoch + 1}.",
            "",
            table,
            *rows,
            *ranking,
            "",
            f"Chosen from the data: {'; '.join(record['chosen'])}.",
            "",
            f"Versions: {versions}.",
        ]
    )


def files_of(name: str, folder: Path) -> dict[str, str]:
    """The ``data`` section of a set whose files are below ``folder``."""
    files = dict(zip(("events", "items"), (str(folder / path) for path in SETS[name]), strict=False))
    return {"name": name, **files} if files else {"source": name}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="Folder of all data sets.")
    parser.add_argument("--out", type=Path, help="Run folder; by default runs/quality/SET.")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C", help="A setting.")
    options = parser.parse_args()
    out = options.out or Path("runs/quality") / options.set
    config = parse_config({"data": files_of(options.set, options.data)}, options.overrides, origin="command line")
    begun = (out / "config.yaml").is_file()
    if begun and (lines := contradictions(config, Run(out).config)):
        parser.error(f"{out} was begun with other settings: {'; '.join(lines)}. Name another folder with --out.")
    run = fit_experiment(config, out, resume=begun)
    body = section(options.set, run, shlex.join(["python", *sys.argv]))
    replace_section(options.set, body)
    print(body)


if __name__ == "__main__":
    main()
