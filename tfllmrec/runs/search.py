"""Hyperparameter search: many fits on the same data, each judged on the validation queries; test is never looked at.

OUT/
  search.json   the settings that are searched, with their different values, and the number of trials
  base/         what every trial shares: data, text vectors, and the config that trials vary
  study.log     optuna's journal: every trial that was begun
  trial-N/      checkpoints of the running trial and of the best one so far
  logs/         TensorBoard: HParams, and each trial's curves
  trials.json   settings and figures of all finished trials
  best.yaml     the config of the best trial: 'tfllmrec fit OUT/best.yaml'

A search that was killed goes on where it was, in the training of its text tower too. Each trial is drawn with a seed
of its own, from the finished trials before it, and its fit goes on from its last epoch: the trials are those of an
undisturbed search.
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
from tfllmrec.runs.experiment import encode, start_run
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

#: Figures on validation that are kept of a trial, beside ``selection``.
METRICS = ("ndcg@10", "ndcg@10/tail", "recall@10", "recall@10/tail")
TRIALS = 20
_REMEDY = "search again into another folder"
#: Drawn at random before the sampler draws by what it has seen.
RANDOM_TRIALS = 10
#: No trial is given up before so many are complete, nor in its first epoch.
UNPRUNED_TRIALS = 5
#: With fewer complete trials than these, how much each setting matters is not said.
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
      number: from 1.
      state: ``complete``; ``pruned``: stopped early, being worse than most were by then; ``failed``: see ``error``.
      selection: what trials are compared by (:func:`selection_value`), of the best epoch on all validation queries.
      settings: by ``section.name``; lists as JSON text.
      metrics: by label, on validation; ``None`` where there is no value.
      epochs: trained.
      seconds: of the process that finished it.
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
      importance: share of each setting in what makes a trial one of the best quarter (PED-ANOVA, Watanabe et al. 2023,
        arXiv:2304.10255), largest first; empty after a few trials only, and where no setting mattered.
    """

    folder: Path
    trials: list[Trial]
    importance: dict[str, float]

    @property
    def best_config(self) -> Path:
        """The config of the best trial."""
        return self.folder / "best.yaml"

    @property
    def fit_command(self) -> str:
        """The command that fits the best config into a run folder beside the search."""
        function = load_config(self.best_config, of_run=True).config.tuning.paraphrase
        return f"tfllmrec fit {self.best_config} --out {self.folder}-best{paraphrase_option(function)}"

    @property
    def ranking(self) -> list[Trial]:
        """The complete trials, best first."""
        complete = [trial for trial in self.trials if trial.state == "complete"]
        return sorted(complete, key=lambda trial: -(trial.selection or 0.0))

    def as_json(self) -> dict[str, Any]:
        """What ``trials.json`` holds and ``tune --json`` prints."""
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
    """Reads, splits and encodes once, then fits the hybrid with one drawing of settings after the other.

    The first trial has the config's own values, or what a fit would choose for *auto*, as far as the space holds them:
    the best trial is no worse than that. Item-item weights that no trial changes are chosen once, for all.

    The folder is locked meanwhile: a second process that would write to it ends with an error.

    Args:
      config: what trials vary; may say *auto*.
      out: folder to write; by default ``runs/tune``, with a number where that is taken.
      base: where relative data paths start.
      space: what to search; by default :func:`default_space`.
      trials: how many to finish, those included that are given up early.
      tell: called with a line for each step.

    Raises:
      ConfigError: optuna is not installed, ``out`` is taken or in use by another process, or a setting of ``space`` has
        no two different values with this data.
      WriteError: the disk is full, read-only or broken. The finished trials stay, and :func:`resume` continues.
      DataError: see :func:`fit_experiment`.
      ModelError: all trials failed.
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
        # Before the texts are encoded, since a text tower may be trained for that: from here on resume continues it.
        plan = {"trials": trials, "space": [str(setting) for setting in space]}
        write_text(out / PLAN, json.dumps(plan, indent=1))
        try:
            text = encode(run, config, tell)
        except TfllmrecError:
            if not (run.folder / "text").exists():  # nothing is learnt yet, and its settings may have been the mistake
                (out / PLAN).unlink()
            raise
        return _search(run, config, text, space, trials, out, tell)


def resume(out: Path, trials: int | None = None, *, paraphrase: str | None = None, tell: Tell = to_stderr) -> Search:
    """Continues an interrupted search, or a complete one for more trials.

    Args:
      out: its folder.
      trials: how many there should be in the end; by default as many as the search was started with.
      paraphrase: the function of ``tuning.paraphrase``, if the search was started with one and tunes a text tower.

    Raises:
      ConfigError: optuna is not installed, there is no search in ``out``, another process writes to it, or it would
        call a function that is not ``paraphrase``.
      WriteError: as for :func:`tune`.
      ModelError: the folder is damaged, or all trials failed.
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
    """Adds to an error of a disk the command that continues the search."""
    try:
        with writing(out):
            yield
    except WriteError as error:
        if (out / PLAN).is_file():
            command = f"tfllmrec tune --resume {out}{paraphrase_option(paraphrase)}"
            add_advice(error, f"Once it can be written, continue with: {command}")
        raise


class Pruning(tf.keras.callbacks.Callback):
    """Tells optuna the validation value of each epoch, and stops the fit where it says that the trial is hopeless."""

    def __init__(self, trial: optuna.Trial) -> None:
        super().__init__()
        self.trial, self.pruned = trial, False

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if self.hopeless(epoch, (logs or {})["selection"]):
            self.model.stop_training = True

    def hopeless(self, epoch: int, value: float) -> bool:
        """Whether the trial is to be given up after this epoch."""
        self.trial.report(value, epoch)
        self.pruned = self.pruned or self.trial.should_prune()
        return self.pruned

    def catch_up(self, checkpoints: Path) -> None:
        """Tells the epochs that a killed process had done; a trial that it was giving up trains no further."""
        state = FitState.load(checkpoints)
        for epoch, value in enumerate(state.values):
            self.hopeless(epoch, value)
        if self.pruned:
            state.finished = True
            state.save(checkpoints)


def _search(
    run: Run, config: ExperimentConfig, text: np.ndarray, space: Sequence[Setting], trials: int, out: Path, tell: Tell
) -> Search:
    write_text(run.folder / "config.yaml", dump_config(config))  # with the template that was chosen
    graph = graph_of_fit(run, config.graph, tell)
    data = TrainingData.of(run.split, text, config, run.text_widths, run.user_texts, graph)
    chosen = config.model_copy(deep=True)
    if any(setting.key.startswith("item_weights.") for setting in space):
        for line in sizes(run.split, chosen):
            tell(f"chosen: {line}")
    else:
        choose(data, chosen, tell)
        config.item_weights = chosen.item_weights
        write_text(run.folder / "config.yaml", dump_config(config))
    own = {setting.key: value_of(chosen, setting.key) for setting in space}
    config.data.source = f"{run.folder.name}/data"  # as seen from best.yaml
    study = _open_study(out / "study.log")
    tf.get_logger().addFilter(_worth_saying)
    search = _save(study, space, out)
    with show_progress("Searching", "trials") as progress:
        while len(search.trials) < trials:
            progress(len(search.trials), trials)
            number = len(search.trials) + 1
            trial, settings = _draw(study, number, config.seed, space, own)
            _run_trial(study, trial, settings, number, data, config, out, tell)
            search = _save(study, space, out)
            # What Keras keeps of a model would pile up from trial to trial.
            tf.keras.backend.clear_session()
            gc.collect()
        progress(len(search.trials), trials)
    if not search.ranking:
        raise ModelError(f"No trial of {out} was completed; the last one: {search.trials[-1].error}")
    return search


def _worth_saying(record: logging.LogRecord) -> bool:
    """Each trial is a model of its own, which TensorFlow traces anew; it warns of that from the fifth one on."""
    return "triggered tf.function retracing" not in record.getMessage()


def _open_study(path: Path) -> optuna.Study:
    """The search's trials so far; one that a killed process left running is set aside, to be drawn again."""
    optuna = require_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if path.is_file() and not (kept := path.read_bytes()).endswith(b"\n"):
        with replacing(path) as fresh:
            fresh.write_bytes(kept[: kept.rfind(b"\n") + 1])  # a line that was cut off while it was written
    try:
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
        study = optuna.create_study(
            storage=storage,
            study_name="tune",
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED_TRIALS, n_warmup_steps=1),
            load_if_exists=True,
        )
    except OSError:  # optuna writes the journal, too
        raise
    except Exception as error:  # optuna raises nearly anything on a damaged journal
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
    out: Path,
    tell: Tell,
) -> None:
    """Fits, measures on validation, and tells the study."""
    start = time.monotonic()
    said = json.dumps({key: label(value) for key, value in settings.items()})
    tell(f"trial {number}: {', '.join(f'{key} {_short(value)}' for key, value in settings.items())}")
    folder = out / f"trial-{number}"
    marker = folder / "settings.json"
    if folder.exists() and not (marker.is_file() and marker.read_bytes() == said.encode()):
        shutil.rmtree(folder)
    write_text(marker, said)

    def tell_epochs(line: str) -> None:
        if not line.startswith("chosen: "):  # the same for each
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
        # Such as a learning rate that is too high: worth knowing, no reason to end the search.
        tell(f"trial {number}: failed: {error}")
        trial.set_user_attr("error", str(error))
        value, early, epochs = None, True, 0
    else:
        value = selection_value(result)
        trial.set_user_attr("selection", value)
        trial.set_user_attr("metrics", {name: result.metrics.get(name) for name in METRICS})
        trial.set_user_attr("config", fitted.options.model_dump(mode="json"))
        # After the last epoch there was nothing left to save.
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
    """A new trial and its settings; the first one's are the config's ``own``, as far as the space holds them."""
    optuna = require_optuna()
    # Nothing but the seed and the finished trials before it decides what is drawn: a killed trial is drawn again.
    mixed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=mixed, constant_liar=False)
    if number == 1 and not study.get_trials(states=[optuna.trial.TrialState.WAITING]):
        study.enqueue_trial({s.key: label(own[s.key]) for s in space if own[s.key] in s})
    trial = study.ask()
    return trial, {setting.key: setting.draw(trial) for setting in space}


def _save(study: optuna.Study, space: Sequence[Setting], out: Path) -> Search:
    """Writes what the study says to the folder, where it does not say so yet, and deletes what is needed no more."""
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
        except UserWarning:  # too few trials differ from the others
            return {}
    return {key: float(share) for key, share in shares.items() if share > 0}


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def _write_hparams(out: Path, space: Sequence[Setting], trials: Iterable[Trial]) -> None:
    """One TensorBoard run a trial: its settings, its figures, and the curves that its fit wrote."""
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
        publish_folder(written, target)  # only now, so that a kill leaves no run without its figures


def _domain(setting: Setting) -> Any:
    if isinstance(setting, Choice):
        return hp.Discrete([_plain(setting, label(value)) for value in setting.values])
    if isinstance(setting.low, int) and isinstance(setting.high, int):
        return hp.IntInterval(setting.low, setting.high)
    return hp.RealInterval(float(setting.low), float(setting.high))


def _plain(setting: Setting, value: Any) -> bool | int | float | str:
    """A value as HParams takes it: all of a setting of one type, and none of them null."""
    if isinstance(setting, Range) or len({type(label(each)) for each in setting.values}) == 1:
        return value
    return "auto" if value is None else str(value)


# --- Folders ----------------------------------------------------------------------------------------------------------


@contextmanager
def _free_folder(out: Path | None) -> Iterator[Path]:
    """Locks ``out`` if it is free, else the next free ``runs/tune``."""
    if out is None:
        out, number = Path("runs/tune"), 1
        while out.exists():
            number += 1
            out = Path(f"runs/tune-{number}")
    taken = f"{out} is not empty: name another folder with --out, or continue with --resume {out}."
    if out.is_file():
        raise ConfigError(taken)
    with locked(out):
        if any(path.name != "base" for path in out.iterdir() if not unfinished(path)):
            raise ConfigError(taken)
        yield out


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(label(value))
