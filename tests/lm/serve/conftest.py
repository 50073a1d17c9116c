"""A small model in slots, an engine over it, and a server that is asked over sockets."""

import contextlib
import http.client
import json
import queue
import socket
import threading
import time
from types import SimpleNamespace

import pytest

from data_pipeline.chat import open_chat
from lm.sampling import Sampling
from lm.serve.answer import Answer
from lm.serve.app import App
from lm.serve.engine import Engine, Job
from lm.serve.slots import Slots

ROWS, PLACES = 16, 300


@pytest.fixture(scope="session")
def small(make_model):
    """(model, params) of 261 ids, whose greedy texts wander."""
    return make_model("llama", layers=1, vocab_size=261, max_len=512)


@pytest.fixture(scope="session")
def slots(small):
    return Slots(*small, ROWS, PLACES)


@pytest.fixture
def engine(slots):
    made = Engine(slots)
    made.thread.start()
    yield made
    made.close(0)
    made.thread.join(10)
    assert not made.thread.is_alive()


@pytest.fixture
def ask(tokenizer):
    """(engine, ids, most, ...) -> the job, submitted; `job.pieces` is a queue of what comes."""

    def make(engine, ids, most=12, sampling=None, seed=0, seconds=60.0, stop_ids=(), stops=()):
        pieces = queue.Queue()
        answer = Answer(tokenizer.stream(), stop_ids, stops)
        sampling = sampling or Sampling(temperature=0.0)
        job = Job(list(ids), most, sampling, seed, answer, time.monotonic() + seconds, pieces.put)
        job.pieces = pieces
        engine.submit(job)
        return job

    return make


@pytest.fixture(scope="session")
def finish():
    """job -> (text, how it ended: stop, length or the status of an error)."""

    def wait(job):
        text = ""
        while True:
            piece = job.pieces.get(timeout=60)
            text += piece.text
            if piece.finish or piece.error:
                return text, piece.finish or piece.error.status

    return wait


class Client:
    """Asks a server at a port."""

    def __init__(self, port):
        self.port = port

    def __call__(self, path, body=None, **headers):
        """Returns (status, what came: JSON, or the events of a stream)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            if isinstance(body, dict):
                body = json.dumps(body)
            headers = {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
            connection.request("GET" if body is None else "POST", path, body, headers)
            response = connection.getresponse()
            content, self.headers = response.read(), response.headers
            if response.headers["content-type"].startswith("text/event-stream"):
                events = [e.removeprefix("data: ") for e in content.decode().split("\n\n") if e]
                return response.status, [json.loads(e) if e != "[DONE]" else e for e in events]
            return response.status, json.loads(content)


@pytest.fixture(scope="session")
def serving(slots, tokenizer):
    """(**changes to the App) -> a context with `.app`, `.ask` and `.port`, for as long as it is open."""
    import uvicorn

    @contextlib.contextmanager
    def serve(**changes):
        engine = Engine(slots)
        app = App(engine, "tiny", tokenizer, open_chat(tokenizer), False, 261, lambda line: lines.append(line))
        lines = []
        for key, value in changes.items():
            setattr(app, key, value)
        server = uvicorn.Server(
            uvicorn.Config(app, http="h11", lifespan="on", log_config=None, timeout_graceful_shutdown=5)
        )
        listening = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        engine.thread.start()
        thread.start()
        port = listening.getsockname()[1]
        try:
            yield SimpleNamespace(app=app, ask=Client(port), port=port, log=lines)
        finally:
            engine.close(0)
            server.should_exit = True
            thread.join(20)
            engine.thread.join(20)
            assert not thread.is_alive()
            assert not engine.thread.is_alive()

    return serve
