"""What reads the texts: one fit for each way to train the encoder, all else being as chosen from the data.

    python benchmarks/text_towers.py beauty

fits runs/text/SET/ROW for each row (a complete one is only measured, an interrupted one gone on with) and writes one
table into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from ablation import COLUMNS, line
from quality import SETS, files_of
from sections import made_by, replace_section

from tfllmrec.config import parse_config
from tfllmrec.text.bundled import hub_handles
from tfllmrec.training.run import Run, fit_experiment, measure_one, to_stderr
from tfllmrec.training.text_tower import TowerRecord

PRETRAINED = "mlm"
#: Settings beside those of a plain fit.
ROWS: dict[str, dict[str, object]] = {
    "frozen": {},
    "adapter": {"mode": "adapter"},
    "lora": {"mode": "lora"},
    PRETRAINED: {"pretrain_epochs": 3},
    "mlm-lora": {"mode": "lora"},
}


def fitted(name: str, files: dict[str, str], folder: Path, settings: dict[str, object]) -> Run:
    run = folder / name
    if name == "mlm-lora":  # reads with what was pretrained in the row before
        encoder, preprocessor = folder / PRETRAINED / "text" / "encoder", hub_handles()[0]
        settings = settings | {"encoder": str(encoder.resolve()), "preprocessor": str(preprocessor)}
    raw = {"data": files, "text": settings, "evaluation": {"baselines": ["text"]}}
    to_stderr(f"== {name}")
    return fit_experiment(parse_config(raw), run, resume=(run / "config.yaml").is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="Folder of all data sets.")
    parser.add_argument("--out", type=Path, default=Path("runs/text"), help="Folder of the runs.")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="Which of them.")
    options = parser.parse_args()
    files = files_of(options.set, options.data)
    runs = {name: fitted(name, files, options.out / options.set, ROWS[name]) for name in options.rows}
    results = {name: measure_one(run.load_model(), run.split.test, run.split, run.config) for name, run in runs.items()}
    whole = results[options.rows[0]]
    lines = []
    for name, run in runs.items():
        tower = TowerRecord.load(run.folder / "text")
        alone = run.metrics["results"]["text"]
        cells = [
            f"{alone['ndcg@10']:.4f}",
            f"{tower.seconds:.0f}" if tower else "0",
            f"{run.record['seconds']:.0f}",
            f"{tower.trained:,}" if tower else "0",
            f"{tower.bytes:,}" if tower else "0",
        ]
        lines.append(f"{line(name, results[name], whole)} {' | '.join(cells)} |")
    header = [*COLUMNS, "ndcg@10 of the texts alone", "s for the tower", "s in all", "weights trained", "bytes shipped"]
    body = "\n".join(
        [
            made_by(shlex.join(["python", *sys.argv]), next(iter(runs.values())).config.seed),
            "",
            f"Test queries. In brackets the difference to {options.rows[0]}; * where its 95 % interval (paired "
            "bootstrap) leaves out 0. Seconds are those of a machine that may have had other work.",
            "",
            "| | " + " | ".join(header) + " |",
            "|---|" + "---:|" * len(header),
            *lines,
        ]
    )
    replace_section(f"{options.set}: what reads the texts", body)
    print(body)


if __name__ == "__main__":
    main()
