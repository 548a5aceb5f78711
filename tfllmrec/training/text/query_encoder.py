"""The small tower for queries in an exported model: distilled once per run, compared with its teacher, and stored."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfllmrec.config import DistillationConfig, settings_of
from tfllmrec.durable import read_json, write_folder
from tfllmrec.errors import ModelError
from tfllmrec.progress import Tell
from tfllmrec.text.side_by_side import Encoder, SideBySide
from tfllmrec.text.static_tower import static_tower
from tfllmrec.text.store import VectorStore
from tfllmrec.text.student import HashedNgrams, NgramSizes, Student, few_layers
from tfllmrec.training.callbacks import claim
from tfllmrec.training.text.distil import ALL, Agreement, distil, short_queries

RECORD, MADE_FROM = "record.json", "made_from.json"

#: Defaults for each kind: hashed tables are trained from scratch, with a high learning rate; token vectors and layers
#: are pretrained, and need fewer epochs and a lower rate.
EPOCHS = {"hashed_ngrams": 20, "static": 5, "layers": 2}
BATCH_SIZES = {"hashed_ngrams": 256, "static": 256, "layers": 64}
LEARNING_RATES = {"hashed_ngrams": 2e-3, "static": 1e-3, "layers": 3e-4}

# Number of single queries that are timed, and of untimed rounds before, for work that TensorFlow does only once.
_TIMED, _WARM_UP = 50, 3


@dataclass(frozen=True)
class QueryEncoderRecord:
    """The quality and speed of a small tower compared with its teacher.

    Attributes:
      name: The value of ``text.query_encoder``.
      agreement: The agreement with the teacher by kind of text, on texts that the tower was not trained on, see
        :class:`tfllmrec.training.text.distil.Distilled`; empty if the catalogue is too small to hold any out.
      milliseconds: The median time of a single query.
      teacher_milliseconds: The teacher's median time of the same queries.
      bytes: The size of the tower's SavedModel.
      seconds: The time it took to make the tower.
    """

    name: str
    agreement: dict[str, Agreement]
    milliseconds: float
    teacher_milliseconds: float
    bytes: int
    seconds: float

    @classmethod
    def load(cls, folder: Path) -> QueryEncoderRecord:
        """Reads the record of a folder that :func:`prepared_query_encoder` made.

        Raises:
          ModelError: It is damaged.
        """
        return read_json(folder / RECORD, cls, f"delete {folder}, it is made again")

    def lines(self) -> list[str]:
        """Returns lines on the loss of quality and the gain in speed, for people."""
        lost = [
            f"{a.top:.3f} of the encoder's top 10 and ndcg@10 {a.ndcg:.3f} to its list by {a.texts:,} {_PLURAL[kind]}"
            for kind, a in self.agreement.items()
            if kind in ("phrase", ALL)
        ]
        gain = self.teacher_milliseconds / self.milliseconds
        return [
            *(f"{self.name} finds {line} that it was not trained on" for line in lost),
            f"{self.name} takes {self.milliseconds:.2f} ms a query and the encoder {self.teacher_milliseconds:.2f} ms "
            f"({gain:.1f} times as fast); {self.bytes / 1e6:.1f} MB",
        ]


_PLURAL = {"phrase": "phrases", ALL: "texts of all kinds"}


def prepared_query_encoder(
    folder: Path,
    name: str,
    teacher: Encoder,
    texts: Sequence[str],
    titles: Sequence[str] | None,
    config: DistillationConfig,
    seed: int,
    store: VectorStore | None,
    tell: Tell,
) -> Student:
    """Loads the small tower in ``folder``; distils it from ``teacher`` if it does not exist yet.

    The folder appears when the tower is complete and measured. If the process is killed before, training is lost, but
    not the teacher's vectors in ``store``; the same seed gives the same tower again.

    Args:
      folder: The folder of the tower, with a SavedModel, ``student.json``, ``record.json`` (a
        :class:`QueryEncoderRecord`) and, unless an update took it over from its parent, ``made_from.json``.
      name: ``hashed_ngrams``, ``static`` or ``layers``.
      teacher: The encoder of the items.
      texts: The texts of the catalogue, see :func:`tfllmrec.training.text.distil.distil`.
      titles: The titles of the catalogue.
      config: The settings of the distillation.
      seed: The seed of the distillation.
      store: Stores the teacher's vectors.
      tell: Called with lines of progress.

    Raises:
      ModelError: The tower is damaged, or of another teacher, other texts or other settings; or ``name`` does not
        support the teacher: ``static`` and ``layers`` need a single encoder, ``layers`` one in our own format.
      DataError: There are fewer than two distinct texts.
    """
    made_from = {
        **settings_of(distillation=config),
        "seed": seed,
        "texts": sha256(json.dumps([list(texts), titles and list(titles)]).encode()).hexdigest(),
    }
    if not folder.is_dir():
        tell(f"query encoder: distilling {name} from the items' encoder")
        start = time.monotonic()
        drawn = np.sort(np.random.default_rng(seed).permutation(len(texts))[: config.items])
        texts = [texts[row] for row in drawn]
        titles = None if titles is None else [titles[row] for row in drawn]
        done = distil(
            teacher,
            _untrained(name, teacher, texts, config, seed),
            texts,
            titles,
            per_item=config.per_item,
            epochs=config.epochs or EPOCHS[name],
            batch_size=config.batch_size or BATCH_SIZES[name],
            learning_rate=config.learning_rate or LEARNING_RATES[name],
            held_out=config.held_out,
            seed=seed,
            store=store,
        )
        # If no text contains a word, there are no short queries, and the texts are used instead.
        queries = [query for _, query, _ in short_queries(texts, seed=seed)] or [text for text in texts if text]
        asked = [queries[i] for i in np.random.default_rng(seed).permutation(len(queries))[:_TIMED]]

        def write(fresh: Path) -> None:
            done.student.save(fresh)
            size = sum(path.stat().st_size for path in fresh.rglob("*") if path.is_file())
            # Measured as it is served: loaded from its SavedModel.
            ours, teachers = latencies([Student.load(fresh).text_to_vector, teacher.text_to_vector], asked)
            record = QueryEncoderRecord(name, done.report, ours, teachers, size, time.monotonic() - start)
            (fresh / RECORD).write_text(json.dumps(asdict(record), indent=1))
            claim(fresh / MADE_FROM, made_from)

        write_folder(folder, write)
        for line in QueryEncoderRecord.load(folder).lines():
            tell(f"query encoder: {line}")
    elif (folder / MADE_FROM).is_file():  # an update takes over the tower of its parent without this file
        claim(folder / MADE_FROM, made_from)
    student = Student.load(folder)
    expected = teacher.for_queries.fingerprint
    if student.teacher != expected:
        raise ModelError(
            f"{folder} was distilled from the text encoder {student.teacher[:12]}, and the one that reads the items is "
            f"{expected[:12]}: their vectors do not compare. Put back text.encoder (and the run's text folder) as it "
            "was when the run was made; or, if the tower is another run's, delete it: it is made again."
        )
    return student


def _untrained(name: str, teacher: Encoder, texts: Sequence[str], config: DistillationConfig, seed: int) -> tf.Module:
    if name != "hashed_ngrams":
        if isinstance(teacher, SideBySide):
            raise ModelError(
                f"text.query_encoder={name}: expected one encoder, found {len(teacher.encoders)} side by side. Use "
                "hashed_ngrams."
            )
        if name == "static":
            return static_tower(teacher, texts, config.buckets, config.width)
        return few_layers(teacher, config.layers)
    return HashedNgrams(teacher.dim, NgramSizes(config.buckets, config.width, config.hidden), seed)


def latencies(towers: Sequence[Callable[[tf.Tensor], tf.Tensor]], queries: Sequence[str]) -> list[float]:
    """Returns the median milliseconds of a single query for each tower; towers alternate, to be equally disturbed."""
    asked = [tf.constant([query]) for query in queries]
    took = np.zeros((len(asked), len(towers)))
    for _ in range(_WARM_UP):
        for tower in towers:
            tower(asked[0])
    for i, query in enumerate(asked):
        for j, tower in enumerate(towers):
            start = time.perf_counter()
            tower(query).numpy()
            took[i, j] = 1e3 * (time.perf_counter() - start)
    return np.median(took, axis=0).tolist()
