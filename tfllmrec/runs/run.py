"""A run folder, with everything that one ``fit`` read, chose, learnt and measured.

RUN/
  config.yaml     the resolved config; itself a valid input
  run.json        seed, versions, data hash, time and memory, automatic choices and their reasons
  source.json     the data section as the user set it
  parent.json     the search or run from which the run was made, if any
  update.json     of an update: the folder of the run that it continues from, and the amount of new data
  log.json        how far an event log was read, if the events came from one
  trained.npy     of an update: the rows of the events that its parent was trained on
  transfer.json   the runs of other domains that it starts from, and what it shares with them, if any
  data/           the data set as it was used (Parquet)
  schema.json     the fields: owner, kind, vocabulary and statistics of training
  text/           the pretrained or tuned weights of the text tower, if the config asks for them
  vectors.npy     the items' text vectors, float32 [N, Dt]; vectors.json: the encoder that computed them
  graph/          the graph of the items (Parquet, JSON), if the config or 'tfllmrec graph' asks for one
  query_encoder/  by its name, the small tower that encodes queries, if the config asks for one
  checkpoints/    the newest epoch, the best epoch, and the progress of training
  logs/           TensorBoard
  model/          the fitted weights, and the statistics of events that the item-item weights were solved from
  ranking/        the model that sorts candidates, if the config asks for one; without weights if it does not help
  labels.npz      the labels of the items, in which interests are told, if the config asks for learned interests
  interests/      the forecast of the next items' labels, and a record that says whether it helps and is used
  per_query.npz   the ranking metrics of each test query, for the model and every baseline
  ablation/       results of the model without one of its parts, if ``benchmarks/ablation.py`` has measured them
  gate.json       the verdict of the promotion gate, if the run was to be promoted
  report.html, comparison.html, CARD.md    written by ``tfllmrec report``
  metrics.json    figures of the model and every baseline; written last: a run with this file is complete
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from pydantic import BaseModel, Field, model_validator

from tfllmrec.assets import cache_folder
from tfllmrec.columns import TITLE
from tfllmrec.config import PARAPHRASE, ExperimentConfig, load_config, paraphrase_option
from tfllmrec.data.dataset import Dataset
from tfllmrec.data.domains import Overlap
from tfllmrec.data.graph import ItemGraph
from tfllmrec.data.queries import Ragged
from tfllmrec.data.schema import Schema
from tfllmrec.data.splits import Split, make_split
from tfllmrec.durable import absolute, read_json, reading_npz, write_text
from tfllmrec.errors import ConfigError, ModelError
from tfllmrec.evaluation.alignment import Distances
from tfllmrec.evaluation.protocol import Result, users_of
from tfllmrec.evaluation.report import results_of
from tfllmrec.progress import Tell, to_stderr
from tfllmrec.text.template import ItemTemplate

if TYPE_CHECKING:
    from tfllmrec.layers.label_match import LabelMatch
    from tfllmrec.models.fitting import TrainingData
    from tfllmrec.models.hybrid import Hybrid
    from tfllmrec.models.interests import Interests, LabelForecast
    from tfllmrec.models.ranking import RankingModel
    from tfllmrec.text.side_by_side import Encoder
    from tfllmrec.text.student import Student
    from tfllmrec.text.user_texts import UserTexts
    from tfllmrec.training.ranking.record import RankingRecord
    from tfllmrec.training.text.query_encoder import QueryEncoderRecord

PER_QUERY, SCHEMA, INTERESTS, GRAPH = "per_query.npz", "schema.json", "interests", "graph"
#: The file that records what a run took from runs of other domains.
TRANSFER = "transfer.json"
#: The folder of results of the model without one of its parts, which ``benchmarks/ablation.py`` writes.
ABLATION = "ablation"
#: The file in a search folder with the searched settings.
PLAN = "search.json"
#: The file in a run folder that names the run or search from which it was made.
PARENT = "parent.json"
#: The files in an update's folder with its starting point, and with the rows of events that stay training events.
UPDATE, TRAINED = "update.json", "trained.npy"
#: The file that records how far the run has read an event log: the newest event at that time.
READ_LOG = "log.json"
#: The file in a run folder with the verdict of the promotion gate.
GATE = "gate.json"
#: Folders that an update copies from its parent: the text tower and the small tower of queries.
TAKEN_OVER = ("text", "query_encoder")
REMEDY = "copy it back, or fit again into another folder"

#: In the folder ``model``: the item-item weights of the exported model.
REFIT_WEIGHTS = "refit_weights.npz"
#: Kinds of splits in which the validation events are further events of the training users and items.
REFIT_SPLITS = ("leave_last_out", "leave_random_out", "random", "fixed")


class _Measured(BaseModel, extra="allow"):
    """The content of ``metrics.json``. Only the keys that are read are checked."""

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


class Parent(BaseModel):
    """The content of ``parent.json``: the search or run from which a run was made.

    Attributes:
      folder: Name of its folder.
      data_sha256: Fingerprint of its data set.
    """

    folder: str
    data_sha256: str


class Update(BaseModel):
    """The content of ``update.json``: the starting point of a run that was made by an update.

    Attributes:
      parent: The folder of the run that the update continues from; it is read until the update is complete.
      new_events: Number of events that the parent does not have.
      new_items: Number of items that the parent does not have.
      new_users: Number of users that the parent does not have.
      overrides: The settings that were given, such as ``update.epochs=5``.
    """

    parent: str
    new_events: int
    new_items: int
    new_users: int
    overrides: list[str] = []


class Recorded(BaseModel, extra="allow"):
    """The content of ``run.json``. Only the keys that are read are checked."""

    seed: int
    data_sha256: str
    seconds: float
    peak_memory_mb: float
    versions: dict[str, str | None]
    source: dict[str, Any]
    chosen: list[str]
    parent: Parent | None = None


class SourceRun(BaseModel):
    """A run that another one starts from.

    Attributes:
      folder: Its absolute path.
      name: Name of its data set.
      data_sha256: Fingerprint of its data set.
    """

    folder: Path
    name: str
    data_sha256: str


class Transferred(BaseModel):
    """The content of ``transfer.json``.

    Attributes:
      sources: The source runs; the model comes from the first one.
      overlaps: What the target shares with each source, as returned by :meth:`tfllmrec.data.domains.Overlap.as_dict`.
      missing: Columns that the source's model reads and the target lacks; their values are treated as missing.
      unread: Columns of the target that the source's model does not know.
      alignment: Distances between the vectors of the domains; with ``joint`` and ``map``, of the items' texts alone.
    """

    sources: list[SourceRun]
    overlaps: list[dict[str, Any]]
    missing: list[str] = []
    unread: list[str] = []
    alignment: dict[str, dict[str, float] | None] = {}

    def lines(self) -> list[str]:
        """Returns the content as readable lines."""
        lines = [str(Overlap.from_dict(each)) for each in self.overlaps]
        lines += [f"the target lacks {', '.join(self.missing)}"] if self.missing else []
        lines += [f"the source does not know {', '.join(self.unread)}"] if self.unread else []
        known = {name: each for name, each in self.alignment.items() if each is not None}
        return lines + [f"{name} alignment: {Distances(**each)}" for name, each in known.items()]

    def write(self, folder: Path) -> None:
        """Writes the file into a run's folder."""
        write_text(folder / TRANSFER, self.model_dump_json(indent=1))


class _ReadBy(BaseModel):
    """The content of ``vectors.json``."""

    encoder: str
    widths: list[int] | None = None


@dataclass(frozen=True, eq=False)
class Run:
    """An existing run folder; the docstring of the module lists its content.

    Attributes:
      folder: The run folder.
      paraphrase: The ``tuning.paraphrase`` function that the caller allows to be called. If a run records another one,
        its text tower is not trained.
    """

    folder: Path
    paraphrase: str | None = None

    @classmethod
    def open(cls, folder: Path | str) -> Run:
        """Opens a complete run.

        Raises:
          ModelError: The folder is not a run folder, or the run was interrupted.
          ConfigError: The run was interrupted, and its config is damaged.
        """
        run = cls(Path(folder))
        if not (run.folder / "config.yaml").is_file():
            raise ModelError(
                f"{folder} is not a run folder: expected a config.yaml in it, as written by 'tfllmrec fit'."
            )
        if not run.complete:
            raise ModelError(f"{folder} was not finished: continue it with '{run.resume_command}'.")
        return run

    @property
    def name(self) -> str:
        """The name of the folder, also if the path to it is ``.`` or ``..``."""
        return absolute(self.folder).name

    @property
    def complete(self) -> bool:
        return (self.folder / "metrics.json").is_file()

    @property
    def config(self) -> ExperimentConfig:
        """The present config in the folder; it is resolved once the model is fitted."""
        return load_config(self.folder / "config.yaml", of_run=True).config

    @property
    def resume_command(self) -> str:
        return f"tfllmrec fit --resume {self.folder}{paraphrase_option(self.config.tuning.paraphrase)}"

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The content of ``metrics.json``, which is also printed by ``evaluate --json``.

        Raises:
          ModelError: The file is missing or damaged.
        """
        return self.read("metrics.json", _Measured)

    @cached_property
    def record(self) -> dict[str, Any]:
        """The content of ``run.json``: seed, versions, data hash, time and memory, source, choices.

        Raises:
          ModelError: The file is missing or damaged.
        """
        return self.read("run.json", Recorded)

    @cached_property
    def per_query(self) -> dict[str, np.ndarray]:
        """The ``user_ids`` of the test queries, and each ranking metric by ``RECOMMENDER:LABEL``, float64 ``[B]``.

        Raises:
          ModelError: The file is missing or damaged.
        """
        with reading_npz(self.folder / PER_QUERY, REMEDY) as stored:
            columns = dict(stored.items())
            queries = len(columns["user_ids"])
            for column, values in columns.items():
                if values.shape != (queries,) or (column != "user_ids" and values.dtype != np.float64):
                    raise ValueError(f"{column}: expected float64 [{queries}], found {values.dtype} {values.shape}")
        return columns

    @cached_property
    def results(self) -> dict[str, Result]:
        """The results of the hybrid and every baseline on the test queries, with their values per query.

        Raises:
          ModelError: A file is missing or damaged.
        """
        users = users_of(self.per_query["user_ids"])
        results = {name: replace(result, users=users) for name, result in results_of(self.metrics).items()}
        for column, values in self.per_query.items():
            name, colon, label = column.partition(":")
            if colon:
                if name not in results:
                    raise ModelError(f"{self.folder / PER_QUERY} is damaged (metrics.json has no {name!r}): {REMEDY}.")
                results[name].per_query[label] = values
        return results

    def read(self, name: str, kind: type[BaseModel]) -> dict[str, Any]:
        """Returns the content of a JSON file, validated as ``kind``; further keys stay if ``kind`` allows them."""
        return read_json(self.folder / name, kind, REMEDY).model_dump(mode="json", exclude_unset=True)

    @cached_property
    def dataset(self) -> Dataset:
        return Dataset.load(self.folder / "data")

    @cached_property
    def split(self) -> Split:
        """The split, with the schema that the run was started with.

        Raises:
          ModelError: The schema is damaged.
        """
        path = self.folder / SCHEMA
        schema = Schema.from_dict(read_json(path, list[dict[str, Any]], REMEDY)) if path.is_file() else None
        return self.split_by(schema)

    def split_by(self, schema: Schema | None) -> Split:
        """Returns the split with the fields of another schema; with ``None`` those of its training events."""
        trained = _read_rows(self.folder / TRAINED) if self.update is not None else None
        return make_split(self.dataset, self.config.split, self.config.seed, schema, trained)

    @cached_property
    def update(self) -> Update | None:
        """The starting point of an update; ``None`` if the run was made by a fit.

        Raises:
          ModelError: The record is damaged.
        """
        path = self.folder / UPDATE
        return read_json(path, Update, REMEDY) if path.is_file() else None

    @cached_property
    def text(self) -> np.ndarray:
        """The items' text vectors, float32 ``[N, Dt]``.

        Raises:
          ModelError: The file is missing or damaged.
        """
        from tfllmrec.text.store import read_vectors

        again = "fit again" if self.complete else f"delete it, and continue with '{self.resume_command}'"
        return read_vectors(self.folder / "vectors.npy", self.dataset.n_items, again)

    @property
    def encoder_fingerprint(self) -> str | None:
        """The fingerprint of the encoder that computed :attr:`text`; ``None`` if no item has text.

        Raises:
          ModelError: The file with the fingerprint is damaged.
        """
        return None if (by := self._read_by()) is None else by.encoder

    @property
    def transferred(self) -> Transferred | None:
        """What the run took from runs of other domains; ``None`` if it took nothing.

        Raises:
          ModelError: The file that records it is damaged.
        """
        path = self.folder / TRANSFER
        return read_json(path, Transferred, REMEDY) if path.is_file() else None

    @property
    def text_widths(self) -> list[int] | None:
        """The widths of the encoders' vectors in :attr:`text`; ``None`` if no item has text, or in older runs.

        Raises:
          ModelError: The file with the widths is damaged.
        """
        return None if (by := self._read_by()) is None else by.widths

    def _read_by(self) -> _ReadBy | None:
        path = self.folder / "vectors.json"
        return read_json(path, _ReadBy, REMEDY) if path.is_file() else None

    @cached_property
    def training_data(self) -> TrainingData:
        """The run's training events, validation queries and text vectors, and the graph that its model reads.

        Raises:
          ModelError: The text vectors are missing or damaged, or the graph is damaged.
        """
        from tfllmrec.models.fitting import TrainingData

        graph = self.graph if self.config.graph.says_more_than_events else None  # a later graph is not the model's
        return TrainingData.of(self.split, self.text, self.config, self.text_widths, self.user_texts, graph)

    @property
    def graph(self) -> ItemGraph | None:
        """The graph of the items; ``None`` if there is none.

        Raises:
          ModelError: The graph is damaged.
        """
        folder = self.folder / GRAPH
        return ItemGraph.load(folder) if folder.is_dir() else None

    @cached_property
    def user_texts(self) -> UserTexts | None:
        """Encodes texts of users with the encoder of queries, which is loaded when it is needed.

        ``None`` if no item has text, because the run then has no encoder.
        """
        from tfllmrec.text.store import VectorStore
        from tfllmrec.text.user_texts import UserTexts

        if not np.any(self.text):
            return None
        return UserTexts(lambda: self.query_encoder(self.text_encoder()), VectorStore(cache_folder() / "vectors"))

    def text_encoder(self, tell: Tell = to_stderr) -> Encoder:
        """Returns the encoder of the run's item texts; trains it if the config asks for that and the run has none yet.

        Raises:
          ConfigError, DataError, ModelError: The encoder cannot be loaded or trained, is missing from a complete run,
            is not the one that encoded the items, or would be trained with a function that the caller did not allow.
        """
        from tfllmrec.training.text.tower import is_trained, is_tuned, prepared_encoder

        config, folder = self.config, self.folder / "text"
        if self.complete and not is_trained(folder, config.text):
            raise ModelError(
                f"{folder} lacks trained parts of the text tower, and a complete run is not trained again: copy the "
                "folder back, or fit again."
            )
        function = config.tuning.paraphrase
        tunes = config.text.mode not in ("frozen", "joint") and not is_tuned(folder)
        if tunes and function not in (None, self.paraphrase):
            raise ConfigError(
                f"{self.folder} records {PARAPHRASE}={function}, a function that would be called now. A stored config "
                f"may not do that: allow the call with{paraphrase_option(function)}."
            )
        template = ItemTemplate.from_items(self.split.items, config.text.template)
        encoder = prepared_encoder(folder, self.split, template, config, tell)
        if all((self.folder / name).is_file() for name in ("vectors.json", "vectors.npy")):
            then = self.encoder_fingerprint
            if then is not None and then != encoder.fingerprint:
                raise ModelError(
                    f"{self.folder}: the items' texts were read by another encoder (fingerprint {then[:12]}) than text."
                    f"encoder {config.text.encoder} with these settings is now ({encoder.fingerprint[:12]}), and their "
                    "vectors do not compare: put it and the section 'text' of config.yaml back, or fit again."
                )
        return encoder

    def query_encoder(self, encoder: Encoder, tell: Tell = to_stderr) -> Encoder | Student:
        """Returns the encoder of queries: that of the items, or the small tower that ``text.query_encoder`` names.

        The small tower is trained now if the run has none yet.

        Args:
          encoder: The run's encoder of items, see :meth:`text_encoder`.
          tell: Called with a line of text for each step.

        Raises:
          DataError, ModelError: The small tower cannot be trained, or belongs to another encoder.
        """
        from tfllmrec.text.store import VectorStore
        from tfllmrec.training.text.query_encoder import prepared_query_encoder

        config, items = self.config, self.split.items
        if self.query_encoder_folder is None:
            return encoder.for_queries
        return prepared_query_encoder(
            self.query_encoder_folder,
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
        """The quality and speed of the small query tower; ``None`` if the items' encoder encodes queries.

        Raises:
          ModelError: The record is damaged, or the small tower does not exist yet.
        """
        from tfllmrec.training.text.query_encoder import QueryEncoderRecord

        folder = self.query_encoder_folder
        return QueryEncoderRecord.load(folder) if folder else None

    @property
    def query_encoder_folder(self) -> Path | None:
        name = self.config.text.query_encoder
        return None if name == "same" or not np.any(self.text) else self.folder / "query_encoder" / name

    @property
    def may_refit(self) -> bool:
        """Whether a fit solves the item-item weights again with the validation events.

        True if the split is one of :data:`REFIT_SPLITS` and has validation events, the model has the behaviour term,
        and ``transfer.sources`` is empty.
        """
        split, config = self.split, self.config
        has_events = split.validation_events is not None and len(split.validation_events) > 0
        learns = split.kind in REFIT_SPLITS and "behaviour" in config.model.terms and not config.transfer.sources
        return has_events and learns

    @property
    def is_refit(self) -> bool:
        """Whether the exported model has learned from the validation events; runs of earlier versions have not."""
        return (self.folder / "model" / REFIT_WEIGHTS).is_file()

    @property
    def exported_histories(self) -> Ragged:
        """The item indices from which the exported model's item-item weights are solved, a row for each user."""
        return self.split.train_queries(validation=self.is_refit).choices

    def load_model(self, refit: bool = False) -> Hybrid:
        """The fitted model.

        Args:
          refit: As it is exported: if :attr:`is_refit`, with the item-item weights that were solved again.

        Raises:
          ModelError: The saved weights are damaged or do not fit this data, or the graph that the model reads is
            missing.
        """
        from tfllmrec.models.item_weights import PrunedWeights
        from tfllmrec.training.callbacks import read_weights
        from tfllmrec.training.fit import build_hybrid

        config, data = self.config, self.training_data
        if config.model.propagation != "none" and config.graph.says_more_than_events and data.graph is None:
            raise ModelError(f"{self.folder / GRAPH} is missing, and the model reads it: {REMEDY}.")
        model = build_hybrid(data, config, blank=True)
        # Older runs did not store the weights that follow from the data: the ids, and the sampling of negatives.
        derived = [*model.ids.weights, *model.retrieval.weights]
        read_weights(self.folder / "model" / "weights", "fit again", model=model, optional=derived)
        if refit and self.is_refit:
            model.set_item_weights(PrunedWeights.load(self.folder / "model" / REFIT_WEIGHTS))
        return model

    def load_ranking(self, hybrid: Hybrid, labels: Interests | None = None) -> RankingModel | None:
        """Loads the model that sorts candidates; ``None`` if the run has none, or left it out.

        Args:
          hybrid: The result of :meth:`load_model`, or that model with a catalogue that has further items at its end.
          labels: The labels of the hybrid's items; by default, those of the run's items.

        Raises:
          ModelError: The ranking model or what it reads is damaged or missing.
        """
        from tfllmrec.training.ranking.fit import load_ranking

        record, config = self.ranking_record, self.config
        if record is None:
            return None
        if labels is None and hybrid.n_items == self.split.dataset.n_items and record.labels:
            labels = self.labels()
        match = self.label_match(labels) if record.labels else None
        return load_ranking(self.folder / "ranking", hybrid, self.split, config.ranking, config.seed, match)

    def labels(self) -> Interests | None:
        """Returns the labels of the run's items, as :func:`tfllmrec.runs.labels.labels_of_run` does."""
        from tfllmrec.runs.labels import labels_of_run

        return labels_of_run(self, self.split.items, to_stderr)

    def label_match(self, labels: Interests | None) -> LabelMatch | None:
        """Returns the layer that compares ``labels`` with a user's interests; ``None`` if no interests were learned.

        Raises:
          ModelError: The forecast of the labels is damaged.
        """
        from tfllmrec.training.interests import match_of

        return match_of(labels, self.load_label_forecast())

    def load_label_forecast(self) -> LabelForecast | None:
        """Loads the forecast of the next items' labels; ``None`` if none was learned, or if it was left out.

        Raises:
          ModelError: The forecast is damaged.
        """
        from tfllmrec.training.interests import load_forecast

        return load_forecast(self.folder / INTERESTS) if self.config.interests.learned else None

    @property
    def ranking_record(self) -> RankingRecord | None:
        """How the ranking model was made; ``None`` if the run has none.

        Raises:
          ModelError: The record is damaged, or does not exist yet.
        """
        from tfllmrec.training.ranking.record import RankingRecord

        return RankingRecord.load(self.folder / "ranking") if self.config.ranking.epochs else None


def _read_rows(path: Path) -> np.ndarray:
    """Reads the rows of events from a file.

    Raises:
      ModelError: The file is missing or damaged.
    """
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ModelError(f"{path} cannot be read ({error}): {REMEDY}.") from error
    if rows.ndim != 1 or rows.dtype != np.int64:
        raise ModelError(f"{path} is damaged (expected int64 [T], found {rows.dtype} {list(rows.shape)}): {REMEDY}.")
    return rows


def unfinished(path: Path) -> bool:
    """Returns whether a file of a run folder is its lock, or was left half-written by a killed process."""
    return path.name.startswith(".") or path.name.endswith(".tmp")
