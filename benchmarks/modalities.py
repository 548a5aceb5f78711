"""Fits a data set with text alone, with the fields of its items, and with a second encoder's vectors as one more field.

    python benchmarks/modalities.py beauty --encoder use --seeds 1 2 42

The vectors of the second encoder are a column of the items (``text.encoder`` stays the default), so they are read as an
image's or a sound's would be. Each variant is fitted for each seed into runs/modalities/SET, without baselines; an
interrupted fit is resumed. Writes a section of benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from quality import SETS, files_of, fitted_run, folder_of
from sections import made_by, replace_section
from seeds import MARKS, ONE_SEED, SEEDS, averaged_runs, differences

from tfllmrec.assets import cache_folder
from tfllmrec.config import TextConfig, parse_config
from tfllmrec.data import read_dataset
from tfllmrec.durable import replacing
from tfllmrec.progress import show_progress
from tfllmrec.runs.run import Run
from tfllmrec.text.side_by_side import encoder_of
from tfllmrec.text.store import VectorStore, encode_items
from tfllmrec.text.template import ItemTemplate

#: The column of the vectors.
VECTORS = "second_vector"
#: By name: the settings of a variant.
VARIANTS = {
    "text and id": ["model.item_fields=none"],
    "and the fields of items": ["model.item_fields=all", f"data.fields.{VECTORS}.use=false"],
    "and vectors of a second encoder": ["model.item_fields=all"],
}


def items_with_vectors(data: dict[str, str], encoder_name: str, path: Path) -> None:
    """Writes the items of a data set to a Parquet file, with the vectors of their texts as a column of lists."""
    items = read_dataset(parse_config({"data": data}).data).items
    encoder = encoder_of(TextConfig(encoder=encoder_name))
    texts = ItemTemplate.from_items(items).texts(items)
    with show_progress("Encoding items", "texts") as progress:
        vectors = encode_items(texts, encoder, VectorStore(cache_folder() / "vectors"), progress)
    told = [vector if text else None for vector, text in zip(vectors, texts, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as fresh:
        items.assign(**{VECTORS: told}).to_parquet(fresh, index=False)


def section(runs: Mapping[str, Sequence[Run]], encoder: str, command: str) -> str:
    """The body of a section: how the runs were made, and the table of the variants' differences."""
    seeds = [run.config.seed for run in next(iter(runs.values()))]
    results = {name: averaged_runs(own)["hybrid"] for name, own in runs.items()}
    return "\n".join(
        [
            made_by(command, seeds),
            "",
            f"Each row reads all that the row above it reads. The vectors are those of the encoder {encoder}. "
            f"{SEEDS if len(seeds) > 1 else ONE_SEED} {MARKS}",
            "",
            *differences(results, len(seeds)),
            "",
            *(
                f"- {name}, seed {run.config.seed}: {line}."
                for name, own in runs.items()
                for run in own
                for line in run.record["chosen"]
                if line.startswith("fields of items")
            ),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=[name for name, files in SETS.items() if files])
    parser.add_argument("--encoder", default="use", help="A value of text.encoder, beside the default one.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="Folder of all data sets.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42], help="Each variant is fitted for each.")
    parser.add_argument("--out", type=Path, help="Folder of the runs; by default runs/modalities/SET.")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C", help="A setting.")
    options = parser.parse_args()
    out = options.out or Path("runs/modalities") / options.set
    data, items = files_of(options.set, options.data), out / f"items-{options.encoder}.parquet"
    if not items.is_file():
        items_with_vectors(data, options.encoder, items)
    runs: dict[str, list[Run]] = {name: [] for name in VARIANTS}
    for seed in dict.fromkeys(options.seeds):
        for name, settings in VARIANTS.items():
            folder = folder_of(out / f"{options.encoder}-{name.replace(' ', '-')}", seed)
            raw = {"data": data | {"items": str(items)}, "evaluation": {"baselines": []}, "seed": seed}
            config = parse_config(raw, [*options.overrides, *settings], origin="command line")
            runs[name].append(fitted_run(config, folder))
    body = section(runs, options.encoder, shlex.join(["python", *sys.argv]))
    replace_section(f"modalities: {options.set}", body)
    print(body)


if __name__ == "__main__":
    main()
