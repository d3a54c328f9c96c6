"""Files of UTF-8 text."""

import logging

from research.errors import BadInput
from research.io import files

SUBSTITUTE = "\ufffd"  # replaces undecodable bytes


log = logging.getLogger(__name__)


def read(path: str, undecodable: str) -> tuple[bytes, int]:
    """The UTF-8 bytes of a file, and the number of replacements made."""
    with files.open_regular_file(path) as file:
        raw = file.read()
    if undecodable == "replace":
        text = raw.decode("utf-8", "replace").replace("\0", SUBSTITUTE)
        if replaced := text.count(SUBSTITUTE) - raw.count(SUBSTITUTE.encode()):
            log.warning("data.path: %s: %d places are not UTF-8 and become U+FFFD", path, replaced)
        return text.encode(), replaced
    hint = "; data.undecodable=replace reads U+FFFD there"
    if (at := raw.find(0)) >= 0:
        raise BadInput(f"data.path: {path}: byte {at} is 0, as in UTF-16 or a binary file{hint}")
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        raise BadInput(
            f"data.path: {path}: byte {error.start} is not UTF-8 ({error.reason}){hint}"
        ) from error
    return raw, 0
