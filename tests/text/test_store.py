import errno
import hashlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from programs import killed_when_late
from safetensors.numpy import load_file
from small_disks import LARGEST_FILE, small_files

from tfllmrec import durable
from tfllmrec.errors import ModelError, WriteError
from tfllmrec.text.store import VectorStore, encode_items, read_vectors
from tfllmrec.text.template import ItemTemplate

PRINT = "ab12"


class Lengths:
    """An encoder whose vector is (characters, 1); it keeps what it was asked."""

    fingerprint = PRINT
    dim = 2

    def __init__(self):
        self.asked = []

    def encode(self, texts, progress=None):
        self.asked += [list(texts)]
        if progress:
            progress(len(texts), len(texts))
        return np.array([[len(text), 1] for text in texts], np.float32)


def vectors_of(texts, width=3):
    """Repeatable, different for each text."""
    return np.array([np.frombuffer(hashlib.sha256(t.encode()).digest()[:width], np.uint8) for t in texts], np.float32)


def lookup(store, fingerprint, texts, width=3):
    """The stored vectors, zeros for the others, and which are missing."""
    out = np.zeros((len(texts), width), np.float32)
    return out, store.fill(fingerprint, texts, np.arange(len(texts)), out)


def test_gives_back_what_was_added(tmp_path):
    texts = [f"text {i}" for i in range(50)] + ["", "ünï ✓"]
    store = VectorStore(tmp_path / "store")
    store.add(PRINT, texts, vectors_of(texts))
    asked = ["unknown", *reversed(texts), "text 3"]
    for reader in (store, VectorStore(tmp_path / "store")):
        vectors, missing = lookup(reader, PRINT, asked)
        assert missing.tolist() == [True] + [False] * 53
        np.testing.assert_array_equal(vectors[1:], vectors_of(asked[1:]))
        assert vectors.dtype == np.float32 and not vectors[0].any()


def test_knows_nothing_at_first(tmp_path):
    store = VectorStore(tmp_path / "store")
    vectors, missing = lookup(store, PRINT, ["a", "b"])
    assert not vectors.any() and missing.all()
    store.add(PRINT, [], np.zeros((0, 3), np.float32))
    assert not (tmp_path / "store").exists()
    assert lookup(store, PRINT, [])[0].shape == (0, 3)


def test_encoders_do_not_see_each_other(tmp_path):
    store = VectorStore(tmp_path)
    store.add("aa", ["x"], np.array([[1.0]]))
    store.add("bb", ["x"], np.array([[2.0, 3.0]]))
    assert lookup(store, "aa", ["x"], 1)[0].tolist() == [[1.0]]
    assert lookup(store, "bb", ["x"], 2)[0].tolist() == [[2.0, 3.0]]
    assert lookup(store, "cc", ["x"])[1].all()
    with pytest.raises(ValueError, match="fingerprint"):
        lookup(store, "../aa", ["x"])


def test_segments_add_up_across_two_writers(tmp_path):
    first, second = VectorStore(tmp_path), VectorStore(tmp_path)
    lookup(first, PRINT, ["a"])
    first.add(PRINT, ["a", "b"], vectors_of(["a", "b"]))
    second.add(PRINT, ["b", "c"], vectors_of(["b", "c"]))
    for store in (first, second):
        vectors, missing = lookup(store, PRINT, ["c", "a", "b", "d"])
        assert missing.tolist() == [False, False, False, True]
        np.testing.assert_array_equal(vectors[:3], vectors_of(["c", "a", "b"]))


def test_reads_only_what_is_asked(tmp_path):
    store = VectorStore(tmp_path)
    store.add(PRINT, ["a"], np.ones((1, 3), np.float32))
    lookup(store, PRINT, ["a"])
    (segment,) = store._segments(PRINT)
    base = segment.vectors
    while not isinstance(base, np.memmap):
        base = base.base
    assert base.filename and base.mode == "r"


@pytest.mark.parametrize("how", ["flipped byte", "cut short", "empty", "other file", "huge header", "nested"])
def test_a_damaged_segment_is_named_and_encoded_again(tmp_path, caplog, how):
    store = VectorStore(tmp_path)
    store.add(PRINT, ["good"], vectors_of(["good"]))
    (good,) = tmp_path.rglob("*.safetensors")
    store.add(PRINT, ["bad"], vectors_of(["bad"]))
    (bad,) = set(tmp_path.rglob("*.safetensors")) - {good}
    content = bytearray(bad.read_bytes())
    nested = b"[" * 100_000
    if how == "flipped byte":
        content[-2] ^= 1
    elif how == "huge header":
        content[7] = 255
    others = {
        "cut short": content[:-4],
        "empty": b"",
        "other file": b"PK" * 40,
        "nested": len(nested).to_bytes(8, "little") + nested,
    }
    bad.write_bytes(others.get(how, bytes(content)))
    fresh = VectorStore(tmp_path)
    with caplog.at_level(logging.WARNING):
        vectors, missing = lookup(fresh, PRINT, ["good", "bad"])
        lookup(fresh, PRINT, ["bad"])
    assert missing.tolist() == [False, True]
    np.testing.assert_array_equal(vectors[0], vectors_of(["good"])[0])
    assert [bad.name in record.getMessage() for record in caplog.records] == [True]  # said once
    fresh.add(PRINT, ["bad"], vectors_of(["bad"]))
    assert not lookup(fresh, PRINT, ["good", "bad"])[1].any()


def test_refuses_what_would_poison_it(tmp_path):
    store = VectorStore(tmp_path / "store")
    with pytest.raises(ValueError, match=r"\[2, D\]"):
        store.add(PRINT, ["a", "b"], np.zeros((3, 4)))
    with pytest.raises(ValueError, match="finite"):
        store.add(PRINT, ["a"], np.array([[np.nan]]))
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot be written: Not a directory"):
        VectorStore(tmp_path / "file").add(PRINT, ["a"], np.zeros((1, 2)))


def test_each_text_is_encoded_once(tmp_path):
    encoder, store = Lengths(), VectorStore(tmp_path)
    texts = ["aa", "b", "aa", "cccc", "b"]
    expected = [[2, 1], [1, 1], [2, 1], [4, 1], [1, 1]]
    assert encode_items(texts, encoder, store).tolist() == expected
    assert encoder.asked == [["cccc", "aa", "b"]]  # the longest first
    assert encode_items(texts, encoder, VectorStore(tmp_path)).tolist() == expected
    assert encode_items([*texts, "new"], encoder, store)[-1].tolist() == [3, 1]
    assert encoder.asked[1:] == [["new"]]
    assert encode_items(texts, Lengths()).tolist() == expected  # without a store too
    assert encode_items([], encoder, store).shape == (0, 2)


def test_progress_counts_what_is_encoded(tmp_path):
    calls = []

    def progress(done, total):
        calls.append((done, total))

    encode_items(list("abcde"), Lengths(), VectorStore(tmp_path), progress, chunk=2)
    assert calls == [(2, 5), (4, 5), (5, 5)]
    calls.clear()
    encode_items([*"abcde", "f"], Lengths(), VectorStore(tmp_path), progress, chunk=2)
    assert calls == [(1, 1)]
    encode_items(list("abc"), Lengths(), VectorStore(tmp_path), progress)
    assert calls == [(1, 1)]


def test_a_kill_loses_at_most_a_chunk(tmp_path):
    script = textwrap.dedent(
        """
        import os, signal, sys
        import numpy as np
        from tfllmrec.text.store import VectorStore, encode_items, read_vectors

        class Dying:
            fingerprint, dim, chunks = "ab12", 2, 0
            def encode(self, texts, progress=None):
                self.chunks += 1
                if self.chunks == 3:
                    os.kill(os.getpid(), signal.SIGKILL)
                return np.ones((len(texts), 2), np.float32)

        encode_items([f"{i:03d}" for i in range(10)], Dying(), VectorStore(sys.argv[1]), chunk=4)
        """
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=os.environ | {"PYTHONPATH": str(root)}, check=False
    )
    assert done.returncode == -signal.SIGKILL
    encoder = Lengths()
    encode_items([f"{i:03d}" for i in range(10)], encoder, VectorStore(tmp_path))
    assert encoder.asked == [["008", "009"]]


def test_a_kill_while_writing_leaves_nothing_that_counts(tmp_path, monkeypatch):
    store = VectorStore(tmp_path)
    monkeypatch.setattr("tfllmrec.durable.sync", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.add(PRINT, ["a"], np.ones((1, 2)))
    assert lookup(VectorStore(tmp_path), PRINT, ["a"])[1].all()
    assert list((tmp_path / PRINT).iterdir()) == []


def test_a_segment_is_a_safetensors_file(tmp_path):
    VectorStore(tmp_path).add(PRINT, ["b", "a"], vectors_of(["b", "a"]))
    (path,) = tmp_path.rglob("*.safetensors")
    arrays = load_file(path)
    digests = sorted(hashlib.sha256(text.encode()).digest()[:16] for text in "ab")
    assert [row.tobytes() for row in arrays["keys"]] == digests and arrays["vectors"].shape == (2, 3)


def test_fill_writes_the_rows_that_are_stored(tmp_path, monkeypatch):
    monkeypatch.setattr("tfllmrec.text.store._ROWS", 2)
    store = VectorStore(tmp_path)
    for texts in (["a", "b", "c", "d", "e"], ["f"], ["e", "g"]):
        store.add(PRINT, texts, vectors_of(texts))
    asked = ["x", *"gfedcba", "y", "a", "a", "e"]
    out = np.full((len(asked), 3), -1, np.float32)
    missing = store.fill(PRINT, asked, np.arange(len(asked)), out)
    assert missing.tolist() == [text in "xy" for text in asked]
    np.testing.assert_array_equal(out[~missing], vectors_of([text for text in asked if text not in "xy"]))
    assert (out[missing] == -1).all()


def test_vectors_of_another_width_are_none(tmp_path):
    """An encoder that changed without another fingerprint."""
    store = VectorStore(tmp_path)
    store.add(PRINT, ["aa"], np.ones((1, 5)))
    assert encode_items(["aa", "b"], Lengths(), store).tolist() == [[2, 1], [1, 1]]
    assert encode_items(["aa", "b"], encoder := Lengths(), store).tolist() == [[2, 1], [1, 1]] and not encoder.asked


def test_a_changed_template_or_encoder_is_noticed(tmp_path):
    items = pd.DataFrame({"title": ["aa", "b"], "brand": ["x", ""]})
    store, encoder = VectorStore(tmp_path), Lengths()
    assert encode_items(ItemTemplate("{title}").texts(items), encoder, store).tolist() == [[2, 1], [1, 1]]
    assert encode_items(ItemTemplate("{title} {brand}").texts(items), encoder, store).tolist() == [[4, 1], [1, 1]]
    assert encoder.asked == [["aa", "b"], ["aa x"]]  # what reads the same is not encoded again
    encoder.fingerprint = "cd34"
    encode_items(ItemTemplate("{title}").texts(items), encoder, store)
    assert encoder.asked[2:] == [["aa", "b"]]


def test_a_text_without_utf8_form_has_a_key(tmp_path):
    store = VectorStore(tmp_path)
    store.add(PRINT, ["\ud83d broken", "nul\0l"], np.eye(2))
    vectors, missing = lookup(VectorStore(tmp_path), PRINT, ["nul\0l", "\ud83d broken", "null"], 2)
    assert vectors.tolist() == [[0, 1], [1, 0], [0, 0]] and missing.tolist() == [False, False, True]


@pytest.mark.parametrize("stored", [True, False])
def test_vectors_in_a_file_are_the_same(tmp_path, stored, monkeypatch):
    monkeypatch.setattr("tfllmrec.text.store._ROWS", 3)
    texts = [f"{'x' * (i % 7)}{i % 11}" for i in range(100)]
    store = VectorStore(tmp_path / "store") if stored else None
    expected = encode_items(texts, Lengths())
    out = tmp_path / "new" / "vectors.npy"
    for _ in range(2):
        vectors = encode_items(texts, Lengths(), store, chunk=4, out=out)
        assert isinstance(vectors, np.memmap) and vectors.dtype == np.float32 and not vectors.flags.writeable
        np.testing.assert_array_equal(vectors, expected)
        np.testing.assert_array_equal(np.load(out), expected)
    assert list(out.parent.iterdir()) == [out]
    assert encode_items([], Lengths(), store, out=out).shape == (0, 2) == np.load(out).shape


def test_an_encoder_that_fails_leaves_the_old_file(tmp_path):
    class Failing(Lengths):
        def encode(self, texts, progress=None):
            raise ArithmeticError

    out = tmp_path / "vectors.npy"
    encode_items(["a"], Lengths(), out=out)
    with pytest.raises(ArithmeticError):
        encode_items(["b", "c"], Failing(), out=out)
    assert np.load(out).tolist() == [[1, 1]] and list(tmp_path.iterdir()) == [out]
    with pytest.raises(WriteError, match=r"no\.npy cannot be written: File exists"):
        encode_items(["a"], Lengths(), out=out / "no.npy")


WRITER = """
    import sys
    import numpy as np
    from tfllmrec.text.store import VectorStore, encode_items, read_vectors

    class Numbers:
        fingerprint, dim = "ab12", 3
        def encode(self, texts, progress=None):
            return np.array([[int(text), int(text) % 7, 1] for text in texts], np.float32)

    folder, out, first, last, chunk = sys.argv[1:]
    print("ready", flush=True)
    texts = [str(i) for i in range(int(first), int(last))]
    encode_items(texts, Numbers(), VectorStore(folder), chunk=int(chunk), out=__import__("pathlib").Path(out))
"""


def writer(*arguments):
    script, root = textwrap.dedent(WRITER), str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": root},
        stdout=-1,
        text=True,
    )
    with killed_when_late(process):
        assert process.stdout.readline() == "ready\n"
    return process


def right(folder, texts):
    """How many of ``texts`` are stored; all that are have the vector of their own."""
    vectors, missing = lookup(VectorStore(folder), PRINT, texts)
    numbers = np.array(texts, int)[~missing]
    np.testing.assert_array_equal(vectors[~missing], np.stack([numbers, numbers % 7, numbers**0], axis=1))
    return int((~missing).sum())


def test_kills_at_any_moment_lose_nothing_that_was_stored(tmp_path, caplog):
    rng = np.random.default_rng(os.getpid())
    texts, out, stored = [str(i) for i in range(100_000)], tmp_path / "vectors.npy", 0
    for _ in range(3):
        with writer(tmp_path / "store", out, 0, len(texts), 10) as process:
            time.sleep(rng.uniform(0.05, 0.3))
            process.kill()
        assert process.returncode == -signal.SIGKILL and not out.exists()
        before, stored = stored, right(tmp_path / "store", texts) if (tmp_path / "store").exists() else 0
        assert stored >= before and stored % 10 == 0
    assert caplog.records == []  # nothing damaged
    assert len(list((tmp_path / "store" / PRINT).glob(".*"))) <= 3  # half-written by a writer that is dead


def test_two_writers_at_once(tmp_path, caplog):
    out = tmp_path / "vectors.npy"
    with writer(tmp_path, out, 0, 600, 7) as first, writer(tmp_path, out, 300, 900, 7) as second:
        pass
    assert first.returncode == second.returncode == 0
    assert right(tmp_path, [str(i) for i in range(900)]) == 900 and caplog.records == []
    assert len(np.load(out)) == 600 and not list(tmp_path.rglob(".*"))


def test_many_items_are_never_in_memory_as_a_whole(tmp_path):
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    import vector_store

    measured = vector_store.measure(tmp_path, items=20_000, dim=256, chunk=512)
    assert [step.encoded for step in measured] == [20_000, 0, 1]
    whole_mb = 20_000 * 256 * 4 / 1e6
    assert max(step.anonymous_mb for step in measured) < whole_mb


# --- Full disks and damaged files -------------------------------------------------------------------------------------


def test_a_store_that_takes_no_more_keeps_what_it_has(tmp_path):
    store = VectorStore(tmp_path / "vectors")
    store.add(PRINT, ["a"], np.ones((1, 2)))
    refused = pytest.raises(WriteError, match=r"safetensors cannot be written: File too large (?s:.)*TFLLMREC_CACHE")
    with small_files(), refused:
        store.add(PRINT, ["b"], np.ones((1, LARGEST_FILE // 4)))
    assert len(list((tmp_path / "vectors" / PRINT).iterdir())) == 1
    assert lookup(VectorStore(tmp_path / "vectors"), PRINT, ["a", "b"], 2)[1].tolist() == [False, True]


def test_vectors_that_find_no_room_leave_the_old_file(tmp_path):
    out = tmp_path / "vectors.npy"
    encode_items(["a"], Lengths(), out=out)
    with small_files(), pytest.raises(WriteError, match=r"vectors\.npy cannot be written: File too large"):
        encode_items(["same"] * (LARGEST_FILE // 8), Lengths(), out=out)
    assert np.load(out).tolist() == [[1, 1]] and list(tmp_path.iterdir()) == [out]


def test_room_is_set_aside_before_anything_is_written_to_the_map(tmp_path, monkeypatch):
    """On a full disk a write to a map of a sparse file kills the process."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Watched(Lengths):
        def encode(self, texts, progress=None):
            pytest.fail("the map was written to")

    monkeypatch.setattr(durable.os, "posix_fallocate", full)
    with pytest.raises(WriteError, match="No space left on device"):
        encode_items(["a"], Watched(), out=tmp_path / "vectors.npy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["missing", "empty", "cut short", "pickle", "zip", "rows", "dtype", "shape", "huge"])
def test_damaged_vectors_are_named(tmp_path, damage):
    path = tmp_path / "vectors.npy"
    arrays = {"rows": np.zeros((2, 4), "f4"), "dtype": np.zeros((3, 4)), "shape": np.zeros(3, "f4")}
    np.save(path, arrays.get(damage, np.zeros((3, 4), "f4")))
    content = path.read_bytes()
    huge = content.replace(b"(3, 4), ", b"(3, 9" + b"9" * 15 + b"), ")
    contents = {
        "empty": b"",
        "cut short": content[:-5],
        "pickle": pickle.dumps([1]),
        "zip": b"PK\x03\x04",
        "huge": huge,
    }
    path.write_bytes(contents.get(damage, content))
    if damage == "missing":
        path.unlink()
    with pytest.raises(ModelError, match=r"vectors\.npy (cannot be read|is damaged).*: fit again\.|; fit again\."):
        read_vectors(path, 3, "fit again")
