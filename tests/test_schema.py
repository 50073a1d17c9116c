"""Do config files, command-line overrides and JSON all come back as the same dataclass, and is every fault named?"""

import dataclasses
import json
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.schema import (
    ConfigError,
    UserError,
    diff,
    from_mapping,
    nearest,
    read_config,
    run_main,
    split_flags,
    to_config_dict,
    to_json,
)
from lm.check import check_config
from lm.config import Config

ROOT = Path(__file__).resolve().parents[1]
BASE = str(ROOT / "configs" / "base.py")


def load(overrides, path=BASE):
    return read_config(str(path), overrides, Config, lambda config: [])


def problems_of(overrides, path=BASE):
    with pytest.raises(ConfigError) as caught:
        load(overrides, path)
    assert caught.value.exit_code == 2
    return caught.value.problems


def config_file(folder, body, name="mine.py"):
    path = folder / name
    path.write_text(body)
    return path


def leaf_hints(cls, prefix=""):
    """{dotted key: type hint} of every value in a schema; dict sections are left out."""
    found = {}
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            found |= leaf_hints(hint, f"{prefix}{name}.")
        elif typing.get_origin(hint) is not dict:
            found[prefix + name] = hint
    return found


def get(config, key):
    for part in key.split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    return config


HINTS = leaf_hints(Config)
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)


def values_for(hint):
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if args[-1] is Ellipsis:
            return st.lists(values_for(args[0]), max_size=3).map(tuple)
        return st.tuples(*map(values_for, args))
    if args:
        return st.one_of(*map(values_for, args))
    return {
        bool: st.booleans(),
        int: st.integers(-(10**12), 10**12),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: TEXT,
    }[hint]


def changes():
    """Random {dotted key: value of its type} for a few keys."""
    keys = st.lists(st.sampled_from(sorted(HINTS)), unique=True, max_size=8)
    return keys.flatmap(lambda ks: st.fixed_dictionaries({k: values_for(HINTS[k]) for k in ks}))


def as_text(value):
    return value if isinstance(value, str) else repr(value)


# A union with text reads numbers first: the text "1" of a `float | str` key is the number 1, as it should be.
def same(value, back):
    return back == value or (isinstance(value, str) and isinstance(back, float))


# ---------------------------------------------------------------- round trips


def test_the_defaults_survive_config_dict_and_json():
    assert from_mapping(Config, to_config_dict(Config())) == Config()
    assert from_mapping(Config, json.loads(json.dumps(to_json(Config())))) == Config()
    assert load({}) == Config()


@settings(deadline=None, max_examples=60)
@given(changes())
def test_random_overrides_arrive_and_survive_json(change):
    config = load({key: as_text(value) for key, value in change.items()})
    for key, value in change.items():
        assert same(value, get(config, key)), key
    untouched = [key for key, _, _ in diff(to_json(Config()), to_json(config))]
    assert set(untouched) <= set(change)
    assert from_mapping(Config, json.loads(json.dumps(to_json(config)))) == config
    assert from_mapping(Config, to_config_dict(config)) == config


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(sorted(HINTS)),
    st.one_of(st.text(max_size=20), st.text("0123456789.e-+_infa()[]{},:'\"TruE ", max_size=30)),
)
def test_any_text_on_the_command_line_is_taken_or_refused_by_name(key, text):
    message = f"config.{key}"
    try:
        load({key: text})
    except ConfigError as error:
        message = str(error)
    assert f"config.{key}" in message


@pytest.mark.parametrize("key", ["train.steps", "optim.peak_lr", "optim.eps", "optim.train", "optim.lr_multipliers"])
@pytest.mark.parametrize(
    "text",
    ["nan", "inf", "-inf", "1e999", "9" * 400, "9" * 5000, "{[]: 1}", "((((", "1+1", "None", "lambda: 1", ""],
    ids=lambda text: text[:8],
)
def test_a_hostile_value_is_one_message_never_another_exception(key, text):
    if len(text) == 400 and key == "train.steps":
        assert load({key: text}).train.steps == int(text)  # a large integer is one
        return
    with pytest.raises(ConfigError) as caught:  # peak_lr takes text, so that check_config is the one to refuse it
        check_config(load({key: text, "data.path": "x.txt"}))
    assert f"config.{key}" in str(caught.value)


# ---------------------------------------------------------------- overrides by type


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.steps", "10", 10),
        ("train.steps", "1e3", 1000),
        ("train.steps", "1_000", 1000),
        ("train.steps", "2000.0", 2000),
        ("optim.eps", "1e-4", 1e-4),
        ("optim.eps", "1", 1.0),
        ("optim.peak_lr", "auto", "auto"),
        ("optim.peak_lr", "3e-4", 3e-4),
        ("model.scan", "true", True),
        ("model.scan", "False", False),
        ("model.scan", "TRUE", True),
        ("data.path", "10", "10"),
        ("data.path", "/a b/*.txt", "/a b/*.txt"),
        ("data.path", "语料/红楼梦.txt", "语料/红楼梦.txt"),
        ("init.step", "100", "100"),
        ("data.split.salt", "None", "None"),
        ("data.clean.rules", "()", ()),
        ("data.clean.rules", "['nfc', 'control']", ("nfc", "control")),
        ("train.sample_prompts", "'To be'", ("To be",)),
        ("train.sample_prompts", "['To be', '从前']", ("To be", "从前")),
        ("optim.train", "(('block_07/.*', True), ('.*', False))", (("block_07/.*", True), (".*", False))),
        ("optim.train", "[['.*', True]]", ((".*", True),)),
        ("optim.lr_multipliers", "[('embed', 0.1), ('.*', 1)]", (("embed", 0.1), (".*", 1.0))),
    ],
)
def test_an_override_is_read_by_the_type_of_its_key(key, text, value):
    found = get(load({key: text}), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("train.steps", "10.5", "expected an integer, got 10.5"),
        ("train.steps", "abc", "expected an integer, got 'abc'"),
        ("train.steps", "True", "expected an integer, got True"),
        ("train.steps", "[1]", "expected an integer"),
        ("optim.eps", "small", "expected a number, got 'small'"),
        ("optim.eps", "False", "expected a number, got False"),
        ("optim.eps", "nan", "must be a finite number, got nan"),
        ("optim.eps", "-inf", "must be a finite number, got -inf"),
        ("optim.peak_lr", "nan", "must be a finite number, got nan"),
        ("optim.peak_lr", "[1]", "expected a number or text"),
        ("model.scan", "1", "expected True or False, got 1"),
        ("model.scan", "yes", "expected True or False, got 'yes'"),
        ("optim.train", "(('.*', 1.5),)", "optim.train[0][1]: expected True or False or an integer, got 1.5"),
        ("optim.train", "(('.*',),)", "optim.train[0]: expected (text, True or False or an integer)"),
        ("optim.lr_multipliers", "(('.*', inf),)", "lr_multipliers"),
        ("data.clean.rules", "[1, 2]", "data.clean.rules[1]: expected text, got 2"),
        ("model", "4", "config.model is a section"),
        ("data.sources", "x", "config.data.sources is a section"),
        ("train.steps.more", "4", "config.train.steps is a value, not a section, so it has no 'more'"),
    ],
)
def test_an_override_of_the_wrong_type_is_refused_with_the_key(key, text, words):
    problems = problems_of({key: text})
    assert any(words in problem and "config." in problem for problem in problems), problems


def test_a_source_is_created_by_its_first_key_with_the_defaults_of_the_rest():
    config = load(
        {"data.sources.novels.path": "*.txt", "data.sources.novels.weight": "2", "data.sources.code.kind": "package"}
    )
    assert set(config.data.sources) == {"novels", "code"}
    assert config.data.sources["novels"].path == "*.txt"
    assert config.data.sources["novels"].weight == 2.0
    assert config.data.sources["code"] == dataclasses.replace(type(config.data.sources["code"])(), kind="package")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("modle.dim", "config has no 'modle'; did you mean 'model'"),
        ("qqq", "config has no 'qqq'; valid keys: data, model, lora, optim, train, mesh, init"),
        ("model.dmi", "config.model has no 'dmi'; did you mean 'dim'"),
        ("optim.peek_lr", "did you mean 'peak_lr'"),
        ("data.tokenizer.vocab", "config.data.tokenizer has no 'vocab'; did you mean 'vocab_size'"),
        ("data.sources.web.pth", "config.data.sources.web has no 'pth'; did you mean 'path'"),
        ("model.zzz", "valid keys: layers, dim"),
    ],
)
def test_an_unknown_key_names_the_nearest_of_its_section(key, words):
    (problem,) = problems_of({key: "1"})
    assert words in problem


def test_all_problems_come_in_one_message():
    wrong = {"modle.dim": "4", "model.dmi": "4", "train.steps": "abc", "optim.eps": "nan", "model.scan": "1"}
    with pytest.raises(ConfigError) as caught:
        load({**wrong, "train.seed": "3"})
    text = str(caught.value)
    assert len(caught.value.problems) == len(wrong)
    assert text.startswith("5 problems")
    assert all(word in text for word in ("'modle'", "'dmi'", "train.steps", "optim.eps", "model.scan"))


def test_from_mapping_lists_unknown_keys_and_wrong_types_together():
    stored = to_json(Config())
    stored["model"] |= {"layers": 2.5, "depth": 3}
    stored["data"]["clean"]["min_chars"] = "many"
    stored["data"]["sources"] = {"a": {"path": 1}, "b": []}
    stored["optim"]["eps"] = float("inf")
    stored["mesh"] = 4
    with pytest.raises(ConfigError) as caught:
        from_mapping(Config, stored)
    words = [
        "model has no 'depth'",
        "model.layers",
        "clean.min_chars",
        "sources.a.path",
        "sources.b",
        "optim.eps",
        "config.mesh",
    ]
    assert all(any(word in problem for problem in caught.value.problems) for word in words)
    assert len(caught.value.problems) == len(words)


def test_nearest_lists_everything_when_nothing_is_close():
    assert nearest("stpes", ["steps", "seed"]) == "; did you mean 'steps'?"
    assert nearest("qq", ["steps", "seed"]) == "; valid keys: steps, seed"


# ---------------------------------------------------------------- config files


IMPORTS = "from configs import base\n"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def get_config(:\n", ":1: "),
        ("x = 1\n\n  y = 2\n", ":3: unexpected indent"),
        ("import ml_collections\n", "must define get_config() that returns a ConfigDict"),
        ("def get_config():\n    return {'model': 1}\n", "must define get_config() that returns a ConfigDict"),
        ("def get_config():\n    return None\n", "must define get_config() that returns a ConfigDict"),
        ("get_config = 3\n", "must define get_config() that returns a ConfigDict"),
        ("def get_config(x):\n    return x\n", "TypeError"),
        ("def get_config():\n    y = 0\n    return 1 / y\n", ":3: ZeroDivisionError"),
        ("import no_such_module_here\n", ":1: ModuleNotFoundError"),
        (f"{IMPORTS}def get_config():\n    c = base.get_config()\n    c.model.dmi = 4\n    return c\n", ":4: "),
        (f"{IMPORTS}def get_config():\n    c = base.get_config()\n    c.modle = 4\n    return c\n", ":4: "),
    ],
)
def test_a_faulty_config_file_is_one_line_with_file_and_line(tmp_path, body, words):
    path = config_file(tmp_path, body)
    (problem,) = problems_of({}, path)
    assert str(path) in problem
    assert words in problem
    assert "\n" not in problem


def test_an_unknown_key_in_a_config_file_is_named(tmp_path):
    path = config_file(
        tmp_path, f"{IMPORTS}def get_config():\n    c = base.get_config()\n    c.model.dmi = 4\n    return c\n"
    )
    (problem,) = problems_of({}, path)
    assert problem.startswith(f"{path}:4: ")
    assert "dmi" in problem
    assert "dim" in problem


def test_a_missing_config_file_a_folder_and_a_strange_file(tmp_path):
    assert problems_of({}, tmp_path / "none.py") == [f"no such config file: {tmp_path / 'none.py'}"]
    assert problems_of({}, tmp_path) == [f"no such config file: {tmp_path}"]
    (problem,) = problems_of({}, config_file(tmp_path, "model: 1", "config.yaml"))
    assert "config.yaml" in problem
    assert "Python" in problem


@pytest.mark.parametrize("content", [b"\xff\xfe\x00x = 1", b"\x00\x00", b"x = '\xff'\n"])
def test_a_config_file_that_is_not_text_is_named(tmp_path, content):
    path = tmp_path / "bytes.py"
    path.write_bytes(content)
    (problem,) = problems_of({}, path)
    assert str(path) in problem


def test_a_wrong_type_in_a_config_file_names_the_key(tmp_path):
    body = "def get_config():\n    c = base.get_config()\n    c.model.dim = 'wide'\n    c.train.steps = None\n    return c\n"
    problems = problems_of({}, config_file(tmp_path, IMPORTS + body))
    assert problems == [
        "config.model.dim: expected an integer, got 'wide'",
        "config.train.steps: expected an integer, got None",
    ]


def test_a_config_file_sets_values_sources_and_tables(tmp_path):
    body = f"""{IMPORTS}from data_pipeline.config import SourceConfig
from data_pipeline.schema import to_config_dict

def get_config():
    c = base.get_config()
    c.data.sources.books = to_config_dict(SourceConfig(path="b.txt"))
    c.data.sources.web = {{"path": "w.jsonl", "kind": "jsonl"}}
    c.optim.train = (("norm_out/.*", True), (".*", False))
    c.optim.peak_lr = "auto"
    c.model.rope_theta = 5e5
    return c
"""
    config = load({"data.sources.books.weight": "0.5"}, config_file(tmp_path, body))
    assert config.data.sources["books"] == type(config.data.sources["books"])(path="b.txt", weight=0.5)
    assert config.data.sources["web"].kind == "jsonl"
    assert config.optim.train == (("norm_out/.*", True), (".*", False))
    assert config.optim.peak_lr == "auto"
    assert config.model.rope_theta == 5e5


def test_a_value_that_refers_to_another_follows_its_override(tmp_path):
    body = f"""{IMPORTS}
def get_config():
    c = base.get_config()
    c.train.steps = 200
    c.train.eval_every = c.train.get_ref("steps") // 10
    return c
"""
    path = config_file(tmp_path, body)
    assert load({}, path).train.eval_every == 20
    assert load({"train.steps": "5000"}, path).train.eval_every == 500
    assert load({"train.steps": "5000", "train.eval_every": "7"}, path).train.eval_every == 7


def test_two_config_files_of_one_name_do_not_mix(tmp_path):
    paths = []
    for steps in (11, 22):
        folder = tmp_path / str(steps)
        folder.mkdir()
        body = f"{IMPORTS}def get_config():\n    c = base.get_config()\n    c.train.steps = {steps}\n    return c\n"
        paths.append(config_file(folder, body))
    assert [load({}, path).train.steps for path in [*paths, paths[0]]] == [11, 22, 11]


# ---------------------------------------------------------------- flags


FLAGS = {"config": "", "workdir": "runs/x", "plan": "false"}


@pytest.mark.parametrize(
    ("argv", "flags", "overrides"),
    [
        ([], {}, {}),
        (["--config=a.py"], {"config": "a.py"}, {}),
        (["--config", "a.py", "--workdir", "w"], {"config": "a.py", "workdir": "w"}, {}),
        (["--config.model.dim=4", "--config.train.steps", "7"], {}, {"model.dim": "4", "train.steps": "7"}),
        (["--plan", "--config=a.py"], {"plan": "true", "config": "a.py"}, {}),
        (["--plan=false"], {"plan": "false"}, {}),
        (["--config=a=b.py", "--config.data.path=x=y"], {"config": "a=b.py"}, {"data.path": "x=y"}),
        (["--config="], {"config": ""}, {}),
        (["--config.optim.eps", "-1"], {}, {"optim.eps": "-1"}),
        (["--config.data.path=a", "--config.data.path=b"], {}, {"data.path": "b"}),
    ],
)
def test_flags_and_overrides_are_told_apart(argv, flags, overrides):
    before = list(argv)
    assert split_flags(argv, FLAGS, "usage") == ({**FLAGS, **flags}, overrides)
    assert argv == before


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--confg=a.py"], "unknown argument '--confg=a.py'; did you mean 'config'"),
        (["a.py"], "unknown argument 'a.py'"),
        (["-x"], "unknown argument '-x'"),
        (["--config"], "--config needs a value"),
        (["--config", "--plan"], "--config needs a value"),
        (["--config.model.dim"], "--config.model.dim needs a value"),
    ],
)
def test_an_unknown_flag_is_a_config_error(argv, words):
    with pytest.raises(ConfigError) as caught:
        split_flags(argv, FLAGS, "usage")
    assert words in str(caught.value)


def test_several_unknown_flags_come_together():
    with pytest.raises(ConfigError) as caught:
        split_flags(["--confg=a", "--wrkdir=b", "--config.model.dim=4"], FLAGS, "usage")
    assert "'config'" in str(caught.value)
    assert "'workdir'" in str(caught.value)


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_prints_the_usage_and_exits_0(capsys, word):
    with pytest.raises(SystemExit) as caught:
        split_flags(["--config=a", word], FLAGS, "\nusage: this\n")
    assert caught.value.code == 0
    assert capsys.readouterr().out == "usage: this\n"


# ---------------------------------------------------------------- exit codes


class InUse(UserError):
    exit_code = 3


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (None, 0, ""),
        (UserError("the file is empty"), 1, "error: the file is empty\n"),
        (ConfigError("config has no 'x'"), 2, "error: config has no 'x'\n"),
        (InUse("busy"), 3, "error: busy\n"),
        (KeyboardInterrupt(), 75, "interrupted; run the same command again to go on\n"),
        (SystemExit(75), 75, ""),
    ],
)
def test_run_main_turns_errors_into_one_line_and_a_code(monkeypatch, capsys, error, code, line):
    monkeypatch.setattr(sys, "argv", ["prog", "--a=1"])
    monkeypatch.delenv("LM_TRACEBACK", raising=False)

    def main(argv):
        assert argv == ["--a=1"]
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as caught:
        run_main(main)
    assert caught.value.code == code
    assert capsys.readouterr().err == line


def test_run_main_shows_where_when_asked(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prog"])
    monkeypatch.setenv("LM_TRACEBACK", "1")

    def main(argv):
        raise UserError("here")

    with pytest.raises(SystemExit):
        run_main(main)
    assert "Traceback" in capsys.readouterr().err


def test_run_main_does_not_hide_our_own_faults(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["prog"])
    with pytest.raises(ZeroDivisionError):
        run_main(lambda argv: 1 / 0)


def test_a_reader_that_goes_away_is_no_error():
    code = "from data_pipeline.schema import run_main\nrun_main(lambda argv: print('x' * 10_000_000))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 0
    assert stderr == b""


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ([], 2, ["--config=", "--help"]),
        (["--config=none.py"], 2, ["no such config file: none.py"]),
        (["--config=configs/base.py", "--config.model.dmi=4", "--config.lrr=1"], 2, ["'dmi'", "'dim'", "'lrr'"]),
        (["--config=configs/base.py", "--config.optim.eps=nan"], 2, ["config.optim.eps"]),
    ],
)
def test_launch_refuses_a_bad_command_line_without_a_traceback(argv, code, words):
    command = [sys.executable, "launch.py", *argv]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert all(word in done.stderr for word in words)
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
