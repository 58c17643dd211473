"""Distillation: a small model learns what a large one answers, and how it comes to it.

Hinton et al., https://arxiv.org/abs/1503.02531 (logits); Jiao et al., "TinyBERT", https://arxiv.org/abs/1909.10351
(hidden states, attention, embeddings); Wang et al., "MiniLM", https://arxiv.org/abs/2002.10957 (relations).

The student stays an ordinary model. What is trained is a second model over the same layers that also gives what is
inside, so pruning, quantization and callbacks work on it as on any other.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfopt._base.spread import ALONE, Workers
from tfopt._keras import extras, keras_api
from tfopt._keras.input_facts import facts_of, size_to_try
from tfopt._keras.keras_io import Inputs, inputs_of
from tfopt.compress.base import Option, Prepared, attach, attached, detach
from tfopt.compress.taught import answered_by
from tfopt.data.cache import cached
from tfopt.errors import InputError
from tfopt.numerics.distillation import Kind, divergence, hidden_error, relation_divergence
from tfopt.structure.features import Features, features_of
from tfopt.structure.inlined import inlined
from tfopt.structure.nodes import functional, struct_of
from tfopt.structure.outputs import (
    kinds_of,
    labels_by_loss,
    loss_of_answers,
    loss_of_labels,
    outputs_by_name,
    outputs_of,
    title,
)

_NAME = "distill"
_KINDS = ("logits", "labels", "hidden", "attention", "embeddings", "relations")


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """What counts how much; what counts nothing is not computed.

    Attributes:
        logits: divergence from what the teacher answers, by the kind of every output.
        labels: the loss that fits an output, with the labels of the data.
        hidden: squared error of hidden states, through a learned projection where widths differ.
        attention: divergence of attention maps; both need as many heads.
        embeddings: squared error of what the first layer takes.
        relations: divergence of MiniLM's relations between the values of the last mapped layer.
        temperature: softens logits, above 0.
        layers: student's layer -> teacher's; by default spread evenly, the last one from the last one.
        outputs: output -> what it holds, where that is not what its last activation says: "logits" or
            "probabilities" of classes, "independent" probabilities, or "values"; the only one is called "logits".
        teacher: the model to learn from, for `prepare`.
    """

    logits: float = 1.0
    labels: float = 0.0
    hidden: float = 0.0
    attention: float = 0.0
    embeddings: float = 0.0
    relations: float = 0.0
    temperature: float = 1.0
    layers: Mapping[int, int] | None = None
    outputs: Mapping[str, Kind] | None = None
    teacher: Any = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in _KINDS:
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not any(getattr(self, name) for name in _KINDS):
            raise InputError(f"nothing to learn: one of {', '.join(_KINDS)} must be above 0")
        if not self.temperature > 0:
            raise InputError(f"temperature must be above 0, got {self.temperature}")

    @property
    def looks_inside(self) -> bool:
        """Whether more than outputs count."""
        return any((self.hidden, self.attention, self.embeddings, self.relations))


Config = DistillConfig


def prepare(model: Any, config: DistillConfig) -> Prepared:
    """What is trained in the student's place, and what makes its lessons.

    Raises:
        InputError: no teacher, or one that does not fit.
    """
    if config.teacher is None:
        raise InputError("distillation needs a teacher: DistillConfig(teacher=model, ...)")
    settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "teacher"}
    distiller = Distiller(model, config.teacher, **settings)
    return Prepared(distiller.model, [], helpers=distiller.projections, lessons=distiller)


def finish(model: Any) -> Any:
    """The student of the model that was trained."""
    if not is_attached(model):
        raise InputError(f"model {model.name!r} learns from no teacher; make a Distiller and train its model")
    distiller: Distiller = detach(model, _NAME)
    return distiller.finish()


def is_attached(model: Any) -> bool:
    return _NAME in attached(model)


def explain(model: Any) -> dict[str, str]:
    """Nothing of single matrices."""
    return {}


def options(model: Any) -> Iterator[Option]:
    """None: a student is made by other means, and learns then."""
    yield from ()


class Distiller:
    """A student, its teacher, and the model that is trained.

    Args:
        student: a built functional model of either generation; its weights are trained.
        teacher: a model of the same generation with the same inputs, outputs and classes; it is not changed.
        **settings: fields of `DistillConfig`.

    Attributes:
        model: what to fit, after `compile`, on what `teach` gives; it shares the student's layers.
        layers: student's layer -> the teacher's that it learns from, where more than outputs count.
        asked: of the teacher, as a short name.
        projections: names of its layers that are not the student's, for the `exclude` of techniques on it.

    Raises:
        InputError: models that do not fit together, or layers that do not exist.
    """

    def __init__(self, student: Any, teacher: Any, **settings: Any) -> None:
        self.config = DistillConfig(**settings)
        self.student, self.teacher = keras_api.check_model(student), keras_api.check_model(teacher)
        _check_pair(student, teacher)
        self._kinds = kinds_of(student, self.config.outputs)
        heat, taught = self.config.temperature, kinds_of(teacher, self.config.outputs)
        self._losses = {
            title("logits", name): loss_of_answers(name, taught[name], kind, temperature=heat)
            for name, kind in (self._kinds.items() if self.config.logits else ())
        }
        self._keras = keras_api.keras_module(keras_api.generation_of(student))
        self._inputs = inputs_of(teacher)
        self._masks = facts_of(teacher, self._inputs, size_to_try(teacher, self._inputs)).masks
        theirs = ours = None
        self.layers: dict[int, int] = {}
        if self.config.looks_inside:
            # Layers inside a model that is called, as a backbone is by a task, are seen in a graph with them.
            student, teacher = inlined(student), inlined(teacher)
            ours, theirs = features_of(student), features_of(teacher)
            self.layers = _pairs(self.config.layers, ours, theirs)
        self.projections: list[str] = []
        wanted = _chosen(self.config, teacher, theirs, layers=list(self.layers.values()))
        found = _chosen(self.config, student, ours, layers=list(self.layers))
        found = {name: self._fitted(name, tensor, wanted[name]) for name, tensor in found.items()}
        self._taught = _model(self._keras, teacher, wanted)
        # The teacher's part alone, so that students with other layers share what it answered.
        asked = (sorted(wanted), list(self.layers.values()), bool(self.config.labels))
        self.asked = hashlib.sha256(repr(asked).encode()).hexdigest()[:12]
        if self.config.labels:
            for name, output in outputs_by_name(student).items():
                own = title("labels", name)
                found[own] = self._keras.layers.Activation("linear", name=own)(output)
                self._losses[own] = loss_of_labels(self._keras, self._kinds[name])
        self._outputs = tuple(found)
        self.model = _model(self._keras, student, found)
        attach(self.model, _NAME, self)

    def compile(self, optimizer: Any, **settings: Any) -> None:
        """Compiles `model` with the losses; further arguments go to Keras's `compile`."""
        losses = {
            "hidden": hidden_error, "attention": divergence, "embeddings": hidden_error,
            "relations": relation_divergence,
        }  # fmt: skip
        kinds = {name: name.partition("_")[0] for name in self._outputs}
        # Each kind counts as a whole, however many layers it has.
        weights = {n: getattr(self.config, kind) / list(kinds.values()).count(kind) for n, kind in kinds.items()}
        wanted = {name: self._losses.get(name) or losses[kind] for name, kind in kinds.items()}
        self.model.compile(optimizer, loss=wanted, loss_weights=weights, **settings)

    def teach(
        self,
        data: tf.data.Dataset,
        cache: str | Path | None = None,
        *,
        epoch: Any = None,
        workers: Workers | int = ALONE,
    ) -> tf.data.Dataset:
        """Batches for `model.fit`: the inputs, and what the teacher makes of them.

        Args:
            data: batches of inputs, or of (inputs, labels), which are needed where labels count.
            cache: folder for TFRecord files with all of it: the teacher runs once, now or in an earlier run, and
                later passes shuffle whole batches. Other data is told by its shapes and number of batches alone.
            epoch: of a cache, the number of the pass, on which the order depends, or a variable that holds it.
            workers: of a cache, who runs the teacher; a number is one of processes.

        Raises:
            InputError: no labels where they count.
            DataError: a cache that is damaged, or of something else.
        """
        spec = data.element_spec
        if isinstance(spec, tuple) and len(spec) == len(self._inputs.specs) and _are_tensors(spec, self._inputs):
            data = data.map(lambda *inputs: (inputs,))  # the inputs of a model of several, without labels
        elif not isinstance(spec, tuple):
            data = data.map(lambda inputs: (inputs,))
        labelled = isinstance(spec, tuple) and len(data.element_spec) == 2
        if len(data.element_spec) > 2:
            raise InputError(f"data must give inputs or (inputs, labels), got {len(data.element_spec)} parts")
        if self.config.labels and not labelled:
            raise InputError("labels count, but the data has none; set labels=0 or give (inputs, labels)")

        if self.config.labels:
            labels_by_loss(data.element_spec[1], list(self._kinds))  # raises here, and not in the traced function

        def lesson(batch: tuple[Any, ...], found: Mapping[str, tf.Tensor]) -> tuple[Any, dict[str, tf.Tensor]]:
            masks = self._masks_in(batch[0])
            targets = {name: _without_padding(name, value, masks) for name, value in found.items()}
            if self.config.labels:
                targets |= labels_by_loss(batch[1], list(self._kinds))
            return batch[0], targets

        lessons = data.map(lambda *batch: lesson(batch, self._taught(batch[0], training=False)))
        if cache is None:
            return lessons
        fingerprint = self._fingerprint(lessons.element_spec, int(lessons.cardinality()))
        who = Workers.of(workers)
        made = None
        if who.elsewhere:
            answers = answered_by(who, self._taught, data)
            made = (lesson(batch, found) for batch, found in answers)
        return cached(lessons, cache, fingerprint, epoch=epoch, made=made)

    def _masks_in(self, given: Any) -> dict[str, tf.Tensor]:
        """The masks of padding, whatever they are called."""
        names = list(self._inputs.specs)
        values = given if isinstance(given, Mapping) else dict(zip(names, tf.nest.flatten(given), strict=False))
        return {name: values[name] for name in self._masks if name in values}

    def finish(self) -> Any:
        """The student, with what other techniques attached to `model`; `tfopt.finish` ends all of them."""
        ours = extras.of(self.student)
        members = {**ours, **extras.of(self.model)}
        if members:
            extras.put(self.student, members)
        for technique, what in attached(self.model).items():
            if technique != _NAME:
                attach(self.student, technique, what)
        return self.student

    def _fitted(self, name: str, tensor: Any, wanted: Any) -> Any:
        """A student's tensor in the shape of the teacher's.

        Raises:
            InputError: shapes that no projection makes equal.
        """
        have, want = tuple(tensor.shape), tuple(wanted.shape)
        if name.startswith(("hidden", "embeddings")) and have[-1] != want[-1]:
            self.projections.append(f"{name}_projection")
            return self._keras.layers.Dense(want[-1], use_bias=False, name=self.projections[-1])(tensor)
        if name.startswith(("attention", "relations")) and have[1] != want[1]:
            raise InputError(
                f"{name.partition('_')[0]} needs as many heads in both, got {have[1]} in the student and {want[1]} "
                "in the teacher; distill hidden states instead"
            )
        return tensor

    def _fingerprint(self, *what: Any) -> str:
        """Of the teacher's weights and what it is asked for."""
        digest = hashlib.sha256(repr((self.asked, what)).encode())
        for weight in keras_api.weights(self.teacher):
            digest.update(weight.path.encode())
            digest.update(keras_api.to_numpy(weight.variable).tobytes())
        return digest.hexdigest()


_PARTS = ("encoder", "decoder")  # as names of masks and outputs begin in models that have both


def _are_tensors(spec: tuple[Any, ...], inputs: Inputs) -> bool:
    return inputs.style == "list" and not any(isinstance(part, tuple | list | dict) for part in spec)


def _chosen(config: DistillConfig, model: Any, features: Features | None, layers: list[int]) -> dict[str, Any]:
    """The tensors of a model that count, by name; layers of student and teacher have the same numbers in names."""
    found = outputs_of(model) if config.logits else {}
    if features is None:
        return found
    if config.embeddings:
        found["embeddings"] = features.embeddings
    for number, index in enumerate(layers):
        if config.hidden:
            found[f"hidden_{number}"] = features.hidden[index]
        if config.attention:
            found[f"attention_{number}"] = _seen(features.attention[index], model)
    if config.relations:
        found["relations"] = _seen(features.values[layers[-1]], model)
    return found


def _model(keras: Any, model: Any, outputs: dict[str, Any]) -> Any:
    return keras.Model(struct_of(functional(model), "inputs"), outputs, name=f"{model.name}_lessons")


def _seen(tensor: Any, model: Any) -> Any:
    if tensor is None:
        raise InputError(
            f"attention of model {model.name!r} happens inside layers and cannot be seen; distill hidden states, "
            "or build it with models.bert or models.causal_lm"
        )
    return tensor


def _without_padding(name: str, value: tf.Tensor, masks: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """What belongs to tokens, zeros elsewhere; the logits of a whole text as they are.

    Of several masks, as models that translate have them, the one that begins as the output does ("encoder_...").
    """
    part = name.removeprefix("logits_").partition("_")[0]
    begins = [mask for key, mask in masks.items() if key.partition("_")[0] == part]
    told_apart = part in _PARTS and any(key.partition("_")[0] in _PARTS for key in masks)
    chosen = begins if told_apart or len(masks) != 1 else list(masks.values())
    if len(chosen) != 1 or len(value.shape) < 3:
        return value
    keep, axis = tf.cast(chosen[0], value.dtype), 2 if len(value.shape) == 4 else 1
    if None not in (keep.shape[1], value.shape[axis]) and keep.shape[1] != value.shape[axis]:
        return value  # of another part of the model
    masked = value * (keep[:, None, :, None] if axis == 2 else keep[:, :, None])
    masked.set_shape(value.shape)
    return masked


def _check_pair(student: Any, teacher: Any) -> None:
    if keras_api.generation_of(student) != keras_api.generation_of(teacher):
        raise InputError("student and teacher must be of one Keras generation")
    ours, theirs = ({n: tuple(t.shape) for n, t in outputs_of(model).items()} for model in (student, teacher))
    if ours != theirs:
        told = (", ".join(f"{name} {shape}" for name, shape in some.items()) for some in (ours, theirs))
        raise InputError(f"student and teacher must have the same outputs and classes, got {' and '.join(told)}")
    taken = [_told_apart(inputs_of(model)) for model in (student, teacher)]
    if taken[0] != taken[1]:
        raise InputError(f"student and teacher must take the same inputs, got {taken[0]} and {taken[1]}")
    members = [extras.of(model) for model in (student, teacher)]
    for name in extras.TOKENIZERS:
        if name in members[0] and name in members[1] and members[0][name] != members[1][name]:
            raise InputError("student and teacher have different tokenizers, so the same ids mean different texts")


def _told_apart(inputs: Inputs) -> list[str]:
    """The names of inputs that are given by name, else their shapes."""
    by_name = inputs.style == "dict"
    return sorted(inputs.specs) if by_name else [str(tuple(spec.shape)) for spec in inputs.specs.values()]


def _pairs(given: Mapping[int, int] | None, student: Features, teacher: Features) -> dict[int, int]:
    """Student's layer -> teacher's, in the order of the student's."""
    ours, theirs = len(student.hidden), len(teacher.hidden)
    if given is None:
        ratio = (theirs + teacher.pools_early) / (ours + student.pools_early)
        return {i: min(theirs - 1, max(0, round((i + 1) * ratio) - 1)) for i in range(ours)}
    if not given:
        raise InputError("layers must map one layer or more of the student, got none")
    for mine, other in given.items():
        if not 0 <= mine < ours or not 0 <= other < theirs:
            raise InputError(
                f"layers must map [0, {ours}) to [0, {theirs}), the layers of student and teacher, got "
                f"{mine}: {other}"
            )
    return dict(sorted(given.items()))
