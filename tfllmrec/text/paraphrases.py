"""Paraphrases of texts by the user's functions, such as back-translation, with a cache and checks."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfllmrec.assets import cache_folder
from tfllmrec.durable import read_json, write_text, writing
from tfllmrec.errors import ConfigError, ModelError
from tfllmrec.progress import Tell, show_progress
from tfllmrec.text.centring import centred_unit
from tfllmrec.text.store import VectorStore, encode_items

if TYPE_CHECKING:
    from tfllmrec.text.encoder import TextEncoder

Function = Callable[[Sequence[str]], Iterable[str]]

#: The number of texts per call. If the process is killed, the answers to at most one call are lost.
BATCH = 100

_log = logging.getLogger(__name__)


def paraphrases_of(
    texts: Sequence[str], functions: str, encoder: TextEncoder, similarity: float, tell: Tell
) -> dict[str, str]:
    """Paraphrases texts with the user's functions, usually a translation and its reverse.

    Back-translation keeps the meaning and changes the words (Xie et al. 2020, UDA, arXiv:1904.12848). Answers are
    cached under the names of the functions, so that each text is paraphrased once. A paraphrase is dropped if it is
    empty, if it differs from the text only in case and spaces, or if ``cos(v(text) - m, v(paraphrase) - m)`` is below
    ``similarity``, with v the vectors of the encoder and m their mean over all texts. Without subtracting m, two texts
    of one shop have a median cosine of .84 with e5 and of .43 with minilm; after subtracting it, of 0 with both.

    Args:
      texts: Any number of texts; blank ones have no paraphrase.
      functions: ``module:function`` as in ``tuning.paraphrase``, or several joined by commas, which are called one
        after the other.
      encoder: The untuned encoder.
      similarity: The minimum cosine.
      tell: Called with a line on how many texts have a paraphrase.

    Returns:
      The paraphrase of each text that has one.

    Raises:
      ConfigError: A function does not exist.
      ModelError: A function fails, or does not return one string for each of its texts.
      WriteError: The cache cannot be written.
    """
    calls = [(name, load_paraphrase(name)) for name in functions.split(",")]
    distinct = list(dict.fromkeys(text for text in texts if text.strip()))
    if not distinct:
        return {}
    folder = cache_folder() / "paraphrases" / _digest(functions)
    known = _stored(folder)
    todo = [text for text in distinct if _digest(text) not in known]
    with (
        writing(folder, "Paraphrases stored so far are kept. TFLLMREC_CACHE names another cache."),
        show_progress("Paraphrasing", "texts") as progress,
    ):
        for start in range(0, len(todo), BATCH):
            batch = answers = todo[start : start + BATCH]
            for name, function in calls:
                answers = _answers(name, function, answers)
            new = dict(zip(map(_digest, batch), answers, strict=True))
            write_text(folder / f"{uuid.uuid4().hex}.json", json.dumps(new))
            known |= new
            progress(start + len(batch), len(todo))

    said = [known[_digest(text)] for text in distinct]
    others = [row for row, text in enumerate(distinct) if _plain(said[row]) not in ("", _plain(text))]
    cosines = _cosines(distinct, others, [said[row] for row in others], encoder)
    kept = {distinct[row]: said[row] for row, cosine in zip(others, cosines, strict=True) if cosine >= similarity}
    tell(
        f"paraphrases by {functions}: {len(kept):,} of {len(distinct):,} texts kept; {len(distinct) - len(others):,} "
        f"empty or equal to the text, {len(others) - len(kept):,} with another meaning (cosine below {similarity:g}); "
        f"{len(todo):,} asked for now, the others from the cache"
    )
    return kept


def load_paraphrase(name: str) -> Function:
    """Imports the function named ``module:function``.

    Raises:
      ConfigError: Python does not find the module, the module fails, or it has no such function.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # it is the user's code
        raise ConfigError(
            f"tuning.paraphrase {name!r} cannot be imported ({type(error).__name__}: {error}): expected "
            "module:function of a module that is installed or in a folder of PYTHONPATH."
        ) from error
    if not callable(found):
        raise ConfigError(f"tuning.paraphrase {name!r}: expected a function, got {found!r}")
    return found


def _answers(name: str, function: Function, texts: Sequence[str]) -> list[str]:
    """Calls a function with texts, and checks the number and type of its answers."""
    try:
        said: Any = function(list(texts))
        answers = list(said) if isinstance(said, Iterable) and not isinstance(said, str) else None
    except Exception as error:  # it is the user's code
        raise ModelError(
            f"tuning.paraphrase {name} failed ({type(error).__name__}: {error}). Earlier answers are in the "
            "cache. Fix the function and run the command again."
        ) from error
    if answers is None or len(answers) != len(texts) or not all(isinstance(text, str) for text in answers):
        kinds = sorted({type(answer).__name__ for answer in answers or ()})
        came = f"one {type(said).__name__}" if answers is None else f"{len(answers)} of {kinds}"
        raise ModelError(f"tuning.paraphrase {name}: expected {len(texts)} strings for {len(texts)} texts, got {came}")
    return answers


def _stored(folder: Path) -> dict[str, str]:
    """Returns the cached answers by the digests of their texts; damaged files are skipped."""
    known: dict[str, str] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            known |= read_json(path, dict[str, str], "delete it; its texts are asked for again")
        except ModelError as error:
            _log.warning("%s", error)
    return known


def _cosines(texts: list[str], rows: list[int], others: list[str], encoder: TextEncoder) -> np.ndarray:
    """Returns centred cosines between the texts at ``rows`` and ``others``, float ``[R]``; 0 if one has no vector."""
    store = VectorStore(cache_folder() / "vectors")
    with show_progress("Encoding paraphrases", "texts") as progress:
        vectors, theirs = (encode_items(some, encoder, store, progress) for some in (texts, others))
    return np.einsum("rd,rd->r", centred_unit(vectors)[rows], centred_unit(theirs, vectors))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:32]
