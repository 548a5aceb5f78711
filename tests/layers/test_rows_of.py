import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.layers.rows_of import rows_of

pytestmark = pytest.mark.tf
TABLE = np.arange(12, dtype=np.float32).reshape(4, 3)


def test_rows_of_a_variable_and_of_a_tensor():
    at = tf.constant([[3, 0]])
    for table in (tf.Variable(TABLE), tf.constant(TABLE)):
        assert rows_of(table, at).numpy().tolist() == [[[9, 10, 11], [0, 1, 2]]]


def test_a_variable_is_as_it_was():
    variable = tf.Variable(TABLE)
    read = tf.function(lambda at: rows_of(variable, at)).get_concrete_function(tf.TensorSpec([None], tf.int32))
    # This operation switches a variable, for as long as it lives, to being copied by whoever takes its value.
    assert "ResourceGather" not in {operation.type for operation in read.graph.get_operations()}
