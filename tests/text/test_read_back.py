import numpy as np
import pytest

from tfllmrec.errors import ModelError

tf = pytest.importorskip("tensorflow")
hub = pytest.importorskip("tensorflow_hub")
pytestmark = pytest.mark.tf

from tfllmrec.text.bert import BertConfig, BertEncoder  # noqa: E402
from tfllmrec.text.bundled import save_encoder  # noqa: E402
from tfllmrec.text.preprocessor import INPUTS  # noqa: E402
from tfllmrec.text.read_back import read_back  # noqa: E402

IDS = np.array([[2, 4, 6, 3, 0], [2, 5, 7, 9, 3]], np.int32)
INPUT = dict(zip(INPUTS, map(tf.constant, (IDS, np.int32(IDS > 0), np.zeros_like(IDS))), strict=True))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("heads", [2, 8])
def test_the_copy_answers_as_the_encoder_does(tiny, tmp_path, heads, precision):
    sizes = BertConfig(**tiny.thin | {"num_attention_heads": heads})
    save_encoder(BertEncoder(sizes, tiny.state(), precision), tmp_path / "encoder")
    loaded = hub.load(str(tmp_path / "encoder"))
    copy = read_back(loaded, "take another")
    assert copy.config == sizes
    # In bfloat16 the graph rounds in other places where TensorFlow fuses operations, and on some processors less.
    near = 1e-5 if precision == "float32" else 0.15
    expected = loaded(INPUT)["sequence_output"]
    np.testing.assert_allclose(copy(INPUT)["sequence_output"], expected, atol=near)
    exact = read_back(loaded, "take another", "float32")(INPUT)["sequence_output"]
    np.testing.assert_allclose(exact, BertEncoder(sizes, tiny.state())(INPUT)["sequence_output"], atol=1e-5)
    own = BertEncoder(sizes, tiny.state(), precision)(INPUT)["sequence_output"]
    np.testing.assert_array_equal(copy(INPUT)["sequence_output"], own)
    copy.layers[0].attention.query.kernel.assign_add(tf.ones([16, 16]))
    np.testing.assert_array_equal(loaded(INPUT)["sequence_output"], expected)  # it is a copy


def test_the_number_of_heads_is_the_best_one_and_not_the_first_that_is_near(tiny, tmp_path):
    """Of an encoder whose attention changes little: all numbers of heads are within 5 % of each other."""
    state = tiny.state()
    for name, value in state.items():
        if name.endswith("attention.output.dense.weight"):
            state[name] = 0.01 * value
    for heads in (2, 8):
        sizes = BertConfig(**tiny.thin | {"num_attention_heads": heads})
        save_encoder(BertEncoder(sizes, state), tmp_path / f"{heads}")
        loaded = hub.load(str(tmp_path / f"{heads}"))
        others = [
            BertEncoder(BertConfig(**tiny.thin | {"num_attention_heads": n}), state)(INPUT)["sequence_output"]
            for n in (1, 2, 4, 8, 16)
            if n != heads
        ]
        expected = loaded(INPUT)["sequence_output"]
        differences = [float(tf.norm(other - expected) / tf.norm(expected)) for other in others]
        assert min(differences) > 1e-3 and max(differences) < 0.05, differences
        assert read_back(loaded, "take another").config == sizes


def test_another_encoder_is_refused(tiny):
    with pytest.raises(ModelError, match=r"tfllmrec's own format.*got one without 'embeddings.*: take another\."):
        read_back(tf.Module(), "take another")

    class Reversed(BertEncoder):
        """Weights of our names and shapes, but answers that our BERT would not give."""

        def __call__(self, inputs, training=False):
            return {name: value[..., ::-1] for name, value in super().__call__(inputs, training).items()}

    with pytest.raises(ModelError, match=r"do not answer as the encoder does .*: take another\."):
        read_back(Reversed(BertConfig(**tiny.thin), tiny.state()), "take another")
