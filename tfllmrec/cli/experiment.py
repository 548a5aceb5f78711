"""``tfllmrec experiment``: assigns users to arms, and analyzes experiments."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfllmrec.cli.arguments import Json
from tfllmrec.cli.output import note, print_json, print_table, say, working
from tfllmrec.columns import ARM, EXPERIMENT, USER
from tfllmrec.errors import CHECK_FAILED
from tfllmrec.progress import show_progress

if TYPE_CHECKING:
    from tfllmrec.feedback.assignment import Experiment
    from tfllmrec.feedback.experiments import Analysis, Metric

app = typer.Typer(
    name="experiment",
    help="Assign users to the arms of an experiment, and analyze it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

#: The metric of an analysis if none is named.
METRIC = "reward/exposures"
#: The number of users assigned between two steps of the progress bar.
BATCH = 100_000

Name = Annotated[str, typer.Option("--name", help="Name of the experiment.")]
Arms = Annotated[
    list[str],
    typer.Option(
        "--arm",
        metavar="NAME=SHARE",
        help="An arm and its share, such as control=0.5; the first one is the control. Repeat it for each arm.",
    ),
]
Salt = Annotated[str, typer.Option("--salt", help="Any text; another salt changes all assignments.")]


class Looks(StrEnum):
    """How often an experiment is looked at."""

    many = "many"
    one = "one"


@app.command()
def assign(
    name: Name,
    arm: Arms,
    user: Annotated[list[str] | None, typer.Option("--user", metavar="ID", help="A user. May be repeated.")] = None,
    users: Annotated[
        Path | None, typer.Option("--users", help="A file of user ids: one per line, or a table with user ids.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="With --users: FILE.csv, FILE.tsv, FILE.jsonl or FILE.parquet.")
    ] = None,
    salt: Salt = "",
    json: Json = False,
) -> None:
    """Print or write the arms of users."""
    if (user is None) == (users is None):
        raise typer.BadParameter("expected --user ID, or else --users FILE --out FILE.")
    if (users is None) != (out is None):
        raise typer.BadParameter("--users FILE and --out FILE go together.")
    if out is not None:
        from tfllmrec.data.files.table_writer import check_suffix

        check_suffix(out)
    experiment = _experiment(name, arm, salt)
    if users is not None and out is not None:
        from collections import Counter

        import pyarrow as pa

        from tfllmrec.config import DataConfig
        from tfllmrec.data.files.table_writer import writing_table
        from tfllmrec.data.readers import read_ids

        ids, report = read_ids(users, DataConfig())
        for line in report.lines():
            note(line)
        counts = Counter(dict.fromkeys(experiment.arms, 0))
        schema = pa.schema([(USER, pa.string()), (EXPERIMENT, pa.string()), (ARM, pa.string())])
        with writing_table(out, schema) as write, show_progress("Assigning", "users") as progress:
            for start in range(0, len(ids), BATCH):
                some = ids[start : start + BATCH]
                arms = experiment.assign_all(some)
                write(pa.table([some, [name] * len(some), arms], schema=schema))
                counts.update(arms.tolist())
                progress(start + len(some), len(ids))
        if json:
            print_json({"file": str(out), "experiment": name, "shares": experiment.shares, "users": counts})
        else:
            for each, count in counts.items():
                say(f"{each}: {count:,} users ({count / len(ids):.1%}, expected {experiment.shares[each]:.1%})")
            note(f"saved: {out}")
        return
    found = dict(zip(user or (), experiment.assign_all(user or ()), strict=True))
    if json:
        assignments = [{USER: each, ARM: its} for each, its in found.items()]
        print_json({"experiment": name, "shares": experiment.shares, "assignments": assignments})
    else:
        for each, its in found.items():
            say(f"{each}: {its}")


@app.command()
def analyze(
    log: Annotated[
        Path,
        typer.Argument(
            metavar="LOG",
            help="Exposure log with user_id and arm, and optionally experiment and reward: CSV, TSV, JSONL or Parquet, "
            "compressed too, or a folder of its parts.",
        ),
    ],
    name: Name,
    arm: Arms,
    ignore_arm: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore-arm",
            metavar="NAME",
            help="An arm of the log that is not compared, such as one for users who are not in the experiment yet. "
            "May be repeated.",
        ),
    ] = None,
    outcomes: Annotated[
        Path | None,
        typer.Option("--outcomes", help="A row for each user: user_id and columns of numbers, in the same formats."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            help=f"A column, averaged over users, or a ratio of two, such as {METRIC} (the default): reward and the "
            "number of exposures come from the log. May be repeated.",
        ),
    ] = None,
    covariate: Annotated[
        list[str] | None,
        typer.Option(
            "--covariate",
            metavar="METRIC=COLUMN",
            help="A column of the outcomes from before the experiment; it makes the metric's interval narrower "
            "(CUPED). May be repeated.",
        ),
    ] = None,
    looks: Annotated[
        Looks,
        typer.Option(
            "--looks",
            help="many: the result may be looked at as often as you like; one: narrower intervals, valid once, at a "
            "time that was fixed before.",
        ),
    ] = Looks.many,
    planned_users: Annotated[
        int,
        typer.Option(
            "--planned-users",
            min=2,
            help="With many looks: the number of users in two arms for which intervals are tightest; do not change it "
            "between looks.",
        ),
    ] = 10_000,
    alpha: Annotated[float, typer.Option("--alpha", help="Error rate of all intervals together.")] = 0.05,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Also write an HTML page; needs pip install -e '.[report]'."),
    ] = None,
    json: Json = False,
) -> None:
    """Compare the arms of an experiment, and check user numbers.

    Each arm is compared with the first one. Exits with 5 if there is an alarm: the differences cannot be trusted.
    """
    experiment, metrics = _experiment(name, arm, ""), _metrics(metric or [METRIC], covariate or [])
    from tfllmrec.feedback.experiments import analyze as analyzed
    from tfllmrec.feedback.experiments import users_of
    from tfllmrec.feedback.tables import read_feedback

    tables = []
    with working():
        for path in (log, outcomes):
            frame, findings = (None, []) if path is None else read_feedback(path)
            tables.append(frame)
            for finding in findings:
                note(finding)
        assert tables[0] is not None
        users = users_of(tables[0], experiment, tables[1], ignore_arm or ())
        analysis = analyzed(users, experiment, metrics, looks=looks.value, alpha=alpha, planned_users=planned_users)
        if html is not None:
            from tfllmrec.explain.experiment import write_experiment

            write_experiment(analysis, html)
    if json:
        print_json(analysis.as_dict())
    else:
        print_analysis(analysis)
    if html is not None:
        note(f"page: {html}")
    if analysis.alarms:
        raise typer.Exit(CHECK_FAILED)


def print_analysis(analysis: Analysis) -> None:
    """Prints the numbers of users and the comparisons as tables, then what was left out and the alarms."""
    from tfllmrec.feedback.experiments import comparison_rows, user_rows

    print_table(f"{analysis.experiment}: users", *user_rows(analysis), words=("arm",))
    if analysis.comparisons:
        print_table(
            f"Differences to {analysis.control}, {analysis.described}", *comparison_rows(analysis), words=("metric",)
        )
    for line in analysis.left_out:
        say(line)
    for alarm in analysis.alarms:
        say(f"alarm: {alarm}")


def _experiment(name: str, arms: list[str], salt: str) -> Experiment:
    shares: dict[str, float] = {}
    for text in arms:
        arm, equals, share = text.rpartition("=")
        try:
            number = float(share)
        except ValueError:
            equals = ""
        if not equals or not arm.strip():
            raise typer.BadParameter(f"--arm {text}: expected NAME=SHARE, such as control=0.5.")
        if arm.strip() in shares:
            raise typer.BadParameter(f"--arm {text}: expected each arm once.")
        shares[arm.strip()] = number
    from tfllmrec.feedback.assignment import Experiment

    return Experiment(name, shares, salt)


def _metrics(names: list[str], covariates: list[str]) -> list[Metric]:
    from tfllmrec.feedback.experiments import Metric

    column_of = {}
    for text in covariates:
        metric, equals, column = (part.strip() for part in text.partition("="))
        if not (metric and equals and column):
            raise typer.BadParameter(f"--covariate {text}: expected METRIC=COLUMN, such as revenue=revenue_before.")
        column_of[metric] = column
    metrics = [Metric.parse(name) for name in names]
    if unknown := sorted(set(column_of) - {metric.name for metric in metrics}):
        raise typer.BadParameter(f"--covariate {unknown[0]}: expected one of the metrics {', '.join(names)}.")
    return [Metric(metric.column, metric.per, column_of.get(metric.name)) for metric in metrics]
