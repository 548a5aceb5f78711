"""``tfllmrec fit``: trains a model on data, and writes a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfllmrec.cli.arguments import Events, Items, Json, Overrides, Users, asked_config
from tfllmrec.cli.output import note, print_json, print_metrics, working
from tfllmrec.errors import ConfigError

if TYPE_CHECKING:
    from tfllmrec.config import LoadedConfig


def fit(
    config: Annotated[Path | None, typer.Argument(help="Config of an experiment, such as configs/beauty.yaml.")] = None,
    events: Events = None,
    items: Items = None,
    users: Users = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder to write; by default runs/NAME.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="RUN",
            help="Continue an interrupted run. The result is the same as without the interruption.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Train, compare with baselines, and write a run folder.

    Takes a config, or only files (--events FILE --items FILE). Settings that you leave open are chosen from the data.
    """
    asked = asked_config(config, events, items, users, overrides)
    if resume is not None:
        if out not in (None, resume):
            raise typer.BadParameter("a run is continued in its own folder: leave out --out.")
        asked = _of_run(resume, asked, named=config is None)
    elif asked is None or (config is None and events is None):
        raise typer.BadParameter("expected a CONFIG, --events FILE, or --resume RUN.")
    from tfllmrec.board.server import is_written
    from tfllmrec.cli.board import write_or_note
    from tfllmrec.config import paraphrase_option
    from tfllmrec.runs.experiment import fit_experiment

    try:
        with working():
            run = fit_experiment(asked.config, resume or out, base=asked.base, resume=resume is not None)
    except KeyboardInterrupt:
        note("")
        folder = resume or out or "<that run folder>"
        allowed = paraphrase_option(asked.config.tuning.paraphrase)
        note(f"interrupted; continue with: tfllmrec fit --resume {folder}{allowed}")
        raise typer.Exit(130) from None
    if json:
        print_json(run.metrics)
    else:
        print_metrics(run.metrics)
    if not is_written(run.folder):
        write_or_note(run)
    note(f"run: {run.folder}")
    note(f"next: tfllmrec export {run.folder} saved_models/{run.name}")
    note(f"      tfllmrec board {run.folder}")


def _of_run(folder: Path, asked: LoadedConfig | None, named: bool) -> LoadedConfig:
    """Returns the run's own config with the ``tuning.paraphrase`` of this call; a stored value may not call code.

    Args:
      folder: The run folder.
      asked: The config of this call's other arguments; ``None`` if there are none.
      named: Whether the call's data comes from the command line, not from a CONFIG.

    Raises:
      ConfigError: There is no run, or this call has a setting or file that differs from the run's.
    """
    from tfllmrec.config import contradictions, load_config
    from tfllmrec.durable import read_json

    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"nothing to resume: {folder} is not a run folder (it has no config.yaml).")
    own = load_config(path, of_run=True)
    begun = folder / "source.json"
    source = read_json(begun, dict[str, Any], "start a new run with --out") if begun.is_file() else None
    if source is None and named:
        source = {}
    if asked is not None and (lines := contradictions(asked.config, own.config, source)):
        raise ConfigError(
            f"{folder} was started with other settings, which a resumed run keeps:",
            *(f"  {line}" for line in lines),
            "Leave them out, or start a new run with --out.",
        )
    own.config.tuning.paraphrase = None if asked is None else asked.config.tuning.paraphrase
    return own
