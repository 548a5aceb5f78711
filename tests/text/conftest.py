"""A tiny random BERT, and the real bundled one where it can be had."""

import string
from types import SimpleNamespace

import numpy as np
import pytest

from tfllmrec import assets
from tfllmrec.errors import DataError

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


def random_state(seed: int = 7) -> dict[str, np.ndarray]:
    """Weights under the names that Hugging Face gives them; biases and norms are not left at 0 and 1."""
    rng = np.random.default_rng(seed)
    width, inner = SIZES["hidden_size"], SIZES["intermediate_size"]
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
    """The tiny BERT's ``sizes`` (as config.json has them), ``vocabulary``, and ``state(seed)``."""
    return SimpleNamespace(sizes=SIZES, vocabulary=VOCABULARY, state=random_state)


@pytest.fixture(scope="session")
def tiny_hub(tmp_path_factory):
    """(preprocessor, encoder): the tiny BERT in Hub format."""
    from tfllmrec.text.bert import BertConfig, BertEncoder
    from tfllmrec.text.bundled import save_encoder, save_preprocessor

    folder = tmp_path_factory.mktemp("hub")
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    save_preprocessor(vocabulary, folder / "preprocessor", 12)
    save_encoder(BertEncoder(BertConfig(**SIZES), random_state()), folder / "encoder")
    return folder / "preprocessor", folder / "encoder"


@pytest.fixture(scope="session")
def minilm_weights():
    """The folder of the real weights; skips where no source gives them."""
    try:
        return assets.weights("minilm")
    except DataError as error:
        pytest.skip(f"the MiniLM weights cannot be had: {error}")
