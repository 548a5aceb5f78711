import io
import sys

from tfllmrec.progress import show_progress


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


def test_draws_a_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with show_progress("Encoding items", "texts") as progress:
        progress(30, 60)
        progress(60, 60)
    assert (
        "Encoding items" in terminal.getvalue() and "60/60" in terminal.getvalue() and "texts/s" in terminal.getvalue()
    )
