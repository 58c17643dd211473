"""What is given to an artifact is refused where it does not fit; nothing is cut, wrapped or clamped."""

import threading

import numpy as np
import pytest

import tfopt
from tfopt.errors import InputError
from tfopt.models import BertConfig, bert
from tfopt.runtime.inputs import checked

from .decoders import make


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """An encoder of 50 tokens and two types, in every format."""
    folder, model = tmp_path_factory.mktemp("inputs"), bert(BertConfig(50, 16, 1, 2, 32, 20), 3, generation="keras")
    tfopt.models.save(model, folder / "m.keras")
    tfopt.export(model, folder / "saved")
    tfopt.export(model, folder / "xla", jit_compile=True, lengths=[8])
    tfopt.export(model, folder / "m.tflite", lengths=[8])
    return [tfopt.Predictor.load(folder / name) for name in ("m.keras", "saved", "xla", "m.tflite")]


def ids(**changes):
    good = {"input_ids": np.full((2, 8), 4), "attention_mask": np.ones((2, 8), np.int32)}
    return {**good, **changes}


def with_one(value, dtype=np.int64):
    array = np.full((2, 8), 4, dtype)
    array[1, 3] = value
    return array


BAD = {
    "an id beyond the table": (ids(input_ids=with_one(50)), "takes ids from 0 to 49, got 50|does not take"),
    "an id below zero": (ids(input_ids=with_one(-1)), "got -1|does not take"),
    "an id that wraps": (ids(input_ids=with_one(2**32 + 4)), "got 4294967300"),
    "an id that is cut": (ids(input_ids=with_one(4.5, np.float64)), "whole numbers, got 4.5: it would be cut"),
    "no number": (ids(input_ids=with_one(np.nan, np.float64)), "whole numbers, got nan"),
    "texts": (ids(input_ids=np.full((2, 8), "a")), "must hold numbers, got <U1"),
    "rows of several lengths": (ids(input_ids=[[1, 2], [3]]), "rows have one length"),
    "nothing in the rows": ({n: np.zeros((2, 0), int) for n in ids()}, "is empty, its shape is"),
    "no rows": ({n: np.zeros((0, 8), int) for n in ids()}, "is empty, its shape is"),
    "a mask of twos": (ids(attention_mask=with_one(2)), "must hold 0 and 1, got"),
    "a mask of halves": (ids(attention_mask=with_one(0.5, np.float32)), "whole numbers, got 0.5"),
    "a mask of another shape": (ids(attention_mask=np.ones((2, 7), int)), "must have the shape of input_ids"),
    "a row without a token": (ids(attention_mask=np.eye(2, 8, dtype=int)[:, ::-1] * [[0], [1]]), "no token in row 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_by_every_format(artifacts, case):
    inputs, says = BAD[case]
    for predictor in artifacts:
        with pytest.raises(InputError, match=says):
            predictor.predict(inputs)


def test_what_fits_is_taken_whatever_its_type(artifacts):
    expected = artifacts[0].predict(ids())["logits"]
    for given in (np.float64, np.int8, np.uint64, list):
        value = ids()["input_ids"]
        value = value.tolist() if given is list else value.astype(given)
        for predictor in artifacts:
            found = predictor.predict(ids(input_ids=value, attention_mask=np.ones((2, 8), bool)))["logits"]
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_floats_beyond_their_range_are_refused():
    with pytest.raises(InputError, match="takes float32 of at most 3.403e\\+38, got 1e\\+300"):
        checked("x", np.array([1.0, 1e300]), dtype=np.dtype(np.float32), limit=None)
    assert np.isinf(checked("x", np.array([np.inf]), dtype=np.dtype(np.float32), limit=None)).all()


def test_a_saved_model_knows_the_tables_of_each_input(artifacts, tmp_path):
    assert artifacts[1].described.limits == artifacts[2].described.limits == {"input_ids": 50}
    (artifacts[1].path / "assets.extra" / "tfopt_inputs.json").rename(tmp_path / "x")
    assert tfopt.Predictor.load(artifacts[1].path).described.limits == {}


def test_threads_that_share_a_generator_get_their_own_texts(tmp_path):
    path = tmp_path / "m.tflite"
    tfopt.export(make("llama"), path)
    config = tfopt.GenerateConfig(max_tokens=12)
    for generator in (tfopt.Generator.load(path), tfopt.Generator.load(make("llama"), runtime="xla")):
        prompts = [[3 + i, 5, 7 + i] for i in range(6)]
        expected = [generator.generate([prompt], config)[0].tokens for prompt in prompts]
        found: dict[int, list] = {}

        def ask(i, generator=generator, found=found, prompts=prompts):
            found[i] = [generator.generate([prompts[i]], config)[0].tokens for _ in range(3)]

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {i: [tokens] * 3 for i, tokens in enumerate(expected)}


def test_a_mask_of_any_name_is_checked_in_every_format(keras, tmp_path):
    k = keras.layers
    text, real = k.Input((8,), dtype="int32", name="tokens"), k.Input((8,), dtype="int32", name="is_text")
    table = k.Embedding(50, 16)(text)
    see = k.Reshape((1, -1))(real)
    x = k.LayerNormalization()(k.Add()([table, k.MultiHeadAttention(2, 8)(table, table, attention_mask=see)]))
    scores = k.Dot(axes=1)([x, k.Rescaling(1.0)(real)])
    model = keras.Model({"tokens": text, "is_text": real}, k.Dense(3)(scores))
    model.save(tmp_path / "m.keras")
    tfopt.export(model, tmp_path / "m.tflite")
    tfopt.export(model, tmp_path / "m")
    for name in ("m.keras", "m.tflite", "m"):
        predictor = tfopt.Predictor.load(tmp_path / name)
        good = {"tokens": np.full((2, 8), 4), "is_text": np.ones((2, 8), np.int32)}
        assert np.isfinite(next(iter(predictor.predict(good).values()))).all()
        with pytest.raises(InputError, match="must hold 0 and 1, got"):
            predictor.predict({**good, "is_text": with_one(2)})
        with pytest.raises(InputError, match="no token in row 0"):
            predictor.predict({**good, "is_text": np.eye(2, 8, dtype=int)[:, ::-1] * [[0], [1]]})
