"""What a mask of padding belongs to, by its name."""

from collections.abc import Iterable

MASK = "attention_mask"  # of every model of ours


def masked_by_name(names: Iterable[str]) -> tuple[str, ...]:
    """Inputs that an input "attention_mask" masks: all others, but those of a target that has a source.

    >>> masked_by_name(["input_ids", "attention_mask", "decoder_input_ids"])
    ('input_ids',)
    """
    others = [name for name in names if name != MASK]
    return tuple(name for name in others if not name.startswith("decoder_")) or tuple(others)
