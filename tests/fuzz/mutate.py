"""Ways to damage a file: as disks and networks do, and as somebody would who knows the format."""

import copy
import io
import json
import random
import zipfile
from typing import Any

# What a number or a text is replaced by.
EXTREMES: tuple[Any, ...] = (
    0, -1, 1, 2**7, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, -(2**63), 1e308, 0.5, 1e999, "", "x", "../../x", "/dev/zero",
    "\ud800", "\0", None, True, [], {}, [[]], {"class_name": "Lambda"}, "relu", "tf.io.read_file",
)  # fmt: skip
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Other bytes than `content`: one to four changes of one kind each."""
    found = content
    for _ in range(rng.randint(1, 4)):
        found = rng.choice(_CHANGES)(bytearray(found), rng)
    return found


def _flip(content: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.randint(1, 8)):
        if content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def _number(content: bytearray, rng: random.Random) -> bytes:
    size = rng.choice((1, 2, 4, 8))
    if len(content) > size:
        at = rng.randrange(len(content) - size)
        content[at : at + size] = rng.choice(NUMBERS).to_bytes(8, "little")[:size]
    return bytes(content)


def _cut(content: bytearray, rng: random.Random) -> bytes:
    return bytes(content[: rng.randrange(len(content) + 1)])


def _remove(content: bytearray, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return bytes(content[:at] + content[at + rng.randint(1, 64) :])


def _insert(content: bytearray, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return bytes(content[:at] + rng.randbytes(rng.randint(1, 64)) + content[at:])


def _repeat(content: bytearray, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    piece = content[at : at + rng.randint(1, 512)]
    return bytes(content[:at] + piece * rng.randint(2, 4) + content[at:])


_CHANGES = (_flip, _flip, _number, _number, _cut, _remove, _insert, _repeat)


def damaged_json(content: bytes, rng: random.Random) -> bytes:
    """JSON with some values replaced, removed or doubled; now and then bytes that are none."""
    if rng.random() < 0.15:
        return damaged(content, rng)
    value = json.loads(content)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(value))
        if not places:
            break
        holder, key = rng.choice(places)
        how = rng.random()
        if how < 0.7:
            holder[key] = copy.deepcopy(rng.choice(EXTREMES))  # or a list would come to hold itself
        elif how < 0.85:
            del holder[key]
        elif isinstance(holder, list):
            holder.extend(copy.deepcopy(holder[:64]))
        else:
            holder[f"{key}x"] = copy.deepcopy(holder[key])
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _places(value: Any) -> Any:
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def damaged_zip(content: bytes, rng: random.Random) -> bytes:
    """An archive one of whose members is damaged, with a right checksum; now and then the archive itself."""
    if rng.random() < 0.25:
        return damaged(content, rng)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(out, "w") as target:
        names = source.namelist()
        chosen = rng.choice(names + ["config.json"] * len(names))
        for name in names:
            member = source.read(name)
            if name == chosen:
                member = (damaged_json if name.endswith(".json") else damaged)(member, rng)
            target.writestr(name, member)
    return out.getvalue()
