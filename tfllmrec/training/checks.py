"""Checks the settings that name fields of the data, before anything is computed."""

from __future__ import annotations

from tfllmrec.config import ExperimentConfig, ModelConfig
from tfllmrec.data.cleaning.event_kinds import plain_kind
from tfllmrec.data.schema import Schema
from tfllmrec.errors import ConfigError
from tfllmrec.wording import nearest_hint


def contexts(schema: Schema) -> list[str]:
    """Returns the names of the fields that ``item_weights.context`` may contain: categories of requests."""
    return [field.name for field in schema.of("request") if field.kind == "category"]


def check_fields(schema: Schema, config: ExperimentConfig) -> None:
    """Checks the settings that name fields before anything is computed.

    Raises:
      ConfigError: ``item_weights.context`` or ``model.scene`` names a field that is not a category of requests, or
        ``evaluation.by`` one that is no category of requests or users; the model reads no fields for
        ``item_weights.context``; or ``item_weights.kinds`` names a kind that no event has.
    """
    known = contexts(schema)
    scene, default = config.model.scene, ModelConfig().scene
    named = [("item_weights.context", name) for name in config.item_weights.context or {}]
    if "behaviour" not in config.model.terms:
        named = []
    elif named and not (config.model.fields and "meaning" in config.model.terms):
        raise ConfigError("item_weights.context needs model.fields=true and meaning among model.terms.")
    kind = schema.kind_of_event
    kinds = () if kind is None else kind.vocabulary
    for name in config.item_weights.factors_of_kinds if "behaviour" in config.model.terms else ():
        if plain_kind(name) not in map(plain_kind, kinds):
            said = ", ".join(kinds) or "the data has no weights"
            raise ConfigError(
                f"item_weights.kinds: expected kinds of events ({said}), found {name!r}{nearest_hint(name, kinds)}."
            )
    named += [("model.scene", scene)] if scene not in (None, default) else []
    for setting, name in named:
        if name not in known:
            raise ConfigError(
                f"{setting}: expected categories of requests ({', '.join(known) or 'the data has none'}), found "
                f"{name!r}{nearest_hint(name, known)}. Declare the column with data.fields.{name}.owner=request, or "
                "leave it out."
            )
    groups = [field.key for field in schema.of_query() if field.kind == "category"]
    for key in config.evaluation.by:
        if key not in (*groups, f"request.{scene}"):
            raise ConfigError(
                f"evaluation.by: expected categories of requests and users ({', '.join(groups) or 'the data has none'}"
                f"), found {key!r}{nearest_hint(key, groups)}. Declare the column with data.fields (owner, kind), or "
                "leave it out."
            )
