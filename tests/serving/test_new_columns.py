"""Columns that no code names: of requests, users, items and events, from the files to an answer of the server."""

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tfllmrec.config import DataConfig, FieldConfig, SplitConfig
from tfllmrec.data import dataset_from_frames, make_split
from tfllmrec.data.batches import Sequences, training_batches
from tfllmrec.layers.field_encoder import FieldsEncoder
from tfllmrec.serving.export import export
from tfllmrec.serving.layout import read_manifest
from tfllmrec.serving.saved_model import SavedModel

pytestmark = [pytest.mark.tf, pytest.mark.slow]
D, USERS = 16, 200
#: Hue and height come from the item's number, and so does its family.
ITEMS = pd.DataFrame(
    [
        (f"i{i}", f"{float(i % 2)} {float(1 - i % 2)} 0.5", 100.5 + 700 * (i // 2 % 2) + i, i // 4 % 4)
        for i in range(32)
    ],
    columns=["item_id", "hue", "height_mm", "family"],
)


def planted():
    """The lamp decides the hue of the next item, the user's shoe its height, and the item grabbed before its family."""
    rng = np.random.default_rng(0)
    rows, shoes = [], []
    for user in range(USERS):
        small, family = user % 2, int(rng.integers(4))
        shoes.append((f"u{user}", (35.5 if small else 45.5) + rng.random()))
        own = ITEMS.index[ITEMS.family == family]
        rows += [
            (f"u{user}", f"i{rng.integers(32)}", 0, "dim", "glance"),
            (f"u{user}", f"i{rng.choice(own)}", 1, "dim", "grab"),
        ]
        for step in range(2, 6):
            lamp = int(rng.integers(2))
            cell = [i for i in own if i % 2 == lamp and i // 2 % 2 == small]
            rows.append((f"u{user}", f"i{rng.choice(cell)}", step, ("warm", "cold")[lamp], "grab"))
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "order", "lamp", "deed"])
    users = pd.DataFrame(shoes, columns=["user_id", "shoe"])
    fields = {
        "lamp": FieldConfig(owner="request"),
        "kind": FieldConfig(weights={"glance": 0.0, "grab": 1.0}),
        "family": FieldConfig(use=False),
    }
    return dataset_from_frames(events, ITEMS, users, DataConfig(columns={"kind": "deed"}, fields=fields, repeats="all"))


class Towers(tf.keras.Model):
    """Both towers know the schema and no column."""

    def __init__(self, split):
        super().__init__()
        self.n_items = split.dataset.n_items
        self.ids = tf.keras.layers.Embedding(self.n_items + 1, D)
        self.of_query = FieldsEncoder(split.schema.of_query(), D)
        self.of_item = FieldsEncoder(split.schema.of("item"), D)
        self.kind_weights = tf.constant(split.schema["event.kind"].code_weights)
        fields = [field for field in split.schema.of("item") if field.key in self.of_item.keys]
        items = split.dataset.items
        self.catalogue = {field.key: tf.constant(field.encode(items[field.name])) for field in fields}
        self.catalogue["item_index"] = tf.range(self.n_items)

    def candidate_model(self, inputs):
        return self.ids(inputs["item_index"]) + self.of_item(inputs)

    def query_model(self, inputs):
        weights = tf.gather(self.kind_weights, inputs["event.kind"])[..., tf.newaxis]
        total = tf.reduce_sum(weights * self.ids(inputs["history"]), axis=1)
        return tf.math.divide_no_nan(total, tf.reduce_sum(weights, axis=1)) + self.of_query(inputs)

    def train_step(self, inputs):
        # The newest event alone is predicted, from its own request.
        last = tf.reduce_sum(tf.cast(inputs["history"] < self.n_items, tf.int32), axis=1) - 1
        query = {k: tf.gather(v, last, batch_dims=1) if k.startswith("request.") else v for k, v in inputs.items()}
        with tf.GradientTape() as tape:
            scores = self.query_model(query) @ tf.transpose(self.candidate_model(self.catalogue))
            target = tf.gather(inputs["targets"], last, batch_dims=1)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=target, logits=scores))
        self.optimizer.minimize(loss, self.trainable_variables, tape)
        return {"loss": loss}


@pytest.fixture(scope="module")
def split():
    return make_split(planted(), SplitConfig(), seed=1)


@pytest.fixture(scope="module")
def exported(split, tmp_path_factory):
    tf.keras.utils.set_random_seed(3)
    model = Towers(split)
    batches = training_batches(Sequences.from_split(split, 0.1, seed=1), 100, 5, seed=1, epochs=60)
    model.compile(optimizer=tf.keras.optimizers.Adam(0.02))
    model.fit(batches, epochs=60, steps_per_epoch=len(batches) // 60, verbose=0)
    target = tmp_path_factory.mktemp("saved") / "shop"
    takes = ["item_index", *model.of_item.keys]
    return export(
        model, split, target, query_model=model.query_model, candidate_model=model.candidate_model,
        candidate_takes=takes, tell=lambda line: None,
    )  # fmt: skip


def test_the_schema_has_them(split, exported):
    kinds = {field.key: field.kind for field in split.schema}
    assert kinds == {
        "event.kind": "category", "event.rating": "number", "request.lamp": "category", "user.shoe": "number",
        "item.height_mm": "number", "item.hue": "vector",
    }  # fmt: skip
    assert {f"{field['owner']}.{field['name']}" for field in read_manifest(exported)["schema"]} == set(kinds)


HISTORY = ["i9", "i4"]  # of families 2 and 1


def wanted(lamp, small, family):
    return {f"i{i}" for i in range(32) if (i % 2, i // 2 % 2, i // 4 % 4) == (lamp, small, family)} - {*HISTORY}


@pytest.mark.long
@pytest.mark.parametrize("lamp", [0, 1])
@pytest.mark.parametrize("small", [0, 1])
@pytest.mark.parametrize("grabbed", [0, 1])
def test_each_of_them_changes_the_answer(exported, lamp, small, grabbed):
    kinds = [{"kind": "grab" if place == grabbed else "glance"} for place in range(2)]
    context = {"lamp": ("warm", "cold")[lamp], "shoe": 36 if small else 46}
    found = SavedModel.open(exported).recommend(
        histories=[HISTORY], k=1, exclude=HISTORY, context=[context], event_fields=[kinds]
    )
    assert set(found.item_id) <= wanted(lamp, small, (2, 1)[grabbed])


def test_the_embedded_server_reads_them(exported, serving):
    from tfllmrec.client.client import Client

    kinds = [{"kind": "grab"}, {"kind": "glance"}]
    with serving(exported.parent) as server:
        for address in (f"grpc://127.0.0.1:{server.grpc_port}", f"http://127.0.0.1:{server.rest_port}"):
            with Client(address, "shop", deadline_s=60) as client:
                for lamp, name in enumerate(("warm", "cold")):
                    context = {"lamp": name, "shoe": 46}
                    answer = client.recommend(HISTORY, k=1, exclude=HISTORY, context=context, event_fields=kinds)
                    assert answer[0].item_id in wanted(lamp, 0, 2)
