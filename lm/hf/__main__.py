"""The command `python -m lm.hf import | export | verify`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from data_pipeline.schema import run_main, split_flags
from lm.config import ConfigError, UserError
from lm.hf.source import is_foreign

USAGE = """
usage: python -m lm.hf import FOLDER OUT          # also gguf:FILE, hf:ORG/NAME@REVISION
       python -m lm.hf export WORKDIR OUT [--step=best|last|N] [--dtype=float32|bfloat16|float16] [--family=NAME]
       python -m lm.hf verify FOLDER [--workdir=WORKDIR] [--step=best|last|N]

import makes a workdir of a Hugging Face folder, as any run's: generate from it, evaluate it, start from it. export writes a
run as a Hugging Face folder and verifies it. verify compares our logits, greedy continuations and rendered prompts with
those of transformers (pip install transformers torch); its last line is JSON, its exit code 0 only if all are equal.
A classifier with model.pooling="last" becomes a ...ForSequenceClassification, and such a folder a classifier.

example: python -m lm.hf import models/SmolLM2-135M-Instruct runs/smol
"""


def main(argv: list[str]) -> None:
    words = [word for word in argv if not word.startswith("-")]
    flags = {"step": "best", "dtype": "", "family": "", "workdir": ""}
    values, extra = split_flags([word for word in argv if word.startswith("-")], flags, USAGE)
    wanted = {"import": 3, "export": 3, "verify": 2}
    if extra or not words or len(words) != wanted.get(words[0]):
        raise ConfigError(
            "say what to do: python -m lm.hf import FOLDER OUT | export WORKDIR OUT | verify FOLDER; see --help"
        )
    from lm.hf import folder as folders
    from lm.hf.verify import has_transformers, verify

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    if words[0] == "import":
        source = words[1] if is_foreign(words[1]) else f"{'gguf' if words[1].endswith('.gguf') else 'hf'}:{words[1]}"
        folders.import_folder(source, Path(words[2]), say)
        from lm.hf.source import find_foreign

        use = "classify --text=" if find_foreign(source).labels else "generate --prompt="
        command, flag = use.split()
        print(f"done. Next:\n  python -m lm.{command} --workdir={words[2]} {flag}'Once upon a time'")
        return
    if words[0] == "export":
        out = Path(words[2])
        loaded = folders.export_run(Path(words[1]), out, values["step"], values["dtype"], values["family"], say)
        if not has_transformers():
            print(
                f"written, not verified, since transformers is not installed:\n  python -m lm.hf verify {out} --workdir={words[1]}"
            )
            return
        result = verify(out, loaded, say)
        if not result["ok"]:
            raise UserError(f"{out} does not compute what the run does: {json.dumps(result)}")
        print(f"done: {json.dumps(result)}")
        return
    run = None
    if values["workdir"]:
        from lm.build import load_run

        run = load_run(values["workdir"], values["step"], say, any_task=True)
    result = verify(Path(words[1]), run, say)
    print(json.dumps(result))
    raise SystemExit(0 if result["ok"] else 1)


if __name__ == "__main__":
    run_main(main)
