"""The contract of every format, and what a path is."""

import typing

import numpy as np
import pytest

import tfopt
from tfopt._base.formats import FORMATS, INTEGERS, WRITTEN, format_of, kind_of
from tfopt._keras.loading import load_model
from tfopt.errors import InputError, MissingFileError, ModelFileError
from tfopt.quantization import NAMED
from tfopt.recipe.sections import ExportSection

from .conftest import TINY

# Arguments of `export` for each format that is written; a row of the table without one here fails.
CASES = {
    "saved_model": [{}, {"jit_compile": True}],
    "tflite": [{}, {"quantization": "float16"}, {"quantization": "dynamic_int8"}],
    "litertlm": [],  # which takes decoders only: test_litert_lm
}


def test_every_row_keeps_the_contract():
    assert set(CASES) == {format.name for format in WRITTEN}
    assert set(INTEGERS) == set(NAMED)
    assert set(typing.get_args(ExportSection.model_fields["format"].annotation)) == set(CASES)
    for format in FORMATS:
        assert callable(format.runtime_module().predictor_of)
        assert format.is_folder == bool(format.marker)
        if format.writer:
            module = format.writer_module()
            assert all(callable(getattr(module, name)) for name in ("lengths", "write", "check"))


@pytest.mark.parametrize(("name", "arguments"), [(n, a) for n, some in CASES.items() for a in some], ids=str)
def test_what_is_written_is_told_run_and_looked_into(make_bert, tokens, tmp_path, name, arguments):
    model = make_bert()
    path = tmp_path / next(format.file for format in FORMATS if format.name == name)
    artifact = tfopt.export(model, path, lengths=[12], representative=tokens, **arguments)
    assert artifact.format == name == kind_of(path) == format_of(path).name
    predictor = tfopt.Predictor.load(path)
    assert predictor.format == name
    found, expected = predictor.predict(tokens)["logits"], np.asarray(model(tokens))
    np.testing.assert_allclose(found, expected, atol=0.1 * np.abs(expected).max())
    assert predictor.weights() and tfopt.measure(path).bytes > 1000


def test_formats_that_come_later_name_what_there_is(make_bert, tmp_path):
    for name in ("onnx", "stablehlo", "xla"):
        with pytest.raises(InputError, match=f"format must be one of saved_model, tflite, litertlm, got '{name}'"):
            tfopt.export(make_bert(), tmp_path / "m", format=name)
    with pytest.raises(InputError, match=r"path of format 'tflite' must end in \.tflite, got 'm'"):
        tfopt.export(make_bert(), tmp_path / "m", format="tflite")


def test_one_place_tells_what_a_path_is(tmp_path, finished_run):
    model = tfopt.models.bert(TINY)
    tfopt.models.save(model, tmp_path / "m.keras")
    tfopt.models.save_pretrained(model, tmp_path / "hugging")
    (tmp_path / "stories").mkdir()
    for name in ("stories/model.bin", "stories/tok512.bin", "x.bin"):
        (tmp_path / name).write_bytes(b"\0" * 64)
    (tmp_path / "pickle.bin").write_bytes(b"PK\x03\x04")
    (tmp_path / "p.pt").write_bytes(b"")
    (tmp_path / "a.tfopt").write_bytes(b"")
    (tmp_path / "other").mkdir()
    kinds = {
        "m.keras": "keras", "hugging": "hugging_face", "stories": "llama2c", "x.bin": "llama2c", "pickle.bin": "pickle",
        "p.pt": "pickle", "a.tfopt": "archive", "other": "unknown",
    }  # fmt: skip
    assert {name: kind_of(tmp_path / name) for name in kinds} == kinds
    assert kind_of(finished_run) == "run" and kind_of(finished_run / "data") == "pack"
    assert kind_of(finished_run / "baseline" / "saved_model") == "saved_model"
    with pytest.raises(MissingFileError):
        kind_of(tmp_path / "nothing")
    with pytest.raises(ModelFileError, match="is no artifact"):
        format_of(tmp_path / "other")
    assert load_model(tmp_path / "m.keras").name == model.name
