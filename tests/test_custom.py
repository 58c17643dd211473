"""Classes of somebody's own, from the command line."""

import textwrap

import numpy as np
import pytest
from typer.testing import CliRunner

import tfopt
from tfopt.cli.app import app
from tfopt.errors import InputError, MissingFileError, ModelFileError
from tfopt.models.source import load_any

CODE = """
import {keras} as keras

class Scaled(keras.layers.Layer):
    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor
        self.inner = keras.layers.Dense(8)

    def build(self, shape):
        self.inner.build(shape)
        super().build(shape)

    def call(self, x):
        return self.inner(x) * self.factor

    def get_config(self):
        return {{**super().get_config(), "factor": self.factor}}
"""


@pytest.fixture
def saved(keras, tmp_path):
    """A model whose class only a file knows, as another program saved it."""
    name = f"own_{keras.__name__}"
    source = tmp_path / f"{name}.py"
    source.write_text(textwrap.dedent(CODE).format(keras=keras.__name__))
    space = {"__name__": f"somewhere.{name}"}
    exec(source.read_text(), space)
    inputs = keras.layers.Input((6,), name="x")
    model = keras.Model(inputs, keras.layers.Dense(3, name="y")(space["Scaled"](2.0, name="scaled")(inputs)))
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    model.save(tmp_path / "m.keras")
    return tmp_path / "m.keras", source, x, np.asarray(model(x))


def test_a_file_with_the_classes_is_named(saved, tmp_path):
    path, source, x, expected = saved
    before = CliRunner().invoke(app, ["inspect", str(path), "--json"])
    assert isinstance(before.exception, ModelFileError) and "--import on the command line" in str(before.exception)
    shown = CliRunner().invoke(app, ["inspect", str(path), "--import", str(source), "--json"])
    assert shown.exit_code == 0 and "scaled/inner" in shown.output.replace("dense", "inner")
    out = tmp_path / "m.tflite"
    made = CliRunner().invoke(app, ["export", str(path), "--import", str(source), "-o", str(out)])
    assert made.exit_code == 0, made.exception
    np.testing.assert_allclose(tfopt.Predictor.load(out).predict(x)["y"], expected, atol=1e-5)
    np.testing.assert_allclose(
        tfopt.Predictor.load(path, imports=[str(source)]).predict(x)["y"], expected, atol=1e-5
    )


def test_bench_loads_them_in_its_children_too(saved, tmp_path):
    path, source, _, _ = saved
    tfopt.export(load_any(path, imports=[str(source)]), tmp_path / "m.tflite")
    arguments = ["bench", str(path), str(tmp_path / "m.tflite"), "--rounds", "3", "--import", str(source), "--json"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.exception


def test_what_cannot_be_imported_is_said(tmp_path):
    empty, broken = tmp_path / "empty_module.py", tmp_path / "broken_module.py"
    (tmp_path / "m.keras").touch()
    empty.write_text("x = 1\n")
    broken.write_text("1 / 0\n")
    for source, says in (
        (str(empty), "defines no layers, models or other classes of Keras"),
        (str(broken), "failed: ZeroDivisionError: division by zero"),
        ("no_such_module", "importing 'no_such_module' failed: ModuleNotFoundError"),
    ):
        with pytest.raises(InputError, match=says):
            load_any(tmp_path / "m.keras", imports=[source])
    with pytest.raises(MissingFileError, match=r"no file .*/nothing.py, which was to be imported"):
        load_any(tmp_path / "m.keras", imports=[str(tmp_path / "nothing.py")])
