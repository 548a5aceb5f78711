"""What reads the texts: one fit for each way to train the encoder, all other settings as the frozen one's were chosen.

    python benchmarks/text_towers.py beauty

fits runs/text/SET/ROW for each row (a complete one is only measured, an interrupted one gone on with) and writes one
table into benchmarks/RESULTS.md. ``--frozen runs/quality/beauty`` takes that run as the first row.
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
from tfllmrec.text.bundled import hub_handles
from tfllmrec.training.run import Run, fit_experiment, measure_one, to_stderr
from tfllmrec.training.text_tower import TowerRecord

#: Settings of the ``text`` section beside those of a plain fit; ``mlm-lora`` goes on from what ``mlm`` has made.
ROWS: dict[str, dict[str, object]] = {
    "frozen": {},
    "adapter": {"mode": "adapter"},
    "lora": {"mode": "lora"},
    "mlm": {"pretrain_epochs": 3},
    "mlm-lora": {"mode": "lora"},
}


def fitted(name: str, files: dict[str, str], folder: Path, frozen: Run | None, precision: str) -> Run:
    """The run of a row, with the settings that were chosen for ``frozen``, or chosen from the data without it."""
    run = folder / name
    settings = frozen.config.model_dump(mode="json") if frozen else {"text": {}}
    text = settings["text"] | ROWS[name] | {"precision": precision}
    if name == "mlm-lora":
        text |= {"encoder": str((folder / "mlm" / "text" / "encoder").resolve()), "preprocessor": str(hub_handles()[0])}
        text["precision"] = "float32"  # a Hub encoder brings its own, here that of mlm
    # The table is of what the hybrid recommends: no row needs the model that puts candidates into order.
    others = {"data": files, "evaluation": {"baselines": ["text"]}, "ranking": {"epochs": 0}}
    config = parse_config(settings | others | {"text": text})
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
    parser.add_argument("--frozen", type=Path, help="A complete run, in place of fitting the first row.")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="bfloat16", help="Of the towers that are trained."
    )
    parser.add_argument("--rows", nargs="+", choices=list(ROWS)[1:], default=list(ROWS)[1:], help="Which others.")
    options = parser.parse_args()
    files = files_of(options.set, options.data)
    folder = options.out / options.set
    frozen = Run.open(options.frozen) if options.frozen else fitted("frozen", files, folder, None, options.precision)
    runs = {"frozen": frozen} | {name: fitted(name, files, folder, frozen, options.precision) for name in options.rows}
    results = {name: measure_one(run.load_model(), run.split.test, run.split, run.config) for name, run in runs.items()}
    whole = results["frozen"]
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
            made_by(shlex.join(["python", *sys.argv]), frozen.config.seed),
            "",
            "Test queries. In brackets the difference to frozen; * where its 95 % interval (paired bootstrap) leaves "
            "out 0. All rows have the settings that were chosen for the frozen one. Seconds are those of a machine "
            "that may have had other work; mlm-lora goes on from mlm's encoder, whose seconds and bytes it leaves out.",
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
