import importlib
import signal
import subprocess
import sys
from pathlib import Path

import dictionary_translator
import numpy as np
import pytest

from tfllmrec.errors import ConfigError, ModelError
from tfllmrec.text import paraphrases
from tfllmrec.text.paraphrases import load_paraphrase, paraphrases_of

THERE_AND_BACK = "dictionary_translator:to_german,dictionary_translator:to_english"
# The axis of each word's meaning; all others have none.
MEANINGS = {"red": 0, "crimson": 0, "car": 1, "automobile": 1, "blue": 2, "drunk": 3, "toy": 4, "sofa": 5}


class Meanings:
    """An encoder whose vector says which meanings a text has, all shifted by the same amount, as encoders do."""

    fingerprint, dim = "ab12", 6

    def encode(self, texts, progress=None):
        return np.array([[5.0 + sum(MEANINGS.get(word) == axis for word in text.split()) for axis in range(6)]
                         for text in texts], np.float32)  # fmt: skip


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What the translator was asked, a list for each call."""
    monkeypatch.setenv("TFLLMREC_CACHE", str(tmp_path / "cache"))
    dictionary_translator.asked.clear()
    return dictionary_translator.asked


def told_and_kept(texts, functions=THERE_AND_BACK, similarity=0.5):
    told = []
    kept = paraphrases_of(texts, functions, Meanings(), similarity, told.append)
    return *told, kept


TEXTS = ["red car", "blue", "toy", "", "sofa", "red car", "red toy"]


def test_what_is_kept_and_what_is_told(asked):
    told, kept = told_and_kept(TEXTS)
    # "blue" comes back as "drunk", "toy" as it was and "sofa" as nothing; "red car" is asked for once.
    assert kept == {"red car": "crimson automobile", "red toy": "crimson toy"}
    assert asked == [["red car", "blue", "toy", "sofa", "red toy"]]
    assert told == (
        f"paraphrases by {THERE_AND_BACK}: 2 of 5 texts kept; 2 empty or equal to the text, 1 with another meaning "
        "(cosine below 0.5); 5 asked for now, the others from the cache"
    )


def test_the_cosine_is_that_of_centred_vectors(asked):
    texts = ["red car", "blue", "toy", "sofa"]
    vectors = Meanings().encode(texts)
    mean = vectors.mean(axis=0)
    blue, drunk = vectors[1], Meanings().encode(["drunk"])[0]
    plain, cosine = ((a @ b) / np.sqrt((a @ a) * (b @ b)) for a, b in ((blue, drunk), (blue - mean, drunk - mean)))
    assert plain > 0.9 and cosine < 0.1
    assert "blue" not in told_and_kept(texts, similarity=cosine + 1e-4)[1]
    assert told_and_kept(texts, similarity=cosine - 1e-4)[1]["blue"] == "drunk"


def test_a_second_time_only_new_texts_are_asked_for(asked):
    _, kept = told_and_kept(TEXTS)
    asked.clear()
    told, again = told_and_kept([*TEXTS, "red"])
    assert asked == [["red"]] and "; 1 asked for now, the others from the cache" in told
    assert again == kept | {"red": "crimson"}
    asked.clear()
    told_and_kept(TEXTS, "dictionary_translator:to_german")  # another function, other answers
    assert len(asked) == 1


def test_texts_are_asked_for_in_batches(asked, monkeypatch):
    monkeypatch.setattr(paraphrases, "BATCH", 2)
    told_and_kept(["red", "car", "red car"])
    assert asked == [["red", "car"], ["red car"]]


def test_nothing_to_say_is_no_fault(asked):
    assert told_and_kept(["", "  "]) == ({},) and not asked
    told, kept = told_and_kept(["red"])  # a single text is its own mean: there is no cosine
    assert kept == {} and "0 of 1 texts kept; 0 empty or equal to the text, 1 with another meaning" in told


def test_other_case_and_spaces_are_no_paraphrase(asked):
    assert told_and_kept(["red  car", "toy"], "dictionary_translator:shouting", similarity=-1)[1] == {}


def test_a_function_may_be_called_twice(asked):
    name = "dictionary_translator:to_german"
    told_and_kept(["red", "car"], f"{name},{name}")
    assert asked == [["red", "car"], ["rot", "Auto"]]


KILLED = """
import os, signal
from tfllmrec import durable
from tfllmrec.text import paraphrases
paraphrases.BATCH, publish, written = 2, durable.publish, []
def killed_at_the_second(temporary, path):
    written.append(path)
    os.kill(os.getpid(), signal.SIGKILL) if len(written) == 2 else publish(temporary, path)
durable.publish = killed_at_the_second
paraphrases.paraphrases_of(["red", "car", "blue", "toy"], "FUNCTIONS", None, 0.5, print)
"""


def test_a_killed_write_loses_nothing_that_was_stored(asked, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[1]}:{Path(__file__).parents[2]}")
    done = subprocess.run([sys.executable, "-c", KILLED.replace("FUNCTIONS", THERE_AND_BACK)], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    _, kept = told_and_kept(["red", "car", "blue", "toy"])
    assert asked == [["blue", "toy"]]
    assert kept == {"red": "crimson", "car": "automobile"}


def test_a_damaged_file_of_the_cache_is_told_and_its_texts_asked_for_again(asked, tmp_path, caplog):
    _, kept = told_and_kept(TEXTS)
    (path,) = (tmp_path / "cache" / "paraphrases").glob("*/*.json")
    path.write_text(path.read_text()[:-5])
    asked.clear()
    assert told_and_kept(TEXTS)[1] == kept and len(asked) == 1
    assert f"{path} is damaged" in caplog.text


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("silent", "tuning.paraphrase dictionary_translator:silent: expected 2 strings for 2 texts, got 1 of "),
        ("broken", r"tuning.paraphrase dictionary_translator:broken failed \(ConnectionError: no route to host\)"),
    ],
)
def test_a_function_that_fails_is_named(asked, function, says):
    with pytest.raises(ModelError, match=says):
        told_and_kept(["a", "b"], f"dictionary_translator:shouting,dictionary_translator:{function}")


@pytest.mark.parametrize("said", [["x"], "xx", ["x", None], np.array([1.0, 2.0]), None, 2])
def test_an_answer_of_another_form_is_refused(asked, monkeypatch, said):
    monkeypatch.setattr(dictionary_translator, "shouting", lambda texts: said)
    with pytest.raises(ModelError, match="expected 2 strings for 2 texts, got"):
        told_and_kept(["a", "b"], "dictionary_translator:shouting")


def test_a_function_may_be_a_generator(asked, monkeypatch):
    def shouting(texts):
        yield from map(str.upper, texts)
        if "broken" in texts:
            raise ConnectionError("no route to host")

    monkeypatch.setattr(dictionary_translator, "shouting", shouting)
    assert "1 empty or equal to the text" in told_and_kept(["a"], "dictionary_translator:shouting")[0]
    with pytest.raises(ModelError, match=r"shouting failed \(ConnectionError: no route to host\)"):
        told_and_kept(["broken"], "dictionary_translator:shouting")


def test_a_paraphrase_is_found_on_the_path_and_not_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "back_and_forth.py").write_text(
        "def there_and_back(texts):\n    return [text[::-1] for text in texts]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    path = list(sys.path)
    with pytest.raises(ConfigError, match=r"cannot be imported .*PYTHONPATH"):
        load_paraphrase("back_and_forth:there_and_back")
    assert sys.path == path
    sys.path.append(str(tmp_path))
    importlib.invalidate_caches()
    path = list(sys.path)
    assert load_paraphrase("back_and_forth:there_and_back")(["ab", "cd"]) == ["ba", "dc"]
    assert sys.path == path
    with pytest.raises(ConfigError, match=r"'back_and_forth:nobody' cannot be imported.*no attribute 'nobody'"):
        load_paraphrase("back_and_forth:nobody")
    with pytest.raises(ConfigError, match=r"'nowhere_to_be:found' cannot be imported.*No module"):
        load_paraphrase("nowhere_to_be:found")
    with pytest.raises(ConfigError, match="expected a function, got '/'"):
        load_paraphrase("posixpath:sep")


@pytest.mark.parametrize(("code", "error"), [("def", "SyntaxError"), ("int('x')", "ValueError")])
def test_a_module_that_fails_when_it_is_imported_is_named(tmp_path, monkeypatch, code, error):
    (tmp_path / "fails_at_import.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=rf"'fails_at_import:call' cannot be imported \({error}: "):
        load_paraphrase("fails_at_import:call")
