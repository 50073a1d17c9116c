"""The sides of finetune.py: our run's step, and what users of transformers and peft write, on the same folder and rows.

Both read the arrays of spec["rows"] (tokens, targets, weights [R, T]; lengths [R]), take its rows in order, a batch a step, from the first again when
they are through, and add the loss of each step to a file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

RANK, ALPHA = 16, 32
B1, B2, EPS = 0.9, 0.999, 1e-8


class Rows:
    """Batches [B, T] in order."""

    def __init__(self, spec: Mapping[str, Any]):
        with np.load(spec["rows"]) as held:
            self.held = {name: held[name] for name in held.files}
        self.size, self.at = spec["batch_size"], 0
        self.losses: list[float] = []
        self.curve = spec["curve"]

    def next(self) -> dict[str, np.ndarray]:
        rows = np.arange(self.at, self.at + self.size) % len(self.held["tokens"])
        self.at += self.size
        return {name: array[rows] for name, array in self.held.items()}

    def write(self) -> None:
        with open(self.curve, "w") as file:
            json.dump(self.losses, file)


class Ours:
    def __init__(self, spec: Mapping[str, Any]):
        import jax

        from configs import base
        from data_pipeline.schema import from_mapping
        from lm.config import Config, adapters_only, last_layers
        from lm.hf.source import find_foreign
        from lm.memory import keep_memory, release_memory
        from lm.parts import make_parts
        from lm.start import load_params, start_state

        keep_memory()
        self.release, self.rows = release_memory, Rows(spec)
        c: Any = base.get_config()
        c.data.path, c.data.seq_len, c.data.batch_size = "-", self.rows.held["tokens"].shape[1], spec["batch_size"]
        c.init.source = f"hf:{spec['folder']}"
        c.optim.schedule, c.optim.peak_lr, c.optim.weight_decay = "constant", spec["rate"], 0.0
        c.optim.b1, c.optim.b2, c.optim.eps = B1, B2, EPS
        model = find_foreign(c.init.source).model
        if spec["how"] == "LoRA":
            c.lora.rank, c.lora.alpha, c.optim.train = RANK, float(ALPHA), adapters_only()
        else:
            c.optim.train = last_layers(spec["top"], model.layers)
        config = from_mapping(Config, c)
        # Scanned, as configs/finetune_hf.py has it.
        self.config = replace(config, model=replace(model, scan=True, max_len=max(model.max_len, c.data.seq_len)))
        self.parts = make_parts(self.config, model.vocab_size, spec["rate"])
        self.state = start_state(self.parts, load_params(self.parts, "", lambda text: None))
        self.key = jax.random.key(0)

    def run(self, steps: int) -> None:
        from lm.sharding import put_batch

        for _ in range(steps):
            rows = self.rows.next()
            places = np.arange(rows["tokens"].shape[1])[None]
            inside = (places < rows.pop("lengths")[:, None]).astype(np.int32)
            batch = {**rows, "segments": inside, "positions": places * inside}
            batch = put_batch(batch, self.parts.mesh, self.config.data.batch_size)
            self.state, metrics = self.parts.train_step(self.state, batch, self.key)
            self.rows.losses.append(float(metrics["train/loss"]))  # waits, else a second step's memory is taken
        if len(self.rows.losses) == steps:
            self.release()
        self.rows.write()

    def facts(self) -> dict[str, Any]:
        treatment = self.parts.treatment
        return {"trained": sum(treatment.trained.values()), "attention": self.parts.attention}


class Theirs:
    """transformers' model with requires_grad=False below, or peft's LoRA; AdamW, clipped at 1.0."""

    def __init__(self, spec: Mapping[str, Any]):
        import torch
        import transformers

        torch.manual_seed(0)
        self.torch, self.rows = torch, Rows(spec)
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            spec["folder"], dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
        )
        self.model.config.use_cache = False
        if spec["how"] == "LoRA":
            import peft

            lora = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
            self.model = peft.get_peft_model(self.model, lora)
        else:
            layers = self.model.config.num_hidden_layers
            kept = (*(f".layers.{layer}." for layer in range(layers - spec["top"], layers)), "model.norm.")
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(any(part in name for part in kept))
        self.model.train()
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=spec["rate"], betas=(B1, B2), eps=EPS, weight_decay=0.0, fused=True
        )

    def run(self, steps: int) -> None:
        torch = self.torch
        for _ in range(steps):
            rows = {name: torch.from_numpy(array) for name, array in self.rows.next().items()}
            logits = self.model(input_ids=rows["tokens"].long()).logits  # padding is on the right: causal is enough
            targets = torch.where(rows["weights"] > 0, rows["targets"].long(), -100)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.rows.losses.append(float(loss))
        self.rows.write()

    def facts(self) -> dict[str, Any]:
        return {"threads": self.torch.get_num_threads(), "trained": len(self.trained)}
