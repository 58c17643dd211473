"""Names in an archive that lead below the folder that is written, and to one file each, on every system."""

import re
import unicodedata
from pathlib import PurePosixPath

# What Windows keeps for devices, with any ending.
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])(\..*)?", re.IGNORECASE)

_LONGEST = 255  # bytes of one part, on most systems


def is_safe(name: str) -> bool:
    """Whether a path leads below the folder, on every system; "" stands for a single file."""
    path = PurePosixPath(name)
    plain = not path.is_absolute() and ".." not in path.parts and (name == "" or path.as_posix() == name != ".")
    return plain and name.isprintable() and not set(name) & set('\\:*?"<>|') and all(map(_is_plain, path.parts))


def _is_plain(part: str) -> bool:
    return (
        not _DEVICES.fullmatch(part) and part == part.rstrip(". ") and len(part.encode("utf-8", "replace")) <= 255
    )


def same_file(name: str) -> str:
    """What two names have in common that some system takes for one: case, and ways to write a character."""
    return unicodedata.normalize("NFC", name).casefold()
