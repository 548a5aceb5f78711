"""A method that many graphs call is one function, and its answers are those of the method."""

import pytest
import tensorflow as tf

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
    loaded = tf.saved_model.load(str(tmp_path))
    assert loaded.first(tf.constant([1.0])).numpy().tolist() == [3]
    assert not hasattr(loaded, "times")
    assert module.traced == 1
