import json
import shutil

import numpy as np
import pytest
from plain_runs import write_run

from tfllmrec.config import DistillationConfig
from tfllmrec.errors import ModelError
from tfllmrec.text.template import ItemTemplate

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

import tfllmrec.training.text.query_encoder as making  # noqa: E402
from tfllmrec.runs.experiment import fit_experiment  # noqa: E402
from tfllmrec.runs.run import Run  # noqa: E402
from tfllmrec.runs.update import _begin  # noqa: E402
from tfllmrec.text.encoder import TextEncoder  # noqa: E402
from tfllmrec.text.student import Student  # noqa: E402
from tfllmrec.training.text.distil import Agreement  # noqa: E402
from tfllmrec.training.text.query_encoder import QueryEncoderRecord, latencies, prepared_query_encoder  # noqa: E402

SMALL = DistillationConfig(epochs=1, batch_size=16, held_out=0.2, per_item=2, buckets=64, width=8, hidden=12, layers=1)
TEXTS = [f"{colour} {thing} {letter}" for colour in ("red", "blue") for thing in ("car", "toy") for letter in "abcde"]


@pytest.fixture(scope="module")
def teacher(tiny_hub):
    preprocessor, encoder = tiny_hub
    return TextEncoder(encoder, preprocessor, max_tokens=12)


def prepared(folder, teacher, name="hashed_ngrams", texts=TEXTS, config=SMALL, tell=print):
    return prepared_query_encoder(folder, name, teacher, texts, None, config, 1, None, tell)


@pytest.fixture(scope="module")
def made(teacher, tmp_path_factory):
    """(folder, student, what was told): hashed n-grams."""
    told: list[str] = []
    folder = tmp_path_factory.mktemp("made") / "query_encoder" / "hashed_ngrams"
    return folder, prepared(folder, teacher, tell=told.append), told


def test_it_is_made_once_and_measured(made, teacher, monkeypatch):
    folder, student, told = made
    assert student.teacher == teacher.fingerprint and student.dim == 16
    record = QueryEncoderRecord.load(folder)
    assert record.name == "hashed_ngrams" and record.agreement["item"].texts == 4  # a fifth of 20
    assert 0 < record.agreement["all"].top <= 1 and record.milliseconds > 0 and record.seconds > 0
    files = [
        path for path in folder.rglob("*") if path.is_file() and path.name not in ("record.json", "made_from.json")
    ]
    assert record.bytes == sum(path.stat().st_size for path in files)
    assert [path.name for path in folder.parent.iterdir()] == ["hashed_ngrams"]  # nothing half-written beside it
    lines = ["distilling hashed_ngrams from the items' encoder", *record.lines()]
    assert told == [f"query encoder: {line}" for line in lines]
    monkeypatch.setattr(making, "distil", lambda *_, **__: pytest.fail("distilled again"))
    np.testing.assert_allclose(prepared(folder, teacher).encode(TEXTS), student.encode(TEXTS), atol=1e-6)


def test_settings_and_what_suits_each_kind_reach_the_distillation(teacher, tmp_path, monkeypatch):
    asked = []

    def distil(teacher, tower, texts, titles, **settings):
        asked.append((tower, settings, len(set(texts) & set(TEXTS))))
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "distil", distil)
    for name, config in (("hashed_ngrams", SMALL), ("hashed_ngrams", DistillationConfig()), ("layers", SMALL)):
        with pytest.raises(KeyboardInterrupt):
            prepared(tmp_path / "made", teacher, name, config=config)
    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path / "made", teacher, "layers", config=DistillationConfig(layers=2, items=7))
    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path / "made", teacher, "static", config=DistillationConfig(width=5))
    towers, settings, items = zip(*asked, strict=True)
    assert items == (20, 20, 20, 7, 20)
    assert (towers[0].sizes.buckets, towers[0].sizes.width, towers[0].sizes.hidden) == (64, 8, 12)
    assert (towers[1].sizes.buckets, towers[1].sizes.width, towers[1].sizes.hidden) == (32768, 128, 512)
    assert [len(tower.encoder.layers) for tower in towers[2:4]] == [1, 2]
    assert towers[4].encoder.projection.shape == (5, 16)
    chosen = [(s["epochs"], s["batch_size"], s["learning_rate"], s["held_out"], s["per_item"]) for s in settings]
    assert chosen == [
        (1, 16, 2e-3, 0.2, 2),
        (20, 256, 2e-3, 0.1, 4),
        (1, 16, 3e-4, 0.2, 2),
        (2, 64, 3e-4, 0.1, 4),
        (5, 256, 1e-3, 0.1, 4),
    ]
    assert not (tmp_path / "made").exists()


def test_a_tower_of_another_teacher_is_refused(made, teacher, tiny_hub):
    preprocessor, encoder = tiny_hub
    shorter = TextEncoder(encoder, preprocessor, max_tokens=9)
    with pytest.raises(ModelError, match=f"{teacher.fingerprint[:12]}, .* {shorter.fingerprint[:12]}: .* Put back"):
        prepared(made[0], shorter)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"texts": TEXTS[::-1]}, "texts"), ({"config": SMALL.model_copy(update={"per_item": 3})}, "per_item")],
)
def test_a_tower_of_other_texts_or_settings_is_refused(change, named, made, teacher):
    with pytest.raises(ModelError, match=rf"belongs to a run with other .*{named}: name another folder"):
        prepared(made[0], teacher, **change)


def test_an_update_with_other_texts_takes_over_the_tower_of_its_parent(made, teacher, chain_split, tmp_path):
    parent = write_run(tmp_path / "parent", chain_split)
    shutil.copytree(made[0].parent, parent.folder / "query_encoder")
    _begin(parent, parent.config, {}, parent.dataset, tmp_path / "update", [], print)
    student = prepared(tmp_path / "update" / "query_encoder" / "hashed_ngrams", teacher, texts=[*TEXTS, "red boat"])
    np.testing.assert_array_equal(student.encode(TEXTS), made[1].encode(TEXTS))


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "tower").mkdir()
    for content in ("{", "[]", "{}", '{"agreement": {"all": {"texts": 1}}}'):
        (tmp_path / "tower" / "record.json").write_text(content)
        with pytest.raises(ModelError, match=r"record\.json is damaged .*: delete .*tower, it is made again"):
            QueryEncoderRecord.load(tmp_path / "tower")


def test_a_catalogue_too_small_to_hold_out_or_without_words(teacher, tmp_path):
    prepared(tmp_path / "tower", teacher, texts=["(", ")", ""])
    record = QueryEncoderRecord.load(tmp_path / "tower")
    assert record.agreement == {} and record.milliseconds > 0
    assert len(record.lines()) == 1


def test_what_is_said_of_it():
    agreement = {"word": Agreement(7, 0.1, 0.2, 0.3), "phrase": Agreement(1200, 0.9, 0.5, 0.625)}
    record = QueryEncoderRecord("layers", agreement, 0.5, 8.0, 2_500_000, 60.0)
    assert record.lines() == [
        "layers finds 0.500 of the encoder's top 10 and ndcg@10 0.625 to its list by 1,200 phrases that it was not "
        "trained on",
        "layers takes 0.50 ms a query and the encoder 8.00 ms (16.0 times as fast); 2.5 MB",
    ]


def test_latencies_are_medians_in_turns(monkeypatch):
    clock, order = [0.0], []

    def tower(name, *seconds):
        took = iter([0.0] * making._WARM_UP + list(seconds))

        def call(query):
            order.append((name, query.numpy()[0].decode()))
            clock[0] += next(took)
            return query

        return call

    monkeypatch.setattr(making.time, "perf_counter", lambda: clock[0])
    slow, fast = latencies([tower("slow", 0.4, 0.2, 9.0), tower("fast", 0.001, 0.002, 0.003)], ["a", "b", "c"])
    assert (slow, fast) == (pytest.approx(400), pytest.approx(2))
    assert order[2 * making._WARM_UP :] == [(name, query) for query in "abc" for name in ("slow", "fast")]


@pytest.mark.long
@pytest.mark.slow
def test_a_fit_makes_it_before_training_and_an_interruption_does_not_lose_it(
    chain_config, cache, tmp_path, monkeypatch
):
    config = chain_config.model_copy(deep=True)
    config.text.query_encoder, config.distillation = "layers", SMALL
    config.training.epochs, config.evaluation.baselines = 1, ["popularity"]
    told = []

    def interrupt(line):
        told.append(line)
        if "times as fast" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_experiment(config, tmp_path / "run", tell=interrupt)
    assert not (tmp_path / "run" / "checkpoints").exists()
    monkeypatch.setattr(making, "distil", lambda *_, **__: pytest.fail("distilled again"))
    run = fit_experiment(config, tmp_path / "run", resume=True, tell=told.append)
    assert run.complete
    record = json.loads((tmp_path / "run" / "run.json").read_text())["query_encoder"]
    assert record == json.loads((tmp_path / "run" / "query_encoder" / "layers" / "record.json").read_text())
    encoder = run.text_encoder()
    tower = Run.open(tmp_path / "run").query_encoder(encoder)
    assert isinstance(tower, Student) and tower.teacher == encoder.fingerprint
    texts = ItemTemplate.from_items(run.dataset.items, run.config.text.template).texts(run.dataset.items)
    likeness = np.einsum("nd,nd->n", tower.encode(texts), np.asarray(run.text)).mean()
    assert likeness == pytest.approx(record["agreement"]["item"]["cosine"], abs=0.2)


def test_same_is_the_encoder_itself(chain_run, bare_run, tmp_path):
    encoder = chain_run[0].text_encoder()
    assert chain_run[0].query_encoder(encoder) is encoder
    assert chain_run[0].record["query_encoder"] is None
    # Where nothing can be read, there is nothing to be quick at.
    copy = Run(shutil.copytree(bare_run[0].folder, tmp_path / "copy"))
    text = (copy.folder / "config.yaml").read_text()
    (copy.folder / "config.yaml").write_text(text.replace("query_encoder: same", "query_encoder: layers"))
    assert copy.config.text.query_encoder == "layers" and copy.query_encoder_record is None
