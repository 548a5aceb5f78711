"""Compares ways of training the text encoder, and other encoders, with otherwise the settings of the frozen encoder.

    python benchmarks/text_towers.py beauty

fits runs/text/SET/ROW for each row (a complete fit is only measured, an interrupted one is resumed) and writes a table
to a section of benchmarks/RESULTS.md; if none of the rows trains its encoder (``--rows minilm+e5``), to a separate
section. ``--frozen runs/quality/beauty`` takes this run as the first row. With frozen runs of several seeds, the other
rows are fitted for each of these seeds (in runs/text/SET-seed1, ...) and averaged.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np
from quality import SETS, files_of, fitted_run, folder_of
from sections import made_by, replace_section
from seeds import MARKS, ONE_SEED, SEEDS, check_seeds, differences

from tfllmrec.config import parse_config
from tfllmrec.evaluation.protocol import averaged
from tfllmrec.progress import to_stderr
from tfllmrec.runs.run import Run
from tfllmrec.runs.scoreboard import measure_one
from tfllmrec.text.bundled import hub_handles
from tfllmrec.training.text.tower import TowerRecord

#: Settings of the ``text`` section that differ from the frozen row; ``mlm-lora`` starts from the encoder of ``mlm``.
ROWS: dict[str, dict[str, object]] = {
    "frozen": {},
    "adapter": {"mode": "adapter"},
    "lora": {"mode": "lora"},
    "adalora": {"mode": "adalora"},
    "prefix": {"mode": "prefix"},
    "joint": {"mode": "joint"},
    "mlm": {"pretrain_epochs": 3},
    "mlm-lora": {"mode": "lora"},
    "e5": {"encoder": "e5"},
    "minilm+e5": {"encoder": "minilm+e5"},
    "minilm+e5+use": {"encoder": "minilm+e5+use"},
}


def fitted(name: str, files: dict[str, str], folder: Path, frozen: Run | None, precision: str) -> Run:
    """Returns the run of a row, with the settings of the run ``frozen``; without it, they are chosen from the data."""
    run = folder / name
    settings = frozen.config.model_dump(mode="json") if frozen else {"text": {}}
    text = settings["text"] | ROWS[name] | {"precision": precision}
    if name == "mlm-lora":
        text |= {"encoder": str((folder / "mlm" / "text" / "encoder").resolve()), "preprocessor": str(hub_handles()[0])}
        text["precision"] = "float32"  # a Hub encoder has its own precision, here that of mlm
    if "use" in str(text.get("encoder")).split("+"):
        text["precision"] = "float32"  # the only precision of this encoder
    # The table shows the hybrid only: no row needs the ranking model.
    others = {"data": files, "evaluation": {"baselines": ["text"]}, "ranking": {"epochs": 0}}
    config = parse_config(settings | others | {"text": text})
    to_stderr(f"== {name}")
    return fitted_run(config, run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="Folder of all data sets.")
    parser.add_argument("--out", type=Path, default=Path("runs/text"), help="Folder of the runs.")
    parser.add_argument(
        "--frozen", type=Path, nargs="+", default=[], help="Complete runs, one for each seed, for the first row."
    )
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="bfloat16", help="Of the towers that are trained."
    )
    parser.add_argument("--rows", nargs="+", choices=list(ROWS)[1:], default=list(ROWS)[1:], help="Which others.")
    options = parser.parse_args()
    files = files_of(options.set, options.data)
    base, precision = options.out / options.set, options.precision
    frozen = [Run.open(path) for path in options.frozen] or [fitted("frozen", files, base, None, precision)]
    check_seeds(frozen)
    runs = {"frozen": frozen}
    for name in options.rows:
        runs[name] = [fitted(name, files, folder_of(base, run.config.seed), run, precision) for run in frozen]
    results, more = {}, {}
    for name, seeds in runs.items():
        results[name] = averaged(
            [measure_one(run.load_model(), run.split.test, run.split, run.config) for run in seeds]
        )
        towers = [TowerRecord.load(run.folder / "text") for run in seeds]
        tower = towers[0]
        alone = [run.metrics["results"]["text"]["ndcg@10"] for run in seeds]
        more[name] = {
            "ndcg@10 of the texts alone": f"{np.mean(alone):.4f}",
            "s for the tower": f"{np.mean([each.seconds if each else 0 for each in towers]):.0f}",
            "s in all": f"{np.mean([run.record['seconds'] for run in seeds]):.0f}",
            "weights trained": f"{tower.trained:,}" if tower else "0",
            "bytes shipped": f"{tower.bytes:,}" if tower else "0",
        }
    body = "\n".join(
        [
            made_by(shlex.join(["python", *sys.argv]), [run.config.seed for run in frozen]),
            "",
            f"Test queries. In brackets the difference to frozen. {MARKS} "
            f"{SEEDS if len(frozen) > 1 else ONE_SEED} All rows have the settings that were chosen for the frozen "
            "encoder. Seconds are those of a machine that may have had other work; mlm-lora continues from mlm's "
            "encoder, and its seconds and bytes leave that out.",
            "",
            *differences(results, len(frozen), more),
        ]
    )
    trains = any(ROWS[name].keys() - {"encoder"} for name in options.rows)
    replace_section(f"{options.set}: {'what reads the texts' if trains else 'encoders'}", body)
    print(body)


if __name__ == "__main__":
    main()
