"""The ``tfllmrec`` program: its commands, and how it ends.

Exit codes: 0 done, 2 usage or config, 3 data, 4 model, 1 a bug, 130 Ctrl-C. Results go to stdout, all else to stderr.
"""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Annotated

import typer

import tfllmrec
from tfllmrec.cli import (
    data,
    demo,
    doctor,
    evaluate,
    export,
    fit,
    interests,
    rank,
    recommend,
    search,
    serve,
    similar,
    tune,
)
from tfllmrec.errors import TfllmrecError

app = typer.Typer(
    name="tfllmrec",
    help="Recommenders that read: from an event log and a catalogue with text to one SavedModel that answers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo.demo)
app.add_typer(data.app)
app.command()(fit.fit)
app.command()(tune.tune)
app.command()(evaluate.evaluate)
app.command()(export.export)
app.command()(recommend.recommend)
app.command()(search.search)
app.command()(similar.similar)
app.command()(interests.interests)
app.command()(rank.rank)
app.command()(serve.serve)
app.command()(doctor.doctor)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"tfllmrec {tfllmrec.__version__}")
        raise typer.Exit


@app.callback()
def _setup(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    # What the library logs (downloads, repairs) is for the eyes: stdout belongs to the result.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("tfllmrec")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def main() -> None:
    """Runs the program on ``sys.argv`` and exits."""
    try:
        app()
    except TfllmrecError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        traceback.print_exc()
        print(
            "This is a bug in tfllmrec. Please report it with the lines above, the command, and what 'tfllmrec doctor' "
            "prints.",
            file=sys.stderr,
        )
        sys.exit(1)
