"""``tfllmrec board`` and its server."""

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tfllmrec.board.server import _names, board_of, folders_of
from tfllmrec.errors import ModelError

pytestmark = pytest.mark.tf


def logged(folder):
    from tfllmrec.board.scoreboard import write_figures

    write_figures(folder / "logs" / "validation", {"ndcg@10": 0.5}, steps=(0,))
    return folder


def test_every_run_has_a_name_of_its_own(tmp_path):
    paths = ["a/run", "b/run", "c/b-run", "x/a-b", "x/c/a-b", "other"]
    folders = [tmp_path / path for path in paths]
    assert _names(folders) == dict(zip(["a-run", "b-run", "3 b-run", "x-a-b", "c-a-b", "other"], folders, strict=True))


def test_runs_are_found_by_their_folder_or_by_the_one_above(tmp_path):
    one, two = logged(tmp_path / "runs" / "one"), logged(tmp_path / "runs" / "two")
    assert folders_of([tmp_path / "runs"]) == folders_of([one, two]) == [one, two]
    assert folders_of([tmp_path / "runs", one]) == [one, two]
    with pytest.raises(ModelError, match="There is no folder"):
        folders_of([tmp_path / "gone"])
    with pytest.raises(ModelError, match="contains no logs"):
        folders_of([tmp_path])


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [logged(tmp_path / place / "shop") for place in ("a", "b")]
    with board_of(folders) as address:
        shown = json.load(urllib.request.urlopen(f"{address}data/runs", timeout=30))
    assert len(shown) == 2 and all("shop" in name for name in shown)


def test_a_single_run_is_read_where_it_is(tmp_path):
    """The Profile dashboard follows no links."""
    with board_of([logged(tmp_path / "shop")]) as address:
        read = json.load(urllib.request.urlopen(f"{address}data/environment", timeout=30))
    assert read["data_location"] == str(tmp_path / "shop" / "logs")


def test_a_taken_port_is_named(program, tmp_path):
    with board_of([logged(tmp_path / "one")]) as address:
        port = address.rstrip("/").rpartition(":")[2]
        answer = program("board", tmp_path / "one", "--port", port)
    assert answer.code == 2 and port in answer.err


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_it_serves_until_it_is_interrupted_or_told_to_end(tmp_path, number, code):
    command = [sys.executable, "-m", "tfllmrec", "board", str(logged(tmp_path / "one")), "--port", "0"]
    # A shell starts what runs in its background with SIGINT ignored, and so would the tests' own child.
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        line = next(line for line in process.stderr if "TensorBoard: http" in line)
        address = line.split()[1]
        assert json.load(urllib.request.urlopen(f"{address}data/runs", timeout=30)) == ["validation"]
        process.send_signal(number)
        assert process.wait(60) == code
    finally:
        process.kill()
        process.stderr.close()
