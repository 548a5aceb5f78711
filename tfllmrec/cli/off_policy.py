"""``tfllmrec off-policy``: estimates the reward of another policy from the log of the policy that was running."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfllmrec.cli.arguments import Json
from tfllmrec.cli.output import note, print_json, print_table, say, working
from tfllmrec.columns import ITEM

if TYPE_CHECKING:
    from tfllmrec.feedback.off_policy import Estimate, OffPolicy

#: The number of positions that are printed.
SHOWN = 20


def off_policy(
    log: Annotated[
        Path,
        typer.Argument(
            metavar="LOG",
            help="Exposure log with item_id, propensity and reward, and optionally position and request_id: CSV, TSV, "
            "JSONL or Parquet, compressed too, or a folder of its parts.",
        ),
    ],
    target: Annotated[
        Path | None,
        typer.Option(
            "--target",
            metavar="FILE",
            help="The target policy, in the same formats: item_id, probability, and position if the probability "
            "depends on it.",
        ),
    ] = None,
    target_column: Annotated[
        str | None,
        typer.Option(
            "--target-column",
            metavar="NAME",
            help="Column of the log: the probability with which the target policy would have chosen the shown item. "
            "Use it for policies that depend on the request. The doubly robust estimate is then left out.",
        ),
    ] = None,
    alpha: Annotated[float, typer.Option("--alpha", help="Error rate of the intervals.")] = 0.05,
    json: Json = False,
) -> None:
    """Estimate the mean reward of another policy from a log.

    The exposure log must have propensities.
    """
    if (target is None) == (target_column is None):
        raise typer.BadParameter("expected one of --target FILE and --target-column NAME.")
    from tfllmrec.feedback.off_policy import ExposureLog, estimate, policy_table
    from tfllmrec.feedback.tables import numbers, read_feedback, require_columns, texts

    with working():
        exposures, findings = read_feedback(log)
        if target is not None:
            policy, more = read_feedback(target)
            require_columns(policy, [ITEM], "the target policy")
            checked = ExposureLog.from_frame(exposures, texts(policy, ITEM).unique().tolist())
            found = estimate(checked, policy_table(checked, policy), alpha=alpha)
            findings += more
        elif target_column is not None:
            checked = ExposureLog.from_frame(exposures)
            require_columns(exposures, [target_column], "the exposure log")
            found = estimate(checked, numbers(exposures, target_column, "the exposure log"), alpha=alpha)
    for finding in findings:
        note(finding)
    if json:
        print_json(found.as_dict())
    else:
        print_estimates(found, alpha)


def print_estimates(found: OffPolicy, alpha: float) -> None:
    """Prints a table with a row for all positions together and one for each position, then the warnings."""
    names = list(found.estimates)

    def shown(each: Estimate) -> str:
        interval = "too few rewards" if each.low is None else f"[{each.low:.4f}, {each.high:.4f}]"
        return f"{each.value:.4f} {interval}"

    def row(position: str, each: OffPolicy) -> list[str]:
        estimates = [shown(each.logged), *(shown(each.estimates[name]) for name in names)]
        return [position, *estimates, f"{each.exposures:,}", f"{each.effective:,.0f}"]

    rows = {"all": found, **found.by_position}
    print_table(
        f"Mean reward of an exposure, with {100 * (1 - alpha):.4g} % intervals",
        ["position", "log", *(name.upper() for name in names), "exposures", "effective"],
        [row(position, each) for position, each in list(rows.items())[: 1 + SHOWN]],
        words=("position",),
    )
    if len(rows) > 1 + SHOWN:
        say(f"and {len(rows) - 1 - SHOWN:,} more positions: --json lists all")
    say(
        f"{found.requests:,} requests; the weights of exposures have the mean {found.mean_weight:.3f} and reach "
        f"{found.largest_weight:,.1f}."
    )
    for warning in found.warnings:
        say(f"warning: {warning}")
