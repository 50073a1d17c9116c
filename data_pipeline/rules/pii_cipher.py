"""How is a value encrypted so that equal values stay equal and only the key turns them back?

AES-SIV (RFC 5297) and not AES-GCM: equal values must give equal words, so that a model still sees who is who, and GCM with
a nonce that repeats gives its key away; SIV makes its nonce from the value by a keyed hash, which is also the check against
tampering. What it does not hide: which values are equal, how long they are, and their kind.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from typing import Any

from data_pipeline.schema import UserError

ENCRYPTED = re.compile("<([A-Z]+):([A-Za-z0-9_-]{22,})>")
MAKE_KEY = "python -c 'import secrets; print(secrets.token_hex(32))'"


def read_key(variable: str) -> bytes:
    """Returns the secret key in this environment variable; UserError where there is none or it is short."""
    value = os.environ.get(variable, "")
    if len(value) < 32:
        state = f"has {len(value)} characters" if value else "is not set"
        raise UserError(f"the environment variable {variable} {state}; put a secret of 32 or more there: {MAKE_KEY}")
    return value.encode()


def _cipher(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESSIV
    except ImportError:
        raise UserError("encryption needs the package cryptography: pip install 'lm[privacy]'") from None
    return AESSIV(hashlib.blake2b(key, digest_size=64, person=b"lm pii encrypt").digest())


def encrypt_value(kind: str, value: str, key: bytes) -> str:
    """Returns `<KIND:base64url>` of 16 bytes of check and the encrypted UTF-8 of the value."""
    data = _cipher(key).encrypt(value.encode(), [kind.upper().encode()])
    return f"<{kind.upper()}:{base64.urlsafe_b64encode(data).decode().rstrip('=')}>"


def decrypt_text(text: str, key: bytes) -> str:
    """Returns the text with every encrypted value as it was; UserError where one was changed or the key is another."""
    cipher = _cipher(key)

    def decrypt(match: re.Match[str]) -> str:
        from cryptography.exceptions import InvalidTag

        try:
            data = base64.urlsafe_b64decode(match[2] + "=" * (-len(match[2]) % 4))
            return cipher.decrypt(data, [match[1].encode()]).decode()
        except (ValueError, InvalidTag):
            raise UserError(f"{match[0]}, at character {match.start()}: changed since, or another key") from None

    return ENCRYPTED.sub(decrypt, text)
