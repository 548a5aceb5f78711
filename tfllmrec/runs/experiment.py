"""Runs an experiment from raw files to figures, step by step; an interrupted run can be resumed."""

from __future__ import annotations

import contextlib
import datetime
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfllmrec.assets import cache_folder
from tfllmrec.config import DataConfig, ExperimentConfig, dump_config, encoder_names, settings_without_effect
from tfllmrec.data.dataset import Dataset
from tfllmrec.data.domains import item_domains
from tfllmrec.data.files.event_log import LogPlace, LogReader, is_event_log
from tfllmrec.data.readers import read_dataset
from tfllmrec.data.splits import Split, make_split
from tfllmrec.durable import locked, read_json, replacing, write_text, writing
from tfllmrec.errors import ConfigError
from tfllmrec.evaluation.protocol import selection_value
from tfllmrec.evaluation.report import MODEL, REFIT, exported_of
from tfllmrec.progress import Tell, peak_memory_mb, show_progress, to_stderr
from tfllmrec.runs.graph import graph_of_fit
from tfllmrec.runs.run import (
    GRAPH,
    INTERESTS,
    PARENT,
    PER_QUERY,
    PLAN,
    READ_LOG,
    REFIT_WEIGHTS,
    REMEDY,
    SCHEMA,
    TAKEN_OVER,
    TRAINED,
    TRANSFER,
    UPDATE,
    Parent,
    Recorded,
    Run,
    unfinished,
)
from tfllmrec.runs.scoreboard import fit_all_baselines, measure_all, measure_with_ranking, report, save_per_query
from tfllmrec.runs.transfer import begin_transfer, note_alignment, read_source
from tfllmrec.text.template import ItemTemplate
from tfllmrec.training.checks import check_fields, contexts

if TYPE_CHECKING:
    from tfllmrec.evaluation.recommender import Recommender
    from tfllmrec.models.fitting import TrainingData
    from tfllmrec.training.ranking.record import RankingRecord


#: What a run folder may contain before its first epoch is complete.
BEFORE_TRAINING = {
    *("config.yaml", "source.json", PARENT, UPDATE, TRAINED, TRANSFER, SCHEMA, "data", "vectors.npy", "vectors.json"),
    *("logs", GRAPH, READ_LOG),
}
PACKAGES = (
    "tfllmrec",
    "tensorflow",
    "tf-keras",
    "tensorflow-text",
    "tensorflow-hub",
    "tensorflow-recommenders",
    "numpy",
    "pandas",
)


def fit_experiment(
    config: ExperimentConfig,
    out: Path | None = None,
    *,
    base: Path = Path(),
    resume: bool = False,
    check: Callable[[Run], None] | None = None,
    tell: Tell = to_stderr,
) -> Run:
    """Reads and splits the data, encodes the texts, fits and measures the models, and writes a run folder.

        run = fit_experiment(ExperimentConfig(data=DataConfig(events="events.csv")), Path("runs/shop"))
        run.metrics["results"]["hybrid"]["ndcg@10"]

    The folder is locked during the fit: a second process that tries to write to it ends with an error. The folder
    ``logs/`` in it contains the curves of the fit; :func:`tfllmrec.write_board` adds the other TensorBoard pages of a
    complete run, as ``tfllmrec fit`` does.

    Args:
      config: The settings. *auto* settings are chosen from the data.
      out: The run folder; by default ``runs/NAME``, with a number if this folder exists.
      base: The folder that relative data paths refer to.
      resume: Whether to continue the interrupted run in ``out``. The run keeps its own config and data. Of ``config``,
        only ``tuning.paraphrase`` is used, and the function is called only if the run has the same one.
      check: Called with a new run after the data is split; if it raises an error, nothing is fitted.
      tell: Called with a line of text for each step.

    Returns:
      The complete run.

    Raises:
      ConfigError: ``out`` exists (without ``resume``) or does not exist (with it), or another process uses it; or the
        run would call a function that ``config`` does not name.
      WriteError: The disk is full, read-only or broken. Finished steps are kept, and ``resume`` continues after them.
      DataError, ModelError: A step failed.
    """
    if not resume:
        with start_run(config, out, base=base, tell=tell) as (run, config):
            tell(f"run folder: {run.folder}")
            if check is not None:
                check(run)
            return continue_run(run, config, tell)
    if out is None or not (out / "config.yaml").is_file():
        raise ConfigError(f"Nothing to resume: {out} has no config.yaml. Start it with 'tfllmrec fit CONFIG --out'.")
    run = Run(out, config.tuning.paraphrase)
    if run.complete:
        tell(f"{out} is already complete.")
        return run
    with locked(out):
        return continue_run(run, run.config, tell)


def continue_run(run: Run, config: ExperimentConfig, tell: Tell) -> Run:
    """Runs the remaining steps of a fit or an update; the caller must hold the lock of the folder."""
    with writing(run.folder, f"Once it can be written, continue with: {run.resume_command}"):
        return _fit_and_measure(run, config, tell)


def _fit_and_measure(run: Run, config: ExperimentConfig, tell: Tell) -> Run:
    began, out = time.monotonic(), run.folder
    dataset, split = run.dataset, run.split
    tell(
        f"{dataset.name}: {dataset.n_users:,} users, {dataset.n_items:,} items, {len(dataset.events):,} events; "
        f"{split.kind} split, {len(split.test):,} test queries"
    )
    joined = item_domains(split.items, split.schema) is not None
    for line in settings_without_effect(config, joined, scenes=config.model.scene in contexts(split.schema)):
        tell(f"warning: {line}")
    for finding in split.findings:
        tell(f"split: {finding}")

    from tfllmrec.board.fit import board_callbacks

    callbacks = board_callbacks(config, split, out, tell)  # first: reports missing trackers at once
    source = read_source(run, config) if config.transfer.sources else None
    text = encode(run, config, tell)
    graph = graph_of_fit(run, config.graph, tell)
    if run.query_encoder_folder:
        # Made before the training, which does not need it, so that an unsuitable encoder is reported at once.
        run.query_encoder(run.text_encoder(tell), tell)
    from tfllmrec.models.fitting import TrainingData
    from tfllmrec.models.item_weights import STATISTICS
    from tfllmrec.runs.labels import store_labels
    from tfllmrec.runs.warm_start import warm_start
    from tfllmrec.training.callbacks import write_weights
    from tfllmrec.training.fit import fit_hybrid, refit_weights
    from tfllmrec.training.interests import match_of, prepared_forecast
    from tfllmrec.training.ranking.fit import prepared_ranking, settle_epochs
    from tfllmrec.training.transfer import alignment, fit_from, text_distances_between

    # A run that was interrupted after training has made its choices, and its record contains the reasons.
    record = out / "run.json"
    earlier = run.read("run.json", Recorded) if record.is_file() else {}

    data = TrainingData.of(split, text, config, run.text_widths, run.user_texts, graph)
    if run.transferred is not None and source is None:  # joint or map
        note_alignment(run, text_distances_between(data), tell)
    of_ranking = of_interests = None  # their starting points in an update
    if source is not None:
        data = replace(data, source_histories=source.histories)
        fitted = fit_from(source, data, config, out, tell, callbacks)
        note_alignment(run, alignment(data, fitted.model, source), tell)
    elif run.update is not None:
        start = warm_start(run, data, config, tell)
        fitted = fit_hybrid(data, start.config, out, tell, callbacks, start.hybrid)
        of_ranking, of_interests = start.ranking, start.interests
        del start  # frees the parent's model
    else:
        fitted = fit_hybrid(data, config, out, tell, callbacks)
    write_weights(out / "model" / "weights", model=fitted.model)
    if source is None and "behaviour" in fitted.options.model.terms:  # a run with sources cannot be updated
        data.store_item_weight_statistics(out / "model" / STATISTICS, fitted.options.item_weights, tell)
    chosen = [*earlier.get("chosen", []), *fitted.chosen]
    if run.update is None:  # an update keeps its parent's settings, including those of training
        config = fitted.options
    if said := settle_epochs(config.ranking, split):
        tell(f"chosen: {said}")
        chosen.append(said)
    chosen = list(dict.fromkeys(chosen))
    write_text(record, json.dumps(_record(run, config.seed, chosen, time.monotonic() - began, earlier), indent=1))
    write_text(out / "config.yaml", dump_config(config))

    # Load the saved model, in float32 whatever the training precision: it is evaluated now and exported later.
    hybrid = run.load_model()
    match = order = None
    if config.interests.learned and (labels := store_labels(run, tell)) is not None:
        users = split.train_queries()
        forecast = prepared_forecast(
            out / INTERESTS, labels, users, split.validation, hybrid, config.seed, tell, of_interests
        )
        match = match_of(labels, forecast)
    if config.ranking.epochs:
        order = prepared_ranking(out / "ranking", data, config.ranking, hybrid, tell, of_ranking, match)
    made = run.ranking_record
    results = measure_all({MODEL: hybrid}, split, config)
    if run.may_refit:
        tell("item-item weights: solving again, with the validation events")
        weights = refit_weights(hybrid, data)
        weights.save(out / "model" / REFIT_WEIGHTS)
        hybrid.set_item_weights(weights)
        results |= measure_all({REFIT: hybrid}, split, config)
    baselines = fit_all_baselines(data, config.evaluation, tell) if run.update is None else {}
    results |= measure_all(baselines, split, config)
    save_per_query(out / PER_QUERY, split.test, results)
    measured = report(split, config, results)
    measured["validation"] = {name: _on_validation(data, baseline) for name, baseline in baselines.items()}
    if order is not None:
        measured["ranking"] = measure_with_ranking(hybrid, order, split, config, exported_of(results), tell)
    elif made is not None:
        measured["ranking"] = {"left_out": made.line()}
    took = time.monotonic() - began
    write_text(record, json.dumps(_record(run, config.seed, chosen, took, earlier, made), indent=1))
    write_text(out / "metrics.json", json.dumps(measured, indent=1))
    tell(f"complete: {out}")
    return run


def _on_validation(data: TrainingData, baseline: Recommender) -> dict[str, float | None]:
    """Returns a baseline's metrics on the validation queries of the epochs, and its comparison value ``selection``."""
    result = data.measure(baseline)
    return {"selection": selection_value(result), **result.metrics}


@contextlib.contextmanager
def start_run(
    config: ExperimentConfig, out: Path | None, *, base: Path, tell: Tell
) -> Iterator[tuple[Run, ExperimentConfig]]:
    """Reads the data and creates a self-contained run folder: its config refers to the data in the folder.

    The folder is locked until the ``with`` block ends.

    Args:
      config: The settings, which may be *auto*; it is not changed.
      out: The folder; by default ``runs/NAME``, with a number if this folder exists.
      base: The folder that relative data paths refer to.
      tell: Called with a line of text for each step.

    Yields:
      The run, and its config, whose data paths refer to its folder.

    Raises:
      ConfigError: ``out`` is taken, or in use by another process; or a setting names a field that the data lacks, see
        :func:`tfllmrec.training.checks.check_fields`.
      DataError: The data cannot be read or split.
      WriteError: The disk is full, read-only or broken.
    """
    source = config.data.model_dump(mode="json", exclude_defaults=True)
    tell("reading the data")
    place = None if config.data.events is None else log_place(base / config.data.events)
    dataset = read_dataset(config.data, base, test_events=config.split.named_events)
    with free_folder(out, dataset.name) as out:
        begun = _begun(config, source, dataset, out, base, tell)
        note_log_place(out, place)
        yield begun


def log_place(events: Path) -> LogPlace | None:
    """Returns the newest event of an event log; ``None`` if it is empty, or if ``events`` is not an event log.

    Call it before the log is read: events that arrive in between are then read again by the next update, which drops
    them as known.
    """
    if not is_event_log(events):
        return None
    with LogReader(events) as reader:
        return reader.place()


def note_log_place(folder: Path, place: LogPlace | None) -> None:
    """Records how far the log was read, for :func:`tfllmrec.runs.update.update_run`."""
    if place is not None:
        write_text(folder / READ_LOG, json.dumps(asdict(place)))


def _begun(
    config: ExperimentConfig, source: dict[str, Any], dataset: Dataset, out: Path, base: Path, tell: Tell
) -> tuple[Run, ExperimentConfig]:
    """Writes the starting point of a run into its folder, which must be free."""
    # The config is the best one of a search, or that of a run, and names their data.
    of_search = (base / PLAN).is_file() and source.get("source") == "base/data"
    of_run = (base / "run.json").is_file() and source.get("source") == "data"
    if of_search or of_run:  # the tables of later updates have the columns of the files that this data was read from
        first = read_json((base / source["source"]).with_name("source.json"), dict[str, Any], REMEDY)
        source = source | {name: first[name] for name in ["columns"] if first.get(name)}
    write_text(out / "source.json", json.dumps(source, indent=1))  # first: it marks the folder as a run folder
    if of_search or of_run:
        parent = Parent(folder=base.resolve().name, data_sha256=dataset.fingerprint)
        write_text(out / PARENT, parent.model_dump_json(indent=1))
    for line in dataset.report.lines():
        tell(f"data: {line}")
    schema = None
    if config.transfer.sources:
        begun = begin_transfer(dataset, config, base, out, tell)
        dataset, config, schema = begun.dataset, begun.config, begun.schema
    dataset.save(out / "data")
    config = config.model_copy(deep=True)
    config.data = data_beside(config.data, dataset.name)
    if config.tuning.synonyms is not None:
        config.tuning.synonyms = (base / config.tuning.synonyms).resolve()
    if config.graph.edges is not None:
        config.graph.edges = (base / config.graph.edges).resolve()
    for role in ("encoder", "preprocessor"):
        if handle := getattr(config.text, role):
            setattr(config.text, role, _absolute(handle, base))
    split = make_split(dataset, config.split, config.seed, schema)
    check_fields(split.schema, config)
    for line in split.schema.lines():
        tell(f"field: {line}")
    for note in split.schema.notes:
        tell(note)
    write_text(out / SCHEMA, json.dumps(split.schema.as_dict(), indent=1, ensure_ascii=False))
    config.split = config.split.model_copy(update={"kind": split.kind})
    if config.text.encoder == "auto":
        _choose_encoder(config, split, tell)
    write_text(out / "config.yaml", dump_config(config))
    return Run(out, config.tuning.paraphrase), config


def data_beside(section: DataConfig, name: str) -> DataConfig:
    """Returns the ``data`` section of a run whose data set is saved next to its config."""
    return section.model_copy(
        update={"name": name, "source": "data", "format": "tfllmrec", "events": None, "items": None,
                "users": None, "more_items": [], "vectors": {}, "columns": {}, "fields": {}}
    )  # fmt: skip


def _absolute(handle: str, base: Path) -> str:
    """Returns an encoder handle with the folder paths in it made absolute."""

    def one(name: str) -> str:
        return str((base / name).resolve()) if (base / name / "saved_model.pb").is_file() else name

    return "+".join(map(one, encoder_names(handle)))


def _choose_encoder(config: ExperimentConfig, split: Split, tell: Tell) -> None:
    """Sets ``text.encoder`` of ``config`` to an encoder that can read the items."""
    from tfllmrec.text.reading import AUTO, choose_encoder

    try:
        template = ItemTemplate.from_items(split.items, config.text.template)
    except ConfigError:  # there is no text, or :func:`encode` reports the error
        config.text.encoder = AUTO[0]
        return
    config.text.encoder, said = choose_encoder(template.texts(split.items))
    tell(f"chosen: {said}")


def encode(run: Run, config: ExperimentConfig, tell: Tell) -> np.ndarray:
    """Returns the items' text vectors, float32 ``[N, Dt]``, from the run folder, the vector store or the encoder.

    The texts are those of :attr:`tfllmrec.data.Split.items`. The resolved template is written into ``config``. If no
    item has text, the vectors are zeros ``[N, 1]``.
    """
    from tfllmrec.text.preprocessor import pieces_of
    from tfllmrec.text.reading import advice, reading_of
    from tfllmrec.text.store import VectorStore, encode_items

    path = run.folder / "vectors.npy"
    try:
        template = ItemTemplate.from_items(run.split.items, config.text.template)
    except ConfigError as error:
        if config.text.template is not None:
            raise
        tell(f"no item has text, so nothing can be read: {error}")
        nothing = np.zeros((run.dataset.n_items, 1), np.float32)
        with replacing(path) as fresh, fresh.open("wb") as stream:
            np.save(stream, nothing)
        return nothing
    config.text.template = template.template
    if path.is_file():
        return run.text
    tell(f"text: {template.template!r}, encoder {config.text.encoder}")
    encoder = run.text_encoder(tell)
    texts = template.texts(run.split.items)
    for name, each in zip(encoder_names(config.text.encoder), encoder.encoders, strict=True):
        found = reading_of(partial(pieces_of, each.text_to_vector.preprocessor), texts, name)
        if not found.works:
            tell(
                f"warning: text.encoder {name} cannot read these texts ({found}), so that items with different texts "
                f"may get equal vectors. {advice(name)}"
            )
        elif found.may_not_be_english:
            tell(
                f"warning: these texts may not be English, the only language that text.encoder {name} was trained on: "
                f"its vocabulary has {found.whole_words:.0%} of their words, and at least 70% of the words of most "
                f"English titles. {advice(name)}"
            )
    # Written before the vectors, so that these never exist without it.
    write_text(run.folder / "vectors.json", json.dumps({"encoder": encoder.fingerprint, "widths": encoder.widths}))
    with show_progress("Encoding item texts", "texts") as progress:
        store = VectorStore(cache_folder() / "vectors")
        return encode_items(texts, encoder, store, progress, out=path)


def versions() -> dict[str, str | None]:
    """Returns the versions of Python and of :data:`PACKAGES`; ``None`` for a package that is not installed."""

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {"python": platform.python_version(), **{name: installed(name) for name in PACKAGES}}


def _record(
    run: Run,
    seed: int,
    chosen: list[str],
    seconds: float,
    earlier: dict[str, Any],
    ranking: RankingRecord | None = None,
) -> dict[str, Any]:
    """Returns the content of ``run.json``; time and memory include an ``earlier`` process that ended after training."""
    return {
        "seed": seed,
        "data_sha256": run.dataset.fingerprint,
        "date": datetime.date.today().isoformat(),
        "seconds": round(seconds + earlier.get("seconds", 0.0), 1),
        "peak_memory_mb": max(round(peak_memory_mb()), earlier.get("peak_memory_mb", 0)),
        "versions": versions(),
        "source": read_json(run.folder / "source.json", dict[str, Any], REMEDY),
        "parent": run.read(PARENT, Parent) if (run.folder / PARENT).is_file() else None,
        "chosen": chosen,
        "query_encoder": None if (tower := run.query_encoder_record) is None else asdict(tower),
        "ranking": None if ranking is None else asdict(ranking),
        "cleaning": asdict(run.dataset.report),
        "split": [asdict(finding) for finding in run.split.findings],
    }


def first_free(folder: Path) -> Path:
    """Returns ``folder``, or if it exists, the first of ``FOLDER-2``, ``FOLDER-3``, ... that does not."""
    free, number = folder, 1
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


@contextlib.contextmanager
def free_folder(out: Path | None, name: str, beside: Path = Path("runs")) -> Iterator[Path]:
    """Locks ``out``, or the next free ``NAME`` in ``beside``, and empties it of a run that completed no epoch.

    Raises:
      ConfigError: ``out`` is taken, or in use by another process.
    """
    out = out or first_free(beside / name)
    taken = f"{out} is not empty: name another folder with --out, or continue with 'tfllmrec fit --resume {out}'."
    if out.is_file():
        raise ConfigError(taken)
    with locked(out):
        held = [path for path in out.iterdir() if not unfinished(path)]
        if held and (not (out / "source.json").is_file() or has_trained(out)):
            raise ConfigError(taken)
        # A run that ended before its first epoch is started from scratch, because its settings may have been wrong.
        # Folders go first and source.json last, so that a process that is killed meanwhile leaves it free.
        for path in sorted(held, key=lambda path: (path.is_file(), path.name == "source.json")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield out


def has_trained(out: Path) -> bool:
    """Returns whether a folder has anything besides the files that a run writes before its first epoch is complete."""
    before = BEFORE_TRAINING.union(_taken_over(out))
    return any(path.name not in before for path in out.iterdir() if not unfinished(path))


def _taken_over(out: Path) -> tuple[str, ...]:
    """Returns the folders that a run without a complete epoch may have copied from other runs.

    Such a run is an update, or a run that starts from sources.
    """
    if (out / UPDATE).is_file():
        return TAKEN_OVER
    begun = (out / "config.yaml").is_file()  # otherwise the run ended while it was being set up
    from_source = (out / TRANSFER).is_file() and (not begun or bool(Run(out).config.transfer.sources))
    return ("text",) if from_source else ()
