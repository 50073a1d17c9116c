"""Are rows of every chat form read by a path alone, is each bad one a line with its place, and do batches learn the answers?"""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.chat import open_chat
from data_pipeline.config import ChatConfig, CleanConfig, SourceConfig, SplitConfig, TokenizerConfig
from data_pipeline.conversation import Conversation
from data_pipeline.records import Bad
from data_pipeline.schema import UserError
from data_pipeline.show import format_lengths, format_row
from data_pipeline.sources import open_sources
from data_pipeline.tokenizer import load_tokenizer
from tests.data_pipeline.conftest import make_text
from tests.data_pipeline.small_tokenizers import save_folder

ALL = SplitConfig(validation=0.0, test=0.0)
USER, ANSWER = {"role": "user", "content": "问 q"}, {"role": "assistant", "content": "答 a"}


def write(path, rows):
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows) + "\n", "utf-8"
    )
    return path


def talk(rng, turns):
    roles = ("user", "assistant")
    return {
        "messages": [
            {"role": roles[i % 2], "content": f"{i} {make_text(rng, rng.randint(1, 9))}"} for i in range(turns)
        ]
    }


@pytest.fixture
def talks(tmp_path):
    rng = random.Random(2)
    return write(tmp_path / "talks.jsonl", [talk(rng, 2 * rng.randint(1, 3)) for _ in range(60)])


def read(config, path, **changes):
    (source,) = open_sources(config("", sources={"s": SourceConfig(path=str(path), **changes)}), lambda text: None)
    return [found.record for found in source.read()]


FORMS = {
    "messages": {"messages": [USER, ANSWER]},
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "问"}, {"type": "text", "text": " q"}]},
            ANSWER,
        ]
    },
    "sharegpt": {"conversations": [{"from": "human", "value": "问 q"}, {"from": "gpt", "value": "答 a"}]},
    "sharegpt with roles": {"conversations": [USER, ANSWER]},
    "prompt as messages": {"prompt": [USER], "completion": [ANSWER]},
    "prompt as text": {"prompt": "问 q", "completion": [ANSWER]},
    "alpaca": {"instruction": "问 q", "input": "", "output": "答 a", "text": "Below is ..."},
    "alpaca without input": {"instruction": "问 q", "output": "答 a"},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_path_is_enough_for_every_form(config, tmp_path, form):
    (record,) = read(config, write(tmp_path / "a.jsonl", [FORMS[form]]))
    assert isinstance(record.chat, Conversation)
    assert [(m["role"], m["content"]) for m in record.chat.messages] == [("user", "问 q"), ("assistant", "答 a")]
    assert record.chat.learned == (False, True)


def test_what_else_a_form_holds_comes_along(config, tmp_path):
    tools = [{"type": "function", "function": {"name": "f"}}]
    call = [{"function": {"name": "f", "arguments": "{}"}}]
    rows = {
        "a": {"conversations": [
            {"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "function_call", "value": "f()"},
            {"from": "observation", "value": "1"}, {"from": "gpt", "value": "one", "train": False}, {"from": "human", "value": "r"},
            {"from": "gpt", "value": "two"},
        ], "tools": json.dumps(tools)},
        "b": {"instruction": "add", "input": "1 2", "output": "3", "system": "s", "history": [["hi", "ho"]]},
        "c": {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": call}, {"role": "tool", "content": "1"}, ANSWER], "tools": tools},
        "d": {"prompt": [{"role": "system", "content": "s"}, USER, ANSWER, USER], "completion": [ANSWER]},
    }  # fmt: skip
    chats = {}
    for name, row in rows.items():
        (record,) = read(config, write(tmp_path / f"{name}.jsonl", [row]))
        chats[name] = record.chat
    assert [m["role"] for m in chats["a"].messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
        "assistant",
    ]
    assert chats["a"].learned == (False, False, True, False, False, False, True)
    assert chats["a"].tools == chats["c"].tools == tuple(tools)
    assert [m["content"] for m in chats["b"].messages] == ["s", "hi", "ho", "add\n\n1 2", "3"]
    assert chats["b"].learned == (False, False, True, False, True)
    assert chats["c"].messages[1] == {"role": "assistant", "tool_calls": call}
    assert chats["d"].learned == (False, False, False, False, True)  # only the completion


def test_a_form_can_be_named(config, tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        [{"text": "plain", "messages": [USER, ANSWER], "body": "b", "instruction": "i", "output": "o"}],
    )
    assert read(config, path)[0].chat.form == "messages"
    assert read(config, path, form="text")[0].text == "plain"
    assert read(config, path, text_field="body")[0].text == "b"
    assert read(config, path, form="alpaca")[0].chat.contents() == ("i", "o")
    table = tmp_path / "a.csv"
    table.write_text("instruction,input,output\nadd,1 2,3\n")
    assert read(config, table)[0].chat.contents() == ("add\n\n1 2", "3")


BAD = {
    "unknown role": ({"messages": [{"role": "bot", "content": "a"}, ANSWER]}, "messages[0] has the role 'bot'"),
    "empty": ({"messages": []}, "messages is empty"),
    "null": ({"messages": None}, "messages is null"),
    "null content": ({"messages": [USER, {"role": "assistant", "content": None}]}, "messages[1].content is null"),
    "number": ({"messages": [{"role": "user", "content": 3}, ANSWER]}, "messages[0].content is int"),
    "starts": ({"messages": [ANSWER]}, "the conversation starts with the assistant"),
    "twice": ({"messages": [USER, USER, ANSWER]}, "messages[1]: a second user message in a row"),
    "nothing": ({"messages": [USER]}, "no assistant message that is to be learned"),
    "not trained": ({"messages": [USER, {**ANSWER, "train": False}]}, "no assistant message that is to be learned"),
    "speaker": ({"conversations": [{"from": "alien", "value": "a"}]}, "conversations[0] is from 'alien'"),
    "turns": ({"conversations": {"from": "human"}}, "conversations is not a list"),
    "output": ({"instruction": "a", "output": None}, "turns[1].content is null"),
    "input": ({"instruction": "a", "input": 3, "output": "b"}, "'instruction' and 'input' must be text"),
    "history": ({"instruction": "a", "output": "b", "history": [["x"]]}, "no list of [question, answer]"),
    "completion": ({"prompt": [USER], "completion": []}, "'completion' is neither text nor a list"),
    "prompt": ({"prompt": 3, "completion": [ANSWER]}, "'prompt' is neither text nor a list"),
    "tools": ({"messages": [USER, ANSWER], "tools": "{"}, "tools is text that is not valid JSON"),
    "tool": ({"messages": [USER, ANSWER], "tools": ["f"]}, "tools is list, expected a list of objects"),
    "surrogate": (
        '{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "a"}]}',
        "lone surrogate",
    ),
    "mixed": ({"text": "a plain text"}, "a row of text in a file whose first row is one of messages"),
    "mixed chat": ({"conversations": FORMS["sharegpt"]["conversations"]}, "a row of conversations in a file"),
    "refused": (
        {"messages": [{"role": "system", "content": "s"}, USER, ANSWER]},
        "refuses the conversation: No system, please",
    ),
}
NO_SYSTEM = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system, please') }}{% endif %}{{ m.role + m.content + eos_token }}{% endfor %}"


@pytest.fixture
def scanned(config, scan, tmp_path):
    """Returns a function that reads rows as preparation does: (kept documents, drops)."""

    def run(path, **changes):
        template = tmp_path / "t.jinja"
        template.write_text(NO_SYSTEM)
        c = config(path, chat=ChatConfig(template=str(template)), **changes)
        return scan(c)

    return run


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_refused_with_its_place_or_counted(scanned, tmp_path, kind):
    row, words = BAD[kind]
    rng = random.Random(3)
    path = write(tmp_path / "rows.jsonl", [talk(rng, 2), row, *(talk(rng, 2) for _ in range(30))])
    with pytest.raises(UserError) as caught:
        scanned(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:2: ")
    assert words in message
    assert "\n" not in message
    kept, drops = scanned(path, on_bad="skip", max_bad_fraction=0.05)
    assert len(kept) == 31
    assert [(drop["file"], drop["line"]) for drop in drops] == [(str(path), 2)]
    with pytest.raises(UserError, match=r"1 of 32 rows are bad.*rows.jsonl:2"):
        scanned(path, on_bad="skip", max_bad_fraction=0.001)


def learned_texts(data, batch):
    """Returns the text of what is learned in each segment, by its whole text."""
    found = {}
    for row in range(len(batch["tokens"])):
        for number in range(1, batch["segments"][row].max() + 1):
            inside = np.flatnonzero(batch["segments"][row] == number)
            ids = [*batch["tokens"][row, inside[:1]], *batch["targets"][row, inside]]
            learned = batch["targets"][row, inside][batch["weights"][row, inside] > 0]
            found[data.tokenizer.decode(ids)] = data.tokenizer.decode(learned)
    return found


@pytest.mark.parametrize("packing", ["best_fit", "none"])
@pytest.mark.parametrize("kind", ["bytes", "hf"])
def test_batches_learn_the_answers_and_nothing_else(opened, talks, tmp_path, kind, packing):
    tokenizer = (
        TokenizerConfig(kind="bytes")
        if kind == "bytes"
        else TokenizerConfig(kind="hf", path=str(save_folder(tmp_path / "t", "byte_bpe")))
    )
    data = opened(talks, tokenizer=tokenizer, split=ALL, seq_len=512, batch_size=4, packing=packing)
    rows = [json.loads(line)["messages"] for line in talks.read_text("utf-8").splitlines()]
    expected = {}
    for messages in rows:
        whole = "".join(f"{'<|im_start|>' * (kind == 'bytes')}{m['role']}\n{m['content']}\n" for m in messages)
        if kind == "bytes":  # where the end of the last turn ends the document
            whole = "".join(f"<|im_start|>{m['role']}\n{m['content']}\n" for m in messages)
        expected[whole] = "".join(m["content"] for m in messages[1::2])
    found = {}
    for batch in data.eval_batches("train", 4, (0, 4)):
        found |= learned_texts(data, batch)
        inside = batch["segments"] > 0
        ends = inside & np.isin(batch["targets"], data.tokenizer.stop_ids)
        assert batch["weights"][ends].sum() == (batch["weights"] * ends).sum() > 0
        assert set(np.unique(batch["weights"])) <= {0.0, 1.0}
    assert found == expected
    total = data.summary()["sources"]["data"]["splits"]["train"]
    assert (total["answers"], total["cut_answers"], total["chats"]) == (sum(len(m) // 2 for m in rows), 0, len(rows))


def test_streaming_learns_the_same(opened, talks):
    changes = {"split": ALL, "seq_len": 512, "batch_size": 4, "packing": "none"}
    prepared = opened(talks, **changes)
    expected = {}
    for batch in prepared.eval_batches("train", 4, (0, 4)):
        expected |= learned_texts(prepared, batch)
    streamed = opened(talks, streaming=True, shuffle_documents=64, **changes)
    batches = streamed.train_batches(0, (0, 4))
    found = {}
    for _ in range(200):  # the shuffle repeats some before it gives all
        found |= learned_texts(streamed, next(batches))
    batches.close()
    assert found == expected


def test_every_turn_is_learned_where_that_is_asked_for(opened, talks):
    data = opened(talks, split=ALL, seq_len=512, batch_size=4, packing="none", loss_on_prompt=True)
    for batch in data.eval_batches("train", 4, (0, 4)):
        assert ((batch["weights"] > 0) == (batch["segments"] > 0)).all()


def test_conversations_and_texts_share_a_source(opened, talks, tmp_path):
    write(tmp_path / "texts.jsonl", [{"text": f"plain {i} 好"} for i in range(9)])
    write(tmp_path / "pairs.jsonl", [{"prompt": f"p{i} ", "completion": f"c{i}"} for i in range(9)])
    data = opened(tmp_path, split=ALL, seq_len=512, batch_size=4)
    found = {}
    for batch in data.eval_batches("train", 4, (0, 4)):
        found |= learned_texts(data, batch)
    for i in range(9):
        assert found[f"plain {i} 好"] == f"plain {i} 好"[1:]
        assert found[f"p{i} c{i}"] == f"c{i}"
    assert len(found) == 78


def test_answers_that_a_row_cuts_are_counted_and_refused(opened, tmp_path):
    rng = random.Random(4)
    long = [
        {"messages": [{"role": "user", "content": f"{i} " + "x" * 150}, {"role": "assistant", "content": f"lost {i}"}]}
        for i in range(5)
    ]
    path = write(tmp_path / "a.jsonl", [*long, *(talk(rng, 2) for _ in range(15))])
    short = {"split": ALL, "seq_len": 160, "batch_size": 4}
    with pytest.raises(
        UserError,
        match=r"seq_len=160 cuts the end of \d of 20 answers; raise it, or lower config.data.min_completion_kept=0.95",
    ):
        opened(path, **short)
    said = []
    from data_pipeline.batch import open_data

    data = open_data(opened(path, min_completion_kept=0.5, **short).config, log=said.append)
    counts = data.summary()["sources"]["data"]["splits"]["train"]
    assert counts["lost_chats"] == 5
    assert counts["answers"] == 20
    assert 0 < counts["cut_answer_tokens"] < counts["answer_tokens"]
    assert any("5 conversations have no answer within 160 tokens and are left out" in line for line in said)
    for batch in data.eval_batches("train", 4, (0, 4)):
        for text, learned in learned_texts(data, batch).items():
            assert "xxx" not in text
            assert learned
    lines = list(format_lengths(data))
    assert any("rows of 160 (as set) cut 25.0% of documents, 25.0% of answers" in line for line in lines)
    assert any("rows of 320 cut 0.0% of documents, 0.0% of answers, 0.0% of answer tokens" in line for line in lines)


def test_prepared_again_only_when_the_template_changes(opened, talks, tmp_path):
    template = tmp_path / "t.jinja"
    template.write_text(NO_SYSTEM)
    one = opened(talks, seq_len=512, chat=ChatConfig(template=str(template)))
    assert opened(talks, seq_len=512, chat=ChatConfig(template=str(template))).prepared.folder == one.prepared.folder
    template.write_text(NO_SYSTEM + "\n\n")
    assert opened(talks, seq_len=512, chat=ChatConfig(template=str(template))).prepared.folder != one.prepared.folder


def test_the_template_stays_with_the_tokenizer(opened, talks, tmp_path):
    template = tmp_path / "t.jinja"
    template.write_text(NO_SYSTEM)
    folder = save_folder(tmp_path / "hf", "byte_bpe")
    for tokenizer in (
        TokenizerConfig(kind="bytes"),
        TokenizerConfig(kind="auto", path=str(folder)),
        TokenizerConfig(vocab_size=400),
    ):
        data = opened(talks, seq_len=512, chat=ChatConfig(template=str(template)), tokenizer=tokenizer)
        data.tokenizer.save(tmp_path / "run" / "tokenizer")
        loaded = load_tokenizer(tmp_path / "run" / "tokenizer")
        assert loaded.template == NO_SYSTEM
        prompt = open_chat(loaded).prompt([{"role": "user", "content": "好"}])
        assert loaded.decode(prompt) == "user好"
        assert prompt[-1] == loaded.special.eos
        for path in (tmp_path / "run" / "tokenizer").iterdir():
            path.unlink()
    plain = opened(write(tmp_path / "plain.jsonl", [{"text": f"a {i}"} for i in range(9)]), split=ALL)
    assert plain.tokenizer.template == ""


def test_a_tokenizer_trained_on_conversations_learns_no_names_of_special_tokens(opened, talks):
    data = opened(talks, seq_len=512, tokenizer=TokenizerConfig(vocab_size=420), split=ALL)
    assert not any(b"</s" in piece for piece in data.tokenizer.pieces)
    ids = data.prepared.shard(0, "train").ids
    answers = data.summary()["sources"]["data"]["splits"]["train"]["answers"]
    assert int((ids == data.tokenizer.special.eos).sum()) == 2 * answers  # each of the two ends its turn
    data = opened(talks, seq_len=1024, tokenizer=TokenizerConfig(kind="char"), split=ALL)
    assert data.summary()["sources"]["data"]["splits"]["train"]["unknown"] == 0


def test_what_is_said_is_cleaned_like_other_text_and_repeats_are_dropped(opened, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "q\r\n\u200bx  \n"}, {"role": "assistant", "content": "e\u0301\x07"}]},
        {"messages": [{"role": "user", "content": "Q x!"}, {"role": "assistant", "content": "é"}]},
        {"messages": [{"role": "user", "content": "锟斤拷"}, ANSWER]},
        {"messages": [USER, {"role": "assistant", "content": "\u200b"}]},
        {"messages": [USER, ANSWER]},
    ]  # fmt: skip
    data = opened(write(tmp_path / "a.jsonl", rows), split=ALL, batch_size=1, seq_len=256)
    assert data.summary()["sources"]["data"]["dropped"] == {"duplicate": 1, "mojibake": 1, "too short": 1}
    shard = data.prepared.shard(0, "train")
    assert (
        data.tokenizer.decode(shard.ids[: shard.offsets[1]].tolist())
        == "<|im_start|>user\nq\nx\n\n<|im_start|>assistant\né\n"
    )
    raw = opened(
        tmp_path / "a.jsonl", split=ALL, batch_size=1, seq_len=256, clean=CleanConfig(rules=(), exact_dedup=False)
    )
    assert raw.summary()["sources"]["data"]["kept"] == {"train": 5}


def test_a_text_cut_by_position_leaves_conversations_whole(opened, talks):
    data = opened(talks, split=SplitConfig(by="position", validation=0.2, test=0.0), seq_len=512)
    kept = data.summary()["sources"]["data"]["kept"]
    assert sum(kept.values()) == 60
    assert kept["validation"] > 0


def test_shown_rows_mark_what_is_learned(opened, talks, tmp_path):
    data = opened(
        talks,
        split=ALL,
        seq_len=512,
        batch_size=4,
        packing="none",
        tokenizer=TokenizerConfig(kind="hf", path=str(save_folder(tmp_path / "t", "byte_bpe"))),
    )
    batch = next(data.eval_batches("train", 1, (0, 1)))
    lines = "\n".join(format_row(data, batch, 0, colour=False))
    assert "<|im_start|>assistant\n    [[1 " in lines
    assert "<|im_end|>]]" in lines
    assert "[[0 " not in lines
    coloured = "\n".join(format_row(data, batch, 0, colour=True))
    assert "\x1b[32m1 " in coloured
    ids = "\n".join(format_row(data, batch, 0, colour=False, ids=True))
    end = data.tokenizer.special.eos
    assert f"{end}:<|im_end|>]]" in ids
    assert f'[[{data.tokenizer.encode("1")[0]}:"1"' in ids


def test_the_command_shows_and_takes_no_colour_into_a_pipe(talks, tmp_path):
    config = tmp_path / "c.py"
    config.write_text(
        "from configs import smoke\n\n\ndef get_config():\n    c = smoke.get_config()\n    c.data.path = "
        f"{str(talks)!r}\n    c.data.sources = {{}}\n    c.data.seq_len = 512\n    c.data.batch_size = 4\n"
        f"    c.data.cache_dir = {str(tmp_path / 'cache')!r}\n    return c\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "data_pipeline.show", f"--config={config}", "--ids", "--rows=1"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "of answer tokens" in done.stdout
    assert ":<eos>]]" in done.stdout


def test_rows_that_are_bad_are_bad_when_read_again(config, tmp_path):
    path = write(tmp_path / "a.jsonl", [{"messages": [USER, ANSWER]}, {"text": "x"}])
    records = read(config, path)
    assert isinstance(records[1], Bad)
    assert records[1].fatal
