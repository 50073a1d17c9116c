"""Does what was saved come back bit for bit under any grouping and mesh, and is every damage noticed?"""

import contextlib
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.checkpoint import FORMAT, MANIFEST, Checkpoints, find_damage, find_step, list_steps, load, read_meta
from lm.config import MeshConfig, OptimConfig, UserError
from lm.optim import make_optimizer, make_schedule, read_tables
from lm.params import join_stacks, leaf_paths, run_name, split_stacks
from lm.sharding import make_mesh, param_shardings, state_shardings
from lm.step import TrainState

ROOT = Path(__file__).resolve().parents[2]
LAYERS = 4
GROUPINGS = [(), ((0, 4),), ((0, 1), (1, 4)), ((0, 3), (3, 4)), ((0, 2), (2, 4)), ((0, 1), (1, 2), (2, 3), (3, 4))]
MESHES = {"one": (1, 1, 1), "data": (8, 1, 1), "fsdp": (1, 8, 1), "mixed": (2, 2, 2)}
LEAVES = {"attn/q": (8, 8), "attn/out": (8, 8), "mlp/up": (8, 16), "norm_attn/scale": (8,)}
META = {"best_step": None, "note": ["as it was"]}


def mesh_of(name="one"):
    sizes = MESHES[name]
    return make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])


def random_like(path, leaf):
    """Random content of a per-layer leaf that follows from its path alone."""
    rng = np.random.default_rng(list(path.encode()))
    if jnp.issubdtype(leaf.dtype, jnp.integer):
        return rng.integers(0, 1000, leaf.shape).astype(leaf.dtype)
    return rng.standard_normal(leaf.shape).astype(leaf.dtype)


def shapes_of(runs, dim=8, layers=LAYERS, dtype=jnp.float32):
    shapes = {"embed": (16, dim), "norm_out/scale": (dim,)}
    for start, stop in runs or [(i, i + 1) for i in range(layers)]:
        name = run_name(start, stop) if runs else f"block_{start:02d}"
        front = (stop - start,) if runs else ()
        shapes |= {f"{name}/{path}": (*front, *shape) for path, shape in LEAVES.items()}
    return {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in sorted(shapes.items())}


def abstract_state(runs=(), mesh=None, **sizes):
    """An adamw TrainState of ShapeDtypeStructs with shardings, the lower two layers frozen."""
    config = OptimConfig(train=(("block_0[01]/.*", False), (".*", True)), schedule="plateau")
    if sizes:
        config = replace(config, train=((".*", True),))
    mesh = mesh or mesh_of()
    shapes = shapes_of(runs, **sizes)
    treatment = read_tables(config, list(shapes_of((), **sizes)))
    optimizer = make_optimizer(config, shapes, treatment, make_schedule(config, 1e-3, 100))
    state = jax.eval_shape(lambda p: TrainState(jnp.zeros((), jnp.int32), p, optimizer.init(p)), shapes)
    shardings = state_shardings(state, state.params, mesh)
    return jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), state, shardings)


def real_state(runs=(), mesh=None, salt=""):
    """The state that `abstract_state` describes, with random content that does not depend on grouping or mesh."""
    abstract = abstract_state(runs, mesh)
    single = {p: random_like(p + salt, leaf) for p, leaf in leaf_paths(abstract_state())}
    paths = [path for path, _ in leaf_paths(abstract)]
    leaves = join_stacks(single, paths)
    put = [jax.device_put(leaves[path], leaf.sharding) for path, leaf in leaf_paths(abstract)]
    return jax.tree.unflatten(jax.tree.structure(abstract), put)


def content(tree):
    """{per-layer path: bytes, dtype and shape} of every leaf."""
    leaves = split_stacks({path: np.asarray(leaf) for path, leaf in leaf_paths(tree)})
    return {path: (leaf.tobytes(), leaf.dtype, leaf.shape) for path, leaf in leaves.items()}


def save(workdir, *steps, runs=(), mesh=None, log=print, keep_last=9, **meta):
    checkpoints = Checkpoints(workdir, keep_last, log)
    for step in steps:
        checkpoints.save(step, real_state(runs, mesh, str(step)), {**META, **meta})
    checkpoints.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with the signed steps 1 and 2; tests copy it."""
    workdir = tmp_path_factory.mktemp("saved")
    save(workdir, 1, 2)
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def step_files(step_folder):
    return sorted(path for path in step_folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------- round trips


def test_there_is_something_to_compare():
    names = [path for path, _ in leaf_paths(abstract_state())]
    assert sum("/mu/" in name for name in names) == sum("/nu/" in name for name in names) > 0
    assert not any("/mu/" in name and "block_00" in name for name in names)
    assert content(real_state()) == content(real_state(((0, 2), (2, 4)), mesh_of("fsdp")))
    assert content(real_state()) != content(real_state(salt="other"))


@pytest.mark.parametrize("runs", GROUPINGS)
def test_saved_unrolled_it_comes_back_in_any_grouping(saved, runs):
    # Runs never mix frozen and trained layers in a real run; storage does not care.
    if any(start < 2 < stop for start, stop in runs):
        runs_params = shapes_of(runs)
        shardings = param_shardings(runs_params, mesh_of())
        abstract = {p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=shardings[p]) for p, s in runs_params.items()}
        found, wanted = load(saved, 2, abstract, "params/"), real_state(salt="2").params
    else:
        found, wanted = load(saved, 2, abstract_state(runs)), real_state(salt="2")
    assert content(found) == content(wanted)


@pytest.mark.parametrize("runs", [runs for runs in GROUPINGS[1:] if not any(a < 2 < b for a, b in runs)])
def test_saved_in_stacks_it_comes_back_unrolled_and_in_other_stacks(tmp_path, runs):
    save(tmp_path, 3, runs=runs)
    assert content(load(tmp_path, 3, abstract_state())) == content(real_state(salt="3"))
    other = ((0, 2), (2, 4)) if runs != ((0, 2), (2, 4)) else GROUPINGS[-1]
    assert content(load(tmp_path, 3, abstract_state(other))) == content(real_state(salt="3"))


@pytest.mark.parametrize("runs", [(), ((0, 2), (2, 4))])
@pytest.mark.parametrize("target", sorted(MESHES))
def test_saved_on_one_mesh_it_comes_back_on_any_other(tmp_path_factory, on_data_mesh, target, runs):
    abstract = abstract_state(runs, mesh_of(target))
    found = load(on_data_mesh, 5, abstract)
    assert content(found) == content(real_state(salt="5"))
    assert all(leaf.sharding == want.sharding for leaf, want in zip(jax.tree.leaves(found), jax.tree.leaves(abstract)))


@pytest.fixture(scope="module")
def on_data_mesh(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data_mesh")
    save(folder, 5, mesh=mesh_of("data"))
    return folder


@pytest.mark.parametrize("source", ["fsdp", "mixed"])
def test_saved_sharded_it_comes_back_on_one_device(tmp_path, source):
    save(tmp_path, 5, mesh=mesh_of(source))
    assert content(load(tmp_path, 5, abstract_state())) == content(real_state(salt="5"))


def test_parameters_alone_can_be_loaded_and_a_part_of_them(saved):
    params = abstract_state().params
    assert content(load(saved, 1, params, "params/")) == content(real_state(salt="1").params)
    part = {path: leaf for path, leaf in params.items() if path.startswith("block_03")}
    found = load(saved, 1, part, "params/")
    assert found.keys() == part.keys()
    assert content(found).items() <= content(real_state(salt="1").params).items()


def test_a_relative_workdir_works(saved, monkeypatch):
    monkeypatch.chdir(saved.parent)
    assert content(load(saved.name, 1, abstract_state())) == content(real_state(salt="1"))
    assert find_step(saved.name, "last", print) == 2


# ---------------------------------------------------------------- what is kept


@pytest.mark.parametrize("keep_last", [1, 2])
@pytest.mark.parametrize("losses", [(3, 1, 2, 4, 5), (5, 4, 3, 2, 1), (1, 2, 3, 4, 5), (3, 4, 2, 5, 6)])
def test_the_newest_and_the_best_are_never_deleted(tmp_path, losses, keep_last):
    checkpoints = Checkpoints(tmp_path, keep_last, print)
    state = {"x": jnp.ones((2,))}
    best = None
    for step, loss in enumerate(losses, 1):
        best = step if best is None or loss < losses[best - 1] else best
        checkpoints.save(step, state, {"best_step": best})
        usable = [
            s for s in list_steps(tmp_path / "checkpoints") if find_damage(tmp_path / "checkpoints" / str(s)) is None
        ]
        if step > 1:  # while one is being written, the newest and the best before it are safe
            assert step - 1 in usable
            assert min(losses[: step - 1]) in [losses[s - 1] for s in usable]
    checkpoints.close()
    newest = range(len(losses) - keep_last + 1, len(losses) + 1)
    assert set(list_steps(tmp_path / "checkpoints")) == {*newest, best}
    assert find_step(tmp_path, "best", print) == best
    assert find_step(tmp_path, "last", print) == len(losses)


def test_best_is_the_newest_when_nothing_was_evaluated(saved):
    assert find_step(saved, "best", print) == 2


def test_a_step_number_is_found_or_the_ones_there_are_listed(saved):
    assert find_step(saved, "1", print) == 1
    with pytest.raises(UserError, match="has no step 7; it has 2, 1"):
        find_step(saved, "7", print)


def test_meta_is_what_it_was_when_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2, print)
    meta = {"best_step": None, "progress": {"history": [{"step": 1, "语": 0.1}]}}
    checkpoints.save(1, {"x": jnp.ones((2,))}, meta)
    meta["progress"]["history"].append({"step": 2})
    meta["progress"]["history"][0]["step"] = 99
    meta["late"] = True
    checkpoints.close()
    stored = read_meta(tmp_path, 1)
    assert stored["progress"] == {"history": [{"step": 1, "语": 0.1}]}
    assert "late" not in stored


def test_donating_the_state_right_after_save_does_not_change_what_is_stored(tmp_path):
    @jax.jit
    def fresh():
        return {"x": jnp.arange(200_000, dtype=jnp.float32), "n": jnp.zeros((), jnp.int32)}

    spoil = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0 - 7, state), donate_argnums=0)
    state = fresh()
    wanted = content(state)
    checkpoints = Checkpoints(tmp_path, 2, print)
    checkpoints.save(1, state, META)
    for _ in range(20):
        state = spoil(state)
    jax.block_until_ready(state)
    checkpoints.close()
    found = load(tmp_path, 1, abstract_of(fresh()))
    assert content(found) == wanted


def abstract_of(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def test_close_waits_until_the_last_step_is_complete_and_signed(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2, print)
    state = {"x": jnp.arange(500_000, dtype=jnp.float32)}
    checkpoints.save(1, state, META)
    checkpoints.close()
    assert find_damage(tmp_path / "checkpoints" / "1") is None
    assert content(load(tmp_path, 1, abstract_of(state))) == content(state)


def poll_until(checkpoints, done):
    """Polls, as training does at each step, until `done()`."""
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline
        checkpoints.poll()
        time.sleep(0.01)


def test_polling_signs_a_finished_step_without_another_save(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2, print)
    checkpoints.save(1, {"x": jnp.ones((2,))}, META)
    poll_until(checkpoints, lambda: (tmp_path / "checkpoints" / "1" / MANIFEST).is_file())
    assert find_damage(tmp_path / "checkpoints" / "1") is None
    checkpoints.close()


# ---------------------------------------------------------------- what a kill leaves


def test_leftovers_of_a_killed_save_are_removed(workdir):
    leftover = workdir / "checkpoints" / "6.orbax-checkpoint-tmp"
    leftover.mkdir()
    (leftover / "half").write_text("half")
    assert list_steps(workdir / "checkpoints") == [2, 1]
    assert find_step(workdir, "last", print) == 2
    save(workdir, 7)
    assert not leftover.exists()
    assert not list((workdir / "checkpoints").glob("*tmp*"))
    assert content(load(workdir, 7, abstract_state())) == content(real_state(salt="7"))


def test_an_unsigned_newest_step_is_passed_over_for_a_signed_one(workdir):
    (workdir / "checkpoints" / "2" / MANIFEST).unlink()
    said = []
    assert find_step(workdir, "last", said.append) == 1
    assert len(said) == 1
    assert "never signed" in said[0]
    assert "Using step 1" in said[0]


def test_an_only_step_that_is_unsigned_is_used_with_a_warning(workdir):
    shutil.rmtree(workdir / "checkpoints" / "1")
    (workdir / "checkpoints" / "2" / MANIFEST).unlink()
    said = []
    assert find_step(workdir, "last", said.append) == 2
    assert "warning" in said[0]
    assert content(load(workdir, 2, abstract_state())) == content(real_state(salt="2"))


def test_an_unsigned_leftover_of_the_same_step_is_replaced(workdir):
    (workdir / "checkpoints" / "2" / MANIFEST).unlink()
    (workdir / "checkpoints" / "2" / "debris").write_text("x")
    checkpoints = Checkpoints(workdir, 9, print)
    checkpoints.save(2, real_state(salt="again"), {**META, "note": "second"})
    checkpoints.close()
    assert find_step(workdir, "last", print) == 2
    assert read_meta(workdir, 2)["note"] == "second"
    assert content(load(workdir, 2, abstract_state())) == content(real_state(salt="again"))


def test_after_falling_back_an_earlier_step_can_be_saved_and_is_used(workdir):
    rename = workdir / "checkpoints"
    shutil.move(rename / "2", rename / "20")
    (rename / "20" / MANIFEST).unlink()
    checkpoints = Checkpoints(workdir, 1, print)
    checkpoints.save(5, real_state(salt="5"), META)
    checkpoints.close()
    assert find_step(workdir, "last", lambda text: None) == 5
    assert content(load(workdir, 5, abstract_state())) == content(real_state(salt="5"))


SAVER = """
import sys
import jax.numpy as jnp
from lm.checkpoint import Checkpoints, find_step, list_steps
workdir = sys.argv[1]
step = find_step(workdir, "last", print) if list_steps(__import__("pathlib").Path(workdir) / "checkpoints") else 0
checkpoints = Checkpoints(workdir, 2, print)
while True:
    step += 1
    checkpoints.save(step, {"x": jnp.full((300_000,), step, jnp.float32)}, {"best_step": None, "step": step})
    print(step, flush=True)
"""


def test_kill_9_at_any_moment_leaves_a_step_that_loads(tmp_path):
    rng = random.Random(0)
    wanted = {"x": jax.ShapeDtypeStruct((300_000,), jnp.float32, sharding=jnp.zeros(()).sharding)}
    last = 0
    for _ in range(3):
        command = [sys.executable, "-c", SAVER, str(tmp_path)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for line in process.stdout:
            if line.strip().isdigit() and int(line) >= last + 3:
                break
        time.sleep(rng.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found = find_step(tmp_path, "last", lambda text: None)
        assert found >= last + 1
        assert read_meta(tmp_path, found)["step"] == found
        assert set(np.asarray(load(tmp_path, found, wanted)["x"]).tolist()) == {float(found)}
        last = found


# ---------------------------------------------------------------- damage


def flip(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncate(path, rng):
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def zero(path, rng):
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data))
    data[start : start + 4096] = bytes(len(data[start : start + 4096]))
    if bytes(data) == path.read_bytes():
        data = bytes(len(data))
    path.write_bytes(data)


def grow(path, rng):
    path.write_bytes(path.read_bytes() + b"\x00")


def delete(path, rng):
    path.unlink()


def link(path, rng):
    outside = path.parents[3] / f"outside_{path.name}"
    shutil.copy(path, outside)
    path.unlink()
    path.symlink_to(outside)


@pytest.mark.parametrize("damage", [flip, truncate, zero, grow, delete, link], ids=lambda damage: damage.__name__)
def test_damage_to_any_file_is_noticed_named_and_the_older_step_used(workdir, damage):
    rng = random.Random(damage.__name__)
    folder = workdir / "checkpoints" / "2"
    good = workdir / "good"
    shutil.copytree(folder, good)
    names = [path.relative_to(folder) for path in step_files(folder)]
    assert len(names) >= 5
    for name in names * (3 if damage in (flip, truncate, zero) else 1):
        shutil.rmtree(folder)
        shutil.copytree(good, folder)
        before = (folder / name).read_bytes()
        if not before and damage in (flip, truncate, zero):
            continue
        if damage is link and name.name == MANIFEST:
            continue  # the manifest says nothing about itself: what it lists is checked all the same
        damage(folder / name, rng)
        if damage is not link and (folder / name).is_file() and (folder / name).read_bytes() == before:
            continue
        said = []
        found = find_step(workdir, "last", said.append)
        if name.name == MANIFEST and found == 2:
            assert json.loads((folder / name).read_bytes())["files"] == json.loads(before)["files"]
            continue  # harmless: it still lists every file as it is
        assert found == 1, name
        assert len(said) == 1
        assert "checkpoints/2" in said[0]
        assert name.name in said[0] or name.name == MANIFEST, said
        with pytest.raises(UserError, match="cannot be used"):
            find_step(workdir, "2", print)


def test_no_flipped_bit_of_the_manifest_lets_other_files_through(workdir):
    path = workdir / "checkpoints" / "2" / MANIFEST
    good = path.read_bytes()
    files = json.loads(good)["files"]
    rng = random.Random(0)
    for _ in range(400):
        data = bytearray(good)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        if find_damage(path.parent) is None:
            assert json.loads(path.read_bytes())["files"] == files


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"format": 1, "files": []}', '{"format": "1", "files": {}}', "null", "1"]
)
def test_a_manifest_that_is_not_one_is_damage_and_no_crash(workdir, content):
    (workdir / "checkpoints" / "2" / MANIFEST).write_text(content)
    said = []
    assert find_step(workdir, "last", said.append) == 1
    assert "checkpoints/2 cannot be used" in said[0]


@pytest.mark.parametrize("name", ["extra", "state/extra", "state/d/0123456789", "meta/extra"])
def test_a_file_that_does_not_belong_is_noticed(workdir, name):
    path = workdir / "checkpoints" / "2" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("x")
    said = []
    assert find_step(workdir, "last", said.append) == 1
    assert f"{name} does not belong" in said[0]


def test_when_every_step_is_bad_the_reasons_are_listed_and_nothing_starts_over(workdir):
    for step in (1, 2):
        (workdir / "checkpoints" / str(step) / "meta" / "metadata").write_text("{}")
    with pytest.raises(UserError) as caught:
        find_step(workdir, "last", print)
    text = str(caught.value)
    assert caught.value.exit_code == 1
    assert text.startswith(f"no usable checkpoint in {workdir / 'checkpoints'}")
    assert "2: meta/metadata" in text
    assert "1: meta/metadata" in text


def test_a_half_copied_step_is_refused(workdir):
    for path in step_files(workdir / "checkpoints" / "2")[::2]:
        path.unlink()
    assert find_step(workdir, "last", lambda text: None) == 1


def test_best_falls_back_loudly_when_the_best_is_damaged(tmp_path):
    save(tmp_path, 1, 2, 3, best_step=1)
    assert find_step(tmp_path, "best", print) == 1
    flip(next(p for p in step_files(tmp_path / "checkpoints" / "1") if "state" in str(p)), random.Random(0))
    said = []
    assert find_step(tmp_path, "best", said.append) == 3
    assert "checkpoints/1" in said[0]


def test_a_damaged_newest_step_cannot_say_silently_which_is_best(tmp_path):
    save(tmp_path, 1, 2, 3, best_step=3)
    path = tmp_path / "checkpoints" / "3" / "meta" / "metadata"
    text = path.read_text()
    path.write_text(text.replace('"best_step": 3', '"best_step": 1').replace('"best_step":3', '"best_step":1'))
    assert path.read_text() != text
    said = []
    find_step(tmp_path, "best", said.append)
    assert any("checkpoints/3" in line for line in said)


def test_damage_behind_a_good_manifest_is_an_error_and_no_crash(workdir):
    """An unsigned step can hold damaged arrays; reading it says so in one line."""
    folder = workdir / "checkpoints" / "2" / "state"
    for path in step_files(folder):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="cannot be used"):
        load(workdir, 2, abstract_state())
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="cannot be used"):
        load(workdir, 2, abstract_state())
    with pytest.raises(UserError, match="cannot be used"):
        read_meta(workdir, 77)


def test_a_newer_format_is_refused_with_both_numbers(workdir):
    for step in (1, 2):
        path = workdir / "checkpoints" / str(step) / MANIFEST
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": FORMAT + 1}))
    words = f"written by checkpoint format {FORMAT + 1}, this is {FORMAT}"
    for step in ("2", "last", "best"):
        with pytest.raises(UserError, match=words):
            find_step(workdir, step, print)


# ---------------------------------------------------------------- what does not fit


@pytest.mark.parametrize("make", ["nothing", "empty", "file"])
def test_no_checkpoint_is_said_with_the_folder(tmp_path, make):
    if make == "empty":
        (tmp_path / "checkpoints").mkdir()
    if make == "file":
        (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(UserError, match="no checkpoint at") as caught:
        find_step(tmp_path, "last", print)
    assert str(tmp_path / "checkpoints") in str(caught.value)


def misfit(workdir, abstract, **options):
    with pytest.raises(UserError, match="does not fit the config") as caught:
        load(workdir, 2, abstract, **options)
    return str(caught.value)


def changed(path, **changes):
    params = dict(abstract_state().params)
    leaf = params[path]
    shape, dtype = changes.get("shape", leaf.shape), changes.get("dtype", leaf.dtype)
    params[path] = jax.ShapeDtypeStruct(shape, dtype, sharding=leaf.sharding)
    return params


def test_another_shape_is_listed_by_path(saved):
    text = misfit(saved, changed("embed", shape=(32, 8)), prefix="params/")
    assert "params/embed: checkpoint float32[16, 8], config wants float32[32, 8]" in text
    assert text.count("\n") == 1


def test_another_dtype_is_listed_and_cast_only_when_asked(saved):
    abstract = changed("block_01/attn/q", dtype=jnp.bfloat16)
    text = misfit(saved, abstract, prefix="params/")
    assert "params/block_01/attn/q: checkpoint float32[8, 8], config wants bfloat16[8, 8]" in text
    assert "init.cast" in text
    found = load(saved, 2, abstract, "params/", cast=True)["block_01/attn/q"]
    wanted = real_state(salt="2").params["block_01/attn/q"].astype(jnp.bfloat16)
    assert found.dtype == jnp.bfloat16
    assert np.asarray(found).tobytes() == np.asarray(wanted).tobytes()


def test_a_missing_tensor_is_listed(saved):
    leaf = abstract_state().params["embed"]
    text = misfit(saved, {**abstract_state().params, "head": leaf}, prefix="params/")
    assert "params/head: not in the checkpoint, config wants float32[16, 8]" in text


def test_more_layers_are_listed_by_layer_even_in_a_stack(saved):
    shapes = shapes_of(((0, 6),))
    shardings = param_shardings(shapes, mesh_of())
    wanted = {p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=shardings[p]) for p, s in shapes.items()}
    text = misfit(saved, wanted, prefix="params/")
    assert "params/block_04/attn/q: not in the checkpoint" in text
    assert "params/block_05/mlp/up: not in the checkpoint" in text
    assert "block_03" not in text


def test_all_misfits_come_in_one_message(saved):
    params = changed("embed", shape=(32, 8)) | {"head": abstract_state().params["embed"]}
    text = misfit(saved, params, prefix="params/")
    assert "params/embed" in text
    assert "params/head" in text


def test_optimizer_state_of_another_treatment_is_refused(saved):
    text = misfit(saved, abstract_state(layers=LAYERS))  # all layers trained: moments that were never saved
    assert "mu/block_00/attn/q: not in the checkpoint" in text


# ---------------------------------------------------------------- saving fails


def test_a_file_in_place_of_the_checkpoint_folder_is_one_clear_error(tmp_path):
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(UserError) as caught:
        Checkpoints(tmp_path, 2, print)
    assert str(tmp_path / "checkpoints") in str(caught.value)
    assert (tmp_path / "checkpoints").read_text() == "mine"


@contextlib.contextmanager
def largest_file(size):
    """No file of this process may grow beyond `size` bytes: writes fail as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def big_state(seed):
    return {"x": jnp.asarray(np.random.default_rng(seed).standard_normal(100_000).astype(np.float32))}


def start_with_one_good_step(workdir, log):
    """Checkpoints whose step 1 is on disk and signed."""
    checkpoints = Checkpoints(workdir, 2, log)
    checkpoints.save(1, big_state(1), META)
    poll_until(checkpoints, lambda: (workdir / "checkpoints" / "1" / MANIFEST).is_file())
    return checkpoints


def save_often(checkpoints):
    for step in range(2, 8):
        checkpoints.save(step, big_state(step), META)


def assert_step_is_good(workdir, step):
    assert find_step(workdir, "last", lambda text: None) == step
    assert content(load(workdir, step, abstract_of(big_state(step)))) == content(big_state(step))


def test_a_failed_save_is_a_warning_and_the_next_one_works(tmp_path):
    said = []
    checkpoints = start_with_one_good_step(tmp_path, said.append)
    with largest_file(50_000):
        checkpoints.save(28, big_state(28), META)
        poll_until(checkpoints, lambda: said)
    assert len(said) == 1
    assert "checkpoint step 28 not saved" in said[0]
    assert_step_is_good(tmp_path, 1)
    checkpoints.save(29, big_state(29), META)
    checkpoints.close()
    assert_step_is_good(tmp_path, 29)
    assert len(said) == 1


def test_a_failed_save_gives_its_reason_in_one_line(tmp_path, caplog):
    said = []
    checkpoints = start_with_one_good_step(tmp_path, said.append)
    with largest_file(50_000):
        checkpoints.save(28, big_state(28), META)
        poll_until(checkpoints, lambda: said)
    assert "\n" not in said[0]
    assert "File too large" in said[0]
    assert "no space left" not in said[0]  # the disk is not full: a 28 in a step or a path is no error number
    assert not [record for record in caplog.records if record.exc_info]  # and no traceback besides


def test_closing_after_a_failed_last_save_does_not_pretend_it_is_there(tmp_path):
    checkpoints = start_with_one_good_step(tmp_path, lambda text: None)
    with largest_file(50_000):
        checkpoints.save(2, big_state(2), META)
        with pytest.raises(UserError, match="step 2"):
            checkpoints.close()
    assert_step_is_good(tmp_path, 1)


def test_three_failed_saves_in_a_row_end_the_run_with_the_earlier_step_intact(tmp_path):
    checkpoints = start_with_one_good_step(tmp_path, lambda text: None)
    with largest_file(50_000), pytest.raises(UserError, match="three checkpoints in a row could not be saved"):
        save_often(checkpoints)
    assert_step_is_good(tmp_path, 1)


def test_a_checkpoint_folder_that_vanishes_is_no_crash(tmp_path):
    checkpoints = start_with_one_good_step(tmp_path, lambda text: None)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").write_text("a file now")
    with pytest.raises(UserError):
        save_often(checkpoints)
    assert (tmp_path / "checkpoints").is_file()
