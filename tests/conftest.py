"""Shared fixtures: a tiny random BERT in Hub format, and a small planted experiment (the ring), fitted once."""

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import shutil
import string
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, settings

import tfllmrec  # noqa: F401  (legacy Keras, before any test file touches tf.keras)

_SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
# The generated examples are the same on all machines, and no time limit depends on their speed.
settings.register_profile("everywhere", derandomize=True, deadline=None, suppress_health_check=_SLOW)
settings.load_profile("everywhere")

_FILE = pytest.StashKey[object]()


def pytest_addoption(parser):
    """Adds options for the pictures of the documentation.

    ``pytest -m slow -k in_chromium --run RUN --screenshots docs/images`` makes them.
    """
    parser.addoption("--screenshots", type=Path, help="folder of pictures to make again from the pages that tests open")
    parser.addoption("--run", type=Path, help="the run that these pages show instead of the planted one")


def _randomness(seed=None, deterministic=False):
    """Sets TensorFlow's random state, by default to that of a new process; returns the previous state."""
    if "tensorflow" not in sys.modules:
        return None, False
    from tensorflow.python.eager import context
    from tensorflow.python.framework import config

    before = context.global_seed(), config.is_op_determinism_enabled()
    sys.modules["tensorflow"].random.set_seed(seed)
    (config.enable_op_determinism if deterministic else config.disable_op_determinism)()
    return before


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Resets the random state before each test file: under xdist, it is random which file runs before."""
    if item.session.stash.get(_FILE, None) != item.path:
        item.session.stash[_FILE] = item.path
        _randomness()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef):
    """Gives session fixtures a fresh random state, so that they do not depend on the test file; restores it after."""
    if fixturedef.scope != "session":
        return (yield)
    before = _randomness()
    try:
        return (yield)
    finally:
        _randomness(*before)


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "blue", "car", "toy", "the", ",", "(", ")", "cafe"]
VOCABULARY += [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
SIZES = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}

#: The sizes of a BERT with one layer, which takes half the time to trace.
THIN = SIZES | {"num_hidden_layers": 1}


def pytest_make_parametrize_id(config, val, argname):
    """Keeps bytes out of test names: archives contain the time of their creation, so the names would change."""
    return argname if isinstance(val, bytes) else None


def random_state(seed: int = 7, width: int = SIZES["hidden_size"]) -> dict[str, np.ndarray]:
    """Returns random weights with Hugging Face's names; biases and norms differ from 0 and 1, too."""
    rng = np.random.default_rng(seed)
    inner = SIZES["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (len(VOCABULARY), width),
        "embeddings.position_embeddings.weight": (SIZES["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
        "pooler.dense.weight": (width, width),
    }
    for i in range(SIZES["num_hidden_layers"]):
        dense = {f"attention.self.{name}": (width, width) for name in ("query", "key", "value")}
        dense |= {
            "attention.output.dense": (width, width),
            "intermediate.dense": (inner, width),
            "output.dense": (width, inner),
        }
        for name, shape in dense.items():
            shapes |= {f"encoder.layer.{i}.{name}.weight": shape, f"encoder.layer.{i}.{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"encoder.layer.{i}.{name}.weight": (width,), f"encoder.layer.{i}.{name}.bias": (width,)}
    return {
        name: (("LayerNorm.weight" in name) + rng.normal(0, 0.5, shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="session")
def tiny():
    """The tiny BERT: ``sizes`` (as in config.json), ``thin`` (one layer), ``vocabulary``, ``state(seed, width)``."""
    return SimpleNamespace(sizes=SIZES, thin=THIN, vocabulary=VOCABULARY, state=random_state)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """``made_once(NAME, MAKE)`` returns a folder that ``MAKE(folder)`` fills in one test process; the others wait.

    Tests must not change the folder; a test that needs changes works on a copy. The folders are made again for each
    call of pytest, unless the environment variable MADE_ONCE names a folder to keep them in.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    shared = Path(os.environ.get("MADE_ONCE") or shared)

    def folder_of(name, make):
        folder, done = shared / "once" / name, shared / "once" / f"{name}.done"
        folder.parent.mkdir(exist_ok=True)
        with (shared / "once" / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # left by a process in which MAKE failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return folder_of


def write_hub(folder, vocabulary, sizes):
    """Writes a preprocessor and a random encoder in Hub format."""
    from tfllmrec.text.bert import BertConfig, BertEncoder
    from tfllmrec.text.bundled import save_encoder, save_preprocessor

    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    save_preprocessor(folder / "vocab.txt", folder / "preprocessor", 12)
    save_encoder(BertEncoder(BertConfig(**sizes), random_state()), folder / "encoder")


@pytest.fixture(scope="session")
def tiny_hub(made_once):
    """The folders (preprocessor, encoder) of the tiny BERT in Hub format."""
    folder = made_once("hub", lambda folder: write_hub(folder, VOCABULARY, SIZES))
    return folder / "preprocessor", folder / "encoder"


@pytest.fixture(scope="session")
def thin_hub(made_once):
    """The folders (preprocessor, encoder) of the tiny BERT with one layer and a [MASK] token."""
    folder = made_once("thin", lambda folder: write_hub(folder, [*VOCABULARY[:-1], "[MASK]"], THIN))
    return folder / "preprocessor", folder / "encoder"


CHAIN, COLD = 36, 4


def chain_events() -> pd.DataFrame:
    """Returns the events of 60 users who walk along a ring of 36 items, mostly from i to i + 1, with random ratings."""
    rng = np.random.default_rng(0)
    rows = []
    for user, item in enumerate(rng.integers(0, CHAIN, 60)):
        for step in range(rng.integers(5, 11)):
            rows.append((f"u{user}", f"i{item}", int(rng.integers(1, 6)), 100 * user + step))
            item = (item + 1) % CHAIN if rng.random() < 0.85 else rng.integers(0, CHAIN)
    return pd.DataFrame(rows, columns=["user", "item", "rating", "timestamp"])


def chain_items() -> pd.DataFrame:
    """Returns the 36 items of the ring and four items without events, each with a different text."""
    letters = string.ascii_lowercase
    titles = [f"{'red' if i % 2 else 'blue'} {letters[i % 26]}{letters[i // 26]}" for i in range(CHAIN + COLD)]
    return pd.DataFrame({"item": [f"i{i}" for i in range(CHAIN + COLD)], "title": titles})


@pytest.fixture(scope="session")
def chain_files(made_once):
    """The CSV files (events, items) of the planted ring."""

    def write(folder):
        chain_events().to_csv(folder / "events.csv", index=False)
        chain_items().to_csv(folder / "items.csv", index=False)

    folder = made_once("chain", write)
    return folder / "events.csv", folder / "items.csv"


@pytest.fixture(scope="session")
def chain_split():
    """The split of the planted ring."""
    from tfllmrec.config import DataConfig, SplitConfig
    from tfllmrec.data import dataset_from_frames, make_split

    dataset = dataset_from_frames(chain_events(), chain_items(), config=DataConfig(name="chain"))
    return make_split(dataset, SplitConfig(), seed=42)


@pytest.fixture(scope="session")
def chain_config(chain_files, tiny_hub):
    """The config of an experiment on the ring that takes seconds; only copies may be changed."""
    from tfllmrec.config import (
        BoardConfig,
        DataConfig,
        EvaluationConfig,
        ExperimentConfig,
        ModelConfig,
        RankingConfig,
        TextConfig,
        TrainingConfig,
    )

    events, items = chain_files
    preprocessor, encoder = map(str, tiny_hub)
    return ExperimentConfig(
        data=DataConfig(name="chain", events=events, items=items),
        text=TextConfig(encoder=encoder, preprocessor=preprocessor, max_tokens=12),
        model=ModelConfig(embedding_dim=32, blocks=1, heads=2, history_length=6, dropout=0.1),
        training=TrainingConfig(epochs=3, batch_size=32, learning_rate=0.01),
        ranking=RankingConfig(epochs=1, candidates=20, crosses=1, folds=2),
        evaluation=EvaluationConfig(baselines=["popularity", "markov", "two_tower"], bootstrap=20),
        board=BoardConfig(details=False),  # writing the details takes seconds
    )


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A separate cache folder, as long as a fixture or test needs it."""
    before = os.environ.get("TFLLMREC_CACHE")
    os.environ["TFLLMREC_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["TFLLMREC_CACHE"]
    else:
        os.environ["TFLLMREC_CACHE"] = before


@contextlib.contextmanager
def both_heads():
    """Makes ranking models keep both heads, so that they are exported although they learn nothing on the ring."""
    from tfllmrec.training.ranking.held_out import HeldOut

    judged = HeldOut.verdict

    def kept(self, seed):
        return replace(judged(self, seed), best_epoch=1, strengths=[1.0, 1.0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeldOut, "verdict", kept)
        yield


@pytest.fixture
def both_heads_kept():
    """Makes ranking models keep both heads, as in the runs of the ring."""
    with both_heads():
        yield


def fit_and_tell(config, folder):
    """Fits a run in ``folder/run`` and writes the messages of the fit to ``folder/told.json``."""
    from tfllmrec.runs.experiment import fit_experiment

    told: list[str] = []
    with both_heads():
        fit_experiment(config, folder / "run", tell=told.append)
    (folder / "told.json").write_text(json.dumps(told))


def run_and_told(folder):
    from tfllmrec.runs.run import Run

    return Run.open(folder / "run"), json.loads((folder / "told.json").read_text())


@pytest.fixture(scope="session")
def chain_run(chain_config, cache, made_once):
    """The run of the ring, fitted once by ``fit_experiment``, and the messages of the fit."""
    return run_and_told(made_once("chain-run", lambda folder: fit_and_tell(chain_config, folder)))


def write_newer_tables(folder):
    """Writes events of known and new users along the ring, one late and one repeated event, and three new items."""
    rows = [
        (f"u{user}", f"i{(user + step) % 36}", 4, 90_000 + 10 * user + step) for user in range(20) for step in (0, 1)
    ]
    rows += [(f"w{user}", f"i{(7 * user + step) % 36}", 3, 95_000 + step) for user in range(5) for step in range(6)]
    rows += [("w0", "i40", 5, 96_000), ("w1", "i40", 5, 96_000), ("w1", "i40", 5, 96_000), ("u30", "i41", 2, 1)]
    pd.DataFrame(rows, columns=["user", "item", "rating", "timestamp"]).to_csv(folder / "newer.csv", index=False)
    titles = pd.DataFrame({"item": ["i40", "i41", "i42"], "title": ["red car", "blue toy", "the cafe"]})
    titles.to_csv(folder / "newer_items.csv", index=False)


@pytest.fixture(scope="session")
def newer_tables(made_once):
    """The CSV files (events, items) that came after the ring was fitted."""
    folder = made_once("newer", write_newer_tables)
    return folder / "newer.csv", folder / "newer_items.csv"


@pytest.fixture(scope="session")
def updated(chain_run, newer_tables, made_once):
    """The ring's run, updated with the newer tables."""
    from tfllmrec.runs.run import Run
    from tfllmrec.runs.update import update_run

    def make(folder):
        update_run(chain_run[0].folder, *newer_tables, out=folder / "run", tell=lambda line: None)

    return Run.open(made_once("updated", make) / "run")


@pytest.fixture(scope="session")
def board_run(chain_config, cache, made_once):
    """The run of the ring, fitted with all details for TensorBoard."""
    config = chain_config.model_copy(deep=True)
    config.board.details = True

    def make(folder):
        from tfllmrec.explain.board import write_board
        from tfllmrec.runs.run import Run

        fit_and_tell(config, folder)
        write_board(Run.open(folder / "run"))

    return run_and_told(made_once("board-run", make))[0]


@pytest.fixture(scope="session")
def bare_run(cache, chain_config, made_once):
    """A run on minimal data: only the users and items of events, without order, ratings or texts."""
    from tfllmrec.config import DataConfig

    def make(folder):
        chain_events()[["user", "item"]].to_csv(folder / "events.csv", index=False)
        config = chain_config.model_copy(deep=True)
        config.data = DataConfig(events=folder / "events.csv")
        config.training.epochs = 1
        config.evaluation.baselines = ["popularity", "text", "star"]
        fit_and_tell(config, folder)

    return run_and_told(made_once("bare", make))


@pytest.fixture(scope="session")
def chain_version(chain_run, made_once):
    """The ring's model, exported once: ``.../saved_models/chain/1``."""
    from tfllmrec.serving.export import export

    return made_once("saved_models", lambda folder: export(chain_run[0].folder, folder / "chain")) / "chain" / "1"


#: The characters in the titles of the Chinese ring.
CHINESE = "茶帐篷山水火木金土日"


@pytest.fixture(scope="session")
def chinese_version(chain_config, cache, made_once):
    """The ring with Chinese titles, fitted with a tiny encoder with a SentencePiece tokenizer, exported once."""
    import tensorflow as tf

    from tfllmrec.serving.export import export
    from tfllmrec.text.bert import BertConfig, BertEncoder
    from tfllmrec.text.bundled import save_encoder
    from tfllmrec.text.sentencepiece import SentencePiecePreprocessor, unigram_model

    def make(folder):
        specials = ("<s>", "</s>", "<pad>", "<unk>")
        pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"红蓝", *CHINESE]
        model = unigram_model(pieces, [0.0] * 4 + [-1.0] * (len(pieces) - 4), specials, b"")
        tf.saved_model.save(SentencePiecePreprocessor(model, (0, 2, 1), 12), str(folder / "preprocessor"))
        save_encoder(BertEncoder(BertConfig(**SIZES), random_state()), folder / "encoder")
        items = chain_items()
        items["title"] = [f"{'红' if i % 2 else '蓝'}{CHINESE[i % 10]}{CHINESE[i // 10]}" for i in range(len(items))]
        items.to_csv(folder / "items.csv", index=False)
        config = chain_config.model_copy(deep=True)
        config.data.items = folder / "items.csv"
        config.text.encoder, config.text.preprocessor = str(folder / "encoder"), str(folder / "preprocessor")
        config.training.epochs, config.evaluation.baselines = 1, ["popularity"]
        fit_and_tell(config, folder)
        export(folder / "run", folder / "served")

    return made_once("chinese", make) / "served" / "1"


@contextlib.contextmanager
def running(path, **given):
    """Runs the embedded server in a thread."""
    from tfllmrec.server.engine import Limits
    from tfllmrec.server.server import Server, Settings

    limits = Limits(**given.pop("limits", {}))
    server = Server(
        Settings(path, rest_port=0, grpc_port=0, poll_s=0.05, settled_s=0.2, grace_s=5, limits=limits, **given)
    )
    started, stop = threading.Event(), asyncio.Event()
    loops, problems = [], []

    async def main():
        loops.append(asyncio.get_running_loop())
        try:
            await server.start()
        except BaseException as error:
            problems.append(error)
            raise
        finally:
            started.set()
        await stop.wait()
        await server.stop()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert started.wait(120)
    if problems:
        raise problems[0]
    try:
        yield server
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def serving():
    """``with serving(PATH, SETTING=...) as server`` runs the embedded server in a thread, on free ports."""
    return running


@dataclass
class Answer:
    code: int
    out: str
    err: str


@pytest.fixture
def program(monkeypatch, capsys):
    """A function that runs ``tfllmrec ARGUMENTS`` and returns the exit code and the output."""
    from tfllmrec.cli.app import main

    logger = logging.getLogger("tfllmrec")
    before = logger.handlers, logger.level, logger.propagate

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tfllmrec", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Answer(ended.value.code or 0, printed.out, printed.err)

    yield run
    logger.handlers, logger.level, logger.propagate = before


@pytest.fixture
def browser():
    """A tab of headless Chromium, see tests/browser.py; skips the test if Chromium is not installed."""
    from browser import CHROMIUM, MISSING, chromium

    if CHROMIUM is None:
        pytest.skip(MISSING)
    with chromium() as page:
        yield page


@pytest.fixture
def picture(browser, request):
    """``picture(NAME)`` replaces the picture of this name in the folder of ``--screenshots``, if both exist."""

    def renew(name):
        folder = request.config.getoption("--screenshots")
        if folder and (file := folder / f"{name}.webp").exists():
            file.write_bytes(browser.screenshot())

    return renew


@pytest.fixture
def shown_run(request):
    """The run whose pages are opened: that of ``--run``, by default the planted ring's."""
    from tfllmrec.runs.run import Run

    named = request.config.getoption("--run")
    return Run.open(named) if named else request.getfixturevalue("board_run")


@pytest.fixture
def shown_models(request, tmp_path):
    """A folder of exported models to serve: the model of ``--run``, by default the planted ring's."""
    if (named := request.config.getoption("--run")) is None:
        return request.getfixturevalue("chain_version").parent.parent
    from tfllmrec.serving.export import export

    export(named, tmp_path / "models" / named.name)
    return tmp_path / "models"
