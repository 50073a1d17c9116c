"""Does the server speak as OpenAI's does, over real sockets, and survive clients that do not?"""

import json
import socket
import struct
import threading
import time

import pytest

from lm.serve.__main__ import bind, choose_context, read_flags, read_token
from lm.serve.wire import read_ask

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def server(serving):
    with serving(name="tiny") as made:
        yield made


def chat(**keys):
    return {"model": "tiny", "messages": HELLO, "max_tokens": 8, "temperature": 0, **keys}


def plain(**keys):
    return {"model": "tiny", "prompt": "Hello", "max_tokens": 8, "temperature": 0, **keys}


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_stream_says_what_the_whole_answer_says(server):
    for path, make, kind in ((CHAT, chat, "chat.completion"), (PLAIN, plain, "text_completion")):
        status, whole = server.ask(path, make())
        assert (status, whole["object"], whole["model"]) == (200, kind, "tiny")
        choice = whole["choices"][0]
        text = choice["message"]["content"] if path == CHAT else choice["text"]
        assert choice["finish_reason"] == "length"
        prompt = len(server.app.chat.prompt(HELLO)) if path == CHAT else 5
        assert whole["usage"] == {"prompt_tokens": prompt, "completion_tokens": 8, "total_tokens": prompt + 8}
        status, events = server.ask(path, make(stream=True, stream_options={"include_usage": True}))
        *chunks, last, done = events
        assert (status, done, last["choices"], last["usage"]) == (200, "[DONE]", [], whole["usage"])
        assert all(chunk["usage"] is None and chunk["id"] == last["id"] for chunk in chunks)
        choices = [chunk["choices"][0] for chunk in chunks]
        parts = [c["delta"].get("content", "") if path == CHAT else c["text"] for c in choices]
        assert "".join(parts) == text
        assert [c["finish_reason"] for c in choices] == [None] * (len(chunks) - 1) + ["length"]
        assert path == PLAIN or choices[0]["delta"]["role"] == "assistant"
        assert "usage" not in server.ask(path, make(stream=True))[1][0]


def test_answers_end_at_stop_strings_and_follow_the_seed(server):
    text = server.ask(PLAIN, plain(max_tokens=40))[1]["choices"][0]["text"]
    word = text[10:13]
    choice = server.ask(PLAIN, plain(max_tokens=40, stop=["\n\n\n\n", word]))[1]["choices"][0]
    assert choice["text"] == text[: text.index(word)]
    assert choice["finish_reason"] == "stop"
    drawn = [server.ask(PLAIN, plain(temperature=1, seed=s))[1]["choices"][0]["text"] for s in (1, 1, 2, -1)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3
    greedy = server.ask(PLAIN, plain())[1]["choices"]
    for same in (
        {"temperature": 1, "top_p": 0},
        {"temperature": 1, "top_k": 1},
        {"prompt": ["Hello"]},
        {"prompt": [5 + c for c in b"Hello"]},
    ):
        assert server.ask(PLAIN, plain(**same))[1]["choices"] == greedy


def test_models_and_health(server):
    status, models = server.ask("/v1/models")
    assert (status, [m["id"] for m in models["data"]]) == (200, ["tiny"])
    assert server.ask("/v1/models/tiny")[1] == models["data"][0]
    assert server.ask("/health") == (200, {"status": "ok", "running": 0, "open": 0})


WRONG = [
    ("{", 400, None, "not valid JSON"),
    ("[" * 100_000, 400, None, "not valid JSON"),
    ("[]", 400, None, "object"),
    (b"\xff\xfe", 400, None, "not valid JSON"),
    (chat(model=None), 400, "model", "model must be given"),
    (chat(model="gpt-4"), 404, "model", "'tiny'"),
    (chat(messages=None), 400, "messages", "must be given"),
    (chat(messages="hi"), 400, "messages", "list of messages"),
    (chat(messages=[]), 400, "messages", "empty"),
    (chat(messages=[{"role": "king", "content": "x"}]), 400, "messages", "role 'king'"),
    (chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), 400, "messages", "only text parts"),
    (chat(messages=[{"role": "user", "content": "\ud800"}]), 400, "messages", "surrogate"),
    (chat(messages=[{"role": "user", "content": "x" * 400}]), 400, "messages", "maximum context length is 300"),
    (chat(max_tokens=299), 400, "messages", "maximum context length is 300"),
    (chat(max_tokens=0), 400, "max_tokens", "whole number"),
    (chat(max_tokens=True), 400, "max_tokens", "whole number"),
    (chat(max_tokens=1.5), 400, "max_tokens", "whole number"),
    (chat(max_completion_tokens=5), 400, "max_tokens", "one of"),
    (chat(temperature="hot"), 400, "temperature", "number"),
    (chat(temperature=3), 400, "temperature", "from 0 to 2"),
    ('{"model": "tiny", "messages": [], "temperature": NaN}', 400, "temperature", "number"),
    (chat(top_p=-0.1), 400, "top_p", "number"),
    (chat(seed="x"), 400, "seed", "number"),
    (chat(stop=[""]), 400, "stop", "characters"),
    (chat(stop=["a"] * 5), 400, "stop", "up to 4"),
    (chat(stream="yes"), 400, "stream", "true or false"),
    (chat(stream_options={"include_usage": True}), 400, "stream_options", "goes with stream"),
    (chat(n=2), 400, "n", "not supported"),
    (chat(logprobs=True), 400, "logprobs", "not supported"),
    (chat(tools=[{"type": "function"}]), 400, "tools", "not supported"),
    (chat(response_format={"type": "json_object"}), 400, "response_format", "not supported"),
    (chat(logit_bias={"5": 1}), 400, "logit_bias", "not supported"),
    (chat(frequency_penalty=0.5), 400, "frequency_penalty", "not supported"),
    (chat(temprature=0.5), 400, "temprature", "unknown parameter"),
    (chat(prompt="x"), 400, "prompt", "unknown parameter"),
]
WRONG_PROMPTS = [
    ("", "empty"), (["a", "b"], "one text"), ([], "one text|empty"), ([5, "a"], "one text"), ([5, 261], "vocabulary of 261"),
    ([-1], "vocabulary"), ([True], "one text"), ({"a": 1}, "one text"), ("\ud800", "surrogate"), ("x" * 300, "maximum context"),
]  # fmt: skip


def test_what_is_wrong_is_refused_by_name_and_the_next_is_served(server):
    for body, status, param, word in WRONG:
        found, answer = server.ask(CHAT, body)
        assert (found, answer["error"]["param"]) == (status, param), (body, answer)
        assert word in answer["error"]["message"], (body, answer)
        assert set(answer["error"]) == {"message", "type", "param", "code"}
    for prompt, word in WRONG_PROMPTS:
        found, answer = server.ask(PLAIN, plain(prompt=prompt))
        assert (found, answer["error"]["param"]) == (400, "prompt"), (prompt, answer)
        assert any(part in answer["error"]["message"] for part in word.split("|")), (prompt, answer)
    assert server.ask(CHAT, chat(max_tokens=299))[1]["error"]["code"] == "context_length_exceeded"
    assert server.ask(CHAT, chat())[0] == 200


def test_what_asks_for_nothing_is_passed_over(server):
    neutral = {"n": 1, "logprobs": False, "tools": [], "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": None,
               "response_format": {"type": "text"}, "user": "u", "metadata": {"a": "b"}, "store": True, "top_logprobs": None}  # fmt: skip
    assert server.ask(CHAT, chat(**neutral))[1]["choices"] == server.ask(CHAT, chat())[1]["choices"]


def test_paths_methods_and_kinds(server):
    assert server.ask("/v1/nothing")[0] == 404
    assert server.ask("/v1/models/other")[1]["error"]["code"] == "model_not_found"
    assert server.ask(CHAT)[0] == 405
    assert server.ask("/v1/models", "{}")[0] == 405
    assert server.ask(CHAT, chat(), content_type="text/plain")[0] == 415
    assert server.ask(CHAT, chat(), content_type="application/json; charset=utf-8")[0] == 200
    assert server.ask("/v1/models", host="evil.example")[1]["error"]["code"] == "wrong_host"
    for host in ("localhost:8000", "127.0.0.1", "[::1]:80"):
        assert server.ask("/v1/models", host=host)[0] == 200


def test_bodies_that_are_too_large_are_not_read(serving):
    with serving(name="tiny", max_body_bytes=2000) as server:
        assert server.ask(CHAT, "x" * 2001)[0] == 413
        with socket.create_connection(("127.0.0.1", server.port)) as raw:  # chunked: no length in front
            raw.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode())
            raw.sendall(
                b"Transfer-Encoding: chunked\r\n\r\n"
                + b"400\r\n"
                + b" " * 1024
                + b"\r\n"
                + b"400\r\n"
                + b" " * 1024
                + b"\r\n"
            )
            assert b" 413 " in raw.recv(100)
        assert server.ask(CHAT, chat())[0] == 200


def test_a_token_is_asked_for_and_never_logged(serving):
    with serving(name="tiny", token="s3cret") as server:
        for given in ({}, {"authorization": "Bearer no"}, {"authorization": "s3cret"}, {"authorization": "Bearer s3cret2"},
                      {"authorization": "Bearer s3cr\xe9t"}):  # fmt: skip
            status, answer = server.ask(CHAT, chat(), **given)
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        assert server.ask(CHAT, chat(), authorization="Bearer s3cret")[0] == 200
        assert server.ask("/v1/models", authorization="bearer s3cret", host="any.example")[0] == 200
        assert server.ask("/health")[0] == 200
        assert not [line for line in server.log if "s3cret" in line or "Hello" in line]


def raw_stream(port, most=280):
    """A client that has begun to read a long answer."""
    body = json.dumps(plain(max_tokens=most, stream=True))
    raw = socket.create_connection(("127.0.0.1", port))
    raw.sendall(f"POST {PLAIN} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode())
    raw.sendall(f"Content-Length: {len(body)}\r\n\r\n{body}".encode())
    assert b" 200 " in raw.recv(100)
    return raw


def test_who_hangs_up_frees_the_slot(server):
    for reset in (False, True):
        clients = [raw_stream(server.port) for _ in range(3)]
        for raw in clients:
            if reset:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raw.close()
        until(lambda: server.app.engine.busy() == 0 and server.app.open == 0)
    assert any("gone" in line and "+280 " not in line for line in server.log)
    assert server.ask(CHAT, chat())[0] == 200


def test_half_a_request_and_garbage_disturb_nobody(server):
    for sent in (
        b"\x16\x03\x01\x02\x00garbage",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{",
    ):
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(sent)
    until(lambda: server.app.open == 0)
    assert server.ask(CHAT, chat())[0] == 200


def test_the_queue_is_bounded_and_the_time_too(serving):
    with serving(name="tiny", max_requests=1) as server:
        raw = raw_stream(server.port)
        status, answer = server.ask(CHAT, chat())
        assert (status, answer["error"]["code"], server.ask.headers["retry-after"]) == (429, "queue_full", "1")
        raw.close()
        until(lambda: server.app.open == 0)
        server.app.max_seconds = 0.05
        status, answer = server.ask(PLAIN, plain(max_tokens=290))
        if status == 200:
            assert answer["choices"][0]["finish_reason"] == "length"
            assert answer["usage"]["completion_tokens"] < 290
        else:
            assert (status, answer["error"]["code"]) == (504, "timeout")


def test_stopping_ends_streams_with_a_message(serving):
    with serving(name="tiny") as server:
        found = {}

        def stream():
            found["stream"] = server.ask(PLAIN, plain(max_tokens=290, stream=True))

        thread = threading.Thread(target=stream)
        thread.start()
        until(lambda: server.app.engine.busy())
        server.app.engine.close(0)
        thread.join(20)
        status, events = found["stream"]
        if status == 200:
            assert events[-1]["error"]["code"] == "shutting_down"
        else:  # it had not begun
            assert status == 503
        assert server.ask(CHAT, chat())[1]["error"]["code"] == "shutting_down"
        assert server.ask("/health")[0] == 503


def test_a_model_without_template_completes_only(serving, tokenizer):
    with serving(name="tiny", chat=None) as server:
        assert "no chat template" in server.ask(CHAT, chat())[1]["error"]["message"]
        assert server.ask(PLAIN, plain())[0] == 200


def test_the_seed_is_drawn_where_none_is_given():
    assert len({read_ask(json.dumps(chat()).encode(), True).seed for _ in range(3)}) == 3


def test_flags_and_token(tmp_path, monkeypatch, capsys):
    from lm.config import ConfigError, UserError

    assert read_flags(["--workdir=x", "--port=0"])[1]["port"] == 0
    for bad in (
        ["--port=8000"],
        ["--workdir=x", "--max_batch=0"],
        ["--workdir=x", "--port=-1"],
        ["--workdir=x", "--token=x"],
    ):
        with pytest.raises(ConfigError):
            read_flags(bad)
    monkeypatch.delenv("LM_SERVE_TOKEN", raising=False)
    assert read_token("") == ""
    monkeypatch.setenv("LM_SERVE_TOKEN", "fromenv")
    assert read_token("") == "fromenv"
    (tmp_path / "t").write_text("fromfile\n")
    assert read_token(str(tmp_path / "t")) == "fromfile"
    (tmp_path / "t").write_text("\n")
    for path in (tmp_path / "t", tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match="--token_file"):
            read_token(str(path))
    taken = bind("127.0.0.1", 0)
    taken.listen()
    with pytest.raises(UserError, match="Choose another port"):
        bind("127.0.0.1", taken.getsockname()[1])
    taken.close()
    assert [choose_context(0, 99, True), choose_context(0, 9999, False), choose_context(50, 99, True)] == [99, 4096, 50]
    with pytest.raises(ConfigError, match="99 positions"):
        choose_context(100, 99, True)
    assert choose_context(100, 99, False) == 100
    assert "warning" in capsys.readouterr().err
