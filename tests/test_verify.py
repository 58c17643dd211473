"""What a broken artifact must not pass: each test makes one, and sees which check finds it."""

import contextlib
import dataclasses
import importlib
from pathlib import Path

import numpy as np
import pytest
import tf_keras

import tfopt
from tests.test_export import wide_bert
from tfopt._keras import keras_api
from tfopt.errors import InputError, VerificationError
from tfopt.export import convert as converting
from tfopt.export import tflite as export_tflite
from tfopt.export import verify as export_verify
from tfopt.export.artifact import Artifact, Check
from tfopt.export.said import said_by
from tfopt.export.verify import check_outputs, limits_for
from tfopt.numerics.agreement import (
    class_agreement,
    correlation,
    log_softmax,
    rank_agreement,
    signal_to_noise,
    varies,
)
from tfopt.quantization import NAMED, QuantizeConfig
from tfopt.runtime.child import ChildRun

from .decoders import FAMILIES, logits_of, make, tokens

ROWS = np.random.default_rng(0).standard_normal((64, 5))


def test_artifacts_are_short_where_they_are_shown():
    """A notebook shows an artifact as a table, and a console in a line."""
    checks = tuple(Check(f"check {i}", 0.5, 1.0, accepted=i == 2) for i in range(40))
    artifact = Artifact(Path("m.tflite"), "tflite", None, False, (), 0.25, 1.0, checks)
    assert len(repr(artifact)) < 200 and "m.tflite" in repr(artifact)
    page = artifact._repr_html_()
    assert page.count("<tr>") == 41 and "accepted" in page and "check 39" in page


def judged(monkeypatch, found, reference, *, again=None, second=None, kind="dynamic_int8", given=True,
           limits=None, **others):  # fmt: skip
    """Holds outputs to the limits of a kind, as if an artifact had given them."""
    found, again = np.asarray(found), np.asarray(found if again is None else again)
    run = ChildRun(
        {"y": found}, None, {"y": again}, None if second is None else {"y": np.asarray(second)}, "another"
    )
    monkeypatch.setattr(export_verify, "try_in_child", lambda *_, **__: run)
    limits = limits or limits_for(kind, NAMED.get(kind))
    return check_outputs(
        "m.tflite", {"x": found}, reference={"y": np.asarray(reference)}, limits=limits, given=given, **others
    )


@pytest.mark.parametrize(
    ("break_it", "check"),
    [
        (lambda y: np.zeros_like(y) + y.mean(0), "correlation"),
        (lambda y: y[::-1], "correlation"),
        (lambda y: y[:, ::-1], "correlation"),
        (lambda y: np.where(np.arange(64)[:, None] % 3, y, 0), "correlation"),
        (lambda y: y * 0.3, "signal_to_noise"),
        (lambda y: y * np.nan, "finite"),
        (lambda y: y[:, :4], "outputs"),
    ],
    ids=["constant", "other rows", "other classes", "rows lost", "small", "nan", "shape"],
)
@pytest.mark.parametrize("kind", ["float16", "dynamic_int8", "int8", "few bits", "few bits, static"])
def test_broken_outputs_pass_no_limits(monkeypatch, kind, break_it, check):
    static = kind.endswith("static")
    config = QuantizeConfig(weight_bits=4, activations="static" if static else "dynamic")
    limits = limits_for("dynamic_int4", config) if kind.startswith("few") else None
    # What a file of few bits may differ by is looked at as well, where it is not a mean.
    most = None if kind == "few bits" else 1e9
    with pytest.raises(VerificationError) as caught:
        judged(monkeypatch, break_it(ROWS), ROWS, kind=kind, limit=most, limits=limits, static=static)
    assert caught.value.check in ((check, "max_abs_error") if kind == "few bits" else (check,))


def test_what_rounding_does_passes(monkeypatch):
    step = np.ptp(ROWS) / 60
    found = judged(monkeypatch, np.rint(ROWS / step) * step, ROWS)
    names = [check.name for check in found.checks]
    assert names == [
        "loads",
        "max_abs_error",
        "correlation",
        "signal_to_noise",
        "repeats",
        "agreement",
        "second runtime",
    ]
    assert found.agreement > 0.95 and not any(check.accepted for check in found.checks)


def test_a_model_that_always_says_the_same_shows_nothing(monkeypatch):
    """All zero in the model and in the file is no agreement."""
    zeros = np.zeros((8, 3))
    for kind in ("dynamic_int8", "int8"):
        with pytest.raises(
            VerificationError, match="'informative' failed: output 'y' of the model is the same for"
        ):
            judged(monkeypatch, zeros, zeros, kind=kind)
    assert judged(monkeypatch, zeros, zeros, kind=None).agreement is None
    found = judged(monkeypatch, zeros, zeros, accept=["informative"])
    assert [check.name for check in found.checks if check.accepted] == ["informative"]


def test_nan_is_no_agreement(monkeypatch):
    zeros = np.zeros((2, 3))
    with pytest.raises(VerificationError, match="the model itself gives NaN"):
        judged(monkeypatch, zeros, zeros * np.nan, limit=1e9)
    with pytest.raises(VerificationError, match="differs by 0"):
        judged(monkeypatch, zeros, zeros, limit=float("nan"))


def test_answers_that_depend_on_earlier_ones_are_caught(monkeypatch):
    with pytest.raises(
        VerificationError, match=r"'repeats' failed: output 'y' of the same samples in another order"
    ):
        judged(monkeypatch, ROWS, ROWS, again=ROWS * 1.015)


def test_a_second_runtime_that_answers_otherwise_is_heard(monkeypatch):
    with pytest.raises(VerificationError, match="'correlation' failed: .* in another, "):
        judged(monkeypatch, ROWS, ROWS, second=-ROWS[:8])


def test_classes_and_order_count_where_data_was_given(monkeypatch):
    near = np.stack([np.full(32, 1.0), np.full(32, 1.01)], 1) + np.linspace(0, 3, 32)[:, None]
    with pytest.raises(VerificationError, match=r"'agreement' failed: output 'y' keeps 0.0% of the classes"):
        judged(monkeypatch, near[:, ::-1], near, kind="int8")
    assert judged(monkeypatch, near[:, ::-1], near, kind="int8", given=False).agreement is None
    # Order within the crowd is lost, while the one far row makes the correlation good.
    crowd = np.concatenate([np.linspace(0, 1e-3, 31), [1.0]])[:, None]
    with pytest.raises(VerificationError, match="'rank' failed"):
        judged(monkeypatch, np.concatenate([crowd[30::-1], crowd[31:]]), crowd, kind="int8")


def test_classes_of_tokens_and_places_count_too(monkeypatch):
    """Features of tokens have no classes; labels and probabilities do, but not where there is padding."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((16, 6, 4)) + 3 * np.eye(4)[rng.integers(0, 4, (16, 6))]
    mask = (np.arange(6) < 4) * np.ones((16, 1), int)
    turned = logits.copy()
    turned[:, :2] += 3 * (np.roll(logits[:, :2], 1, -1) > 2) * (rng.random((16, 2, 1)) < 0.9)
    loose = dataclasses.replace(limits_for("dynamic_int8"), error=10, correlation=-1, decibels=-99)
    assert judged(monkeypatch, turned, logits, limits=loose).agreement is None
    with pytest.raises(VerificationError, match="of the classes, not 90%") as caught:
        judged(monkeypatch, turned, logits, limits=loose, labels_tokens=True)
    assert caught.value.check == "agreement"
    padding = np.where(mask[..., None], logits, rng.standard_normal(logits.shape))
    assert judged(monkeypatch, padding, logits, limits=loose, labels_tokens=True, mask=mask).agreement == 1
    with pytest.raises(VerificationError, match="of the classes, not 90%"):
        judged(monkeypatch, padding, logits, limits=loose, labels_tokens=True)
    places = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    wrong = np.exp(turned) / np.exp(turned).sum(-1, keepdims=True)
    with pytest.raises(VerificationError, match="of the classes, not 90%"):
        judged(monkeypatch, wrong, places, limits=loose)


def test_only_measures_can_be_accepted(tmp_path):
    for bad in ("agreement", ["loads"], ["repeats"], ["agrement"]):
        with pytest.raises(InputError, match="accept must be a list out of max_abs_error, rms_error"):
            tfopt.export(wide_bert("keras"), tmp_path / "m", accept=bad)


def test_measures_of_agreement():
    expected = np.array([[1.0, 0.9], [0.9, 1.0], [0.5, 0.5]])
    assert class_agreement(expected[:, ::-1], expected) == pytest.approx(1 / 3)  # the tie counts as kept
    assert class_agreement(expected + 0.2, expected) == 1
    assert correlation(ROWS + 7, ROWS) == pytest.approx(1)  # what all rows share is no difference between them
    assert correlation(-ROWS, ROWS) == pytest.approx(-1)
    noise = np.random.default_rng(1).standard_normal(ROWS.shape)
    assert signal_to_noise(ROWS + noise * 0.1, ROWS) == pytest.approx(20, abs=1)
    assert rank_agreement(np.exp(ROWS[:, :1]), ROWS[:, :1]) == pytest.approx(1)
    assert not varies(np.ones((4, 2)) * 3) and varies(np.eye(4))


def test_state_that_survives_is_found_by_running_twice(tmp_path, monkeypatch):
    """Also where nobody looked for a variable in the file: the file of tf_keras' fused LSTM."""
    monkeypatch.setattr(converting, "unfused", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(export_tflite, "check", lambda *_, **__: [])
    layers = [tf_keras.layers.Input((6, 8)), tf_keras.layers.LSTM(16), tf_keras.layers.Dense(3)]
    with pytest.raises(VerificationError, match="'(repeats|max_abs_error)' failed"):
        tfopt.export(
            tf_keras.Sequential(layers), tmp_path / "m.tflite", quantization="dynamic_int8",
            accept=["correlation", "signal_to_noise"],
        )  # fmt: skip


def test_an_artifact_that_swaps_classes_is_caught(tokens, tmp_path, monkeypatch):
    real = export_verify.try_in_child

    def swapped(path, samples, **settings):
        run = real(path, samples, **settings)
        return dataclasses.replace(
            run, outputs={"logits": -run.outputs["logits"]}, again={"logits": -run.again["logits"]}
        )

    monkeypatch.setattr(export_verify, "try_in_child", swapped)
    wanted = {"quantization": "dynamic_int8", "representative": tokens, "lengths": [16]}
    with pytest.raises(VerificationError):
        tfopt.export(wide_bert("tf_keras"), tmp_path / "m.tflite", **wanted)
    rest = ["max_abs_error", "correlation", "signal_to_noise"]
    with pytest.raises(VerificationError, match="'agreement' failed"):
        tfopt.export(wide_bert("tf_keras"), tmp_path / "m.tflite", accept=rest, **wanted)
    artifact = tfopt.export(wide_bert("tf_keras"), tmp_path / "m.tflite", accept=[*rest, "agreement"], **wanted)
    assert {check.name for check in artifact.checks if check.accepted} >= {"correlation", "agreement"}


def siamese(keras):
    """Two texts by one encoder; the answer is the cosine between them."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    encoder = keras.Sequential([layers.Input((8,)), layers.Dense(32, activation="relu"), layers.Dense(16)])
    a, b = layers.Input((8,), name="a"), layers.Input((8,), name="b")
    return keras.Model([a, b], layers.Dot(1, normalize=True, name="cosine")([encoder(a), encoder(b)]))


def convolution_of_sequences(keras):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential([
        layers.Input((16, 8), name="x"), layers.Conv1D(16, 3, activation="relu"), layers.MaxPooling1D(),
        layers.Conv1D(16, 3, padding="same", strides=2, activation="relu"), layers.GlobalAveragePooling1D(),
        layers.Dense(4, name="y"),
    ])  # fmt: skip


@pytest.mark.parametrize("make", [siamese, convolution_of_sequences])
@pytest.mark.parametrize("quantization", ["int8", "dynamic_int8"])
def test_a_file_that_passes_agrees_on_rows_that_it_never_saw(keras, tmp_path, make, quantization):
    """Both passed in static int8 once, with correlations of 0.12 and 0.58 to Keras."""
    model, rng = make(keras), np.random.default_rng(0)
    shapes = {t.name.partition(":")[0]: tuple(t.shape)[1:] for t in model.inputs}
    given, fresh = (
        {name: rng.standard_normal((64, *shape)).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(2)
    )
    try:
        tfopt.export(model, tmp_path / "m.tflite", quantization=quantization, representative=given)
    except VerificationError as refused:
        assert refused.check in ("correlation", "signal_to_noise", "rms_error", "agreement", "rank")
        assert quantization == "int8"
        return
    values = list(fresh.values())
    expected = np.asarray(model(values if len(values) > 1 else values[0]))
    (found,) = tfopt.Predictor.load(tmp_path / "m.tflite").predict(fresh).values()
    assert correlation(found, expected) > 0.85


def test_a_model_keeps_its_weights_when_a_check_fails(tmp_path):
    model = siamese(keras_api.keras_module("keras"))
    before = [np.asarray(weight) for weight in model.weights]
    with pytest.raises(InputError, match="static quantization"):
        tfopt.export(model, tmp_path / "m.tflite", quantization="int8")
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(np.asarray(weight), value)


def causal(monkeypatch, change):
    """Holds logits of texts to the limits of 8-bit files."""
    rng = np.random.default_rng(0)
    want = 4 * rng.standard_normal((4, 16, 50))
    ids = want.argmax(-1)
    ids[:, 1:] = ids[:, :-1]  # the likeliest next token comes
    return judged(monkeypatch, change(want), want, kind="dynamic_int8", limit=1e9, given=False, text=ids)


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda y: y + 3 * np.random.default_rng(1).standard_normal(y.shape), "correlation|signal_to_noise"),
        (lambda y: np.where(np.arange(16)[None, :, None] < 9, y, y - 8 * (y == y.max(-1, keepdims=True))), "next_tokens"),
        (lambda y: 0.4 * y, "signal_to_noise"),
        (lambda y: y - 2.0 * (y == y.max(-1, keepdims=True)), "divergence|next_tokens|perplexity"),
    ],
    ids=["noise", "other tokens", "flat", "heads cut off"],
)  # fmt: skip
def test_texts_that_collapse_are_told(monkeypatch, change, check):
    with pytest.raises(VerificationError) as caught:
        causal(monkeypatch, change)
    assert caught.value.check in check.split("|")


def test_texts_that_hold_show_their_figures(monkeypatch):
    found = causal(monkeypatch, lambda y: y + 0.1 * np.random.default_rng(1).standard_normal(y.shape))
    shown = {check.name: check.found for check in found.checks}
    assert shown["next_tokens"] > 0.9 and 0 < shown["divergence"] < 0.02 and shown["perplexity"] < 10
    assert shown["perplexity"] == pytest.approx(
        next(c.limit for c in found.checks if c.name == "perplexity") / 1.15, rel=0.02
    )


def test_a_model_is_compared_on_what_it_says(tmp_path, monkeypatch):
    """Not on random tokens, which a real model was not trained on; drawn at its own probabilities."""
    model, seen = make("llama"), []
    said = said_by(model, 24)
    assert said.shape == (8, 24) and said.dtype == np.int32
    logits = logits_of(model, said)
    likely = np.take_along_axis(log_softmax(logits[:, :-1]), said[:, 1:, None].astype(int), -1).mean()
    random = np.take_along_axis(log_softmax(logits[:, :-1]), tokens(8, 23)[..., None].astype(int), -1).mean()
    assert likely > random + 1
    begins = make(dataclasses.replace(FAMILIES["llama"], end_tokens=(99, 5)))  # of which one is no token
    assert (said_by(begins, 4)[:, 0] == 5).all()
    monkeypatch.setattr(
        importlib.import_module("tfopt.export.export"),
        "said_by",
        lambda model, length, seed, rows: seen.append((length, seed)) or said_by(model, length, seed, rows),
    )
    artifact = tfopt.export(model, tmp_path / "m.tflite", quantization="dynamic_int8", lengths=[24])
    assert seen == [(24, 0), (24, 1)] and {"next_tokens", "divergence", "perplexity"} <= {
        check.name for check in artifact.checks
    }
