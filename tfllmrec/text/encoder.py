"""Strings to vectors with any TF Hub BERT, for a whole catalogue or inside an exported graph."""

from __future__ import annotations

import copy
import hashlib
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_hub as hub
import tensorflow_text  # noqa: F401  (registers the operations that preprocessors are made of)

from tfllmrec.config import TextConfig
from tfllmrec.data.cleaning.values import as_text
from tfllmrec.data.queries import Ragged
from tfllmrec.errors import ConfigError, ModelError
from tfllmrec.progress import Progress
from tfllmrec.text.bundled import BUNDLED, encoder_names, hub_handles
from tfllmrec.text.preprocessor import INPUTS
from tfllmrec.text.tuning import Adapter, Tuning, load_tuning, text_vectors

# Texts that are tokenised together and then sorted by length, so that a batch holds like with like.
_WINDOW = 4096
# Batches that are worked on at the same time: where one waits for a narrow operation, the other goes on.
_AT_ONCE = 2
# Texts whose tokens tell two preprocessors apart that share a vocabulary.
_PROBE = "The Café's 2nd “Ünïque” GUIDE-book: 東京, naïve résumé; 3½ stars™!"
# Characters of what TensorFlow says to a module of another kind; it would list all that it knows.
_SAID = 400


class TextToVector(tf.Module):
    """A preprocessor and an encoder as one graph: string ``[B]`` in, float32 ``[B, D]`` out.

    Kept as an attribute of a model, it goes into the model's SavedModel with its weights and vocabulary, and uses core
    TensorFlow and TF Text operations only (as far as the two hub modules do).

    By default the vector is the mean of the encoder's ``sequence_output`` over the tokens (``[CLS]`` and ``[SEP]``
    included), scaled to length 1. For most sentence-transformers weights this is what they were trained for; for a
    plain BERT it is better than its ``pooled_output``, which is only good for next-sentence prediction (Reimers and
    Gurevych 2019, arXiv:1908.10084, table 1). Others were trained to be read by ``[CLS]`` or by ``pooled_output``:
    ``pooling``. An encoder without ``sequence_output`` gives its ``default`` output instead. A text
    without any token (empty, white space) gives the zero vector.
    """

    def __init__(
        self,
        encoder: Any,
        preprocessor: Any,
        max_tokens: int,
        adapter: Adapter | None = None,
        pooling: str = "mean",
        prefix: str = "",
    ):
        """Takes two modules as ``hub.load`` returns them, the adapter of a tuning, and the prefix of each text."""
        super().__init__(name="text_to_vector")
        self.prefix = prefix
        self.encoder = encoder
        self.adapter = adapter
        self.preprocessor = preprocessor
        self.pooling = pooling
        self._max_tokens = max_tokens

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        """string ``[B]`` -> float32 ``[B, D]``."""
        return self.vectors(self.tokens(texts))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def tokens(self, texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """string ``[B]`` -> the encoder's inputs, int32 ``[B, T]``: T of the longest text, at most ``max_tokens``."""
        if self.prefix:
            nothing = tf.strings.regex_full_match(texts, r"[\p{Z}\p{C}]*")
            texts = tf.where(nothing, "", tf.strings.join([self.prefix, texts]))
        if hasattr(self.preprocessor, "bert_pack_inputs"):
            packed = self.preprocessor.bert_pack_inputs(
                [self.preprocessor.tokenize(texts)], seq_length=self._max_tokens
            )
        else:
            packed = {name: value[:, : self._max_tokens] for name, value in self.preprocessor(texts).items()}
        width = tf.reduce_max(tf.reduce_sum(packed["input_mask"], axis=1))
        return {name: tf.ensure_shape(packed[name], [None, None])[:, :width] for name in INPUTS}

    @tf.function(input_signature=[{name: tf.TensorSpec([None, None], tf.int32) for name in INPUTS}], autograph=False)
    def vectors(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The encoder's inputs, int32 ``[B, T]`` -> float32 ``[B, D]``."""
        return text_vectors(self.encoder, inputs, self.adapter, self.pooling)


class TextEncoder:
    """Encodes texts in bulk with a TF Hub BERT.

    Args:
      encoder_handle: folder or URL of a BERT encoder in TF2 SavedModel format, with inputs ``input_word_ids``,
        ``input_mask``, ``input_type_ids``.
      preprocessor_handle: folder or URL of the preprocessor that belongs to it.
      max_tokens: longer texts are cut there, ``[CLS]`` and ``[SEP]`` included.
      precision: how the encoder computes. It only enters the fingerprint here: a hub module brings its own precision.
      batch_size: texts of ``max_tokens`` in a step; of shorter ones as many more.
      tuning: file of what was trained of this encoder, see :meth:`tfllmrec.text.tuning.Tuning.save`.
      pooling: ``mean``, ``cls`` or ``pooled``: what of the encoder is a text's vector.
      item_prefix, query_prefix: what the encoder was trained to see before the text of an item, and before a query.

    Attributes:
      text_to_vector: the same as a graph, see :class:`TextToVector`.
      folders: the local folders of encoder and preprocessor, handles for another encoder like this one.
      tuning: what is or was trained of the encoder; ``None``: it is as it came.

    Raises:
      ModelError: a module cannot be fetched or loaded, is not of that kind, or cannot take ``max_tokens`` tokens; the
        tuning is of another encoder.
    """

    def __init__(
        self,
        encoder_handle: str | Path,
        preprocessor_handle: str | Path,
        max_tokens: int = 64,
        precision: str = "float32",
        batch_size: int = 64,
        tuning: Path | None = None,
        pooling: str = "mean",
        item_prefix: str = "",
        query_prefix: str = "",
    ):
        self.max_tokens, self.precision, self.batch_size = max_tokens, precision, batch_size
        self.query_prefix = query_prefix
        self.folders = (_resolve(encoder_handle), _resolve(preprocessor_handle))
        modules = _load(self.folders[0]), _load(self.folders[1])
        self.text_to_vector = TextToVector(*modules, max_tokens, pooling=pooling, prefix=item_prefix)
        # Both are run once, on a text of as many tokens as there may be: what does not fit shows here or in a trace.
        longest = tf.constant(["a " * max_tokens])
        tokens, problem = _attempt(lambda: self.text_to_vector.tokens(longest))
        if tokens is None:
            raise ModelError(
                f"{preprocessor_handle} does not work as a BERT preprocessor: expected a SavedModel that maps string "
                f"[B] to int32 [B, T] {', '.join(INPUTS)}; got: {problem}"
            )
        self.dim, problem = _attempt(lambda: _width(self.text_to_vector, {n: t[:, :3] for n, t in tokens.items()}))
        if self.dim is None:
            read = "'pooled_output' (text.pooling)" if pooling == "pooled" else "'sequence_output' or 'default'"
            raise ModelError(
                f"{encoder_handle} does not work as a BERT encoder: expected a SavedModel that maps int32 [B, T] "
                f"{', '.join(INPUTS)} to {read} of a known width; got: {problem}"
            )
        works, problem = _attempt(lambda: _width(self.text_to_vector, tokens))
        if works is None:
            raise ModelError(
                f"{encoder_handle} does not take text.max_tokens = {max_tokens} tokens: expected at most as many as it "
                f"has positions, 512 in most BERTs. Set fewer. It said: {problem}"
            )
        self.tuning: Tuning | None = None
        if tuning is not None:
            self.tune(load_tuning(tuning, self.text_to_vector.encoder, self.base_fingerprint, pooling))

    @property
    def encoders(self) -> tuple[TextEncoder, ...]:
        """Itself; several of :class:`tfllmrec.text.side_by_side.SideBySide`."""
        return (self,)

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of the vectors of :attr:`encoders`."""
        return (self.dim,)

    def tune(self, tuning: Tuning) -> None:
        """Encodes from now on as ``tuning`` says, which is of ``text_to_vector.encoder`` and may still be in training.

        ``text_to_vector`` is another one afterwards; ``fingerprint`` follows what is trained.
        """
        before = self.text_to_vector
        self.text_to_vector = TextToVector(
            tuning.encoder, before.preprocessor, self.max_tokens, tuning.adapter, tuning.pooling, before.prefix
        )
        self.tuning = tuning
        self.__dict__.pop("for_queries", None)

    @cached_property
    def for_queries(self) -> TextEncoder:
        """The encoder with its query prefix in place of the item prefix; the encoder itself if both are equal."""
        own = self.text_to_vector
        if own.prefix == self.query_prefix:
            return self
        asking = copy.copy(self)
        for cached in ("_untuned_fingerprint", "base_fingerprint"):  # the prefix is part of them
            asking.__dict__.pop(cached, None)
        asking.text_to_vector = TextToVector(
            own.encoder, own.preprocessor, self.max_tokens, own.adapter, own.pooling, self.query_prefix
        )
        return asking

    @classmethod
    def from_config(cls, config: TextConfig, tuning: Path | None = None) -> TextEncoder:
        """The encoder of a config's ``text`` section; a bundled one is fetched and made where it is not there yet.

        Args:
          config: the section.
          tuning: as in the constructor.

        Raises:
          ConfigError: a hub encoder without its preprocessor, or in a precision of ours.
          DataError: the bundled weights could not be fetched.
          ModelError: a module cannot be fetched or loaded.
        """
        preprocessor: str | Path | None = config.preprocessor
        encoder: str | Path = config.encoder
        bundled = BUNDLED.get(config.encoder)
        if config.encoder == "auto":
            raise ConfigError(
                f"text.encoder: expected the name of an encoder ({', '.join(BUNDLED)}) or a TF Hub handle, found auto. "
                "Only a fit replaces auto by a name: give one of these here."
            )
        if bundled is not None and preprocessor is not None:
            raise ConfigError(
                f"text.preprocessor: expected none, because text.encoder {config.encoder!r} has its own, found "
                f"{preprocessor}: leave it out."
            )
        if config.precision not in (("float32",) if bundled is None else bundled.precisions):
            able = ", ".join(name for name, each in BUNDLED.items() if config.precision in each.precisions)
            raise ConfigError(
                f"text.precision: text.encoder {config.encoder!r} computes in float32 only, found {config.precision}. "
                f"Set text.precision=float32, or take one of {able}."
            )
        if bundled is not None:
            preprocessor, encoder = hub_handles(config.encoder, config.precision)
        if len(encoder_names(config.encoder)) > 1:
            raise ConfigError(
                f"text.encoder: expected one encoder here, found several ({config.encoder}). Encode with each, or with "
                "tfllmrec.text.side_by_side.encoder_of."
            )
        if preprocessor is None:
            raise ConfigError(
                f"text.encoder {config.encoder!r} needs text.preprocessor: the TF Hub handle (URL or folder) of the "
                "preprocessor that its page names"
            )
        return cls(
            encoder,
            preprocessor,
            config.max_tokens,
            config.precision,
            config.batch_size,
            tuning,
            config.pooling,
            "" if bundled is None else bundled.item_prefix,
            "" if bundled is None else bundled.query_prefix,
        )

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of all that decides on a vector: it stays the same when the same module is saved again.

        It covers the weights and the vocabulary files of both modules, the token ids of a probe text, ``max_tokens``,
        pooling and precision; not the graph as such, whose names differ with each saving. For a tuned encoder it
        also covers the trained weights at their present values.
        """
        if self.tuning is None:
            return self._untuned_fingerprint
        return hashlib.sha256(f"{self._untuned_fingerprint} {self.tuning.digest()}".encode()).hexdigest()

    @cached_property
    def _untuned_fingerprint(self) -> str:
        return self._digest(f"{self.text_to_vector.pooling} {self.max_tokens} {self.precision}")

    @cached_property
    def base_fingerprint(self) -> str:
        """sha256 (hex) of both modules as they came, whatever ``max_tokens`` and precision: what a tuning is of."""
        # [CLS] and two words tell of case and accents, and are there however early texts are cut.
        return self._digest("", 3)

    def _digest(self, settings: str, probed: int | None = None) -> str:
        digest = hashlib.sha256(settings.encode())
        for folder in self.folders:
            for path in sorted(path for part in ("variables", "assets") for path in (folder / part).rglob("*")):
                if path.is_file():
                    digest.update(path.relative_to(folder).as_posix().encode())
                    with path.open("rb") as stream:
                        digest.update(hashlib.file_digest(stream, "sha256").digest())
        ids = self.text_to_vector.tokens(tf.constant([_PROBE]))["input_word_ids"].numpy()
        digest.update(ids[:, :probed].tobytes())
        return digest.hexdigest()

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> np.ndarray:
        """Encodes ``texts``, like lengths together, whatever their order.

        Args:
          texts: n strings; one without any token gives the zero vector.
          progress: called after each batch, see :func:`tfllmrec.progress.show_progress`.

        Returns:
          float32 ``[n, D]`` of length 1, in the order of ``texts``.
        """
        out = np.zeros((len(texts), self.dim), np.float32)
        if not len(texts):
            return out
        start = done = 0
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for window in token_windows(self.text_to_vector, texts):
                lengths = window["input_mask"].sum(axis=1)
                steps = list(_token_steps(lengths, self.batch_size * self.max_tokens))
                batches = (
                    {name: tf.constant(window[name][rows, : lengths[rows[0]]]) for name in INPUTS} for rows in steps
                )
                vectors = pool.map(lambda batch: self.text_to_vector.vectors(batch).numpy(), batches)
                for rows, found in zip(steps, vectors, strict=True):
                    out[start + rows] = found
                    done += len(rows)
                    if progress:
                        progress(done, len(texts))
                start += len(lengths)
        return out


def token_windows(text_to_vector: TextToVector, texts: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """The encoder's inputs of some thousand texts at a time, int32 ``[W, T]``: T of the longest among them.

    The next windows are tokenised while one is worked on.
    """
    strings = [as_text(text) for text in texts]
    if len(strings) <= _WINDOW:  # where setting up a pipeline takes longer than all else
        return iter([{name: value.numpy() for name, value in text_to_vector.tokens(tf.constant(strings)).items()}])
    windows = tf.data.Dataset.from_tensor_slices(strings).batch(_WINDOW)
    return windows.map(text_to_vector.tokens, num_parallel_calls=_AT_ONCE).prefetch(1).as_numpy_iterator()


def tokenise(text_to_vector: TextToVector, texts: Sequence[str]) -> Ragged:
    """The token ids of each text, int32, special ones included and without padding."""
    if not len(texts):
        return Ragged.from_rows([], np.int32)
    values, lengths = [], []
    for window in token_windows(text_to_vector, texts):
        inside = window["input_mask"].astype(bool)
        values.append(window["input_word_ids"][inside])
        lengths.append(inside.sum(axis=1))
    return Ragged(np.concatenate(values), np.concatenate([[0], np.cumsum(np.concatenate(lengths))]))


def _token_steps(lengths: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """Rows in steps of at most ``tokens`` when padded to the first of a step; the longest come first."""
    rows = np.argsort(-lengths, kind="stable")
    while len(rows):
        count = max(1, tokens // max(1, lengths[rows[0]]))
        yield rows[:count]
        rows = rows[count:]


def _attempt(call: Callable[[], Any]) -> tuple[Any, str]:
    """What ``call`` returns, or ``None`` and why it failed.

    The error is not handed on as such: its traceback holds tensors of a graph that is gone, and TensorFlow crashes when
    they are freed after it.
    """
    try:
        return call(), ""
    except Exception as error:  # a module that is something else may raise anything
        return None, textwrap.shorten(str(error), _SAID)


def _width(text_to_vector: TextToVector, inputs: Mapping[str, tf.Tensor]) -> int:
    """D, of the graph and of what the encoder gives for the tokens ``[1, T]`` of one text."""
    came, width = text_to_vector.vectors(inputs), text_to_vector.vectors.get_concrete_function().output_shapes[-1]
    if width is None or came.shape != (1, width):
        raise ModelError(f"vectors of shape {list(came.shape)} for one text, of width {width} in the graph")
    return width


def _resolve(handle: str | Path) -> Path:
    """The local folder of a hub module, downloaded and unpacked by TF Hub where the handle is a URL."""
    try:
        return Path(hub.resolve(str(handle)))
    except Exception as error:  # whatever the network, the archive or the file system may say
        raise ModelError(
            f"the TF Hub module {handle} cannot be had: {error}. Without a network, download it elsewhere, unpack it, "
            "and give the folder as the handle."
        ) from error


def _load(folder: Path) -> Any:
    if not (folder / "saved_model.pb").is_file():
        raise ModelError(f"expected a TF2 SavedModel in {folder}, got no saved_model.pb there")
    try:
        return hub.load(str(folder))
    except Exception as error:  # TensorFlow raises nearly anything on a damaged SavedModel
        raise ModelError(f"the SavedModel in {folder} cannot be loaded: {error}") from error
