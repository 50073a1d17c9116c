"""Does a classifier of each family tell what transformers' ...ForSequenceClassification tells, and come out as the same bytes?"""

import json

import pytest

from lm.hf.__main__ import main
from lm.hf.tensors import open_folder
from tests.data_pipeline.small_tokenizers import save_folder

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

NAMES = ("bill", "card", "oos")
SIZES = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.1,
}  # fmt: skip
HEADS = {"head_dim": 24, "num_key_value_heads": 2}
CASES = {
    "Llama": {"num_key_value_heads": 2}, "Mistral": {"num_key_value_heads": 2, "sliding_window": 9}, "Qwen2": {"num_key_value_heads": 2},
    "Qwen3": HEADS, "Gemma2": {**HEADS, "sliding_window": 9}, "Gemma3Text": {**HEADS, "sliding_window": 9},
    "Phi3": {"num_key_value_heads": 2}, "GPTNeoX": {}, "GPT2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "Mixtral": {"num_local_experts": 4, "num_key_value_heads": 2}, "Olmo2": {},
    "Qwen3Moe": {**HEADS, "moe_intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_a_classifier_of_each_family(kind, tmp_path, capsys):
    sizes = {"vocab_size": 512, "initializer_range": 0.1, "pad_token_id": 0} if kind == "GPT2" else SIZES
    config = getattr(transformers, f"{kind}Config")(**sizes, **CASES[kind], id2label=dict(enumerate(NAMES)))
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "model")
    save_folder(tmp_path / "model", "byte_bpe")
    main(["import", f"{tmp_path}/model", f"{tmp_path}/run"])
    assert json.loads((tmp_path / "run/config.json").read_text())["data"]["labels"] == list(NAMES)
    main(["export", f"{tmp_path}/run", f"{tmp_path}/out"])  # verifies it with transformers
    found = json.loads(capsys.readouterr().out.splitlines()[-1].removeprefix("done: "))
    assert found["ok"]
    assert found["labels_equal"]
    assert found["max_abs_diff"] < 1e-4
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == [
        f"{kind}ForSequenceClassification"
    ]
    with open_folder(tmp_path / "model") as before, open_folder(tmp_path / "out") as after:
        assert set(before.shapes) == set(after.shapes)
        assert all(before.read(name).tobytes() == after.read(name).tobytes() for name in before.shapes)
