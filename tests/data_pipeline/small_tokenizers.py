"""Small tokenizers of every make, as Hugging Face folders: trained in a moment, with the parts that real ones have."""

import functools
import json

TEXTS = [
    "def read(self, path):\n    return open(path).read()\n\n\n\tif x:  # note\n" * 3,
    "The quick brown fox jumps over the lazy dog; it doesn't, they'll, we're 12345 2026-01-01. " * 20,
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。" * 5 + "床前明月光，疑是地上霜。举头望明月，低头思故乡。" * 5,
    "user assistant system tool Hello! 你好，世界 😀👩‍👩‍👧 <think>\n</think>\n" * 3,
]
HARD = [
    "", " ", "  ", "\n", "\n\n \n", "\t\t", " leading", "trailing ", "a  b   c", "a\u00a0b\u3000c\u200bd", "\r\n", "e\u0301é",
    "你好，世界！这是一个测试。", "中文 English 混排 123", "👩‍👩‍👧 🏳️‍🌈 😀", "१२३ ﷺ 𠮷野家 ｆｕｌｌ", "don't we'll I'VE", "3.14159 1,000,000",
    "for (int i = 0; i < n; ++i) {\n\tprintf(\"%d\\n\", i);\n}", "\u2581 ▁▁ ▁a", "<0x41> <0xE4>", "ÄÖÜ ß ẞ ŉ ﬁ", "\x00\x01\x7f", "a" * 200,
]  # fmt: skip


def _save(folder, engine, config, **files):
    folder.mkdir(parents=True, exist_ok=True)
    engine.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False))
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@functools.cache
def byte_bpe():
    """As GPT-2's, SmolLM's and Qwen's: bytes as characters, special tokens added, and one added token that is not special."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    engine.train_from_iterator(TEXTS, trainer)
    engine.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<|im_start|>", "<|im_end|>")])
    engine.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    return engine


@functools.cache
def llama_like():
    """As Llama 2's: a space before each text and each piece after a special token, bytes for what has no piece."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

    engine = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    engine.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        limit_alphabet=60,
        special_tokens=["<unk>", "<s>", "</s>", *byte_pieces],
        show_progress=False,
    )
    engine.train_from_iterator([line for text in TEXTS for line in text.split(" ")], trainer)
    parts = json.loads(engine.to_str())
    parts["added_tokens"] = [token for token in parts["added_tokens"] if token["id"] < 3]
    engine = Tokenizer.from_str(json.dumps(parts))
    engine.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    engine.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return engine


def _metaspace(model, trainer, scheme):
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    engine = Tokenizer(model)
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    engine.decoder = decoders.Metaspace(prepend_scheme=scheme)
    engine.train_from_iterator(TEXTS, trainer)
    return engine


@functools.cache
def unigram():
    """As T5's and XLM-R's: a unigram model in which special tokens are words like any other."""
    from tokenizers import models, trainers

    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    return _metaspace(models.Unigram(), trainer, "always")


@functools.cache
def metaspace_first():
    """As Mistral's later ones: a space before the text only, and an end-of-turn token that swallows white space (Phi-3)."""
    from tokenizers import AddedToken, models, trainers

    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    engine = _metaspace(models.BPE(unk_token="<unk>"), trainer, "first")
    engine.add_special_tokens(
        [AddedToken(t, rstrip=True, special=True, normalized=False) for t in ("<|user|>", "<|assistant|>", "<|end|>")]
    )
    return engine


@functools.cache
def word_piece():
    """As BERT's: lower case, words and ##pieces."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    engine = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    engine.normalizer = normalizers.BertNormalizer(lowercase=True)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    engine.train_from_iterator(TEXTS, trainer)
    return engine


CONFIGS = {
    "byte_bpe": {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "llama_like": {"bos_token": {"__type": "AddedToken", "content": "<s>"}, "eos_token": {"__type": "AddedToken", "content": "</s>"}, "unk_token": "<unk>"},
    "unigram": {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
    "metaspace_first": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "word_piece": {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
}  # fmt: skip
MAKERS = {f.__name__: f for f in (byte_bpe, llama_like, unigram, metaspace_first, word_piece)}


def save_folder(folder, name, **files):
    """Writes a folder as `save_pretrained` does; `files` as chat_template__jinja="..." go beside."""
    return _save(folder, MAKERS[name](), {"tokenizer_class": "PreTrainedTokenizerFast", **CONFIGS[name]}, **files)
