"""The whole road on this machine: `make demo`. Prepares text, pretrains, fine-tunes the top layers, compares before and after."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RUNS = Path("runs")
PRETRAINED, TUNED = str(RUNS / "pretrain"), str(RUNS / "finetune")


def command(*words: str) -> str:
    """Shows and runs one command; returns what it printed. A failing one ends the demo with its exit code."""
    print(f"\n$ {shlex.join(('python', *words))}", flush=True)
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        print("  " + line, end="", flush=True)
        lines.append(line)
    if process.wait():
        raise SystemExit(process.returncode)
    return "".join(lines)


def evaluate(workdir: str) -> dict[str, Any]:
    """Evaluates a run on the test split of the fine-tuning data."""
    out = command("-m", "lm.evaluate", f"--workdir={workdir}", "--config=configs/finetune.py", "--split=test")
    return json.loads(out.splitlines()[-1])


def completions(count: int) -> None:
    """Prints what both models write for a few held-out functions, next to the docstring that a person wrote."""
    from data_pipeline.batch import open_data
    from lm.build import load_run
    from lm.generate import generate
    from lm.sampling import Sampling

    def quiet(text: str) -> None:
        del text

    before, after = (load_run(workdir, "best", quiet) for workdir in (PRETRAINED, TUNED))
    data = open_data(after.config.data, log=quiet)
    shown = 0
    for batch in data.eval_batches("test", 16, (0, 16)):
        for row in range(16):
            inside = batch["segments"][row] == 1
            learned = inside & (batch["weights"][row] > 0)
            start = int(np.argmax(learned)) + 1
            if not learned.any() or start > 120 or learned.sum() > 40:
                continue
            prompt, reference = batch["tokens"][row][:start].tolist(), batch["targets"][row][learned].tolist()
            print("\n" + "-" * 78 + "\n" + data.tokenizer.decode(prompt))
            print(f"  a person:    {data.tokenizer.decode(reference)!r}")
            for name, loaded in (("pretrained", before), ("fine-tuned", after)):
                ids = generate(
                    loaded.model, loaded.params, [prompt], max_new_tokens=40, stop_ids=data.tokenizer.stop_ids,
                    sampling=Sampling(temperature=0.0),
                )  # fmt: skip
                print(f"  {name}:  {data.tokenizer.decode(ids[0])!r}", flush=True)
            shown += 1
            if shown == count:
                return


def main() -> None:
    began = time.monotonic()
    command("launch.py", "--config=configs/pretrain.py", f"--workdir={PRETRAINED}")
    command("launch.py", "--config=configs/finetune.py", f"--workdir={TUNED}")
    before, after = evaluate(PRETRAINED), evaluate(TUNED)
    print("\nA few docstrings for functions of modules that neither training saw:")
    completions(3)
    receipt = json.loads((ROOT / TUNED / "receipt.json").read_text())
    share = receipt["flops_per_step"] / receipt["flops_per_step_if_all_trained"]
    unmoved = receipt["frozen_sha256_before"] == receipt["frozen_sha256_after"]
    print("\n" + "=" * 78)
    print("on unseen docstrings   loss (nats/token)   bits/byte   token accuracy")
    for name, result in (("pretrained", before), ("fine-tuned", after)):
        numbers = f"{result['loss']:.3f} +- {result['loss_stderr']:.3f}    {result['bits_per_byte']:9.3f}   {result['accuracy']:14.1%}"
        print(f"{name:22} {numbers}")
    print(
        f"fine-tuning trained {receipt['trained_params']:,} of {receipt['trained_params'] + receipt['frozen_params']:,} numbers"
    )
    print(f"at {share:.2f} of a full step's FLOPs; frozen weights unchanged, by hash: {unmoved}")
    print(
        f"\nall of it took {(time.monotonic() - began) / 60:.1f} minutes. Read {TUNED}/README.md, look at {TUNED}/loss.png. Next:"
    )
    for line in (
        f'python -m lm.generate --workdir={PRETRAINED} --prompt="def main(" --max_new_tokens=200 --temperature=0.8 --top_k=50',
        "python -m lm.show --config=configs/finetune.py",
        "python -m data_pipeline.show --config=configs/finetune.py",
        "python launch.py --config=configs/finetune.py --workdir=runs/ft2 --config.optim.peak_lr=1e-3",
    ):
        print(f"  {line}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\ninterrupted; make demo goes on where it stopped")
        raise SystemExit(75) from None
