"""Encodes texts with any TF Hub BERT, for a whole catalogue or inside an exported graph."""

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

from tfllmrec.config import TextConfig, encoder_names
from tfllmrec.data.cleaning.values import as_text
from tfllmrec.data.queries import Ragged
from tfllmrec.errors import ConfigError, ModelError
from tfllmrec.progress import Progress
from tfllmrec.text.bundled import BUNDLED, hub_folder, hub_handles
from tfllmrec.text.preprocessor import INPUTS
from tfllmrec.text.tuning import Adapter, Tuning, load_tuning, text_vectors
from tfllmrec.wording import shown

# Number of texts that are tokenised together and then sorted by length, so that a batch has texts of similar length.
_WINDOW = 4096
# Number of batches that are encoded in parallel: while one waits for an operation with few threads, the other proceeds.
_AT_ONCE = 2
# A text whose tokens differ between preprocessors that share a vocabulary.
_PROBE = "The Café's 2nd “Ünïque” GUIDE-book: 東京, naïve résumé; 3½ stars™!"
# Characters of a TensorFlow error message that are kept; for a module of another kind it lists all signatures.
_SAID = 400


class TextToVector(tf.Module):
    """A preprocessor and an encoder as one graph: string ``[B]`` in, float32 ``[B, D]`` out.

    As an attribute of a model, it is saved in the model's SavedModel with its weights and vocabulary. It uses only core
    TensorFlow and TF Text operations (as far as the two hub modules do).

    By default, the vector is the mean of the encoder's ``sequence_output`` over the tokens (``[CLS]`` and ``[SEP]``
    included), scaled to length 1. Most sentence-transformers weights were trained for this; for a plain BERT, it is
    better than ``pooled_output``, which is only good for next-sentence prediction (Reimers and Gurevych 2019,
    arXiv:1908.10084, table 1). ``pooling`` selects ``[CLS]`` or ``pooled_output`` for encoders that were trained for
    one of these. An encoder without ``sequence_output`` gives its ``default`` output instead. A text without any token
    (empty, white space) gives the zero vector.
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
        """Maps string ``[B]`` to float32 ``[B, D]``."""
        return self.vectors(self.tokens(texts))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def tokens(self, texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """Maps string ``[B]`` to the encoder's inputs, int32 ``[B, T]``; T <= ``max_tokens`` is the longest text's."""
        if self.prefix:
            nothing = tf.strings.regex_full_match(texts, r"[\p{Z}\p{C}]*")
            texts = tf.where(nothing, "", tf.strings.join([self.prefix, texts]))
        if hasattr(self.preprocessor, "bert_pack_inputs"):
            packed = self.preprocessor.bert_pack_inputs(
                [self.preprocessor.tokenize(texts)], seq_length=self._max_tokens
            )
        else:
            packed = {name: value[:, : self._max_tokens] for name, value in self.preprocessor(texts).items()}
        width = tf.maximum(tf.reduce_max(tf.reduce_sum(packed["input_mask"], axis=1)), 1)  # 1 if there are no texts
        return {name: tf.ensure_shape(packed[name], [None, None])[:, :width] for name in INPUTS}

    @tf.function(input_signature=[{name: tf.TensorSpec([None, None], tf.int32) for name in INPUTS}], autograph=False)
    def vectors(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Maps the encoder's inputs, int32 ``[B, T]``, to float32 ``[B, D]``."""
        return text_vectors(self.encoder, inputs, self.adapter, self.pooling)


class TextEncoder:
    """A bulk encoder of texts with a TF Hub BERT.

    Args:
      encoder_handle: Folder or URL of a BERT encoder in TF2 SavedModel format, with inputs ``input_word_ids``,
        ``input_mask``, ``input_type_ids``.
      preprocessor_handle: Folder or URL of the preprocessor that belongs to it.
      max_tokens: The maximum number of tokens, ``[CLS]`` and ``[SEP]`` included; longer texts are cut.
      precision: The precision of the encoder. Here it only enters the fingerprint: a hub module has its own precision.
      batch_size: The number of texts of ``max_tokens`` tokens in a batch; of shorter texts, a batch has more.
      tuning: The file of a tuning of this encoder, see :meth:`tfllmrec.text.tuning.Tuning.save`.
      pooling: ``mean``, ``cls`` or ``pooled``: how a text's vector is derived from the encoder's output.
      item_prefix: The prefix of item texts that the encoder was trained with.
      query_prefix: The prefix of queries that the encoder was trained with.

    Attributes:
      text_to_vector: The encoder as a graph, see :class:`TextToVector`.
      folders: The local folders of encoder and preprocessor, usable as handles of another TextEncoder.
      tuning: The tuning of the encoder, trained or in training; ``None`` for an untuned encoder.

    Raises:
      ModelError: A module cannot be fetched or loaded, is of another kind, or cannot take ``max_tokens`` tokens; or the
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
        # Both modules are run once, on a text of ``max_tokens`` tokens, to detect modules that do not fit.
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
        """The encoder itself; :class:`tfllmrec.text.side_by_side.SideBySide` has several."""
        return (self,)

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of the vectors of :attr:`encoders`."""
        return (self.dim,)

    def tune(self, tuning: Tuning) -> None:
        """Encodes with ``tuning`` from now on. It must be of ``text_to_vector.encoder``, and may still be in training.

        Replaces ``text_to_vector``; ``fingerprint`` depends on the trained weights afterwards.
        """
        before = self.text_to_vector
        self.text_to_vector = TextToVector(
            tuning.encoder, before.preprocessor, self.max_tokens, tuning.adapter, tuning.pooling, before.prefix
        )
        self.tuning = tuning
        self.__dict__.pop("for_queries", None)

    @cached_property
    def for_queries(self) -> TextEncoder:
        """The encoder with its query prefix instead of the item prefix; the encoder itself if both are equal."""
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
        """Creates the encoder of a config's ``text`` section; a bundled one is fetched and built if it is missing.

        Args:
          config: The ``text`` section.
          tuning: As in the constructor.

        Raises:
          ConfigError: The encoder is ``auto``, or several; a hub encoder has no preprocessor; or a bundled one has one.
          DataError: The bundled weights could not be fetched.
          ModelError: A module cannot be fetched or loaded.
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
        """sha256 (hex) of everything that determines the vectors; saving the same module again does not change it.

        It covers the weights and the vocabulary files of both modules, the token ids of a probe text, ``max_tokens``,
        pooling and precision, but not the graph, because its names change with each saving. For a tuned encoder it
        also covers the current values of the trained weights.
        """
        if self.tuning is None:
            return self._untuned_fingerprint
        return hashlib.sha256(f"{self._untuned_fingerprint} {self.tuning.digest()}".encode()).hexdigest()

    @cached_property
    def _untuned_fingerprint(self) -> str:
        return self._digest(f"{self.text_to_vector.pooling} {self.max_tokens} {self.precision}")

    @cached_property
    def base_fingerprint(self) -> str:
        """sha256 (hex) of the untuned modules, whatever ``max_tokens`` and precision; names the base of a tuning."""
        # The first tokens, [CLS] and two words, depend on the treatment of case and accents, and are never cut.
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
        """Encodes ``texts`` in batches of similar length.

        Args:
          texts: n strings, in any order; one without any token gives the zero vector.
          progress: Called after each batch, see :func:`tfllmrec.progress.show_progress`.

        Returns:
          Float32 ``[n, D]`` of length 1, in the order of ``texts``.

        Raises:
          ModelError: A vector is not finite.
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
                    if len(broken := np.flatnonzero(~np.isfinite(found).all(axis=1))):
                        raise ModelError(
                            f"The text encoder {self.folders[0]} does not work: expected finite numbers, found others "
                            f"in the vector of the text {shown(texts[start + rows[broken[0]]])}. Use another encoder; "
                            "if it was tuned, tune it again with a lower tuning.learning_rate."
                        )
                    out[start + rows] = found
                    done += len(rows)
                    if progress:
                        progress(done, len(texts))
                start += len(lengths)
        return out


def token_windows(text_to_vector: TextToVector, texts: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """Iterates over the encoder's inputs for some thousand texts at a time, int32 ``[W, T]``; T is the longest text's.

    The next window is tokenised in the background.
    """
    strings = [as_text(text) for text in texts]
    if len(strings) <= _WINDOW:  # setting up a pipeline would take longer than tokenising
        return iter([{name: value.numpy() for name, value in text_to_vector.tokens(tf.constant(strings)).items()}])
    windows = tf.data.Dataset.from_tensor_slices(strings).batch(_WINDOW)
    return windows.map(text_to_vector.tokens, num_parallel_calls=_AT_ONCE).prefetch(1).as_numpy_iterator()


def tokenise(text_to_vector: TextToVector, texts: Sequence[str]) -> Ragged:
    """Returns the token ids of each text, int32, with special tokens and without padding."""
    if not len(texts):
        return Ragged.from_rows([], np.int32)
    values, lengths = [], []
    for window in token_windows(text_to_vector, texts):
        inside = window["input_mask"].astype(bool)
        values.append(window["input_word_ids"][inside])
        lengths.append(inside.sum(axis=1))
    return Ragged(np.concatenate(values), np.concatenate([[0], np.cumsum(np.concatenate(lengths))]))


def _token_steps(lengths: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """Yields row numbers in batches of at most ``tokens`` tokens, with padding; the longest texts come first."""
    rows = np.argsort(-lengths, kind="stable")
    while len(rows):
        count = max(1, tokens // max(1, lengths[rows[0]]))
        yield rows[:count]
        rows = rows[count:]


def _attempt(call: Callable[[], Any]) -> tuple[Any, str]:
    """Returns the result of ``call`` and ``""``, or ``None`` and the error message.

    The exception itself is not returned: its traceback holds tensors of a graph that no longer exists, and TensorFlow
    crashes when they are freed after the graph.
    """
    try:
        return call(), ""
    except Exception as error:  # a module of another kind may raise anything
        return None, textwrap.shorten(str(error), _SAID)


def _width(text_to_vector: TextToVector, inputs: Mapping[str, tf.Tensor]) -> int:
    """Returns D; checks that the graph and the vector of one text, given by its tokens ``[1, T]``, have this width."""
    came, width = text_to_vector.vectors(inputs), text_to_vector.vectors.get_concrete_function().output_shapes[-1]
    if width is None or came.shape != (1, width):
        raise ModelError(f"vectors of shape {list(came.shape)} for one text, of width {width} in the graph")
    return width


def _resolve(handle: str | Path) -> Path:
    """Returns the local folder of a hub module; TF Hub downloads and unpacks it if the handle is a URL."""
    try:
        return Path(hub.resolve(str(handle)))
    except Exception as error:  # the network, the archive and the file system raise many types
        raise ModelError(
            f"the TF Hub module {handle} cannot be had: {error}. Without a network, download it elsewhere, unpack it, "
            "and give the folder as the handle."
        ) from error


def _load(folder: Path) -> Any:
    bundled = folder.parent == hub_folder()
    remedy = "Delete this folder: it is made again from the weights." if bundled else "Download or copy it again."
    if not (folder / "saved_model.pb").is_file():
        raise ModelError(f"expected a TF2 SavedModel in {folder}, got no saved_model.pb there. {remedy}")
    try:
        return hub.load(str(folder))
    except Exception as error:  # TensorFlow raises nearly anything on a damaged SavedModel
        raise ModelError(f"the SavedModel in {folder} cannot be loaded: {error}. {remedy}") from error
