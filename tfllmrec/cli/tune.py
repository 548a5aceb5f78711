"""``tfllmrec tune``: searches for better settings, and writes them as a config."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfllmrec.cli.arguments import Events, Items, Json, Overrides, Users, asked_config
from tfllmrec.cli.output import note, print_json, print_table, say, working

if TYPE_CHECKING:
    from tfllmrec.runs.search import Search

#: The number of rows in the table.
SHOWN = 10


def tune(
    config: Annotated[
        Path | None, typer.Argument(help="Config of the experiment to improve, such as configs/beauty.yaml.")
    ] = None,
    events: Events = None,
    items: Items = None,
    users: Users = None,
    over: Annotated[
        list[str] | None,
        typer.Option(
            "--over",
            metavar="A.B=VALUES",
            help="Search this setting instead of the usual ones: LOW..HIGH, LOW..HIGH:log, or A,B,C. May be repeated.",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option("--trials", min=1, help="Number of fits, including those that are stopped early; 20 by default."),
    ] = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write; by default runs/tune.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="FOLDER", help="Continue an interrupted search, or add more --trials."),
    ] = None,
    json: Json = False,
) -> None:
    """Search for better settings on the validation events.

    By default it searches the learning rate, weight decay, dropout, id dropout, temperature, width, blocks and history
    length, except those that the config or --set fixes. Writes FOLDER/best.yaml, a config for 'fit'. Needs pip install
    'tfllmrec[tune]'.
    """
    from tfllmrec.config import PARAPHRASE, paraphrase_option

    asked = asked_config(config, events, items, users, overrides)
    if resume is not None:
        others = [config, events, items, users, over, None if out == resume else out]
        if any(others) or not all(each.partition("=")[0].strip() == PARAPHRASE for each in overrides or []):
            raise typer.BadParameter(
                f"a search keeps its settings: --resume goes only with --trials, --json and --set {PARAPHRASE}=..."
            )
    elif asked is None or (config is None and events is None):
        raise typer.BadParameter("expected a CONFIG, --events FILE, or --resume FOLDER.")
    from tfllmrec.runs.search_space import default_space, parse_space, require_optuna

    require_optuna()
    space = None
    if resume is None and asked is not None:  # errors are reported before TensorFlow starts, which takes seconds
        space = parse_space(over, asked.config) if over else default_space(asked.config)
    from tfllmrec.runs.search import TRIALS
    from tfllmrec.runs.search import resume as go_on
    from tfllmrec.runs.search import tune as begin

    paraphrase = None if asked is None else asked.config.tuning.paraphrase
    try:
        with working():
            if resume is not None:
                search = go_on(resume, trials, paraphrase=paraphrase)
            else:
                assert asked is not None
                search = begin(asked.config, out, base=asked.base, space=space, trials=trials or TRIALS)
    except KeyboardInterrupt:
        folder = resume or out
        note("")
        if folder is None or (folder / "search.json").is_file():
            allowed = paraphrase_option(paraphrase)
            note(f"interrupted; continue with: tfllmrec tune --resume {folder or '<that search folder>'}{allowed}")
        else:
            note("interrupted before the first trial; the same command starts again")
        raise typer.Exit(130) from None
    if json:
        print_json(search.as_json())
    else:
        print_search(search)
    note(f"best settings: {search.best_config}")
    note(f"next: {search.fit_command}")
    note(f"      tfllmrec board {search.folder}")


def print_search(search: Search) -> None:
    """Prints the best trials with their settings, and the importance of each setting."""
    metrics = ("ndcg@10", "recall@10", "recall@10/tail")
    keys = list(search.trials[0].settings)
    header = ["trial", "selection", *metrics, *(key.partition(".")[2] for key in keys)]
    rows = []
    for trial in search.ranking[:SHOWN]:
        figures = [trial.selection, *(trial.metrics[name] for name in metrics)]
        cells = ["-" if value is None else f"{value:.4f}" for value in figures]
        settings = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in trial.settings.values()]
        rows.append([str(trial.number), *cells, *settings])
    print_table("validation; best first", [name.replace("/", "\n/") for name in header], rows, words=())
    states = [trial.state for trial in search.trials]
    counts = {state: states.count(state) for state in ("complete", "pruned", "failed") if state in states}
    say(f"{len(states)} trials: {', '.join(f'{count} {state}' for state, count in counts.items())}")
    if search.importance:
        shares = ", ".join(f"{key.partition('.')[2]} {share:.0%}" for key, share in search.importance.items())
        say(f"what matters: {shares}")
