"""Models of a target domain that start from complete runs of other domains, the sources.

- :func:`zero_shot` trains nothing. It applies the model of the first source to the target's catalogue. An item that is
  in both catalogues keeps its id embedding and its number of events. Any other item is a cold item, represented by its
  text. The item-item weights are solved for the target's catalogue from the events of all sources with items of the
  target. The histories of the target's users are inputs of requests.
- :func:`fine_tune` trains on the target's events. The layers and the ids of shared items start from the first source.
  The sources' events with items of the target count in the item-item weights with the weight ``item_weights.source``,
  which is chosen on validation data; with 0, these events are ignored.
- :func:`distil` also trains on the target's events, but from random weights. The dense side of the ``zero_shot`` model
  is its teacher: the teacher's scores are soft targets in addition to the next items.

``align`` is ``zero_shot`` with text vectors that :func:`tfllmrec.text.coral.coral` or
:func:`tfllmrec.text.adversarial.adversarial` made similar to those of the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import tensorflow as tf

from tfllmrec.config import ExperimentConfig, ItemWeightSettings
from tfllmrec.data.queries import Ragged
from tfllmrec.errors import ConfigError
from tfllmrec.evaluation.alignment import Distances, distances
from tfllmrec.evaluation.protocol import Result, selection_value
from tfllmrec.models.fitting import Fitted, TrainingData
from tfllmrec.models.hybrid import Catalogue, Hybrid, Teacher
from tfllmrec.models.item_weights import interactions
from tfllmrec.progress import Tell
from tfllmrec.text.adversarial import adversarial
from tfllmrec.text.coral import coral
from tfllmrec.training.fit import WarmStart, fit_hybrid, set_seeds
from tfllmrec.training.item_weight_search import choose_item_weights, choose_view, item_weights_result


@dataclass(frozen=True, eq=False)
class Source:
    """A fitted model of another domain, and the events of sources that the target can use.

    Attributes:
      model: The model of the first source.
      rows: Int ``[N]``, the row of each item of the target in the model's catalogue, -1 for none.
      text: Float32 ``[M, Dt]``, the text vectors of the model's catalogue.
      histories: The histories of the users of all sources, with items of the target only, oldest first.
      own_histories: The histories of the model's training users, as rows of the model's catalogue.
    """

    model: Hybrid
    rows: np.ndarray
    text: np.ndarray
    histories: Ragged
    own_histories: Ragged


def histories_among(histories: Ragged, rows: np.ndarray, n_known: int) -> Ragged:
    """Translates histories from one catalogue to another, and drops items that the other one does not have.

    Args:
      histories: Histories, as rows of the first catalogue.
      rows: Int ``[N]``, the row of each item of the other catalogue in the first one, -1 for none.
      n_known: The number of items of the first catalogue.
    """
    at = np.full(n_known, -1)
    at[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
    shared = histories.where(at[histories.values] >= 0)
    return Ragged(at[shared.values], shared.offsets)


def together(histories: Sequence[Ragged]) -> Ragged:
    """Concatenates the histories of several sources."""
    lengths = np.concatenate([each.lengths for each in histories])
    return Ragged(np.concatenate([each.values for each in histories]), np.append(0, np.cumsum(lengths)))


def zero_shot(
    data: TrainingData, config: ExperimentConfig, source: Source, tell: Tell, align: bool = False
) -> Fitted[Hybrid, ExperimentConfig]:
    """Applies the source's model to the target's catalogue, without training.

    The item-item weights are solved with the settings of the source, and also without the order of events, because this
    order may be due to the way in which the source presents its items. The best of these settings are chosen on
    validation data (:func:`order_settings`).

    Args:
      data: The data of the target, of which the catalogue and the validation queries are read.
      config: The settings; ``model`` and ``item_weights`` are replaced by those of the source.
      source: The source.
      tell: Called with a line for each step.
      align: Whether the text vectors are made similar to those of the source, by the method ``transfer.alignment``.

    Raises:
      ModelError: The catalogue lacks a field that the model reads.
    """
    set_seeds(config.seed)
    text = np.asarray(data.text)
    if align:
        adversarially = config.transfer.alignment == "adversarial"
        text = adversarial(text, source.text, config.seed) if adversarially else coral(text, source.text)
    catalogue = _catalogue(data, text, source)
    tried = {}
    for name, settings in order_settings(source.model).items():
        model = source.model.with_catalogue(catalogue, source.rows, source.histories, tell, item_weights=settings)
        tried[name] = model, data.measure(model)
    best = max(tried, key=lambda name: selection_value(tried[name][1]))
    model, _ = tried[best]
    figures = ", ".join(f"{name} {selection_value(result):.4f}" for name, (_, result) in tried.items())
    said = f"item_weights: {best} (selection value on validation: {figures})"
    tell(f"chosen: {said}")
    config = config.model_copy(deep=True)
    config.model, config.item_weights = model.config, model.item_weights
    config.transfer.method = "align" if align else "zero_shot"
    config.ranking.epochs, config.interests.learned = 0, False  # both would be trained on the target's events
    return Fitted(model, config, {}, [said])


def _catalogue(data: TrainingData, text: np.ndarray, source: Source) -> Catalogue:
    """Returns the target's catalogue in the form that the source's model reads."""
    of_target, schema = data.split.dataset.items, data.split.schema
    return Catalogue.of(of_target, text, schema, data.text_widths, source.model.config, graph=data.graph)


def order_settings(model: Hybrid) -> dict[str, ItemWeightSettings]:
    """Returns candidate settings of the item-item weights, with and without the order of the source's events."""
    own = _as_in_source(model)
    if not model.use_behaviour or not own.next_item:
        return {"as in the source": own}
    unordered = {"next_item": 0.0, "co_occurrence": 1.0}
    return {
        "as in the source": own,
        **{
            f"without order, decay {decay:g}": own.model_copy(update=unordered | {"decay": decay})
            for decay in (own.decay, 0.95, 1.0)
            if decay is not None
        },
    }


def _as_in_source(model: Hybrid) -> ItemWeightSettings:
    """Returns the source's settings of the item-item weights without graph, sources and domains, which are its data."""
    return model.item_weights.model_copy(update={"graph": 0.0, "source": 0.0, "domains": {}, "map": False})


def fit_from(
    source: Source,
    data: TrainingData,
    config: ExperimentConfig,
    folder: Path | None,
    tell: Tell,
    callbacks: Sequence[tf.keras.callbacks.Callback] = (),
) -> Fitted[Hybrid, ExperimentConfig]:
    """Creates the model of the target by ``transfer.method``.

    Args:
      source: The source.
      data: The data of the target, with the source's schema and :attr:`Source.histories`.
      config: As in :func:`tfllmrec.training.fit.fit_hybrid`.
      folder: As in ``fit_hybrid``.
      tell: As in ``fit_hybrid``.
      callbacks: As in ``fit_hybrid``.

    Raises:
      ModelError: The target's catalogue lacks a field that the source's model reads; also see ``fit_hybrid``.
    """
    chosen: list[str] = []
    method = config.transfer.method
    if method == "auto":
        method, settings, chosen = choose_method(data, config, source, tell)
        for line in chosen:
            tell(f"chosen: {line}")
        if method == "fine_tune":  # with the settings found here, so that they are not searched again
            config = config.model_copy(update={"item_weights": settings})
    if method == "fine_tune":
        fitted = fine_tune(data, config, source, folder, tell, callbacks)
    elif method == "distil":
        fitted = distil(data, config, source, folder, tell, callbacks)
    else:
        fitted = zero_shot(data, config, source, tell, align=method == "align")
    return replace(fitted, chosen=[*chosen, *fitted.chosen])


def fine_tune(
    data: TrainingData,
    config: ExperimentConfig,
    source: Source,
    folder: Path | None,
    tell: Tell,
    callbacks: Sequence[tf.keras.callbacks.Callback] = (),
) -> Fitted[Hybrid, ExperimentConfig]:
    """Fits a model on the target's events, starting from the source; the arguments are those of :func:`fit_from`.

    ``config.model`` is replaced by that of the source.
    """
    config = config.model_copy(update={"model": source.model.config})
    fitted = fit_hybrid(data, config, folder, tell, callbacks, WarmStart(source.model, source.rows))
    fitted.options.transfer.method = "fine_tune"
    return fitted


def distil(
    data: TrainingData,
    config: ExperimentConfig,
    source: Source,
    folder: Path | None,
    tell: Tell,
    callbacks: Sequence[tf.keras.callbacks.Callback] = (),
) -> Fitted[Hybrid, ExperimentConfig]:
    """Fits a model on the target's events, with the dense side of the source's model as its teacher.

    The arguments are those of :func:`fit_from`. ``config.model`` is replaced by that of the source, so that both models
    read the same queries. ``transfer.distil`` is the weight of the soft targets.

    Raises:
      ConfigError: The source's model has no dense side; also see :func:`tfllmrec.training.fit.fit_hybrid`.
    """
    if not source.model.use_dense:
        raise ConfigError(
            "transfer.method=distil: expected a source with meaning or feedback among its model.terms, found neither. "
            "Use zero_shot or fine_tune."
        )
    config = config.model_copy(update={"model": source.model.config})
    catalogue, settings = _catalogue(data, np.asarray(data.text), source), _as_in_source(source.model)
    model = source.model.with_catalogue(catalogue, source.rows, None, tell, item_weights=settings)
    teacher = Teacher(model, model.item_vectors(), config.transfer.distil)
    return fit_hybrid(data, config, folder, tell, callbacks, teacher=teacher)


def choose_method(
    data: TrainingData, config: ExperimentConfig, source: Source, tell: Tell
) -> tuple[Literal["zero_shot", "fine_tune"], ItemWeightSettings, list[str]]:
    """Chooses ``zero_shot`` or ``fine_tune``, whichever ranks the validation sample better.

    For ``fine_tune``, only the item-item weights are measured, which requires no training.

    Returns:
      The method, the settings of the item-item weights that were found for ``fine_tune``, and lines with the reasons.
    """
    without: Result = data.measure(zero_shot(data, config, source, tell).model)
    tried: list[ItemWeightSettings] = []
    settings, searched = choose_item_weights(data, config.item_weights, tried, tell)
    settings, said = choose_view("source", data, config.item_weights, settings, tried, tell)
    with_events = item_weights_result(data, settings)
    as_it_is, trained = selection_value(without), selection_value(with_events)
    method: Literal["zero_shot", "fine_tune"] = "zero_shot" if as_it_is >= trained else "fine_tune"
    line = (
        f"transfer.method {method}: selection value of zero_shot {as_it_is:.4f}, of item-item weights with the "
        f"target's events {trained:.4f} ({'; '.join(said) or 'no shared events'})"
    )
    settings = settings.model_copy(update={"graph": config.item_weights.graph})  # not chosen yet
    return method, settings, [line, *(searched if method == "fine_tune" else [])]


def alignment(data: TrainingData, model: Hybrid, source: Source) -> dict[str, Distances | None]:
    """Measures the distance of two domains, for the texts of items and for the mean texts of users' histories.

    ``before`` refers to the vectors from the encoder; ``after`` to those that the models read, centred and aligned.

    Args:
      data: The data of the target.
      model: The target's model, created from ``source``.
      source: The source.
    """
    before, after = (np.asarray(data.text), source.text), (model.text_vectors, source.model.text_vectors)
    histories = (data.histories, source.own_histories)
    found: dict[str, Distances | None] = {}
    for when, pair in (("before", before), ("after", after)):
        ours, theirs = (_unit(interactions(past, len(text)) @ text) for past, text in zip(histories, pair, strict=True))
        found |= {f"items, {when}": distances(*pair), f"users, {when}": distances(ours, theirs)}
    return found


def text_distances_between(data: TrainingData) -> dict[str, Distances | None]:
    """Measures the distance of the items' texts for each pair of domains of joined data."""
    text = np.asarray(data.text)
    inside = {name: text[items] for name, items in data.items_of_domains.items()}
    return {f"items of {a} and {b}, before": distances(inside[a], inside[b]) for a, b in combinations(inside, 2)}


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
