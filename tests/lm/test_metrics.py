"""Do the cost formula and the units come out as on paper?"""

import math

import pytest

from lm.metrics import bits, depth_of, finite_or_none, peak_flops, perplexity, token_flops
from lm.model.transformer import Model
from lm.parts import param_shapes

T = 64


def flops_of(config, frozen=()):
    shapes = {p: leaf.shape for p, leaf in param_shapes(Model(config)).items()}
    trained = {p: not p.startswith(tuple(frozen)) if frozen else True for p in shapes}
    return token_flops(config, shapes, trained, T), shapes


def matrices(shapes, *starts):
    return sum(math.prod(s) for p, s in shapes.items() if len(s) == 2 and p.startswith(starts))


def test_all_trained_is_six_per_number_and_scores(make_model_config):
    config = make_model_config()
    flops, shapes = flops_of(config)
    blocks, head = matrices(shapes, "block"), matrices(shapes, "head")
    scores = config.layers * 3 * 4 * config.dim * T / 2  # forward: 2 products x 2 x dim, half the row
    assert sum(flops.values()) == pytest.approx(6 * (blocks + head) + scores)
    assert flops["embed"] == flops["norm_out/scale"] == 0


def test_a_tied_embedding_counts_as_head_and_positions_not_at_all(make_model_config):
    flops, shapes = flops_of(make_model_config("gpt2"))
    assert flops["embed"] == 6 * math.prod(shapes["embed"])
    assert flops["positions"] == 0


def test_a_window_bounds_the_scores(make_model_config):
    wide, _ = flops_of(make_model_config(window=10_000))
    narrow, _ = flops_of(make_model_config(window=8))
    assert wide["block_00/attn/scores"] == 4 * narrow["block_00/attn/scores"]


def test_frozen_bottom_saves_two_thirds_of_itself(make_model_config):
    """(2 + 4 (1 - f)) / 6 of the blocks' cost; the lowest trained layer passes nothing on, which is not counted as saved."""
    config = make_model_config(layers=8)
    everything, _ = flops_of(config)
    bottom, _ = flops_of(config, frozen=["embed", *(f"block_{i:02d}" for i in range(6))])
    share = {
        k: sum(v for p, v in f.items() if p.startswith("block")) for k, f in (("all", everything), ("top", bottom))
    }
    assert share["top"] / share["all"] == pytest.approx((2 + 4 * 0.25) / 6)


def test_a_frozen_top_still_passes_the_gradient_down(make_model_config):
    config = make_model_config(layers=8)
    flops, shapes = flops_of(config, frozen=["head", "norm_out", *(f"block_{i:02d}" for i in range(1, 8))])
    assert flops["block_07/mlp/up"] == 4 * math.prod(shapes["block_07/mlp/up"])
    assert flops["block_00/mlp/up"] == 6 * math.prod(shapes["block_00/mlp/up"])


def test_depth_follows_the_forward_pass():
    order = ["embed", "block_00/attn/q", "block_01/mlp/up", "block_11/norm_mlp/scale", "norm_out/scale"]
    depths = [depth_of(p, 12) for p in order]
    assert depths == sorted(set(depths))
    assert depth_of("positions", 12) == 0
    assert depth_of("head", 12) == 13


def test_units():
    assert bits(math.log(2) * 3) == pytest.approx(3)
    assert perplexity(math.log(50.0)) == pytest.approx(50)
    assert math.isfinite(perplexity(1e9))
    assert [finite_or_none(x) for x in (math.nan, math.inf, -math.inf, 1.5, 3, "a", None)] == [
        None,
        None,
        None,
        1.5,
        3,
        "a",
        None,
    ]


def test_peak_flops_says_where_it_is_from():
    assert peak_flops(2.5) == (2.5e12, "config.train.peak_tflops")
    found, source = peak_flops(0.0)
    assert 1e8 < found < 1e15
    assert "matmul" in source
