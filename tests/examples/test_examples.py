"""Each example on a small planted shop whose effects are known.

80 users with one of four jobs; 80 items in four groups, which their titles name. In the morning a user takes items of
the job's group and rates them 5, in the evening those of the next group and rates them 2. Within a group a user walks
along a ring of items, from each to the one after it. All items are equally popular.
"""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path for path in EXAMPLES.glob("*.py") if not path.name.startswith("_"))
GROUPS, RING, DAY_S = 4, 20, 86400


def write_shop(folder, by_time=False):
    """The shop as CSV files; ``by_time``: the job decides the colour, the time car or toy, and chance the item."""
    rng = np.random.default_rng(0)
    events, items, users = ["user,item,rating,timestamp"], ["item,title"], ["user,job,age"]
    for group in range(GROUPS):
        for place in range(RING):
            words = f"{'red' if group % 2 else 'blue'} {'car' if group < 2 else 'toy'}"
            items.append(f"i{group * RING + place},{words} {chr(97 + place)}")
    for user in range(80):
        job = user % GROUPS
        users.append(f"u{user},job{job},{rng.integers(20, 60)}")
        places = [rng.permutation(RING) if by_time else (rng.integers(RING) + np.arange(RING)) % RING for _ in range(4)]
        had = [0] * GROUPS
        for day in range(14):
            evening = int(rng.random() < 0.5)
            group = job % 2 + 2 * evening if by_time else (job + evening) % GROUPS
            item = group * RING + places[group][had[group]]
            had[group] += 1
            time = 1_700_000_000 // DAY_S * DAY_S + day * DAY_S + (20 if evening else 8) * 3600
            events.append(f"u{user},i{item},{2 if evening else 5},{time}")
    folder.mkdir()
    for name, lines in (("events", events), ("items", items), ("users", users)):
        (folder / f"{name}.csv").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def options(tiny, cache, tmp_path_factory):
    """The command line that names the planted shop and a small encoder."""
    from tfllmrec.text.bert import BertConfig, BertEncoder
    from tfllmrec.text.bundled import save_encoder, save_preprocessor

    folder, rng = tmp_path_factory.mktemp("examples"), np.random.default_rng(0)
    write_shop(folder / "shop")
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(tiny.vocabulary) + "\n", encoding="utf-8")
    save_preprocessor(vocabulary, folder / "preprocessor", 64)
    positions = rng.normal(0, 0.5, (64, tiny.sizes["hidden_size"])).astype(np.float32)
    state = tiny.state() | {"embeddings.position_embeddings.weight": positions}
    config = BertConfig(**tiny.thin | {"max_position_embeddings": 64})
    save_encoder(BertEncoder(config, state), folder / "encoder")
    return [f"--data={folder}/shop", f"--encoder={folder}/encoder", f"--preprocessor={folder}/preprocessor"]


@pytest.fixture
def run(options, monkeypatch):
    """Calls the ``main`` of an example on the planted shop."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return lambda name, *further: runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]([*options, *further])


def of(results, label):
    """A metric of each row."""
    return {name: result.metrics[label] for name, result in results.items()}


def test_retrieval_finds_the_groups_of_a_user(run, capsys, tmp_path):
    results = run("retrieval", "--epochs=60", f"--logs={tmp_path}")
    recall = of(results, "recall@10")
    assert recall["ids and text"] > 3 * recall["popularity"]
    assert recall["ids"] > 3 * recall["popularity"]
    printed = capsys.readouterr().out
    assert all(name in printed for name in results)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids", "ids and text"]


def test_ranking_knows_which_user_likes_which_group(run, capsys):
    _, figures = run("ranking", "--epochs=40")
    assert figures["rating model"]["RMSE"] < 0.6 * figures["item and user biases"]["RMSE"]
    assert "rating model" in capsys.readouterr().out


def test_ranking_trains_the_encoder(run):
    _, figures = run("ranking", "--epochs=10", "--mode=lora")
    assert figures["rating model"]["RMSE"] < figures["item and user biases"]["RMSE"]


def test_one_model_does_both_tasks(run):
    results, figures = run("multitask", "--epochs=80")
    recall = of(results, "recall@10")
    assert recall["both"] > 1.5 * recall["popularity"]
    assert recall["both"] > 1.5 * recall["ratings only"]
    assert figures["both"]["RMSE"] < 0.6 * figures["item and user biases"]["RMSE"]


def test_the_time_of_the_request_tells_the_group(run, tmp_path):
    write_shop(tmp_path / "by_time", by_time=True)
    recall = of(run("context_features", "--epochs=40", f"--data={tmp_path}/by_time"), "recall@10")
    assert recall["with time"] > 1.3 * recall["without time"] > 1.3 * recall["popularity"]


def test_the_order_of_the_history_tells_the_next_item(run):
    ndcg = of(run("sequences", "--epochs=40"), "ndcg@10")
    assert ndcg["sequence"] > 1.5 * ndcg["set"]
    assert ndcg["sequence"] > 3 * ndcg["popularity"]


def test_crosses_learn_which_job_likes_which_group(run):
    figures = run("dcn", "--epochs=40")
    assert figures["deep and cross"]["RMSE"] < 0.6 * figures["item and user biases"]["RMSE"]
    assert figures["deep and low-rank cross"]["weights"] < figures["deep and cross"]["weights"]


def test_lists_are_put_in_the_order_of_the_user(run):
    results, figures = run("listwise", "--epochs=30")
    label = "NDCG of 5 films"
    for loss in ("squared error", "pairwise hinge", "list mle"):
        assert figures[loss][label] > figures["mean ratings"][label] + 0.02
    assert of(results, "recall@10").keys() == {"popularity", "squared error", "pairwise hinge", "list mle"}


def test_the_page_lists_each_example_with_its_command():
    page = (EXAMPLES / "README.md").read_text()
    named = re.findall(r"^python examples/(\w+\.py)$", page, flags=re.MULTILINE)
    assert sorted(named) == [path.name for path in SCRIPTS]
