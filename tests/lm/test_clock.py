"""Does every second of a run count once, for the right part, and is what a kill cost told from the lines alone?"""

import json
import time

import pytest

from lm.clock import LOOP, PARTS, Clock, account


def spend(clock, part, seconds):
    with clock.part(part):
        time.sleep(seconds)


def test_the_parts_add_up_to_the_wall_time():
    began = time.perf_counter()
    clock = Clock(began)
    time.sleep(0.02)
    for part in ("eval", "input", "step"):
        spend(clock, part, 0.01)
    clock.start_counting()
    with clock.part("step"):
        time.sleep(0.02)
        spend(clock, "log", 0.03)
        time.sleep(0.01)
    time.sleep(0.01)
    spend(clock, "save", 0.01)
    before = time.perf_counter() - began
    clock.whole()
    assert set(clock.seconds) == set(PARTS)
    assert before <= sum(clock.seconds.values()) + 1e-9 <= time.perf_counter() - began + 2e-9
    least = {"startup": 0.04, "step": 0.03, "log": 0.03, "other": 0.01, "eval": 0.01, "save": 0.01}
    for part, seconds in least.items():
        assert clock.seconds[part] >= seconds, part
    assert clock.seconds["input"] == clock.seconds["put"] == 0  # before the first step was through: start-up


def test_a_part_ends_when_what_is_in_it_fails():
    clock = Clock()
    with pytest.raises(KeyError), clock.part("step"), clock.part("log"):
        raise KeyError
    before = dict(clock.seconds)
    time.sleep(0.01)
    clock.whole()
    spend(clock, "eval", 0)
    assert clock.seconds["step"] == before["step"]
    assert clock.seconds["startup"] >= before["startup"] + 0.01


def test_a_lap_is_the_wall_time_between_two_log_lines_without_evaluations_and_saves():
    clock = Clock()
    spend(clock, "step", 0.01)
    clock.count(100)
    assert clock.lap() is None
    assert clock.whole().total == 0
    before = time.perf_counter()
    clock.start_counting()
    began = time.perf_counter()
    for _ in range(4):
        spend(clock, "input", 0.005)
        spend(clock, "step", 0.01)
        clock.count(7)
    spend(clock, "eval", 0.03)
    spend(clock, "save", 0.02)
    after = time.perf_counter()
    lap = clock.lap()
    aside = clock.seconds["eval"] + clock.seconds["save"]
    assert aside >= 0.05
    assert (lap.steps, lap.tokens) == (4, 28)
    assert set(lap.seconds) == set(LOOP)
    assert after - began - aside - 1e-9 <= lap.total <= time.perf_counter() - before - aside + 1e-9
    record = lap.record()
    assert sum(record.values()) == pytest.approx(1e3 * lap.total / 4)
    assert (record["time/input_ms"] >= 5, record["time/step_ms"] >= 10) == (True, True)
    assert clock.lap().steps == 0
    assert set(clock.lap().record().values()) == {None}  # no step, no time a step
    assert clock.whole().steps == 4


def write(path, *starts, began=1000.0):
    """An events.jsonl of these starts: lists of (event, step, seconds so far by part)."""
    now = began
    with open(path, "w") as file:
        for events in starts:
            for event, step, seconds in [("start", None, {"startup": 1.0}), *events]:
                line = {"time": now + sum(seconds.values()), "event": event, "seconds": seconds}
                file.write(json.dumps(line | ({} if step is None else {"step": step})) + "\n")
            now = line["time"] + 50
    return path


def at(startup, step, save=0.0, **more):
    return {"startup": startup, "step": step, "save": save, **more}


READY, FIRST = ("ready", 0, at(8, 0)), ("first_step", 1, at(10, 0))
KILLED = [
    READY, FIRST, ("saved", 10, at(10, 20, 1)), ("eval", 20, at(10, 40, 1, eval=3)), ("saved", 20, at(10, 40, 2, eval=3)),
    ("running", 27, at(10, 54, 2, eval=3)),
]  # fmt: skip


def test_one_start_that_ends_well(tmp_path):
    found = account(write(tmp_path / "e", [READY, FIRST, ("exit", 30, at(10, 60, 2, eval=8))]))
    assert found["goodput"] == 60 / 80
    assert found["time"]["seconds"] == 80
    assert found["time"]["parts"] == dict.fromkeys(PARTS, 0) | {
        "startup": 10,
        "step": 60,
        "save": 2,
        "eval": 8,
        "lost": 0,
    }
    assert (found["time"]["starts"], found["time"]["down"]) == (1, 0)


def test_what_a_killed_run_did_after_the_checkpoint_that_counts_is_lost(tmp_path):
    again = [("ready", 20, at(8, 0)), ("first_step", 21, at(9, 0)), ("exit", 30, at(9, 18, 1))]
    found = account(write(tmp_path / "e", KILLED, again))
    parts = found["time"]["parts"]
    assert (parts["startup"], parts["step"], parts["save"], parts["eval"], parts["lost"]) == (19, 58, 3, 3, 14)
    assert found["time"]["seconds"] == sum(parts.values()) == 69 + 28
    assert found["goodput"] == pytest.approx(58 / 97)
    assert (found["time"]["starts"], found["time"]["down"]) == (2, 50)


def test_an_older_checkpoint_costs_more_also_of_the_start_before(tmp_path):
    """The second start went on from 20, was killed, and the third found only step 10 undamaged."""
    second = [
        ("ready", 20, at(8, 0)),
        ("first_step", 21, at(9, 0)),
        ("saved", 30, at(9, 20, 1)),
        ("running", 31, at(9, 22, 1)),
    ]
    third = [("ready", 10, at(8, 0)), ("first_step", 11, at(9, 0)), ("exit", 30, at(9, 40, 1))]
    parts = account(write(tmp_path / "e", KILLED, second, third))["time"]["parts"]
    assert parts["step"] == 20 + 0 + 40
    assert parts["lost"] == (34 + 1 + 3) + 23
    assert parts["startup"] == 10 + 9 + 9


def test_a_start_that_was_killed_before_a_step_is_start_up(tmp_path):
    done = [READY, FIRST, ("exit", 30, at(10, 60))]
    for killed in ([], [("ready", 0, at(8, 0))], [("exit", None, at(3, 0))]):
        found = account(write(tmp_path / "e", killed, done))
        assert found["time"]["parts"]["lost"] == 0
        startup = 10 + (killed[-1][2]["startup"] if killed else 1)
        assert found["time"]["parts"]["startup"] == startup
        assert found["goodput"] == pytest.approx(60 / (60 + startup))


def test_a_stop_that_saved_loses_nothing(tmp_path):
    stopped = [READY, FIRST, ("saved", 12, at(10, 24, 1)), ("exit", 12, at(10, 24, 2, other=1))]
    again = [("ready", 12, at(8, 0)), ("exit", 30, at(10, 36))]
    assert account(write(tmp_path / "e", stopped, again))["time"]["parts"]["lost"] == 0


def test_lines_that_a_kill_cut_short_are_passed_over(tmp_path):
    path = write(tmp_path / "e", KILLED, [("ready", 20, at(8, 0)), ("exit", 30, at(9, 18, 1))])
    want = account(path)
    lines = path.read_bytes().splitlines(keepends=True)
    cut = len(KILLED) + 1
    path.write_bytes(b"".join(lines[:cut]) + b'{"time": 5, "even\nnull\n[1]\n\xff\x00\n' + b"".join(lines[cut:]))
    assert account(path) == want
    assert account(tmp_path / "missing")["goodput"] is None
    assert account(tmp_path / "missing")["time"]["starts"] == 0


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_clock_notes_its_turns_and_account_reads_them(tmp_path):
    path = tmp_path / "events.jsonl"
    clock = Clock()
    clock.note("never")  # no file yet: other processes than the first
    clock.open(path)
    clock.note("ready", step=0)
    spend(clock, "step", 0.02)
    clock.start_counting()
    spend(clock, "step", 0.03)
    clock.note("exit", step=2, status="finished")
    assert [event["event"] for event in read(path)] == ["start", "ready", "exit"]
    found = account(path)
    assert found["time"]["seconds"] == pytest.approx(sum(clock.seconds.values()), abs=1e-3)
    assert found["time"]["parts"]["step"] >= 0.03
    assert found["goodput"] == pytest.approx(clock.seconds["step"] / sum(clock.seconds.values()), abs=0.01)
    path.write_bytes(path.read_bytes() + b'{"time": 1')
    Clock().open(path)
    assert account(path)["time"]["starts"] == 2


def test_a_run_says_that_it_is_alive_but_not_at_every_step(tmp_path):
    clock = Clock(time.perf_counter() - 200)
    clock.open(tmp_path / "e")
    for step in range(50):
        clock.beat(step)
    assert len(read(tmp_path / "e")) == 1
    clock._noted -= 1.9
    clock.beat(50)
    assert len(read(tmp_path / "e")) == 1  # a hundredth of 200 s has not passed
    clock._noted -= 0.2
    clock.beat(51)
    assert read(tmp_path / "e")[-1]["step"] == 51


def test_a_disk_that_takes_no_line_does_not_end_the_run(tmp_path):
    clock = Clock()
    clock.open(tmp_path / "nowhere" / "events.jsonl")
    clock.note("exit", step=3)
