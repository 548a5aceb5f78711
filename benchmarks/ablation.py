"""What each part of a fitted hybrid is worth: head, tail and cold items, with and without it, on the test queries.

    python benchmarks/ablation.py runs/quality/toys

Terms and gates are switched off in the fitted model, with the gates' strength and closing chosen again on validation.
Text, ids, attention and feedback are left out of the training, which is done again for each with the run's own
settings: that takes as long as the run's training did, each (``--switches-only`` leaves it out). Writes a section of
benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
from sections import made_by, replace_section

from tfllmrec.data.batches import Sequences
from tfllmrec.evaluation.protocol import Result, evaluate, paired_difference
from tfllmrec.layers.term_gates import GAIN
from tfllmrec.models.hybrid import Hybrid
from tfllmrec.models.item_weights import ItemWeightSettings
from tfllmrec.training.defaults import validation_sample
from tfllmrec.training.fit import STRENGTHS, choose_gates, fit_hybrid, set_item_weights
from tfllmrec.training.run import Run, to_stderr

COLUMNS = ("ndcg@10", "recall@10", "recall@10/head", "recall@10/tail", "recall@10/cold")


def dense_off(model: Hybrid, run: Run) -> None:
    model.gates.dense_strength.assign(0.0)
    model.gates.closing.assign(0.0)


def behaviour_off(model: Hybrid, run: Run) -> None:
    gate_a_off(model, run)
    model.gates.log_scales.assign([0.0, -np.inf])


def gate_a_off(model: Hybrid, run: Run) -> None:
    """The same for every item: the gate's mean over the training events."""
    share = np.average(model.gates.gate(model.train_counts), weights=model.train_counts.numpy())
    kernel, bias = model.gates.output_map.weights
    kernel.assign(tf.zeros_like(kernel))
    bias.assign([np.log(share / (1 - share)) / GAIN])


def gate_b_off(model: Hybrid, run: Run) -> None:
    """The same for everybody with feedback: the gate as it is before it looks at the person."""
    kernel = model.feedback.gate.kernel
    kernel.assign(tf.zeros_like(kernel))


def text_of_behaviour_off(model: Hybrid, run: Run) -> None:
    config = run.config.model
    settings = ItemWeightSettings(**config.item_weight_settings | {"text": 0.0})
    sequences = Sequences.from_split(run.split, run.config.training.gate_holdout, run.config.seed)
    set_item_weights(model, sequences, np.asarray(run.text), settings)


#: In the fitted model. The gates' strength and closing are chosen again, but where nothing is left to weigh.
SWITCHES: dict[str, Callable[[Hybrid, Run], None]] = {
    "without meaning and feedback": dense_off,
    "without behaviour": behaviour_off,
    "gate a_i the same for all items": gate_a_off,
    "gate b_u the same for all people": gate_b_off,
    "behaviour without text": text_of_behaviour_off,
}

#: Trained again: overrides of the run's settings.
RETRAINED: dict[str, dict[str, object]] = {
    "without feedback": {"terms": ["meaning", "behaviour"]},
    "without ids": {"id_dropout": 1.0},
    "without attention": {"blocks": 0},
}


def variants(run: Run, switches_only: bool) -> dict[str, Hybrid]:
    """Every variant by name, fitted; the whole model first."""
    split, sample = run.split, validation_sample(run.split, run.config.seed)
    strata = split.strata(run.config.evaluation.head_share)
    rated = np.isfinite(split.train_queries().ratings.values).any()
    fitted = {"all of it": run.load_model()}
    for name, switch in SWITCHES.items():
        if (switch is gate_b_off and not rated) or (switch is text_of_behaviour_off and not np.any(run.text)):
            continue
        to_stderr(f"variant: {name}")
        model = run.load_model()
        switch(model, run)
        if switch is not dense_off:
            choose_gates(model, sample, split.train_counts, strata, STRENGTHS[1:])
        fitted[name] = model
    if switches_only:
        return fitted
    for name, settings in RETRAINED.items():
        if name == "without feedback" and not rated:
            continue
        to_stderr(f"variant: {name}, trained again")
        fitted[name] = retrained(run, settings, np.asarray(run.text))
    if np.any(run.text):
        to_stderr("variant: without text, trained again")
        fitted["without text"] = retrained(run, {"item_weights_text": 0.0}, np.zeros_like(run.text))
    return fitted


def retrained(run: Run, settings: dict[str, object], text: np.ndarray) -> Hybrid:
    config = run.config.model_copy(update={"model": run.config.model.model_copy(update=settings)})
    return fit_hybrid(run.split, text, config, tell=to_stderr).model


def line(name: str, result: Result, whole: Result) -> str:
    cells = []
    for label in COLUMNS:
        value = result.metrics.get(label)
        if value is None:
            cells.append("-")
        elif result is whole:
            cells.append(f"{value:.4f}")
        else:
            difference, low, high = paired_difference(result, whole, label)
            mark = "" if low <= 0 <= high else "*"
            cells.append(f"{value:.4f} ({difference:+.4f}{mark})")
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="A complete run folder.")
    parser.add_argument("--switches-only", action="store_true", help="Nothing is trained again.")
    options = parser.parse_args()
    run = Run.open(options.run)
    split = run.split
    if "behaviour" not in run.config.model.terms or run.config.model.terms == ["behaviour"]:
        parser.error(f"{options.run} has only {run.config.model.terms}: there is nothing to weigh against each other.")
    models = variants(run, options.switches_only)
    results = {
        name: evaluate(
            model,
            split.test,
            train_counts=split.train_counts,
            strata=split.strata(run.config.evaluation.head_share),
            ks=[10],
            bootstrap=0,
        )
        for name, model in models.items()
    }
    whole = results["all of it"]
    title = f"{run.metrics['data']['name']}: what each part is worth"
    command = f"python benchmarks/ablation.py {options.run}" + (" --switches-only" if options.switches_only else "")
    body = "\n".join(
        [
            made_by(command, run.config.seed),
            "",
            "Test queries. In brackets the difference to the whole model; * where its 95 % interval (paired bootstrap) "
            "leaves out 0.",
            "",
            "| | " + " | ".join(COLUMNS) + " |",
            "|---|" + "---:|" * len(COLUMNS),
            *(line(name, result, whole) for name, result in results.items()),
        ]
    )
    replace_section(title, body)
    print(body)


if __name__ == "__main__":
    main()
