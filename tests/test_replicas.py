"""Every technique gives the same weights on one replica, on two, and on two workers, for the same batches."""

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import TINY
from tests.test_contract import EACH, OTHER_WAYS
from tfopt._keras import keras_api
from tfopt.compress.finish import finish_all
from tfopt.compress.techniques import TECHNIQUES
from tfopt.models import bert
from tfopt.train import TrainConfig, fit, make_strategy
from tfopt.train.strategy import scope

BATCH, STEPS = 8, 20
CASES = {"none": None, **EACH, **OTHER_WAYS}


def records():
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 300, (BATCH * STEPS - 3, 12)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[::2, 7:] = 0
    return tf.data.Dataset.from_tensor_slices(
        ({"input_ids": ids * mask, "attention_mask": mask}, (ids[:, 0] % 3).astype(np.int64))
    ).batch(BATCH)


def trained(case, generation, strategy):
    """Weights by path, and what is observed while they learn, after the steps of one case."""
    keras = keras_api.keras_module(generation)
    keras.utils.set_random_seed(1)
    with scope(strategy):
        model = bert(TINY, 3, generation=generation)
        teacher = bert(TINY, 3, generation=generation)
        prepared = None
        if CASES[case] is not None:
            name, config, _ = CASES[case]
            if name == "distill":
                config = type(config)(**{**vars(config), "teacher": teacher})
            prepared = next(t for t in TECHNIQUES if t.name == name).load().prepare(model, config)
    trains = prepared.model if prepared else model
    lessons = prepared.lessons if prepared else None
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def compile_with(optimizer, jit_compile):
        lessons.compile(optimizer) if lessons else trains.compile(optimizer, loss)

    data = records() if lessons is None else lessons.teach(records())
    fit(
        trains, lambda number, skip: data.skip(skip), steps=STEPS, strategy=strategy,
        config=TrainConfig(epochs=1, batch_size=BATCH, learning_rate=1e-3, clip_norm=0.5),
        callbacks=prepared.callbacks if prepared else None, compile_with=compile_with,
    )  # fmt: skip
    state = {f"state/{i}": keras_api.to_numpy(v) for i, v in enumerate(prepared.state if prepared else ())}
    finished = finish_all(trains) if prepared else trains
    return state | {w.path: keras_api.to_numpy(w.variable) for w in keras_api.weights(finished)}


def check_same(found, expected):
    assert found.keys() == expected.keys() and len(found) > 5
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, atol=1e-5, rtol=1e-5, err_msg=path)
        np.testing.assert_array_equal(found[path] == 0, value == 0, err_msg=path)


@pytest.fixture(scope="module")
def alone():
    found = {}

    def of(case, generation):
        if (case, generation) not in found:
            found[case, generation] = trained(case, generation, None)
        return found[case, generation]

    return of


@pytest.mark.parametrize("case", CASES)
def test_two_replicas(case, generation, alone):
    check_same(trained(case, generation, make_strategy(2)), alone(case, generation))
