"""Encryption of files at rest: AES-256-GCM of the package cryptography, one message per file.

An encrypted file is MAGIC, a random nonce of 96 bits, the ciphertext, and its tag of 128 bits. The
name of the file is the associated data. So a file that is altered, cut short, continued, exchanged
for another one or read with another key is rejected as a whole. Under one key at most 2^32 files
may be encrypted (NIST SP 800-38D, 8.3: nonces are random), each of at most MAX_BYTES, and a file is
held in memory as a whole.
"""

import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from research.errors import BadInput, Damaged, UnsafeFile
from research.io import files
from research.io.extras import install_command

VARIABLE = "ISOFLOP_EXPORT_KEY"
MAGIC = b"isoflop sealed 2\n"
NONCE, TAG = 12, 16  # bytes
MAX_BYTES = 2**36 - 32  # of one message of AES-GCM


def load_key(path: str | None) -> bytes:
    """The key in a file that only its owner can read, or else in $ISOFLOP_EXPORT_KEY: 32 bytes, or
    64 hexadecimal digits. Raises BadInput, whose message never
    contains any part of the key."""
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


def encrypt(raw: bytes, key: bytes, name: str) -> Iterator[bytes]:
    """The parts of the encrypted file `name`. `key` has 32 bytes. Raises BadInput if `raw` is
    longer than MAX_BYTES."""
    if len(raw) > MAX_BYTES:
        raise BadInput(f"{name}: {len(raw):,} bytes; AES-GCM encrypts at most {MAX_BYTES:,}")
    nonce = secrets.token_bytes(NONCE)
    # Not AESGCM(key).encrypt, which gives the same bytes, but takes less than 2^31 of them.
    encryptor = _cipher(key, nonce).encryptor()
    encryptor.authenticate_additional_data(name.encode())
    yield MAGIC + nonce
    yield encryptor.update(raw)
    yield encryptor.finalize() + encryptor.tag


def decrypt(path: Path, key: bytes, name: str, limit: int) -> bytes:
    """The content of what was encrypted as `name`, at most `limit` bytes.

    Raises Damaged if the file was altered or encrypted with another key (none of its content is
    returned), UnsafeFile if it is larger or not a regular file, OSError.
    """
    with files.open_regular_file(path, follow=False) as file:
        length = os.fstat(file.fileno()).st_size - len(MAGIC) - NONCE - TAG
        magic, nonce = file.read(len(MAGIC)), file.read(NONCE)
        if magic != MAGIC or length < 0:
            raise Damaged(f"{path}: not a file that this version encrypted, or cut short")
        if length > limit:
            raise UnsafeFile(f"{path}: larger than {limit} bytes")
        ciphertext, tag = file.read(length), file.read(TAG)
    decryptor = _cipher(key, nonce).decryptor()
    decryptor.authenticate_additional_data(name.encode())
    from cryptography.exceptions import InvalidTag

    try:
        raw = decryptor.update(ciphertext)
        decryptor.finalize_with_tag(tag)
    except (InvalidTag, ValueError) as error:
        raise Damaged(
            f"{path}: cannot be decrypted: it was altered or cut short, or this is not its key"
        ) from error
    return raw


def _cipher(key: bytes, nonce: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    except ImportError as error:
        raise BadInput(
            f"encryption needs the package cryptography; {install_command('export')}"
        ) from error
    return Cipher(algorithms.AES(key), modes.GCM(nonce))
