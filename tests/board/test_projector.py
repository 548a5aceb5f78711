import numpy as np
import pandas as pd
import pytest
from google.protobuf import text_format
from tensorboard.plugins.projector import ProjectorConfig

from tfllmrec.board.projector import WIDTH, sampled, write_projector

pytestmark = pytest.mark.tf


def test_strata_have_even_shares_of_the_sample():
    head = np.arange(1000) < 600
    cold = np.arange(1000) >= 990
    kept = sampled({"head": head, "tail": ~head, "cold": cold}, most=110)
    assert [int(part[kept].sum()) for part in (head, ~head & ~cold, cold)] == [50, 50, 10]
    assert np.array_equal(kept, np.unique(kept))
    assert np.array_equal(sampled({"head": head, "tail": ~head}), np.arange(1000))


def test_tensorboard_finds_vectors_of_each_kind_and_what_is_known_of_each_item(tmp_path):
    rng = np.random.default_rng(0)
    vectors = {"item vectors": rng.normal(size=(3, 2)), "text vectors": rng.normal(size=(3, WIDTH + 9))}
    beside = pd.DataFrame({"title": ["one\ttab", "two\nlines", "x" * 500], "events": [3, 2, 1]})
    write_projector(tmp_path, vectors, beside)
    config = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig())
    assert [each.tensor_name for each in config.embeddings] == ["item vectors", "text vectors"]
    for each in config.embeddings:
        stored = np.fromfile(tmp_path / each.tensor_path, "<f4").reshape(list(each.tensor_shape))
        assert stored.shape == (3, min(vectors[each.tensor_name].shape[1], WIDTH))
        lines = (tmp_path / each.metadata_path).read_text().splitlines()
        assert lines[:3] == ["title\tevents", r"one\ttab" + "\t3", r"two\nlines" + "\t2"] and len(lines) == 4
        # Distances are kept: three points lie in a plane.
        centred = vectors[each.tensor_name] - vectors[each.tensor_name].mean(axis=0)
        assert np.allclose(
            (stored - stored.mean(axis=0)) @ (stored - stored.mean(axis=0)).T, centred @ centred.T, atol=1e-3
        )
    assert any(tmp_path.glob("*tfevents*"))


def test_a_vector_for_each_item(tmp_path):
    with pytest.raises(ValueError, match="a vector for each of 2 items, found 1"):
        write_projector(tmp_path, {"item vectors": np.ones((1, 2))}, pd.DataFrame({"title": ["a", "b"]}))
