"""Measures a fitted hybrid with and without each of its parts on the test queries, for head, tail and cold items.

    python benchmarks/ablation.py runs/quality/toys runs/quality/toys-seed1 runs/quality/toys-seed2

Each folder is a run with a different seed; figures are averaged over the seeds. Terms and gates are switched off in the
fitted model, and the gates' settings are chosen again on the validation queries. To leave out texts, ids, attention or
feedback, the model is trained again for each part and seed with the run's other settings. Each of these trainings takes
as long as the run's did; ``--switches-only`` skips them. Writes a section of benchmarks/RESULTS.md.

Finished parts are stored in RUN/ablation/, so that an interrupted command continues where it stopped; delete this
folder to measure again.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow as tf
from sections import made_by, replace_section
from seeds import MARKS, ONE_SEED, SEEDS, check_seeds, differences

from tfllmrec.data.batches import Sequences
from tfllmrec.evaluation.protocol import Result, averaged, evaluate
from tfllmrec.evaluation.result_files import load_result, save_result
from tfllmrec.layers.term_gates import GAIN
from tfllmrec.models.fitting import TrainingData
from tfllmrec.models.hybrid import Hybrid
from tfllmrec.progress import to_stderr
from tfllmrec.runs.run import ABLATION, Run
from tfllmrec.runs.search_space import with_settings
from tfllmrec.training.fit import (
    STRENGTHS,
    GateSettings,
    choose_cold_lift,
    choose_gates,
    fit_hybrid,
    set_item_weights,
)


def dense_off(model: Hybrid, run: Run) -> None:
    GateSettings(dense_strength=0.0, closing=0.0).apply(model)


def behaviour_off(model: Hybrid, run: Run) -> None:
    gate_a_off(model, run)
    model.gates.log_scales.assign([0.0, -np.inf])


def gate_a_off(model: Hybrid, run: Run) -> None:
    """Gives every item the same gate a_i: its mean over the training events."""
    share = np.average(model.gates.gate(model.train_counts), weights=model.train_counts.numpy())
    kernel, bias = model.gates.output_map.weights
    kernel.assign(tf.zeros_like(kernel))
    bias.assign([np.log(share / (1 - share)) / GAIN])


def gate_b_off(model: Hybrid, run: Run) -> None:
    """Gives every user with feedback the same gate b_u, which then depends on its bias only."""
    kernel = model.feedback.gate.kernel
    kernel.assign(tf.zeros_like(kernel))


def text_of_behaviour_off(model: Hybrid, run: Run) -> None:
    model.item_weights = model.item_weights.model_copy(update={"text": 0.0})
    sequences = Sequences.from_split(run.split, run.config.training.gate_holdout, run.config.seed)
    set_item_weights(model, sequences)


#: Parts that are switched off in the fitted model. Afterwards the gates' settings are chosen again, unless only the
#: sparse term is left.
SWITCHES: dict[str, Callable[[Hybrid, Run], None]] = {
    "without meaning and feedback": dense_off,
    "without behaviour": behaviour_off,
    "gate a_i the same for all items": gate_a_off,
    "gate b_u the same for all users": gate_b_off,
    "behaviour without text": text_of_behaviour_off,
}

#: Parts that are left out by training again, with the settings that replace those of the run.
RETRAINED: dict[str, dict[str, object]] = {
    "without feedback": {"model.terms": ["meaning", "behaviour"]},
    "without ids": {"model.id_dropout": 1.0},
    "without attention": {"model.blocks": 0},
    "without texts of users": {"model.user_text": False},
}


def variants(run: Run, switches_only: bool) -> Iterator[tuple[str, Callable[[], Hybrid]]]:
    """Yields the name of each variant of a run and a function that makes its model, starting with the whole model."""
    rated = np.isfinite(run.split.train_queries().ratings.values).any()
    read = np.any(run.text)
    yield "whole model", run.load_model
    for name, switch in SWITCHES.items():
        if (rated or switch is not gate_b_off) and (read or switch is not text_of_behaviour_off):
            yield name, partial(switched, run, switch)
    if switches_only:
        return
    for name, settings in RETRAINED.items():
        lacking = {"without feedback": not rated, "without texts of users": not run.config.model.user_text}
        if not lacking.get(name):
            yield f"{name}, trained again", partial(retrained, run, name, settings, run.training_data)
    if read:
        data = TrainingData.of(run.split, np.zeros_like(run.text), run.config)
        none = {"item_weights.text": 0.0, "model.user_text": False}
        yield "without text, trained again", partial(retrained, run, "without text", none, data)


def switched(run: Run, switch: Callable[[Hybrid, Run], None]) -> Hybrid:
    model = run.load_model()
    switch(model, run)
    if switch is not dense_off:
        choose_gates(model, run.training_data, STRENGTHS[1:])
        choose_cold_lift(model, run.training_data)
    return model


def retrained(run: Run, name: str, settings: dict[str, object], data: TrainingData) -> Hybrid:
    config = with_settings(run.config, settings)
    folder = run.folder / ABLATION / name.replace(" ", "_")
    return fit_hybrid(data, config, folder, to_stderr).model


def measured(run: Run, switches_only: bool) -> dict[str, Result]:
    """Returns the results of all variants of a run on its test queries; finished ones are read from its folder."""
    split = run.split
    strata = split.strata(run.config.evaluation.head_share)
    results = {}
    for name, make in variants(run, switches_only):
        kept = run.folder / ABLATION / f"{name.replace(' ', '_').replace(',', '')}.npz"
        if not kept.is_file():
            to_stderr(f"{run.folder}: {name}")
            counts = split.train_counts
            result = evaluate(make(), split.test, train_counts=counts, strata=strata, ks=[10], bootstrap=0)
            save_result(kept, result)
        results[name] = load_result(kept)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="Complete run folders, one for each seed.")
    parser.add_argument("--switches-only", action="store_true", help="Nothing is trained again.")
    options = parser.parse_args()
    runs = [Run.open(folder) for folder in options.runs]
    terms = runs[0].config.model.terms
    if "behaviour" not in terms or terms == ["behaviour"]:
        parser.error(f"{options.runs[0]} has only {terms}: there is nothing to weigh against each other.")
    check_seeds(runs)
    seeds = [measured(run, options.switches_only) for run in runs]
    results = {name: averaged([results[name] for results in seeds], bootstrap=0) for name in seeds[0]}
    title = f"{runs[0].metrics['data']['name']}: what each part is worth"
    body = "\n".join(
        [
            made_by(shlex.join(["python", *sys.argv]), [run.config.seed for run in runs]),
            "",
            f"Test queries. In brackets the difference to the whole model. {MARKS} "
            f"{SEEDS if len(runs) > 1 else ONE_SEED}",
            "",
            *differences(results, len(runs)),
        ]
    )
    replace_section(title, body)
    print(body)


if __name__ == "__main__":
    main()
