"""How do training lines get paraphrases from a run of ours, by one model or by translating there and back?

    python examples/paraphrase.py --config=F --workdir=runs/chat --prompt="Say this in other words: {text}" --out=p.tsv
    python examples/paraphrase.py --config=F --workdir=runs/en-zh --prompt="{text}\\n" --back=runs/zh-en --back_prompt="{text}\\n" --out=p.tsv
    python launch.py --config=F --config.data.augment.paraphrases=p.tsv --config.data.augment.line_paraphrase=0.3 ...

Any run that `lm.build.load_run` loads will do: one of ours, or a Hugging Face model that a run was started from. How good the paraphrases are depends on the
model alone; what is kept is only checked for being another line of a likely length, so read the file before training on it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_pipeline.schema import ConfigError, UserError, run_main, split_flags

ROWS = 8  # lines that a model reads at once
LIKELY = (0.4, 2.5)  # length of a paraphrase in lengths of its line
USAGE = """
usage: python examples/paraphrase.py --config=FILE --workdir=DIR --prompt="... {text}" --out=FILE
         [--back=DIR --back_prompt="... {text}"] [--lines=1000] [--samples=1] [--min_chars=8] [--max_chars=300]
         [--max_new_tokens=200] [--temperature=0.8] [--seed=0] [--config.data.KEY=VALUE ...]

Writes LINE<TAB>PARAPHRASE<TAB>... for lines of the train split of the config's data (of prompts too, of answers not), for
config.data.augment.paraphrases. A run that learned conversations is asked in one, others continue the prompt up to the line's end.
"""


def training_lines(data: Any, low: int, high: int) -> Iterator[str]:
    """Yields the different lines of the train split, without those of answers and conversations."""
    seen = set()
    for _, reader in data.readers["train"]:
        shard = reader.shard
        for first, end, start in zip(shard.offsets, shard.offsets[1:], shard.loss_start.tolist()):
            if start < -1:
                continue
            text = data.tokenizer.decode(shard.ids[first : first + start if start >= 0 else end].tolist())
            for line in map(str.strip, text.split("\n")):
                if low <= len(line) <= high and "\t" not in line and not line.startswith("#") and line not in seen:
                    seen.add(line)
                    yield line


class Writer:
    """A run that is asked for another form of texts."""

    def __init__(self, workdir: str, prompt: str, most: int, temperature: float):
        from data_pipeline.chat import open_trained_chat
        from data_pipeline.tokenizer import load_tokenizer
        from lm.build import load_run
        from lm.sampling import Sampling

        if "{text}" not in prompt:
            raise ConfigError(f"a prompt needs {{text}} where the line stands, got {prompt!r}")
        self.loaded = load_run(workdir, "best", log=lambda text: print(text, file=sys.stderr))
        self.tokenizer = load_tokenizer(f"{workdir}/tokenizer")
        self.chat = open_trained_chat(self.tokenizer, workdir) if self.tokenizer.template else None
        self.prompt, self.most, self.sampling = prompt, most, Sampling(temperature=temperature)

    def write(self, texts: Sequence[str], seed: int) -> list[str]:
        """Returns the first line of what the model answers to each text."""
        from lm.generate import generate

        add_bos = self.loaded.config.data.add_bos
        prompts = [self.prompt.replace("{text}", text) for text in texts]
        if self.chat:
            stop = self.chat.stop_ids
            ids = [self.chat.prompt([{"role": "user", "content": prompt}], add_bos=add_bos) for prompt in prompts]
        else:
            stop = self.tokenizer.stop_ids
            ids = [[self.tokenizer.special.bos] * add_bos + self.tokenizer.encode(prompt) for prompt in prompts]
        out = generate(
            self.loaded.model,
            self.loaded.params,
            ids,
            max_new_tokens=self.most,
            stop_ids=stop,
            sampling=self.sampling,
            seed=seed,
        )
        return [self.tokenizer.decode(answer).strip().partition("\n")[0].strip() for answer in out]


def paraphrases(
    lines: Sequence[str], writers: Sequence[Writer], samples: int, seed: int
) -> Iterator[tuple[str, list[str]]]:
    """Yields each line with the different likely paraphrases that passing it through all writers gave."""
    for at in range(0, len(lines), ROWS):
        some = lines[at : at + ROWS]
        found: list[list[str]] = [[] for _ in some]
        for sample in range(samples):
            texts = list(some)
            for number, writer in enumerate(writers):
                here = [i for i, text in enumerate(texts) if text]
                answers = (
                    writer.write([texts[i] for i in here], hash((seed, at, sample, number)) % 2**31) if here else []
                )
                for i, answer in zip(here, answers):
                    texts[i] = answer
            for kept, line, text in zip(found, some, texts):
                likely = LIKELY[0] * len(line) <= len(text) <= LIKELY[1] * len(line)
                if text and likely and text != line and "\t" not in text and "\ufffd" not in text and text not in kept:
                    kept.append(text)
        yield from zip(some, found)


def main(argv: list[str]) -> None:
    from data_pipeline.batch import open_data
    from lm.check import read_config

    texts = dict.fromkeys(("config", "workdir", "prompt", "back", "back_prompt", "out"), "")
    numbers = {
        "lines": "1000",
        "samples": "1",
        "min_chars": "8",
        "max_chars": "300",
        "max_new_tokens": "200",
        "seed": "0",
    }
    flags, overrides = split_flags(argv, {**texts, **numbers, "temperature": "0.8"}, USAGE)
    problems = [f"--{key} is needed; see --help" for key in ("config", "workdir", "prompt", "out") if not flags[key]]
    problems += [
        f"--{key}: expected a whole number, got {flags[key]!r}" for key in numbers if not flags[key].isdecimal()
    ]
    if bool(flags["back"]) != bool(flags["back_prompt"]):
        problems.append("--back and --back_prompt go together")
    try:
        temperature = float(flags["temperature"])
    except ValueError:
        problems.append(f"--temperature: expected a number, got {flags['temperature']!r}")
        temperature = 0.0
    if problems:
        raise ConfigError(problems)
    lines_wanted, samples, low, high, most, seed = (int(flags[key]) for key in numbers)
    data = open_data(read_config(flags["config"], overrides).data, log=lambda text: print(text, file=sys.stderr))
    every = list(training_lines(data, low, high))
    if not every:
        raise UserError(f"no line of the train split has {low} to {high} characters; set --min_chars and --max_chars")
    chosen = np.unique(np.linspace(0, len(every) - 1, min(lines_wanted, len(every))).astype(int)).tolist()
    lines = [every[i] for i in chosen]
    writers = [Writer(flags["workdir"], flags["prompt"], most, temperature)]
    if flags["back"]:
        writers.append(Writer(flags["back"], flags["back_prompt"], most, temperature))
    kept = total = 0
    try:
        with open(flags["out"], "w", encoding="utf-8") as file:
            file.write(f"# paraphrases by {flags['workdir']} {flags['back']}\n")
            for line, others in paraphrases(lines, writers, samples, seed):
                total += 1
                if others:
                    kept += 1
                    file.write("\t".join([line, *others]) + "\n")
                print(f"\r{total:,} of {len(lines):,} lines, {kept:,} with paraphrases", end="", file=sys.stderr)
    except OSError as error:
        raise UserError(f"--out={flags['out']}: {error.strerror or error}") from None
    print(f"\n{flags['out']}: {kept:,} of {len(lines):,} lines have paraphrases", file=sys.stderr)


if __name__ == "__main__":
    run_main(main)
