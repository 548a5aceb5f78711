"""``tfllmrec watch``: keeps a served model up to date with its event log."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from tfllmrec.cli.arguments import Items, require, require_data, seconds_of
from tfllmrec.cli.output import note, print_json, say, working


def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run; exported first if there is no version.")],
    log: Annotated[Path, typer.Option("--log", metavar="LOG", help="Event log, as 'tfllmrec serve --log' writes it.")],
    model: Annotated[Path, typer.Option("--model", metavar="saved_models/NAME", help="The folder with the versions.")],
    every: Annotated[
        str,
        typer.Option(metavar="TIME", help="Time between two rounds, and least age of a canary to promote: 90s, 10m."),
    ] = "10m",
    once: Annotated[bool, typer.Option("--once", help="Run one round and exit, for cron.")] = False,
    items: Items = None,
    alarm: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="Command to run in each round. If it exits with 5 (alarm), the last step is rolled back.",
        ),
    ] = None,
    keep: Annotated[int, typer.Option(min=1, help="How many old versions and updated runs to keep.")] = 5,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print a line of JSON for each round: the labels, or the gate's figures if an update was refused. A "
            "round that fails prints none.",
        ),
    ] = False,
) -> None:
    """Update and promote a model as new events arrive.

    Runs until Ctrl-C, or for one round with --once. A round promotes the canary of an earlier round, and updates the
    run of the stable version with the events of the log. If the update is not worse, it becomes the next canary. On an
    alarm, the last step is rolled back.
    """
    seconds = seconds_of(every, "--every")
    require(run)
    require_data(log)
    if alarm is not None:
        try:
            found = shlex.split(alarm)
        except ValueError as error:
            raise typer.BadParameter(f"--alarm {alarm}: {error}.") from None
        if not found:
            raise typer.BadParameter("--alarm: expected a command, found none.")
    if once:
        from tfllmrec.serving.gate import NotPromoted
        from tfllmrec.serving.watch import alarms_of_command, watch_once

        try:
            with working():
                alarms = alarms_of_command(alarm) if alarm else None
                state = watch_once(run, log, model, items=items, alarms=alarms, keep=keep, every_s=seconds)
        except NotPromoted as error:
            if json:
                print_json({"gate": error.verdict.as_dict()}, indent=None)
            raise
        if json:
            step = state.history[-1].model_dump() if state.history else None
            print_json({"labels": state.labels, "step": step}, indent=None)
        else:
            say(", ".join(f"{label}: version {number}" for label, number in state.labels.items()))
        return
    command = [sys.executable, "-m", "tfllmrec", "watch", str(run), "--log", str(log), "--model", str(model), "--once"]
    command += ["--every", every, "--keep", str(keep), *(["--items", str(items)] if items else [])]
    command += [*(["--alarm", alarm] if alarm else []), *(["--json"] if json else [])]
    first = True
    while True:
        # Each round runs in a process of its own, so that its memory is freed when it ends.
        code = subprocess.run(command, check=False).returncode
        if code == 130:
            raise KeyboardInterrupt
        if code == 2 and first:  # an invalid argument stays invalid; in later rounds, 2 means that a folder is in use
            raise typer.Exit(code)
        first = False
        if code:
            note(f"this round ended with exit code {code}; the next one tries again")
        time.sleep(seconds)  # counted from the end of the round, so that the next one finds its canary old enough
