"""Is what a run writes readable, exact, and without what a killed run wrote after its last checkpoint?"""

import json
import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from tensorboardX.proto.event_pb2 import Event

from lm.clock import PARTS
from lm.logger import Logger, duration, plot_losses, run_card, write_json


def read_lines(path):
    """Every line as strict JSON: NaN and Infinity are refused."""

    def refuse(word):
        raise AssertionError(f"{path} holds {word}, which is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def read_events(workdir):
    """All TensorBoard events, in the order of their files."""
    events = []
    for path in sorted((workdir / "tensorboard").glob("events.*"), key=lambda p: (p.stat().st_mtime_ns, p.name)):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            events.append(Event.FromString(data[at + 12 : at + 12 + size]))
            at += 16 + size
    return events


def read_scalars(workdir):
    return [(e.step, v.tag, v.simple_value) for e in read_events(workdir) for v in e.summary.value]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (60, "1m00s"), (75, "1m15s"), (3599, "59m59s"), (3600, "1h00m"), (360_000, "100h00m")],
)
def test_durations_read_like_a_clock(seconds, text):
    assert duration(seconds) == text


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_longer_duration_never_reads_shorter(a, b):
    def seconds(text):
        units = {"s": 1, "m": 60, "h": 3600}
        total, digits = 0, ""
        for character in text:
            if character in units:
                total, digits = total + int(digits) * units[character], ""
            else:
                digits += character
        return total

    low, high = sorted((a, b))
    assert seconds(duration(low)) <= seconds(duration(high)) <= high
    assert high - seconds(duration(high)) < (1 if high < 3600 else 60)


def test_write_json_replaces_whole_files_only(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, 2.5, None, "语"]})
    assert json.loads(path.read_text()) == {"a": [1, 2.5, None, "语"]}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": [1, 2.5, None, "语"]}
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".tmp")] == ["a.json"]


HISTORY = [
    {"step": 10, "train/loss": 3.25, "lr": 1e-3},
    {"step": 20, "train/loss": 2.5, "lr": 9e-4},
    {"step": 20, "eval/loss": 2.75},
]


def test_a_new_run_appends_one_object_a_line_at_once(tmp_path):
    logger = Logger(tmp_path, True, [], 0)
    for number, record in enumerate(HISTORY, 1):
        logger.record(record)
        assert read_lines(tmp_path / "metrics.jsonl") == HISTORY[:number]  # on disk before the run goes on
    logger.close()


def test_a_resumed_run_starts_from_the_history_of_its_checkpoint(tmp_path):
    first = Logger(tmp_path, True, [], 0)
    for record in [*HISTORY, {"step": 30, "train/loss": 2.0}, {"step": 40, "train/loss": 1.9}]:
        first.record(record)
    first.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 50, "train/lo')
    second = Logger(tmp_path, True, HISTORY, HISTORY[-1]["step"])
    assert read_lines(tmp_path / "metrics.jsonl") == HISTORY
    second.record({"step": 30, "train/loss": 2.0})
    second.close()
    assert read_lines(tmp_path / "metrics.jsonl") == [*HISTORY, {"step": 30, "train/loss": 2.0}]


def test_metrics_of_an_interrupted_run_end_up_byte_equal_to_an_uninterrupted_one(tmp_path):
    records = [{"step": s, "train/loss": 3 / s, "mfu": None, "eval": math.nan if s == 2 else 0.1} for s in range(1, 7)]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    logger = Logger(whole, True, [], 0)
    for record in records:
        logger.record(record)
    logger.close()
    for kept, done in ((0, 3), (2, 5), (5, 6)):  # resumed from `kept` records, killed after `done`
        logger = Logger(parts, True, records[:kept], records[:kept][-1]["step"] if kept else 0)
        for record in records[kept:done]:
            logger.record(record)
        logger.close()
    assert (parts / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_becomes_null(tmp_path, value):
    logger = Logger(tmp_path, True, [{"step": 1, "train/loss": value}], 1)
    logger.record({"step": 2, "train/loss": value, "lr": 0.5})
    logger.close()
    assert read_lines(tmp_path / "metrics.jsonl") == [
        {"step": 1, "train/loss": None},
        {"step": 2, "train/loss": None, "lr": 0.5},
    ]


@pytest.mark.parametrize("name", ["samples.jsonl", "bad_batches.jsonl"])
def test_samples_after_the_checkpoint_and_a_cut_last_line_go(tmp_path, name):
    records = [{"step": s, "text": "第一行\n\u2028 end"} for s in (10, 20, 30)]
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    for cut in (1, 5, len(lines[2]) - 2):
        (tmp_path / name).write_text(lines[0] + lines[1] + lines[2][:cut])
        Logger(tmp_path, True, HISTORY, HISTORY[-1]["step"]).close()
        assert (tmp_path / name).read_text() == lines[0] + lines[1]
    (tmp_path / name).write_text("".join(lines))
    Logger(tmp_path, True, HISTORY, HISTORY[-1]["step"]).close()
    assert (tmp_path / name).read_text() == lines[0] + lines[1]


def test_samples_are_kept_when_a_character_was_cut_in_half(tmp_path):
    line = json.dumps({"step": 10, "text": "语"}, ensure_ascii=False).encode() + b"\n"
    for cut in range(1, len(line)):
        (tmp_path / "samples.jsonl").write_bytes(line + line[:cut])
        Logger(tmp_path, True, HISTORY, HISTORY[-1]["step"]).close()
        kept = (tmp_path / "samples.jsonl").read_bytes()
        assert kept in (line, line + line[:-1] + b"\n")  # only its line end was missing: nothing is lost


def test_tensorboard_has_the_same_numbers(tmp_path):
    logger = Logger(tmp_path, True, [], 0)
    for record in [*HISTORY, {"step": 30, "mfu": None, "note": "text", "train/loss": math.nan}]:
        logger.record(record)
    logger.close()
    scalars = read_scalars(tmp_path)
    want = [(r["step"], key, np.float32(v)) for r in HISTORY for key, v in r.items() if key != "step"]
    assert [scalar for scalar in scalars if scalar[0] < 30] == want
    assert {tag for step, tag, _ in scalars if step == 30} <= {"train/loss"}


def test_tensorboard_purges_what_a_resumed_run_writes_again(tmp_path):
    first = Logger(tmp_path, True, [], 0)
    for step in (10, 20, 30, 40):
        first.record({"step": step, "train/loss": float(step)})
    first.close()
    second = Logger(tmp_path, True, HISTORY, HISTORY[-1]["step"])
    second.record({"step": 30, "train/loss": -1.0})
    second.close()
    starts = [event.step for event in read_events(tmp_path) if event.session_log.status == event.session_log.START]
    assert starts == [21]  # TensorBoard drops every earlier point from this step on


def test_other_processes_write_and_print_nothing(tmp_path, capsys):
    logger = Logger(tmp_path, False, HISTORY, HISTORY[-1]["step"])
    logger.record({"step": 30})
    logger.say("hello")
    logger.progress("step 30")
    logger.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_in_a_file_every_progress_line_is_a_line(tmp_path, capsys):
    logger = Logger(tmp_path, True, [], 0)
    logger.progress("step 1")
    logger.say("evaluated")
    logger.close()
    assert capsys.readouterr().out == "step 1\nevaluated\n"


@pytest.mark.parametrize(
    "history",
    [[], HISTORY, [*HISTORY, {"step": 30, "train/loss": math.nan}, {"step": 30, "eval/loss": None}]],
)
@pytest.mark.filterwarnings("error")
def test_the_loss_plot_is_a_picture(tmp_path, history):
    plot_losses(tmp_path / "loss.png", history)
    assert (tmp_path / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = imread(tmp_path / "loss.png")
    assert pixels.shape[0] > 100
    assert pixels.std() > 0.01
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_the_loss_plot_shows_the_losses(tmp_path):
    falling = [{"step": s, "train/loss": 5.0 - s} for s in range(4)]
    rising = [{"step": s, "train/loss": 2.0 + s} for s in range(4)]
    for name, history in (("a", falling), ("b", rising), ("c", falling)):
        plot_losses(tmp_path / f"{name}.png", history)
    a, b, c = (imread(tmp_path / f"{name}.png") for name in "abc")
    assert np.array_equal(a, c)
    assert a.shape != b.shape or not np.array_equal(a, b)


def card(**changes):
    summary = {
        "workdir": "runs/x", "start": "started from random weights", "status": "finished", "steps": 1234,
        "steps_planned": 2000, "wall_seconds": 75.0, "tokens_seen": 7_654_321, "best_step": 1100, "train/loss": 1.1111,
        "eval/loss": 2.2222, "best/eval/loss": 2.0101, "eval/perplexity": 9.228, "best/eval/perplexity": 7.465,
        "eval/bits_per_byte": 1.3131, "best/eval/bits_per_byte": 1.2121, "eval/accuracy": 0.4747,
        "best/eval/accuracy": 0.4848, "tokens_per_sec": 98765.0, "mfu": 0.321, "peak": "measured", "devices": "8 x cpu",
        "params_sha256": "ab" * 32, "data_sha256": "cd" * 32, "versions": {"python": "3.11.9", "jax": "0.10.2"},
        "config_changes": {"optim.peak_lr": 0.002}, "goodput": 0.625,
        "time": {
            "starts": 3, "seconds": 160.0, "down": 5.0,
            "parts": dict.fromkeys(PARTS, 0.0) | {"input": 10.0, "step": 90.0, "startup": 40.0, "lost": 20.0},
        },
        "data": {"sources": {"novels": {"splits": {"train": {"documents": 4321, "tokens": 876_543, "rows": 2109}}, "credits": {"license": "CC-BY-4.0"}}}},
    }  # fmt: skip
    receipt = {
        "trained_params": 1_000_001, "frozen_params": 2_000_002, "optimizer_numbers": 3_000_003,
        "flops_per_step": 4.0e9, "flops_per_step_if_all_trained": 8.0e9,
    }  # fmt: skip
    return run_card({**summary, **changes}, receipt, {"python -m lm.generate --workdir=runs/x": "write text"})


def test_the_run_card_holds_the_numbers():
    text = card()
    for number in (
        "1,234", "2,000", "1m15s", "7,654,321", "1100", "1.1111", "2.2222", "2.0101", "9.228", "7.465", "1.3131",
        "1.2121", "0.4747", "0.4848", "98,765", "0.321", "8 x cpu", "ab" * 32, "cd" * 32, "python 3.11.9", "jax 0.10.2",
        "optim.peak_lr = 0.002", "novels", "4,321", "novels: license CC-BY-4.0", "876,543", "2,109", "1,000,001", "2,000,002", "3,000,003", "4e+09", "0.50",
        "python -m lm.generate --workdir=runs/x", "write text", "loss.png", "2m40s in 3 starts", "count 62.5% (goodput)",
        "start-up 25.0%", "done again 12.5%", "evaluation 0.0%",
    ):  # fmt: skip
        assert number in text, number


def test_a_run_without_validation_has_a_card_too():
    names = ("loss", "perplexity", "bits_per_byte", "accuracy")
    text = card(best_step=None, **{f"{p}eval/{name}": None for p in ("", "best/") for name in names}, mfu=None)
    assert "| eval/loss, nats a token | - | - |" in text
    assert "nan" not in text
