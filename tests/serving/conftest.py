"""The embedded server, for those who ask it over real sockets."""

import asyncio
import contextlib
import threading

import pytest


@contextlib.contextmanager
def running(path, **given):
    """A server in a thread."""
    from tfllmrec.server.engine import Limits
    from tfllmrec.server.server import Server, Settings

    limits = Limits(**given.pop("limits", {}))
    server = Server(
        Settings(path, rest_port=0, grpc_port=0, poll_s=0.05, settled_s=0.2, grace_s=5, limits=limits, **given)
    )
    started, stop = threading.Event(), asyncio.Event()
    loops, problems = [], []

    async def main():
        loops.append(asyncio.get_running_loop())
        try:
            await server.start()
        except BaseException as error:
            problems.append(error)
            raise
        finally:
            started.set()
        await stop.wait()
        await server.stop()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert started.wait(120)
    if problems:
        raise problems[0]
    try:
        yield server
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def serving():
    """``with serving(PATH, SETTING=...) as server``: the embedded server in a thread, on ports that are free."""
    return running
