"""Does a plan say what the compiled step needs, and what would help when it does not fit?"""

import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lm import aot, plan
from lm.collectives import count_collectives
from lm.config import ConfigError, MeshConfig
from lm.model.transformer import Model
from lm.parts import make_parts
from lm.plan import advise, compile_step, format_plan, make_plan, shard_bytes, variants
from lm.receipt import xla_flops
from lm.sharding import make_mesh


def silent(text):
    del text


@pytest.fixture(scope="module")
def planned(make_config):
    config = make_config(optim={"train": (("block_01/.*", True), (".*", False))}, mesh={"fsdp": -1, "data": 1})
    return config, *make_plan(config, 32, 1e-3, silent)


def test_a_plan_says_what_the_step_needs(planned):
    config, page, receipt = planned
    parts = make_parts(config, 32, 1e-3)
    memory = page["hbm_bytes_per_device"]
    assert page["devices"] == 8
    assert page["trained_params"] == receipt["trained_params"] > 0
    assert page["frozen_params"] == receipt["frozen_params"] > page["trained_params"]
    assert memory["total"] == memory["arguments"] + memory["temporaries"] + memory["output"]
    state = page["weights_bytes"] + page["moments_bytes"]
    assert state <= memory["arguments"] <= state + 8192  # the batch, the key and the counters besides
    assert page["moments_bytes"] == shard_bytes(parts.state.opt_state)
    assert 0.1 < page["gradients_bytes"] * 2 / page["moments_bytes"] <= 1
    assert page["flops_per_step"] == receipt["flops_per_step"]
    assert page["fits"]
    assert page["advice"] == []
    assert page["seconds_per_step"] > 0
    assert page["tokens"] == 8 * 12 * 20
    json.dumps(page)


def test_the_page_has_every_number_a_person_asks_for(planned):
    _, page, receipt = planned
    text = format_plan(page, receipt)
    for words in (
        "8 x cpu",
        "fits",
        "weights",
        "moments",
        "collectives",
        "FLOPs a step",
        "tokens",
        "s a step",
        "a checkpoint",
    ):
        assert words in text


@pytest.mark.slow  # a minute: it compiles each piece of advice
def test_what_does_not_fit_gets_advice_with_figures(make_config, monkeypatch):
    """A limit between what the step needs as it is and with everything recomputed in micro-batches."""
    config = make_config(
        model={"layers": 4, "dim": 64, "mlp_dim": 256}, data={"seq_len": 64, "batch_size": 32}, mesh={"data": 1}
    )
    device = jax.devices()[:1]
    total = compile_step(make_parts(config, 32, 1e-3, device)).memory["total"]
    rows = advise(config, 32, 1e-3, int(0.6 * total), silent, device)
    assert rows[-1]["fits"]
    assert rows[-1]["total"] <= 0.6 * total
    assert "--config.model.remat=full" in rows[-1]["flags"]
    monkeypatch.setattr(aot, "memory_limit", lambda device: 1000)
    monkeypatch.setattr(jax, "devices", lambda: device)
    page, receipt = make_plan(config, 32, 1e-3, silent)
    assert not page["fits"]
    assert page["seconds_per_step"] is None
    assert "DOES NOT FIT" in format_plan(page, receipt)
    assert "none of these is enough" in format_plan(page, receipt)


def test_xla_refusing_a_program_is_an_answer(make_config, monkeypatch):
    words = "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: the total memory required for HLO temporaries (40.5G) exceeds available HBM (15.75G)."
    parts = make_parts(make_config(mesh={"data": 8}), 32, 1e-3)

    class Refuses:
        def compile(self):
            raise jax.errors.JaxRuntimeError(words)

    class Step:
        def lower(self, *arguments):
            return Refuses()

    object.__setattr__(parts, "train_step", Step())
    program = compile_step(parts)
    assert program.memory["temporaries"] == int(40.5 * 2**30)
    assert program.memory["total"] == program.memory["temporaries"] + shard_bytes(parts.state)
    assert program.refused.startswith("RESOURCE_EXHAUSTED")


def test_a_run_that_is_out_of_memory_is_told_what_helps(make_config):
    config = make_config(
        model={"layers": 4, "dim": 64, "mlp_dim": 256}, data={"seq_len": 64, "batch_size": 32}, mesh={"data": 8}
    )
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.")
    assert plan.is_out_of_memory(error)
    text = plan.describe_shortage(error, make_parts(config, 32, 1e-3))
    assert "allocating 99 bytes" in text
    assert "GiB a device. Try --config.m" in text


def test_variants_change_only_what_helps(make_config):
    config = make_config(optim={"train": (("norm_out/.*", True), (".*", False))}, mesh={"data": 8})
    flags = [text for text, _ in variants(config, 8)]
    assert flags[0] == "--config.optim.frozen_dtype=bfloat16"
    assert flags[1].endswith("--config.mesh.data=1 --config.mesh.fsdp=-1")
    assert flags[-1].endswith("--config.model.remat=full")  # 8 rows on 8 devices: no micro-batches


def test_flops_of_a_deep_model_are_those_of_its_layers(make_config):
    """Counted from one and two layers a run: the same as from the whole, unrolled program."""
    config = make_config(model={"layers": 6}, optim={"train": (("block_0[45]/.*", True), (".*", False))})
    parts = make_parts(config, 32, 1e-3)
    batch = plan.abstract_batch(config)
    step, state = parts.make_step(Model(parts.model.config), parts.treatment, 1, True)
    whole = jax.jit(step).lower(state, batch, jax.eval_shape(lambda: jax.random.key(0))).cost_analysis()["flops"]
    assert xla_flops(parts.make_step, parts.model, parts.treatment, batch) == pytest.approx(whole, rel=1e-6)


def test_collectives_are_counted_with_their_loops():
    """Five times a sum of [16, 256] over rows on eight devices: 1,024 bytes, of which a ring sends 2 x 7/8."""
    mesh = make_mesh(MeshConfig(data=8))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))

    def total(x, y):
        def one(i, y):
            return jnp.sin(jax.lax.with_sharding_constraint((x * y[None]).sum(0), whole))

        return jax.lax.fori_loop(0, 5, one, y)

    x, y = jax.ShapeDtypeStruct((16, 256), jnp.float32), jax.ShapeDtypeStruct((256,), jnp.float32)
    program = jax.jit(total, in_shardings=(rows, whole), out_shardings=whole).lower(x, y).compile()
    assert count_collectives(program.as_text()) == {"all-reduce": {"count": 5, "bytes": 5 * 2 * 1024 * 7 / 8}}


# Two loops as the TPU compiler writes them: no trip count noted, the inner one in steps of two.
TPU = """
%inner_cond (p: (u32[], bf16[64,128])) -> pred[] {
  %c8 = u32[]{:T(128)} constant(8)
  %p.1 = (u32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %g = u32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%g, %c8), direction=LT
}

%inner_body (p: (u32[], bf16[64,128])) -> (u32[], bf16[64,128]) {
  %c2 = u32[]{:T(128)} constant(2)
  %p.2 = (u32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p.2), index=0
  %x = bf16[64,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p.2), index=1
  %next = u32[]{:T(128)} add(%i, %c2), metadata={op_name="a"}
  %start = (bf16[64,128]{1,0:T(8,128)(2,1)}, bf16[64,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=9, source_target_pairs={{0,1},{1,0}}
  %done = bf16[64,128]{1,0:T(8,128)(2,1)} collective-permute-done(%start)
  ROOT %t = (u32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)}) tuple(%next, %done)
}

ENTRY %main (p: (u32[], bf16[64,128])) -> bf16[64,128] {
  %p.3 = (u32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %w = (u32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)}) while(%p.3), condition=%inner_cond, body=%inner_body, metadata={op_name="b"}
  %y = bf16[64,128]{1,0:T(8,128)(2,1)} get-tuple-element(%w), index=1
  ROOT %all-gather.1 = bf16[1024,128]{1,0:T(8,128)(2,1)} all-gather(%y), channel_id=1, replica_groups=[1,16]<=[16], dimensions={0}
}
"""


def test_collectives_of_a_tpu_program():
    found = count_collectives(TPU)
    assert found["collective-permute"] == {"count": 4, "bytes": 4 * 64 * 128 * 2}
    assert found["all-gather"] == {"count": 1, "bytes": 1024 * 128 * 2 * 15 / 16}


# One gather as the TPU compiler spreads it beside other arithmetic: the same operation stands in each of three fusions.
SPREAD = """
%fused_computation.1 (p: bf16[64,128]) -> (bf16[64,128], bf16[1024,128]) {
  %all-gather.1 = bf16[1024,128]{1,0} all-gather(%p), channel_id=1, replica_groups=[1,16]<=[16], dimensions={0}
}

%async_collective_fusion.2 (p: bf16[64,128], x: bf16[1024,128]) -> (bf16[64,128], bf16[1024,128]) {
  %all-gather.2 = bf16[1024,128]{1,0} all-gather(%p), channel_id=1, replica_groups=[1,16]<=[16], dimensions={0}
}

%fused_computation.3 (p: bf16[64,128], x: bf16[1024,128]) -> bf16[1024,128] {
  ROOT %all-gather.3 = bf16[1024,128]{1,0} all-gather(%p), channel_id=1, replica_groups=[1,16]<=[16], dimensions={0}
}

ENTRY %main (p: bf16[64,128]) -> bf16[1024,128] {
  %p.3 = bf16[64,128]{1,0} parameter(0)
  %async-collective-start = (bf16[64,128]{1,0}, bf16[1024,128]{1,0}) fusion(%p.3), kind=kCustom, calls=%fused_computation.1
  %a = bf16[64,128]{1,0} get-tuple-element(%async-collective-start), index=0
  %x = bf16[1024,128]{1,0} get-tuple-element(%async-collective-start), index=1
  %fusion.2 = (bf16[64,128]{1,0}, bf16[1024,128]{1,0}) fusion(%a, %x), kind=kOutput, calls=%async_collective_fusion.2
  %b = bf16[64,128]{1,0} get-tuple-element(%fusion.2), index=0
  %y = bf16[1024,128]{1,0} get-tuple-element(%fusion.2), index=1
  ROOT %async-collective-done = bf16[1024,128]{1,0} fusion(%b, %y), kind=kCustom, calls=%fused_computation.3
}
"""


def test_a_collective_spread_over_fusions_counts_once():
    assert count_collectives(SPREAD) == {"all-gather": {"count": 1, "bytes": 1024 * 128 * 2 * 15 / 16}}


@pytest.mark.parametrize("name", ["v5e", "v5e:4", "4x4", "v5e:4x4;rm"])
def test_a_topology_that_is_none(name):
    with pytest.raises(ConfigError, match="write kind:AxB"):
        aot.check_topology(name)
