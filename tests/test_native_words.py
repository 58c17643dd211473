"""What TensorFlow's C++ side says when it is loaded: not in a program that only asked for tfopt."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tf_keras

import tfopt
from tfopt._base.native_log import native_greetings_aside

_PROGRAM = """
import os, sys
import numpy as np
import tfopt
tfopt.Predictor.load(sys.argv[1]).predict({"x": np.ones((1, 4), np.float32)})
os.write(2, b"--- built by the user\\n")
import tf_keras
model = tf_keras.Sequential([tf_keras.layers.Input((4,)), tf_keras.layers.Dense(3)])
os.write(2, b"--- exported\\n")
tfopt.export(model, sys.argv[2])
print("words of Python", file=sys.stderr)
"""


def test_neither_loading_nor_children_bring_native_lines(tmp_path):
    inputs = tf_keras.layers.Input((4,), name="x")
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(3)(inputs))
    np.testing.assert_equal(tfopt.export(model, tmp_path / "a.tflite").format, "tflite")
    program = [sys.executable, "-c", _PROGRAM, str(tmp_path / "a.tflite"), str(tmp_path / "b.tflite")]
    words = subprocess.run(program, capture_output=True, text=True, check=True).stderr
    loaded, _, rest = words.partition("--- built by the user")
    exported = rest.partition("--- exported")[2]
    for said in (loaded, exported):
        assert not any(word in said for word in ("cudart", "oneDNN", "absl::InitializeLog", "cpu_feature_guard")), (
            said
        )
    assert "words of Python" in exported


def test_standard_error_comes_back_from_several_threads():
    """Once the second of two threads that began together gave back what the first had put aside."""
    before, both = os.fstat(2), threading.Barrier(2)

    def load(number):
        with native_greetings_aside():
            both.wait(10)
            if number:  # the one that began last ends last, or the other way round
                both.wait(10)
        if not number:
            both.wait(10)

    for _ in range(5):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(load, range(2)))
        assert os.path.samestat(os.fstat(2), before)
