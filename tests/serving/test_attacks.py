"""``benchmarks/attacks.py`` on a SavedModel of a few lines; the limits themselves are tested where they live."""

import json
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
pytestmark = pytest.mark.tf

pytest.importorskip("grpc")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """``.../toy``, whose model says that it has three items and recommends none."""
    import tensorflow as tf

    strings, floats = tf.TensorSpec([None, None], tf.string), tf.TensorSpec([None, None], tf.float32)

    class Toy(tf.Module):
        @tf.function(input_signature=[strings, floats, strings, tf.TensorSpec([None], tf.int32)])
        def recommend(self, history, ratings, exclude, k):
            rows = tf.shape(history)[0]
            return {"item_ids": tf.fill([rows, 1], ""), "scores": tf.zeros([rows, 1]), "unknown": tf.zeros_like(k)}

        @tf.function(input_signature=[strings, floats, strings, strings])
        def score(self, history, ratings, event_fields, context):
            return {"scores": tf.zeros([tf.shape(history)[0], 3])}

    base = tmp_path_factory.mktemp("saved_models") / "toy"
    model = Toy()
    signatures = {"recommend": model.recommend, "serving_default": model.recommend, "score": model.score}
    tf.saved_model.save(model, str(base / "1"), {name: f.get_concrete_function() for name, f in signatures.items()})
    (base / "1" / "assets.extra").mkdir()
    (base / "1" / "assets.extra" / "tfllmrec.json").write_text(json.dumps({"items": 3}))
    return base


class Held:
    """A server whose memory is as told, the last number for ever."""

    def __init__(self, server, *megabytes):
        rest, rpc = f"127.0.0.1:{server.rest_port}", f"127.0.0.1:{server.grpc_port}"
        self.addresses = {"REST": f"http://{rest}", "gRPC": f"grpc://{rpc}"}
        self.told = list(megabytes)

    def megabytes(self):
        return self.told.pop(0) if len(self.told) > 1 else self.told[0]


@pytest.fixture(scope="module")
def attacked(toy, serving):
    """What becomes of an attack, by name, on a server of this memory."""
    import attacks

    with serving(toy) as server:

        def run(name, *megabytes, run=None, seconds=20):
            killed = []
            held = Held(server, *megabytes or (100,))
            attack = attacks.ATTACKS.get(name, run)
            made = attacks.attack(held, "toy", name, attack, seconds, 50, 100, lambda: killed.append(name))
            assert bool(killed) == made.killed
            return made

        yield run


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("score: 5,000,000 rows without elements", "INVALID_ARGUMENT: Input "),
        ("recommend: 100,000 rows", "INVALID_ARGUMENT: The request has 100000 rows; expected 10000 at most"),
        ("recommend: 5,000 rows", "OK, "),
        ("score: 120 KB over REST", "200, "),
        ("explain: 1,000,000 items", 'FAILED_PRECONDITION: Serving signature key "explain" not found'),
        ("JSON: 1e400", "400: JSON Parse error: Number too big to be stored in double: 1e400"),
        ("JSON: nested 1,000,000 deep", "400: JSON Parse error: too deeply nested"),
        ("headers: 10 MB", "1 x "),
    ],
)
def test_the_answer_to_an_attack_and_another_client_beside_it(attacked, name, answer):
    outcome = attacked(name)
    assert outcome.answer.startswith(answer) and outcome.passed
    assert outcome.row().startswith(f"| {name} | {answer}"[:60]) and outcome.row().endswith(" |")


def test_a_server_that_takes_too_much_memory_is_killed(attacked):
    waits = threading.Event()
    outcome = attacked("waits", 100, 120, 151, run=lambda target: str(waits.wait(20)))
    waits.set()
    assert (outcome.killed, outcome.passed, outcome.peak_mb) == (True, False, 51)
    assert outcome.row().startswith("| waits | **killed: its memory passed the bound** |")


def test_a_server_that_ended_is_said_to(attacked):
    waits = threading.Event()
    outcome = attacked("waits", 100, 0, run=lambda target: str(waits.wait(20)))
    waits.set()
    assert (outcome.ended, outcome.passed) == (True, False)
    assert outcome.row().startswith("| waits | **the server ended** |")
