"""Which keys of a task, and of remembering, do not go together?"""

from __future__ import annotations

from pathlib import Path

from lm.config import Config, TrainConfig


def check_task(config: Config) -> list[str]:
    model, train = config.model, config.train
    if config.data.task == "classify":
        rules = (
            (not train.sample_prompts, "train.sample_prompts: a classifier writes no text"),
            (not train.remember, "train.remember: a classifier has no words left to lose; it watches a language model"),
            (model.classes != 1, "model.classes: one class leaves nothing to tell apart"),
            (not train.class_counts or min(train.class_counts) > 0, "train.class_counts: every class needs a document"),
        )
    else:
        read = "only data.task='classify' reads it"
        rules = (
            (not model.classes, f"model.classes: {read}"),
            (model.pooling == "last", f"model.pooling: {read}"),
            (not train.logit_adjustment, f"train.logit_adjustment: {read}"),
            (not train.refusal, f"train.refusal: {read}"),
            (not train.class_counts, f"train.class_counts: {read}"),
        )
    return [f"config.{message}" for ok, message in rules if not ok]


def check_forgetting(config: Config) -> list[str]:
    optim, train, source = config.optim, config.train, config.init.source
    remembers, plain = bool(train.remember), TrainConfig()
    reads_weight = train.stop_on != "loss" or train.forget_weight == plain.forget_weight
    pull = optim.pull_to_start * (optim.peak_lr if isinstance(optim.peak_lr, float) else 0.0)
    place = Path(train.remember).expanduser()
    rules = (
        (not remembers or bool(source), f"train.remember={train.remember!r}: random weights have nothing to forget; set init.source, or remember=''"),
        (train.remember != "pretraining" or not source.startswith(("hf:", "gguf:")), f"train.remember='pretraining': {source} does not bring the text it was trained on; name a file of such text"),
        (train.remember in ("", "pretraining") or place.exists(), f"train.remember: {train.remember} does not exist; name a file, a folder that data_pipeline.prepare wrote, or 'pretraining'"),
        (remembers or train.stop_on == "loss", f"train.stop_on={train.stop_on!r} needs train.remember, the text to measure forgetting on"),
        (reads_weight, "train.forget_weight: only train.stop_on='loss+change' and 'loss+kl' read it"),
        (not optim.pull_to_start or bool(source), "optim.pull_to_start: only a run with init.source has a start to be pulled to"),
        (pull <= 1, f"optim.pull_to_start={optim.pull_to_start:g} times peak_lr={optim.peak_lr} is more than 1: each step would overshoot the start; lower it"),
    )  # fmt: skip
    return [f"config.{message}" for ok, message in rules if not ok]
