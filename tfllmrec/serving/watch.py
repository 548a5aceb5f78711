"""Keeps a served model up to date, in rounds.

A round has these steps:

    1. an alarm undoes the last step: it withdraws the canary, or makes the previous version stable again. The round
       ends. As long as there is an alarm, later rounds do nothing at all: a problem that the previous version has too
       must be solved by a person
    2. a canary of an earlier round that was served for long enough without an alarm becomes stable; a younger one, or
       one of another origin, waits, and the round ends
    3. the run of the stable version is updated with the events of the log
    4. an update that passes the gate becomes the next canary
    5. versions and runs that are no longer needed are deleted

``tfllmrec watch`` does a round every few minutes, each in its own process. If a round is interrupted, the next one
completes or repeats it.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

from tfllmrec.data.files.event_log import LogReader
from tfllmrec.durable import absolute, locked, read_json, write_text, writing_folder
from tfllmrec.errors import CHECK_FAILED, ConfigError, ModelError
from tfllmrec.progress import Tell, to_stderr
from tfllmrec.runs.run import Run
from tfllmrec.runs.update import NothingNew, update_run
from tfllmrec.serving.gate import NotPromoted, promote_run
from tfllmrec.serving.layout import read_manifest, version_folders
from tfllmrec.serving.promotion import Promotions, folder_of_version, promote, read_promotions, rollback

TRIED = "tried.json"
#: A check of ``--alarm`` that takes longer counts as failed.
ALARM_TIMEOUT_S = 600.0

Alarms = Callable[[Path, Path], list[str]]
"""Called with the event log and the model's folder; returns a line for each reason to distrust the served version."""


def alarms_of_command(command: str) -> Alarms:
    """Returns a function that runs a command, such as ``tfllmrec monitor log/``.

    Exit code 5 is an alarm. Any other exit code except 0 is a failed check.

    The returned function raises ModelError if the check fails or takes longer than :data:`ALARM_TIMEOUT_S`, or if the
    command cannot be run, because the state of the model is unknown then.
    """

    def alarms(log: Path, model: Path) -> list[str]:
        try:
            ended = subprocess.run(
                shlex.split(command), capture_output=True, text=True, check=False, timeout=ALARM_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            raise ModelError(
                f"--alarm {command}: it did not end within {ALARM_TIMEOUT_S:g} s. Nothing is promoted or rolled back "
                "before the check works."
            ) from None
        except OSError as error:
            raise ModelError(f"--alarm {command}: it cannot be run ({error}).") from error
        if ended.returncode == 0:
            return []
        said = [line for line in (ended.stdout + ended.stderr).splitlines() if line.strip()][-5:]
        if ended.returncode != CHECK_FAILED:
            raise ModelError(
                f"--alarm {command}: expected exit code 0 or, for an alarm, {CHECK_FAILED}; found {ended.returncode}. "
                f"Nothing is promoted or rolled back before the check works. {' '.join(said)}"
            )
        return said or [f"{command}: exit code {CHECK_FAILED}"]

    return alarms


def watch_once(
    run: Path,
    log: Path,
    model: Path,
    *,
    items: Path | None = None,
    alarms: Alarms | None = None,
    keep: int = 5,
    every_s: float = 600.0,
    tell: Tell = to_stderr,
) -> Promotions:
    """Does one round.

    Args:
      run: A complete run. It is exported and made stable if no version is stable yet. Updates are written to numbered
        folders in ``RUN-updates`` beside it.
      log: The folder of the event log.
      model: The folder of the versions.
      items: The file of the catalogue, which is read at each update because it may have new items; ``None`` if there is
        none.
      alarms: Returns the alarms; ``None`` for no check.
      keep: The number of latest versions, and of latest runs of updates, that are kept in addition to those in use.
      every_s: A canary becomes stable when it has had its label for this time in seconds.
      tell: Called with a line for each step.

    Returns:
      The state of the model's folder.

    Raises:
      NotPromoted: The update did not pass the gate.
      ConfigError: Another process watches the run.
      TfllmrecError: A step failed; the results of completed steps are kept.
    """
    run = absolute(run)
    updates = run.with_name(f"{run.name}-updates")
    with locked(updates):
        state = read_promotions(model)
        if state.stable is None:
            state, _ = promote_run(Run.open(run), model, tell=tell)
        found = alarms(log, model) if alarms is not None else []
        checked, state = state, read_promotions(model)  # the check may have taken minutes
        if state.labels != checked.labels:
            tell("the labels have changed during the check: this round ends")
            return state
        if found:
            for line in found:
                tell(f"alarm: {line}")
            if state.history[-1].action in ("rollback", "withdraw"):
                tell(f"the last step was taken back already: version {state.stable} stays; look for another cause")
                return state
            if state.canary is None and not state.before:
                tell(f"there is no version before {state.stable}: it stays")
                return state
            state = rollback(model)
            tell(f"rolled back: version {state.stable} is stable")
            return state
        if state.canary is not None:
            if not _made_here(model, state.canary, updates):
                tell(f"version {state.canary} was not made by this watch: 'tfllmrec promote {model}' promotes it")
                return state
            if (age_s := time.time() - (state.canary_since_s or 0.0)) < every_s:
                tell(f"version {state.canary} waits: it must be the canary for {every_s:.0f} s, so far {age_s:.0f} s")
                return state
            state = promote(model, version=state.canary, judged=state)
            tell(f"promoted: version {state.stable} is stable")
        assert state.stable is not None
        parent = _run_of(model, state.stable)
        tried, now = updates / TRIED, _Tried(parent=str(parent), last_event=_last_event(log))
        if tried.is_file() and read_json(tried, _Tried, "delete it") == now:
            tell(f"no event came since the last update of {parent}")
            return state
        out, stable = _next_folder(updates, parent), state.stable
        resumed = out.exists()  # the resumed update may have read fewer events
        try:
            made = update_run(parent, log, items, out=out, tell=tell)
        except NothingNew as error:
            tell(str(error))
            write_text(tried, now.model_dump_json())
            return state
        if (state := read_promotions(model)).canary is not None:
            tell(f"version {state.canary} became the canary during the update: 'tfllmrec promote {model}' promotes it")
            return state
        if state.stable != stable:
            tell(f"version {state.stable} became stable during the update: the update of {parent} is not promoted")
            return state
        is_judged = False
        try:
            state, _ = promote_run(made, model, canary=True, tell=tell)
            is_judged = True
        except NotPromoted:
            is_judged = True
            raise
        finally:
            # Written after the gate, so that a round that is killed in the gate is repeated.
            if is_judged and not resumed:
                write_text(tried, now.model_dump_json())
            _prune(model, updates, keep, tell)
        return state


def _run_of(model: Path, version: int) -> Path:
    """Returns the folder of the run that a version was exported from.

    Raises:
      ModelError: The version does not exist, or was not exported from a run.
    """
    folder = folder_of_version(model, version)
    run = read_manifest(folder).get("run")
    if not run:
        raise ModelError(
            f"{folder} was not exported from a run: expected one to update. Promote a run: tfllmrec promote {model} "
            "RUN."
        )
    return Path(run)


def _made_here(model: Path, version: int, updates: Path) -> bool:
    """Returns whether a version was exported from a run in ``updates``."""
    folder = version_folders(model).get(version)
    run = None if folder is None else read_manifest(folder).get("run")
    return run is not None and Path(run).parent == updates.resolve()


class _Tried(BaseModel):
    """The last attempted update, including one without new events.

    Attributes:
      parent: The run that was updated.
      last_event: The number of the newest event in the log.
    """

    parent: str
    last_event: int


def _last_event(log: Path) -> int:
    with LogReader(log) as reader:
        return reader.last()


def _numbers(updates: Path) -> list[int]:
    """Returns the numbers of the folders of updates, in ascending order."""
    return sorted(int(path.name) for path in updates.iterdir() if path.name.isdigit())


def _next_folder(updates: Path, parent: Path) -> Path:
    """Returns the folder of an incomplete update of ``parent``, or the next free one.

    Deletes an incomplete update of another run.
    """
    numbers = _numbers(updates)
    if numbers:
        newest = Run(updates / str(numbers[-1]))
        if not newest.complete:
            if newest.update is None or Path(newest.update.parent) != parent.resolve():
                shutil.rmtree(newest.folder)
            return newest.folder
    return updates / str(max(numbers, default=0) + 1)


def _prune(model: Path, updates: Path, keep: int, tell: Tell) -> None:
    """Deletes old versions and runs of updates, except those that have a label, are served, or can be rolled back to.

    Nothing is deleted while another process promotes or rolls back.

    Args:
      model: The folder of the versions.
      updates: The folder of the runs of updates.
      keep: As in :func:`watch_once`.
      tell: Called with a line for each deleted folder.
    """
    with contextlib.ExitStack() as hidden:
        try:
            with locked(model):
                for folder in _not_needed(model, updates, keep):
                    aside = hidden.enter_context(writing_folder(folder.parent))  # deleted after the lock is released
                    folder.rename(aside / folder.name)  # so that the folder disappears at once, and not file by file
                    tell(f"deleted: {folder}")
        except ConfigError as error:
            tell(f"nothing is deleted in this round: {error}")


def _not_needed(model: Path, updates: Path, keep: int) -> list[Path]:
    state, versions = read_promotions(model), version_folders(model)
    needed = {*state.labels.values(), *state.served, *state.before[-keep:], *sorted(versions)[-keep:]}
    manifests = [read_manifest(versions[number]) for number in needed & versions.keys()]
    runs = {Path(manifest["run"]) for manifest in manifests if manifest.get("run")}
    numbers = _numbers(updates)
    runs |= {(updates / str(number)).resolve() for number in numbers[-keep:]}
    old = [folder for number, folder in versions.items() if number not in needed]
    old += [updates / str(number) for number in numbers if (updates / str(number)).resolve() not in runs]
    return old
