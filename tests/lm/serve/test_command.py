"""From rows of messages to OpenAI's own client: does the whole way work as the pages say?"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ANSWERS = {"What does Ann like?": "Ann likes tea.", "Count to 3.": "1 2 3.", "你好！": "你好，很高兴认识你。"}
pytestmark = pytest.mark.slow


def environment():
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}


def command(*words, given=None):
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment(), input=given, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in ANSWERS.items()
    ]
    (folder / "chat.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in 200 * rows))
    settings = (
        "--config.data.seq_len=128",
        "--config.model.max_len=384",
        "--config.train.steps=200",
        "--config.train.eval_every=0",
        "--config.data.clean.exact_dedup=False",
        "--config.data.split.validation=0",
        "--config.data.split.test=0",
    )
    command(
        "launch.py", "--config=configs/smoke.py", f"--workdir={folder}/run", f"--config.data.path={folder}/chat.jsonl",
        *settings,
    )  # fmt: skip
    return folder / "run"


@contextlib.contextmanager
def served(workdir, *flags):
    """Runs the server as a user does; gives (its address, the process)."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lm.serve", f"--workdir={workdir}", "--port=0", *flags],
        cwd=ROOT, env={**environment(), "LM_SERVE_TOKEN": "s3cret"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"at (http://\S+/v1);", line):
                threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True).start()
                yield found[1], process, lines
                return
        pytest.fail("".join(lines))
    finally:
        process.kill()
        process.wait()


def test_chat_and_messages_in_the_terminal(workdir, tmp_path):
    chat = command(
        "-m", "lm.generate", f"--workdir={workdir}", "--chat", "--temperature=0", given="Count to 3.\n/reset\n你好！\n"
    )
    assert chat == "1 2 3.\n[a new conversation]\n你好，很高兴认识你。\n"
    (tmp_path / "m.json").write_text(json.dumps([{"role": "user", "content": "What does Ann like?"}]))
    assert (
        command("-m", "lm.generate", f"--workdir={workdir}", f"--messages={tmp_path}/m.json", "--temperature=0")
        == "Ann likes tea.\n"
    )


def test_openais_client_is_answered_and_ctrl_c_stops(workdir):
    openai = pytest.importorskip("openai")
    with served(workdir, "--name=ann", "--grace_seconds=5") as (url, process, lines):
        client = openai.OpenAI(base_url=url, api_key="s3cret", max_retries=0)
        assert [model.id for model in client.models.list()] == ["ann"]

        def ask(question, **more):
            return client.chat.completions.create(
                model="ann", messages=[{"role": "user", "content": question}], temperature=0, **more
            )

        for question, answer in ANSWERS.items():
            whole = ask(question)
            assert whole.choices[0].message.content == answer
            assert whole.choices[0].finish_reason == "stop"
            assert whole.usage.completion_tokens == len(answer.encode()) + 1
            chunks = list(ask(question, stream=True, stream_options={"include_usage": True}))
            assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == answer
            assert chunks[-1].usage == whole.usage
        plain = client.completions.create(model="ann", prompt="What does", max_tokens=4, temperature=0)
        assert plain.choices[0].finish_reason == "length"
        with pytest.raises(openai.BadRequestError, match="maximum context length"):
            ask("x" * 400)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="other", messages=[{"role": "user", "content": "x"}])
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url, api_key="wrong", max_retries=0).models.list()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        time.sleep(0.2)
        assert lines[-1] == "stopped\n"
        assert not [line for line in lines if "Traceback" in line or "s3cret" in line or "Ann" in line]
