"""Which version of an exported model is in use: the labels ``stable`` and ``canary``, and how they move.

``promotions.json`` in the model's folder, beside its versions, is the one place that says so. Each command writes it by
one rename, so it has the old or the new state, whatever happens to the process. The embedded server follows it. Stock
TF Serving reads ``models.config`` beside it, which each command renews from ``promotions.json``, also after a command
that was killed in between.

    export          a new version is there; nobody is served from it
    canary          served beside the stable version, under the label ``canary``
    promote         the canary is ``stable``; the version before stays loaded
    rollback        a canary is withdrawn; without one, ``stable`` is the version before

TF Serving moves a label only to a version that is loaded. So a version that is to become stable is always served under
the label ``canary``, or as the version before, until the label has moved. The version before stays loaded also beside a
canary, and a version that was withdrawn or rolled back is unloaded at once.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, NonNegativeInt

from tfllmrec.durable import locked, read_json, write_text
from tfllmrec.errors import ModelError
from tfllmrec.serving.layout import version_folders

PROMOTIONS, MODELS_CONFIG = "promotions.json", "models.config"
#: The most steps that the history keeps.
STEPS = 1000
_REMEDY = "delete it, and promote a version again"


class Step(BaseModel):
    """One move: when (ISO 8601, UTC), what, which version, and which one was stable before."""

    time: str
    action: Literal["adopt", "canary", "promote", "rollback", "withdraw"]
    version: NonNegativeInt
    stable_before: NonNegativeInt | None = None


class Promotions(BaseModel):
    """``promotions.json``.

    Attributes:
      stable, canary: the versions behind the labels; ``None``: there is none.
      served: the versions that are loaded, ascending: those with a label, and the one that a rollback would go to.
      before: the versions that were stable before, the newest last, without those that were rolled back.
      base_path: of the model's folder, as TF Serving sees it; ``""``: the folder's own path.
      history: the newest steps, the newest last.
    """

    stable: NonNegativeInt | None = None
    canary: NonNegativeInt | None = None
    served: list[NonNegativeInt] = []
    before: list[NonNegativeInt] = []
    base_path: str = ""
    history: list[Step] = []

    @property
    def labels(self) -> dict[str, int]:
        named = {"stable": self.stable, "canary": self.canary}
        return {label: version for label, version in named.items() if version is not None}

    def models_config(self, model: Path) -> str:
        """TF Serving's ``ModelServerConfig`` of this state of a model's folder, in protobuf's text format."""
        versions = " ".join(f"versions: {version}" for version in self.served)
        return "\n".join([
            "# Written by tfllmrec from promotions.json, and written again by its next promotion or rollback.",
            "model_config_list {",
            "  config {",
            f"    name: {json.dumps(model.resolve().name)}",
            f"    base_path: {json.dumps(self.base_path or str(model.resolve()))}",
            '    model_platform: "tensorflow"',
            f"    model_version_policy {{ specific {{ {versions} }} }}",
            *(f'    version_labels {{ key: "{key}" value: {version} }}' for key, version in self.labels.items()),
            "  }",
            "}",
            "",
        ])  # fmt: skip


def read_promotions(model: Path) -> Promotions:
    """The state of a model's folder; without any label where nothing was promoted yet.

    Raises:
      ModelError: it is damaged.
    """
    path = model / PROMOTIONS
    return read_json(path, Promotions, _REMEDY) if path.is_file() else Promotions()


def adopt(model: Path, base_path: str | None = None) -> Promotions:
    """Makes the newest version ``stable`` if no version has a label, so that later exports are not served at once.

    Args:
      model: the folder of the versions; it may have none, or not be there.
      base_path: of the folder, as TF Serving sees it, such as ``/models/shop`` in a container; by default, the one that
        was given before, or the folder's own path.
    """
    if not model.is_dir():
        return Promotions()
    with locked(model):
        state = read_promotions(model)
        if state.stable is None and (versions := version_folders(model)):
            newest = max(versions)
            state = _moved(state, "adopt", newest, stable=newest)
        if state.stable is not None:
            state = _written(model, state, base_path)
        return state


def set_canary(model: Path, version: int, base_path: str | None = None) -> Promotions:
    """Serves a version under the label ``canary``, beside the stable one; the first version ever is stable at once.

    Raises:
      ModelError: there is no such version, or the state is damaged.
    """
    with locked(model):
        state = read_promotions(model)
        _require(model, version)
        if state.stable is None:
            state = _moved(state, "promote", version, stable=version)
        elif version == state.stable:
            raise ModelError(f"{model}: version {version} is stable already, so it cannot be the canary.")
        elif version != state.canary:
            state = _moved(state, "canary", version, canary=version)
        return _written(model, state, base_path)


def promote(model: Path, base_path: str | None = None) -> Promotions:
    """Makes the canary ``stable``; the version that was stable stays loaded, for a rollback.

    Raises:
      ModelError: there is no canary, its folder is gone, or the state is damaged.
    """
    with locked(model):
        state = read_promotions(model)
        stable, canary = state.stable, state.canary
        if stable is None or canary is None:
            raise ModelError(
                f"{model}: expected a canary to promote, found none. Name a run: tfllmrec promote MODEL RUN."
            )
        _require(model, canary)
        before = [*state.before, stable][-STEPS:]
        state = _moved(state, "promote", canary, stable=canary, canary=None, before=before)
        return _written(model, state, base_path)


def rollback(model: Path) -> Promotions:
    """Takes the last step back: a canary is withdrawn; without one, ``stable`` is the version before.

    Raises:
      ModelError: there is no version before, its folder is gone, or the state is damaged.
    """
    with locked(model):
        state = read_promotions(model)
        stable = state.stable
        if stable is None or not (state.canary is not None or state.before):
            raise ModelError(f"{model}: nothing to roll back: no version was promoted over another one.")
        if state.canary is not None:
            state = _moved(state, "withdraw", state.canary, canary=None)
        else:
            target = state.before[-1]
            _require(model, target)
            state = _moved(state, "rollback", target, stable=target, before=state.before[:-1])
        return _written(model, state, None)


def _require(model: Path, version: int) -> None:
    if version not in version_folders(model):
        raise ModelError(f"{model} has no version {version}: copy its folder back, or promote another one.")


def _moved(
    state: Promotions,
    action: Literal["adopt", "canary", "promote", "rollback", "withdraw"],
    version: int,
    **new: object,
) -> Promotions:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    step = Step(time=now, action=action, version=version, stable_before=state.stable)
    return state.model_copy(update={**new, "history": [*state.history, step][-STEPS:]})


def _written(model: Path, state: Promotions, base_path: str | None) -> Promotions:
    """Writes the state, with the versions to load, if it is another one, and then what TF Serving reads."""
    assert state.stable is not None
    before = read_promotions(model)
    loaded = {state.stable} | {version for version in (state.canary, *state.before[-1:]) if version is not None}
    there = {*version_folders(model), *before.served}
    if before.stable is not None and state.stable not in before.served:  # until the label has moved
        loaded.add(before.stable)
    new = {"served": sorted(loaded & there), "base_path": base_path or state.base_path}
    state = state.model_copy(update=new)
    if state != before:
        write_text(model / PROMOTIONS, state.model_dump_json(indent=1))
    config, text = model / MODELS_CONFIG, state.models_config(model)
    if not config.is_file() or config.read_text(encoding="utf-8") != text:
        write_text(config, text)
    return state
