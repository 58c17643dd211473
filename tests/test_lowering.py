"""What TFLite has no operator for, written with those that it has."""

import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tfopt.errors import InputError, VerificationError, WorkFailedError
from tfopt.numerics.agreement import correlation


def patches(keras, size, step, rate, padding):
    class Patches(keras.layers.Layer):
        def call(self, images):
            found = tf.image.extract_patches(
                images, [1, *size, 1], [1, *step, 1], [1, *rate, 1], padding=padding
            )  # fmt: skip
            return tf.reshape(found, [-1, found.shape[1] * found.shape[2], found.shape[3]])

        def compute_output_shape(self, shape):
            found = tf.image.extract_patches(
                tf.zeros([1, *shape[1:]]), [1, *size, 1], [1, *step, 1], [1, *rate, 1], padding=padding
            )  # fmt: skip
            return shape[0], found.shape[1] * found.shape[2], found.shape[3]

        def get_config(self):
            return super().get_config()

    keras.utils.set_random_seed(0)
    inputs = keras.layers.Input((17, 14, 3), name="image")
    x = keras.layers.Dense(8)(Patches(name="patches")(inputs))
    return keras.Model(inputs, keras.layers.Dense(4, name="y")(keras.layers.Flatten()(x)))


@pytest.mark.parametrize(
    ("size", "step", "rate", "padding"),
    [((4, 4), (4, 4), (1, 1), "VALID"), ((3, 2), (2, 1), (1, 1), "SAME"), ((2, 3), (1, 1), (2, 2), "VALID")],
)
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_patches_of_images(keras, tmp_path, size, step, rate, padding, quantization):
    """As keras.io's Vision Transformer cuts them; once it could not be converted at all."""
    model = patches(keras, size, step, rate, padding)
    x = np.random.default_rng(0).standard_normal((16, 17, 14, 3)).astype(np.float32)
    settings = {"quantization": quantization, "representative": {"image": x}}
    artifact = tfopt.export(model, tmp_path / "m.tflite", **settings)
    (found,) = tfopt.Predictor.load(artifact.path).predict(x).values()
    expected = np.asarray(model(x))
    assert correlation(found, expected) > (0.9999 if quantization is None else 0.97)


def test_other_operators_are_named(tmp_path):
    import keras

    class Sorted(keras.layers.Layer):
        def call(self, x):
            return tf.linalg.det(tf.reshape(x, [-1, 2, 2]))[:, None]

        def compute_output_shape(self, shape):
            return shape[0], 1

    inputs = keras.layers.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2)(Sorted()(inputs)))
    with pytest.raises(
        WorkFailedError, match="the format has no operator MatrixDeterminant; build the model without"
    ):
        tfopt.export(model, tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())
    artifact = tfopt.export(model, tmp_path / "m.tflite", allow_flex=True)
    assert [(c.name, c.found) for c in artifact.checks if c.accepted] == [("flex", "not run: MatrixDeterminant")]
    assert np.isnan(artifact.max_abs_error), "nothing was compared"
    with pytest.raises(InputError, match="apply/link the Flex delegate"):
        tfopt.Predictor.load(artifact.path).predict(np.ones((1, 4), np.float32))
    with pytest.raises(
        InputError, match="allow_flex=True is for float TFLite files, got tflite with 'dynamic_int8'"
    ):
        tfopt.export(model, tmp_path / "n.tflite", quantization="dynamic_int8", allow_flex=True)
    plain = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(2)])
    checks = tfopt.export(plain, tmp_path / "n.tflite", allow_flex=True).checks
    assert "max_abs_error" in {c.name for c in checks}, "what needs no such operator is run as ever"


@pytest.mark.parametrize("quantization", [None, "float16"])
def test_the_length_of_zeros_is_no_nan(tmp_path, quantization):
    """Keras 3 bounds an infinite root from above, of which LiteRT makes NaN."""
    import keras

    keras.utils.set_random_seed(0)
    inputs = keras.layers.Input((6, 8), name="x")
    model = keras.Model(inputs, keras.layers.UnitNormalization()(keras.layers.ReLU()(inputs)))
    x = np.random.default_rng(0).standard_normal((4, 6, 8)).astype(np.float32)
    x[:, 2] = -1.0
    artifact = tfopt.export(model, tmp_path / "m.tflite", quantization=quantization, representative={"x": x})
    (found,) = tfopt.Predictor.load(artifact.path).predict(x).values()
    np.testing.assert_allclose(found, np.asarray(model(x)), atol=1e-3)


def test_a_bounded_root_of_something_else_keeps_its_bound(tmp_path):
    """Where it scales something that is not zero, zero has to give the bound; LiteRT's NaN there is refused."""
    import keras

    inputs = keras.layers.Input((4,), name="x")
    root = keras.ops.minimum(keras.ops.rsqrt(keras.ops.sum(inputs * inputs, axis=-1, keepdims=True)), 5.0)
    model = keras.Model(inputs, (inputs + 1.0) * root)
    x = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    x[1] = 0.0
    assert np.asarray(model(x))[1].tolist() == [5.0] * 4
    with pytest.raises(VerificationError, match="NaN or infinity"):
        tfopt.export(model, tmp_path / "m.tflite", representative={"x": x})
