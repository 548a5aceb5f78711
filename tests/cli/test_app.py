import errno
import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from typer.main import get_command

import tfllmrec
from tfllmrec.cli.app import app
from tfllmrec.errors import ConfigError, DataError, ModelError

ROOT = Path(__file__).parents[2]
COMMANDS = ["demo", "data", "data describe", "data prepare", "fit", "evaluate", "export", "recommend", "search"]
COMMANDS += ["similar", "related", "graph", "interests", "rank", "doctor", "tune", "serve", "report"]
HEAVY = ["tensorflow", "numpy", "pandas", "pyarrow", "yaml", "optuna", "grpc", "requests", "starlette", "jinja2"]


def test_help_of_everything_imports_nothing_heavy():
    script = f"""
import sys
from tfllmrec.cli.app import app
for command in {["", *COMMANDS]!r}:
    try:
        app([*command.split(), "--help"])
    except SystemExit as end:
        assert end.code == 0, command
print("LOADED", [name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_contract_is_there(program, command):
    answer = program(*command.split(), "--help")
    assert answer.code == 0
    assert "Usage" in answer.out


def test_help_brackets_arguments_once_and_cuts_no_sentence(program):
    groups = [name for name, command in get_command(app).commands.items() if hasattr(command, "commands")]
    assert groups
    for name in ["", *groups]:
        told = program(*name.split(), "--help").out
        assert [line for line in told.splitlines() if line.endswith("...") and "Usage" not in line] == []
        for below, command in (get_command(app) if not name else get_command(app).commands[name]).commands.items():
            usage = program(*name.split(), below, "--help").out.partition("\n\n")[0]
            assert "[[" not in usage and "...}" not in usage and "...]..." not in usage, command


def test_version(program):
    assert program("--version").out == f"tfllmrec {tfllmrec.__version__}\n"


def test_python_m_is_the_same_program():
    done = subprocess.run([sys.executable, "-m", "tfllmrec", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == f"tfllmrec {tfllmrec.__version__}\n"


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigError("wrong"), 2), (DataError("wrong"), 3), (ModelError("wrong"), 4)]
)
def test_errors_have_their_exit_codes_and_no_traceback(program, libraries, tmp_path, error, code):
    libraries.raises = error
    answer = program("fit", "--events", tmp_path / "e.csv", "--out", tmp_path / "run")
    assert (answer.code, answer.out) == (code, "")
    assert answer.err.endswith("error: wrong\n")
    assert "Traceback" not in answer.err


def test_a_bug_shows_its_traceback_and_asks_for_a_report(program, libraries, tmp_path):
    libraries.raises = ZeroDivisionError("by zero")
    answer = program("fit", "--events", tmp_path / "e.csv", "--out", tmp_path / "run")
    assert answer.code == 1
    assert "Traceback" in answer.err
    assert "ZeroDivisionError: by zero" in answer.err
    assert "report" in answer.err.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments", ["nonsense", "recommend", "fit --nonsense", "similar a b --k 0", "similar a b --k x"]
)
def test_usage_errors_exit_2(program, arguments):
    answer = program(*arguments.split())
    assert (answer.code, answer.out) == (2, "")
    assert "Traceback" not in answer.err


def test_log_lines_go_to_stderr(program, tmp_path, monkeypatch):
    monkeypatch.setenv("TFLLMREC_CACHE", str(tmp_path))
    (tmp_path / "events.csv").write_text("user,item\n1,2\n1,3\n")
    answer = program("data", "describe", "--events", tmp_path / "events.csv", "--json")
    assert answer.code == 0
    assert json.loads(answer.out)["events"] == 2


@pytest.mark.parametrize(
    ("error", "code", "last"),
    [
        (
            DataError("e.csv: column 'a\x1b[2J\u202e\n' is unknown"),
            3,
            r"error: e.csv: column 'a\x1b[2J\u202e\n' is unknown",
        ),
        (ConfigError("one:", "  two\r"), 2, "error: one:\n  two\\r"),
    ],
)
def test_invisible_characters_of_an_error_are_shown(program, libraries, tmp_path, error, code, last):
    libraries.raises = error
    answer = program("fit", "--events", tmp_path / "e.csv", "--out", tmp_path / "run")
    assert answer.code == code and answer.err.endswith(f"{last}\n")


@pytest.mark.parametrize("arguments", [["similar", "a", "b", "\x1b[2Jc"], ["--\x1b[2J"], ["evaluate", "\x1b[2J"]])
def test_invisible_characters_of_arguments_are_shown(program, arguments):
    answer = program(*arguments)
    assert answer.code in (2, 4) and r"\x1b[2J" in answer.err and "\x1b" not in answer.err


def test_a_warning_of_python_is_a_line_with_its_invisible_characters_shown(program, libraries, tmp_path, monkeypatch):
    def warn(*_, **__):
        warnings.warn("column a\x1b[2J\n is odd", stacklevel=1)
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["tfllmrec.runs.experiment"], "fit_experiment", warn)
    answer = program("fit", "--events", tmp_path / "e.csv", "--out", tmp_path / "run")
    assert r"UserWarning: column a\x1b[2J\n is odd" in answer.err


def test_invisible_characters_of_log_lines_and_of_tracebacks_are_shown(program, libraries, tmp_path):
    libraries.raises = ZeroDivisionError("\x1b[2J")
    answer = program("fit", "--events", tmp_path / "e.csv", "--out", tmp_path / "run")
    assert answer.code == 1 and r"ZeroDivisionError: \x1b[2J" in answer.err and "\x1b" not in answer.err
    logging.getLogger("tfllmrec.made").warning("%s is damaged", "\x1b[2J\n\u202e.csv")
    assert program("--version").err == r"\x1b[2J\n\u202e.csv is damaged" + "\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EFBIG])
def test_a_disk_that_nobody_expected_to_fail_is_no_bug(program, libraries, tmp_path, number):
    libraries.raises = OSError(number, os.strerror(number))
    answer = program("fit", "--events", tmp_path / "e.csv", "--out", tmp_path / "run")
    assert answer.code == 1 and f"cannot be written: {os.strerror(number)}" in answer.err
    assert "Traceback" not in answer.err and "bug" not in answer.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_standard_output_that_takes_no_more_is_no_bug():
    command = [sys.executable, "-m", "tfllmrec", "--version"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr == (
        "error: a file cannot be written: No space left on device. Make room, or name another folder.\n"
    )


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_reader_of_the_output_that_has_ended_is_no_bug(closed):
    script = f"""
import sys
from tfllmrec.cli.app import app, main

@app.command()
def much():
    print("x" * 1_000_000, file=sys.{closed})

sys.argv = ["tfllmrec", "much"]
main()
"""
    command = [sys.executable, "-c", script]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, closed: writer}
        done = subprocess.run(command, **streams, text=True, cwd=ROOT)
    finally:
        os.close(writer)
    assert (done.returncode, done.stdout or "", done.stderr or "") == (1, "", "")


def test_another_broken_pipe_is_a_bug(program, libraries, tmp_path):
    libraries.raises = BrokenPipeError(errno.EPIPE, "Broken pipe")
    answer = program("fit", "--events", tmp_path / "e.csv", "--out", tmp_path / "run")
    assert answer.code == 1 and "BrokenPipeError: [Errno 32] Broken pipe" in answer.err and "is a bug" in answer.err
