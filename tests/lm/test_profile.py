"""Is a trace of the steps that were asked for, and are the operations in its summary the ones that took the time?"""

import time

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData, StepTraceAnnotation

from lm.clock import Clock
from lm.profile import Profiler, format_operations, top_operations


@pytest.fixture(scope="module")
def known():
    """A program whose time is known: a loop of eight large products, and one that is 64 times smaller."""

    def program(x, w, v):
        y, _ = jax.lax.scan(lambda carry, _: (jnp.tanh(carry @ w), None), x, None, length=8)
        return y.sum() + (v @ v).sum()

    arguments = (jnp.ones((512, 512)), jnp.full((512, 512), 0.01), jnp.ones((128, 128)))
    compiled = jax.jit(program)
    compiled(*arguments).block_until_ready()
    return lambda: compiled(*arguments)


@pytest.fixture(scope="module")
def traced(known, tmp_path_factory):
    """Steps 1 to 7 of the known program with steps 3 to 5 traced: (folder, what was said, wall seconds of a step)."""
    folder, said, pending = tmp_path_factory.mktemp("run"), [], []
    profiler = Profiler((3, 5), folder, 0, Clock(), said.append)

    def wait():
        jax.block_until_ready(pending)

    for step in range(1, 8):
        profiler.start_before(step, wait)
        if step == 3:
            began = time.perf_counter()
        with StepTraceAnnotation("train", step_num=step):
            pending[:] = [known()]
        if step == 5:
            wait()
            wall = (time.perf_counter() - began) / 3
        profiler.stop_after(step, wait)
    profiler.close(7)
    return folder / "profile", said, wall


def xplane(folder):
    (path,) = folder.glob("plugins/profile/*/*.xplane.pb")
    return path


def test_the_trace_holds_the_steps_that_were_asked_for(traced):
    planes = ProfileData.from_file(str(xplane(traced[0]))).planes
    events = [e for plane in planes for line in plane.lines for e in line.events if e.name == "train"]
    assert [dict(event.stats)["step_num"] for event in events] == [3, 4, 5]


def test_the_run_says_where_the_trace_is_and_how_to_look_at_it(traced):
    folder, said, _ = traced
    assert len(said) == 1
    for word in (
        "steps 3 to 5",
        str(folder / "summary.txt"),
        f"tensorboard --logdir={folder}",
        "ui.perfetto.dev",
        "xprof",
    ):
        assert word in said[0]
    assert xplane(folder).with_name("perfetto_trace.json.gz").is_file()


def test_the_summary_is_right_about_a_known_program(traced):
    folder, _, wall = traced
    operations = top_operations(xplane(folder))
    total = sum(operation.seconds for operation in operations) / 3
    assert total < 1.05 * wall * 2  # two threads at most here; what a loop contains is not counted twice
    assert total > 0.5 * wall
    large = operations[0]
    assert large.calls == 3 * 8
    assert large.seconds > 0.5 * 3 * total
    others = [operation for operation in operations if operation.calls % 8]
    assert len(others) > 0
    assert max(operation.seconds for operation in others) < large.seconds / 3  # the small product, and the loop itself
    text = (folder / "summary.txt").read_text()
    assert text.startswith("profile of steps 3 to 5")
    assert f"{1e3 * large.seconds / 3:>12.3f}" in text
    assert large.name in text.splitlines()[3]


DEVICES = """
planes {
  name: "/device:TPU:0"
  lines { name: "XLA Modules" events { metadata_id: 9 offset_ps: 0 duration_ps: 9000000 } }
  lines { name: "XLA Ops"
    events { metadata_id: 1 offset_ps: 0 duration_ps: 8000000 }
    events { metadata_id: 2 offset_ps: 1000000 duration_ps: 2000000 stats { metadata_id: 1 str_value: "jit(step)/mlp/up" } }
    events { metadata_id: 2 offset_ps: 4000000 duration_ps: 3000000 stats { metadata_id: 1 str_value: "jit(step)/mlp/up" } }
    events { metadata_id: 3 offset_ps: 8000000 duration_ps: 1000000 } }
  lines { name: "Async XLA Ops" events { metadata_id: 3 offset_ps: 0 duration_ps: 7000000 } }
  event_metadata { key: 1 value { id: 1 name: "%while.7 = (f32[8]) while(%tuple.1)" } }
  event_metadata { key: 2 value { id: 2 name: "%fusion.12 = f32[8] fusion(%p), kind=kOutput" } }
  event_metadata { key: 3 value { id: 3 name: "%all-gather.3 = f32[8] all-gather(%p)" } }
  event_metadata { key: 9 value { id: 9 name: "jit_step(1)" } }
  stat_metadata { key: 1 value { id: 1 name: "tf_op" } }
}
planes {
  name: "/device:GPU:0"
  lines { name: "Stream #20(Compute)"
    events { metadata_id: 1 offset_ps: 0 duration_ps: 5000000
      stats { metadata_id: 1 str_value: "fusion.12" } stats { metadata_id: 2 str_value: "jit_step" } }
    events { metadata_id: 3 offset_ps: 5000000 duration_ps: 1000000
      stats { metadata_id: 1 str_value: "command_buffer_7" } stats { metadata_id: 2 str_value: "jit_step" } } }
  lines { name: "Stream #21(MemcpyH2D)" events { metadata_id: 2 offset_ps: 0 duration_ps: 4000000 } }
  event_metadata { key: 1 value { id: 1 name: "gemm_fusion_dot_12" } }
  event_metadata { key: 2 value { id: 2 name: "MemcpyH2D" } }
  event_metadata { key: 3 value { id: 3 name: "nvjet_hsh_128x256" } }
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
  stat_metadata { key: 2 value { id: 2 name: "hlo_module" } }
}
planes {
  name: "/host:CPU"
  lines { name: "python" events { metadata_id: 1 offset_ps: 0 duration_ps: 90000000 stats { metadata_id: 1 str_value: "copy" } } }
  event_metadata { key: 1 value { id: 1 name: "copy" } }
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
}
"""


def test_devices_are_read_by_their_own_lines(tmp_path):
    """As TPUs and GPUs name them; the host's threads count only where there is no device besides."""
    path = tmp_path / "x.xplane.pb"
    path.write_bytes(ProfileData.text_proto_to_serialized_xspace(DEVICES))
    found = {operation.name: (round(operation.seconds * 1e6, 3), operation.calls) for operation in top_operations(path)}
    assert found == {
        "fusion.12 (jit(step)/mlp/up)": (5, 2), "while.7": (3, 1), "all-gather.3": (1, 1),
        "fusion.12 of jit_step": (5, 1), "nvjet_hsh_128x256 of jit_step": (1, 1), "MemcpyH2D": (4, 1),
    }  # fmt: skip
    text = format_operations(top_operations(path), 2, "profile")
    assert "fusion 52.6%, MemcpyH2D 21.1%, while 15.8%, all-gather 5.3%" in text


@pytest.mark.parametrize(
    ("done", "words"),
    [
        (5, "steps 3 to 5 are past at step 5; nothing is profiled"),
        (9, "past at step 9"),
        (3, "steps 3 to 3 are past; the profile starts with step 4"),
        (2, ""),
    ],
)
def test_a_resumed_run_says_what_is_past(tmp_path, done, words):
    said = []
    profiler = Profiler((3, 5), tmp_path, done, Clock(), said.append)
    assert words in (said or [""])[0]
    assert bool(said) == bool(words)
    if done >= 5:
        profiler.start_before(done + 1, lambda: None)
        assert not profiler.begun


def test_a_trace_that_cannot_start_does_not_end_the_run(tmp_path):
    said = []
    profiler = Profiler((1, 2), tmp_path, 0, Clock(), said.append)
    jax.profiler.start_trace(tmp_path / "other")
    try:
        for step in (1, 2, 3):
            profiler.start_before(step, lambda: None)
            profiler.stop_after(step, lambda: None)
    finally:
        jax.profiler.stop_trace()
    assert len(said) == 1
    assert said[0].startswith("warning: no profile: ")


def test_off_is_off(tmp_path):
    profiler = Profiler((), tmp_path, 0, Clock(), pytest.fail)
    for step in range(3):
        profiler.start_before(step + 1, pytest.fail)
        profiler.stop_after(step + 1, pytest.fail)
    profiler.close(3)
    assert list(tmp_path.iterdir()) == []
