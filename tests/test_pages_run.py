"""Runs every Python block of README and docs/, each page in a separate namespace and folder.

The folder has what a reader of the page has: the files of the planted ring, its run, and its exported model, which a
server serves. Addresses and MovieLens ids in the blocks are replaced by those of the ring.
"""

import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("tensorflow")
pytestmark = [pytest.mark.tf, pytest.mark.slow]

import tfllmrec  # noqa: E402
from tfllmrec import assets  # noqa: E402
from tfllmrec.config import GraphConfig  # noqa: E402
from tfllmrec.errors import DataError  # noqa: E402
from tfllmrec.runs.graph import graph_of  # noqa: E402

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PYTHON = [page for page in PAGES if BLOCK.search(page.read_text())]
IDS = {"42": "u4", "515": "u5", "A17": "i17", "B02": "i2", "50": "i5", "172": "i17", "181": "i18", "121": "i12"}
IDS |= {"245": "i24", "movielens": "shop"}
#: A two-tower model with the names that docs/serving.md uses.
TOWERS = """
import tensorflow as tf

class QueryModel(tf.keras.layers.Layer):
    def __init__(self, items):
        super().__init__()
        self.items = items
    def call(self, inputs):
        return tf.reduce_mean(self.items(tf.minimum(inputs["history"], dataset.n_items - 1)), axis=1)

class Towers(tf.keras.Model):
    def __init__(self):
        super().__init__()
        self.vectors = tf.keras.layers.Embedding(dataset.n_items, 4)
        self.query_model = QueryModel(self.vectors)
    def items(self, ids):
        return self.vectors(tf.strings.to_number(tf.strings.substr(ids, 1, 2), tf.int32))

model = Towers()
"""


@pytest.fixture(scope="module")
def address(chain_files, chain_run, serving, tmp_path_factory):
    """The address of a server with the ring's model; nine items each share a category, because interests list these."""
    import pandas as pd

    import tfllmrec

    events, items = map(pd.read_csv, chain_files)
    items["categories"] = [f"shelf {place // 9}" for place in range(len(items))]
    split = tfllmrec.make_split(tfllmrec.dataset_from_frames(events, items), tfllmrec.SplitConfig(), seed=42)
    run, folder = chain_run[0], tmp_path_factory.mktemp("served")
    hybrid = run.load_model()
    parts = {"encoder": run.text_encoder(), "ranking": run.load_ranking(hybrid)}
    tfllmrec.export(hybrid, split, folder / "shop", **parts)
    with serving(folder, log=tmp_path_factory.mktemp("log")) as server:
        yield f"grpc://localhost:{server.grpc_port}"


@pytest.fixture
def small_fits(monkeypatch, tiny_hub):
    """Makes ``fit_experiment`` use the tiny encoder and sizes that take seconds."""
    from tfllmrec.config import parse_config
    from tfllmrec.runs import experiment

    small = [
        "model={embedding_dim: 16, blocks: 1, heads: 2}", "training={epochs: 1, batch_size: 32}", "ranking.epochs=0",
        "item_weights={decay: 1, l2: 10, next_item: 1, co_occurrence: 0, text: 0, popularity: 0, context: {}}",
        "evaluation={baselines: [popularity], bootstrap: 20}", "interests.learned=false",
        f"text={{preprocessor: {tiny_hub[0]}, encoder: {tiny_hub[1]}, max_tokens: 12}}",
    ]  # fmt: skip
    real = experiment.fit_experiment

    def fit_experiment(config, *args, **options):
        return real(parse_config(config.model_dump(mode="json"), small), *args, **options)

    monkeypatch.setattr(experiment, "fit_experiment", fit_experiment)


@pytest.fixture
def folder(tmp_path, monkeypatch, chain_files, chain_run, chain_version, tiny):
    """The working directory of a page, with the files that its blocks need."""
    import json

    from safetensors.numpy import save_file

    monkeypatch.chdir(tmp_path)
    for file in chain_files:
        (tmp_path / file.name).write_text(file.read_text())
    for name in ("shop", "movielens"):
        (tmp_path / "saved_models" / name).mkdir(parents=True)
        (tmp_path / "saved_models" / name / "1").symlink_to(chain_version)
    (tmp_path / "runs").mkdir()
    for name in ("shop", "shop-tuned", "beauty", "toys"):
        (tmp_path / "runs" / name).symlink_to(chain_run[0].folder)
    bert = tmp_path / "downloads" / "some-bert"
    bert.mkdir(parents=True)
    sizes = tiny.sizes | {"model_type": "bert", "hidden_act": "gelu", "max_position_embeddings": 128}
    (bert / "config.json").write_text(json.dumps(sizes))
    (bert / "vocab.txt").write_text("\n".join(tiny.vocabulary) + "\n")
    state = tiny.state()
    table = "embeddings.position_embeddings.weight"
    state[table] = state[table].repeat(4, axis=0)[:128]
    save_file(state, bert / "model.safetensors")
    return tmp_path


@pytest.fixture
def names(folder, chain_run):
    """The variables that a page uses without defining them, because its text introduces them."""
    import tfllmrec

    run = chain_run[0]
    return {"tfllmrec": tfllmrec, "split": run.split, "dataset": run.dataset}


#: Pages that take a minute or more; they are not part of .ci/run.
LONG = (
    "README.md", "docs/events.md", "docs/graph.md", "docs/how-to/context.md", "docs/serving.md", "docs/updates.md",
)  # fmt: skip


def marked(page: Path):
    """Returns the page as a parameter of a test."""
    name = page.relative_to(ROOT).as_posix()
    return pytest.param(page, id=name, marks=[pytest.mark.long] if name in LONG else [])


@pytest.mark.parametrize("page", map(marked, PYTHON))
def test_the_python_blocks_run(page, names, folder, chain_run, small_fits, request, monkeypatch, capsys):
    code = BLOCK.findall(page.read_text())
    try:
        assets.weights("minilm")
    except DataError as error:
        pytest.skip(f"needs the bundled BERT: {error}")
    if page.name == "train.md":
        (folder / "runs" / "shop").unlink()  # the page creates it
    if page.name == "graph.md":  # needs an exported run that has a graph
        run = shutil.copytree(chain_run[0].folder, folder / "runs" / "joined")
        graph_of(run, GraphConfig(relations=["use"]))
        (folder / "saved_models" / "shop" / "1").unlink()
        tfllmrec.export(run, folder / "saved_models" / "shop")
    if page.name == "updates.md":
        for file, name in zip(request.getfixturevalue("newer_tables"), ("june.csv", "new_items.csv"), strict=True):
            (folder / name).symlink_to(file)
    if page.name == "serving.md":
        names |= {"hybrid": chain_run[0].load_model(), "encoder": chain_run[0].text_encoder()}
        exec(TOWERS, names)
    monkeypatch.syspath_prepend(ROOT / "client")
    for block in code:
        block = re.sub(r'"(\w+)"', lambda text: f'"{IDS.get(text[1], text[1])}"', block)
        if re.search(r"\b[Cc]lient\b", block):
            address = request.getfixturevalue("address")
            block = block.replace("grpc://localhost:8500", address)
            if block.startswith("client."):
                block = f"with Client('{address}', 'shop') as client:\n  {block}"
        exec(compile(block, str(page), "exec"), names)
    if page.name == "README.md":
        # Users walk along the ring, so the next item is easy to predict.
        assert names["result"].metrics["recall@5"] > 0.6
        assert len(re.findall(r"epoch \d: retrieval_loss .* validation ndcg@10", capsys.readouterr().out)) == 3
