"""Messages in the language of the command line: its options instead of arguments of Python."""

import re
from collections.abc import Sequence

_WORDS = (
    (
        r"pass representative=\{name: array\}, or train the model with quantize_aware\(\.\.\.\)",
        "give --representative DIR",
    ),
    (r"imports=\[\.\.\.\], or --import on the command line", "--import FILE"),
    (r"load it yourself and pass the model object, ", ""),
    (r"give trust=True|trust=True", "--trust"),
    (r"(pass )?lengths=\[\.\.\.\]", "give --length N"),
    (r"\blengths=\[([\d, ]*)\]", r"--length \1"),
    (r"^lengths must", "--length must"),
    (r"pass on_long='truncate'", "give --truncate"),
    (r"export with tokenizer=\.\.\., and with labels=\[\.\.\.\]", "export with --tokenizer, and with --label"),
    (r"^labels must", "--label must"),
    (r"\baccept must be a list out of", "--accept must be one of"),
    (r"\baccept=\['(\w+)'\]", r"--accept \1"),
    (r"\bjit_compile=True|\bjit_compile\b", "--jit-compile"),
    (r"\ballow_flex=True", "--allow-flex"),
    (r"\brotate=True", "--rotate"),
    (r"\b(format|quantization|cache|rounding)='([\w]+)'", r"--\1 \2"),
    (r"^(format|quantization|cache|rounding|smooth) must", r"--\1 must"),
    (r"max_bytes", "--max-bytes"),
    (r"max_loss", "--max-loss"),
    (r"max_latency_ms", "--max-latency-ms"),
    (r"tokenizer='tokenizer.json'", "--tokenizer tokenizer.json"),
)


# Commands that load what they wrote themselves again and again, and so run no code of a file.
_UNTRUSTING = ("optimize", "run", "search")


def in_words_of_the_shell(message: str, command: Sequence[str] = ()) -> str:
    """A message with the names that options of a command have on the command line.

    >>> in_words_of_the_shell("trust=True where you trust it; pass lengths=[...]")
    '--trust where you trust it; give --length N'
    """
    for pattern, words in _WORDS:
        message = re.sub(pattern, words, message)
    if command and command[0] in _UNTRUSTING:
        message = re.sub(r",? or --trust where you trust whoever made it", "", message)
    return message
