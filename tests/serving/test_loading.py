import gc
import threading

import pytest

pytestmark = pytest.mark.tf


class Owner:
    """What a model is given up with."""


@pytest.mark.parametrize("building", ["a function", "a graph"])
def test_tables_go_with_the_model(tmp_path, building):
    import tensorflow as tf

    from tfllmrec.serving.loading import let_go_with, load

    class Model(tf.Module):
        def __init__(self):
            initializer = tf.lookup.KeyValueTensorInitializer(["a", "b"], [1, 2], tf.string, tf.int32)
            self.part = tf.Module()
            self.part.table = tf.lookup.StaticHashTable(initializer, 0)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def index(self, x):
            return {"index": self.part.table.lookup(x)}

    model = Model()
    tf.saved_model.save(model, str(tmp_path), {"index": model.index})
    loaded, owner = load(tmp_path, scann=False), Owner()
    let_go_with(owner, loaded, scann=False)
    assert loaded.signatures["index"](tf.constant(["b", "c"]))["index"].numpy().tolist() == [2, 0]
    table = loaded.part.table.resource_handle
    assert tf.raw_ops.LookupTableSizeV2(table_handle=table).numpy() == 2
    del owner
    # As it may be when another model is loaded or saved.
    graph = tf.__internal__.FuncGraph("being built") if building == "a function" else tf.Graph()
    with graph.as_default():
        gc.collect()
    for thread in threading.enumerate():
        if thread.name == "give up":
            thread.join(10)
    with pytest.raises(tf.errors.NotFoundError):
        tf.raw_ops.LookupTableSizeV2(table_handle=table)
