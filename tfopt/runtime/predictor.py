"""`Predictor`: load any artifact, call it the same way.

Subclasses tell the signatures they have and run one of them; batches, padding and names are handled here.
"""

import abc
import contextlib
import dataclasses
import itertools
import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.files import existing
from tfopt._base.formats import format_of
from tfopt._base.members import LOOKUPS
from tfopt.data.lookup import Lookup, from_json
from tfopt.data.tokenizers import OnLong
from tfopt.errors import InputError, ModelFileError
from tfopt.runtime.answers import Reader, is_texts
from tfopt.runtime.described import Described, masks_by_name
from tfopt.runtime.inputs import check_masks, checked


@dataclasses.dataclass(frozen=True)
class StoredWeight:
    """A weight tensor as an artifact stores it.

    Attributes:
        name: its name in the artifact.
        bits: bits of one element.
        array: its values.
        is_kernel: something is multiplied by it; False for lookup tables and folded constants.
    """

    name: str
    bits: int
    array: np.ndarray = dataclasses.field(repr=False)
    is_kernel: bool = True


@dataclasses.dataclass(frozen=True)
class Signature:
    """One way to call an artifact.

    Attributes:
        key: its name in the artifact.
        inputs: name -> (shape, dtype); None stands for any size.
        outputs: name -> shape.
    """

    key: str
    inputs: dict[str, tuple[tuple[int | None, ...], np.dtype]]
    outputs: dict[str, tuple[int | None, ...]]

    @property
    def batch(self) -> int | None:
        """The only batch size it takes, or None for any."""
        return next(iter(self.inputs.values()))[0][0]

    @property
    def is_fixed(self) -> bool:
        """Whether all sizes but the batch are known."""
        return all(None not in shape[1:] for shape, _ in self.inputs.values())

    @property
    def volume(self) -> int:
        """Numbers in one row of its inputs, unknown sizes left out; smaller signatures answer sooner."""
        return sum(math.prod(size or 1 for size in shape[1:]) for shape, _ in self.inputs.values())

    @property
    def length(self) -> int | None:
        """The second axis of its inputs if all have one of the same fixed size."""
        sizes = {shape[1] if len(shape) > 1 else None for shape, _ in self.inputs.values()}
        return sizes.pop() if len(sizes) == 1 else None


class Predictor(abc.ABC):
    """A loaded artifact; any number of threads may call it.

    Attributes:
        path: where it was loaded from.
        format: "keras", "saved_model", "tflite" or "litertlm".
        signatures: every way to call it, shortest length first.
        described: what is known of the inputs: rows of the tables in which ids are looked up, and masks.
        members: what travels with it for texts: tokenizer, task and labels.
    """

    format: str
    _refusals: tuple[type[Exception], ...] = ()  # what the runtime raises for values that the model does not take
    _in_parallel = False  # whether the runtime itself may be called by several threads at once

    def __init__(
        self, path: str | Path, threads: int | None = None, *, trust: bool = False, imports: Sequence[str] = ()
    ) -> None:
        if threads is not None and threads < 1:
            raise InputError(f"threads must be 1 or more, got {threads}")
        self.path, self.trust, self.imports = existing(path, "artifact"), trust, tuple(imports)
        self._turn: contextlib.AbstractContextManager[Any] = (
            contextlib.nullcontext() if self._in_parallel else threading.Lock()
        )
        self.described: Described | None = None
        self.members: Mapping[str, bytes] = {}
        self._reader: Reader | None = None
        self.signatures = sorted(self._open(threads), key=lambda s: s.volume)
        if self.described is None:
            self.described = Described(masks=masks_by_name(self.signatures[0].inputs))
        # What the model was cut behind; damage shows here rather than at the first text.
        self._lookups: list[Lookup] = (
            from_json(self.members[LOOKUPS], f"{self.path}: {LOOKUPS}") if LOOKUPS in self.members else []
        )
        names = {*self.described.limits, *self.described.masks, *itertools.chain(*self.described.masks.values())}
        if not names <= set(self.input_names):  # damaged, as it was written of these inputs
            wrong = sorted(names - set(self.input_names))[0]
            raise ModelFileError(
                f"{self.path} describes an input {wrong!r}, it takes {', '.join(self.input_names)}"
            )

    @staticmethod
    def load(
        path: str | Path, *, threads: int | None = None, trust: bool = False, imports: Sequence[str] = ()
    ) -> "Predictor":
        """Loads a `.keras` or `.h5` file, a SavedModel folder or a `.tflite` file.

        Args:
            path: the artifact.
            threads: threads of one prediction; by default all cores. For Keras models and SavedModels
                it can only be set before TensorFlow runs its first operation in this process; later there is a
                warning, and TensorFlow goes on with those it has.
            trust: run code that the artifact holds or names, beyond computing; what that is, is logged.
            imports: modules or files that define classes of a Keras file; they are run.

        Raises:
            MissingFileError: nothing is there.
            ModelFileError: it is no artifact that can be loaded, or it would run code.
            DataError: it is of a finished run, and no longer what that wrote.
            InputError: a bad number of threads.
        """
        format = format_of(path)
        chosen: type[Predictor] = format.runtime_module().predictor_of(Path(path))
        return chosen(path, threads, trust=trust, imports=imports)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Sequence lengths with a signature of their own; empty if any length or no length is taken."""
        fixed = [s.length for s in self.signatures if s.length is not None]
        return tuple(fixed) if len(self.signatures) > 1 or self._padded else ()

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self.signatures[0].inputs)

    def predict(
        self,
        inputs: Mapping[str, Any] | np.ndarray | Sequence[Any],
        *,
        batch_size: int | None = None,
        on_long: OnLong | None = None,
    ) -> dict[str, np.ndarray]:
        """Runs the artifact.

        Args:
            inputs: name -> array with the batch axis first, or one array for a model with one input. Or texts, or
                pairs of them such as (question, context), where a tokenizer lies in the artifact.
            batch_size: most rows per run; by default all rows at once where the artifact can.
            on_long: of texts with more tokens than it takes: "error", or "truncate" to leave out what is beyond; by
                default as the model was trained.

        Returns:
            Outputs by name. Rows are those of the inputs; padding that was needed to reach an exported
            length is cut off again. For texts, what the outputs say: "label" and "probability" of a classifier, or
            one of each for every head ("topic", "topic_probability"); "entities", a tuple of `Entity` for each
            text; "answer" and "probability" of a question; the outputs as they are where there are no labels.

        Raises:
            InputError: a missing or unknown input, rows that differ, a shape, number, token id or mask that the
                artifact does not take, or a sequence longer than the longest exported length.
        """
        if self._lookups:
            inputs = self._looked_up(inputs)
        elif is_texts(inputs) and not self._takes_strings:
            return self._answers(list(inputs), batch_size, on_long)
        (shape, _), *others = self.signatures[0].inputs.values()
        if is_texts(inputs) and not others and len(shape) == 2 and shape[1] == 1:  # as older Keras declares texts
            inputs = np.asarray(inputs, object)[:, None]
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size must be 1 or more, got {batch_size}")
        named = self._named(inputs)
        rows = len(next(iter(named.values())))
        signature = self._choose(named)
        padded = {name: _pad(value, signature.inputs[name][0]) for name, value in named.items()}
        step = signature.batch or batch_size or rows
        parts = []
        for start in range(0, rows, step):
            part = {name: value[start : start + step] for name, value in padded.items()}
            missing = (signature.batch or 0) - len(next(iter(part.values())))
            if missing > 0:  # the last rows are repeated to fill a fixed batch
                part = {name: np.concatenate([v, np.repeat(v[-1:], missing, 0)]) for name, v in part.items()}
            parts.append(self._answer(signature, part))
        joined = {name: np.concatenate([p[name] for p in parts])[:rows] for name in parts[0]}
        return self._cut(joined, signature, named)

    def _looked_up(self, inputs: Any) -> Any:
        """Texts as what the file takes in their place; where that is given, it stays."""
        if not isinstance(inputs, Mapping):
            names = [lookup.name for lookup in self._lookups]
            if len(self.input_names) != 1:
                raise InputError(f"this artifact takes its inputs by name, {', '.join(names)} among them")
            inputs = {names[0] if is_texts(inputs) else self.input_names[0]: inputs}
        found = dict(inputs)
        for lookup in self._lookups:
            if lookup.name in found:
                found[lookup.target] = lookup.values(found.pop(lookup.name))
        return found

    @property
    def _takes_strings(self) -> bool:
        """Whether texts are what the model itself takes."""
        return any(dtype.kind in "OSU" for _, dtype in self.signatures[0].inputs.values())

    def _answers(self, texts: Any, batch_size: int | None, on_long: OnLong | None) -> dict[str, np.ndarray]:
        """What the artifact says of texts."""
        if self._reader is None:
            self._reader = Reader(self.members, str(self.path))
        assert self.described is not None
        masks, longest = self.described.masks, self.signatures[-1]
        encoded = self._reader.encoded(
            texts, self.input_names, masks, length=longest.length, exact=not masks, on_long=on_long
        )
        return self._reader.answers(encoded, self.predict(encoded.inputs, batch_size=batch_size))

    def _answer(self, signature: Signature, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            with self._turn:
                return self._run(signature, inputs)
        except self._refusals as error:
            shapes = ", ".join(f"{name} {value.shape}" for name, value in inputs.items())
            raise InputError(f"{self.path} does not take these inputs ({shapes}): {_reason(error)}") from error

    def stream(self, ids: Sequence[int], config: Any = None) -> Iterator[int]:
        """Continues a text, token by token, where the artifact generates; `tfopt.Generator` does so with text.

        Args:
            ids: tokens of the prompt.
            config: a `tfopt.GenerateConfig`; by default 128 of the most likely tokens.

        Raises:
            InputError: the artifact does not generate, or a bad prompt.
        """
        from tfopt.decoding.generate import GenerateConfig, Texts

        steps = Texts(self.make_decoder(), [ids], config or GenerateConfig()).steps()
        return (token for (token,) in steps if token is not None)

    def make_decoder(self) -> Any:
        """What generates with this artifact.

        Raises:
            InputError: it does not generate.
        """
        raise InputError(f"{self.path} does not generate; export a causal language model to TFLite")

    def try_out(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """`predict`, by every way that the artifact has to the same outputs."""
        return self.predict(inputs)

    def _named(self, inputs: Any) -> dict[str, np.ndarray]:
        expected = self.signatures[0].inputs
        if not isinstance(inputs, Mapping):
            if len(expected) != 1:
                raise InputError(f"this artifact takes {len(expected)} inputs by name: {', '.join(expected)}")
            inputs = {next(iter(expected)): inputs}
        unknown, missing = set(inputs) - set(expected), set(expected) - set(inputs)
        if unknown or missing:
            raise InputError(f"inputs must be {', '.join(expected)}, got {', '.join(map(str, inputs)) or 'none'}")
        assert self.described is not None
        limits = self.described.limits
        named = {name: checked(name, inputs[name], dtype=dtype, limit=limits.get(name))
                 for name, (_, dtype) in expected.items()}  # fmt: skip
        rows = {len(v) if v.ndim else 0 for v in named.values()}
        if len(rows) != 1 or rows == {0}:
            raise InputError(f"inputs must have the same number of rows, 1 or more, got {sorted(rows)}")
        check_masks(named, self.described.masks)
        return named

    def _choose(self, named: dict[str, np.ndarray]) -> Signature:
        """The smallest signature that holds the inputs."""
        for signature in self.signatures:
            if all(_holds(signature.inputs[n][0], v.shape, n in self._padded) for n, v in named.items()):
                return signature
        largest = self.signatures[-1].inputs
        for name, value in named.items():
            most = largest[name][0][1] if value.ndim > 1 and len(largest[name][0]) > 1 else None
            if name in self._padded and most is not None and value.shape[1] > most:
                raise InputError(
                    f"a sequence of {value.shape[1]} tokens is longer than the longest exported length {most}"
                )
        shapes = ", ".join(f"{name} {shape}" for name, (shape, _) in largest.items())
        got = ", ".join(f"{n} {v.shape}" for n, v in named.items())
        raise InputError(f"the artifact takes {shapes}, got {got}")

    @property
    def _padded(self) -> set[str]:
        """Inputs that may be padded: it is only harmless where a mask tells it from content."""
        assert self.described is not None
        return {name for mask, covered in self.described.masks.items() for name in (mask, *covered)}

    def _cut(
        self, outputs: dict[str, np.ndarray], signature: Signature, named: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        for name in self._padded:
            most, length = signature.inputs[name][0][1], named[name].shape[1]
            if most not in (None, length):
                return {n: v[:, :length] if self._follows(name, n) else v for n, v in outputs.items()}
        return outputs

    def row_shape(self, output: str) -> tuple[int | None, ...]:
        """Shape of an output's row; None for sizes that go with the inputs. Of answers to texts it is ()."""
        shapes = [s.outputs[output][1:] for s in self.signatures if output in s.outputs]
        if not shapes:
            return ()
        sizes = [size[0] if len(set(size)) == 1 else None for size in zip(*shapes, strict=True)]
        if any(s.is_fixed for s in self.signatures) and any(self._follows(name, output) for name in self._padded):
            sizes[0] = None
        return tuple(sizes)

    def answered(
        self, pairs: Iterable[tuple[Mapping[str, Any], Any]]
    ) -> Iterator[tuple[Mapping[str, Any], Any, dict[str, np.ndarray]]]:
        """Inputs, what came with them, such as labels, and what `predict` returns for them."""
        return ((inputs, other, self.predict(inputs)) for inputs, other in pairs)

    def _follows(self, name: str, output: str) -> bool:
        """Whether the second axis of an output is that of an input, the sequence axis."""
        fixed = [(s.inputs[name][0][1], s.outputs[output]) for s in self.signatures if s.inputs[name][0][1]]
        return all(len(shape) > 1 and shape[1] == length for length, shape in fixed) and (
            len({length for length, _ in fixed}) > 1 or len(fixed[0][1]) > 2
        )

    @abc.abstractmethod
    def _open(self, threads: int | None) -> list[Signature]:
        """Loads `self.path` and returns its signatures."""

    @abc.abstractmethod
    def _run(self, signature: Signature, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs one signature on inputs of exactly the shape it takes."""

    @abc.abstractmethod
    def weights(self) -> list[StoredWeight]:
        """The weight tensors as the artifact stores them."""


def _reason(error: Exception) -> str:
    """The line of a runtime's message that says what was wrong: TensorFlow puts it before the name of the node."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    place = next((i for i, line in enumerate(lines) if line.startswith("[[{{node")), 1)
    return lines[max(place - 1, 0)]


def _holds(want: tuple[int | None, ...], have: tuple[int, ...], can_be_padded: bool) -> bool:
    if len(want) != len(have):
        return False
    for axis, (w, h) in enumerate(zip(want[1:], have[1:], strict=True), 1):
        if w is not None and w != h and not (can_be_padded and axis == 1 and h < w):
            return False
    return True


def _pad(value: np.ndarray, shape: tuple[int | None, ...]) -> np.ndarray:
    if value.ndim < 2 or shape[1] is None or shape[1] == value.shape[1]:
        return value
    short = shape[1] - value.shape[1]
    return np.pad(value, [(0, 0), (0, short)] + [(0, 0)] * (value.ndim - 2))
