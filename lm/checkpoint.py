"""How is a run put on disk so that no crash loses it, and is what lies there still what was written?

Orbax writes each step asynchronously and atomically but does not notice damaged arrays, so every step gets a manifest
of SHA-256 sums once it is complete, and only steps that match theirs are restored. Arrays are stored under per-layer
paths (`params/block_03/attn/q`), whatever grouping, mesh or device count the run had.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from data_pipeline.machine import sync
from lm.config import UserError
from lm.hosts import from_main, is_main
from lm.params import join_stacks, keeps, layer_paths, leaf_paths, split_stacks

FORMAT = 1
MANIFEST = "manifest.json"
RAW = ":raw"  # after a step: the weights as they were stepped, not their average (train.ema_decay)
Meta = dict[str, Any]
Cast = bool | frozenset[str]  # which tensors may be stored in another dtype: all, none, or these paths

logging.getLogger("absl").setLevel(
    logging.CRITICAL
)  # orbax logs every save, and tracebacks of errors that it raises too


def state_bytes(state: Any) -> int:
    """Bytes that a checkpoint of this state takes on disk, about."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)


def sign(folder: Path) -> None:
    """Writes the manifest of a complete step, and makes it and all files of the step durable."""
    files = _files(folder)
    sums = {str(p.relative_to(folder)): [p.stat().st_size, _sha256(p)] for p in files}
    for path in files:
        sync(path)
    temporary = folder / (MANIFEST + ".tmp")
    with open(temporary, "w") as file:
        json.dump({"format": FORMAT, "files": sums}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MANIFEST)
    sync(folder)
    sync(folder.parent)


def find_damage(folder: Path) -> str | None:
    """Returns what is wrong with a step folder, or None when every file is as it was signed."""
    if not (folder / MANIFEST).is_file():
        return "it was never signed (the run was killed while saving, or the copy is incomplete)"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["format"] > FORMAT:
            return f"written by checkpoint format {manifest['format']}, this is {FORMAT}; update lm"
        expected = {name: (int(size), str(digest)) for name, (size, digest) in dict(manifest["files"]).items()}
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is damaged"
    for name, (size, digest) in expected.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, should have {size}"
        if _sha256(path) != digest:
            return f"{name} has changed since it was written"
    extra = [str(p.relative_to(folder)) for p in _files(folder) if str(p.relative_to(folder)) not in expected]
    return f"{extra[0]} does not belong to it" if extra else None


def list_steps(folder: Path) -> list[int]:
    """Step numbers of the complete or damaged checkpoints in a folder, newest first."""
    if not folder.is_dir():
        return []
    return sorted((int(p.name) for p in folder.iterdir() if p.is_dir() and p.name.isdigit()), reverse=True)


def find_step(workdir: str | Path, step: str, log: Callable[[str], None]) -> int:
    """Returns the number of an undamaged checkpoint: "best" (else the newest), "last" or a number, each also with `RAW`.

    Raises UserError when there is none; a damaged newest one is passed over for an older one, saying so.
    """
    folder, step = Path(workdir) / "checkpoints", step.removesuffix(RAW)
    steps = list_steps(folder)
    if not steps:
        raise UserError(f"no checkpoint at {folder}. Train a run there first, or name another folder")
    if step.isdigit():
        if int(step) not in steps:
            raise UserError(f"{folder} has no step {step}; it has {', '.join(map(str, steps))}")
        damage = find_damage(folder / step)
        if damage:
            raise UserError(f"checkpoint {folder / step} cannot be used: {damage}")
        return int(step)
    bad: dict[int, str] = {}
    order = steps
    if step == "best":
        best = _best_step(folder, steps, bad)
        order = ([best] if best in steps else []) + [s for s in steps if s != best]
    for number in order:
        damage = find_damage(folder / str(number))
        if damage is None:
            for other, reason in bad.items():
                log(f"warning: checkpoint {folder / str(other)} cannot be used: {reason}. Using step {number} instead")
            return number
        bad[number] = damage
    if set(bad) == set(steps) and all("never signed" in reason for reason in bad.values()):
        log(f"warning: checkpoint {folder / str(steps[0])} has no manifest (the run was killed right after saving it)")
        return steps[0]  # the first save of a run: orbax commits atomically, and there is nothing older
    reasons = "; ".join(f"{number}: {reason}" for number, reason in bad.items())
    raise UserError(f"no usable checkpoint in {folder}: {reasons}. Restore the files or move the folder away")


def _best_step(folder: Path, steps: list[int], bad: dict[int, str]) -> int | None:
    """The best step as the newest undamaged checkpoint knows it; what is wrong with newer ones goes to `bad`."""
    for step in steps:
        damage = find_damage(folder / str(step))
        if damage is None:
            return read_meta(folder.parent, step)["best_step"]
        bad[step] = damage
    return None


def read_meta(workdir: str | Path, step: int) -> Meta:
    """Returns the JSON saved beside the arrays."""
    path = Path(workdir) / "checkpoints" / str(step) / "meta" / "metadata"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"checkpoint {path.parent.parent} cannot be used: {path.name}: {error}") from None


class Checkpoints:
    """Saves steps of one run in the background, signs them when complete, and deletes all but the newest and the best."""

    def __init__(self, workdir: str | Path, keep_last: int, log: Callable[[str], None]):
        self.folder = Path(os.path.abspath(workdir)) / "checkpoints"
        self.keep_last = keep_last
        self.log = log
        self._failures = 0
        self._lost = ""  # why the last save failed; "" when it did not
        self._unsigned: tuple[int, int | None] | None = None  # (step being saved, best step then)
        self._signer = ThreadPoolExecutor(1)
        self._signing = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be used for checkpoints: {error.strerror}. Move it away") from None
        if is_main():
            for leftover in self.folder.glob("*.orbax-checkpoint-tmp*"):  # the lease is held: it is a dead run's
                shutil.rmtree(leftover, ignore_errors=True)
        self._manager = _manager(self.folder)

    def save(self, step: int, state: Any, meta: Meta) -> None:
        """Starts saving; returns when the arrays are copied off the devices. Earlier failures are reported here."""
        self._finish()
        path = self.folder / str(step)
        if path.is_dir():  # left by a kill before it was signed, or damaged and passed over
            if is_main():
                shutil.rmtree(path)
            from_main(0)
            self._manager.reload()
        tree = unflatten_dict(split_stacks(dict(leaf_paths(state))), sep="/")
        meta = copy.deepcopy({**meta, "format": FORMAT})
        try:
            saved = self._manager.save(
                step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(tree), meta=ocp.args.JsonSave(meta)), force=True
            )
            assert saved, f"orbax refused to save step {step}"
            self._unsigned = (step, meta.get("best_step"))
        except (OSError, ValueError, RuntimeError) as error:
            self._failed(step, error)

    def poll(self) -> None:
        """Signs a step whose save has finished since; never waits."""
        if self._unsigned is not None and not self._manager.is_saving_in_progress():
            self._start_signing()

    def close(self) -> None:
        """Waits until everything is on disk, signed and durable."""
        self._finish()
        self._signer.shutdown()
        self._manager.close()
        if self._lost:
            raise UserError(f"the last checkpoint is missing: {self._lost}")

    def _finish(self) -> None:
        if self._unsigned is not None:
            self._start_signing()
        if self._signing is not None:
            self._signing.result()
            self._signing = None

    def _start_signing(self) -> None:
        assert self._unsigned is not None
        step, best = self._unsigned
        self._unsigned = None
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            self._failed(step, error)
            return
        self._failures, self._lost = 0, ""
        if is_main():
            self._signing = self._signer.submit(self._sign_and_prune, step, best)

    def _sign_and_prune(self, step: int, best: int | None) -> None:
        try:
            sign(self.folder / str(step))
        except OSError as error:
            self.log(f"warning: checkpoint step {step} not signed: {error}")
            return
        steps = list_steps(self.folder)
        signed = [s for s in steps if (self.folder / str(s) / MANIFEST).is_file()]
        keep = {*signed[: self.keep_last], best}
        for old in steps:  # what an earlier kill left unsigned goes too, now that there is something better
            if old not in keep and old < step:
                (self.folder / str(old) / MANIFEST).unlink(
                    missing_ok=True
                )  # first: a kill here leaves no half step in use
                shutil.rmtree(self.folder / str(old), ignore_errors=True)

    def _failed(self, step: int, error: Exception) -> None:
        self._failures += 1
        free = shutil.disk_usage(self.folder).free / 1e6
        text = " ".join(str(error).split())
        full = getattr(error, "errno", None) == errno.ENOSPC or "os_error_code='28'" in text or "No space left" in text
        reason = "no space left on the disk" if full else text[-300:]  # tensorstore says the cause last
        self._lost = f"checkpoint step {step} not saved: {reason} ({free:.0f} MB free in {self.folder})"
        self.log(f"warning: {self._lost}")
        self._manager = _manager(self.folder)
        if self._failures >= 3:
            raise UserError(f"three checkpoints in a row could not be saved in {self.folder}: {reason}")


def _manager(folder: Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),  # else 300 s at exit on errors
    )
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(folder, item_handlers=handlers, options=options)


def _targets(tree: Any, prefix: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Per-layer {path: shape, dtype, sharding} of a pytree of ShapeDtypeStructs that have shardings."""
    targets = {}
    for path, leaf in leaf_paths(tree):
        names = layer_paths(prefix + path)
        if names == [prefix + path]:
            targets[names[0]] = leaf
        else:
            sharding = leaf.sharding
            if isinstance(sharding, NamedSharding):
                sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
            targets |= {n: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=sharding) for n in names}
    return targets


def describe(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def compare(stored: Mapping[str, Any], wanted: Mapping[str, Any], cast: Cast) -> list[str]:
    """Returns one line per tensor that is missing or has another shape or dtype."""
    lines = []
    for path, leaf in wanted.items():
        if path not in stored:
            lines.append(f"{path}: not in the checkpoint, config wants {describe(leaf)}")
        elif tuple(stored[path].shape) != tuple(leaf.shape):
            lines.append(f"{path}: checkpoint {describe(stored[path])}, config wants {describe(leaf)}")
        elif not keeps(stored[path].dtype, leaf.dtype) and not (cast is True or (cast and path in cast)):
            lines.append(
                f"{path}: checkpoint {describe(stored[path])}, config wants {describe(leaf)} (init.cast=True allows it)"
            )
    return lines


def stored_shapes(workdir: str | Path, step: int) -> dict[str, Any]:
    """Returns {path: array metadata} of everything in a checkpoint, without reading arrays."""
    handler = ocp.PyTreeCheckpointHandler()
    metadata: Any = handler.metadata(epath.Path(os.path.abspath(workdir)) / "checkpoints" / str(step) / "state")
    return flatten_dict(metadata.tree, sep="/")


def load(
    workdir: str | Path, step: int, abstract: Any, prefix: str = "", cast: Cast = False,
    stands_in: Mapping[str, str] | None = None,
) -> Any:  # fmt: skip
    """Reads the part of a checkpoint that `abstract` (ShapeDtypeStructs with shardings) names, in its grouping.

    `stands_in` says what is read in place of a per-layer path. Raises UserError with one line per tensor that does not fit.
    """
    wanted, stands_in = _targets(abstract, prefix), stands_in or {}
    folder = Path(os.path.abspath(workdir)) / "checkpoints" / str(step)
    try:
        problems = compare(stored_shapes(workdir, step), wanted, cast)
        if problems:
            shown = "\n  ".join(problems[:40] + ([f"... and {len(problems) - 40} more"] if len(problems) > 40 else []))
            raise UserError(f"checkpoint {folder} does not fit the config:\n  {shown}")
        item = unflatten_dict({stands_in.get(path, path): leaf for path, leaf in wanted.items()}, sep="/")
        restore_args = ocp.checkpoint_utils.construct_restore_args(item)
        reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
        flat = flatten_dict(reader.restore(folder / "state", args=args), sep="/")
        reader.close()
        flat = {path: flat[stands_in.get(path, path)] for path in wanted}
    except UserError:
        raise
    except Exception as error:  # orbax and tensorstore raise many kinds for damaged files
        raise UserError(f"checkpoint {folder} cannot be used: {' '.join(str(error).split())[:300]}") from None
    leaves = []
    for path, leaf in leaf_paths(abstract):
        single = layer_paths(prefix + path) == [prefix + path]
        join = jax.jit(lambda parts, path=prefix + path: join_stacks(parts, [path])[path], out_shardings=leaf.sharding)
        names = layer_paths(prefix + path)
        leaves.append(flat[names[0]] if single else join({n: flat.pop(n) for n in names}))  # freed as it is joined
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)
