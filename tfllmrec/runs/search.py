"""Hyperparameter search: many fits on the same data, compared on the validation queries; the test is never used.

OUT/
  search.json   the searched settings with their distinct values, and the number of trials
  base/         what all trials share: data, text vectors, and the config that trials vary
  study.log     optuna's journal: every trial that was started
  trial-N/      checkpoints of the running trial and of the best one so far
  logs/         TensorBoard: HParams, and each trial's curves
  trials.json   settings and figures of all finished trials
  best.yaml     the config of the best trial: 'tfllmrec fit OUT/best.yaml'

An interrupted search continues where it stopped, including the training of its text tower. The settings of each trial
depend only on its own seed and on the finished trials before it, and its fit continues from its last epoch, so the
trials are the same as those of an uninterrupted search.
"""

from __future__ import annotations

import gc
import json
import logging
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hp

from tfllmrec.board.scoreboard import writing_to
from tfllmrec.board.tags import SELECTION, tag_of
from tfllmrec.config import ExperimentConfig, dump_config, load_config, paraphrase_option
from tfllmrec.durable import add_advice, locked, publish_folder, read_json, replacing, write_text, writing
from tfllmrec.errors import ConfigError, ModelError, TfllmrecError, WriteError
from tfllmrec.evaluation.protocol import evaluate, selection_value
from tfllmrec.models.fitting import TrainingData
from tfllmrec.progress import Tell, show_progress, to_stderr
from tfllmrec.runs.experiment import encode, first_free, start_run
from tfllmrec.runs.graph import graph_of_fit
from tfllmrec.runs.run import PLAN, Run, unfinished
from tfllmrec.runs.search_space import (
    Choice,
    Range,
    Setting,
    default_space,
    distinct,
    label,
    parse_space,
    require_optuna,
    value_of,
    with_settings,
)
from tfllmrec.training.callbacks import FitState
from tfllmrec.training.defaults import sizes
from tfllmrec.training.fit import choose, fit_hybrid

if TYPE_CHECKING:
    import optuna

#: Validation metrics that are stored for each trial, in addition to ``selection``.
METRICS = ("ndcg@10", "ndcg@10/tail", "recall@10", "recall@10/tail")
TRIALS = 20
_REMEDY = "search again into another folder"
#: Number of trials with random settings, before the sampler uses the results of earlier trials.
RANDOM_TRIALS = 10
#: No trial is stopped early before this many are complete, nor in its first epoch.
UNPRUNED_TRIALS = 5
#: With fewer complete trials, the importance of the settings is not computed.
IMPORTANCE_TRIALS = 8


@dataclass(frozen=True)
class _Plan:
    """The content of :data:`PLAN`."""

    trials: int
    space: list[str]


@dataclass(frozen=True)
class Trial:
    """A finished trial.

    Attributes:
      number: Number of the trial, from 1.
      state: ``complete``; ``pruned``: stopped early, because it was worse than most trials at that epoch; ``failed``:
        see ``error``.
      selection: The value by which trials are compared (:func:`selection_value`), of the best epoch on all validation
        queries.
      settings: Settings by ``section.name``; lists as JSON text.
      metrics: Validation metrics by label; ``None`` for a metric without a value.
      epochs: Number of trained epochs.
      seconds: Run time of the process that finished the trial.
      error: The error of a failed trial.
    """

    number: int
    state: str
    selection: float | None
    settings: dict[str, Any]
    metrics: dict[str, float | None]
    epochs: int
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class Search:
    """The finished trials of a search, in their order.

    Attributes:
      folder: The search folder.
      trials: The finished trials.
      importance: The share of each setting in what makes a trial one of the best quarter (PED-ANOVA, Watanabe et al.
        2023, arXiv:2304.10255), largest first; empty if there are too few trials, or if no setting mattered.
    """

    folder: Path
    trials: list[Trial]
    importance: dict[str, float]

    @property
    def best_config(self) -> Path:
        """The path of the best trial's config."""
        return self.folder / "best.yaml"

    @property
    def fit_command(self) -> str:
        """The command that fits the best config into a run folder next to the search."""
        function = load_config(self.best_config, of_run=True).config.tuning.paraphrase
        return f"tfllmrec fit {self.best_config} --out {self.folder}-best{paraphrase_option(function)}"

    @property
    def ranking(self) -> list[Trial]:
        """The complete trials, best first."""
        complete = [trial for trial in self.trials if trial.state == "complete"]
        return sorted(complete, key=lambda trial: -(trial.selection or 0.0))

    def as_json(self) -> dict[str, Any]:
        """Returns the content of ``trials.json``, which is also printed by ``tune --json``."""
        return {
            "best": self.ranking[0].number if self.ranking else None,
            "trials": [asdict(trial) for trial in self.trials],
            "importance": self.importance,
        }


def tune(
    config: ExperimentConfig,
    out: Path | None = None,
    *,
    base: Path = Path(),
    space: Sequence[Setting] | None = None,
    trials: int = TRIALS,
    tell: Tell = to_stderr,
) -> Search:
    """Reads and splits the data and encodes the texts once, then fits the hybrid once for each trial's settings.

    The first trial uses the config's own values, or the values that a fit would choose for *auto*, if the space
    contains them: the best trial is no worse than that. Item-item weights that no trial changes are chosen once, for
    all trials.

    The folder is locked during the search: a second process that tries to write to it ends with an error.

    Args:
      config: The settings that trials vary; they may be *auto*.
      out: The folder to write; by default ``runs/tune``, with a number if this folder exists.
      base: The folder that relative data paths refer to.
      space: The settings to search; by default :func:`default_space`.
      trials: Number of trials to finish, including those that are stopped early.
      tell: Called with a line of text for each step.

    Raises:
      ConfigError: Optuna is not installed; ``out`` is taken or in use by another process; a setting of ``space`` has
        fewer than two different values with this data; or ``config`` has ``text.mode=joint`` or ``transfer.sources``.
      WriteError: The disk is full, read-only or broken. The finished trials are kept, and :func:`resume` continues.
      DataError: See :func:`fit_experiment`.
      ModelError: All trials failed.
    """
    require_optuna()
    if config.text.mode == "joint":
        raise ConfigError(
            "text.mode=joint: expected another text.mode for a search, which trains the text tower once; a joint tower "
            "depends on the settings that the trials vary. Search with text.mode=frozen, then fit the best config with "
            "joint."
        )
    if config.transfer.sources:
        raise ConfigError("transfer.sources: expected none for a search, whose trials are fits on the data alone.")
    if space is None:
        space = default_space(config)
    with (
        _free_folder(out) as out,
        _continued(out, config.tuning.paraphrase),
        start_run(config, out / "base", base=base, tell=tell) as (run, config),
    ):
        tell(f"search folder: {out}")
        split = run.split
        space = distinct(space, config, lambda settled: sizes(split, settled))
        # Written before the texts are encoded, because that may train a text tower, which resume can then continue.
        plan = {"trials": trials, "space": [str(setting) for setting in space]}
        write_text(out / PLAN, json.dumps(plan, indent=1))
        try:
            text = encode(run, config, tell)
        except TfllmrecError:
            if not (run.folder / "text").exists():  # nothing is learnt yet, and the settings may have been wrong
                (out / PLAN).unlink()
            raise
        return _search(run, config, text, space, trials, out, tell)


def resume(out: Path, trials: int | None = None, *, paraphrase: str | None = None, tell: Tell = to_stderr) -> Search:
    """Continues an interrupted search, or a complete one for more trials.

    Args:
      out: The search folder.
      trials: The total number of trials; by default that with which the search was started.
      paraphrase: The function of ``tuning.paraphrase``, if the search was started with one and tunes a text tower.
      tell: Called with a line of text for each step.

    Raises:
      ConfigError: Optuna is not installed, there is no search in ``out``, another process writes to it, or the search
        would call a function other than ``paraphrase``.
      WriteError: As for :func:`tune`.
      ModelError: The folder is damaged, or all trials failed.
    """
    require_optuna()
    plan = out / PLAN
    if not plan.is_file():
        raise ConfigError(
            f"Nothing to resume: {out} has no search.json. Start a search with 'tfllmrec tune CONFIG --out'."
        )
    with locked(out), locked(out / "base"), _continued(out, paraphrase):
        run = Run(out / "base", paraphrase)
        config = run.config
        begun = read_json(plan, _Plan, _REMEDY)
        try:
            space = parse_space(begun.space, config)
        except ConfigError as error:
            raise ModelError(f"{plan} is damaged ({'; '.join(error.args)}): {_REMEDY}.") from error
        return _search(run, config, encode(run, config, tell), space, trials or begun.trials, out, tell)


@contextmanager
def _continued(out: Path, paraphrase: str | None) -> Iterator[None]:
    """Adds the command that continues the search to write errors."""
    try:
        with writing(out):
            yield
    except WriteError as error:
        if (out / PLAN).is_file():
            command = f"tfllmrec tune --resume {out}{paraphrase_option(paraphrase)}"
            add_advice(error, f"Once it can be written, continue with: {command}")
        raise


class Pruning(tf.keras.callbacks.Callback):
    """A callback that reports the validation value of each epoch to optuna, and stops the fit of pruned trials."""

    def __init__(self, trial: optuna.Trial) -> None:
        super().__init__()
        self.trial, self.pruned = trial, False

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if self.hopeless(epoch, (logs or {})["selection"]):
            self.model.stop_training = True

    def hopeless(self, epoch: int, value: float) -> bool:
        """Returns whether to stop the trial after this epoch."""
        self.trial.report(value, epoch)
        self.pruned = self.pruned or self.trial.should_prune()
        return self.pruned

    def catch_up(self, checkpoints: Path) -> None:
        """Reports the epochs that a killed process completed; if they prune the trial, it is not trained further."""
        state = FitState.load(checkpoints)
        for epoch, value in enumerate(state.values):
            self.hopeless(epoch, value)
        if self.pruned:
            state.finished = True
            state.save(checkpoints)


def _search(
    run: Run, config: ExperimentConfig, text: np.ndarray, space: Sequence[Setting], trials: int, out: Path, tell: Tell
) -> Search:
    write_text(run.folder / "config.yaml", dump_config(config))  # with the chosen template
    graph = graph_of_fit(run, config.graph, tell)
    data = TrainingData.of(run.split, text, config, run.text_widths, run.user_texts, graph)
    chosen = config.model_copy(deep=True)
    told = choose(data, chosen, tell)
    if not any(setting.key.startswith("item_weights.") for setting in space):  # else each trial chooses the others
        config.item_weights = chosen.item_weights
        write_text(run.folder / "config.yaml", dump_config(config))
    own = {setting.key: value_of(chosen, setting.key) for setting in space}
    config.data.source = f"{run.folder.name}/data"  # relative to best.yaml
    study = _open_study(out / "study.log")
    tf.get_logger().addFilter(_worth_saying)
    search = _save(study, space, out)
    with show_progress("Searching", "trials") as progress:
        while len(search.trials) < trials:
            progress(len(search.trials), trials)
            number = len(search.trials) + 1
            trial, settings = _draw(study, number, config.seed, space, own)
            _run_trial(study, trial, settings, number, data, config, told, out, tell)
            search = _save(study, space, out)
            # Otherwise Keras' state of all models would accumulate over the trials.
            tf.keras.backend.clear_session()
            gc.collect()
        progress(len(search.trials), trials)
    if not search.ranking:
        raise ModelError(f"No trial of {out} was completed; the last one: {search.trials[-1].error}")
    return search


def _worth_saying(record: logging.LogRecord) -> bool:
    """Filters out TensorFlow's retracing warning, which occurs from the fifth trial on: each trial is a new model."""
    return "triggered tf.function retracing" not in record.getMessage()


def _open_study(path: Path) -> optuna.Study:
    """Opens the study with the search's trials so far; a trial left running by a killed process is marked as failed."""
    optuna = require_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if path.is_file() and not (kept := path.read_bytes()).endswith(b"\n"):
        with replacing(path) as fresh:
            fresh.write_bytes(kept[: kept.rfind(b"\n") + 1])  # drops a line that was cut off while it was written
    try:
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
        study = optuna.create_study(
            storage=storage,
            study_name="tune",
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED_TRIALS, n_warmup_steps=1),
            load_if_exists=True,
        )
    except OSError:  # optuna also writes the journal: the disk may be full
        raise
    except Exception as error:  # optuna may raise any exception for a damaged journal
        raise ModelError(f"{path} is damaged ({error!r}): {_REMEDY}.") from error
    for left in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(left.number, state=optuna.trial.TrialState.FAIL)
    return study


def _run_trial(
    study: optuna.Study,
    trial: optuna.Trial,
    settings: dict[str, Any],
    number: int,
    data: TrainingData,
    config: ExperimentConfig,
    told: Sequence[str],
    out: Path,
    tell: Tell,
) -> None:
    """Fits the settings of a trial, measures the model on validation, and reports the result to the study.

    Choices that were ``told`` before are not told again.
    """
    start = time.monotonic()
    said = json.dumps({key: label(value) for key, value in settings.items()})
    tell(f"trial {number}: {', '.join(f'{key} {_short(value)}' for key, value in settings.items())}")
    folder = out / f"trial-{number}"
    marker = folder / "settings.json"
    if folder.exists() and not (marker.is_file() and marker.read_bytes() == said.encode()):
        shutil.rmtree(folder)
    write_text(marker, said)

    def tell_epochs(line: str) -> None:
        if line.removeprefix("chosen: ") not in told:
            tell(f"trial {number}: {line}")

    pruning = Pruning(trial)
    try:
        pruning.catch_up(folder / "checkpoints")
        fitted = fit_hybrid(data, with_settings(config, settings), folder, tell_epochs, [pruning])
        epochs = FitState.load(folder / "checkpoints").epochs_done
        result = evaluate(
            fitted.model,
            data.split.validation,
            train_counts=data.split.train_counts,
            strata=data.strata,
            ks=[10],
            batch_size=config.evaluation.batch_size,
            bootstrap=0,
        )
    except ModelError as error:
        # A learning rate that is too high, for example, must not end the search.
        tell(f"trial {number}: failed: {error}")
        trial.set_user_attr("error", str(error))
        value, early, epochs = None, True, 0
    else:
        value = selection_value(result)
        trial.set_user_attr("selection", value)
        trial.set_user_attr("metrics", {name: result.metrics.get(name) for name in METRICS})
        trial.set_user_attr("config", fitted.options.model_dump(mode="json"))
        # A trial that was pruned after its last epoch is complete.
        early = pruning.pruned and epochs != fitted.options.training.epochs
        tell(f"trial {number}: {'stopped early, ' if early else ''}selection value {value:.4f}")
    trial.set_user_attr("epochs", epochs)
    trial.set_user_attr("seconds", round(time.monotonic() - start, 1))
    if early:
        study.tell(trial, state=require_optuna().trial.TrialState.PRUNED)
    else:
        study.tell(trial, value)


def _draw(
    study: optuna.Study, number: int, seed: int, space: Sequence[Setting], own: dict[str, Any]
) -> tuple[optuna.Trial, dict[str, Any]]:
    """Returns a new trial and its settings; the first trial has the config's ``own``, if the space contains them."""
    optuna = require_optuna()
    # Only the seed and the finished trials determine the settings, so that a killed trial gets the same ones again.
    mixed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=mixed, constant_liar=False)
    if number == 1 and not study.get_trials(states=[optuna.trial.TrialState.WAITING]):
        study.enqueue_trial({s.key: label(own[s.key]) for s in space if own[s.key] in s})
    trial = study.ask()
    return trial, {setting.key: setting.draw(trial) for setting in space}


def _save(study: optuna.Study, space: Sequence[Setting], out: Path) -> Search:
    """Writes the state of the study to the search folder, and deletes folders of trials that are no longer needed."""
    optuna = require_optuna()
    states = optuna.trial.TrialState
    finished = study.get_trials(states=[states.COMPLETE, states.PRUNED])
    try:
        trials = [_trial_of(number, trial) for number, trial in enumerate(finished, start=1)]
    except KeyError as error:
        raise ModelError(f"{out / 'study.log'} is damaged (a trial lacks {error}): {_REMEDY}.") from error
    complete = sum(trial.state == "complete" for trial in trials)
    search = Search(out, trials, _importance(study) if complete >= IMPORTANCE_TRIALS else {})
    _write_hparams(out, space, trials)
    write_text(out / "trials.json", json.dumps(search.as_json(), indent=1))
    best = search.ranking[0].number if search.ranking else None
    if best is not None:
        config = ExperimentConfig.model_validate(finished[best - 1].user_attrs["config"])
        write_text(search.best_config, dump_config(config))
    for trial in trials:
        if trial.number != best:
            shutil.rmtree(out / f"trial-{trial.number}", ignore_errors=True)
    return search


def _trial_of(number: int, trial: optuna.trial.FrozenTrial) -> Trial:
    told = trial.user_attrs
    state = "failed" if "error" in told else trial.state.name.lower()
    metrics = told.get("metrics", dict.fromkeys(METRICS))
    return Trial(
        number,
        state,
        told.get("selection"),
        dict(trial.params),
        metrics,
        told["epochs"],
        told["seconds"],
        told.get("error"),
    )


def _importance(study: optuna.Study) -> dict[str, float]:
    optuna = require_optuna()
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        try:
            shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
        except UserWarning:  # raised if too few trials differ from the others
            return {}
    return {key: float(share) for key, share in shares.items() if share > 0}


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def _write_hparams(out: Path, space: Sequence[Setting], trials: Iterable[Trial]) -> None:
    """Writes one TensorBoard run per trial: its settings, its figures, and the curves that its fit wrote."""
    logs = out / "logs"
    if not logs.is_dir():
        with writing_to(logs):
            hp.hparams_config(
                [hp.HParam(setting.key, _domain(setting)) for setting in space],
                [hp.Metric(tag) for tag in (SELECTION, *map(tag_of, METRICS))],
            )
    for trial in trials:
        target = logs / f"trial-{trial.number}"
        if target.is_dir():
            continue
        written = out / f"trial-{trial.number}" / "logs"
        with writing_to(written):
            hp.hparams({s.key: _plain(s, trial.settings[s.key]) for s in space}, trial_id=f"trial-{trial.number}")
            for label, value in {"selection": trial.selection, **trial.metrics}.items():
                if value is not None:
                    tf.summary.scalar(tag_of(label), value, step=trial.epochs)
        publish_folder(written, target)  # last, so that an interruption leaves no TensorBoard run without its figures


def _domain(setting: Setting) -> Any:
    if isinstance(setting, Choice):
        return hp.Discrete([_plain(setting, label(value)) for value in setting.values])
    if isinstance(setting.low, int) and isinstance(setting.high, int):
        return hp.IntInterval(setting.low, setting.high)
    return hp.RealInterval(float(setting.low), float(setting.high))


def _plain(setting: Setting, value: Any) -> bool | int | float | str:
    """Returns a value in the form that HParams needs: all values of a setting have one type, and none is null."""
    if isinstance(setting, Range) or len({type(label(each)) for each in setting.values}) == 1:
        return value
    return "auto" if value is None else str(value)


# --- Folders ----------------------------------------------------------------------------------------------------------


@contextmanager
def _free_folder(out: Path | None) -> Iterator[Path]:
    """Locks ``out``, or by default the next free ``runs/tune``.

    Raises:
      ConfigError: ``out`` is taken, or in use by another process.
    """
    out = out or first_free(Path("runs/tune"))
    taken = f"{out} is not empty: name another folder with --out, or continue with 'tfllmrec tune --resume {out}'."
    if out.is_file():
        raise ConfigError(taken)
    with locked(out):
        if any(path.name != "base" for path in out.iterdir() if not unfinished(path)):
            raise ConfigError(taken)
        yield out


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(label(value))
