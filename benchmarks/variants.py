"""Fits variants of one experiment for several seeds and makes a table of their differences."""

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
    """Returns the runs of each variant, one for each seed, fitted without baselines.

    Args:
      variants: The settings (``A.B=C``) of each variant by name.
      data: The ``data`` section.
      seeds: The seeds.
      overrides: Settings of all variants.
      out: The folder of the runs.
      prefix: A prefix of the names of their folders.
    """
    runs: dict[str, list[Run]] = {name: [] for name in variants}
    for seed in dict.fromkeys(seeds):
        for name, settings in variants.items():
            raw = {"data": dict(data), "evaluation": {"baselines": []}, "seed": seed}
            config = parse_config(raw, [*overrides, *settings], origin="command line")
            runs[name].append(fitted_run(config, folder_of(out / f"{prefix}{name.replace(' ', '-')}", seed)))
    return runs


def section(runs: Mapping[str, Sequence[Run]], about: str, chosen: str, command: str) -> str:
    """Returns the body of a section: how the runs were made, the variants' differences, and what was chosen.

    Args:
      runs: The runs of each variant by name.
      about: An explanation of the variants.
      chosen: The beginning of the lines on chosen settings to show.
      command: The command of the benchmark.
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
