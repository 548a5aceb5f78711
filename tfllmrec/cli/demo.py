"""``tfllmrec demo``: the whole workflow on MovieLens 100K, with the same calls as the commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfllmrec.cli.data import print_description
from tfllmrec.cli.output import console, note, print_list, print_metrics, say, working
from tfllmrec.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from tfllmrec.config import ExperimentConfig
    from tfllmrec.data import Dataset
    from tfllmrec.runs.run import Run
    from tfllmrec.serving.saved_model import SavedModel

SOURCE = "movielens-100k"
SEARCH = "science fiction adventure in space"
# Users with about this many events are shown: enough to recognise a taste, and few enough to read.
USUAL_HISTORY = 40
EXCERPT = 5


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the SavedModel.")] = Path("saved_models/movielens"),
    run: Annotated[Path, typer.Option("--run", help="Run folder; an existing run is continued.")] = Path(
        "runs/movielens-100k"
    ),
) -> None:
    """Train, measure, export and try a model of MovieLens 100K.

    Downloads the data and the text encoder. A second call re-uses what is there.
    """
    out_console = console()

    out_console.rule("1. Data", align="left")
    note("reading MovieLens 100K (fetched the first time)")
    from tfllmrec.data import read_dataset

    config = demo_config()
    with working():
        dataset = read_dataset(config.data)
    print_description(dataset)

    out_console.rule("2. Fit and measure", align="left")
    check_run(run, config, dataset)
    note("starting TensorFlow")
    from tfllmrec.board.server import is_written
    from tfllmrec.cli.board import write_or_note
    from tfllmrec.runs.experiment import fit_experiment

    resume = (run / "config.yaml").is_file()
    try:
        with working():
            fitted = fit_experiment(config, run, base=Path(), resume=resume)
    except KeyboardInterrupt:
        note("")
        note("interrupted; run the same command again to continue")
        raise typer.Exit(130) from None
    print_metrics(fitted.metrics)
    if not is_written(fitted.folder):
        write_or_note(fitted)

    out_console.rule("3. Export", align="left")
    from tfllmrec.serving.export import export
    from tfllmrec.serving.saved_model import SavedModel

    with working():
        model = _exported(fitted, out) or SavedModel.open(export(run, out))
    say(f"SavedModel: {model.folder}")

    out_console.rule("4. Ask it", align="left")
    _show(model, dataset)

    out_console.rule("What to try next", align="left")
    for line in (
        f"tfllmrec recommend {out} --history 50,172,181 --k 5",
        f"tfllmrec explain {out} --history 50,172 --item 181",
        f"tfllmrec search {out} 'a quiet film about growing old'",
        f"tfllmrec evaluate {out}",
        f"tfllmrec board {run}",
        "tfllmrec fit --events YOUR_EVENTS.csv --items YOUR_ITEMS.csv",
    ):
        say(f"  {line}")


def demo_config() -> ExperimentConfig:
    """Returns the config of ``configs/movielens-100k.yaml``, with every default written out."""
    from tfllmrec.config import ExperimentConfig, parse_config

    plain = ExperimentConfig().model_dump(mode="json")
    return parse_config({**plain, "data": {"source": SOURCE}})


def check_run(run: Path, config: ExperimentConfig, dataset: Dataset) -> None:
    """Rejects a run folder with other settings or data, whose figures would not be those of the demo.

    Raises:
      ConfigError: The folder differs; the message names the differences and the remedy.
    """
    if not (run / "config.yaml").is_file():
        return
    from tfllmrec.config import contradictions, load_config
    from tfllmrec.data import Dataset

    differences = contradictions(config, load_config(run / "config.yaml", of_run=True).config)
    if Dataset.load(run / "data").fingerprint != dataset.fingerprint:
        differences.append("its data is another, or was cleaned otherwise")
    if differences:
        raise ConfigError(
            f"{run} is not what the demo would make now:",
            *(f"  {line}" for line in differences),
            "Delete that folder, or name another one with --run.",
        )


def _exported(run: Run, out: Path) -> SavedModel | None:
    """Returns the model in ``out`` if it was exported from this run, else ``None``."""
    from tfllmrec.serving.saved_model import SavedModel

    try:
        model = SavedModel.open(out)
    except ModelError:
        return None
    same = model.manifest["run"] == str(run.folder.resolve()) and model.manifest["metrics"] == run.metrics
    return model if same else None


def _show(model: SavedModel, dataset: Dataset) -> None:
    """Shows three users with a history, one without, a search, and the neighbours of the most popular item."""
    import numpy as np

    from tfllmrec.columns import ITEM, ITEM_INDEX, USER, USER_INDEX

    events_of_user = np.bincount(dataset.events[USER_INDEX], minlength=dataset.n_users)
    people = np.argsort(np.abs(events_of_user - USUAL_HISTORY), kind="stable")[:3]
    for person in dataset.users[USER].iloc[people]:
        history, ratings = model.history_of(person)
        stars = [f" ({rating:g})" for rating in ratings] if ratings else [""] * len(history)
        latest = [model.title(item) + star for item, star in zip(history, stars, strict=True)][-EXCERPT:]
        say()
        say(f"User {person}: {len(history)} events, the last ones (with ratings): {'; '.join(latest)}")
        with working():
            found = model.recommend([person], 5)
        print_list(found)
    say()
    say("A user without a history:")
    print_list(model.recommend(histories=[[]], k=3))
    say()
    say(f"Search: {SEARCH}")
    print_list(model.search([SEARCH], 5))
    best_known = dataset.items[ITEM].iloc[int(np.bincount(dataset.events[ITEM_INDEX]).argmax())]
    say()
    say(f"Similar to {model.title(best_known)}")
    print_list(model.similar([best_known], 5))
