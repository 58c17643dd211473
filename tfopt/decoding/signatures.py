"""Names and shapes of the signatures of a TFLite file that generates; writer and reader agree on them here.

Every tensor is flat: LiteRT binds memory of the host only to tensors of one axis. Keys and values go in, those of
the new tokens come out; the host writes them to their slots, so a cache is never copied.

Files for LiteRT-LM have names and shapes of that runtime's: `decode` and `prefill_N` with tokens (1, N) and the
positions (N,) as int32, a mask (1, 1, N, slots), and caches (1, key/value heads, slots, head_dim) that go in and
come out whole; `decode` has logits (1, 1, vocab) besides.
"""

import dataclasses
import re

from tfopt.errors import InputError

KINDS = ("decode", "prefill", "verify")
DECODE, IDS, POSITIONS, MASK, LOGITS = "decode", "tokens", "input_pos", "mask", "logits"  # of LiteRT-LM


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


def cache_names(layers: int) -> list[str]:
    """Names of LiteRT-LM for the keys and values of each layer."""
    return [f"kv_cache_{part}_{layer}" for layer in range(layers) for part in "kv"]


def prefill_key(size: int) -> str:
    """LiteRT-LM's signature that takes so many tokens and gives no logits."""
    return f"prefill_{size}"


def prefill_size(key: str) -> int | None:
    """How many tokens such a signature takes, None for one of something else."""
    hit = re.fullmatch(r"prefill_(\d+)", key)
    return None if hit is None else int(hit[1])
