"""The part of a text that answers a question: exact match and F1 as SQuAD computes them."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfopt.data.features import Feature
from tfopt.data.text_facts import TextFacts
from tfopt.data.tokenizers import load_tokenizer, types_of
from tfopt.errors import DataError
from tfopt.models.pretrained import read_config
from tfopt.numerics.metrics import Scored, answer_scores
from tfopt.numerics.spans import best_span
from tfopt.tasks.base import HeldOut, Log
from tfopt.tasks.labelled import LabelledTask, Row, answered, read_examples, text_of

_START, _END = "start_logits", "end_logits"


class QuestionAnsweringTask(LabelledTask):
    """Rows with "question", "context", "answer", a part of the context or "", and "answer_start", its first
    character.

    Without "answer_start" the first place where the answer stands is meant. "" means that the context does not
    answer the question; the model then points to its first token.
    """

    features: tuple[Feature, ...] = (  # type: ignore[misc]
        Feature("input_ids", "tokens"), Feature("token_type_ids", "types"), Feature("start", "number"),
        Feature("end", "number"), Feature("example", "number"),
    )  # fmt: skip
    metrics = ("f1", "exact_match")

    def pack(self, log: Log) -> dict[str, Any]:
        folder = self.recipe.model.folder
        if folder is not None and getattr(read_config(Path(folder)), "type_vocab_size", 0) < 2:
            self.features = tuple(f for f in self.features if f.kind != "types")  # the model has no such input
        return super().pack(log)

    def read(self, rows: list[Row], source: str) -> list[Row]:
        found = []
        for number, row in enumerate(rows, 1):
            context, question = (text_of(row, key, source, number=number) for key in ("context", "question"))
            answer = row.get("answer")
            if not isinstance(answer, str):
                raise DataError(f"{source}: example {number} needs a text 'answer', '' for none, got {answer!r}")
            start = row.get("answer_start", context.find(answer) if answer else 0)
            if answer and (
                not isinstance(start, int) or context[start : start + len(answer)] != answer or start < 0
            ):
                raise DataError(
                    f"{source}: example {number}: the answer {answer!r} does not stand in the context there"
                )
            found.append({"question": question, "context": context, "answer": answer, "start": start})
        return found

    def texts(self, examples: list[Row]) -> list[str]:
        return [text for example in examples for text in (example["question"], example["context"])]

    def heads(self, train: list[Row]) -> dict[str, list[str]]:
        return {}

    def encode(self, example: Row, tokenizer: Any, heads: Mapping[str, list[str]]) -> Row:
        encoding = tokenizer.encode(example["question"], example["context"])
        first, last = example["start"], example["start"] + len(example["answer"])
        inside = [
            place
            for place, (begin, end) in _context_offsets(encoding)
            if example["answer"] and begin < last and end > first
        ]
        start, end = (inside[0], inside[-1]) if inside else (0, 0)
        ids, types = list(encoding.ids), types_of(encoding)
        return {"input_ids": ids, "token_type_ids": types, "start": start, "end": end}

    def cut(self, record: Row, length: int) -> Row:
        whole = record["end"] < length
        answer = {"start": record["start"], "end": record["end"]} if whole else {"start": 0, "end": 0}
        lists = {name: record[name][:length] for name in ("input_ids", "token_type_ids")}
        return {**record, **lists, **answer}

    def head(self, heads: Mapping[str, list[str]]) -> dict[str, Any]:
        return {"head": "span"}

    def text_facts(self, facts: dict[str, Any]) -> TextFacts:
        return self.facts_of_text(facts, "span", {})

    def targets(self, labels: Any) -> Any:
        return {_START: labels["start"], _END: labels["end"]}

    def outputs(self) -> Sequence[str]:
        return (_START, _END)

    def held_out(self) -> HeldOut:
        return HeldOut(self.timed_inputs(), score=functools.partial(score, str(self.data)))


def _context_offsets(encoding: Any) -> list[tuple[int, tuple[int, int]]]:
    """Places of the tokens of the context, with the characters that they stand for."""
    pairs = zip(encoding.sequence_ids, encoding.offsets, strict=True)
    return [(place, offsets) for place, (which, offsets) in enumerate(pairs) if which == 1]


def score(folder: str, predictor: Any) -> Scored:
    """Exact match and F1 over the held-out questions, and the answers."""
    examples, tokenizer = read_examples(folder), load_tokenizer(folder)
    predicted: list[str] = []
    true: list[list[str]] = []
    for inputs, labels, outputs in answered(predictor, folder):
        for row, number in enumerate(labels["example"].tolist()):
            example = examples[number]
            offsets = dict(_context_offsets(tokenizer.encode(example["question"], example["context"])))
            length = int(inputs["attention_mask"][row].sum())
            places = [place for place in offsets if place < length]
            span = best_span(outputs[_START][row], outputs[_END][row], places) if places else None
            found = "" if span is None else example["context"][offsets[span[0]][0] : offsets[span[1]][1]]
            predicted.append(found.strip())
            true.append([example["answer"]])
    return Scored(answer_scores(predicted, true), predicted)
