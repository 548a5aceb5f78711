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

from tfllmrec.config import contradictions, parse_config
from tfllmrec.training.run import Run, fit_experiment, measure_one, to_stderr
from tfllmrec.training.text_tower import TowerRecord

#: Settings beside those of a plain fit.
ROWS: dict[str, dict[str, object]] = {
    "frozen": {},
    "adapter": {"mode": "adapter"},
    "lora": {"mode": "lora"},
    "mlm": {"pretrain_epochs": 3},
    "mlm-lora": {"pretrain_epochs": 3, "mode": "lora"},
}


def fitted(name: str, files: dict[str, str], folder: Path) -> Run:
    run = folder / name
    config = parse_config({"data": files, "text": ROWS[name], "evaluation": {"baselines": ["text"]}})
    begun = (run / "config.yaml").is_file()
    if begun and (lines := contradictions(config, Run(run).config)):
        raise SystemExit(f"{run} was begun with other settings: {'; '.join(lines)}. Name another folder with --out.")
    to_stderr(f"== {name}")
    return fit_experiment(config, run, resume=begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="Folder of all data sets.")
    parser.add_argument("--out", type=Path, default=Path("runs/text"), help="Folder of the runs.")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="Which of them.")
    options = parser.parse_args()
    files = files_of(options.set, options.data)
    runs = {name: fitted(name, files, options.out / options.set) for name in options.rows}
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
