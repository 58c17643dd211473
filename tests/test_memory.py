"""What is said of a training's memory before it starts."""

import logging
import sys

import numpy as np
import pytest
import tensorflow as tf

from tfopt._base.memory import free_memory_bytes, memory_bytes, peak_memory_bytes
from tfopt._keras import keras_api
from tfopt.models import BertConfig, bert
from tfopt.structure.recompute import Recomputed
from tfopt.train import TrainConfig, fit, make_strategy, memory
from tfopt.train.live_tensors import peak_bytes
from tfopt.train.step import TrainStep
from tfopt.train.strategy import scope

MB = 2**20  # of a tensor of (512, 512) floats


def most(function, *shapes):
    specs = [tf.TensorSpec(shape) for shape in shapes]
    return peak_bytes(tf.function(function, autograph=False).get_concrete_function(*specs).graph) / MB


def test_tensors_live_until_their_last_reader():
    size = [512, 512]
    assert most(lambda x: tf.matmul(x, x), size) == 1
    assert most(lambda x: tf.matmul(tf.matmul(tf.matmul(x, x), x), x), size) == 2, (
        "one that is read, one that is made"
    )
    assert most(lambda x: tf.exp(tf.tanh(tf.matmul(x, x))), size) == 1, "written over"
    assert most(lambda x: tf.reshape(tf.identity(tf.matmul(x, x)), [-1]), size) == 1, "the same buffer"

    def kept(x):
        first = tf.matmul(x, x)
        return tf.matmul(tf.exp(first), first)

    assert most(kept, size) == 3
    assert most(lambda x: (tf.matmul(x, x), tf.matmul(x, x))[1], size) == 1, "what nobody reads is not computed"


def test_gradients_keep_what_the_way_back_needs():
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = x
            for _ in range(8):
                y = tf.tanh(tf.matmul(y, x))
        return tape.gradient(y, x)

    assert 8 <= most(gradient, [512, 512]) <= 13


def test_functions_and_loops_count_what_is_inside():
    def loop(x):
        return tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, tf.matmul(tf.matmul(y, x), x)), (0, x))[1]

    assert 2 <= most(loop, [512, 512]) <= 4
    inner = tf.function(lambda x: tf.matmul(tf.matmul(x, x), x), autograph=False)
    assert 2 <= most(lambda x: inner(x), [512, 512]) <= 3


def test_what_the_system_tells():
    held, peak, free = memory_bytes(), peak_memory_bytes(), free_memory_bytes()
    if held is None and sys.platform != "linux":  # where CI runs, it tells
        pytest.skip("the system does not tell")
    assert 10 * MB < held <= peak
    assert free > 0
    block = np.ones(64 * MB, np.uint8)
    assert memory_bytes() - held > 50 * MB, len(block)


def of_training(generation, **changes):
    """The estimate of a training that is not run."""
    keras = keras_api.keras_module(generation)
    model = bert(BertConfig(6000, 128, 3, 4, 512, 64), 3, generation=generation)
    config = TrainConfig(epochs=1, batch_size=32, learning_rate=1e-3, **changes)
    model.compile(keras.optimizers.Adam(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.optimizer.build(model.trainable_variables)
    step = TrainStep(
        model, strategy=None, part_rows=None, clipping=("norm", 0.0), jit_compile=False,
        network=Recomputed(model) if config.gradient_checkpointing else None,
    )  # fmt: skip
    ids = tf.TensorSpec([None, 64], tf.int32)
    spec = {"input_ids": ids, "attention_mask": ids}, tf.TensorSpec([None], tf.int32)
    return memory.estimate_memory(step, spec, config=config)


def test_what_saves_memory_is_foretold_to(generation):
    plain = of_training(generation)
    weights = plain.copies
    assert plain.tensors > 3 * weights
    assert of_training(generation, accumulate=4).tensors - 2 * weights < 0.5 * plain.tensors
    assert of_training(generation, gradient_checkpointing=True).tensors < 0.6 * plain.tensors
    assert plain.peak > plain.held > 100 * MB


def trained(model, data, caplog, monkeypatch, **settings):
    """What is said of a small training, as of a large one."""
    monkeypatch.setattr(memory, "_LEAST_WEIGHTS", 1)
    strategy = settings.pop("strategy", None)
    keras = keras_api.keras_module(keras_api.generation_of(model))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with caplog.at_level(logging.INFO):
        fit(
            model, lambda number, skip: data, steps=1, strategy=strategy,
            config=TrainConfig(epochs=1, batch_size=4, learning_rate=1e-3),
            compile_with=lambda o, jit_compile: model.compile(o, loss, metrics=["accuracy"]), **settings,
        )  # fmt: skip
    return caplog.text


def test_replicas_and_metrics(generation, caplog, monkeypatch):
    strategy = make_strategy(2)
    with scope(strategy):
        model = bert(BertConfig(60, 16, 1, 2, 32, 16), 3, generation=generation)
    ids = np.ones((4, 8), np.int32)
    data = tf.data.Dataset.from_tensor_slices(({"input_ids": ids, "attention_mask": ids}, ids[:, 0])).batch(4)
    assert "train needs about" in trained(model, data, caplog, monkeypatch, strategy=strategy)


def test_models_of_one_length_and_data_that_says_nothing(generation, caplog, monkeypatch):
    layers = keras_api.keras_module(generation).layers
    start = layers.Input((8,))
    model = keras_api.keras_module(generation).Model(start, layers.Dense(3)(start))

    def batches():
        yield np.ones((4, 8), np.float32), np.zeros(4, np.int32)

    signature = tf.TensorSpec([None, None], tf.float32), tf.TensorSpec([None], tf.int32)
    data = tf.data.Dataset.from_generator(batches, output_signature=signature)
    assert "train needs about" in trained(model, data, caplog, monkeypatch, longest=5)


def test_an_estimate_that_fails_is_no_matter(generation, caplog, monkeypatch):
    def broken(*_, **__):
        raise ValueError("whatever\nit says")

    monkeypatch.setattr(memory, "estimate_memory", broken)
    model = bert(BertConfig(60, 16, 1, 2, 32, 16), 3, generation=generation)
    ids = np.ones((4, 8), np.int32)
    data = tf.data.Dataset.from_tensor_slices(({"input_ids": ids, "attention_mask": ids}, ids[:, 0])).batch(4)
    assert "what memory it needs is not known (whatever)" in trained(model, data, caplog, monkeypatch)


def test_too_little_memory_is_a_warning(caplog, monkeypatch):
    monkeypatch.setattr(memory, "free_memory_bytes", lambda: MB)
    model = bert(BertConfig(6000, 192, 1, 4, 64, 64), 3)
    ids = np.ones((2, 8), np.int32)
    data = tf.data.Dataset.from_tensor_slices(({"input_ids": ids, "attention_mask": ids}, ids[:, 0])).batch(2)
    with caplog.at_level(logging.INFO):
        fit(
            model, lambda number, skip: data, steps=1, title="large",
            config=TrainConfig(epochs=1, batch_size=2, learning_rate=1e-3),
            compile_with=lambda o, jit_compile: model.compile(o, "sparse_categorical_crossentropy"),
        )  # fmt: skip
    assert "large needs about" in caplog.text
    assert "GB are free; set gradient_checkpointing, accumulate" in caplog.text
