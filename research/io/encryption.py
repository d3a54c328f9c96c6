"""Bytes at rest under a key: AES-256-GCM, in chunks that are bound to their file, their place and
its end.

A sealed file is MAGIC, a random salt of 32 bytes, and the chunks, each of CHUNK bytes (the last one
shorter, or empty) with the 16 bytes of its tag. Each file has a key of its own, by HKDF-SHA256 from
the user's key, the salt and the file's name; the nonce of a chunk is its number, and in its last
byte whether it is the last (the construction STREAM of Hoang, Reyhanitabar, Rogaway and Vizár,
2015). So a chunk that is altered, exchanged, repeated or left out is seen, and so is a file that is
cut short, continued, or under another name.
"""

import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from research.errors import BadInput, Damaged, UnsafeFile
from research.io import files

VARIABLE = "ISOFLOP_EXPORT_KEY"
MAGIC = b"isoflop sealed 1\n"
SALT, TAG, CHUNK = 32, 16, 1 << 20


def load_key(path: str | None) -> bytes:
    """The key in a file that only its owner can read, or else in $ISOFLOP_EXPORT_KEY: 32 bytes, or
    64 hexadecimal digits. Raises BadInput, in which no part of the key is told."""
    where = path or f"${VARIABLE}"
    try:
        if path:
            check_secret(path)
            raw = files.read(path, 1 << 10)
        else:
            raw = os.environ[VARIABLE].encode()
    except KeyError as error:
        raise BadInput(f"no key: give --key_file=FILE, or set {VARIABLE}") from error
    except OSError as error:
        raise BadInput(f"--key_file={path}: {error.strerror}") from error
    if len(raw) == 32 and path:
        return raw
    if not re.fullmatch(rb"[0-9a-fA-F]{64}", raw.strip()):
        raise BadInput(f"{where}: expected a key of 32 bytes, or of 64 hexadecimal digits")
    return bytes.fromhex(raw.strip().decode())


def check_secret(path: str) -> None:
    """Raise UnsafeFile if others may read or write a file that holds a secret."""
    if stat.S_IMODE(os.stat(path).st_mode) & 0o077:
        raise UnsafeFile(f"{path}: others may read it; chmod 600 {path}")


def seal(raw: bytes, key: bytes, name: str) -> Iterator[bytes]:
    """The parts of the sealed file `name`."""
    head = MAGIC + secrets.token_bytes(SALT)
    cipher, view = _cipher(key, head, name), memoryview(raw)
    yield head
    count = max(1, -(-len(raw) // CHUNK))
    for i in range(count):
        part = view[i * CHUNK : (i + 1) * CHUNK]
        yield cipher.encrypt(_nonce(i, i == count - 1), part, None)


def unseal(path: Path, key: bytes, name: str, limit: int) -> bytes:
    """What was sealed as `name`, at most `limit` bytes. Raises Damaged if it is not as it was, or
    was sealed by another key; nothing is returned of such a file. Raises UnsafeFile, OSError."""
    with files.opened(path, follow=False) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(len(MAGIC) + SALT)
        if not head.startswith(MAGIC) or len(head) < len(MAGIC) + SALT:
            raise Damaged(f"{path}: is no sealed file of this version")
        count = max(1, -(-(size - len(head)) // (CHUNK + TAG)))
        if (length := size - len(head) - count * TAG) > limit:
            raise UnsafeFile(f"{path}: larger than {limit} bytes")
        return _opened(path, file, _cipher(key, head, name), count, length)


def _opened(path: Path, file: BinaryIO, cipher: Any, count: int, length: int) -> bytes:
    from cryptography.exceptions import InvalidTag

    out, at = bytearray(max(0, length)), 0
    for i in range(count):
        try:
            part = cipher.decrypt(_nonce(i, i == count - 1), file.read(CHUNK + TAG), None)
        except (InvalidTag, ValueError) as error:
            raise Damaged(
                f"{path}: cannot be opened: it was altered or cut short, or this is not its key"
            ) from error
        out[at : at + len(part)] = part
        at += len(part)
    return bytes(out)


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _cipher(key: bytes, head: bytes, name: str) -> Any:
    try:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError as error:
        raise BadInput(
            "encryption needs the package cryptography; pip install 'isoflop[export]'"
        ) from error
    derived = HKDF(hashes.SHA256(), length=32, salt=head, info=name.encode()).derive(key)
    return AESGCM(derived)
