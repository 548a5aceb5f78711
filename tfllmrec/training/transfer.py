"""Models of a target domain that start from complete runs of other domains, the sources.

- :func:`zero_shot` trains nothing. The model of the first source reads the target's catalogue: an item that both have
  keeps its learned id and its number of events, any other item is what a cold item is to that model, its text. The
  item-item weights are solved over the target's catalogue from the events of all sources on items of the target. The
  history of a user of the target is read when the user asks.
- :func:`fine_tune` is a fit on the target's events. The layers and the ids of shared items start from the first source,
  and the sources' events on items of the target count in the item-item weights with the weight ``item_weights.source``,
  which is chosen on validation; at 0 they are left out.

- :func:`distil` is a fit on the target's events, too. It starts anew, and the dense side of the ``zero_shot`` model is
  its teacher: the teacher's scores are soft targets beside the items that came next.

``align`` is ``zero_shot`` with text vectors that :func:`tfllmrec.text.coral.coral` or
:func:`tfllmrec.text.adversarial.adversarial` has made similar to the source's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from tfllmrec.training.defaults import choose_item_weights, choose_source, item_weights_result
from tfllmrec.training.fit import WarmStart, fit_hybrid, set_seeds


@dataclass(frozen=True, eq=False)
class Source:
    """A fitted model of another domain, and what the target can use of its events.

    Attributes:
      model: the first source's.
      rows: int ``[N]``, of each item of the target its row in the model's catalogue, -1 for none.
      text: float32 ``[M, Dt]``, the text vectors of the model's catalogue.
      histories: items of the target that users of all sources had, oldest first.
      own_histories: rows of the model's catalogue that its training users had.
    """

    model: Hybrid
    rows: np.ndarray
    text: np.ndarray
    histories: Ragged
    own_histories: Ragged


def histories_among(histories: Ragged, rows: np.ndarray, n_known: int) -> Ragged:
    """Histories of one catalogue as items of another; what the other one lacks is left out.

    Args:
      histories: rows of the known catalogue of ``n_known`` items.
      rows: int ``[N]``, of each item of the other catalogue its row in the known one, -1 for none.
    """
    at = np.full(n_known, -1)
    at[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
    shared = histories.where(at[histories.values] >= 0)
    return Ragged(at[shared.values], shared.offsets)


def together(histories: Sequence[Ragged]) -> Ragged:
    """Histories of several sources, one after the other."""
    lengths = np.concatenate([each.lengths for each in histories])
    return Ragged(np.concatenate([each.values for each in histories]), np.append(0, np.cumsum(lengths)))


def zero_shot(
    data: TrainingData, config: ExperimentConfig, source: Source, tell: Tell, align: bool = False
) -> Fitted[Hybrid, ExperimentConfig]:
    """The source's model over the target's catalogue, without training.

    The item-item weights are solved with the settings of the source, or without the order of events: what comes next
    may follow from how a shop arranges its shelves. The better of these is chosen on validation
    (:func:`order_settings`).

    Args:
      data: of the target; only its validation queries are read.
      config: its ``model`` and ``item_weights`` are replaced by those of the source.
      source: see there.
      tell: called with a line for each step.
      align: whether the text vectors are made similar to the source's, as ``transfer.alignment`` says.

    Raises:
      ModelError: the catalogue lacks a field that the model reads.
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
    config.ranking.epochs, config.interests.learned = 0, False  # they would be trained on the target's events
    return Fitted(model, config, {}, [said])


def _catalogue(data: TrainingData, text: np.ndarray, source: Source) -> Catalogue:
    """The target's, as the source's model reads it."""
    of_target, schema = data.split.dataset.items, data.split.schema
    return Catalogue.of(of_target, text, schema, data.text_widths, source.model.config, graph=data.graph)


def order_settings(model: Hybrid) -> dict[str, ItemWeightSettings]:
    """Settings of the item-item weights that do with the order of the source's events what a target may ask for."""
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
    """The settings of the item-item weights, without what belongs to the source's data: graph, sources and domains."""
    return model.item_weights.model_copy(update={"graph": 0.0, "source": 0.0, "domains": {}, "map": False})


def fit_from(
    source: Source,
    data: TrainingData,
    config: ExperimentConfig,
    folder: Path | None,
    tell: Tell,
    callbacks: Sequence[tf.keras.callbacks.Callback] = (),
) -> Fitted[Hybrid, ExperimentConfig]:
    """The model of ``transfer.method``.

    Args:
      source: see there.
      data: of the target, with the source's schema and :attr:`Source.histories`.
      config, folder, tell, callbacks: as :func:`tfllmrec.training.fit.fit_hybrid` takes them.

    Raises:
      ModelError: the target's catalogue lacks a field that the source's model reads; see ``fit_hybrid``.
    """
    chosen: list[str] = []
    method = config.transfer.method
    if method == "auto":
        method, settings, chosen = choose_method(data, config, source, tell)
        for line in chosen:
            tell(f"chosen: {line}")
        if method == "fine_tune":  # with what was found here, which is not searched again
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
    """A fit on the target's events that starts from the source; arguments as in :func:`fit_from`.

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
    """A fit on the target's events with the source's dense side as a teacher; arguments as in :func:`fit_from`.

    ``config.model`` is replaced by that of the source, so that both read the same queries. ``transfer.distil`` is the
    weight of the soft targets.

    Raises:
      ConfigError: the source has no dense side. See :func:`tfllmrec.training.fit.fit_hybrid`, too.
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
    """``zero_shot`` or ``fine_tune``, whichever ranks the validation sample better.

    Of ``fine_tune`` the item-item weights are measured alone, which takes no training.

    Returns:
      The method, the settings of the item-item weights that were found for ``fine_tune``, and lines that say why.
    """
    without: Result = data.measure(zero_shot(data, config, source, tell).model)
    settings, searched = choose_item_weights(data, config.item_weights, tell)
    settings, said = choose_source(data, config.item_weights, settings, tell)
    with_events = item_weights_result(data, settings)
    as_it_is, trained = selection_value(without), selection_value(with_events)
    method: Literal["zero_shot", "fine_tune"] = "zero_shot" if as_it_is >= trained else "fine_tune"
    line = (
        f"transfer.method {method}: selection value of zero_shot {as_it_is:.4f}, of item-item weights with the "
        f"target's events {trained:.4f} ({'; '.join(said) or 'no shared events'})"
    )
    settings = settings.model_copy(update={"graph": config.item_weights.graph})  # it is still to be chosen
    return method, settings, [line, *(searched if method == "fine_tune" else [])]


def alignment(data: TrainingData, model: Hybrid, source: Source) -> dict[str, Distances | None]:
    """How far the two domains are apart: the texts of their items and the mean texts of their users' histories.

    ``before``: as the encoder gives them; ``after``: as the models read them, centred and aligned.

    Args:
      data: of the target. model: made from ``source``.
    """
    before, after = (np.asarray(data.text), source.text), (model.text_vectors, source.model.text_vectors)
    histories = (data.histories, source.own_histories)
    found: dict[str, Distances | None] = {}
    for when, pair in (("before", before), ("after", after)):
        ours, theirs = (_unit(interactions(past, len(text)) @ text) for past, text in zip(histories, pair, strict=True))
        found |= {f"items, {when}": distances(*pair), f"users, {when}": distances(ours, theirs)}
    return found


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
