"""Small text towers for queries that imitate a large one: hashed n-grams, or some of the layers of a BERT.

The teacher encodes the items once, but a query is encoded while the user waits. A student maps queries to the vectors
that the teacher would give, and searches the teacher's item vectors with them. It is trained by
:mod:`tfllmrec.training.text.distil`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from tfllmrec.data.cleaning.values import as_text
from tfllmrec.durable import write_folder
from tfllmrec.errors import ModelError
from tfllmrec.progress import Progress
from tfllmrec.text.encoder import TextEncoder, TextToVector
from tfllmrec.text.read_back import read_back

MANIFEST = "student.json"

# Longer words are cut: a text of 100 kB without a space is one word.
_MAX_CHARACTERS = 40
_FIRST_SCALE = 0.01
# The delimiters of words, and the delimiters that are words themselves: characters of scripts without spaces, pictures.
_BETWEEN, _ALONE = r"[^\pL\pN\pM]|[\p{Han}\p{Hiragana}\p{Katakana}]", r"[\p{Han}\p{Hiragana}\p{Katakana}\p{So}]"
_PROBE = ("a red toy car", "Crème brûlée (2nd edition), the best one of 1999!")


@dataclass(frozen=True)
class NgramSizes:
    """Sizes of :class:`HashedNgrams`.

    Attributes:
      buckets: The number of rows of each of the two tables (words and pairs of words; character n-grams).
      width: The width of both tables.
      hidden: The number of units of the hidden layer.
      max_words: The maximum number of words; longer texts are cut.
    """

    buckets: int = 32_768
    width: int = 128
    hidden: int = 512
    max_words: int = 64


class HashedNgrams(tf.Module):
    """A bag of hashed words and character n-grams: string ``[B]`` in, float32 ``[B, D]`` out, like TextToVector.

    Texts are converted to lower case without accents and split into words. A word's vector is its own row plus the mean
    of the rows of its character n-grams of length 3 to 5, with ``<`` and ``>`` at its ends (fastText: Bojanowski et al.
    2017, arXiv:1607.04606), so that misspelt and unseen words have a vector, too. Each pair of adjacent words also has
    a row. Rows are found by hash, so there is no vocabulary, and any language is supported. The output is
    ``unit(t P + gelu(t U + b) V)`` with ``t = sum of s_w v_w`` and ``s = softmax(v_w a)`` over words and pairs.

    It uses only core TensorFlow and TF Text operations. A text without a word (empty, white space, punctuation) gives
    the zero vector.

    Args:
      dim: D, the width of the teacher's vectors.
      sizes: See :class:`NgramSizes`.
      seed: The seed of the initial weights.
    """

    def __init__(self, dim: int, sizes: NgramSizes = NgramSizes(), seed: int = 0):
        super().__init__(name="hashed_ngrams")
        self.sizes, self.dim = sizes, dim
        rng = np.random.default_rng(seed)

        def random(name: str, *shape: int, scale: float) -> tf.Variable:
            return tf.Variable(rng.normal(0, scale, shape).astype(np.float32), name=name)

        with self.name_scope:
            # Small compared with trained values, so that rows that training never used add little noise.
            self.words = random("words", sizes.buckets, sizes.width, scale=_FIRST_SCALE)
            self.ngrams = random("ngrams", sizes.buckets, sizes.width, scale=_FIRST_SCALE)
            self.attention = tf.Variable(tf.zeros([sizes.width, 1]), name="attention")
            self.inner = random("inner", sizes.width, sizes.hidden, scale=sizes.width**-0.5)
            self.bias = tf.Variable(tf.zeros([sizes.hidden]), name="bias")
            self.outer = random("outer", sizes.hidden, dim, scale=sizes.hidden**-0.5)
            self.straight = random("straight", sizes.width, dim, scale=sizes.width**-0.5)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        """Maps string ``[B]`` to float32 ``[B, D]`` of length 1."""
        words = self.split(texts)
        pairs = tf.strings.ngrams(words, 2)
        # The n-grams of a word are looked up once, however often it occurs in a batch.
        distinct, which = tf.unique(words.flat_values)
        vectors = tf.concat(
            [tf.gather(self._word_vectors(distinct), which), self._rows(self.words, pairs.flat_values)], axis=0
        )
        row = tf.concat([words.value_rowids(), pairs.value_rowids()], axis=0)
        # Bounded, so that the exponential cannot overflow; a word of weight e^16 already outweighs one of e^-16.
        strength = tf.exp(tf.clip_by_value(tf.matmul(vectors, self.attention), -16.0, 16.0))
        batch = tf.size(texts)
        pooled = tf.math.divide_no_nan(
            tf.math.unsorted_segment_sum(strength * vectors, row, batch),
            tf.math.unsorted_segment_sum(strength, row, batch),
        )
        hidden = tf.nn.gelu(tf.matmul(pooled, self.inner) + self.bias)
        out = tf.math.l2_normalize(tf.matmul(pooled, self.straight) + tf.matmul(hidden, self.outer), axis=-1)
        return tf.where(words.row_lengths()[:, tf.newaxis] > 0, out, 0.0)

    def _word_vectors(self, words: tf.Tensor) -> tf.Tensor:
        """Maps string ``[W]`` to float32 ``[W, width]``: a word's own row plus the mean of its n-grams' rows."""
        letters = tf.strings.unicode_split(tf.strings.substr(words, 0, _MAX_CHARACTERS, unit="UTF8_CHAR"), "UTF-8")
        end = tf.fill([tf.size(words), 1], "")
        ngrams = tf.strings.ngrams(tf.concat([end + "<", letters, end + ">"], axis=1), (3, 4, 5), separator="")
        total = tf.math.unsorted_segment_sum(
            self._rows(self.ngrams, ngrams.flat_values), ngrams.value_rowids(), tf.size(words)
        )
        return self._rows(self.words, words) + total / tf.cast(ngrams.row_lengths(), tf.float32)[:, tf.newaxis]

    def _rows(self, table: tf.Variable, features: tf.Tensor) -> tf.Tensor:
        return tf.gather(table, tf.strings.to_hash_bucket_fast(features, self.sizes.buckets))

    def split(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Splits string ``[B]`` into normalized words, string ``[B, (words)]``, at most ``max_words`` of a text."""
        folded = tf_text.normalize_utf8(tf_text.case_fold_utf8(texts), "NFKD")
        bare = tf.strings.regex_replace(folded, r"\p{Mn}", "")
        words = tf_text.regex_split(bare, _BETWEEN, _ALONE)
        return words[:, : self.sizes.max_words]


def few_layers(teacher: TextEncoder, layers: int = 2) -> TextToVector:
    """Creates a tower from the teacher's embeddings and ``layers`` of its layers, evenly spread, including the last.

    This is how DistilBERT is initialized (Sanh et al. 2019, arXiv:1910.01108). With more than one layer, the first one
    is included, too. Embeddings are not trained further, so that words that do not occur in distillation keep their
    vectors. Preprocessor, ``max_tokens`` and query prefix are the teacher's.

    Raises:
      ModelError: The teacher is not a BERT in our own format (a bundled one, or one that ``save_encoder`` wrote), or
        has fewer layers.
    """
    taught = teacher.for_queries.text_to_vector
    bert = read_back(taught.encoder, "set text.query_encoder=hashed_ngrams, which takes any encoder", "float32")
    if not 1 <= layers <= len(bert.layers):
        raise ModelError(f"expected 1 to {len(bert.layers)} layers, as the teacher has, got {layers}")
    kept = np.linspace(len(bert.layers) - 1, 0, layers).round().astype(int)[::-1]
    bert.layers = [bert.layers[i] for i in kept]
    bert.config = replace(bert.config, num_hidden_layers=layers)
    for name in ("word_embedding", "position_embedding", "type_embedding"):
        if isinstance(table := getattr(bert, name), tf.Variable):  # QuantizedRows are not trained anyway
            setattr(bert, name, tf.Variable(table, trainable=False, name=name))
    return TextToVector(bert, taught.preprocessor, teacher.max_tokens, pooling=taught.pooling, prefix=taught.prefix)


class Student:
    """A tower for queries, with the fingerprint of the teacher that it imitates.

    Args:
      text_to_vector: A :class:`HashedNgrams` or the result of :func:`few_layers`; maps string ``[B]`` to float32
        ``[B, D]``.
      teacher: The fingerprint of the teacher; the student may only search vectors of this encoder.
      batch_size: The number of texts in a batch of :meth:`encode`.

    Attributes:
      dim: D.
    """

    def __init__(self, text_to_vector: tf.Module, teacher: str, batch_size: int = 64):
        self.text_to_vector, self.teacher, self.batch_size = text_to_vector, teacher, batch_size
        self.dim: int = text_to_vector(tf.constant([""])).shape[-1]
        self._fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the teacher's fingerprint, the weights and two vectors; it is saved with the student."""
        if self._fingerprint:
            return self._fingerprint
        digest = hashlib.sha256(f"{type(self.text_to_vector).__name__} {self.teacher}".encode())
        for variable in sorted(self.text_to_vector.variables, key=lambda v: v.name):
            digest.update(f"{variable.name} {variable.shape}".encode() + variable.numpy().tobytes())
        digest.update(self.text_to_vector(tf.constant(_PROBE)).numpy().round(3).tobytes())
        return digest.hexdigest()

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> np.ndarray:
        """Like :meth:`TextEncoder.encode`: float32 ``[n, D]``, in the order of ``texts``."""
        out = np.zeros((len(texts), self.dim), np.float32)
        # Texts of similar length are batched together, for towers that pad.
        order = np.argsort([len(text) for text in texts], kind="stable")
        for start in range(0, len(texts), self.batch_size):
            rows = order[start : start + self.batch_size]
            out[rows] = self.text_to_vector(tf.constant([as_text(texts[row]) for row in rows])).numpy()
            if progress:
                progress(min(start + self.batch_size, len(texts)), len(texts))
        return out

    def save(self, folder: Path) -> None:
        """Writes a SavedModel and ``student.json`` into a new ``folder``, which appears only when it is complete.

        Raises:
          ModelError: ``folder`` already exists.
        """
        if folder.exists():
            raise ModelError(
                f"{folder} exists: expected a new folder to write the student to. Delete it or name another."
            )

        def write(fresh: Path) -> None:
            tf.saved_model.save(self.text_to_vector, str(fresh))
            about = {"teacher": self.teacher, "fingerprint": self.fingerprint}
            (fresh / MANIFEST).write_text(json.dumps(about, indent=1))

        write_folder(folder, write)

    @classmethod
    def load(cls, folder: Path) -> Student:
        """Reads what :meth:`save` wrote; the result can be included in another SavedModel.

        Raises:
          ModelError: There is no student, or it is damaged.
        """
        try:
            about = json.loads((folder / MANIFEST).read_text())
            student = cls(tf.saved_model.load(str(folder)), about["teacher"])
            student._fingerprint = about["fingerprint"]
        except Exception as error:  # TensorFlow raises nearly anything on a damaged SavedModel
            raise ModelError(f"{folder} contains no student that can be loaded: {error}. Distil it again.") from error
        return student
