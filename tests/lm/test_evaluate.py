"""Is the loss of a split exact, whatever the batch size, padding and device count?"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import MeshConfig, ModelConfig, UserError
from lm.evaluate import evaluate, make_eval_step, summarise
from lm.model.transformer import Model
from lm.sharding import make_mesh

V, T, ROWS = 17, 12, 23
CONFIG = ModelConfig(layers=2, dim=16, heads=2, mlp_dim=16, vocab_size=V, max_len=T, init_std=0.5)
TOKEN_BYTES = np.array(
    [0, 0, *range(1, 5), *[1] * (V - 8), 3], np.int32
)  # shorter than V: padded ids stand for nothing


@pytest.fixture(scope="module")
def model():
    return Model(CONFIG)


@pytest.fixture(scope="module")
def params(model):
    return model.init_params(jax.random.key(1))


@pytest.fixture(scope="module")
def rows():
    """ROWS rows of two documents each, of many lengths, some of them with targets that do not count."""
    rng = np.random.default_rng(0)
    table = {key: np.zeros((ROWS, T), np.int32) for key in ("tokens", "targets", "segments", "positions")}
    table["weights"] = np.zeros((ROWS, T), np.float32)
    for r in range(ROWS):
        first, second = rng.integers(1, T // 2 + 1, 2)
        for segment, (start, size) in enumerate(((0, first), (first, second)), 1):
            here = slice(start, start + size)
            table["segments"][r, here] = segment
            table["positions"][r, here] = np.arange(size)
            table["tokens"][r, here] = rng.integers(0, V, size)
            table["targets"][r, here] = rng.integers(0, V, size)
            table["weights"][r, here] = rng.random(size) < 0.8
    table["weights"][5] = 0  # a row of prompt only
    return table


@pytest.fixture(scope="module")
def eval_step(model):
    return make_eval_step(model, TOKEN_BYTES)


def cut(rows, size):
    """Batches of `size` rows; the last one is filled up with rows of weight 0 and segment 0."""
    total = len(rows["tokens"])
    for start in range(0, total, size):
        batch = {key: value[start : start + size] for key, value in rows.items()}
        missing = size - len(batch["tokens"])
        yield {key: np.concatenate([value, np.zeros((missing, T), value.dtype)]) for key, value in batch.items()}


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def measure(eval_step, params, rows, size, mesh=None, **options):
    return evaluate(eval_step, params, cut(rows, size), mesh or one_device(), size, CONFIG, **options)


@pytest.fixture(scope="module")
def expected(model, params, rows):
    """Per-row sums (nll, correct, bytes, weight) in float64 numpy, from the logits of each row alone."""
    table = []
    for r in range(ROWS):
        row = {key: value[r : r + 1] for key, value in rows.items()}
        logits = model.apply(params, row["tokens"], row["positions"], row["segments"])
        logits = np.asarray(logits[0], np.float64)
        log_z = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
        targets, weights = row["targets"][0], row["weights"][0].astype(np.float64)
        nll = log_z - logits[np.arange(T), targets]
        n_bytes = np.concatenate([TOKEN_BYTES, np.zeros(V - len(TOKEN_BYTES))])[targets]
        table.append([(x * weights).sum() for x in (nll, logits.argmax(1) == targets, n_bytes, np.ones(T))])
    return np.array(table)


def assert_same(found, wanted, tolerance=1e-5):
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value, rel=tolerance, abs=tolerance), key


@pytest.mark.parametrize("size", [1, 7, 64])
def test_a_split_measures_the_same_in_any_batch_size_and_as_numpy(eval_step, params, rows, expected, size):
    found = measure(eval_step, params, rows, size)
    nll, correct, n_bytes, weight = expected.sum(0)
    assert_same(
        {key: value for key, value in found.items() if key != "loss_stderr"},
        {
            "loss": nll / weight,
            "perplexity": math.exp(nll / weight),
            "bits_per_byte": nll / math.log(2) / n_bytes,
            "accuracy": correct / weight,
            "tokens": weight,
        },
    )
    assert_same(found, measure(eval_step, params, rows, 1))


@pytest.mark.parametrize(("mesh", "size"), [((8, 1, 1), 8), ((2, 4, 1), 64), ((2, 2, 2), 16)])
def test_eight_devices_measure_the_same_as_one(eval_step, params, rows, mesh, size):
    found = measure(eval_step, params, rows, size, make_mesh(MeshConfig(*mesh)))
    assert_same(found, measure(eval_step, params, rows, size))


def test_targets_without_weight_and_padding_do_not_matter(eval_step, params, rows):
    rng = np.random.default_rng(3)
    other = {key: value.copy() for key, value in rows.items()}
    idle = rows["weights"] == 0
    other["targets"][idle] = rng.integers(0, V, idle.sum())
    padding = rows["segments"] == 0
    other["tokens"][padding] = rng.integers(0, V, padding.sum())
    assert_same(measure(eval_step, params, other, 7), measure(eval_step, params, rows, 7), 1e-6)


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("limit", [1, 10, ROWS, 1000])
def test_max_rows_measures_exactly_the_first_rows(eval_step, params, rows, size, limit):
    first = {key: value[:limit] for key, value in rows.items()}
    found = measure(eval_step, params, rows, size, max_rows=limit)
    wanted = measure(eval_step, params, first, 1)
    assert found.keys() == wanted.keys()
    for key in wanted:
        assert found[key] == pytest.approx(wanted[key], rel=1e-5, abs=1e-5, nan_ok=True), key


def test_max_rows_reads_no_more_batches_than_it_needs(eval_step, params, rows):
    read = []

    def watched():
        for number, batch in enumerate(cut(rows, 7)):
            read.append(number)
            yield batch

    evaluate(eval_step, params, watched(), one_device(), 7, CONFIG, max_rows=7)
    assert len(read) <= 2  # the second is fetched before the limit is seen


def test_asked_to_stop_it_returns_nothing(eval_step, params, rows):
    assert measure(eval_step, params, rows, 7, stopped=lambda: True) is None
    answers = iter([False, False, True])
    assert measure(eval_step, params, rows, 7, stopped=lambda: next(answers)) is None


def test_progress_counts_rows(eval_step, params, rows):
    seen = []
    measure(eval_step, params, rows, 7, progress=seen.append)
    assert seen == [7, 14, 21, 28]


@pytest.mark.parametrize("empty", [True, False])
def test_nothing_to_count_is_not_a_number_and_no_crash(eval_step, params, rows, empty):
    none = {key: value[:0] if empty else value * 0 for key, value in rows.items()}
    found = measure(eval_step, params, none, 7)
    assert math.isnan(found["loss"])
    assert found["tokens"] == 0


@pytest.mark.parametrize(("key", "value"), [("tokens", V), ("targets", V), ("tokens", -1), ("targets", -1)])
def test_an_id_outside_the_vocabulary_is_refused_by_batch(eval_step, params, rows, key, value):
    wrong = {name: table.copy() for name, table in rows.items()}
    wrong[key][9, 3] = value
    with pytest.raises(UserError, match=f"evaluation batch 1: {key} holds id {value}"):
        measure(eval_step, params, wrong, 7)


def test_a_batch_of_another_size_or_without_a_key_is_refused(eval_step, params, rows):
    with pytest.raises(UserError, match="23 rows"):
        evaluate(eval_step, params, [rows], one_device(), 24, CONFIG)
    with pytest.raises(UserError, match="no segments"):
        evaluate(eval_step, params, [{k: v for k, v in rows.items() if k != "segments"}], one_device(), ROWS, CONFIG)


# ---------------------------------------------------------------- summarise


def random_table(rng, n):
    weight = rng.integers(1, 60, n).astype(float)
    per_token = rng.normal(3, 0.6, n)  # rows differ, as documents do
    nll = per_token * weight + rng.normal(0, 1, n) * np.sqrt(weight)
    return np.stack([nll, rng.binomial(weight.astype(int), 0.4), rng.integers(1, 5, n) * weight, weight], axis=1)


def test_summarise_is_the_ratio_of_sums():
    table = random_table(np.random.default_rng(0), 50)
    found = summarise(table)
    loss = table[:, 0].sum() / table[:, 3].sum()
    assert found["loss"] == pytest.approx(loss, rel=1e-12)
    assert found["perplexity"] == pytest.approx(np.exp(loss), rel=1e-12)
    assert found["bits_per_byte"] == pytest.approx(table[:, 0].sum() / np.log(2) / table[:, 2].sum(), rel=1e-12)
    assert found["accuracy"] == pytest.approx(table[:, 1].sum() / table[:, 3].sum(), rel=1e-12)
    assert found["tokens"] == table[:, 3].sum()


@pytest.mark.parametrize("seed", range(4))
def test_the_standard_error_is_that_of_a_bootstrap_over_rows(seed):
    rng = np.random.default_rng(seed)
    table = random_table(rng, 300)
    draws = table[rng.integers(0, len(table), (4000, len(table)))].sum(1)
    spread = (draws[:, 0] / draws[:, 3]).std()
    assert summarise(table)["loss_stderr"] == pytest.approx(spread, rel=0.2)


def test_equal_rows_have_the_textbook_standard_error():
    rng = np.random.default_rng(5)
    losses = rng.normal(2, 1, 40)
    table = np.stack([losses * 8, np.zeros(40), np.full(40, 9.0), np.full(40, 8.0)], axis=1)
    assert summarise(table)["loss_stderr"] == pytest.approx(losses.std(ddof=1) / math.sqrt(40), rel=1e-9)


def test_one_row_has_no_standard_error_and_no_bytes_no_bits():
    found = summarise(np.array([[6.0, 1.0, 0.0, 3.0]]))
    assert found["loss"] == 2.0
    assert math.isnan(found["loss_stderr"])
    assert math.isnan(found["bits_per_byte"])


def test_sums_are_carried_in_float64():
    n = 3_000_000  # float32 sums of this many rows would be off in the fourth digit
    table = np.tile(np.array([[1.1, 0.0, 1.0, 1.0]]), (n, 1))
    assert summarise(table)["loss"] == pytest.approx(1.1, rel=1e-9)


def test_the_eval_step_gives_float32_sums_for_a_bfloat16_model(model, params, rows):
    from dataclasses import replace

    half = make_eval_step(Model(replace(model.config, dtype="bfloat16")), TOKEN_BYTES)
    sums = half(params, {key: jnp.asarray(value) for key, value in rows.items()})
    assert all(value.dtype == jnp.float32 and value.shape == (ROWS,) for value in sums.values())
