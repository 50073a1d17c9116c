"""Is a trial that trains beside others the run that `launch.py` would make of its config?"""

import jax
import numpy as np
import pytest

from data_pipeline.batch import open_data
from lm.clock import Clock
from lm.evaluate import evaluate, make_eval_step
from lm.parts import make_parts
from lm.sharding import put_batch
from lm.start import start_state
from lm.sweep.fold_run import run_fold
from lm.sweep.folds import of_fold
from lm.sweep.program import Program, dials_of, fit, program_key
from lm.sweep.space import with_keys

VALUES = {
    "optim.peak_lr": (1e-2, 3e-2, 1e-3), "optim.weight_decay": (0.1, 0.3, 0.0), "optim.b1": (0.9, 0.8, 0.7),
    "optim.b2": (0.95, 0.99, 0.9), "optim.eps": (1e-8, 1e-6, 1e-8), "optim.clip_norm": (1.0, 0.1, 5.0),
    "optim.end_lr_ratio": (0.1, 0.5, 0.2), "optim.warmup_steps": (1, 3, 2), "train.label_smoothing": (0.1, 0.2, 0.3),
    "train.z_loss": (1e-3, 1e-2, 1e-1), "train.seed": (0, 1, 2),
}  # fmt: skip
KEYS = tuple(VALUES)


def quiet(text):
    del text


@pytest.fixture(scope="module")
def fold(config):
    """(config of fold 0, its opened data)."""
    ours = of_fold(config, 3, 0)
    return ours, open_data(ours.data, log=quiet)


def trial_of(config, number):
    return with_keys(config, {key: values[number] for key, values in VALUES.items()})


def run_alone(config, data):
    """The summed loss and the targets of each ordinary step, and the final evaluation."""
    parts = make_parts(config, data.tokenizer.vocab_size, config.optim.peak_lr)
    state, key, losses = start_state(parts), jax.random.key(config.train.seed), []
    batches = data.train_batches(0, (0, config.data.batch_size))
    for _ in range(config.train.steps):
        state, metrics = parts.train_step(state, put_batch(next(batches), parts.mesh, config.data.batch_size), key)
        losses.append([float(metrics["train/loss"]) * float(metrics["targets"]), float(metrics["targets"])])
    batches.close()
    step = make_eval_step(parts.model, data.tokenizer.token_bytes())
    size = config.train.eval_batch_size
    return losses, evaluate(
        step, state.params, data.eval_batches("validation", size, (0, size)), parts.mesh, size, parts.model.config
    )


@pytest.fixture(scope="module")
def beside(fold):
    """Two trials that differ in every dial and in the seed, side by side."""
    config, data = fold
    configs = [trial_of(config, number) for number in range(2)]
    program = Program(configs[0], KEYS, data.tokenizer.vocab_size, 2, False, quiet)
    return configs, program, run_fold(program, configs, data, "eval/loss", "")


def test_every_dial_gives_what_a_run_gives(fold, beside):
    configs, _, results = beside
    assert results[0].evaluation["loss"] != pytest.approx(results[1].evaluation["loss"], abs=1e-3)
    for config, result in zip(configs, results):
        losses, evaluation = run_alone(config, fold[1])
        sums, targets = np.reshape(losses, (-1, config.train.log_every, 2)).sum(axis=1).T
        np.testing.assert_allclose([value for _, value in result.train_curve], sums / targets, atol=1e-5)
        assert set(result.evaluation) == set(evaluation)
        assert result.evaluation["loss"] == pytest.approx(evaluation["loss"], abs=1e-5)
        assert [step for step, _ in result.eval_curve] == [3, 6]


def test_a_trial_does_not_depend_on_those_beside_it(fold, beside):
    configs, program, results = beside
    again = run_fold(program, configs[1:], fold[1], "eval/loss", "")  # fills up with itself
    assert len(again) == 1
    assert again[0].evaluation["loss"] == pytest.approx(results[1].evaluation["loss"], abs=1e-6)


def test_dials_share_a_program_and_nothing_else_does(fold):
    config, _ = fold
    names = [program_key(trial_of(config, number), KEYS) for number in range(3)]
    assert names[0] == names[1] != names[2]  # the third switches decay off
    assert "optim.weight_decay" not in dials_of(trial_of(config, 2), KEYS)
    assert program_key(with_keys(config, {"data.batch_size": 4}), KEYS) != program_key(config, KEYS)
    assert program_key(with_keys(config, {"optim.b1": 0.5}), ()) != program_key(config, ())  # not searched: a constant


@pytest.mark.slow
def test_as_many_trials_side_by_side_as_memory_holds(fold, monkeypatch):
    config, data = fold
    size = Program(config, KEYS, data.tokenizer.vocab_size, 2, False, quiet).needed_bytes()
    monkeypatch.setattr("lm.sweep.program.memory_left", lambda: (size * 1.1 / 0.6, 2**40))
    assert fit(config, KEYS, data.tokenizer.vocab_size, 4, quiet) == 2


@pytest.mark.slow
def test_a_trial_is_the_run_that_launch_makes(fold, beside, tmp_path):
    from lm.build import make_run
    from lm.train import train

    configs, _, results = beside
    run, _, _ = make_run(configs[1], fold[1], tmp_path, None, quiet, Clock())
    train(run)
    losses = [record["eval/loss"] for record in run.progress.history if "eval/loss" in record]
    np.testing.assert_allclose([value for _, value in results[1].eval_curve], losses, atol=1e-5)
    trained = [record["train/loss"] for record in run.progress.history if "train/loss" in record]
    np.testing.assert_allclose([value for _, value in results[1].train_curve], trained, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_frozen_weights_lie_there_once_and_losses_in_pieces_work(fold, count):
    config, data = fold
    config = with_keys(config, {
        "optim.train": (("block_.*|norm_out/.*", True), (".*", False)), "train.loss_chunk": 32,
        "train.label_smoothing": 0.1, "train.z_loss": 1e-3,
    })  # fmt: skip
    configs = [with_keys(config, {"optim.peak_lr": rate}) for rate in (1e-2, 3e-2)][:count]
    keys = ("optim.peak_lr", "train.label_smoothing", "train.z_loss")
    program = Program(configs[0], keys, data.tokenizer.vocab_size, count, True, quiet)
    state = program.start(configs, data.tokenizer.sha256)
    assert state.params["embed"].ndim == 2
    results = run_fold(program, configs, data, "eval/loss", "")
    for one, result in zip(configs, results):
        assert result.evaluation["loss"] == pytest.approx(run_alone(one, data)[1]["loss"], abs=1e-5)
