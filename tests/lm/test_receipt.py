"""Does freezing save what the receipt says, and does the receipt say the truth?"""

import jax
import numpy as np
import pytest

from lm.config import last_layers
from lm.metrics import token_flops
from lm.model.transformer import Model
from lm.params import match_table, split_stacks
from lm.parts import abstract_batch, make_parts, param_shapes
from lm.receipt import check_frozen, format_receipt, make_receipt, xla_flops

TOP_QUARTER = last_layers(2, 8)


@pytest.fixture(scope="module")
def receipt_of(make_config):
    """(table, scan) -> (receipt, parts) of eight layers, from shapes alone."""

    def make(table=TOP_QUARTER, scan=False, **keys):
        model = {"layers": 8, "dim": 32, "mlp_dim": 64, "scan": scan}
        config = make_config(model=model, optim={"train": table}, data={"seq_len": 16}, **keys)
        parts = make_parts(config, 32, 1e-3)
        state = parts.state
        arguments = (config, parts.model, parts.treatment, state.params, state.opt_state, parts.make_step)
        return make_receipt(*arguments, abstract_batch(config), hashes=False), parts

    return make


@pytest.fixture(scope="module")
def quarter(receipt_of):
    return receipt_of()


def test_the_top_quarter_costs_at_most_65_percent(quarter):
    receipt, _ = quarter
    assert 0.3 < receipt["flops_per_step"] / receipt["flops_per_step_if_all_trained"] <= 0.65


def test_optimizer_numbers_are_of_trained_leaves_only(quarter):
    receipt, parts = quarter
    leaves = split_stacks({p: np.empty(leaf.shape) for p, leaf in parts.state.params.items()})
    trained = {p for p in leaves if p.startswith(("block_06/", "block_07/", "norm_out/"))}
    assert receipt["trained_params"] == sum(leaves[p].size for p in trained)
    assert receipt["frozen_params"] == sum(leaf.size for p, leaf in leaves.items() if p not in trained)
    assert receipt["optimizer_numbers"] == 2 * receipt["trained_params"]


def test_scanned_receipt_is_the_unrolled_one(quarter, receipt_of):
    scanned, parts = receipt_of(scan=True)
    assert parts.model.runs == ((0, 6), (6, 8))
    assert scanned == quarter[0]


def test_the_table_adds_up(quarter):
    receipt, _ = quarter
    rows = receipt["table"]
    assert [row["pattern"] for row in rows] == [pattern for pattern, _ in TOP_QUARTER]
    for kind, on in (("trained_params", True), ("frozen_params", False)):
        assert sum(row["params"] for row in rows if row["trained"] is on) == receipt[kind]
    assert sum(row["optimizer_numbers"] for row in rows) == receipt["optimizer_numbers"]
    assert sum(row["flops_share"] for row in rows) == pytest.approx(1)
    assert [row["layers"] for row in rows] == [1, 1, 0, 6]
    assert rows[0]["flops_share"] == pytest.approx(rows[1]["flops_share"])
    text = format_receipt(receipt)
    assert f"{receipt['trained_params']:,}" in text
    assert all(pattern in text for pattern, _ in TOP_QUARTER)


def test_layers_counted_from_the_end_stand_in_their_own_row(quarter, receipt_of):
    """They stood in the row of '.*', as frozen ones with optimizer numbers."""
    receipt, _ = receipt_of(table=(("block_-0[12]/.*", True), ("norm_out/.*", True), (".*", False)))
    first, second, norm, rest = ({**row, "pattern": ""} for row in quarter[0]["table"])
    both = {key: first[key] + second[key] for key in first if key not in ("pattern", "trained", "flops_share")}
    found = receipt["table"]
    assert {key: found[0][key] for key in both} == both
    assert [{**row, "pattern": ""} for row in found[1:]] == [norm, rest]


def test_nothing_frozen_is_the_full_step(receipt_of):
    receipt, _ = receipt_of(table=((".*", True),))
    assert receipt["flops_per_step"] == receipt["flops_per_step_if_all_trained"]
    assert receipt["frozen_params"] == 0


def test_accumulation_costs_the_same(quarter, receipt_of):
    """XLA counts a loop's body once: the receipt must still speak of the whole batch."""
    cut, _ = receipt_of(train={"micro_batches": 4})
    for key in ("flops_per_step", "flops_per_step_if_all_trained"):
        assert cut[key] == pytest.approx(quarter[0][key], rel=0.05)


def test_the_formula_agrees_with_xla(make_config):
    config = make_config(model={"layers": 2, "dim": 128, "mlp_dim": 512}, data={"seq_len": 16}, optim={"name": "sgd"})
    for table in (((".*", True),), last_layers(1, 2)):
        parts = make_parts(config, 32, 1e-3)
        treatment = parts.treatment._replace(trained=match_table(table, list(parts.state.params), "optim.train"))
        shapes = {p: leaf.shape for p, leaf in parts.state.params.items()}
        per_token = sum(token_flops(parts.model.config, shapes, treatment.trained, 16).values())
        found = xla_flops(parts.make_step, parts.model, treatment, abstract_batch(config))
        assert found == pytest.approx(per_token * 8 * 16, rel=0.2)


def test_experts_cost_what_a_token_chooses(make_config):
    model = {"layers": 2, "dim": 128, "mlp_dim": 256, "experts": 8, "experts_per_token": 2, "scan": True}
    config = make_config(model=model, data={"seq_len": 16}, optim={"name": "sgd"}, train={"balance_loss": 0.1})
    parts = make_parts(config, 32, 1e-3)
    shapes = {p: leaf.shape for p, leaf in param_shapes(Model(parts.model.config)).items()}
    per_token = sum(token_flops(parts.model.config, shapes, parts.treatment.trained, 16).values())
    found = xla_flops(parts.make_step, parts.model, parts.treatment, abstract_batch(config))
    assert found == pytest.approx(per_token * 8 * 16, rel=0.2)
    state = parts.state
    arguments = (config, parts.model, parts.treatment, state.params, state.opt_state, parts.make_step)
    receipt = make_receipt(*arguments, abstract_batch(config), hashes=False)
    expert = 3 * 128 * 256
    assert receipt["trained_params"] - receipt["active_params"] == 2 * 6 * expert
    assert f"active a token: {receipt['active_params']:,}" in format_receipt(receipt)


def products(parts):
    """Matrix products in the program of one step, before optimisation."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    step, state = parts.make_step(parts.model, parts.treatment)
    return jax.jit(step).lower(state, abstract_batch(parts.config), key).as_text().count("stablehlo.dot_general")


def test_no_gradient_flows_into_the_frozen_bottom(quarter, receipt_of):
    """A layer has nine products; training one takes two more for each. Six frozen layers have none of those."""
    _, everything = receipt_of(table=((".*", True),))
    full, frozen = products(everything), products(quarter[1])
    assert full >= 3 * 9 * 8
    assert full - frozen >= 2 * 9 * 6


def test_a_frozen_leaf_that_moved_is_named(make_config, start):
    table = last_layers(1, 2)
    run = start(make_config(optim={"train": table}))
    config, params, opt_state = run.config, run.state.params, run.state.opt_state
    receipt = make_receipt(config, run.model, run.treatment, params, opt_state, run.make_step, abstract_batch(config))
    assert set(receipt["frozen_sha256_before"]) == {p for p, on in run.treatment.trained.items() if not on}
    moved_trained = {**params, "block_01/attn/q": params["block_01/attn/q"] + 1}
    assert check_frozen(receipt, moved_trained, run.treatment)["frozen_sha256_after"] == receipt["frozen_sha256_before"]
    with pytest.raises(AssertionError, match="block_00/attn/q"):
        check_frozen(
            receipt, {**params, "block_00/attn/q": params["block_00/attn/q"].at[0, 0].add(1e-6)}, run.treatment
        )
