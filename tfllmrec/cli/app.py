"""The ``tfllmrec`` program: its commands and exit codes.

Exit codes: 0 success; 1 a file that cannot be written, or a bug; 2 usage or config; 3 data; 4 model; 5 a failed check
(an alarm of 'monitor', a run that is not promoted); 130 Ctrl-C. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import sys
import traceback
import warnings
from typing import Annotated, TextIO

import typer

import tfllmrec
from tfllmrec.cli import (
    board,
    data,
    demo,
    doctor,
    evaluate,
    events,
    experiment,
    explain,
    export,
    fit,
    graph,
    interests,
    monitor,
    off_policy,
    promote,
    rank,
    recommend,
    related,
    report,
    rules,
    search,
    serve,
    similar,
    transfer,
    tune,
    update,
    watch,
)
from tfllmrec.cli.output import note
from tfllmrec.durable import disk_failure, usual_advice
from tfllmrec.errors import TfllmrecError
from tfllmrec.wording import visible

app = typer.Typer(
    name="tfllmrec",
    help="Train recommenders that read item texts, measure them, and serve them as one SavedModel.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo.demo)
app.add_typer(data.app)
app.command()(fit.fit)
app.command()(transfer.transfer)
app.command()(tune.tune)
app.command()(update.update)
app.command()(evaluate.evaluate)
app.command()(report.report)
app.command()(board.board)
app.command()(graph.graph)
app.command()(export.export)
app.command()(recommend.recommend)
app.command()(explain.explain)
app.command()(search.search)
app.command()(similar.similar)
app.command()(related.related)
app.command()(interests.interests)
app.command()(rank.rank)
app.command()(promote.promote)
app.command()(promote.rollback)
app.command()(watch.watch)
app.add_typer(rules.app)
app.command()(serve.serve)
app.add_typer(events.app)
app.add_typer(experiment.app)
app.command()(off_policy.off_policy)
app.command()(monitor.monitor)
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
    # The library logs downloads and repairs to stderr, because stdout is reserved for the result.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_VisibleLine("%(message)s"))
    logger = logging.getLogger("tfllmrec")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


class _VisibleLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


# Depending on its version, Typer contains a copy of click or requires it.
_UsageError = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


#: The wordings of pydantic, with which Typer checks values, and plain ones.
_PLAIN = {
    "Input should be greater than or equal to ": "expected at least ",
    "Input should be less than or equal to ": "expected at most ",
    "Input should be a valid integer, unable to parse string as an integer": "expected a whole number",
    "Input should be a valid number, unable to parse string as a number": "expected a number",
    "Input should be ": "expected ",
}


def _plain(message: str) -> str:
    for inner, plain in _PLAIN.items():
        message = message.replace(inner, plain)
    return message


def main() -> None:
    """Runs the program on ``sys.argv`` and exits."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = _run()
        sys.stdout.flush()  # Python would print a traceback if a flush failed at exit
    except TfllmrecError as error:
        _say(f"error: {error}")
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        code = 1
        if isinstance(error, _UsageError):
            error.message = visible(_plain(error.message))  # type: ignore[attr-defined]
            error.show()  # type: ignore[attr-defined]
            code = error.exit_code  # type: ignore[attr-defined]
        elif isinstance(error, BrokenPipeError) and (closed := [s for s in (sys.stdout, sys.stderr) if _is_closed(s)]):
            for stream in closed:
                _discard(stream)
        elif reason := disk_failure(error):
            _say(f"error: a file cannot be written: {reason}. {usual_advice(reason)}")
            _discard(sys.stdout)
        else:
            _say(traceback.format_exc().rstrip())
            note(
                "This is a bug in tfllmrec. Please report it with the lines above, the command, and what 'tfllmrec "
                "doctor' prints."
            )
    sys.exit(code)


def _run() -> int:
    try:
        return app(standalone_mode=False)
    except SystemExit as ended:
        # Click exits without a message on any broken pipe, not only on that of the output.
        if isinstance(ended.__context__, BrokenPipeError):
            raise ended.__context__ from None
        raise


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    note(f"{filename}:{lineno}: {category.__name__}: {message}")


def _say(lines: str) -> None:
    for line in lines.split("\n"):
        note(line)


def _is_closed(stream: TextIO) -> bool:
    """Returns whether a stream is a pipe whose reader, such as ``head``, has exited."""
    poll = select.poll()
    try:
        poll.register(stream, 0)  # errors are always reported
    except (OSError, ValueError):  # not a file of the system
        return False
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _discard(stream: TextIO) -> None:
    """Discards output that could not be written, because Python would try to write it again at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
