"""Does prepared data with a key hold nothing in clear on the disk, at any moment, and is every change of it noticed?"""

import hashlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import sealed
from data_pipeline.batch import open_data
from data_pipeline.config import CleanConfig, TokenizerConfig
from data_pipeline.prepare import build
from data_pipeline.prepare.build import prepare_to
from data_pipeline.schema import ConfigError, UserError
from data_pipeline.sealed import CHUNK, HEAD, TAG, Vault, open_array, open_to_read, open_to_write, read_bytes
from data_pipeline.store import MANIFEST, Prepared, open_prepared
from tests.data_pipeline.conftest import make_text
from tests.data_pipeline.work_folder import count_done

pytest.importorskip("cryptography")
KEY, OTHER = "k" * 40, "o" * 40
PLANTED = ["Zbigniew Quixotewski", "紫禁城暗号甲乙", "zqxj-secret-0042"]
MIB = 2**20


@pytest.fixture
def vault(monkeypatch):
    monkeypatch.setenv("LM_TEST_KEY", KEY)
    return Vault("LM_TEST_KEY")


@pytest.fixture
def folder(tmp_path, vault):
    folder = tmp_path / "sealed"
    folder.mkdir()
    sealed.seal(folder, vault)
    yield folder
    sealed.seal(folder, None)


def write(path, content, step=MIB):
    with open_to_write(path) as file:
        for at in range(0, len(content), step):
            file.write(content[at : at + step])


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 777])
def test_content_of_any_size_comes_back(folder, size):
    content = random.Random(size).randbytes(size)
    for step in (MIB, 1000):
        write(folder / "a", content, step)
        assert (folder / "a").stat().st_size == HEAD + size + TAG * max(1, -(-size // CHUNK))
        assert sealed.size_of(folder / "a") == size
        assert read_bytes(folder / "a") == content
    with open_to_read(folder / "a") as file:
        for at in (0, size // 2, max(size - 3, 0)):
            file.seek(at)
            assert file.read(5) == content[at : at + 5]
    assert size < 100 or content[:64] not in (folder / "a").read_bytes()


def test_an_array_reads_as_numpy_does(folder):
    rng = np.random.default_rng(0)
    for dtype in (np.dtype("<u2"), np.dtype([("key", "S16"), ("n", "<u8"), ("m", "<u4")])):  # 28 bytes cross chunks
        values = np.frombuffer(rng.bytes(dtype.itemsize * 7000), dtype)
        write(folder / "a", values.tobytes())
        held = open_array(folder / "a", dtype, 10, 6900)
        values = values[10:6910]
        assert len(held) == 6900
        for at, end in ((0, 1), (0, 6900), (500, 3000), (6899, 6900), (7, 7)):
            assert held[at:end].tobytes() == values[at:end].tobytes()
        assert held[5].tobytes() == values[5].tobytes()
        assert held[-1].tobytes() == values[-1].tobytes()
        places = rng.integers(0, 6900, 400)
        assert held[places].tobytes() == values[places].tobytes()
        assert np.asarray(held).tobytes() == values.tobytes()
    numbers = np.sort(rng.integers(0, 2**40, 200_000).astype(np.uint64))
    write(folder / "b", numbers.tobytes())
    asked = rng.integers(0, 2**40, 300).astype(np.uint64)
    assert (np.searchsorted(open_array(folder / "b", np.uint64), asked) == np.searchsorted(numbers, asked)).all()
    np.save(folder.parent / "c.npy", np.arange(30_000, dtype=np.uint16))
    write(folder / "c.npy", (folder.parent / "c.npy").read_bytes())
    assert (sealed.open_npy(folder / "c.npy")[20_000:20_005] == np.arange(20_000, 20_005)).all()


def damages(whole, other, rng):
    """(how, bytes) of everything that may befall an encrypted file of several chunks."""
    for place in [*range(0, HEAD, 7), *rng.sample(range(HEAD, len(whole)), 40)]:
        yield f"flip {place}", whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :]
    step = CHUNK + TAG
    for size in (0, 5, HEAD, HEAD + 5, HEAD + TAG, HEAD + step, HEAD + 2 * step, HEAD + 2 * step + 9, len(whole) - 1):
        yield f"cut at {size}", whole[:size]
    chunks = [whole[at : at + step] for at in range(HEAD, len(whole), step)]
    for order in ([1, 0, 2], [0, 2], [1, 2], [0, 1, 1, 2], [0, 1, 2, 2]):
        yield f"chunks {order}", whole[:HEAD] + b"".join(chunks[n] for n in order)
    yield "another file", other
    yield "chunk of another file", whole[:HEAD] + other[HEAD : HEAD + step] + whole[HEAD + step :]
    yield "longer", whole + b"x"
    yield "plain", b"\x93NUMPY" + bytes(1000)


def test_every_damage_is_an_error_of_one_line(folder):
    rng = random.Random(0)
    content = rng.randbytes(2 * CHUNK + 500)
    write(folder / "a", content)
    write(folder / "b", content)
    whole, other = (folder / "a").read_bytes(), (folder / "b").read_bytes()
    for how, damaged in damages(whole, other, rng):
        (folder / "a").write_bytes(damaged)
        with pytest.raises(UserError) as caught:
            read_bytes(folder / "a")
        assert "\n" not in str(caught.value), how
        assert str(folder / "a") in str(caught.value), how
    (folder / "a").write_bytes(whole)
    assert read_bytes(folder / "a") == content


def test_what_was_not_completed_does_not_look_whole(folder):
    with pytest.raises(ZeroDivisionError), open_to_write(folder / "a") as file:  # noqa: PT012
        file.write(bytes(5 * CHUNK))
        raise ZeroDivisionError
    with pytest.raises(UserError, match=r"changed, moved or cut off|cut short"):
        read_bytes(folder / "a")


def test_another_key_opens_nothing(folder, monkeypatch):
    write(folder / "a", b"text")
    monkeypatch.setenv("LM_OTHER_KEY", OTHER)
    sealed.seal(folder, Vault("LM_OTHER_KEY"))
    with pytest.raises(UserError, match="the key is another"):
        read_bytes(folder / "a")
    for value, words in (("", "is not set"), ("short", "has 5 characters")):
        monkeypatch.setenv("LM_OTHER_KEY", value)
        with pytest.raises(UserError, match=f"LM_OTHER_KEY {words}"):
            Vault("LM_OTHER_KEY")


def test_settled_files_are_the_same_for_the_same_content_and_name_only(folder):
    def settled(name, content):
        write(folder / name, content)
        assert sealed.settle(folder / name) == hashlib.sha256(content).hexdigest()
        assert read_bytes(folder / name) == content
        return (folder / name).read_bytes()

    content = bytes(3 * CHUNK)
    one = settled("a", content)
    assert settled("a", content) == one
    changed = settled("a", content[:-1] + b"\1")  # one byte in the last chunk: no chunk may be as it was
    named = settled("b", content)
    step = CHUNK + TAG
    for other in (changed, named):
        assert not {one[at : at + 16] for at in range(HEAD, len(one), step)} & {
            other[at : at + 16] for at in range(HEAD, len(other), step)
        }


# Preparation.


@pytest.fixture
def rows(tmp_path):
    """JSON lines, conversations among them, with repeats, near-duplicates and dirt; planted words in most."""
    rng = random.Random(5)
    folder = tmp_path / "rows"
    folder.mkdir()
    texts = [f"{PLANTED[i % 3]} {i} {make_text(rng, rng.randint(1, 60))} {PLANTED[(i + 1) % 3]}" for i in range(160)]
    texts[7], texts[60], texts[90] = texts[3], "bad \ufffd " + PLANTED[0], texts[20] + " " + PLANTED[2]
    lines = [json.dumps({"text": text}, ensure_ascii=i % 2 == 0) for i, text in enumerate(texts)]
    lines[100] = json.dumps({"text": 1, PLANTED[2]: PLANTED[0]})
    (folder / f"{PLANTED[2]}.jsonl").write_text("\n".join(lines), "utf-8")
    said = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": f"I am {PLANTED[0]}"}]
    (folder / "chat.jsonl").write_text(
        "".join(
            json.dumps({"messages": [{**said[0], "content": f"{PLANTED[1]} {i}"}, said[1]]}) + "\n" for i in range(9)
        )
    )
    (tmp_path / "evaluation.txt").write_text(f"{texts[30]} is in an evaluation set")
    return folder


@pytest.fixture
def corpus_config(config, rows, tmp_path):
    """Returns a function that makes a configuration in which every stage has something to do."""

    def make(key_env="LM_TEST_KEY", **changes):
        clean = CleanConfig(near_dedup=0.8, decontaminate=str(tmp_path / "evaluation.txt"))
        tokenizer = TokenizerConfig(kind="sentencepiece", vocab_size=420, character_coverage=0.98)
        base = {
            "on_bad": "skip",
            "max_bad_fraction": 0.1,
            "encrypt_key_env": key_env,
            "clean": clean,
            "tokenizer": tokenizer,
        }
        return config(rows, **{**base, **changes})

    return make


def planted_bytes(tokenizer):
    """Every form in which planted words could lie on the disk."""
    found = [form for word in PLANTED for form in (word.encode(), json.dumps(word)[1:-1].encode())]
    for ids in (tokenizer.encode(f" {word} ")[1:-1] for word in PLANTED):
        found += [np.array(ids, dtype).tobytes() for dtype in ("<u2", "<u4", "<i8")]
    return [form for form in found if len(form) >= 6]  # shorter ones are in any file by chance


def has_any(path, words):
    content = path.read_bytes()
    return any(word in content for word in words)


def lies_in_clear(folder, words):
    """Files with a planted word, and any that is not encrypted and not known to hold no text."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    known = {
        path for path in files if path.name == MANIFEST or not path.stat().st_size
    }  # empty: the lock, or just begun
    clear = [path for path in files if path not in known and not path.read_bytes().startswith(sealed.MAGIC)]
    return clear + [path for path in files if has_any(path, words)]


def plain_hashes(folder):
    """sha256 of every file's bytes on the disk, but of those that hold times."""
    files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in files.items()
        if name not in ("report.json", MANIFEST)
    }


SCRIPT = """
import sys, pickle
from pathlib import Path
from data_pipeline.prepare import build
build.PART_BYTES = 6000
if __name__ == "__main__":
    config = pickle.loads(Path(sys.argv[1]).read_bytes())
    build.prepare_to(Path(sys.argv[2]), config, int(sys.argv[3]), print)
"""


def test_nothing_in_clear_at_any_moment_and_the_same_bytes_after_every_kill(
    corpus_config, tmp_path, vault, monkeypatch, quiet
):
    monkeypatch.setattr(build, "PART_BYTES", 6000)
    plain = prepare_to(tmp_path / "plain", corpus_config(""), 1, quiet)
    assert {"duplicate", "near-duplicate", "contaminated", "mojibake"} <= plain.manifest["dropped"].keys()
    words = planted_bytes(plain.tokenizer)
    lies_there = [path.name for path in plain.folder.rglob("*") if path.is_file() and has_any(path, words)]
    assert {"00.train.ids.npy", "ledger.jsonl", "00.train.files.json"} <= set(
        lies_there
    )  # the search finds what lies in clear
    assert (
        b"Quixotewski" in (tmp_path / "plain/tokenizer/sentencepiece.model").read_bytes()
    )  # it holds what it was trained on
    place = tmp_path / "here"
    place.mkdir()
    (place / "config").write_bytes(pickle.dumps(corpus_config()))
    (place / "run.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    killed, seen = 0, set()
    for stop in (3, 12, 17, 99):
        command = [sys.executable, "run.py", "config", "out", "1"]
        process = subprocess.Popen(
            command, cwd=place, env=environment, start_new_session=True, stdout=subprocess.DEVNULL
        )
        while process.poll() is None and count_done(place) < stop:
            time.sleep(0.001)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
        for path in [*place.glob(".out.*"), *place.glob("out")]:
            seen |= {f"{p.parent.name}/{p.name}" for p in path.rglob("*")}
            assert lies_in_clear(path, words) == []
    assert killed >= 2
    assert process.returncode == 0
    assert any(name.startswith("read/") for name in seen)
    assert any(name.startswith("near/") for name in seen)
    expected = prepare_to(tmp_path / "two", corpus_config(), 2, quiet)
    assert plain_hashes(place / "out") == plain_hashes(tmp_path / "two")
    assert lies_in_clear(tmp_path / "two", words) == []
    shown = json.loads((tmp_path / "two" / MANIFEST).read_text())
    assert shown["encrypted"]["key_env"] == "LM_TEST_KEY"
    assert "made_of" not in shown
    assert KEY not in json.dumps(shown)
    for name in ("documents_in", "documents_out", "dropped", "edited", "splits", "bytes_in"):
        assert shown[name] == plain.manifest[name]
    hashes = plain_hashes(tmp_path / "two")
    assert all(shown["files"][name]["sha256"] == digest for name, digest in hashes.items() if name != "report.html")
    content = {name: read_bytes(expected.folder / name) for name in plain.manifest["files"] if name != "report.json"}
    assert content == {name: (plain.folder / name).read_bytes() for name in content}


def test_no_nonce_comes_twice_under_a_key(corpus_config, tmp_path, vault, monkeypatch, quiet):
    """A run, the same run again, and one whose text differs in a letter: every (key, nonce) belongs to one plaintext."""
    used = {}
    make = Vault.cipher

    def cipher(self, identifier):
        real = make(self, identifier)

        class Recorder:
            def encrypt(self, nonce, content, beside):
                known = used.setdefault((identifier, nonce), content)
                assert known == content
                return real.encrypt(nonce, content, beside)

            decrypt = real.decrypt

        return Recorder()

    monkeypatch.setattr(Vault, "cipher", cipher)
    one = prepare_to(tmp_path / "one", corpus_config(), 1, quiet)
    prepare_to(tmp_path / "again", corpus_config(), 1, quiet)
    before = len(used)
    path = next(tmp_path.glob("rows/zq*"))
    path.write_text(path.read_text("utf-8").replace(" 159 ", " 951 "), "utf-8")
    other = prepare_to(tmp_path / "other", corpus_config(), 1, quiet)
    assert before > 20
    assert len(used) > before
    assert other.manifest["key"] != one.manifest["key"]


def test_a_run_reads_what_is_encrypted_as_what_is_not(corpus_config, config, tmp_path, vault, monkeypatch, quiet):
    plain = open_data(corpus_config(""), log=quiet)
    cached = open_data(corpus_config(), log=quiet)
    prepare_to(tmp_path / "out", corpus_config(), 1, quiet)
    given = open_data(config("", prepared=str(tmp_path / "out")), log=quiet)  # the manifest names the variable
    demanded = open_data(config("", prepared=str(tmp_path / "out"), encrypt_key_env="LM_TEST_KEY"), log=quiet)
    assert plain.fingerprint == cached.fingerprint == given.fingerprint == demanded.fingerprint
    assert plain.prepared.folder != cached.prepared.folder
    streams = [data.train_batches(1, (0, 8)) for data in (plain, cached, given)]
    for _ in range(3):
        first, *others = [next(stream) for stream in streams]
        assert all((first[name] == other[name]).all() for other in others for name in first)
    for stream in streams:
        stream.close()
    for split in ("validation", "test"):
        for one, two in zip(plain.eval_batches(split, 4, (0, 4)), given.eval_batches(split, 4, (0, 4)), strict=True):
            assert all((one[name] == two[name]).all() for name in one)
    assert open_data(corpus_config(), log=quiet).prepared.folder == cached.prepared.folder
    with pytest.raises(ConfigError, match="encrypt_key_env: the position of a stream holds text"):
        open_data(corpus_config(streaming=True, tokenizer=TokenizerConfig(kind="bytes")), log=quiet)
    monkeypatch.setenv("LM_TEST_KEY", OTHER)  # another key prepares anew, and leaves what the first one made
    assert open_data(corpus_config(), log=quiet).prepared.folder != cached.prepared.folder
    assert (cached.prepared.folder / MANIFEST).exists()


def resign(folder, change):
    """Changes the manifest as somebody without the key can: with its sha256, and those of all files, made right."""
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    manifest.pop("sha256")
    change(manifest)
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    text = json.dumps({**manifest, "sha256": hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()})
    (folder / MANIFEST).write_text(text, "utf-8")


def test_every_wrong_key_and_every_change_of_a_folder_is_one_line(
    corpus_config, config, tmp_path, vault, monkeypatch, quiet
):
    out, plain = tmp_path / "out", tmp_path / "plain"
    prepare_to(out, corpus_config(tokenizer=TokenizerConfig(kind="bytes")), 1, quiet)
    prepare_to(plain, corpus_config("", tokenizer=TokenizerConfig(kind="bytes")), 1, quiet)
    whole = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def refused(words, key_env="", folder=out):
        with pytest.raises(UserError, match=words) as caught:
            open_data(config("", prepared=str(folder), encrypt_key_env=key_env), log=quiet)
        assert "\n" not in str(caught.value)
        for path, content in whole.items():
            path.write_bytes(content)

    for value, words in (("", "is encrypted, and the environment variable LM_TEST_KEY is not set"), ("short", "has 5 characters"),
                         (OTHER, "was encrypted with another key than the one in the environment variable LM_TEST_KEY")):  # fmt: skip
        monkeypatch.setenv("LM_TEST_KEY", value)
        refused(words)
        with pytest.raises(UserError):
            prepare_to(out, corpus_config(tokenizer=TokenizerConfig(kind="bytes")), 1, quiet)
    monkeypatch.setenv("LM_TEST_KEY", KEY)
    refused("is not encrypted, as config.data.encrypt_key_env='LM_TEST_KEY' asks for", "LM_TEST_KEY", plain)
    ids, keys = out / "00.train.ids.npy", out / "00.train.keys.npy"
    ids.write_bytes(whole[ids][:100] + bytes([whole[ids][100] ^ 1]) + whole[ids][101:])
    refused("ids.npy has changed")
    ids.write_bytes(whole[ids][:-5])
    refused("ids.npy has")
    ids.write_bytes(whole[keys])
    keys.write_bytes(whole[ids])
    refused("npy has")
    for change in (
        lambda manifest: manifest.update(documents_out=1),
        lambda manifest: manifest["encrypted"].update(key_check=Vault("LM_TEST_KEY").check, cipher="none"),
        lambda manifest: ids.write_bytes(whole[ids][:-40]),
        lambda manifest: ids.write_bytes((plain / ids.name).read_bytes()),
    ):
        resign(out, change)
        refused("manifest.json was changed by somebody without the key")
    # without "encrypted" the folder passes for a plain one, whose files are none; a run that asks for encryption says so
    resign(out, lambda manifest: manifest.pop("encrypted"))
    refused("is not encrypted, as", "LM_TEST_KEY")
    assert isinstance(open_prepared(out, "LM_TEST_KEY"), Prepared)


def test_the_commands_show_what_is_encrypted_to_who_has_the_key(corpus_config, tmp_path, vault, quiet):
    out = tmp_path / "out"
    prepared = prepare_to(out, corpus_config(), 1, quiet)
    entry = json.loads(read_bytes(out / "ledger.jsonl").splitlines()[0])

    def run(module, *words, key=KEY):
        command = [sys.executable, "-m", f"data_pipeline.{module}", f"--data={out}", *words]
        environment = {**os.environ, "LM_TEST_KEY": key}
        return subprocess.run(command, capture_output=True, env=environment, cwd=Path(__file__).parents[2], timeout=60)

    done = run("reveal", "--file=report.md")
    assert done.stdout == read_bytes(out / "report.md")
    assert b"# Prepared data" in done.stdout
    assert f"--file=x: {out} has 00.test.files.json, 00" in run("reveal", "--file=x").stderr.decode()
    wrong = run("reveal", "--file=report.md", key=OTHER)
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count(b"\n")) == (1, b"", 1)
    found = run("explain", f"--doc={entry['id']}").stdout.decode()
    assert entry["reason"] in found
    assert prepared.manifest["made_of"]["code"]
