"""Does a Hugging Face folder come in and go out byte for byte, and is every bad one refused with a way out?"""

import json
import os
import struct

import ml_dtypes
import numpy as np
import pytest

from lm.config import UserError
from lm.hf.safetensors_header import DTYPES
from lm.hf.tensors import INDEX, SINGLE, open_folder, write_folder

BF16 = np.dtype(ml_dtypes.bfloat16)


def draw(dtype, shape, seed=0):
    return np.random.default_rng(seed).integers(-9, 9, shape).astype(dtype)


def write(folder, arrays, **keys):
    return write_folder(folder, {n: (a.dtype, a.shape) for n, a in arrays.items()}, arrays.__getitem__, **keys)


def read(folder):
    with open_folder(folder) as tensors:
        return {name: tensors.read(name) for name in tensors.shapes}


def same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert (first[name].dtype, first[name].shape) == (second[name].dtype, second[name].shape)
        assert first[name].tobytes() == second[name].tobytes(), name


def pack(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.fixture
def put(tmp_path):
    """(**content by name) -> a folder with these files."""

    def make(files):
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        return tmp_path

    return make


def refusal(folder):
    with pytest.raises(UserError) as caught:
        open_folder(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000
    return str(caught.value)


def test_every_dtype_and_shape_comes_back(tmp_path):
    arrays = {f"a.{code}": draw(dtype, (3, 5)) for code, dtype in DTYPES.items()}
    arrays |= {"scalar": np.float32(3.5).reshape(()), "empty": np.zeros((0, 4), np.float16), "one": draw(BF16, (1,))}
    assert write(tmp_path / "new" / "out", arrays) == [SINGLE]
    same(arrays, read(tmp_path / "new" / "out"))
    assert not list((tmp_path / "new" / "out").glob("*.part"))


def test_tensors_are_aligned_and_marked_for_torch(tmp_path):
    write(
        tmp_path, {"a": draw(np.uint8, (3,)), "b": draw(BF16, (3,)), "c": draw(np.float64, (3,)), "d": draw("f4", (1,))}
    )
    content = (tmp_path / SINGLE).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert length % 8 == 0
    for name, made in header.items():
        assert (8 + length + made["data_offsets"][0]) % DTYPES[made["dtype"]].itemsize == 0, name


def test_a_strided_array_is_written_as_it_reads(tmp_path):
    array = draw("f4", (6, 4)).T[::2]
    write(tmp_path, {"a": array})
    assert (read(tmp_path)["a"] == array).all()


def test_shards_hold_what_their_index_says(tmp_path):
    arrays = {f"layer.{i}": draw("f4", (10, i + 1), i) for i in range(7)} | {"large": draw("f4", (500,))}
    names = write(tmp_path, arrays, max_shard_bytes=400)
    shards = names[:-1]
    assert names == [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))] + [INDEX]
    assert len(shards) > 3
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in arrays.values())
    assert index["weight_map"].keys() == arrays.keys()
    assert all((tmp_path / n).stat().st_size < 800 for n in shards if n != index["weight_map"]["large"])
    same(arrays, read(tmp_path))


def test_each_tensor_is_fetched_once_in_order_into_memory_used_again(tmp_path):
    asked, memory = [], np.zeros(4, np.float32)

    def fetch(name):
        asked.append(name)
        memory[:] = int(name)
        return memory

    shapes = {str(i): (np.float32, (4,)) for i in (3, 1, 2, 0)}
    write_folder(tmp_path, shapes, fetch, max_shard_bytes=32)
    assert asked == ["3", "1", "2", "0"]
    assert {n: a[0] for n, a in read(tmp_path).items()} == {"0": 0, "1": 1, "2": 2, "3": 3}


def test_a_failed_write_leaves_no_model(tmp_path):
    def fail(name):
        if name == "b":
            raise UserError("no b")
        return np.zeros(2, np.float32)

    with pytest.raises(UserError, match="no b"):
        write_folder(tmp_path, {"a": ("f4", (2,)), "b": ("f4", (2,))}, fail, max_shard_bytes=8)
    assert list(tmp_path.iterdir()) == []


def test_another_array_than_promised_is_no_model(tmp_path):
    with pytest.raises(ValueError, match="was promised"):
        write_folder(tmp_path, {"a": ("f4", (2,))}, lambda name: np.zeros(3, np.float32))
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_not_written_over(tmp_path):
    write(tmp_path, {"a": draw("f4", (2,))})
    before = (tmp_path / SINGLE).read_bytes()
    with pytest.raises(UserError, match="holds a model already"):
        write(tmp_path, {"a": draw("f4", (2,), 1), "b": draw("f4", (2,))}, max_shard_bytes=8)
    assert (tmp_path / SINGLE).read_bytes() == before


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path / "file" / "out", {"a": draw("f4", (2,))})


F8 = bytes(8)
HEADERS = {
    "header longer than the file": (struct.pack("<Q", 10**6) + b"{}", "1,000,000 bytes; the file has 10"),
    "header longer than any": (struct.pack("<Q", 2**63) + b"{}", "cut short or no safetensors"),
    "no length": (b"abc", "3 bytes"),
    "not JSON": (pack(b"{a"), "not valid JSON"),
    "not UTF-8": (pack(b'{"\xff": 1}'), "not UTF-8"),
    "nested deep": (pack(b"[" * 100_000), "nested too deep"),
    "a list": (pack(b"[]"), "expected an object"),
    "a long number": (pack(b'{"a": ' + b"9" * 5000 + b"}"), "header"),
    "same key twice": (pack(b'{"a": 1, "a": 2}'), "'a' comes twice"),
    "same part twice": (pack(b'{"a": {"dtype": "F32", "dtype": "F32"}}'), "'dtype' comes twice"),
    "metadata no object": (pack({"__metadata__": 3}), "__metadata__"),
    "no entry": (pack({"a": 3}), "tensor 'a'"),
    "key left out": (pack({"a": {"dtype": "F32", "shape": [2]}}, F8), "tensor 'a'"),
    "key too many": (pack({"a": {**entry(), "x": 1}}, F8), "tensor 'a'"),
    "float8": (pack({"a": entry("F8_E4M3", (8,))}, F8), "'F8_E4M3' is not read"),
    "dtype no text": (pack({"a": entry(["F32"])}, F8), "is not read"),
    "size too small": (pack({"a": entry(shape=(1,))}, F8), r"F32 of shape \[1\] takes 4 bytes"),
    "size too large": (pack({"a": entry(shape=(2**40,))}, F8), "takes 4,398,046,511,104 bytes"),
    "beyond any": (pack({"a": entry(shape=(2**40, 2**40))}, F8), "beyond any model"),
    "beyond any but empty": (pack({"a": entry(shape=(0, 2**40, 2**40), offsets=(0, 0))}), "beyond any model"),
    "negative dimension": (pack({"a": entry(shape=(-1, -2))}, F8), "whole numbers"),
    "true as a dimension": (pack({"a": entry(shape=(True, 2))}, F8), "whole numbers"),
    "float dimension": (pack({"a": entry(shape=(2.0,))}, F8), "whole numbers"),
    "three offsets": (pack({"a": entry(offsets=(0, 8, 8))}, F8), "whole numbers"),
    "negative offset": (pack({"a": entry(offsets=(-8, 0))}, F8), "whole numbers"),
    "backwards": (pack({"a": entry(offsets=(8, 0))}, F8), "span -8"),
    "beyond the file": (pack({"a": entry()}, bytes(4)), "describes 8 bytes of data, and the file has 4"),
    "bytes too many": (pack({"a": entry()}, bytes(9)), "describes 8 bytes of data, and the file has 9"),
    "a hole": (pack({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)), "'b': its data begin at byte 12"),
    "overlap": (pack({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "'b': its data begin at byte 4"),
    "same data twice": (pack({"a": entry(), "b": entry()}, F8), "'b': its data begin at byte 0"),
    "long name": (pack({"a" * 10**6: entry()}, F8), "1,000,000 characters"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), HEADERS.values(), ids=HEADERS.keys())
def test_a_header_against_the_format_is_refused(put, content, message):
    with pytest.raises(UserError, match=message):
        open_folder(put({SINGLE: content}))
    assert SINGLE in refusal(put({}))


def test_an_empty_tensor_may_lie_where_another_begins(put):
    content = pack(
        {"a": entry(), "none": entry(shape=(0,), offsets=(0, 0)), "end": entry(shape=(0,), offsets=(8, 8))}, F8
    )
    assert {n: a.size for n, a in read(put({SINGLE: content})).items()} == {"a": 2, "none": 0, "end": 0}


def shard(*names):
    return pack({n: entry(offsets=(8 * i, 8 * i + 8)) for i, n in enumerate(names)}, F8 * len(names))


def index(**weight_map):
    return json.dumps({"weight_map": weight_map}).encode()


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEXES = {
    "not JSON": ({INDEX: b"{"}, "not valid JSON"),
    "same tensor twice": ({INDEX: b'{"weight_map": {"a": "x", "a": "y"}}'}, "'a' comes twice"),
    "no map": ({INDEX: b'{"metadata": {}}'}, "weight_map"),
    "empty map": ({INDEX: index()}, "weight_map"),
    "up": ({INDEX: index(a="../x.safetensors")}, "'a' in '../x.safetensors', which is not the name"),
    "absolute": ({INDEX: index(a="/etc/x.safetensors")}, "not the name"),
    "below": ({INDEX: index(a="sub/x.safetensors")}, "not the name"),
    "backslash": ({INDEX: index(a="..\\x.safetensors")}, "not the name"),
    "zero byte": ({INDEX: index(a="x\0.safetensors")}, "not the name"),
    "hidden": ({INDEX: index(a="..safetensors")}, "not the name"),
    "other kind": ({INDEX: index(a="passwd")}, "not the name"),
    "no text": ({INDEX: json.dumps({"weight_map": {"a": 3}}).encode()}, "not the name"),
    "shards missing": ({INDEX: index(a=ONE, b=TWO)}, f"2 of 2 files of {INDEX} are missing: {ONE}, {TWO}"),
    "one missing": ({INDEX: index(a=ONE, b=TWO), ONE: shard("a")}, f"1 of 2 files of {INDEX} are missing: {TWO}"),
    "not in its shard": ({INDEX: index(a=ONE, b=TWO), ONE: shard("a"), TWO: shard("c")}, "that it does not hold: 'b'"),
    "in two shards": ({INDEX: index(a=ONE, b=TWO), ONE: shard("a"), TWO: shard("b", "a")}, f"{TWO} holds tensors .* 'a'"),
    "not in the index": ({INDEX: index(a=ONE), ONE: shard("a", "c")}, "does not put there: 'c'"),
    "no index": ({ONE: shard("a")}, f"download {INDEX}"),
    "pickles": ({"pytorch_model.bin": b"x"}, "'pytorch_model.bin'. Reading such a file can run any code.*save_pretrained"),
    "sharded pickles": ({"pytorch_model-1.bin": b"", "a.pth": b"", "pytorch_model.bin.index.json": b""}, "can run any code"),
    "an adapter": ({"adapter_model.safetensors": shard("a")}, "an adapter"),
    "gguf": ({"m.gguf": b"GGUF"}, "gguf:.*m.gguf"),
    "nothing of a model": ({"config.json": b"{}"}, "it holds 'config.json'"),
    "empty": ({}, "is empty"),
}  # fmt: skip


@pytest.mark.parametrize(("files", "message"), INDEXES.values(), ids=INDEXES.keys())
def test_a_folder_that_is_no_whole_model_is_refused(put, files, message):
    folder = put(files)
    with pytest.raises(UserError, match=message):
        open_folder(folder)
    assert str(folder) in refusal(folder)


def test_no_folder_is_refused(tmp_path):
    assert "No such file" in refusal(tmp_path / "absent")
    (tmp_path / SINGLE).write_bytes(shard("a"))
    assert "Not a directory" in refusal(tmp_path / SINGLE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(put):
    folder = put({SINGLE: shard("a")})
    (folder / SINGLE).chmod(0)
    assert "Permission denied" in refusal(folder)


def test_a_file_cut_short_while_it_is_open_is_an_error_and_no_crash(tmp_path):
    write(tmp_path, {"a": draw("f4", (1 << 16,)), "b": draw("f4", (1 << 16,))})
    with open_folder(tmp_path) as tensors:
        os.truncate(tmp_path / SINGLE, 300_000)
        with pytest.raises(UserError, match=r"model.safetensors: tensor 'b': the file ends at byte 300000"):
            tensors.read("b")


def test_a_hub_cache_of_links_is_read(tmp_path):
    write(tmp_path / "blobs", {"a": draw("f4", (2,)), "b": draw("f4", (2,))}, max_shard_bytes=8)
    snapshot = tmp_path / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for path in (tmp_path / "blobs").iterdir():
        (snapshot / path.name).symlink_to(os.path.join("..", "..", "blobs", path.name))
    assert read(snapshot).keys() == {"a", "b"}


def test_a_pipe_is_no_model(tmp_path):
    os.mkfifo(tmp_path / SINGLE)
    assert "holds neither" in refusal(tmp_path)


@pytest.mark.slow
def test_transformers_reads_what_is_written_and_writes_what_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 64,
    }
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).to(dtype)
        theirs, ours = tmp_path / f"theirs {dtype}", tmp_path / f"ours {dtype}"
        model.save_pretrained(theirs, max_shard_size="10KB")
        with open_folder(theirs) as tensors:
            names = write_folder(ours, tensors.shapes, tensors.read, max_shard_bytes=10_000)
        assert len(names) > 3
        same(read(theirs), read(ours))
        (ours / "config.json").write_bytes((theirs / "config.json").read_bytes())
        again = transformers.LlamaForCausalLM.from_pretrained(ours, dtype=dtype)
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
