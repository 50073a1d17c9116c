"""How do the files of a folder lie encrypted on the disk, so that nothing in clear touches it and every change is noticed?

Whoever writes or reads a file of prepared data does it by `open_to_write`, `open_to_read`, `read_bytes` or `open_array`. In a folder
for which `seal` named a key, they encrypt and decrypt; anywhere else they are `open` and `numpy.memmap`. The construction is
STREAM (Hoang, Reyhanitabar, Rogaway, Vizár 2015, "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance") with AES-256-GCM:

    file    MAGIC, identifier (32 bytes), then chunks of CHUNK bytes, each with a tag of 16; the last may be shorter
    key     HKDF-SHA256(secret, identifier): one a file
    nonce   number of the chunk (11 bytes), whether it is the last one (1 byte)
    beside  MAGIC, identifier and the file's name in its folder are authenticated with every chunk

So a chunk that was changed, moved, left out or cut off, and a file under another's name, are errors. A nonce is used again only
under one identifier. That is random while files are made; `settle` then writes a finished file anew under
HMAC-SHA256(key, name and SHA-256 of the content): the same content gives the same bytes, and another content another key.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import os
import shutil
import weakref
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from data_pipeline.rules.pii_cipher import read_key
from data_pipeline.schema import UserError

MAGIC = b"lm sealed 1\n"
CHUNK = 2**12  # bytes: rows are stretches of about 2 KiB, and most of a larger chunk would be decrypted for nothing
CIPHER = f"AES-256-GCM, STREAM of {CHUNK >> 10} KiB"
HEAD, TAG = len(MAGIC) + 32, 16
CACHED = 1024  # decrypted chunks that an opened file keeps: 4 MiB
BLOCK = 2**16  # items that are searched at once


class Vault:
    """The keys that come from the secret in one environment variable."""

    def __init__(self, variable: str):
        self.variable, self._secret = variable, read_key(variable)
        self.check = self.sign("check", b"")[:16]  # says whether a key is the same one

    def _derive(self, purpose: str, salt: bytes = b"") -> bytes:
        try:
            from cryptography.hazmat.primitives.hashes import SHA256
            from cryptography.hazmat.primitives.kdf.hkdf import HKDF
        except ImportError:
            raise UserError("encryption needs the package cryptography: pip install 'lm[privacy]'") from None
        return HKDF(SHA256(), 32, salt, f"lm data at rest 1: {purpose}".encode()).derive(self._secret)

    def sign(self, purpose: str, content: bytes) -> str:
        """Returns an authentication code (HMAC-SHA256, hexadecimal) that only who has the key can make."""
        return hmac.new(self._derive(purpose), content, hashlib.sha256).hexdigest()

    def cipher(self, identifier: bytes) -> Any:
        key = self._derive("file", identifier)
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        return AESGCM(key)


_vaults: dict[str, Vault] = {}


def open_vault(variable: str) -> Vault | None:
    return Vault(variable) if variable else None


def seal(folder: Path, vault: Vault | None) -> None:
    """Says that all files of a folder are encrypted with `vault`, or that they are not, from now on and in this process."""
    if vault is None:
        _vaults.pop(os.path.abspath(folder), None)
    else:
        _vaults[os.path.abspath(folder)] = vault


def vault_of(path: Path | str) -> tuple[Vault, str] | None:
    """Returns the vault of the folder that a path is or lies in, and the name within it; None where it is not encrypted."""
    path = Path(os.path.abspath(path))
    for folder in (path, *path.parents) if _vaults else ():
        if vault := _vaults.get(str(folder)):
            return vault, path.relative_to(folder).as_posix()
    return None


def open_to_write(path: Path | str, final: Path | str = "", identifier: bytes = b"") -> IO[bytes]:
    """Opens a file for writing from its beginning to its end; use within `with`. `final`: the name it will have."""
    found = vault_of(final or path)
    if found is None:
        return open(path, "wb")
    return cast(IO[bytes], _Writer(path, *found, identifier or os.urandom(32)))


def open_to_read(path: Path | str) -> IO[bytes]:
    found = vault_of(path)
    return open(path, "rb") if found is None else io.BufferedReader(_Stream(SealedFile(path, *found)), CHUNK)


def read_bytes(path: Path | str) -> bytes:
    with open_to_read(path) as file:
        return file.read()


def copy(source: Path | str, target: Path | str) -> None:
    with open_to_read(source) as file, open_to_write(target) as out:
        shutil.copyfileobj(file, out)


def size_of(path: Path | str) -> int:
    """Returns the bytes of a file's content."""
    found = vault_of(path)
    return os.path.getsize(path) if found is None else SealedFile(path, *found).size


def open_array(path: Path | str, dtype: Any, first: int = 0, count: int | None = None) -> Any:
    """Returns `count` items of a file of numbers from item `first` on as an array, of which only what is looked at is read."""
    dtype, found = np.dtype(dtype), vault_of(path)
    items = size_of(path) // dtype.itemsize - first if count is None else count
    if items == 0:
        return np.zeros(0, dtype)
    if found is None:
        return np.asarray(np.memmap(path, dtype, "r", first * dtype.itemsize, (items,)))  # a plain view slices faster
    return SealedArray(SealedFile(path, *found), dtype, first * dtype.itemsize, items)


def open_npy(path: Path | str) -> Any:
    """Returns the one-dimensional array of a .npy file, of which only what is looked at is read."""
    found = vault_of(path)
    if found is None:
        return np.asarray(np.load(path, mmap_mode="r"))  # a plain view slices faster
    file = SealedFile(path, *found)
    head = io.BytesIO(file.read_at(0, CHUNK))
    np.lib.format.read_magic(head)
    shape, _, dtype = np.lib.format.read_array_header_1_0(head)
    return SealedArray(file, dtype, head.tell(), *shape)


def settle(path: Path) -> str:
    """Encrypts a finished file anew, so that the same content gives the same bytes; returns the content's sha256."""
    vault, name = cast(tuple[Vault, str], vault_of(path))
    with open_to_read(path) as file:
        digest = hashlib.file_digest(file, "sha256")  # pyright: ignore[reportArgumentType]
    identifier = bytes.fromhex(vault.sign("identifier", name.encode() + b"\0" + digest.digest()))
    aside = path.with_name(f"{path.name}.tmp-settled")
    with open_to_read(path) as file, open_to_write(aside, path, identifier) as out:
        shutil.copyfileobj(file, out, 2**20)
    os.replace(aside, path)
    return digest.hexdigest()


class _Writer:
    def __init__(self, path: Path | str, vault: Vault, name: str, identifier: bytes):
        self._cipher, self._beside = vault.cipher(identifier), MAGIC + identifier + name.encode()
        self._file, self._chunks, self._waiting = open(path, "wb"), 0, bytearray()  # noqa: SIM115  closed by close()
        self._file.write(MAGIC + identifier)

    def write(self, content: Any) -> int:
        self._waiting += content
        done = 0
        while len(self._waiting) - done > CHUNK:  # whether a chunk is the last one must be known
            self._put(bytes(self._waiting[done : done + CHUNK]), False)
            done += CHUNK
        del self._waiting[:done]
        return len(content)

    def _put(self, chunk: bytes, last: bool) -> None:
        self._file.write(self._cipher.encrypt(_nonce(self._chunks, last), chunk, self._beside))
        self._chunks += 1

    @property
    def closed(self) -> bool:
        return self._file.closed

    def tell(self) -> int:
        return self._chunks * CHUNK + len(self._waiting)

    def flush(self) -> None: ...  # a chunk is written when the next one begins

    def close(self) -> None:
        if not self._file.closed:
            self._put(bytes(self._waiting), True)
            self._file.close()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close() if error[0] else self.close()  # what is not whole must not look so


def _nonce(chunk: int, last: bool) -> bytes:
    return chunk.to_bytes(11, "big") + bytes([last])


def _decrypt(path: str, handle: int, cipher: Any, beside: bytes, chunks: int, number: int) -> bytes:
    from cryptography.exceptions import InvalidTag

    content = os.pread(handle, CHUNK + TAG, HEAD + number * (CHUNK + TAG))
    try:
        return cipher.decrypt(_nonce(number, number == chunks - 1), content, beside)
    except InvalidTag:
        what = f"chunk {number + 1} of {chunks} was changed, moved or cut off since it was encrypted"
        raise UserError(f"{path}: {what}, or the key is another; restore the file, or prepare again") from None


class SealedFile:
    """An encrypted file of which any stretch can be read; safe to use by several threads."""

    def __init__(self, path: Path | str, vault: Vault, name: str):
        handle = os.open(path, os.O_RDONLY)
        self.close = weakref.finalize(self, os.close, handle)
        head = os.pread(handle, HEAD, 0)
        if not head.startswith(MAGIC):
            raise UserError(f"{path}: is not encrypted, as all files here must be; restore it, or prepare again")
        body = os.fstat(handle).st_size - HEAD
        chunks = -(-body // (CHUNK + TAG))
        self.size = body - chunks * TAG
        if body < TAG or self.size < 0 or (chunks > 1 and body % (CHUNK + TAG) in range(1, TAG + 1)):
            raise UserError(f"{path}: is cut short; restore it, or prepare again")
        decrypt = partial(_decrypt, str(path), handle, vault.cipher(head[len(MAGIC) :]), head + name.encode(), chunks)
        self._chunk = lru_cache(CACHED)(decrypt)
        self._chunk(chunks - 1)  # also says at once whether the file is whole, and of this name and key

    def read_at(self, begin: int, length: int) -> bytes:
        """Returns up to `length` bytes of the content; fewer at its end."""
        end = min(begin + length, self.size)
        if end <= begin:
            return b""
        first, last = begin // CHUNK, (end - 1) // CHUNK
        if first == last:
            return self._chunk(first)[begin - first * CHUNK : end - first * CHUNK]
        middle = (self._chunk(number) for number in range(first + 1, last))
        return b"".join([self._chunk(first)[begin - first * CHUNK :], *middle, self._chunk(last)[: end - last * CHUNK]])


class _Stream(io.RawIOBase):
    def __init__(self, file: SealedFile):
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        content = self._file.read_at(self._at, len(buffer))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


class SealedArray:
    """A one-dimensional array in an encrypted file: of what is looked at, the chunks are decrypted."""

    def __init__(self, file: SealedFile, dtype: np.dtype, begin: int, count: int):
        self.file, self.dtype, self.begin, self.count = file, dtype, begin, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            start, stop, step = key.indices(self.count)
            assert step == 1
            return self._read(start, stop)
        if isinstance(key, np.ndarray):
            return self._take(key.astype(np.int64))
        key = int(key) + (self.count if key < 0 else 0)
        if not 0 <= key < self.count:
            raise IndexError(key)
        return self._read(key, key + 1)[0]

    def _read(self, start: int, stop: int) -> np.ndarray:
        width = self.dtype.itemsize
        return np.frombuffer(self.file.read_at(self.begin + start * width, max(stop - start, 0) * width), self.dtype)

    def _take(self, places: np.ndarray) -> np.ndarray:
        found = np.empty(len(places), self.dtype)
        order = np.argsort(places, kind="stable")
        places = places[order]
        chunk = (self.begin + places * self.dtype.itemsize) // CHUNK
        starts = np.flatnonzero(np.append(True, chunk[1:] != chunk[:-1])[: len(chunk)]).tolist()
        for a, b in zip(starts, [*starts[1:], len(chunk)]):
            found[order[a:b]] = self._read(int(places[a]), int(places[b - 1]) + 1)[places[a:b] - places[a]]
        return found

    def searchsorted(self, values: Any, side: Any = "left", sorter: None = None) -> Any:
        """`numpy.searchsorted`, which calls this, of a sorted array: a block at a time."""
        found: Any = 0
        for begin in range(0, self.count, BLOCK):
            found = found + np.searchsorted(self._read(begin, min(begin + BLOCK, self.count)), values, side)
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._read(0, self.count).astype(dtype or self.dtype)
