"""Does a chat keep what was said, stop when told, and give the terminal nothing but text?"""

import io
import json

import pytest

from data_pipeline.chat import open_chat, open_trained_chat
from data_pipeline.tokenizer import ByteTokenizer
from lm import chat as chat_module
from lm.chat import Speaker, answer_file, converse, open_terminal
from lm.config import ConfigError, UserError
from lm.generate import generate, main, visible
from lm.sampling import Sampling

GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def make_speaker(make_model, tokenizer):
    """(style, most, **changes) -> a Speaker of a random model."""

    def make(style="llama", most=6, **changes):
        model, params = make_model(style, **{"layers": 1, "vocab_size": 261, "max_len": 1024, **changes})
        return Speaker(model, params, open_chat(tokenizer), False, GREEDY, most, 0)

    return make


def talk(speaker, *lines, system=""):
    """Returns what is written; a line that is an exception is raised."""
    left, written = [*lines, EOFError()], []

    def read(prompt):
        line = left.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    converse(speaker, system, read, written.append, "")
    return "".join(written)


@pytest.fixture
def asked(monkeypatch):
    """The prompts that the model got; and what it is to answer, instead of what its weights would."""
    prompts, answers = [], []

    def write(model, params, given, *, max_new_tokens, stop_ids, sampling, seed, on_token):
        prompts.append(bytes(i - 5 for i in given[0] if i >= 5).decode())
        assert stop_ids == (2,)
        text = answers.pop(0) if answers else "ok"
        if isinstance(text, BaseException):
            on_token(0, 5 + ord("p"))
            raise text
        ids = [5 + b for b in text.encode()]
        for token in ids:
            on_token(0, token)
        return [ids]

    monkeypatch.setattr(chat_module, "generate", write)
    return prompts, answers


def test_the_answer_is_what_the_model_writes_after_the_rendered_prompt(make_speaker, tokenizer):
    speaker = make_speaker(max_len=64)
    ids = speaker.chat.prompt([{"role": "user", "content": "Hi"}])
    (out,) = generate(speaker.model, speaker.params, [ids], max_new_tokens=6, sampling=GREEDY)
    assert talk(speaker, "Hi").startswith(visible(tokenizer.decode(out)))


def test_history_is_kept_and_forgotten_by_message(make_speaker, asked):
    prompts, answers = asked
    answers += ["fine!", "yes", "new"]
    written = talk(
        make_speaker(most=50), "How?", "Sure?", "/reset", "Again", "/system Be brief.", "More", system="Old."
    )
    turn = "<|im_start|>{}\n{}\n".format
    assert [p.replace("</s>", "") for p in prompts[:2]] == [
        turn("system", "Old.") + turn("user", "How?") + "<|im_start|>assistant\n",
        turn("system", "Old.")
        + turn("user", "How?")
        + turn("assistant", "fine!")
        + turn("user", "Sure?")
        + "<|im_start|>assistant\n",
    ]
    assert "How?" not in prompts[2]
    assert "Old." in prompts[2]
    assert prompts[3].startswith(turn("system", "Be brief."))
    assert "Again" in prompts[3]
    assert written.startswith("fine!\nyes\n[a new conversation]\n")


def test_commands(make_speaker, asked):
    prompts, _ = asked
    written = talk(make_speaker(), "/help", "/nothing \x1b", "", "   ", "/quit", "never read")
    assert "no command /nothing" in written
    assert "/reset" in written
    assert not prompts
    talk(make_speaker(), " /etc/hosts is what?")
    assert "/etc/hosts is what?" in prompts[0]


def test_ctrl_c_stops_an_answer_and_keeps_the_chat(make_speaker, asked):
    prompts, answers = asked
    answers += [KeyboardInterrupt(), "second"]
    written = talk(make_speaker(most=50), KeyboardInterrupt(), "first question", "next")
    assert "Ctrl-D" in written
    assert "p\n[stopped]\n" in written
    assert "second" in written
    assert "first question" in prompts[1]
    assert "assistant\np" in prompts[1]


def test_an_empty_answer_is_left_out_and_said(make_speaker, asked):
    prompts, answers = asked
    answers += [" ", "b"]
    assert "left out" in talk(make_speaker(most=50), "one", "two")
    assert "one" not in prompts[1]


def test_a_conversation_beyond_the_positions_is_refused_not_cut(make_speaker, asked):
    prompts, answers = asked
    answers += ["x" * 6, "y"]
    speaker = make_speaker("gpt2", most=6, max_len=64)
    written = talk(speaker, "Hi", "m" * 60, "/reset", "Hi")
    assert "no room for an answer in the 64 positions" in written
    assert "/reset" in written
    assert len(prompts) == 2
    assert prompts[0] == prompts[1]
    assert "cut at --max_new_tokens=6" in written
    answers += ["z" * 12]
    roomy = make_speaker("gpt2", most=100, max_len=64)
    assert "64 positions of this model end" not in talk(roomy, "Hi")
    answers[:] = ["z" * (64 - len(speaker.chat.prompt([{"role": "user", "content": "Hi"}])))]
    assert "64 positions of this model end" in talk(roomy, "Hi")
    answers[:] = ["z" * 80]
    assert "longer than the 64 tokens the model learned with" in talk(make_speaker("llama", most=100, max_len=64), "Hi")


def test_nothing_of_the_model_steers_the_terminal(make_speaker, asked):
    _, answers = asked
    answers += ["\x1b[2J\x1b]0;own\x07 a\tb\nc\r\x9b1m 好"]
    written = talk(make_speaker(most=99), "Hi")
    assert written.startswith("\\x1b[2J\\x1b]0;own\\x07 a\tb\nc\\x0d\\x9b1m 好\n")
    assert not [c for c in written if ord(c) < 32 and c not in "\n\t"]


def test_bytes_that_are_no_text_are_refused_with_their_message(make_speaker, asked, monkeypatch, capsys):
    prompts, _ = asked
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"bad \xff\ngood\n"), "utf-8"))
    converse(make_speaker(), "", *open_terminal())
    out = capsys.readouterr().out
    assert "lone surrogate" in out
    assert out.endswith("ok\n")
    assert len(prompts) == 1


def test_a_file_of_messages_gives_the_answer_and_no_more(make_speaker, asked, tmp_path, capsys):
    _, answers = asked
    path = tmp_path / "m.json"
    for value in ([{"role": "user", "content": "q"}], {"messages": [{"role": "user", "content": "q"}]}):
        answers[:] = ["answer"]
        path.write_text(json.dumps(value))
        answer_file(make_speaker(), str(path))
        assert capsys.readouterr() == ("answer\n", "cut at --max_new_tokens=6\n")
    for content, words in (
        ("{", "not valid JSON"),
        ("{}", "list of messages"),
        ("[]", "empty"),
        ('"x"', "list of messages"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=words):
            answer_file(make_speaker(), str(path))
    with pytest.raises(UserError, match="No such file"):
        answer_file(make_speaker(), str(tmp_path / "none"))


def test_a_model_without_template_says_what_to_do():
    with pytest.raises(UserError, match="Fine-tune it on rows with messages"):
        open_trained_chat(ByteTokenizer(), "runs/x")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "one of a prompt, a chat"),
        (["--chat", "--prompt=a"], "one of a prompt, a chat"),
        (["--chat", "--messages=f"], "one of a prompt, a chat"),
        (["--prompt=a", "--system=b"], "--system goes with --chat"),
        (["--chat", "--system=\udcff"], "not UTF-8"),
        (["--chat", "--max_new_tokens=0"], "max_new_tokens"),
        (["--chat", "--top_k=inf"], "top_k"),
        (["--chat", "--seed=nan"], "seed"),
    ],
)
def test_flags_that_do_not_go_together(flags, words):
    with pytest.raises(ConfigError, match=words):
        main(["--workdir=x", *flags])
