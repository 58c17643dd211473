"""The contract that every technique keeps, in both generations, on one replica and on two."""

import dataclasses
import re

import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tfopt._keras import keras_api
from tfopt._keras.keras_io import inputs_of
from tfopt._keras.loading import load_model
from tfopt.compress import cluster, distill, lora, low_rank, prune, quantize, shrink
from tfopt.compress.finish import finish_all
from tfopt.compress.techniques import NAMES, TECHNIQUES
from tfopt.errors import InputError
from tfopt.recipe.techniques import VariantSection
from tfopt.schedules import ConstantSparsity
from tfopt.train.strategy import scope


def half_zero(before, kernel):
    return abs((kernel == 0).mean() - 0.5) < 0.01


def few_values(most):
    return lambda before, kernel: max(len(np.unique(row)) for row in kernel) <= most


def at_most(most):
    return lambda before, kernel: len(np.unique(kernel)) <= most


def fewer_units(before, kernel):
    return kernel.shape == (32, 32) or 32 in kernel.shape


def low_change(before, kernel):
    return np.linalg.matrix_rank(kernel - before, tol=1e-5) <= 2


def anything(before, kernel):
    return np.isfinite(kernel).all()


# Technique, configuration, and what is then true of every kernel, as (outputs, inputs). A row of the table without a
# row here fails.
EACH = {
    "prune": ("prune", prune.PruneConfig(ConstantSparsity(0.5, 0, frequency=1)), half_zero),
    "cluster": ("cluster", cluster.ClusterConfig(8), at_most(8)),
    "quantize, 3 bits": ("quantize", quantize.QuantizeConfig(weight_bits=3), few_values(7)),
    "shrink during": ("shrink", shrink.ShrinkConfig(neurons=0.5, heads=0.5), fewer_units),
    "factorize": ("factorize", low_rank.FactorizeConfig(rank=4), anything),
    "lora": ("lora", lora.LoraConfig(2), low_change),
    "distill": ("distill", distill.DistillConfig(hidden=1.0), anything),
}  # fmt: skip
OTHER_WAYS = {
    "quantize, learned": ("quantize", quantize.QuantizeConfig(weight_bits=2, weight_scale="learned"), few_values(3)),
    "quantize, static": (
        "quantize", quantize.QuantizeConfig(activations="static", weight_bits=4, freeze_after=1), few_values(15),
    ),
    "shrink before": ("shrink", shrink.ShrinkConfig(neurons=0.5, heads=0.5, when="before"), fewer_units),
}  # fmt: skip
GETS_SMALLER = ("shrink", "factorize")


def test_every_technique_has_a_case_a_section_and_public_names():
    assert {name for name, _, _ in EACH.values()} == set(NAMES)
    sections = {
        name for name, field in VariantSection.model_fields.items() if name not in ("name", "start", "train")
    }
    assert sections == set(NAMES)
    for technique in TECHNIQUES:
        for name in technique.public:
            owner = tfopt.callbacks if name.startswith("callbacks.") else tfopt
            assert getattr(owner, name.removeprefix("callbacks."))
        module = technique.load()
        assert dataclasses.is_dataclass(module.Config) and module.Config.__dataclass_params__.frozen
        assert set(technique.spoils) <= set(NAMES) and bool(technique.why) == bool(technique.spoils)
        assert hasattr(module, "at_once") == ("at once" in technique.stages)


@pytest.mark.parametrize("case", EACH)
def test_prepare_train_finish_save_reload_export(case, make_bert, keras, strategy, tokens, tmp_path):
    keeps_the_contract(EACH[case], make_bert, keras, strategy=strategy, tokens=tokens, tmp_path=tmp_path)


@pytest.mark.turns
@pytest.mark.parametrize("case", OTHER_WAYS)
def test_other_ways_of_a_technique(case, make_bert, keras, strategy, tokens, tmp_path):
    keeps_the_contract(OTHER_WAYS[case], make_bert, keras, strategy=strategy, tokens=tokens, tmp_path=tmp_path)


def keeps_the_contract(case, make_bert, keras, strategy, tokens, tmp_path):
    name, config, holds = case
    technique = next(t for t in TECHNIQUES if t.name == name).load()
    model = make_bert(strategy)
    before = {w.path: keras_api.to_numpy(w.variable).copy() for w in keras_api.weights(model)}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with scope(strategy):
        if name == "distill":
            config = dataclasses.replace(config, teacher=make_bert())
        prepared = technique.prepare(model, config)
        compiled = prepared.lessons or prepared.model
        compiled.compile("adam", **({} if prepared.lessons else {"loss": loss}))
    data = tf.data.Dataset.from_tensor_slices((tokens, np.arange(16) % 3)).batch(8)
    data = prepared.lessons.teach(data) if prepared.lessons else data
    prepared.model.fit(data, epochs=1, callbacks=prepared.callbacks, verbose=0)
    if "while" in next(t for t in TECHNIQUES if t.name == name).stages and getattr(config, "when", "") != "before":
        assert technique.is_attached(prepared.model)
        finished = tfopt.finish(prepared.model)
    else:
        finished = finish_all(prepared.model)
    assert not any(t.load().is_attached(finished) for t in TECHNIQUES)
    with pytest.raises(InputError, match="is plain already, there is nothing to finish"):
        tfopt.finish(finished)
    assert type(finished) is type(model)
    assert {type(layer).__module__.partition(".")[0] for _, layer in keras_api.walk(finished)} == {keras.__name__}
    keras_api.save_model(finished, tmp_path / "model.keras")
    reloaded = load_model(tmp_path / "model.keras")
    expected = np.asarray(reloaded(tokens, training=False))
    if strategy is None:
        np.testing.assert_allclose(np.asarray(finished(tokens, training=False)), expected, atol=1e-6)
    artifact = tfopt.export(reloaded, tmp_path / "m.tflite", format="tflite", lengths=[12], representative=tokens)
    assert artifact.max_abs_error < 1e-5
    found = tfopt.Predictor.load(artifact.path).predict(tokens)["logits"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    stored = [w.array for w in tfopt.Predictor.load(artifact.path).weights() if w.is_kernel]
    assert stored and (name != "prune" or all(holds(None, kernel) for kernel in stored))
    kernels = {w.path: keras_api.to_numpy(w.variable) for w in keras_api.weights(reloaded) if w.name == "kernel"}
    assert kernels and all(holds(before.get(path, value).T, value.T) for path, value in kernels.items())
    smaller = sum(v.size for v in kernels.values()) < sum(v.size for p, v in before.items() if p.endswith("kernel"))
    assert smaller == (name in GETS_SMALLER)


@pytest.mark.parametrize("name", NAMES)
def test_what_would_be_done_is_told_and_the_model_stays(name, make_bert, tokens):
    technique = next(t for t in TECHNIQUES if t.name == name).load()
    model = make_bert()
    expected = np.asarray(model(tokens))
    paths = {w.path for w in keras_api.weights(model)}
    said = technique.explain(model)
    assert set(said) <= paths and (said or name == "distill") and all(said.values())
    options = list(technique.options(model))
    assert len({option.key for option in options}) == len(options)
    assert (not options) == (name in ("distill", "lora", "cluster"))
    np.testing.assert_array_equal(np.asarray(model(tokens)), expected)
    assert not technique.is_attached(model)


def test_finish_ends_everything_that_works_on_one_model_in_the_right_order(make_bert, keras, tokens, tmp_path):
    """A student that is pruned, clustered and rounded while it learns, and one that loses units."""
    teacher, data = make_bert(), tf.data.Dataset.from_tensor_slices(tokens).batch(8)
    distiller = tfopt.Distiller(make_bert(), teacher)
    schedule = ConstantSparsity(0.5, 0, frequency=1)
    callbacks = [tfopt.callbacks.MagnitudePruning(schedule), tfopt.callbacks.WeightClustering(7)]
    tfopt.quantize_aware(distiller.model, weight_bits=4)
    distiller.compile("adam")
    distiller.model.fit(distiller.teach(data), callbacks=callbacks, verbose=0)
    student = tfopt.finish(distiller)
    assert student is distiller.student
    artifact = tfopt.export(student, tmp_path / "m.tflite", format="tflite", quantization="trained", lengths=[12])
    kernels = [w for w in tfopt.Predictor.load(artifact.path).weights() if w.is_kernel and w.array.size >= 1024]
    assert {w.bits for w in kernels} == {4} and all((w.array == 0).mean() > 0.45 for w in kernels)
    distiller = tfopt.Distiller(make_bert(), teacher)
    distiller.compile("adam")
    units = tfopt.callbacks.StructuredPruning(tfopt.ShrinkConfig(neurons=0.5))
    distiller.model.fit(distiller.teach(data), callbacks=[units], verbose=0)
    smaller = tfopt.finish(distiller.model)
    assert smaller.count_params() < teacher.count_params()
    assert inputs_of(smaller).specs.keys() == inputs_of(teacher).specs.keys()


def test_finish_says_what_it_is_for(make_bert):
    with pytest.raises(InputError, match=re.escape("finish() ends what quantize_aware, lora.prepare, a Distiller")):
        tfopt.finish(make_bert())
