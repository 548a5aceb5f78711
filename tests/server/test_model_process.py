import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from programs import killed_when_late

from tfllmrec.client.status import Code, RequestError
from tfllmrec.server import model_process
from tfllmrec.server.model_process import ModelProcess

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.tf

KILLED = "the process of shop/3 has ended by SIGKILL, perhaps for lack of memory"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that doubles, one that runs until it is ended, and one that fails."""
    import tensorflow as tf

    numbers = tf.TensorSpec([None], tf.float32, "x")

    class Model(tf.Module):
        @tf.function(input_signature=[numbers])
        def double(self, x):
            return {"y": 2 * x}

        @tf.function(input_signature=[numbers])
        def endless(self, x):
            return {"y": tf.while_loop(lambda x: tf.reduce_all(x < 2), lambda x: (x * 1,), (x,))[0]}

        @tf.function(input_signature=[numbers])
        def positive(self, x):
            with tf.control_dependencies([tf.debugging.assert_positive(x, message="expected more than nothing")]):
                return {"y": tf.identity(x)}

    model, folder = Model(), tmp_path_factory.mktemp("models") / "shop" / "3"
    signatures = {name: getattr(model, name) for name in ("double", "endless", "positive")}
    tf.saved_model.save(model, str(folder), signatures)
    return folder


@pytest.fixture
def process(folder):
    process = ModelProcess(folder, calls=2)
    yield process
    process.close()


def test_answers_as_the_model_does_in_this_process(folder, process):
    from tfllmrec.server.servable import Servable

    here = Servable(folder)
    assert process.process.pid != os.getpid()
    assert process.signatures == here.signatures
    assert process.metadata == here.metadata
    assert process.definitions == {name: one.SerializeToString() for name, one in here.definitions.items()}
    large = np.arange(2**20, dtype=np.float32)
    assert np.array_equal(process.calls["double"]({"x": large})["y"], 2 * large)
    for ask in (here.call, process.call):
        with pytest.raises(RequestError, match="expected more than nothing") as refused:
            ask("positive", {"x": np.zeros(1, np.float32)})
        assert refused.value.code is Code.INVALID_ARGUMENT
    assert process.alive


def test_a_call_does_not_wait_for_another_one(process):
    one = {"x": np.ones(1, np.float32)}
    ended = []

    def endless():
        try:
            process.call("endless", one)
        except RequestError as error:
            ended.append(error)

    thread = threading.Thread(target=endless, daemon=True)
    thread.start()
    while process._idle.qsize() == 2:  # until the call has a pipe
        assert thread.is_alive()
    beside = ThreadPoolExecutor(1).submit(process.call, "double", one)
    assert beside.result(30)["y"].tolist() == [2]
    assert thread.is_alive()
    process.close()
    thread.join(30)
    assert not process.alive
    (error,) = ended
    assert (error.code, error.message) == (Code.UNAVAILABLE, KILLED)


def test_a_process_that_has_ended_stays_so_while_its_exit_code_is_read(process, monkeypatch):
    process.process.kill()
    assert process._how().startswith(" by SIGKILL")
    monkeypatch.setattr(model_process, "wait", lambda objects, timeout: [])  # as long as the other end is open
    assert not process.alive


def test_a_process_that_is_killed_is_named_and_stays_ended(process):
    os.kill(process.process.pid, signal.SIGKILL)
    for _ in range(3):
        with pytest.raises(RequestError) as refused:
            process.call("double", {"x": np.ones(1, np.float32)})
        assert refused.value.code is Code.UNAVAILABLE
        assert refused.value.message == KILLED
    assert not process.alive


def test_a_folder_that_cannot_be_loaded_leaves_no_process(tmp_path):
    before = set(multiprocessing.active_children())
    with pytest.raises(RequestError, match=r"saved_model.pb is no SavedModel") as refused:
        ModelProcess(tmp_path, calls=1)
    assert refused.value.code is Code.FAILED_PRECONDITION
    assert set(multiprocessing.active_children()) <= before


STARTS = """
import sys, threading, time
from pathlib import Path
from tfllmrec.server.model_process import ModelProcess

if __name__ == "__main__":
    process = ModelProcess(Path(sys.argv[1]), calls=1)
    import numpy as np
    threading.Thread(target=process.call, args=("endless", {"x": np.ones(1, np.float32)}), daemon=True).start()
    while process._idle.qsize():
        time.sleep(0.01)
    print(process.process.pid, "tensorflow" in sys.modules, flush=True)
    time.sleep(1000)
"""


@pytest.mark.slow
def test_the_process_ends_with_the_one_that_started_it(folder, tmp_path):
    """Even in the middle of a call, where that one is killed. Nothing is imported from the working directory."""
    (tmp_path / "here").mkdir()
    (tmp_path / "starts.py").write_text(STARTS)
    for name in ("numpy", "random", "decimal", "tensorflow"):
        (tmp_path / "here" / f"{name}.py").write_text("raise SystemExit('imported from the working directory')")
    command = [sys.executable, str(tmp_path / "starts.py"), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path / "here", env=environment) as starts:
        with killed_when_late(starts):
            pid, tensorflow = starts.stdout.readline().split()
        starts.kill()
    assert tensorflow == "False"  # in the process that asks
    with suppress(ProcessLookupError):  # it has ended
        watched = os.pidfd_open(int(pid))
        assert select.select([watched], [], [], 30)[0], "the process goes on"
        os.close(watched)


@pytest.mark.slow
def test_the_end_of_the_program_does_not_wait_for_a_call(folder, tmp_path):
    (tmp_path / "starts.py").write_text(STARTS.replace("    time.sleep(1000)\n", ""))
    command = [sys.executable, str(tmp_path / "starts.py"), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, env=environment, timeout=100, capture_output=True).returncode == 0


def test_memory_is_given_back_once_a_process_has_gained_much(monkeypatch):
    from tfllmrec.server import model_process

    resident, given_back = [100 << 20], []
    monkeypatch.setattr(model_process, "resident_bytes", lambda: resident[0])
    monkeypatch.setattr(model_process, "give_back_memory", lambda: given_back.append(resident[0]))
    memory = model_process._Memory()
    for megabytes in (100, 163, 164, 165, 227, 228):
        resident[0] = megabytes << 20
        memory.give_back()
    assert given_back == [164 << 20, 228 << 20]
