"""Selects the version of an exported model that is served, with the labels ``stable`` and ``canary``.

The file ``promotions.json`` in the model's folder, beside its versions, is the only record of the labels. Each command
replaces it with a single rename, so that it contains either the old or the new state, even if the process is killed.
The embedded server reads this file. Stock TF Serving reads ``models.config`` in the same folder. Each command writes
``models.config`` anew from ``promotions.json``, and thereby repairs it after a command that was killed in between.

    export          adds a version; no request is served from it yet
    canary          serves a version under the label ``canary``, beside the stable version; withdraws another canary
    promote         makes the canary ``stable``; the previous stable version stays loaded
    rollback        withdraws the canary; without a canary, makes the previous stable version ``stable`` again

TF Serving moves a label only to a version that is loaded. Therefore, a version that is to become stable is already
loaded when the label moves, as the canary or as the previous stable version. The previous stable version stays loaded
beside a canary, too. A version that was withdrawn or rolled back is unloaded at once.
"""

from __future__ import annotations

import datetime
import json
import logging
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, NonNegativeInt

from tfllmrec.durable import locked, read_json, write_text
from tfllmrec.errors import ModelError
from tfllmrec.serving.layout import version_folders

logger = logging.getLogger(__name__)

PROMOTIONS, MODELS_CONFIG = "promotions.json", "models.config"
#: Largest number of steps that the history keeps.
STEPS = 1000
#: How long the commands wait for another process that writes to the folder, such as 'tfllmrec rules apply', in seconds.
WAIT_S = 60.0
_REMEDY = "delete it, and promote a version again"


class Step(BaseModel):
    """One change of the labels.

    Attributes:
      time: ISO 8601, UTC.
      action: The kind of change.
      version: The version that the action concerns.
      stable_before: The version that was stable before the action; ``None`` if there was none.
    """

    time: str
    action: Literal["adopt", "canary", "promote", "rollback", "withdraw"]
    version: NonNegativeInt
    stable_before: NonNegativeInt | None = None


class Promotions(BaseModel):
    """The content of ``promotions.json``.

    Attributes:
      stable: The version with the label ``stable``; ``None`` if there is none.
      canary: The version with the label ``canary``; ``None`` if there is none.
      served: The versions to load, in ascending order: the versions with a label, and the version that a rollback would
        make stable.
      before: The versions that were stable before, the newest last, without the versions that were rolled back.
      base_path: The path of the model's folder as TF Serving sees it; ``""`` for the folder's own path.
      history: The latest steps, the newest last.
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

    @property
    def promoted(self) -> set[int]:
        """The versions that have or had a label, as far as they are known."""
        return {*self.served, *self.before, *(step.version for step in self.history)}

    @property
    def canary_since_s(self) -> float | None:
        """When the canary got its label, in seconds since 1970; ``None`` without a canary."""
        steps = (step for step in reversed(self.history) if (step.action, step.version) == ("canary", self.canary))
        step = next(steps, None)
        return None if step is None else datetime.datetime.fromisoformat(step.time).timestamp()

    def models_config(self, model: Path) -> str:
        """Returns TF Serving's ``ModelServerConfig`` for this state, in protobuf's text format.

        Args:
          model: The folder of the versions.
        """
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
    """Returns the state of a model's folder; a state without labels if no version was promoted yet.

    Raises:
      ModelError: The file is damaged.
    """
    path = model / PROMOTIONS
    return read_json(path, Promotions, _REMEDY) if path.is_file() else Promotions()


def chosen_version(model: Path) -> Path | None:
    """Returns the version of a model's folder that is used if none is named: the stable one, or else the newest.

    The newest is the highest number with a ``saved_model.pb``; ``None`` if there is none. A stable version that is not
    the newest is logged.

    Raises:
      ModelError: The folder of the stable version is missing, or the state is damaged.
    """
    versions = version_folders(model) if model.is_dir() else {}
    newest = max((number for number, folder in versions.items() if (folder / "saved_model.pb").is_file()), default=None)
    stable = read_promotions(model).stable
    if stable is None:
        return None if newest is None else versions[newest]
    folder = folder_of_version(model, stable)
    if newest is not None and newest > stable:
        logger.info("%s: version %d is used, because it is stable; the newest is version %d", model, stable, newest)
    return folder


def adopt(model: Path, base_path: str | None = None) -> Promotions:
    """Makes the newest version ``stable`` if no version has a label, so that later exports are not served at once.

    Args:
      model: The folder of the versions. It may contain no version, or not exist.
      base_path: The path of the folder as TF Serving sees it, such as ``/models/shop`` in a container; by default, the
        path that was given before, or the folder's own path.
    """
    if not model.is_dir():
        return Promotions()
    with locked(model, WAIT_S):
        state = read_promotions(model)
        if state.stable is None and (versions := version_folders(model)):
            newest = max(versions)
            state = _moved(state, "adopt", newest, stable=newest)
        if state.stable is not None:
            state = _written(model, state, base_path)
        return state


def set_canary(
    model: Path, version: int, base_path: str | None = None, *, judged: Promotions | None = None
) -> Promotions:
    """Serves a version under the label ``canary``, beside the stable version; without one, it becomes stable at once.

    Args:
      model: The folder of the versions.
      version: The version. Another canary is withdrawn.
      base_path: See :func:`adopt`.
      judged: The state in which the version was compared with the stable version; ``None`` if it was not compared.

    Raises:
      ModelError: The version does not exist or is stable already, the stable version or the canary has changed since
        ``judged``, or the state is damaged.
    """
    with locked(model, WAIT_S):
        return _with_canary(model, version, base_path, judged)


def promote(
    model: Path, base_path: str | None = None, *, version: int | None = None, judged: Promotions | None = None
) -> Promotions:
    """Makes the canary ``stable``; the previous stable version stays loaded, for a rollback.

    Args:
      model: The folder of the versions.
      base_path: See :func:`adopt`.
      version: A version that becomes the canary first, as in :func:`set_canary`; by default, the canary is promoted.
      judged: See :func:`set_canary`.

    Raises:
      ModelError: There is no canary, its folder is missing, or the state is damaged; or see :func:`set_canary`.
    """
    with locked(model, WAIT_S):
        state = read_promotions(model) if version is None else _with_canary(model, version, base_path, judged)
        stable, canary = state.stable, state.canary
        if version is not None and stable == version:  # the first version became stable at once
            return state
        if stable is None or canary is None:
            raise ModelError(
                f"{model}: expected a canary to promote, found none. Name a run: tfllmrec promote MODEL RUN."
            )
        folder_of_version(model, canary)
        before = [*state.before, stable][-STEPS:]
        state = _moved(state, "promote", canary, stable=canary, canary=None, before=before)
        return _written(model, state, base_path)


def rollback(model: Path) -> Promotions:
    """Undoes the last step: withdraws the canary or, without one, makes the previous stable version ``stable`` again.

    Raises:
      ModelError: There is no canary and no previous version, the previous version's folder is missing, or the state is
        damaged.
    """
    with locked(model, WAIT_S):
        state = read_promotions(model)
        stable = state.stable
        if stable is None or not (state.canary is not None or state.before):
            raise ModelError(f"{model}: nothing to roll back: no version was promoted over another one.")
        if state.canary is not None:
            state = _moved(state, "withdraw", state.canary, canary=None)
        else:
            target = state.before[-1]
            folder_of_version(model, target)
            state = _moved(state, "rollback", target, stable=target, before=state.before[:-1])
        return _written(model, state, None)


def _with_canary(model: Path, version: int, base_path: str | None, judged: Promotions | None) -> Promotions:
    """Writes and returns the state with another canary, as in :func:`set_canary`; the folder must be locked."""
    state = read_promotions(model)
    folder_of_version(model, version)
    if judged is not None and judged.labels != state.labels:
        was, now = (f"stable: {of.stable or 'none'}, canary: {of.canary or 'none'}" for of in (judged, state))
        raise ModelError(
            f"{model}: the labels have changed since version {version} was compared: {was} then, {now} now. Promote "
            "the run again: it is then compared with the present version."
        )
    if state.stable is None:
        state = _moved(state, "promote", version, stable=version)
    elif version == state.stable:
        raise ModelError(f"{model}: version {version} is stable already, so it cannot be the canary.")
    elif version != state.canary:
        if state.canary is not None:
            state = _moved(state, "withdraw", state.canary, canary=None)
        state = _moved(state, "canary", version, canary=version)
    return _written(model, state, base_path)


def folder_of_version(model: Path, version: int) -> Path:
    """Returns the folder of a version.

    Raises:
      ModelError: It is missing.
    """
    folder = version_folders(model).get(version)
    if folder is None:
        raise ModelError(f"{model} has no version {version}: copy its folder back, or promote another one.")
    return folder


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
    """Writes ``promotions.json`` with the versions to load, and then ``models.config``, each only if it has changed."""
    assert state.stable is not None
    before = read_promotions(model)
    loaded = {state.stable} | {version for version in (state.canary, *state.before[-1:]) if version is not None}
    there = {*version_folders(model), *before.served}
    if before.stable is not None and state.stable not in before.served:  # keep it until the label has moved
        loaded.add(before.stable)
    new = {"served": sorted(loaded & there), "base_path": base_path or state.base_path}
    state = state.model_copy(update=new)
    if state != before:
        write_text(model / PROMOTIONS, state.model_dump_json(indent=1))
    config, text = model / MODELS_CONFIG, state.models_config(model)
    if not config.is_file() or config.read_text(encoding="utf-8") != text:
        write_text(config, text)
    return state
