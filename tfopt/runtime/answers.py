"""From texts to the inputs of an artifact, and from its outputs to answers: labels, entities, parts of a text."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfopt._base.foreign import check_whole, to_text
from tfopt._base.members import FACTS, TOKENIZER
from tfopt.data.text_facts import ONLY, TextFacts
from tfopt.data.tokenizers import OnLong, cut_ids, parse_tokenizer, types_of
from tfopt.errors import InputError, ModelFileError
from tfopt.numerics.metrics import entities
from tfopt.numerics.spans import best_span

Text = str | tuple[str, str]
_TYPES = ("token_type", "segment")  # in names of inputs that tell the first text of a pair from the second
_PADS = ("[PAD]", "<pad>", "<PAD>", "[pad]")
_START, _END = "start_logits", "end_logits"


@dataclasses.dataclass(frozen=True)
class Entity:
    """A part of a text that means a thing of some kind.

    Attributes:
        text: the part.
        label: its kind.
        start, end: its first character and the one behind its last.
        probability: the least of those of its words.
    """

    text: str
    label: str
    start: int
    end: int
    probability: float


@dataclasses.dataclass(frozen=True)
class _Roles:
    """Names of an artifact's inputs by what they take; None where it has none of that kind."""

    ids: str
    mask: str | None
    types: str | None

    @staticmethod
    def of(inputs: Sequence[str], masks: Mapping[str, Any], source: str) -> "_Roles":
        mask = next((name for name in inputs if name in masks), None)
        types = next((name for name in inputs if any(word in name for word in _TYPES)), None)
        others = [name for name in inputs if name not in (mask, types)]
        if len(others) != 1:
            raise InputError(
                f"{source} takes {', '.join(inputs)}; of texts only the token ids, a mask and token types are known"
            )
        return _Roles(others[0], mask, types)


class Reader:
    """What an artifact says of texts.

    Args:
        members: a tokenizer and facts, as `data.text_facts` names them.
        source: of the artifact, for messages.

    Raises:
        InputError: there is no tokenizer.
        ModelFileError: it is damaged.
    """

    def __init__(self, members: Mapping[str, bytes], source: str) -> None:
        if TOKENIZER not in members:
            raise InputError(
                f"{source} carries no tokenizer, so it takes arrays: export with tokenizer=..., and with "
                "labels=[...] for their names"
            )
        self._source = source
        self._tokenizer = parse_tokenizer(to_text(members[TOKENIZER], source, ModelFileError), source)
        given = FACTS in members
        self.facts = TextFacts.from_json(members[FACTS], source) if given else TextFacts("embedding")
        self._pad = next((i for i in map(self._tokenizer.token_to_id, _PADS) if i is not None), 0)

    def encoded(
        self,
        texts: Sequence[Text],
        inputs: Sequence[str],
        masks: Mapping[str, Any],
        *,
        length: int | None,
        exact: bool,
        on_long: OnLong | None,
    ) -> "Encoded":
        """Inputs of some texts.

        Args:
            texts: each one text, or a pair of them such as a question and a context.
            inputs: names of the artifact's inputs.
            masks: those that tell padding.
            length: most tokens that it takes, None for any.
            exact: every text gets that many.
            on_long: what becomes of longer texts; None as the model was trained.

        Raises:
            InputError: no texts, or one that is empty or too long.
        """
        roles = _Roles.of(inputs, masks, self._source)
        rows = [self._encoding(text) for text in _checked(texts, self.facts.task)]
        most = min((n for n in (length, self.facts.max_length) if n is not None), default=None)
        ids = [row.ids if most is None else self._fitted(row, most, on_long) for row in rows]
        width = length if exact and length is not None else max(map(len, ids))
        shape = (len(ids), width)
        values = {roles.ids: np.full(shape, 0 if roles.mask else self._pad, np.int64)}
        values |= {name: np.zeros(shape, np.int64) for name in (roles.mask, roles.types) if name is not None}
        for number, (row, some) in enumerate(zip(rows, ids, strict=True)):
            values[roles.ids][number, : len(some)] = some
            if roles.mask is not None:
                values[roles.mask][number, : len(some)] = 1
            if roles.types is not None:
                values[roles.types][number, : len(some)] = types_of(row)[: len(some)]
        return Encoded(list(texts), rows, [len(some) for some in ids], inputs=values)

    def _encoding(self, text: Text) -> Any:
        parts = (text,) if isinstance(text, str) else text
        found = self._tokenizer.encode(*parts)
        if not found.ids:
            raise InputError(f"the text {text!r:.80} has no tokens")
        return found

    def _fitted(self, encoding: Any, most: int, on_long: OnLong | None) -> list[int]:
        if len(encoding.ids) > most and (on_long or self.facts.on_long) != "truncate":
            raise InputError(
                f"a text has {len(encoding.ids)} tokens, {self._source} takes {most}; shorten it, or pass "
                "on_long='truncate' to leave out what is beyond"
            )
        return encoding.ids if len(encoding.ids) <= most else cut_ids(encoding, most)

    def answers(self, encoded: "Encoded", outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What outputs say of texts; see `Predictor.predict`."""
        if self.facts.task == "span":
            if not {_START, _END} <= set(outputs):
                raise InputError(f"{self._source} gives {', '.join(outputs)}; an answer needs {_START} and {_END}")
            return _spans(encoded, outputs)
        if self.facts.task == "token_classification":
            return {"entities": self._entities(encoded, outputs)}
        found: dict[str, np.ndarray] = {}
        for key, names in self.facts.labels.items():
            probabilities = self._probabilities(self._output(outputs, key))
            labels, best = _chosen(probabilities, names, independent=self.facts.kind == "independent")
            found |= {key: labels, "probability" if key == ONLY else f"{key}_probability": best}
        return found or dict(outputs)

    def _output(self, outputs: Mapping[str, np.ndarray], key: str) -> np.ndarray:
        if key != ONLY and key in outputs:
            return outputs[key]
        if len(outputs) != 1:
            raise InputError(f"{self._source} gives {', '.join(outputs)}; its labels are those of {key!r}")
        (only,) = outputs.values()
        return only

    def _probabilities(self, values: np.ndarray) -> np.ndarray:
        """Of classes, along the last axis."""
        return softmax(values) if self.facts.kind == "logits" else values.astype(np.float64)

    def _entities(self, encoded: "Encoded", outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        names = self.facts.labels[ONLY]
        probabilities = self._probabilities(self._output(outputs, ONLY))
        _check_classes(probabilities, names, axes=3)
        found = np.empty(len(encoded.texts), object)
        for number, (text, row) in enumerate(zip(encoded.texts, encoded.rows, strict=True)):
            words = _words(row, encoded.lengths[number])
            of_words = probabilities[number][
                [place for place, _ in words]
            ]  # the first token of a word stands for it
            tags = [names[i] for i in of_words.argmax(-1)]
            found[number] = tuple(
                _entity(text, kind, words[first:last], chances=of_words[first:last].max(-1))
                for kind, first, last in sorted(entities(tags), key=lambda e: e[1])
            )
        return found


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Texts and what an artifact is given for them.

    Attributes:
        texts: as they were given.
        rows: what the tokenizer made of them, whole.
        lengths: how many tokens of each were kept.
        inputs: name -> ids, masks and types, int64 (texts, length).
    """

    texts: list[Text]
    rows: list[Any]
    lengths: list[int]
    inputs: dict[str, np.ndarray]


def is_texts(inputs: Any) -> bool:
    """Whether something is a list of texts, or of pairs of them, and not of numbers."""
    if isinstance(inputs, str):
        raise InputError(f"texts must be a list, got {inputs!r:.80}; write [...] around one text")
    if not isinstance(inputs, list | tuple | np.ndarray) or not len(inputs):
        return False
    return all(
        isinstance(one, str)
        or (isinstance(one, tuple | list) and len(one) == 2 and all(isinstance(part, str) for part in one))
        for one in inputs
    )


def softmax(values: np.ndarray) -> np.ndarray:
    """Along the last axis, in float64."""
    shifted = values.astype(np.float64) - values.max(-1, keepdims=True)
    powers = np.exp(shifted)
    return powers / powers.sum(-1, keepdims=True)


def _checked(texts: Sequence[Text], task: str) -> Sequence[Text]:
    for text in texts:
        for part in (text,) if isinstance(text, str) else text:
            check_whole(part, "a text")
            if not part.strip():
                raise InputError(f"a text must hold a word or more, got {text!r:.80}")
        if task == "span" and isinstance(text, str):
            raise InputError(f"each text must be a pair of a question and its context, got {text!r:.80}")
    return texts


def _chosen(probabilities: np.ndarray, names: Sequence[str], independent: bool) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest label of each row, and its probability."""
    if independent and probabilities.shape[-1] == 1 and len(names) == 2:  # one number for two classes
        probabilities = np.concatenate([1 - probabilities, probabilities], -1)
    _check_classes(probabilities, names, axes=2)
    best = probabilities.argmax(-1)
    return np.array(names)[best], probabilities[np.arange(len(best)), best]


def _check_classes(probabilities: np.ndarray, names: Sequence[str], axes: int) -> None:
    if probabilities.ndim != axes or probabilities.shape[-1] != len(names):
        raise InputError(f"the outputs {probabilities.shape} do not fit {len(names)} labels: {', '.join(names)}")


def _words(row: Any, kept: int) -> list[tuple[int, tuple[int, int]]]:
    """First token of every word that was kept, with the characters of the word."""
    found: dict[int, tuple[int, tuple[int, int]]] = {}
    for place, (word, (start, end)) in enumerate(zip(row.word_ids[:kept], row.offsets[:kept], strict=True)):
        if word is not None:
            first, (begin, _) = found.get(word, (place, (start, end)))
            found[word] = (first, (begin, end))
    return list(found.values())


def _entity(text: Text, kind: str, words: Sequence[tuple[int, tuple[int, int]]], chances: np.ndarray) -> Entity:
    whole = text if isinstance(text, str) else text[0]
    start, end = words[0][1][0], words[-1][1][1]
    start += len(whole[start:end]) - len(whole[start:end].lstrip())  # some tokens begin with a blank
    return Entity(whole[start:end], kind, start, end=end, probability=float(chances.min()))


def _spans(encoded: Encoded, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The part of each context that answers its question, "" where none does."""
    found, chances = [], []
    starts, ends = softmax(outputs[_START]), softmax(outputs[_END])
    for number, row in enumerate(encoded.rows):
        kept = encoded.lengths[number]
        offsets = {
            place: where
            for place, (which, where) in enumerate(zip(row.sequence_ids[:kept], row.offsets[:kept], strict=True))
            if which == 1
        }
        start, end = outputs[_START][number], outputs[_END][number]
        span = best_span(start, end, list(offsets)) if offsets else None
        first, last = span or (0, 0)
        context = encoded.texts[number][1]
        found.append("" if span is None else context[offsets[first][0] : offsets[last][1]].strip())
        chances.append(float(starts[number][first] * ends[number][last]))
    return {"answer": np.array(found), "probability": np.array(chances)}
