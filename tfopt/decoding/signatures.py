"""Names and shapes of the signatures of a TFLite file that generates; writer and reader agree on them here.

Every tensor is flat: LiteRT binds memory of the host only to tensors of one axis. Keys and values go in, those of
the new tokens come out; the host writes them to their slots, so a cache is never copied.
"""

import dataclasses
import re

from tfopt.errors import InputError

KINDS = ("decode", "prefill", "verify")


@dataclasses.dataclass(frozen=True)
class DecoderSignature:
    """One signature.

    Attributes:
        kind: "decode" takes one token and gives logits, "prefill" takes several and gives none, "verify" takes
            several and gives the logits at each.
        new: tokens it takes.
        slots: slots of its cache.
        key: its name; those with the most slots have the short names.
    """

    kind: str
    new: int
    slots: int
    key: str


def plan_signatures(slots: tuple[int, ...], prefill: tuple[int, ...], verify: int) -> list[DecoderSignature]:
    """The signatures of a file, for every number of slots.

    Raises:
        InputError: a number below 1, or none.
    """
    if not slots or not prefill or min(*slots, *prefill, verify) < 1:
        raise InputError(f"slots, prefill and verify must be 1 or more, got {slots}, {prefill} and {verify}")
    found = []
    for count in sorted(slots):
        suffix = "" if count == max(slots) else f"_{count}"
        found.append(DecoderSignature("decode", 1, count, key=f"decode{suffix}"))
        sizes = [("prefill", n) for n in sorted({min(n, count) for n in prefill})]
        sizes.append(("verify", min(verify, count)))
        found += [DecoderSignature(kind, n, count, key=f"{kind}_{n}{suffix}") for kind, n in sizes]
    return found


def read_signature(key: str, slots: int) -> DecoderSignature | None:
    """The signature of that name whose cache has so many slots, None for one of something else."""
    hit = re.fullmatch(r"(decode|prefill_(\d+)|verify_(\d+))(_\d+)?", key)
    if hit is None:
        return None
    new = int(hit[2] or hit[3] or 1)
    return DecoderSignature(hit[1].partition("_")[0], new, slots, key=key)
