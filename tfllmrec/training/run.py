"""A run folder: everything that one ``fit`` read, chose, learnt and measured.

RUN/
  config.yaml     the resolved config; itself a valid input
  run.json        seed, versions, data hash, time and memory, what was chosen and why
  source.json     the data section as it was asked for
  data/           the data set as it was used (Parquet)
  text/           what pretraining and tuning made of the text tower, where the config asks for it
  vectors.npy     the items' text vectors, float32 [N, Dt]; vectors.json: of which encoder they are
  query_encoder/  by its name, the small tower that queries are read with, where the config asks for one
  checkpoints/    the newest epoch, the best one, and how far training is
  logs/           TensorBoard
  model/          the fitted weights
  ranking/        the model that puts candidates into order, where the config asks for one
  per_query.npz   the ranking metrics of each test query, of the model and of every baseline
  metrics.json    figures of the model and of every baseline; written last: a run with it is complete
"""

from __future__ import annotations

import contextlib
import datetime
import json
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from pydantic import BaseModel, Field, model_validator

from tfllmrec.assets import cache_folder
from tfllmrec.columns import TITLE, USER
from tfllmrec.config import PARAPHRASE, ExperimentConfig, dump_config, load_config, paraphrase_option
from tfllmrec.data.dataset import Dataset
from tfllmrec.data.queries import Queries
from tfllmrec.data.readers import read_dataset
from tfllmrec.data.splits import Split, make_split
from tfllmrec.durable import locked, read_json, replacing, write_text, writing
from tfllmrec.errors import ConfigError, ModelError
from tfllmrec.evaluation.protocol import Result, evaluate
from tfllmrec.evaluation.recommender import Recommender
from tfllmrec.evaluation.report import alarm_lines, as_json, results_of
from tfllmrec.models.baselines import fit_baselines
from tfllmrec.progress import show_progress
from tfllmrec.text.template import ItemTemplate
from tfllmrec.training.defaults import validation_sample
from tfllmrec.wording import visible

if TYPE_CHECKING:
    from tfllmrec.models.hybrid import Hybrid
    from tfllmrec.models.ranking import RankingModel
    from tfllmrec.text.encoder import TextEncoder
    from tfllmrec.text.student import Student
    from tfllmrec.training.query_encoder import QueryEncoderRecord
    from tfllmrec.training.ranking import RankingRecord

PER_QUERY = "per_query.npz"
_REMEDY = "copy it back, or fit again into another folder"
#: What a run folder may hold before its first epoch is done.
BEFORE_TRAINING = {"config.yaml", "source.json", "data", "vectors.npy", "vectors.json", "logs"}
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
Tell = Callable[[str], None]


def to_stderr(line: str) -> None:
    """Prints a line of progress; standard output belongs to results."""
    print(visible(line), file=sys.stderr, flush=True)


class _Measured(BaseModel, extra="allow"):
    """``metrics.json``. Only the keys that are read are checked."""

    class Data(BaseModel, extra="allow"):
        name: str

    class Split(BaseModel, extra="allow"):
        __pydantic_extra__: dict[str, int | float]

        kind: str
        queries: int

    data: Data
    split: Split
    results: dict[str, dict[str, float | None]] = Field(min_length=1)
    intervals: dict[str, dict[str, tuple[float, float]]]
    alarms: list[str] = []
    ranking: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _each_has_figures(self) -> Self:
        for name, figures in self.results.items():
            if name not in self.intervals or not any(label.startswith("ndcg@") for label in figures):
                raise ValueError(f"{name} lacks ndcg or intervals")
        return self


class _Recorded(BaseModel, extra="allow"):
    """``run.json``. Only the keys that are read are checked."""

    seed: int
    data_sha256: str
    seconds: float
    peak_memory_mb: float
    versions: dict[str, str | None]
    source: dict[str, Any]
    chosen: list[str]


class _ReadBy(BaseModel):
    """``vectors.json``."""

    encoder: str


@dataclass(frozen=True, eq=False)
class Run:
    """A run folder that exists; see the module's text for its content.

    Attributes:
      folder: the run's.
      paraphrase: the ``tuning.paraphrase`` that the caller allows to be called. A run that records another one trains
        no text tower.
    """

    folder: Path
    paraphrase: str | None = None

    @classmethod
    def open(cls, folder: Path | str) -> Run:
        """A complete run.

        Raises:
          ModelError: there is none, or it was interrupted.
          ConfigError: it was interrupted, and its config is damaged.
        """
        run = cls(Path(folder))
        if not (run.folder / "config.yaml").is_file():
            raise ModelError(f"{folder} is no run folder: expected a config.yaml there, as 'tfllmrec fit' writes it.")
        if not run.complete:
            raise ModelError(f"{folder} was not finished: continue it with '{run._resume_command}'.")
        return run

    @property
    def complete(self) -> bool:
        return (self.folder / "metrics.json").is_file()

    @property
    def config(self) -> ExperimentConfig:
        """The config as it is in the folder now: resolved once the model is fitted."""
        return load_config(self.folder / "config.yaml", of_run=True).config

    @property
    def _resume_command(self) -> str:
        return f"tfllmrec fit --resume {self.folder}{paraphrase_option(self.config.tuning.paraphrase)}"

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The content of ``metrics.json``, which ``evaluate --json`` prints.

        Raises:
          ModelError: the file is missing or damaged.
        """
        return self._json("metrics.json", _Measured)

    @cached_property
    def record(self) -> dict[str, Any]:
        """``run.json``: seed, versions, data hash, time and memory, source, choices.

        Raises:
          ModelError: the file is missing or damaged.
        """
        return self._json("run.json", _Recorded)

    @cached_property
    def per_query(self) -> dict[str, np.ndarray]:
        """``user_ids`` of the test queries, and by ``RECOMMENDER:LABEL`` the float64 ``[B]`` of each ranking metric.

        Raises:
          ModelError: the file is missing or damaged.
        """
        path = self.folder / PER_QUERY
        try:
            with np.load(path, allow_pickle=False) as stored:
                columns = dict(stored.items())
            queries = len(columns["user_ids"])
            for column, values in columns.items():
                if values.shape != (queries,) or (column != "user_ids" and values.dtype != np.float64):
                    raise ValueError(f"{column}: expected float64 [{queries}], found {values.dtype} {values.shape}")
        except Exception as error:  # zipfile and numpy raise nearly anything on a damaged file
            reason = error.strerror if isinstance(error, OSError) else None
            reason = reason or str(error).partition(". ")[0]  # numpy adds how to load pickled objects; nobody should
            raise ModelError(f"{path} cannot be read ({reason}): {_REMEDY}.") from error
        return columns

    @cached_property
    def results(self) -> dict[str, Result]:
        """The results on the test queries, the hybrid's and every baseline's, with their values per query."""
        results = results_of(self.metrics)
        for column, values in self.per_query.items():
            name, colon, label = column.partition(":")
            if colon:
                if name not in results:
                    raise ModelError(f"{self.folder / PER_QUERY} is damaged (metrics.json has no {name!r}): {_REMEDY}.")
                results[name].per_query[label] = values
        return results

    def _json(self, name: str, kind: type[BaseModel]) -> dict[str, Any]:
        """The content of a JSON file, checked as ``kind``."""
        return read_json(self.folder / name, kind, _REMEDY).model_dump(mode="json", exclude_unset=True)

    @cached_property
    def dataset(self) -> Dataset:
        return Dataset.load(self.folder / "data")

    @cached_property
    def split(self) -> Split:
        return make_split(self.dataset, self.config.split, self.config.seed)

    @cached_property
    def text(self) -> np.ndarray:
        """float32 ``[N, Dt]``.

        Raises:
          ModelError: the file is missing or damaged.
        """
        from tfllmrec.text.store import read_vectors

        again = "fit again" if self.complete else f"delete it, and continue with '{self._resume_command}'"
        return read_vectors(self.folder / "vectors.npy", self.dataset.n_items, again)

    def text_encoder(self, tell: Tell = to_stderr) -> TextEncoder:
        """The encoder of the run's item texts; it is trained now if the config asks for that and the run has none yet.

        Raises:
          ConfigError, DataError, ModelError: the encoder cannot be loaded or trained, is missing from a complete run,
            is not the one that encoded the items, or would be trained with a function that nobody allowed.
        """
        from tfllmrec.training.text_tower import is_trained, is_tuned, prepared_encoder

        config, folder = self.config, self.folder / "text"
        if self.complete and not is_trained(folder, config.text):
            raise ModelError(
                f"{folder} lacks trained parts of the text tower, and a complete run is not trained again: copy the "
                "folder back, or fit again."
            )
        function = config.tuning.paraphrase
        tunes = config.text.mode != "frozen" and not is_tuned(folder)
        if tunes and function not in (None, self.paraphrase):
            raise ConfigError(
                f"{self.folder} records {PARAPHRASE}={function}, a function that would be called now. A stored config "
                f"may not do that: allow the call with{paraphrase_option(function)}."
            )
        template = ItemTemplate.from_items(self.split.items, config.text.template)
        encoder = prepared_encoder(folder, self.split, template, config, tell)
        if all((self.folder / name).is_file() for name in ("vectors.json", "vectors.npy")):
            then = self._json("vectors.json", _ReadBy)["encoder"]
            if then != encoder.fingerprint:
                raise ModelError(
                    f"{self.folder}: the items' texts were read by another encoder (fingerprint {then[:12]}) than text."
                    f"encoder {config.text.encoder} with these settings is now ({encoder.fingerprint[:12]}), and their "
                    "vectors do not compare: put it and the section 'text' of config.yaml back, or fit again."
                )
        return encoder

    def query_encoder(self, encoder: TextEncoder, tell: Tell = to_stderr) -> TextEncoder | Student:
        """The encoder of queries: ``encoder`` itself, or the small tower that ``text.query_encoder`` names.

        The tower is trained now if the run has none yet.

        Args:
          encoder: the run's own, see :meth:`text_encoder`.
          tell: called with a line for each step.

        Raises:
          DataError, ModelError: the tower cannot be trained, or belongs to another encoder.
        """
        from tfllmrec.text.store import VectorStore
        from tfllmrec.training.query_encoder import prepared_query_encoder

        config, items = self.config, self.split.items
        if self._query_encoder_folder is None:
            return encoder
        return prepared_query_encoder(
            self._query_encoder_folder,
            config.text.query_encoder,
            encoder,
            ItemTemplate.from_items(items, config.text.template).texts(items),
            items[TITLE].fillna("").astype(str).tolist() if TITLE in items else None,
            config.distillation,
            config.seed,
            VectorStore(cache_folder() / "vectors"),
            tell,
        )

    @property
    def query_encoder_record(self) -> QueryEncoderRecord | None:
        """What the small tower loses and gains; ``None`` where queries are read as the items are.

        Raises:
          ModelError: there should be one, and it is damaged or not made yet.
        """
        from tfllmrec.training.query_encoder import QueryEncoderRecord

        folder = self._query_encoder_folder
        return QueryEncoderRecord.load(folder) if folder else None

    @property
    def _query_encoder_folder(self) -> Path | None:
        name = self.config.text.query_encoder
        return None if name == "same" or not np.any(self.text) else self.folder / "query_encoder" / name

    def load_model(self) -> Hybrid:
        """The fitted model.

        Raises:
          ModelError: the saved weights are damaged or not of this data.
        """
        from tfllmrec.training.callbacks import read_weights
        from tfllmrec.training.fit import build_hybrid

        model = build_hybrid(self.split, np.asarray(self.text), self.config)
        read_weights(self.folder / "model" / "weights", "fit again", model=model)
        return model

    def load_ranking(self, hybrid: Hybrid) -> RankingModel | None:
        """What puts candidates into order; ``None`` where the run was made without.

        Args:
          hybrid: :meth:`load_model`, or one over a catalogue that has further items at its end.

        Raises:
          ModelError: it is damaged, or missing.
        """
        from tfllmrec.training.ranking import load_ranking

        if not self.config.ranking.epochs:
            return None
        return load_ranking(self.folder / "ranking", hybrid, self.split, self.config.ranking, self.config.seed)

    @property
    def ranking_record(self) -> RankingRecord | None:
        """How the ranking model was made; ``None`` where the run was made without.

        Raises:
          ModelError: there should be one, and it is damaged or not made yet.
        """
        from tfllmrec.training.ranking import RankingRecord

        return RankingRecord.load(self.folder / "ranking") if self.config.ranking.epochs else None


def fit_experiment(
    config: ExperimentConfig,
    out: Path | None = None,
    *,
    base: Path = Path(),
    resume: bool = False,
    tell: Tell = to_stderr,
) -> Run:
    """Reads, splits, encodes, fits, measures; writes a run folder.

    The folder is locked meanwhile: a second process that would write to it ends with an error.

    Args:
      config: may say *auto*.
      out: the run folder; by default ``runs/NAME``, with a number where that is taken.
      base: where relative data paths start.
      resume: continue the interrupted run in ``out``. It keeps its own config and data; of ``config`` only
        ``tuning.paraphrase`` counts, which is called only where both name the same function.
      tell: called with a line for each step.

    Returns:
      The complete run.

    Raises:
      ConfigError: ``out`` is taken (without resume), not there (with it), or in use by another process; or the run
        would call a function that ``config`` does not name.
      WriteError: the disk is full, read-only or broken. All that was finished before stays, and resume continues there.
      DataError, ModelError: see the steps.
    """
    if not resume:
        with start_run(config, out, base=base, tell=tell) as (run, config):
            tell(f"run folder: {run.folder}")
            return _fit(run, config, tell)
    if out is None or not (out / "config.yaml").is_file():
        raise ConfigError(f"Nothing to resume: {out} has no config.yaml. Start it with 'tfllmrec fit CONFIG --out'.")
    run = Run(out, config.tuning.paraphrase)
    if run.complete:
        tell(f"{out} is complete already.")
        return run
    with locked(out):
        return _fit(run, run.config, tell)


def _fit(run: Run, config: ExperimentConfig, tell: Tell) -> Run:
    """Runs the steps of a fit that are not done yet; the caller holds the lock."""
    with writing(run.folder, f"Once it can be written, continue with: {run._resume_command}"):
        return _fit_and_measure(run, config, tell)


def _fit_and_measure(run: Run, config: ExperimentConfig, tell: Tell) -> Run:
    start, out = time.monotonic(), run.folder
    dataset, split = run.dataset, run.split
    tell(
        f"{dataset.name}: {dataset.n_users:,} users, {dataset.n_items:,} items, {len(dataset.events):,} events; "
        f"{split.kind} split, {len(split.test):,} test queries"
    )
    for finding in split.tag_findings:
        tell(f"split: {finding}")

    text = encode(run, config, tell)
    if run._query_encoder_folder:
        # Before the training, which knows nothing of it: an encoder that it cannot be made of is found out at once.
        run.query_encoder(run.text_encoder(tell), tell)
    from tfllmrec.training.callbacks import write_weights
    from tfllmrec.training.fit import fit_hybrid
    from tfllmrec.training.ranking import prepared_ranking, settle_epochs

    # A run that was interrupted after training has nothing left to choose, and knows why from before.
    record = out / "run.json"
    earlier = run._json("run.json", _Recorded) if record.is_file() else {}
    chosen: list[str] = earlier.get("chosen", [])

    def remember(line: str) -> None:
        if line.startswith("chosen: ") and (said := line.removeprefix("chosen: ")) not in chosen:
            chosen.append(said)
        tell(line)

    fitted = fit_hybrid(split, text, config, out, remember)
    write_weights(out / "model" / "weights", model=fitted.model)
    if said := settle_epochs(fitted.config.ranking, split):
        remember(f"chosen: {said}")
    write_text(record, json.dumps(_record(run, config.seed, chosen, time.monotonic() - start, earlier), indent=1))
    write_text(out / "config.yaml", dump_config(fitted.config))

    # The model as it was saved, in float32 whatever it was trained in: what is evaluated and exported later.
    hybrid = run.load_model()
    ranking = fitted.config.ranking
    order = prepared_ranking(out / "ranking", hybrid, split, ranking, config.seed, tell) if ranking.epochs else None
    recommenders = baselines(split, text, fitted.config, tell)
    results = _measure_all({"hybrid": hybrid, **recommenders}, split, fitted.config)
    _save_per_query(out / PER_QUERY, split.test, results)
    measured = report(split, fitted.config, results)
    if order is not None:
        measured["ranking"] = _measure_ranking(hybrid, order, split, fitted.config, results["hybrid"], tell)
    took = time.monotonic() - start
    write_text(record, json.dumps(_record(run, config.seed, chosen, took, earlier, run.ranking_record), indent=1))
    write_text(out / "metrics.json", json.dumps(measured, indent=1))
    tell(f"complete: {out}")
    return run


@contextlib.contextmanager
def start_run(
    config: ExperimentConfig, out: Path | None, *, base: Path, tell: Tell
) -> Iterator[tuple[Run, ExperimentConfig]]:
    """Reads the data, and makes a run folder that stands alone: its config reads the data beside it.

    The folder is locked until the block ends.

    Args:
      config: may say *auto*; it is not changed.
      out: the folder; by default ``runs/NAME``, with a number where that is taken.
      base: where relative data paths start.

    Yields:
      The run, and its config, whose data paths start in its folder.

    Raises:
      ConfigError: ``out`` is taken, or in use by another process.
      DataError: the data cannot be read or split.
      WriteError: the disk is full, read-only or broken.
    """
    source = config.data.model_dump(mode="json", exclude_defaults=True)
    tell("reading the data")
    dataset = read_dataset(config.data, base)
    with _free_folder(out, dataset.name) as out:
        yield _begun(config, source, dataset, out, base, tell)


def _begun(
    config: ExperimentConfig, source: dict[str, Any], dataset: Dataset, out: Path, base: Path, tell: Tell
) -> tuple[Run, ExperimentConfig]:
    """Writes what a run starts from into its folder, which is free."""
    write_text(out / "source.json", json.dumps(source, indent=1))  # first of all: it says whose folder this is
    for line in dataset.report.lines():
        tell(f"data: {line}")
    if unused := [column for column in dataset.users.columns if column != USER]:
        tell(f"user columns {', '.join(unused)}: kept with the data; no model uses them yet")
    dataset.save(out / "data")
    config = config.model_copy(deep=True)
    config.data = config.data.model_copy(
        update={"name": dataset.name, "source": "data", "format": "tfllmrec", "events": None, "items": None,
                "users": None, "more_items": [], "columns": {}}
    )  # fmt: skip
    if config.tuning.synonyms is not None:
        config.tuning.synonyms = (base / config.tuning.synonyms).resolve()
    for role in ("encoder", "preprocessor"):
        handle = getattr(config.text, role)
        if handle and (base / handle / "saved_model.pb").is_file():
            setattr(config.text, role, str((base / handle).resolve()))
    config.split = config.split.model_copy(update={"kind": make_split(dataset, config.split, config.seed).kind})
    write_text(out / "config.yaml", dump_config(config))
    return Run(out, config.tuning.paraphrase), config


def baselines(split: Split, text: np.ndarray, config: ExperimentConfig, tell: Tell) -> dict[str, Recommender]:
    """Every baseline of the config, fitted on the training events.

    Settings and epochs are chosen on the validation queries that the hybrid's are chosen on, by the same measure.
    """
    sample, strata = validation_sample(split, config.seed), split.strata(config.evaluation.head_share)
    names = [name for name in config.evaluation.baselines if name != "two_tower"]
    if not np.any(text) and (reading := [name for name in names if name in ("text", "ease_text")]):
        names = [name for name in names if name not in reading]
        tell(f"no item has text, so there is no baseline {', '.join(reading)}")
    fitted: dict[str, Recommender] = dict(
        fit_baselines(
            names,
            split.train_queries().history,
            split.dataset.n_items,
            sample,
            text_vectors=text,
            strata=strata,
            progress=lambda name: tell(f"baseline: {name}"),
        )
    )
    if "two_tower" in config.evaluation.baselines:
        from tfllmrec.models.two_tower import fit_two_tower

        tell("baseline: two_tower")
        with show_progress("Training the two-tower", "epochs") as progress:
            fitted["two_tower"] = fit_two_tower(split, sample, strata, config.seed, progress=progress)
    return fitted


def _measure_all(recommenders: Mapping[str, Recommender], split: Split, config: ExperimentConfig) -> dict[str, Result]:
    """Each on the test queries, by name."""
    results: dict[str, Result] = {}
    total = len(split.test) * len(recommenders)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    with show_progress("Measuring on the test queries", "queries") as progress:
        for name, recommender in recommenders.items():
            results[name] = measure_one(recommender, split.test, split, config, advance)
    return results


def _measure_ranking(
    hybrid: Hybrid, model: RankingModel, split: Split, config: ExperimentConfig, hybrids: Result, tell: Tell
) -> dict[str, Any]:
    """What ``metrics.json`` holds under ``ranking``."""
    from tfllmrec.models.ranking import Reranked
    from tfllmrec.training.ranking import measure_ranking, ranking_lines

    reranked = Reranked(hybrid, model, config.ranking.candidates)
    result = measure_one(reranked, split.test, split, config)
    measured = measure_ranking(reranked, split, result, hybrids, config.seed)
    for line in ranking_lines(measured, hybrids.metrics):
        tell(f"ranking: {line}")
    return measured


def measure_one(
    recommender: Recommender,
    queries: Queries,
    split: Split,
    config: ExperimentConfig,
    progress: Callable[[int], None] | None = None,
) -> Result:
    """One recommender on queries of a split, with all that the config asks to be measured."""
    settings = config.evaluation
    return evaluate(
        recommender,
        queries,
        train_counts=split.train_counts,
        strata=split.strata(settings.head_share),
        ks=settings.ks,
        batch_size=settings.batch_size,
        bootstrap=settings.bootstrap,
        seed=config.seed,
        progress=progress,
    )


def measured_again(run: Run, recommenders: dict[str, Recommender]) -> dict[str, Any]:
    """The run's report and alarms with the figures of ``recommenders`` computed now, and all others as recorded."""
    results = run.results | _measure_all(recommenders, run.split, run.config)
    figures = {"results": as_json(results), "intervals": {name: _intervals(result) for name, result in results.items()}}
    return run.metrics | figures | {"alarms": alarm_lines(results)}


def _save_per_query(path: Path, queries: Queries, results: Mapping[str, Result]) -> None:
    """Writes what :attr:`Run.per_query` reads."""
    columns = {f"{name}:{label}": v for name, result in results.items() for label, v in result.per_query.items()}
    with replacing(path) as fresh, fresh.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, user_ids=queries.user_ids.astype(str), **columns)


def report(split: Split, config: ExperimentConfig, results: dict[str, Result]) -> dict[str, Any]:
    """What ``metrics.json`` holds and ``evaluate --json`` prints."""
    dataset = split.dataset
    return {
        "data": {
            "name": dataset.name,
            "users": dataset.n_users,
            "items": dataset.n_items,
            "events": len(dataset.events),
            "sha256": dataset.fingerprint,
        },
        "split": {
            "kind": split.kind,
            "seed": config.seed,
            "train_events": len(split.train),
            "head_share": config.evaluation.head_share,
            **next(iter(results.values())).counts,
        },
        "results": as_json(results),
        "intervals": {name: _intervals(result) for name, result in results.items()},
        "alarms": alarm_lines(results),
    }


def _intervals(result: Result) -> dict[str, list[float]]:
    return {label: [low, high] for label, (low, high) in result.intervals.items()}


def encode(run: Run, config: ExperimentConfig, tell: Tell) -> np.ndarray:
    """The items' text vectors, float32 ``[N, Dt]``: read from the run folder or the vector store, or encoded now.

    The texts are those of :attr:`tfllmrec.data.Split.items`. The resolved template is written into ``config``.
    """
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
    # Before the vectors, which so are never without it.
    write_text(run.folder / "vectors.json", json.dumps({"encoder": encoder.fingerprint}))
    with show_progress("Encoding item texts", "texts") as progress:
        store = VectorStore(cache_folder() / "vectors")
        return encode_items(template.texts(run.split.items), encoder, store, progress, out=path)


def _record(
    run: Run,
    seed: int,
    chosen: list[str],
    seconds: float,
    earlier: dict[str, Any],
    ranking: RankingRecord | None = None,
) -> dict[str, Any]:
    """The content of ``run.json``; time and memory include an ``earlier`` process that ended after the training."""

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {
        "seed": seed,
        "data_sha256": run.dataset.fingerprint,
        "date": datetime.date.today().isoformat(),
        "seconds": round(seconds + earlier.get("seconds", 0.0), 1),
        "peak_memory_mb": max(
            round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000), earlier.get("peak_memory_mb", 0)
        ),
        "versions": {"python": platform.python_version(), **{name: installed(name) for name in PACKAGES}},
        "source": read_json(run.folder / "source.json", dict[str, Any], _REMEDY),
        "chosen": chosen,
        "query_encoder": None if (tower := run.query_encoder_record) is None else asdict(tower),
        "ranking": None if ranking is None else asdict(ranking),
        "cleaning": asdict(run.dataset.report),
        "tags": [asdict(finding) for finding in run.split.tag_findings],
    }


@contextlib.contextmanager
def _free_folder(out: Path | None, name: str) -> Iterator[Path]:
    """Locks ``out`` if it is free, else the next free ``runs/NAME``, and empties it of a run that learnt nothing."""
    if out is None:
        out, number = Path("runs") / name, 1
        while out.exists():
            number += 1
            out = Path("runs") / f"{name}-{number}"
    taken = f"{out} is not empty: name another folder with --out, or continue with --resume {out}."
    if out.is_file():
        raise ConfigError(taken)
    with locked(out):
        held = [path for path in out.iterdir() if not unfinished(path)]
        ours = (out / "source.json").is_file() and all(path.name in BEFORE_TRAINING for path in held)
        if held and not ours:
            raise ConfigError(taken)
        # A run that ended before it had learnt anything is started again: its settings may have been the mistake.
        for path in held:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield out


def unfinished(path: Path) -> bool:
    """Whether a file of a run folder is its lock, or was left half-written by a killed process."""
    return path.name.startswith(".") or path.name.endswith(".tmp")
