"""Exports a run, or a fitted model, as a numbered SavedModel that stock TF Serving can load."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import pandas as pd
import tensorflow as tf

from tfllmrec.assets import cache_folder
from tfllmrec.columns import CATEGORIES, DESCRIPTION, DOMAIN, ITEM, ITEM_INDEX, STRATUM, TITLE, TRAIN_EVENTS
from tfllmrec.data.cleaning.names import category_names
from tfllmrec.data.cleaning.times import times
from tfllmrec.data.cleaning.titles import display_titles
from tfllmrec.data.cleaning.values import numbers, strings
from tfllmrec.data.dataset import Dataset
from tfllmrec.data.domains import domain_filters
from tfllmrec.data.graph import ItemGraph
from tfllmrec.data.queries import Queries
from tfllmrec.data.schema import Schema
from tfllmrec.data.splits import Split
from tfllmrec.durable import publish_folder, writing, writing_folder
from tfllmrec.errors import ModelError
from tfllmrec.layers.item_index import Form
from tfllmrec.layers.item_scann import scann_operations
from tfllmrec.models.hybrid import Catalogue
from tfllmrec.models.ranking import RankingModel
from tfllmrec.models.servable import Servable
from tfllmrec.models.two_tower_servable import USER_FIELD, TwoTowerServable, with_user_ids
from tfllmrec.progress import Tell, show_progress, to_stderr
from tfllmrec.runs.experiment import versions
from tfllmrec.runs.labels import choose_labels, labels_of_run
from tfllmrec.runs.run import Run
from tfllmrec.serving.layout import EXTRA, ITEM_FIELDS, ITEMS, LARGEST_VERSION, MANIFEST, WARM_UP, version_folders
from tfllmrec.serving.new_items import Counts, read_new_items
from tfllmrec.serving.promotion import read_promotions
from tfllmrec.serving.rules.folder import take_over, take_over_again
from tfllmrec.serving.signatures import ServingModel
from tfllmrec.serving.warm_up import write_warm_up
from tfllmrec.text.side_by_side import Encoder
from tfllmrec.text.store import VectorStore, encode_items
from tfllmrec.text.template import ItemTemplate

#: Number of items whose ids and titles are used in warm-up requests.
SAMPLE = 64
ENCODED_AT_ONCE = 1024


@overload
def export(
    source: Path | str,
    target: Path | str,
    new_items: Path | str | None = None,
    /,
    *,
    index: Form = "auto",
    tell: Tell = to_stderr,
) -> Path: ...


@overload
def export(
    source: tf.Module,
    dataset: Dataset | Split,
    target: Path | str,
    /,
    *,
    query_model: Callable[..., tf.Tensor] | None = None,
    candidate_model: Callable[..., tf.Tensor] | np.ndarray | None = None,
    query_takes: str | Sequence[str] | None = None,
    candidate_takes: str | Sequence[str] = ITEM,
    encoder: Encoder | None = None,
    ranking: RankingModel | None = None,
    index: Form = "auto",
    tell: Tell = to_stderr,
) -> Path: ...


def export(source: Path | str | tf.Module, *data: Any, **options: Any) -> Path:
    """Writes the next version of a model, for TF Serving and for the embedded server.

        export("runs/shop", "saved_models/shop")                      # a run; a third argument: a file of new items
        export(hybrid, split, "saved_models/shop", encoder=encoder)   # a fitted Hybrid without a run
        export(model, split, "saved_models/shop", query_model=model.query_model, candidate_model=model.item_model)

    The version appears under its number only when it is complete, so a server that watches the target never loads an
    incomplete one. The remains of an export that was killed are removed.

    Args:
      source: A complete run, or a fitted model: a :class:`tfllmrec.Hybrid`, or any two-tower model, such as a
        ``tfrs.Model``, whose score is the inner product of a query vector and an item vector.
      data: For a run, the target, such as ``saved_models/shop``; the new version is ``saved_models/shop/1``, then
        ``2``, and so on. Optionally also a file of items that appeared after the training
        (:mod:`tfllmrec.serving.new_items`): new items are added with their text and fields, and items of the run get
        the new texts and fields. Each version starts from the run, without the new items of earlier versions. For a
        model, the data that it was fitted on, a :class:`tfllmrec.data.Dataset` or a :class:`tfllmrec.data.Split`, which
        contains the ids, titles, categories, fields and popularity of the items; and the target.

    Keyword Args:
      query_model: The query model of a two-tower model, see
        :class:`tfllmrec.models.two_tower_servable.TwoTowerServable`; by default ``source.query_model``.
      candidate_model: For a two-tower model, the vectors of the items, float32 ``[N, D]``, in the order of the data, or
        a function that returns the vectors of a batch of items; by default ``source.candidate_model``.
      query_takes: The input of the query model, ``takes`` of ``TwoTowerServable``; by default a mapping of all fields.
      candidate_takes: The input of the candidate model: ``item_id`` (string ``[b]``), ``item_index`` (int32 ``[b]``) or
        the key of an item's field (``item.price``). With a list of these, the input is a mapping.
      encoder: The text encoder of a model. Without it, the version has no ``search``.
      ranking: The ranking model that was fitted on a model. Without it, the version has no ``rank``.
      index: The form of the item indexes, see :func:`tfllmrec.layers.item_index.build_index`. Stock TF Serving cannot
        load *scann*.
      tell: Called with a line for each step.

    Returns:
      The folder of the version. In addition to the SavedModel, it contains in ``assets.extra`` the manifest
        ``tfllmrec.json`` (schema, data hash, versions, indexes, the number of items that ``recommend`` ranks; for a run
        also its config, its metrics unless there are new items, the hash of its graph, the encoder of queries and the
        number of new items),
        ``items.parquet`` (ids, titles to show, lists of categories, training events and strata, in the order of the
        ``score`` signature, new items last), ``item_fields.parquet`` (the fields of the items that business rules
        select by), and warm-up requests.

    Raises:
      ConfigError: The rules of the target do not fit the new version, or another process applies rules for more than a
        minute.
      DataError: The new items cannot be read or used.
      ModelError: The run is not complete; it cannot have new items, because it has neither text nor fields, or was
        transferred from other runs; its query encoder does not belong to its text encoder; its ranking model is
        damaged; the model does not fit the data; or scann is missing.
      WriteError: The target cannot be written.
    """
    if options.get("index") == "scann":
        scann_operations()  # reports a missing scann before anything is read
    return (_export_run if isinstance(source, Path | str) else _export_model)(source, *data, **options)


def _export_run(
    run_folder: Path | str,
    target: Path | str,
    new_items: Path | str | None = None,
    *,
    index: Form = "auto",
    tell: Tell = to_stderr,
) -> Path:
    run = Run.open(run_folder)
    items, text, counts, text_to_vector = run.split.items, np.asarray(run.text), None, None
    encoder = run.text_encoder(tell) if np.any(text) else None
    model, graph = run.load_model(refit=True), run.graph
    if new_items is not None and run.config.transfer.sources:
        raise ModelError(
            f"{run.folder} has item-item weights from events of other runs, so no items can be added to it: transfer "
            "again with the larger catalogue as --items."
        )
    if new_items is not None:
        grown = read_new_items(run, new_items, encoder, model.items.fields_read, tell)
        items, text, counts = grown.items, grown.text, grown.counts
        if grown.is_reread:
            catalogue = Catalogue.of(
                items, text, run.split.schema, run.text_widths, model.config, graph=run.training_data.graph
            )
            model = model.extend(catalogue, np.asarray(run.text), run.exported_histories, tell)
    if encoder is not None:
        # Items keep the vectors of the run's encoder. Queries are encoded by it, or by a small tower distilled from it.
        text_to_vector = run.query_encoder(encoder, tell).text_to_vector
    domains = domain_filters(items, run.split.schema)
    listed = _listed(items, domains, run.split, run.config.evaluation.head_share)
    labels, forecast = labels_of_run(run, items, tell), run.load_label_forecast()
    if labels is not None and forecast is not None and (new := int((~forecast.knows(labels.labels)).sum())):
        tell(f"interests: {new:,} of {len(labels.labels):,} labels are new since the fit: nothing was learned of them")
    serving = ServingModel(
        model,
        items[ITEM].to_numpy(object),
        text,
        text_to_vector,
        run.split.train_queries(),
        items[CATEGORIES].tolist() if CATEGORIES in items else None,
        labels,
        run.load_ranking(model, labels),
        index,
        listed[TITLE].tolist(),
        run.split.schema,
        run.text_widths,
        (listed[STRATUM] != "head").to_numpy(),
        run.dataset.repeats,
        forecast,
        run.dataset.ordered,
        graph,
        domains,
    )
    return _write(serving, listed, items, run.split.schema, Path(target), _manifest(run, graph, counts), tell)


def _export_model(
    model: tf.Module,
    dataset: Dataset | Split,
    target: Path | str,
    *,
    query_model: Callable[..., tf.Tensor] | None = None,
    candidate_model: Callable[..., tf.Tensor] | np.ndarray | None = None,
    query_takes: str | Sequence[str] | None = None,
    candidate_takes: str | Sequence[str] = ITEM,
    encoder: Encoder | None = None,
    ranking: RankingModel | None = None,
    index: Form = "auto",
    tell: Tell = to_stderr,
) -> Path:
    split = dataset if isinstance(dataset, Split) else _undivided(dataset)
    items, schema, histories = split.items, split.schema, split.train_queries()
    servable: Servable
    if hasattr(model, "fold"):
        servable = cast(Servable, model)
    else:
        query_model = getattr(model, "query_model", None) if query_model is None else query_model
        candidate_model = getattr(model, "candidate_model", None) if candidate_model is None else candidate_model
        if query_model is None or candidate_model is None:
            raise ModelError(
                f"export: a {type(model).__name__} has no query_model and candidate_model. Give both as arguments: the "
                "part that makes vectors of queries, and the vectors of the items or the part that makes them."
            )
        if callable(candidate_model):
            candidate_model = _candidate_vectors(candidate_model, candidate_takes, items, schema)
        vectors = np.asarray(candidate_model)
        servable = TwoTowerServable(query_model, vectors, split.train_counts, schema, query_takes)
        if USER_FIELD.key in servable.reads:
            schema, histories = Schema((*schema.fields, USER_FIELD)), with_user_ids(histories)
    if servable.n_items != len(items):
        raise ModelError(
            f"export: the model has {servable.n_items:,} items, the data {len(items):,}: expected the data that the "
            "model was fitted on."
        )
    text = np.zeros((len(items), 1), np.float32)
    columns = [name for name in (TITLE, DESCRIPTION, CATEGORIES) if name in items]
    if encoder is not None:
        template = ItemTemplate.from_items(items)
        columns = list(dict.fromkeys([*template.columns, *columns]))
        with show_progress("Encoding items", "texts") as progress:
            text = encode_items(template.texts(items), encoder, VectorStore(cache_folder() / "vectors"), progress)
        if not hasattr(encoder.for_queries, "text_to_vector"):
            raise ModelError(
                f"export: a {type(encoder).__name__} has no graph (text_to_vector), so it cannot be exported. Take a "
                "TextEncoder, or leave the encoder out if no search is needed."
            )
    domains = domain_filters(items, split.schema)
    listed = _listed(items, domains, split)
    serving = ServingModel(
        servable,
        items[ITEM].to_numpy(object),
        text,
        None if encoder is None else encoder.for_queries.text_to_vector,
        histories,
        items[CATEGORIES].tolist() if CATEGORIES in items else None,
        choose_labels(items, columns, histories, split.dataset.ordered, tell) if columns else None,
        ranking,
        index,
        listed[TITLE].tolist(),
        schema,
        None if encoder is None else encoder.widths,
        (listed[STRATUM] != "head").to_numpy(),
        split.dataset.repeats,
        ordered=split.dataset.ordered,
        domains=domains,
    )
    manifest = {"data_sha256": split.dataset.fingerprint, "versions": versions()}
    return _write(serving, listed, items, schema, Path(target), manifest, tell)


def _listed(
    items: pd.DataFrame, domains: Sequence[Sequence[str]], split: Split, head_share: float = 0.2
) -> pd.DataFrame:
    """Builds the table that :func:`tfllmrec.serving.layout.read_catalogue` reads; items not in the split are cold."""
    listed = pd.DataFrame({ITEM: items[ITEM], TITLE: display_titles(items)}).reset_index(drop=True)
    if CATEGORIES in items or DOMAIN in items:
        cells = items[CATEGORIES] if CATEGORIES in items else [""] * len(items)
        listed[CATEGORIES] = [[*category_names(cell), *names] for cell, names in zip(cells, domains, strict=True)]
    strata, new = split.strata(head_share), len(items) - split.dataset.n_items
    stratum = np.select([strata["head"], strata["cold"]], ["head", "cold"], "tail")
    listed[TRAIN_EVENTS] = np.append(split.train_counts, np.zeros(new, np.int64))
    listed[STRATUM] = np.append(stratum, ["cold"] * new)
    return listed


def _undivided(dataset: Dataset) -> Split:
    """Returns a split in which all events are training events."""
    nobody = Queries.from_histories([])
    return Split(dataset, "undivided", dataset.schema, dataset.events, nobody, nobody)


def _candidate_vectors(
    model: Callable[..., tf.Tensor], takes: str | Sequence[str], items: pd.DataFrame, schema: Schema
) -> np.ndarray:
    """Computes the item vectors with a candidate model, float32 ``[N, D]``."""

    def values_of(name: str) -> tf.Tensor:
        if name == ITEM:
            return tf.constant(items[ITEM].tolist())
        if name == ITEM_INDEX:
            return tf.range(len(items), dtype=tf.int32)
        fields = {field.key: field for field in schema.of("item")}
        if name not in fields:
            raise ModelError(
                f"The candidate model takes {name}: expected {', '.join([ITEM, ITEM_INDEX, *fields])}, or several."
            )
        field = fields[name]
        encoded = field.encode(items[field.name])
        return tf.constant(encoded.tolist() if encoded.dtype == object else encoded)

    parts, inputs = [], {name: values_of(name) for name in ([takes] if isinstance(takes, str) else takes)}
    for start in range(0, len(items), ENCODED_AT_ONCE):
        some = slice(start, start + ENCODED_AT_ONCE)
        given = inputs[takes][some] if isinstance(takes, str) else {name: inputs[name][some] for name in takes}
        parts.append(np.asarray(model(given), np.float32))
    return np.concatenate(parts)


def _write(
    serving: ServingModel,
    listed: pd.DataFrame,
    items: pd.DataFrame,
    schema: Schema,
    target: Path,
    manifest: dict[str, Any],
    tell: Tell,
) -> Path:
    """Writes the next version of ``target`` and returns its folder.

    Args:
      serving: The model to save.
      listed: The table of :func:`_listed`.
      items: The items with all their fields.
      schema: The fields of the data.
      target: The folder of the versions.
      manifest: The entries of the manifest that depend on the source.
      tell: Called with a line for each step.
    """
    manifest = {
        "name": target.name,
        "items": len(items),
        "schema": schema.as_dict(),
        "reads": list(serving.reads),
        "texts": {
            "fields": list(serving.reads_texts),
            "newest": serving.history_length,
            "width": serving.width_of_texts,
        },
        "ranked": serving.ranked,
        "indexes": {"recommend": serving.best.about, "search": serving.alike.about},
        **manifest,
    }
    ours = not target.exists()
    try:
        with (
            writing(target, "Nothing was changed there. Once it can be written, export again; or name another folder."),
            writing_folder(target) as temporary,
        ):
            signatures = serving.signatures()
            tf.saved_model.save(serving, str(temporary), signatures=signatures)
            extra = temporary / EXTRA
            extra.mkdir()
            listed.to_parquet(extra / ITEMS, index=False)
            _fields_of_rules(items, schema).to_parquet(extra / ITEM_FIELDS, index=False)
            (extra / MANIFEST).write_text(json.dumps(manifest, indent=1))
            ids, titles = (listed[name].head(SAMPLE).tolist() for name in (ITEM, TITLE))
            write_warm_up(extra / WARM_UP, target.name, signatures, ids, titles, schema, serving.some_labels)
            rules = take_over(target, temporary, tell)
            version = _publish(temporary, target)
            take_over_again(target, version, rules, tell)
            return version
    except BaseException:
        if ours:
            with contextlib.suppress(OSError):  # it was never created, or another exporter put a version there
                target.rmdir()
        raise


def _fields_of_rules(items: pd.DataFrame, schema: Schema) -> pd.DataFrame:
    """Returns the fields that rules may select items by, see :func:`tfllmrec.serving.layout.read_item_fields`."""
    fields: dict[str, Any] = {}
    for field in schema.of("item"):
        if field.kind in ("text", "vector") or field.name in (TITLE, DESCRIPTION, CATEGORIES):
            continue
        cells = items[field.name]
        if field.kind in ("number", "time"):
            read = numbers if field.kind == "number" else times
            fields[field.name] = cells.to_numpy(np.float64) if cells.dtype.kind == "f" else read(cells)[0]
        else:
            written = strings(cells)
            fields[field.name] = written.map(category_names) if field.width else written
    return pd.DataFrame(fields, index=items.index)


def _publish(temporary: Path, target: Path) -> Path:
    """Publishes the version under the next free number, even if another exporter takes a number at the same time.

    The number of a promoted version is not used again, even if its folder was deleted: the new version would have the
    labels of the old one.
    """
    number = max([0, *version_folders(target), *read_promotions(target).promoted])
    while True:
        number += 1
        if number > LARGEST_VERSION:
            raise ModelError(
                f"{target / str(LARGEST_VERSION)} is the largest version that servers load, so there is no next one: "
                "expected a smaller number. Rename that folder."
            )
        final = target / str(number)
        if not final.exists():
            try:
                publish_folder(temporary, final)
                return final
            except OSError:
                if not final.exists():
                    raise


def _manifest(run: Run, graph: ItemGraph | None, counts: Counts | None) -> dict[str, Any]:
    record, made = run.record, run.ranking_record
    ranking = None if made is None else asdict(made) | {"left_out": made.line() if made.left_out else None}
    return {
        "run": str(run.folder.resolve()),
        "config": run.config.model_dump(mode="json"),
        "new_items": None if counts is None else counts.as_dict(),
        "data_sha256": record["data_sha256"],
        "graph_sha256": None if graph is None else graph.fingerprint,
        "seed": record["seed"],
        "versions": record["versions"],
        # The metrics of the run do not apply to a version with additional items.
        "metrics": run.metrics if counts is None else None,
        "query_encoder": {"name": "same"} if (tower := run.query_encoder_record) is None else asdict(tower),
        "ranking": ranking,
    }
