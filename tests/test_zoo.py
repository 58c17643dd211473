"""A small part of `python -m benchmarks.zoo`: models as others write them, and no traceback or wrong file."""

import pytest

from benchmarks.zoo.operations import OPERATIONS, entries
from benchmarks.zoo.run import REFUSED, WORKS, outcome
from tfopt._keras import keras_api

# Model -> what is tried on it here; the whole table takes hours.
TRIED = {
    "own_weights": ("inspect", "shrink", "float32"), "siamese_cosine": ("dynamic_int8",), "lstm": ("float32",),
    "many_outputs": ("distill",), "string_lookup": ("shrink", "dynamic_int8"), "mixed_bfloat16": ("float32",),
    "text_in": ("saved_model", "quantize"), "records": ("float32", "distill"), "tied_table": ("int8",), "subclassed": ("prune", "float16"),
}  # fmt: skip
# What must be refused, with the reason.
REFUSALS = {("text_in", "xla"): "XLA computes with numbers only"}


def tried(name, generation, operation, folder):
    keras = keras_api.keras_module(generation)
    return outcome(entries()[name], keras, OPERATIONS[operation], folder, operation)


@pytest.mark.parametrize(("name", "operation"), [(name, o) for name, some in TRIED.items() for o in some])
def test_it_works(name, operation, generation, tmp_path):
    status, why = tried(name, generation, operation, tmp_path)
    assert status == WORKS, f"{status}: {why}"


@pytest.mark.parametrize(("name", "operation"), REFUSALS)
def test_it_is_refused_with_the_reason(name, operation, generation, tmp_path):
    status, why = tried(name, generation, operation, tmp_path)
    assert status == REFUSED and REFUSALS[name, operation] in why, f"{status}: {why}"


def test_the_list_is_long_and_what_is_senseless_says_why():
    assert len(entries()) >= 60
    assert all(why and o in OPERATIONS for entry in entries().values() for o, why in entry.senseless.items())
