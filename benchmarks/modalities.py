"""Fits a data set with text alone, with the fields of its items, and with a second encoder's vectors as another field.

    python benchmarks/modalities.py beauty --encoder use --seeds 1 2 42

The vectors of the second encoder are a column of the items (``text.encoder`` keeps its default), so the model reads
them like vectors of images or sounds. Each variant is fitted for each seed into runs/modalities/SET, without baselines;
an interrupted fit is resumed. Writes a section of benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from quality import SETS, files_of
from sections import replace_section
from variants import fitted_variants, section

from tfllmrec.assets import cache_folder
from tfllmrec.config import TextConfig, parse_config
from tfllmrec.data import read_dataset
from tfllmrec.durable import replacing
from tfllmrec.progress import show_progress
from tfllmrec.text.side_by_side import encoder_of
from tfllmrec.text.store import VectorStore, encode_items
from tfllmrec.text.template import ItemTemplate

#: The column of the vectors.
VECTORS = "second_vector"
#: The beginning of the fit's line that says whether the fields are read.
CHOSEN = "fields of items"
#: The settings of each variant by name.
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


def about(encoder: str) -> str:
    """Describes what the variants have in common."""
    return f"Each row reads all that the row above it reads. The vectors are those of the encoder {encoder}."


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
    runs = fitted_variants(
        VARIANTS, data | {"items": str(items)}, options.seeds, options.overrides, out, prefix=f"{options.encoder}-"
    )
    body = section(runs, about(options.encoder), CHOSEN, shlex.join(["python", *sys.argv]))
    replace_section(f"modalities: {options.set}", body)
    print(body)


if __name__ == "__main__":
    main()
