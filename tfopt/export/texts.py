"""What an artifact needs to take texts: the tokenizer, and what the outputs of the model stand for."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfopt._base.members import FACTS, TOKENIZER
from tfopt._keras import extras
from tfopt.data.text_facts import ONLY, TextFacts, TextTask, check_labels, packed
from tfopt.data.tokenizers import load_tokenizer
from tfopt.decoding.weights import is_generative
from tfopt.errors import InputError
from tfopt.structure.outputs import kinds_of_outputs, outputs_by_name


def members_for_texts(
    model: Any, tokenizer: str | Path | None = None, labels: Sequence[str] | None = None
) -> dict[str, bytes]:
    """The members of an exported file: what came with the model, and what is given instead.

    Raises:
        InputError: labels that do not fit the outputs, or a model that has a tokenizer of its own.
        ModelFileError: it is no tokenizer.
    """
    if is_generative(model):
        if labels is not None:
            raise InputError("labels are for encoders; this model generates")
        return {} if tokenizer is None else {TOKENIZER: load_tokenizer(tokenizer).to_str().encode()}
    members = extras.of(model)
    if tokenizer is not None:
        members[TOKENIZER] = load_tokenizer(tokenizer).to_str().encode()
    if labels is not None:
        members[FACTS] = _labelled(model, members.get(FACTS), labels).as_json()
    return packed(members)


def keep_for_texts(model: Any, facts: TextFacts, tokenizer: bytes) -> None:
    """Lets tokenizer, task and labels travel with a model, into every artifact that is made of it."""
    kinds = set(kinds_of_outputs(model).values())
    kind = kinds.pop() if len(kinds) == 1 else "values"
    if facts.labels and kind != "values":
        facts = dataclasses.replace(facts, kind=kind)
    extras.keep(model, FACTS, facts.as_json())
    extras.keep(model, TOKENIZER, tokenizer)


def _labelled(model: Any, stored: bytes | None, labels: Sequence[str]) -> TextFacts:
    names, outputs = check_labels(labels), outputs_by_name(model)
    if len(outputs) != 1:
        raise InputError(f"labels are for a model with one output, {model.name!r} has {', '.join(outputs)}")
    ((name, output),) = outputs.items()
    kind = kinds_of_outputs(model)[name]
    classes, rank = output.shape[-1], len(output.shape)
    fits = classes == len(names) or (classes == 1 and kind == "independent" and len(names) == 2)
    if not fits or kind == "values" or rank not in (2, 3):
        raise InputError(
            f"labels must fit the output of {model.name!r}, {kind} of shape {tuple(output.shape)}; got "
            f"{len(names)}: {', '.join(names)}"
        )
    facts = TextFacts("embedding") if stored is None else TextFacts.from_json(stored, f"model {model.name!r}")
    task: TextTask = "classification" if rank == 2 else "token_classification"
    return dataclasses.replace(facts, task=task, labels={ONLY: names}, kind=kind)
