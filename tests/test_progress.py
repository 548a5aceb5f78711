import io
import sys
from types import SimpleNamespace

import pytest

from tfllmrec import progress as module
from tfllmrec.progress import peak_memory_mb, show_progress


def test_says_how_fast_it_was_where_there_is_no_terminal(capsys):
    with show_progress("Encoding items", "texts") as progress:
        progress(64, 1200)
        progress(1200, 1200)
    captured = capsys.readouterr()
    assert captured.err.startswith("Encoding items: 1,200 texts in ") and captured.err.endswith("texts/s\n")
    assert not captured.out


def test_says_nothing_where_nothing_is_done(capsys):
    with show_progress("Encoding items", "texts"):
        pass
    assert capsys.readouterr().err == ""


def test_what_takes_longer_than_a_second_is_told_by_the_piece(capsys, monkeypatch):
    clock = iter([100.0, 220.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with show_progress("Searching", "trials") as progress:
        progress(3, 3)
    assert capsys.readouterr().err == f"Searching: 3 trials in 120.0 s, {120 / 3:.0f} s each\n"


def terminal_instead(monkeypatch):
    """Replaces stderr by a terminal and returns it, as a ``StringIO``."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return terminal


def test_draws_a_bar_on_a_terminal(monkeypatch):
    terminal = terminal_instead(monkeypatch)
    with show_progress("Encoding items", "texts") as progress:
        progress(30, 60)
        progress(60, 60)
    assert (
        "Encoding items" in terminal.getvalue() and "60/60" in terminal.getvalue() and "texts/s" in terminal.getvalue()
    )


def test_a_bar_inside_a_bar_shares_its_display_and_goes_when_it_is_done(monkeypatch):
    terminal = terminal_instead(monkeypatch)
    for _ in range(2):  # the second time, nothing must be left from the first
        with show_progress("Searching", "trials") as outer:
            outer(1, 3)
            with show_progress("Training", "steps") as inner:
                inner(10, 20)
                module._display.refresh()  # instead of waiting a tenth of a second until it draws
            outer(2, 3)
        lines = terminal.getvalue().splitlines()
        assert any("Training" in line and "10/20" in line for line in lines)
        end = max(place for place, line in enumerate(lines) if "2/3" in line)
        assert not any("Training" in line for line in lines[end:])
        with pytest.raises(KeyboardInterrupt), show_progress("Searching", "trials"):
            raise KeyboardInterrupt


def test_a_label_is_text_with_its_invisible_characters_shown(monkeypatch, capsys):
    label, shown = "[/red]a\x1b[2J\u202e.csv", r"[/red]a\x1b[2J\u202e.csv"
    with show_progress(label, "bytes") as progress:
        progress(5, 5)
    assert capsys.readouterr().err.startswith(f"{shown}: ")
    terminal = terminal_instead(monkeypatch)
    with show_progress(label, "bytes") as progress:
        progress(5, 5)
    assert shown in terminal.getvalue()


@pytest.mark.parametrize(("platform", "told"), [("darwin", 2_048_000_000), ("linux", 2_000_000)])
def test_the_peak_of_memory_is_the_same_number_on_every_system(monkeypatch, platform, told):
    """2,048 MB: macOS tells bytes, Linux KiB."""
    monkeypatch.setattr(module.sys, "platform", platform)
    monkeypatch.setattr(module.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=told))
    assert peak_memory_mb() == 2048
