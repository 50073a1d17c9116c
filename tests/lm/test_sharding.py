"""Does every array lie where the table says, and mean the same there?"""

from dataclasses import dataclass

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lm.config import ConfigError, MeshConfig, UserError
from lm.model.transformer import Model
from lm.params import leaf_paths, params_sha256
from lm.parts import make_parts, param_shapes
from lm.sharding import TABLE, local_rows, make_mesh, param_shardings, param_spec, put_batch
from lm.start import start_state

MESHES = [{"data": 8}, {"fsdp": 8, "data": 1}, {"data": 2, "fsdp": 2, "tensor": 2}]


def test_every_parameter_has_a_row_and_every_row_a_parameter(make_model_config):
    mesh, used = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), set()
    for style in ("llama", "gpt2"):
        for runs in ((), ((0, 2),)):
            shapes = param_shapes(Model(make_model_config(style), runs))
            assert set(param_shardings(shapes, mesh)) == set(shapes)
            for path, leaf in shapes.items():
                sharding = param_shardings(shapes, mesh)[path]
                sharding.shard_shape(leaf.shape)  # raises when an axis does not divide
                used.add(sharding.spec)
                if runs and path.startswith("block"):
                    assert sharding.spec == () or sharding.spec[0] is None
    assert len({axes for _, axes in TABLE} & {tuple(spec) for spec in used}) >= 4


def test_an_axis_that_does_not_divide_is_left_out():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert param_spec("block_00/attn/q", (16, 16), mesh) == PartitionSpec("fsdp", "tensor")
    assert param_spec("block_00/attn/q", (15, 16), mesh) == PartitionSpec(None, "tensor")
    assert param_spec("block_00-02/attn/out", (3, 16, 16), mesh) == PartitionSpec(None, "tensor", "fsdp")
    assert param_spec("embed", (33, 16), mesh) == PartitionSpec(None, "fsdp")
    with pytest.raises(AssertionError, match="block_00/attn/new"):
        param_spec("block_00/attn/new", (4, 4), mesh)


@pytest.mark.parametrize(("mesh", "scan"), [(MESHES[1], True), (MESHES[2], False)])
def test_a_new_run_is_the_same_on_every_mesh(make_config, mesh, scan):
    parts = make_parts(make_config(model={"scan": scan}, mesh=mesh), 32, 1e-3)
    state = start_state(parts)
    flat = Model(parts.model.config)
    assert params_sha256(state.params) == params_sha256(jax.jit(flat.init_params)(jax.random.key(0)))
    for path, leaf in state.params.items():
        assert leaf.sharding.is_equivalent_to(parts.state.params[path].sharding, leaf.ndim)


def test_weights_and_moments_are_spread(make_config):
    parts = make_parts(make_config(mesh={"fsdp": 8, "data": 1}), 32, 1e-3)
    state = start_state(parts)
    matrices = [p for p, leaf in state.params.items() if leaf.ndim == 2]
    here = jax.devices()[3]
    moments = 0
    for path, leaf in leaf_paths(state):
        shards = [s.data for s in leaf.addressable_shards if s.device == here]
        spread = path.endswith(tuple("/" + p for p in matrices))
        assert shards[0].size == leaf.size // (8 if spread else 1), path
        moments += spread and path.startswith("opt_state")
    assert moments == 2 * len(matrices)


def test_sharding_keeps_the_hash(make_model):
    model, params = make_model()
    expected = params_sha256(params)
    for axes in MESHES:
        mesh = make_mesh(MeshConfig(**axes))
        assert params_sha256(jax.device_put(params, param_shardings(params, mesh))) == expected
    assert model.mesh is None


def test_a_mesh_that_does_not_fit_is_refused():
    for axes in ({"data": 3}, {"data": 2, "fsdp": 2}, {"data": 16}, {"data": -1, "tensor": 3}):
        with pytest.raises(ConfigError, match="8 devices"):
            make_mesh(MeshConfig(**axes))
    assert dict(make_mesh(MeshConfig(data=-1, tensor=2)).shape) == {"data": 4, "fsdp": 1, "context": 1, "tensor": 2}


def test_rows_lie_over_data_and_fsdp():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    batch = {"tokens": np.arange(24).reshape(8, 3)}
    assert local_rows(mesh, 8) == (0, 8)  # one process holds all devices
    placed = put_batch(batch, mesh, 8)["tokens"]
    np.testing.assert_array_equal(placed, batch["tokens"])
    assert {s.data.shape for s in placed.addressable_shards} == {(2, 3)}
    with pytest.raises(UserError, match="4 rows of tokens, its devices need 8"):
        put_batch({"tokens": batch["tokens"][:4]}, mesh, 8)


@dataclass(frozen=True)
class Chip:
    """What JAX's order of a TPU's devices looks at."""

    id: int
    process_index: int
    coords: tuple[int, int, int]
    slice_index: int = 0
    device_kind: str = "TPU v5 lite"
    platform: str = "tpu"
    core_on_chip: int = 0


def pod(slices=1):
    """4 x 4 chips a slice, 2 x 2 of them a host, listed host by host as jax.devices() does."""
    chips = []
    for host in range(4 * slices):
        for i in range(4):
            place = (2 * (host % 2) + i % 2, 2 * (host % 4 // 2) + i // 2, 0)
            chips.append(Chip(len(chips), host, place, host // 4))
    return chips


@pytest.mark.parametrize(
    ("axes", "slices"),
    [
        ({"data": 16}, 1),  # JAX's ring comes back to host 0 at its end
        ({"data": 1, "fsdp": 16}, 1),
        ({"data": 2, "fsdp": 8}, 1),
        ({"data": 1, "fsdp": 4, "tensor": 4}, 1),
        ({"data": 2, "fsdp": 16}, 2),  # JAX's own mesh refuses several slices
    ],
)
def test_each_host_of_a_pod_reads_one_range_of_rows(axes, slices):
    mesh = make_mesh(MeshConfig(**axes), pod(slices))
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "context": 1, "tensor": 1, **axes}
    assert sorted(chip.id for chip in mesh.devices.flat) == list(range(16 * slices))
    rows = mesh.devices.reshape(axes.get("data", 1) * axes.get("fsdp", 1), -1)
    for host in range(4 * slices):
        mine = [i for i, row in enumerate(rows) if any(chip.process_index == host for chip in row)]
        assert mine == list(range(mine[0], mine[-1] + 1))
        if "tensor" not in axes:
            assert len(mine) == 4  # and no row is another host's


def test_jax_order_of_the_chips_is_kept_where_it_can_be():
    mesh = make_mesh(MeshConfig(data=2, fsdp=8), pod())
    ordered = jax.make_mesh((2, 8, 1, 1), tuple(mesh.shape), devices=pod())
    assert (mesh.devices == ordered.devices).all()
    ring = jax.make_mesh((16, 1, 1, 1), tuple(mesh.shape), devices=pod()).devices.flatten()
    assert ring[0].process_index == ring[-1].process_index == 0  # so there host 0 would read the whole batch
