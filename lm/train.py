"""In which order do steps, evaluations, checkpoints and the end of a run come?

At each step boundary: evaluate if due, save if due, stop if asked; then the next step. What decides anything later
(history, best, patience) is `Progress`, which every checkpoint holds, so a resumed run goes on bit for bit.
"""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import jax

from lm.anchor import averaged_weights, start_weights
from lm.batch import Batches, check_batch
from lm.config import UserError
from lm.evaluate import evaluate
from lm.forgetting import criterion, describe, measure
from lm.hosts import StopFlag, gather_bytes, is_main
from lm.logger import duration
from lm.memory import MemoryWatch
from lm.params import Params, to_host
from lm.profile import Profiler
from lm.run import Outcome, Run
from lm.sharding import local_rows, put_batch, whole_rows


def train(run: Run) -> Outcome:
    """Trains to the end, to an early stop, or until asked to stop; always leaves a complete checkpoint."""
    return _Loop(run).run_to_end()


class _Loop:
    def __init__(self, run: Run):
        self.run, self.state = run, run.state
        self.batch_size = run.config.data.batch_size
        self.pending: tuple[int, dict[str, jax.Array]] | None = None
        self.save_due = False
        steps = run.config.debug.profile_steps if is_main() else ()
        self.memory = MemoryWatch(active=jax.default_backend() == "cpu")
        self.profiler = Profiler(steps, run.workdir, run.progress.step, run.clock, run.logger.say)

    def run_to_end(self) -> Outcome:
        run, config, progress, clock = self.run, self.run.config.train, self.run.progress, self.run.clock
        started, before = time.perf_counter(), progress.wall_seconds
        clock.note("ready", step=progress.step)
        stop = StopFlag()
        rows = local_rows(run.mesh, self.batch_size)
        batches = run.data.train_batches(progress.step, rows, run.data_state)
        status = "finished"
        try:
            while True:
                progress.wall_seconds = before + time.perf_counter() - started
                with clock.part("step"):  # of several processes: waits for what the devices were asked before
                    stopping = stop.agreed()
                self.profiler.stop_after(progress.step, self._flush)
                if not stopping and self._eval_due():
                    self._flush()
                    with clock.part("eval"):
                        stopping = not self._evaluate(stop.agreed)
                        self.memory.release()
                    clock.note("eval", step=progress.step)
                if not stopping and self._out_of_patience():
                    status = "stopped early"
                last = progress.step >= config.steps or status == "stopped early"
                self._save_if_due(batches, force=last or stopping)
                if last or stopping:
                    status = "interrupted" if stopping and not last else status
                    break
                if run.later and run.later[0].step <= progress.step:
                    self._enter_phase()
                self.profiler.start_before(progress.step + 1, self._flush)
                with jax.profiler.StepTraceAnnotation("train", step_num=progress.step + 1):
                    self._step(batches)
            with clock.part("save"):
                run.checkpoints.close()
        finally:
            self.profiler.close(progress.step)
            batches.close()
            stop.close()
        steps = clock.whole()
        return Outcome(self.state, status, steps.total, steps.tokens, steps.flops)

    def _enter_phase(self) -> None:
        """Goes on with more of the parameters trained. To compile that counts as start-up, as before the first step."""
        self._flush()
        with self.run.clock.part("startup"):
            self.state, changed = self.run.later.pop(0).enter(self.state)
            for name, value in changed.items():
                setattr(self.run, name, value)
            self.memory.release()
        self.run.clock.note("phase", step=self.run.progress.step)

    def _step(self, batches: Batches) -> None:
        run, progress, clock = self.run, self.run.progress, self.run.clock
        with clock.part("input"):
            batch = next(batches)
            check_batch(batch, run.model, f"batch of step {progress.step}")
        with clock.part("put"):
            arrays = put_batch(batch, run.mesh, self.batch_size)
        if self.memory.crowded:
            self._flush()
            with clock.part("step"):
                self.memory.settle()
        began = time.perf_counter()
        with clock.part("step"):
            self.state, metrics = run.train_step(self.state, arrays, run.key)
            if self.pending is not None:
                self._consume(*self.pending)
        self.pending = (progress.step, metrics)
        progress.step += 1
        if not clock.warm:  # the first step compiles: it is waited for and not counted
            self._flush()
            run.logger.say(f"first step, with compiling: {time.perf_counter() - began:.1f} s")
            self.memory.release()
            clock.start_counting()
            clock.note("first_step", step=progress.step)
        run.checkpoints.poll()
        if run.lease:
            run.lease.beat()
        clock.beat(progress.step)

    def _flush(self) -> None:
        """Waits for the running step, so that what follows is not counted as its time, nor its time as theirs."""
        if self.pending is not None:
            with self.run.clock.part("step"):
                self._consume(*self.pending)
            self.pending = None

    def _consume(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes in the numbers of a step that has finished, while the next one runs."""
        progress, config = self.run.progress, self.run.config.train
        values = {key: float(to_host(value)) for key, value in metrics.items()}
        progress.tokens += int(values["tokens"])
        self.run.clock.count(int(values["tokens"]), values["tokens"] * self.run.flops_per_token)
        if values["skipped"]:
            progress.bad_in_a_row += 1
            self._note_bad(step, values)
        else:
            progress.bad_in_a_row = 0
            progress.targets += values["targets"]
            progress.window_loss += values["train/loss"] * values["targets"]
            progress.window_targets += values["targets"]
        progress.window_steps += 1
        if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
            with self.run.clock.part("log"):
                self._log(step + 1, values)
        self.memory.check()

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        run, progress = self.run, self.run.progress
        lap = run.clock.lap()
        rate = lap.tokens / lap.total if lap and lap.steps else None
        loss = progress.window_loss / progress.window_targets if progress.window_targets else math.nan
        record = {
            "step": step,
            "train/loss": loss,
            "grad_norm": values["grad_norm"],
            "lr": values["lr"],
            "tokens": progress.tokens,
            "tokens_per_sec": rate,
            "mfu": lap.flops / lap.total / run.peak_flops if lap and lap.steps else None,
            **(lap.record() if lap else {}),
        }
        if "train/balance" in values:
            record["train/balance"] = values["train/balance"]
        if progress.window_steps and values["skipped"]:
            record["skipped"] = 1
        progress.window_loss = progress.window_targets = 0.0
        progress.window_steps = 0
        self._record(record)
        total = run.config.train.steps
        speed = ""
        if lap and lap.steps:
            left = (total - step) * lap.total / lap.steps
            speed = f"  {rate:,.0f} tok/s  eta {duration(left)}"
        run.logger.progress(f"step {step}/{total} ({step / total:.1%})  loss {loss:.4f}  lr {values['lr']:.2e}{speed}")

    def _record(self, record: dict[str, Any]) -> None:
        self.run.progress.history.append(record)
        self.run.logger.record(record)

    def _note_bad(self, step: int, values: Mapping[str, float]) -> None:
        run, config = self.run, self.run.config.train
        bad = run.progress.bad_in_a_row
        record = {"step": step, "loss": str(values["train/loss"]), "grad_norm": str(values["grad_norm"])}
        run.logger.append("bad_batches.jsonl", record)
        numbers = f"loss {values['train/loss']}, gradient norm {values['grad_norm']}"
        run.logger.say(f"warning: step {step + 1} skipped: {numbers} (bad step {bad} in a row)")
        if bad >= config.max_bad_steps:
            run.checkpoints.close()
            raise UserError(
                f"{bad} steps in a row up to step {step + 1} had a loss or gradient that is not finite; they are listed in "
                f"{run.workdir / 'bad_batches.jsonl'}. Lower optim.peak_lr or look at the data; the last good checkpoint stays"
            )

    def _eval_due(self) -> bool:
        run, config, step = self.run, self.run.config.train, self.run.progress.step
        if run.progress.last_eval == step or not run.data.has_split("validation"):
            return False
        if step == 0:
            return config.eval_at_start
        return step >= config.steps or bool(config.eval_every and step % config.eval_every == 0)

    def _evaluate(self, stopped: Callable[[], bool]) -> bool:
        """Evaluates, samples and records; False if it was asked to stop before it was through."""
        run, progress, config = self.run, self.run.progress, self.run.config.train
        size = whole_rows(config.eval_batch_size, run.mesh)
        batches = run.data.eval_batches("validation", size, local_rows(run.mesh, size))
        began = time.perf_counter()
        weights = averaged_weights(self.state.params, self.state.opt_state)
        result = evaluate(run.eval_step, weights, batches, run.mesh, size, run.model, config.eval_rows, stopped)
        start, forgotten = start_weights(self.state.opt_state), {}
        if result and run.meter and start is not None:
            forgotten = measure(run.meter, weights, start, stopped)
        if result is None or forgotten is None:
            return False
        loss, moved = result["loss"], progress.step > 0  # unmoved weights are no result of this run
        score = criterion(config, loss, forgotten)
        better = progress.best_loss is None or score < progress.best_loss - config.early_stop_min_delta
        improved = moved and math.isfinite(score) and better
        progress.last_eval = progress.step
        if improved:
            progress.best_step, progress.best_loss, progress.evals_since_best = progress.step, score, 0
        elif moved:
            progress.evals_since_best += 1
        self.save_due |= improved
        if moved and run.observe_eval is not None:
            self.state = run.observe_eval(self.state, score)
        result |= {"criterion": score} if config.stop_on != "loss" else {}
        record = {f"eval/{key}": value for key, value in result.items()}
        record |= {f"forget/{key}": value for key, value in forgotten.items()}
        self._record({"step": progress.step, **record})
        mark = " *" if improved else "" if moved else " before training"
        run.logger.say(
            f"step {progress.step}: eval loss {loss:.4f} +- {result.get('loss_stderr', math.nan):.4f}, "
            f"{self._also(result)}{', ' + describe(forgotten) if forgotten else ''} "
            f"({duration(time.perf_counter() - began)}){mark}"
        )
        self._sample(
            averaged_weights(self.state.params, self.state.opt_state)
        )  # the plateau has taken the state before
        run.logger.plot(progress.history)
        return True

    def _also(self, result: Mapping[str, float]) -> str:
        if self.run.config.model.classes:
            return f"accuracy {result.get('accuracy', math.nan):.4f}, macro-F1 {result.get('macro_f1', math.nan):.4f}"
        return f"{result.get('bits_per_byte', math.nan):.4f} bits/byte"

    def _sample(self, weights: Params) -> None:
        run = self.run
        for prompt in run.config.train.sample_prompts:
            text = run.sample(weights, prompt)
            run.logger.append("samples.jsonl", {"step": run.progress.step, "prompt": prompt, "text": text})

    def _out_of_patience(self) -> bool:
        patience = self.run.config.train.early_stop_patience
        return bool(patience) and self.run.progress.evals_since_best >= patience

    def _save_if_due(self, batches: Batches, force: bool) -> None:
        run, progress, config = self.run, self.run.progress, self.run.config.train
        every = config.save_every or config.eval_every
        self.save_due |= bool(every) and progress.step > 0 and progress.step % every == 0
        if not (self.save_due or force) or run.meta.get("saved_step") == progress.step or progress.step == 0:
            self.save_due = False
            return
        self._flush()
        if progress.bad_in_a_row and not force:  # not inside a bad stretch: keep what is on disk
            return
        run.clock.note("save", step=progress.step)
        with run.clock.part("save"):
            state = batches.state()
            states = None if state is None else [base64.b64encode(s).decode() for s in gather_bytes(state)]
            run.meta["saved_step"] = progress.step
            snapshot = asdict(replace(progress))
            run.checkpoints.save(progress.step, self.state, {
                **run.meta, "progress": snapshot, "best_step": progress.best_step, "data_state": states,
            })  # fmt: skip
        run.clock.note("saved", step=progress.step)
        self.save_due = False
