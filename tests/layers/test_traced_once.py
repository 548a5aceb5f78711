"""A method that many graphs call is one function, and its answers are those of the method."""

import pytest
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel as SavedModelProto

from tfllmrec.layers.traced_once import traced_once

pytestmark = pytest.mark.tf


class Scaled(tf.Module):
    def __init__(self):
        super().__init__()
        self.factor = tf.Variable(2.0)
        self.traced = 0

    @traced_once
    def times(self, values, shift=None):
        """Documented."""
        self.traced += 1
        return values * self.factor if shift is None else values * self.factor + shift

    @tf.function(input_signature=[tf.TensorSpec([None])], autograph=False)
    def first(self, values):
        return self.times(values) + 1

    @tf.function(input_signature=[tf.TensorSpec([None])], autograph=False)
    def second(self, values):
        return self.times(values) - 1


def test_graphs_share_it_and_variables_stay_variables():
    module, values = Scaled(), tf.constant([1.0, 2.0])
    assert module.first(values).numpy().tolist() == [3, 5]
    module.factor.assign(10)
    assert module.second(values).numpy().tolist() == [9, 19]
    assert module.times(values).numpy().tolist() == [10, 20]
    assert module.traced == 1
    assert Scaled().times(values, 1.0).numpy().tolist() == [3, 5]  # an object's function is its own
    assert Scaled.times.__doc__ == "Documented."


def test_other_widths_are_traced_no_more_than_twice():
    module = Scaled()
    for size in range(1, 6):
        module.times(tf.ones(size))
    assert module.traced == 2


def test_a_saved_module_has_it_once_and_under_no_name_of_its_own(tmp_path):
    module = Scaled()
    tf.saved_model.save(module, str(tmp_path), signatures={"first": module.first, "second": module.second})
    saved = SavedModelProto.FromString((tmp_path / "saved_model.pb").read_bytes())
    functions = [function.signature.name for function in saved.meta_graphs[0].graph_def.library.function]
    assert sum("_times_" in name for name in functions) == 1
    loaded = tf.saved_model.load(str(tmp_path))
    assert loaded.first(tf.constant([1.0])).numpy().tolist() == [3]
    assert not hasattr(loaded, "times")


def test_several_objects_are_no_reason_to_warn(caplog, monkeypatch):
    monkeypatch.setattr(tf.get_logger(), "propagate", True)
    for _ in range(12):
        Scaled().times(tf.ones(3))
    assert "retracing" not in caplog.text
