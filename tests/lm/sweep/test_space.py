"""Is all that is wrong with a sweep said before anything is computed?"""

from pathlib import Path

import pytest

from lm.config import Config, ConfigError
from lm.sweep.folds import check_sweepable
from lm.sweep.journal import Journal, Lock
from lm.sweep.race import alive
from lm.sweep.space import Sweep, choices, log_range, read_sweep, uniform

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def read(tmp_path, make_config):
    """(text of the dict) -> Sweep, against a tiny config."""

    def make(text, trials=""):
        path = tmp_path / "sweep.py"
        path.write_text(f"from lm.sweep.space import *\ndef get_sweep():\n    return {text}\n")
        return read_sweep(str(path), trials, make_config())

    return make


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{'space': {'optim.peak_rl': uniform(0.1, 1)}}", "did you mean 'optim.peak_lr'"),
        ("{'space': {'optim.peak_lr': log_range(0, 1)}}", "needs ends above 0"),
        ("{'space': {'optim.peak_lr': uniform(0.2, 0.1)}}", "is an empty range"),
        ("{'space': {'optim.peak_lr': 0.1}}", "must be log_range"),
        ("{'space': {'optim.peak_lr': uniform(0.1, float('inf'))}}", "finite numbers"),
        ("{'space': {'optim.name': choices('adamw', 'adamm')}}", "'adamm' is not one of"),
        ("{'space': {'model.layers': uniform(1.5, 3)}}", "expected an integer, got 1.5"),
        ("{'space': {'model.layers': choices('two')}}", "expected an integer, got 'two'"),
        ("{'space': {'model.layers': choices()}}", "of nothing"),
        ("{'space': {'optim.b1': choices(0.9, 0.9)}}", "stands twice"),
        ("{'space': {'optim.b1': uniform(0.5, 1.5)}}", r"must be in \[0, 1\), got 1.5"),
        ("{'space': {'data.batch_size': choices(7, 8), 'train.micro_batches': choices(2,)}}", "not divisible by"),
        ("{'space': {'data.split.test': uniform(0.1, 0.2)}}", "the same data"),
        ("{'space': {'data.tokenizer.vocab_size': choices(300, 400)}}", "eval/bits_per_byte"),
        ("{'space': {'optim.b1': uniform(0.5, 0.9)}, 'sampler': 'grid'}", "a grid has no ranges; name its points"),
        ("{'space': {'optim.b1': choices(0.5, 0.9)}, 'sampler': 'grid', 'trials': 3}", "the grid has 2 combinations"),
        ("{'space': {}, 'sampler': 'bayes'}", "'bayes' is not one of tpe, grid, random"),
        ("{'space': {'optim.b1': choices(0.5)}, 'trails': 3}", "did you mean 'trials'"),
        ("{'space': {'optim.b1': choices(0.5)}, 'metric': 'loss'}", "such as 'eval/loss'"),
        ("{'space': {'optim.schedule': choices('cosine', 'plateau')}}", "which the refit has not"),
        ("3", "must define get_sweep"),
    ],
)
def test_a_fault_is_named(read, text, words):
    with pytest.raises(ConfigError, match=words):
        read(text)


def test_all_faults_are_listed_at_once(read):
    with pytest.raises(ConfigError) as found:
        read("{'space': {'optim.b1': uniform(1, 0), 'x': 3}, 'sampler': 'no', 'trials': -1}")
    assert len(found.value.problems) == 4


def test_sizes_that_fit_only_together_are_allowed(read):
    sweep = read(
        "{'space': {'model.dim': choices(24, 48), 'model.heads': choices(3, 6), 'model.kv_heads': choices(3,)}}"
    )
    assert (sweep.trials, sweep.round, sweep.direction) == (20, 4, "minimize")
    assert read("{'space': {'optim.b1': choices(0.5)}, 'metric': 'eval/accuracy'}").direction == "maximize"
    assert read("{'space': {'optim.b1': choices(0.5, 0.6)}, 'sampler': 'grid'}").trials == 2


def test_the_example_fits_its_config():
    from lm.check import read_config

    config = read_config(str(ROOT / "configs/smoke.py"), {})
    assert read_sweep(str(ROOT / "configs/sweeps/rates.py"), "7", config).trials == 7


@pytest.mark.parametrize(
    ("data", "words"),
    [({"prepared": "x"}, "dealt already"), ({"split": {"by": "position"}}, "set it to 'hash'")],
)
def test_data_that_cannot_be_dealt_is_refused(data, words):
    from dataclasses import replace

    config = Config()
    split = replace(config.data.split, **data.pop("split", {}))
    config = replace(config, data=replace(config.data, split=split, **data))
    with pytest.raises(ConfigError, match=words):
        check_sweepable(config, 5)
    with pytest.raises(ConfigError, match="2 folds or more"):
        check_sweepable(config, 1)


SPACE = {"optim.peak_lr": log_range(1e-4, 1e-1), "optim.name": choices("adamw", "lion"), "model.layers": uniform(1, 4)}


def open_journal(folder, identity=1, direction="minimize"):
    return Journal(folder, SPACE, direction, {"identity": identity})


def play(journal, sweep, upto, stop_after=10**9):
    """Runs a sweep on a formula; stops, as if killed, after so many results."""
    from lm.sweep.ask import ask_round

    for _ in range(upto):
        trials = journal.trials()
        if all(t.state != "running" for t in trials):
            journal.add(ask_round(journal, sweep, trials)[: stop_after or 1])
        elif len(trials) % sweep.round:
            journal.add(ask_round(journal, sweep, trials))
        for trial in journal.trials():
            for fold in range(3):
                if trial.state == "running" and fold not in trial.values:
                    if not stop_after:
                        return
                    stop_after -= 1
                    journal.record(trial.number, fold, abs(trial.params["optim.peak_lr"] - 0.01) + fold, {"seconds": 1})
        for trial in journal.trials():
            if trial.state == "running":
                journal.settle(trial, 3)


def test_a_journal_that_was_cut_anywhere_asks_for_the_same_trials(tmp_path):
    sweep = Sweep(SPACE, trials=8, round=4, direction="minimize")
    whole = open_journal(tmp_path)
    play(whole, sweep, 2)
    wanted = [(t.params, t.values, t.state) for t in whole.trials()]
    assert len(wanted) == 8
    for stop in (1, 17):
        folder = tmp_path / str(stop)
        folder.mkdir()
        play(open_journal(folder), sweep, 2, stop)
        with open(folder / "journal.log", "ab") as file:
            file.write(b'{"op_code": 6, "trial_i')  # a crash of the machine cut the last line
        again = open_journal(folder)
        while sum(t.state != "running" for t in again.trials()) < 8:
            play(again, sweep, 1)
        assert [(t.params, t.values, t.state) for t in again.trials()] == wanted


def test_who_comes_late_neither_asks_nor_ends_the_next_round(tmp_path, make_config):
    """Two processes that see a round begin, or end, at the same moment."""
    from lm.sweep.work import Worker

    sweep = Sweep(SPACE, trials=6, round=3, direction="minimize")
    quick, late = (Worker(open_journal(tmp_path), sweep, make_config(), 2, 1, opened=None, say=print) for _ in range(2))
    quick._ask(0)
    late._ask(0)
    trials = quick.journal.trials()
    assert len(trials) == 3
    for trial in trials:
        for fold in range(2):
            quick.journal.record(trial.number, fold, 1.0, {"seconds": 1})
    quick._settle(0)
    quick._ask(3)
    late._settle(0)
    assert [trial.state for trial in late.journal.trials()] == ["complete"] * 3 + ["running"] * 3


def test_a_journal_of_another_sweep_is_refused(tmp_path):
    open_journal(tmp_path)
    with pytest.raises(ConfigError, match=r"holds another sweep(.|\n)*identity: 1 there, 2 now"):
        open_journal(tmp_path, identity=2)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/journal.log").write_text("no journal\n" * 2)
    with pytest.raises(ConfigError, match="no journal of a sweep"):
        open_journal(tmp_path / "b")


def test_a_lock_is_held_by_one(tmp_path):
    first, second = Lock(tmp_path / "x"), Lock(tmp_path / "x")
    assert first.acquire()
    assert not second.acquire(wait=False)
    first.release()
    assert second.acquire(wait=False)
    second.release()


def trial(number, *values, state="running"):
    from lm.sweep.journal import Trial

    return Trial(number, {}, dict(enumerate(values)), {}, state)


def test_a_race_gives_up_what_is_worse_on_every_fold_and_what_diverged():
    best = trial(0, 1.0, 2.0, 3.0, state="complete")  # folds differ more than trials do
    worse, near, lost = trial(4, 3.0, 4.01, 5.0), trial(5, 1.01, 2.02, 3.0), trial(6, float("inf"), 1.0)
    trials = [best, worse, near, lost]
    sweep = Sweep(SPACE, trials=8, round=4, direction="minimize")
    assert [t.number for t in alive(trials, sweep, 4, 0)] == [4, 5, 6]
    assert [t.number for t in alive(trials, sweep, 4, 1)] == [4, 5]
    assert [t.number for t in alive(trials, sweep, 4, 2)] == [5]
    kept = Sweep(SPACE, trials=8, round=4, direction="minimize", prune=False)
    assert [t.number for t in alive(trials, kept, 4, 2)] == [4, 5]
    other_way = Sweep(SPACE, trials=8, round=4, direction="maximize")
    assert [t.number for t in alive(trials[:3], other_way, 4, 2)] == [4]


def test_the_rule_takes_the_simplest_within_one_standard_error():
    from lm.sweep.winner import choose, make_row

    def row(number, rate, size, *values):
        made = make_row(trial(number, *values, state="complete"), sweep, 3)
        return made | {"peak_lr": rate, "trained_params": size, "steps": 5}

    sweep = Sweep(SPACE, direction="minimize")
    rows = [row(0, 0.1, 9, 1.0, 1.2, 1.1), row(1, 0.01, 9, 1.1, 1.2, 1.15), row(2, 0.001, 9, 1.3, 1.3, 1.3)]
    winner, best = choose(rows, sweep)
    assert (winner["number"], best["number"]) == (1, 0)
    winner, _ = choose([*rows, row(3, 1.0, 5, 1.1, 1.2, 1.15)], sweep)
    assert winner["number"] == 3  # fewer trained numbers come before a lower rate
    assert choose(rows, Sweep(SPACE, direction="minimize", rule="best"))[0]["number"] == 0
    with pytest.raises(ValueError, match="every one diverged"):
        choose([row(0, 0.1, 9, float("inf"))], sweep)
