"""Variants of one experiment, each fitted for several seeds, and the table of their differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from quality import fitted_run, folder_of
from sections import made_by
from seeds import MARKS, ONE_SEED, SEEDS, averaged_runs, differences

from tfllmrec.config import parse_config
from tfllmrec.runs.run import Run


def fitted_variants(
    variants: Mapping[str, Sequence[str]],
    data: Mapping[str, Any],
    seeds: Iterable[int],
    overrides: Sequence[str],
    out: Path,
    prefix: str = "",
) -> dict[str, list[Run]]:
    """The runs of each variant, one for each seed, without baselines.

    Args:
      variants: by name, its settings (``A.B=C``). data: the ``data`` section. overrides: settings of all variants.
      out: the folder of the runs. prefix: of the names of their folders.
    """
    runs: dict[str, list[Run]] = {name: [] for name in variants}
    for seed in dict.fromkeys(seeds):
        for name, settings in variants.items():
            raw = {"data": dict(data), "evaluation": {"baselines": []}, "seed": seed}
            config = parse_config(raw, [*overrides, *settings], origin="command line")
            runs[name].append(fitted_run(config, folder_of(out / f"{prefix}{name.replace(' ', '-')}", seed)))
    return runs


def section(runs: Mapping[str, Sequence[Run]], about: str, chosen: str, command: str) -> str:
    """The body of a section: how the runs were made, the table of the variants' differences, and what was chosen.

    Args:
      about: what the reader has to know of the variants. chosen: how the lines begin that are shown of what was chosen.
    """
    seeds = [run.config.seed for run in next(iter(runs.values()))]
    results = {name: averaged_runs(own)["hybrid"] for name, own in runs.items()}
    return "\n".join(
        [
            made_by(command, seeds),
            "",
            f"{about} {SEEDS if len(seeds) > 1 else ONE_SEED} {MARKS}",
            "",
            *differences(results, len(seeds)),
            "",
            *(
                f"- {name}, seed {run.config.seed}: {line}."
                for name, own in runs.items()
                for run in own
                for line in run.record["chosen"]
                if line.startswith(chosen)
            ),
        ]
    )
