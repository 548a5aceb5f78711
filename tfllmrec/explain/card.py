"""The model card of a run: Markdown with front matter in the format of Hugging Face.

The sections follow Mitchell et al. 2019, "Model cards for model reporting".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tfllmrec.columns import EVENT_KIND
from tfllmrec.config import encoder_names
from tfllmrec.data.cleaning.scripts import in_words, scripts_of
from tfllmrec.durable import write_text
from tfllmrec.evaluation.protocol import Result
from tfllmrec.evaluation.report import MIN_TARGETS, MODEL, as_markdown, list_length, targets_of
from tfllmrec.explain.compare import check_data
from tfllmrec.explain.one_run import headline_of
from tfllmrec.explain.pages import as_is, markdown_page
from tfllmrec.explain.sections import CLAIM_TARGETS, fit_again, ranked_items, without_folders
from tfllmrec.runs.run import Run
from tfllmrec.text.template import ItemTemplate

#: The suffix of a metric's label for each stratum of targets.
STRATA = {"all": "", "head": "/head", "tail": "/tail", "cold": "/cold"}
#: The file name of a card.
CARD = "CARD.md"
#: Languages that the bundled encoders read.
READS = {"minilm": "English", "e5": "about 100 languages", "use": "16 languages"}


def write_card(run: Run | Path | str, out: Path | None = None) -> Path:
    """Writes the model card of a complete run.

    Args:
      run: The run, or its folder.
      out: The file; by default ``CARD.md`` in the run folder.

    Raises:
      ConfigError: jinja2 is not installed.
      ModelError: The folder is not a complete run, or damaged.
      DataError: The data has changed since the fit.
      WriteError: The disk is full, read-only or broken.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    check_data(run)
    path = run.folder / CARD if out is None else out
    write_text(path, card_of(run))
    return path


def card_of(run: Run, for_machines: bool = True) -> str:
    """Returns the text of a run's card; all facts come from the run folder.

    Args:
      run: A complete run.
      for_machines: Whether the text begins with the front matter, as a file does.
    """
    results, config, split = run.results, run.config, run.split
    k, cleaning = list_length(results), run.record.get("cleaning") or {}
    return markdown_page(
        "card.md",
        front_matter=as_is(_yaml(front_matter(run))) if for_machines else None,
        name=run.metrics["data"]["name"],
        again=fit_again(run.name),
        headline=headline_of(run),
        alarms=run.metrics.get("alarms", []),
        data=run.metrics["data"],
        split=run.metrics["split"],
        scoreboard=as_is(as_markdown(results)),
        ranked=ranked_items(run),
        fields=split.schema.lines(),
        doubts=[found["what"] for found in cleaning.get("findings", []) if found["action"] == "doubted"],
        config=config,
        encoder=_encoder(run),
        scripts=_scripts(run),
        chosen=run.record["chosen"],
        record=run.record,
        rated=run.dataset.has_ratings,
        repeats=run.dataset.repeats,
        kinds=any(field.name == EVENT_KIND for field in split.schema.fields),
        small=small_strata(results),
        claim=CLAIM_TARGETS,
        cold=int(split.strata(config.evaluation.head_share)["cold"].sum()),
        k=k,
        exposure={name: results[MODEL].metrics[f"{name}@{k}"] for name in ("coverage", "gini")},
    )


def _yaml(facts: dict[str, Any]) -> str:
    return yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=1000)


def front_matter(run: Run) -> dict[str, Any]:
    """Returns the metadata of a card in the format of Hugging Face's model index, without language and license."""
    results, data = run.results, run.metrics["data"]
    k, few = list_length(results), small_strata(results, MIN_TARGETS)
    labels = {
        f"{name}@{k}{suffix}": name
        for name in ("ndcg", "recall")
        for stratum, suffix in STRATA.items()
        if stratum not in few
    }
    measured = [
        {"type": name, "name": label, "value": round(value, 4)}
        for label, name in labels.items()
        if (value := results[MODEL].metrics.get(label)) is not None
    ]
    return {
        "library_name": "tfllmrec",
        "tags": ["recommendation", "retrieval", "tensorflow", "tf-keras", "text-embedding"],
        "metrics": sorted({entry["type"] for entry in measured}),
        "model-index": [
            {
                "name": run.name,
                "results": [
                    {
                        "task": {"type": "recommendation", "name": f"next items from {ranked_items(run)}"},
                        "dataset": {
                            "type": data["name"],
                            "name": data["name"],
                            "split": f"test ({run.metrics['split']['kind']})",
                            "revision": run.record["data_sha256"],
                        },
                        "metrics": measured,
                    }
                ],
            }
        ],
    }


def small_strata(results: Mapping[str, Result], fewest: int = CLAIM_TARGETS) -> dict[str, int]:
    """Returns the number of targets of each stratum of :data:`STRATA` that has fewer than ``fewest``."""
    k = list_length(results)
    counts = {stratum: targets_of(results, f"recall@{k}{suffix}") for stratum, suffix in STRATA.items()}
    return {stratum: count for stratum, count in counts.items() if count is not None and count < fewest}


def _encoder(run: Run) -> str:
    """Returns the names of the encoders, with the languages that the bundled ones read."""
    names = encoder_names(run.config.text.encoder)
    return ", ".join(without_folders(name) + (f" ({READS[name]})" if name in READS else "") for name in names)


def _scripts(run: Run) -> str:
    """Returns the scripts of the texts that the model reads; empty if no item has text."""
    template = run.config.text.template
    return "" if template is None else in_words(scripts_of(ItemTemplate(template).texts(run.split.items)))
