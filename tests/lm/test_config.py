"""Is every impossible value or combination named, all at once, and may a run resume with a changed config?"""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.config import SourceConfig
from lm.check import ABOVE_ZERO, AT_LEAST, BELOW_ONE, CHOICES, check_config
from lm.config import (
    Config,
    ConfigError,
    MeshConfig,
    changed_keys,
    from_mapping,
    last_layers,
    mesh_shape,
    to_json,
)
from lm.resume import check_resume

GOOD = replace(Config(), data=replace(Config().data, path="x.txt"))


def edit(config, **changes):
    """Returns `config` with `section__key=value` (any depth) put in."""
    for name, value in changes.items():
        config = _put(config, name.split("__"), value)
    return config


def _put(section, parts, value):
    inner = value if len(parts) == 1 else _put(getattr(section, parts[0]), parts[1:], value)
    return replace(section, **{parts[0]: inner})


def collect(config, devices=None):
    try:
        check_config(config, devices)
    except ConfigError as error:
        return error.problems
    return []


def problems_of(config, devices=None):
    with pytest.raises(ConfigError) as caught:
        check_config(config, devices)
    return caught.value.problems


def numeric_keys(section, prefix=""):
    for key, value in section.items():
        if isinstance(value, dict):
            yield from numeric_keys(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + key


NUMERIC = sorted(numeric_keys(to_json(Config())))


def test_the_defaults_with_data_are_possible():
    check_config(GOOD)
    check_config(GOOD, 1)
    check_config(GOOD, 8)


@pytest.mark.parametrize("key", NUMERIC)
def test_every_number_has_a_lower_bound(key):
    problems = problems_of(edit(GOOD, **{key.replace(".", "__"): -7}))
    assert any(f"config.{key}" in p for p in problems), problems


@pytest.mark.parametrize("key", sorted(CHOICES))
def test_an_unknown_name_lists_the_valid_ones(key):
    problems = problems_of(edit(GOOD, **{key.replace(".", "__"): "nonsense"}))
    assert any(f"config.{key}: 'nonsense' is not one of {', '.join(CHOICES[key])}" in p for p in problems)


@pytest.mark.parametrize("key", sorted(AT_LEAST))
def test_the_lowest_value_itself_is_fine(key):
    problems = collect(edit(GOOD, **{key.replace(".", "__"): int(AT_LEAST[key])}))
    assert not any(f"config.{key}: must be" in problem for problem in problems)


@pytest.mark.parametrize("key", BELOW_ONE)
def test_a_share_of_one_is_refused(key):
    assert f"config.{key}: must be in [0, 1), got 1.0" in problems_of(edit(GOOD, **{key.replace(".", "__"): 1.0}))


@pytest.mark.parametrize("key", ABOVE_ZERO)
def test_what_must_be_positive_is_not_zero(key):
    assert f"config.{key}: must be > 0, got 0.0" in problems_of(edit(GOOD, **{key.replace(".", "__"): 0.0}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__dim": 100, "model__heads": 12}, "model.dim=100 is not divisible by model.heads=12"),
        ({"model__heads": 4, "model__kv_heads": 3}, "model.heads=4 is not divisible by model.kv_heads=3"),
        ({"model__head_dim": 33}, "model.head_dim: rope needs an even head size, got 33"),
        (
            {"model__position": "learned", "model__max_len": 100, "data__seq_len": 256},
            "model.max_len=100 is shorter than data.seq_len=256",
        ),
        ({"optim__peak_lr": "automatic"}, "optim.peak_lr: must be a number > 0 or 'auto', got 'automatic'"),
        ({"optim__peak_lr": 0.0}, "optim.peak_lr: must be a finite number > 0, got 0.0"),
        ({"optim__peak_lr": -1.0}, "optim.peak_lr: must be a finite number > 0, got -1.0"),
        (
            {"optim__warmup_steps": 1000, "train__steps": 1000},
            "optim.warmup_steps=1000 is not shorter than train.steps=1000",
        ),
        (
            {"optim__schedule": "wsd", "optim__warmup_steps": 600, "optim__decay_steps": 600},
            "optim.warmup_steps + optim.decay_steps is longer than train.steps=1000",
        ),
        ({"optim__decay_steps": 10}, "only optim.schedule='wsd' reads it"),
        ({"optim__restart_steps": 10}, "optim.restart_steps: only optim.schedule='cosine_restarts' reads it"),
        ({"optim__restart_peak_factor": 0.5}, "optim.restart_peak_factor: only optim.schedule='cosine_restarts'"),
        ({"optim__schedule": "cosine_restarts"}, "optim.restart_steps=0: the first cycle of 'cosine_restarts' must be"),
        (
            {"optim__schedule": "cosine_restarts", "optim__restart_steps": 900, "optim__warmup_steps": 100},
            "shorter than the 900 steps after the warm-up",
        ),
        ({"optim__schedule": "exponential", "optim__end_lr_ratio": 0.0}, "optim.end_lr_ratio: must be > 0"),
        ({"model__base_head_dim": 8}, "model.base_head_dim: only a model with model.base_dim reads it"),
        ({"model__base_dim": 64, "optim__name": "adafactor"}, "muP (model.base_dim) has no rule for it"),
        ({"optim__train": (("(", True),)}, "optim.train: '(' is not a regular expression"),
        ({"optim__decay": (("[", True),)}, "optim.decay: '[' is not a regular expression"),
        ({"optim__lr_multipliers": (("*", 1.0),)}, "optim.lr_multipliers: '*' is not a regular expression"),
        ({"optim__decay": ()}, "optim.decay: needs at least one row"),
        ({"optim__train": ((".*", False),)}, "optim.train: no row says True"),
        ({"optim__lr_multipliers": ((".*", -1.0),)}, "optim.lr_multipliers: values must be >= 0"),
        ({"init__fresh": ("(",), "init__source": "runs/a"}, "init.fresh: '(' is not a regular expression"),
        ({"init__fresh": ("head",)}, "init.fresh: only a run with init.source reads it"),
        ({"init__step": "newest"}, "init.step: must be 'best', 'last' or a step number, got 'newest'"),
        (
            {"data__batch_size": 32, "train__micro_batches": 5},
            "data.batch_size=32 is not divisible by train.micro_batches=5",
        ),
        ({"data__split__validation": 0.0}, "train.eval_every needs validation data"),
        (
            {"data__split__validation": 0.0, "train__early_stop_patience": 3, "train__eval_every": 0},
            "train.early_stop_patience needs validation data",
        ),
        (
            {"data__split__validation": 0.0, "optim__schedule": "plateau", "train__eval_every": 0},
            "optim.schedule='plateau' needs validation data",
        ),
        ({"mesh__data": 0}, "mesh.data: must be -1 or >= 1, got 0"),
        ({"mesh__fsdp": -1}, "mesh: only one axis may be -1"),
        ({"data__path": ""}, "data.path: name a file, folder or glob"),
        ({"data__sources": {"a": SourceConfig()}}, "data.sources.a.path: must name"),
        ({"data__sources": {"a": SourceConfig(path="a", kind="xml")}}, "data.sources.a.kind: must be one of"),
        (
            {"data__path": "", "data__sources": {"a": SourceConfig(path="a", weight=1.0), "b": SourceConfig(path="b")}},
            "give every training source a weight > 0, or none",
        ),
        ({"data__split__validation": 0.5, "data__split__test": 0.5}, "leave nothing to train on"),
        ({"data__tokenizer__kind": "words"}, "data.tokenizer.kind: must be one of"),
        ({"data__tokenizer__kind": "auto"}, "tokenizer.kind='auto' needs config.data.tokenizer.path"),
        ({"data__packing": "tight"}, "data.packing: must be one of"),
        ({"data__on_bad": "ignore"}, "data.on_bad: must be one of"),
        ({"data__seq_len": 1}, "data.seq_len: must be >= 2, got 1"),
        ({"data__batch_size": 0}, "data.batch_size: must be >= 1, got 0"),
        ({"train__steps": 0}, "train.steps: must be >= 1, got 0"),
        *(
            (
                {"debug__profile_steps": steps},
                "debug.profile_steps: must be first,last with 1 <= first <= last <= train.steps=1000",
            )
            for steps in ((3,), (1, 2, 3), (0, 3), (5, 4), (-2, -1), (998, 1001))
        ),
    ],
)
def test_an_impossible_combination_is_named(changes, words):
    problems = problems_of(edit(GOOD, **changes))
    assert any(words in problem for problem in problems), problems
    assert all(problem.startswith("config.") for problem in problems)


@pytest.mark.parametrize(
    "changes",
    [
        {"model__dim": 100, "model__heads": 12, "model__head_dim": 16},
        {"model__position": "none", "model__head_dim": 33},
        {"model__position": "learned", "data__seq_len": 256},
        {"optim__peak_lr": "auto", "init__source": "runs/a"},
        {"optim__peak_lr": "auto"},
        {"optim__schedule": "cosine_restarts", "optim__restart_steps": 899, "optim__warmup_steps": 100},
        {"model__base_dim": 64, "model__base_head_dim": 16},
        {"model__base_dim": 256, "optim__name": "adafactor"},
        {"init__step": "500"},
        {"data__split__validation": 0.0, "train__eval_every": 0},
        {
            "data__split__validation": 0.0,
            "data__path": "",
            "data__sources": {"v": SourceConfig(path="v", split="validation")},
        },
        {"optim__schedule": "wsd", "optim__warmup_steps": 10, "optim__decay_steps": 990},
        {"debug__profile_steps": (1, 1)},
        {"debug__profile_steps": (990, 1000)},
    ],
)
def test_what_is_possible_is_not_refused(changes):
    check_config(edit(GOOD, **changes))


def test_all_problems_come_in_one_message():
    wrong = {"model__heads": 3, "optim__peak_lr": -1.0, "train__steps": 0, "data__seq_len": 1, "optim__name": "adam"}
    with pytest.raises(ConfigError) as caught:
        check_config(edit(GOOD, **wrong, mesh__fsdp=3), 8)
    text = str(caught.value)
    for word in ("model.heads", "optim.peak_lr", "train.steps", "data.seq_len", "adamw, sgd", "mesh"):
        assert word in text
    assert text.startswith(f"{len(caught.value.problems)} problems")


EXTREMES = st.one_of(st.integers(-3, 40), st.sampled_from([0, -1, 10**9]), st.floats(-2, 2))


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from(NUMERIC), EXTREMES, max_size=10), st.sampled_from([None, 1, 8]))
def test_no_mix_of_extreme_numbers_makes_the_check_itself_fail(changes, devices):
    whole = [key for key in NUMERIC if isinstance(_get(key), int)]
    changes = {key.replace(".", "__"): int(v) if key in whole else v for key, v in changes.items()}
    config = edit(GOOD, **changes)
    problems = collect(config, devices)
    assert len(set(problems)) == len(problems)


def _get(key):
    value = to_json(GOOD)
    for part in key.split("."):
        value = value[part]
    return value


# ---------------------------------------------------------------- mesh


@pytest.mark.parametrize(
    ("mesh", "devices", "words"),
    [
        (MeshConfig(4, 2, 1), 4, "mesh data=4 x fsdp=2 x context=1 x tensor=1 needs 8 devices, found 4"),
        (MeshConfig(1, 1, 1), 8, "needs 1 devices, found 8"),
        (MeshConfig(-1, 3, 1), 8, "needs a multiple of 3 devices, found 8"),
        (MeshConfig(-1, 16, 1), 8, "needs a multiple of 16 devices, found 8"),
    ],
)
def test_a_mesh_must_use_exactly_the_devices_there_are(mesh, devices, words):
    assert any(words in p for p in problems_of(replace(GOOD, mesh=mesh), devices))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__batch_size": 12}, "12 rows (data.batch_size=12 / train.micro_batches=1) do not divide over"),
        ({"data__batch_size": 8, "train__micro_batches": 4}, "2 rows (data.batch_size=8 / train.micro_batches=4)"),
        ({"mesh__tensor": 8, "model__heads": 4}, "model.heads=4 is not divisible by mesh.tensor=8"),
        ({"mesh__tensor": 4, "model__kv_heads": 2}, "model.kv_heads=2 is not divisible by mesh.tensor=4"),
        ({"mesh__tensor": 4, "model__mlp_dim": 42}, "model.mlp_dim=42 is not divisible by mesh.tensor=4"),
        ({"mesh__fsdp": 8, "model__dim": 100}, "model.dim=100 is not divisible by mesh.fsdp=8"),
    ],
)
def test_batch_and_weights_must_divide_over_the_mesh(changes, words):
    assert any(words in problem for problem in problems_of(edit(GOOD, **changes), 8))


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.integers(0, 3), st.integers(1, 600))
def test_mesh_shape_fills_one_axis_and_else_takes_only_the_exact_product(data, fsdp, tensor, free, devices):
    sizes = [data, fsdp, tensor]
    if free < 3:
        sizes[free] = -1
    known = math.prod(size for size in sizes if size > 0)
    fits = devices % known == 0 if free < 3 else devices == known
    if not fits:
        with pytest.raises(ConfigError, match=f"does not fit {devices} devices"):
            mesh_shape(MeshConfig(*sizes), devices)
        return
    shape = list(mesh_shape(MeshConfig(*sizes), devices).values())
    assert math.prod(shape) == devices
    assert all(size in (want, devices // known) for size, want in zip(shape, sizes))
    assert all(size == want for size, want in zip(shape, sizes) if want > 0)


def test_changed_keys_are_those_that_differ_from_their_default():
    assert changed_keys(Config()) == []
    config = edit(GOOD, train__steps=7, data__sources={"a": SourceConfig(path="a.txt")})
    assert changed_keys(config) == [
        ("data.path", "", "x.txt"),
        ("data.sources.a.path", "", "a.txt"),
        ("train.steps", 1000, 7),
    ]


def test_last_layers_trains_those_and_no_others():
    table = dict(last_layers(2, 12))
    assert table == {"block_10/.*": True, "block_11/.*": True, "norm_out/.*": True, ".*": False}


# ---------------------------------------------------------------- resume


def saved(config=GOOD):
    return json.loads(json.dumps(to_json(config)))


def test_the_same_config_resumes_without_a_word():
    assert check_resume(saved(), GOOD, "runs/a") == []
    assert check_resume(saved(), from_mapping(Config, saved()), "runs/a") == []


@pytest.mark.parametrize(
    "changes",
    [
        {"train__steps": 5000},
        {"optim__peak_lr": 2e-3},
        {"train__eval_every": 7},
        {"mesh__fsdp": 8, "mesh__data": 1},
        {"model__scan": True},
        {"model__remat": "full"},
        {"train__keep_last": 5},
        {"train__sample_prompts": ("To be",)},
        {"data__path": "moved.txt"},
    ],
)
def test_what_does_not_change_the_meaning_of_the_run_may_change(changes):
    lines = check_resume(saved(), edit(GOOD, **changes), "runs/a")
    assert len(lines) == len(changes)
    for name, value in changes.items():
        shown = list(value) if isinstance(value, tuple) else value
        assert any(name.replace("__", ".") in line and repr(shown) in line and "allowed" in line for line in lines)


@pytest.mark.parametrize(
    "changes",
    [
        {"model__layers": 12},
        {"model__dtype": "bfloat16"},
        {"model__tie_embeddings": False},
        {"optim__name": "sgd"},
        {"optim__train": (("norm_out/.*", True), (".*", False))},
        {"train__seed": 1},
        {"init__source": "runs/b"},
        {"data__seq_len": 128},
        {"data__seed": 5},
        {"data__clean__rules": ()},
        {"data__sources": {"a": SourceConfig(path="a.txt")}},
    ],
)
def test_what_changes_the_meaning_of_the_run_is_refused(changes):
    with pytest.raises(ConfigError, match="config differs from the run in runs/a") as caught:
        check_resume(saved(), edit(GOOD, **changes, train__steps=5000), "runs/a")
    (name,) = changes
    text = str(caught.value)
    assert name.replace("__", ".") in text
    assert "refused" in text
    assert "train.steps 1000 -> 5000 (allowed)" in text


@pytest.mark.parametrize(
    "changes", [{"data__cache_dir": "/elsewhere"}, {"data__on_bad": "skip"}, {"debug__profile_steps": (3, 5)}]
)
def test_what_cannot_matter_is_not_mentioned(changes):
    assert check_resume(saved(), edit(GOOD, **changes), "runs/a") == []


def test_whom_a_source_cites_cannot_matter():
    before, after = ({"a": SourceConfig(path="a.txt", license=text, url=text)} for text in ("", "CC0"))
    old = to_json(edit(GOOD, data__path="", data__sources=before))
    assert check_resume(old, edit(GOOD, data__path="", data__sources=after), "runs/a") == []


def test_a_key_that_did_not_exist_when_the_run_was_saved_had_its_default():
    old = saved(edit(GOOD, data__path="", data__sources={"a": SourceConfig(path="a.txt")}))
    now = edit(GOOD, data__path="", data__sources={"a": SourceConfig(path="a.txt")})
    del (
        old["train"]["keep_last"],
        old["model"]["qk_norm"],
        old["data"]["augment"],
        old["data"]["sources"]["a"]["epochs"],
    )
    assert check_resume(old, now, "runs/a") == []
    assert check_resume(old, edit(now, train__keep_last=5), "runs/a") == ["train.keep_last 2 -> 5 (allowed)"]
    for changes, words in (
        ({"model__qk_norm": True}, r"model\.qk_norm False -> True \(refused\)"),
        ({"data__sources": {"a": SourceConfig(path="a.txt", epochs=2.0)}}, r"data\.sources\.a\.epochs 0\.0 -> 2\.0 \(refused\)"),
        ({"data__sources": {**now.data.sources, "b": SourceConfig(path="b.txt")}}, r"data\.sources\.b\.kind None -> 'auto' \(refused\)"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            check_resume(old, edit(now, **changes), "runs/a")
