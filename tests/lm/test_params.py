"""Do names, patterns, stacks and hashes of parameters mean the same whatever the grouping?"""

import itertools

import jax
import numpy as np
import pytest

from lm.config import UserError
from lm.params import (
    count,
    hash_leaves,
    in_stacks,
    join_stacks,
    layer_paths,
    leaf_paths,
    make_runs,
    match_table,
    params_sha256,
    split_stacks,
)

PATHS = ["block_00/attn/q", "block_00/mlp/up", "block_01/attn/q", "block_01/mlp/up", "embed", "norm_out/scale"]


def groupings(layers):
    """Every way to cut `layers` neighbours into runs."""
    for cuts in itertools.chain.from_iterable(itertools.combinations(range(1, layers), n) for n in range(layers)):
        edges = (0, *cuts, layers)
        yield tuple(itertools.pairwise(edges))


def test_split_and_join_are_inverse_for_every_grouping(make_model):
    _, flat = make_model(layers=3)
    for runs in groupings(3):
        _, grouped = make_model(runs=runs, layers=3)
        joined = join_stacks(flat, list(grouped))
        single = split_stacks(joined)
        assert list(single) == list(flat)
        for path, leaf in flat.items():
            np.testing.assert_array_equal(single[path], leaf)
        for path, leaf in grouped.items():
            np.testing.assert_array_equal(joined[path], leaf)
        assert count(grouped) == count(flat)


def test_hash_is_of_single_layers(make_model):
    _, flat = make_model(layers=3)
    expected, leaves = params_sha256(flat), hash_leaves(flat)
    for runs in groupings(3):
        _, grouped = make_model(runs=runs, layers=3)
        assert params_sha256(grouped) == expected
        assert hash_leaves(grouped) == leaves
    assert set(leaves) == set(flat)


def test_hash_sees_one_bit_a_name_a_shape_and_a_dtype(make_model):
    _, params = make_model()
    base = {path: np.asarray(leaf) for path, leaf in params.items()}
    seen = {params_sha256(base)}
    flipped = base["block_01/mlp/up"].copy()
    flipped.view(np.uint32)[3, 4] ^= 1
    for changed in (
        {**base, "block_01/mlp/up": flipped},
        {**base, "block_01/mlp/up": base["block_01/mlp/up"].reshape(32, 16)},
        {**base, "block_01/mlp/up": base["block_01/mlp/up"].view(np.int32)},
        {**base, "block_00/attn/q": base["block_01/attn/q"], "block_01/attn/q": base["block_00/attn/q"]},
        {p: leaf for p, leaf in base.items() if p != "norm_out/scale"},
    ):
        seen.add(params_sha256(changed))
    assert len(seen) == 6
    backwards = dict(reversed(base.items()))
    assert params_sha256(backwards) in seen  # the order in memory is nothing


def test_layer_paths():
    assert layer_paths("block_08-11/mlp/up") == [f"block_{i:02d}/mlp/up" for i in (8, 9, 10, 11)]
    assert layer_paths("block_98-100/x") == ["block_98/x", "block_99/x", "block_100/x"]
    assert layer_paths("norm_out/scale") == ["norm_out/scale"]


def test_runs_group_layers_that_are_treated_alike():
    def runs(*frozen, layers=5):
        on = {f"block_{i:02d}/{name}": (i, name) not in frozen for i in range(layers) for name in ("attn/q", "mlp/up")}
        return make_runs({**on, "embed": True}, layers)

    assert runs() == ((0, 5),)
    both = [(i, name) for i in (0, 1) for name in ("attn/q", "mlp/up")]
    assert runs(*both) == ((0, 2), (2, 5))
    assert runs((2, "attn/q")) == ((0, 2), (2, 3), (3, 5))
    assert runs((2, "attn/q"), (3, "mlp/up")) == ((0, 2), (2, 3), (3, 4), (4, 5))


def test_in_stacks_keeps_layer_order():
    values = {"block_00/q": 1, "block_01/q": 2, "embed": 3}
    assert in_stacks(values, ["block_00-01/q", "embed"]) == {"block_00-01/q": [1, 2], "embed": [3]}


def test_first_match_wins_on_the_whole_path():
    table = [("block_01/.*", "a"), (".*/mlp/up", "b"), (".*", "c")]
    assert match_table(table, PATHS, "optim.train") == dict(zip(PATHS, "cbaacc"))
    with pytest.raises(UserError, match="embed"):
        match_table([("embe", 1), ("(?!embed).*", 2)], PATHS, "k")  # a part of a path is no match


def test_a_parameter_without_a_pattern_is_named_with_all_patterns():
    with pytest.raises(UserError) as error:
        match_table([("block_00/.*", True), ("embed", False)], PATHS, "optim.train")
    text = str(error.value)
    for part in ("optim.train", "block_01/attn/q", "block_01/mlp/up", "norm_out/scale", "'block_00/.*'", "'embed'"):
        assert part in text
    assert "block_00/attn/q," not in text


@pytest.mark.parametrize(
    ("table", "pattern"),
    [
        ([("block_12/.*", True), (".*", False)], "block_12/.*"),
        ([("block_.*", True), ("block_01/.*", False), (".*", False)], "block_01/.*"),  # all taken by an earlier row
    ],
)
def test_an_idle_pattern_is_named_with_all_parameters(table, pattern):
    with pytest.raises(UserError) as error:
        match_table(table, PATHS, "optim.train")
    text = str(error.value)
    for part in ("optim.train", repr(pattern), "block_00 .. block_01", "attn/q", "mlp/up", "embed", "norm_out/scale"):
        assert part in text


def test_a_final_catch_all_may_idle():
    assert match_table([("embed|norm.*|block.*", 1), (".*", 2)], PATHS, "k") == dict.fromkeys(PATHS, 1)


def test_leaf_paths_of_any_tree():
    tree = {"params": {"block_00/attn/q": 1}, "list": (2, 3)}
    assert dict(leaf_paths(tree)) == {"params/block_00/attn/q": 1, "list/0": 2, "list/1": 3}
    assert len(leaf_paths(tree)) == len(jax.tree.leaves(tree))
