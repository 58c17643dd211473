"""A few damaged files for every parser; `python -m tests.fuzz PARSER --minutes N` makes many."""

import pytest

from .fuzz.parsers import PARSERS
from .fuzz.run import run

# Each builds a model.
SLOW = {
    "keras": 8,
    "tf_keras": 8,
    "h5": 8,
    "saved_model": 6,
    "tflite": 20,
    "generating_tflite": 12,
    "hugging_face": 20,
    "sentence_transformers": 20,
    "translating_tflite": 12,
    "keras_hub": 8,
    "parquet": 30,
    "llama2c": 20,
    "gguf": 20,
}
# Numbers of cases that once ended in something else than an error of ours.
FOUND = {
    "h5": (2, 25), "keras": (30, 1092), "saved_model": (12, 96), "tf_keras": (26, 1230, 63364), "hugging_face": (1015, 20580, 22401),
    "generating_tflite": (36, 68, 20093, 21990, 23634, 24083, 28106), "run_manifest": (7, 266), "tflite": (22, 22768, 23237, 23907, 40943), "llama2c": (21390,), "dataset": (30603, 30829), "tokenizer": (24895,),
    "store_hdf5": (21409, 20054, 20090, 20592, 20608, 21014),
}  # fmt: skip


@pytest.mark.parametrize("name", PARSERS)
def test_damaged_files_end_in_an_error_of_ours_or_in_nothing(name, tmp_path):
    found = run(name, tmp_path, seed=5000, count=SLOW.get(name, 60))
    for seed in FOUND.get(name, ()):
        found.wrong += run(name, tmp_path, seed=seed, count=1).wrong
    assert not found.wrong, "\n".join(
        f"python -m tests.fuzz {name} --seed {n} --count 1: {w}" for n, w in found.wrong
    )
    assert found.refused or name in ("state", "report")  # of a state, what is whole is read; of a report, the rest
