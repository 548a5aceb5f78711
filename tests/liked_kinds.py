"""Makes data sets in which a user goes on with one kind of items, and hybrids without training for them."""

import numpy as np
import pandas as pd

from tfllmrec.config import DataConfig, ModelConfig, RankingConfig, SplitConfig
from tfllmrec.data import dataset_from_frames, make_split
from tfllmrec.evaluation.protocol import evaluate
from tfllmrec.models.fitting import TrainingData
from tfllmrec.models.hybrid import Catalogue, Hybrid

GROUPS, EACH = 5, 12
N = GROUPS * EACH
CONFIG = RankingConfig(epochs=8, candidates=30, history_length=8, batch_size=16, learning_rate=0.01, folds=2)


def events(rated=True, people=260):
    """Everybody had items of two kinds, liked one of them, and goes on with that kind.

    Which one it is only the ratings say: without them, or with others, both kinds are alike.
    """
    generator = np.random.default_rng(0)
    rows = []
    for person in range(people):
        liked, disliked = generator.permutation(GROUPS)[:2]
        of_liked, of_disliked = (EACH * g + generator.permutation(EACH) for g in (liked, disliked))
        past = [(i, 5) for i in of_liked[:3]] + [(i, 1) for i in of_disliked[:3]]
        walk = [past[i] for i in generator.permutation(6)] + [(i, 5) for i in of_liked[3:5]]
        for step, (item, rating) in enumerate(walk):
            rows.append((f"u{person}", f"i{item:02}", rating, step))
    frame = pd.DataFrame(rows, columns=["user", "item", "rating", "timestamp"])
    return frame if rated else frame.drop(columns="rating")


def by_device(people=260):
    """On each of five devices everybody takes items of another kind."""
    generator = np.random.default_rng(0)
    rows = []
    for person in range(people):
        for step, item in enumerate(generator.choice(N, 8, replace=False)):
            rows.append((f"u{person}", f"i{item:02}", step, f"device {item // EACH}"))
    return pd.DataFrame(rows, columns=["user", "item", "timestamp", "device"])


def by_kind(people=260):
    """Everybody stays with one kind of items."""
    generator = np.random.default_rng(0)
    rows = []
    for person in range(people):
        for step, item in enumerate(EACH * (person % GROUPS) + generator.choice(EACH, 8, replace=False)):
            rows.append((f"u{person}", f"i{item:02}", step))
    return pd.DataFrame(rows, columns=["user", "item", "timestamp"])


def split_of(frame):
    items = pd.DataFrame({"item": [f"i{i:02}" for i in range(N)], "title": "x"})
    return make_split(dataset_from_frames(frame, items, config=DataConfig(name="made")), SplitConfig(), seed=0)


def untrained(split, terms=("behaviour",), schema=None, tells=1.0):
    """A hybrid that knows of behaviour alone, and of that nothing; the texts tell the kinds of items apart."""
    generator = np.random.default_rng(1)
    text = tells * np.eye(GROUPS)[np.arange(N) // EACH] + generator.normal(0, 0.1, (N, GROUPS))
    config = ModelConfig(embedding_dim=8, blocks=0, heads=2, history_length=8, terms=list(terms))
    ids = split.dataset.items["item_id"].to_numpy(object)
    return Hybrid(Catalogue(ids, text.astype(np.float32)), split.train_counts, config, schema=schema)


def data_of(split, seed=7):
    """Training data without texts, which the ranking model does not look at."""
    return TrainingData(split, np.zeros((N, 1), np.float32), seed=seed)


def measured(split, recommender):
    return evaluate(recommender, split.test, train_counts=split.train_counts, strata=split.strata(), bootstrap=50)


def walks(rate, people=200):
    """Nobody's next item has to do with anything; ``rate(likes, groups)`` says how a walk is rated."""
    generator = np.random.default_rng(0)
    rows = []
    for person in range(people):
        likes = generator.permutation(GROUPS) < GROUPS // 2
        walk = generator.choice(N, 8, replace=False)
        for step, (item, rating) in enumerate(zip(walk, rate(likes, walk // EACH), strict=True)):
            rows.append((f"u{person}", f"i{item:02}", rating, step))
    return pd.DataFrame(rows, columns=["user", "item", "rating", "timestamp"])


def randomly_split(frame, repeats="last", **shares):
    items = pd.DataFrame({"item": [f"i{i:02}" for i in range(N)], "title": "x"})
    config = DataConfig(name="made", repeats=repeats)
    return make_split(dataset_from_frames(frame, items, config=config), SplitConfig(kind="random", **shares), seed=0)
