"""Every command, given what it does not take: exit code 2, one line that says what is wrong, and no traceback."""

import json
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import tf_keras

import tfopt
from tfopt.errors import InputError, TfoptError

NOISE = np.random.default_rng(7).integers(0, 256, 3000, np.uint8).tobytes()
SUFFIXES = (".keras", ".h5", ".tflite", ".tfopt", ".bin", ".tsv", ".csv", ".jsonl", ".txt", ".toml", ".json", ".gguf",
            ".pkl", "")  # fmt: skip
DEEP = "[" * 50_000 + "]" * 50_000


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """Things that no command takes."""
    root = tmp_path_factory.mktemp("bad")
    found = [root / "nothing", root / "nothing.keras"]
    for suffix in SUFFIXES:
        found += [put(root / f"noise{suffix}", NOISE), put(root / f"empty{suffix}", b"")]
        (root / f"folder{suffix}").mkdir()
        (root / f"dangling{suffix}").symlink_to(root / "nowhere")
        (root / f"zero{suffix}").symlink_to("/dev/zero")
        os.mkfifo(root / f"pipe{suffix}")
        found += [root / f"{kind}{suffix}" for kind in ("folder", "dangling", "zero", "pipe")]
    for number, text in enumerate(
        ("[]", "3", "null", "{", DEEP, '{"a": "\\ud800"}', '{"model_type": "bert"}', '{"model_type": ["bert"]}',
         '{"model_type": "llama", "vocab_size": 1e999}', '{"files": 3}', '{"files": [{"path": "../x"}]}',
         '{"steps": 1}', '{"architectures": {}}')
    ):  # fmt: skip
        for name in ("config.json", "manifest.json", "state.json", "data.manifest.json"):
            found.append(put(root / f"json{number}-{name}" / name, text).parent)
    found.append(put(root / "graph" / "saved_model.pb", NOISE).parent)
    found.append(put(root / "graph0" / "saved_model.pb", b"").parent)
    tokenizer = put(root / "latin1" / "tokenizer.json", b'{"caf\xe9": 1}').parent
    put(tokenizer / "config.json", '{"model_type": "llama", "vocab_size": 9}')
    found.append(tokenizer)
    return found


def commands(path, out):
    yield "inspect", path
    yield "export", path, "-o", out / "m.tflite"
    yield "bench", path
    yield "generate", path, "--prompt", "x"
    yield "run", path, "--out", out / "run"
    yield "run", "demo", "--train", path, "--validation", path, "--out", out / "run"
    yield "run", "demo", "--model", path, "--out", out / "run"
    yield "optimize", path, "--train", path, "-o", out / "optimized"
    yield "predict", path, "x"
    yield "search", path, "--data", path, "-o", out / "search", "--max-bytes", 9
    yield "verify", path
    yield "unpack", path, "-o", out / "unpacked"
    yield "data", "pack", path, "--out", out / "packed"
    yield "data", "verify", path
    yield "data", "inspect", path


def test_every_command_takes_bad_input_with_one_line(bad, tfopt_main, tmp_path):
    wrong = []
    signal.signal(signal.SIGALRM, too_long)
    have = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + 2**31, have[1]))
    for path in bad:
        for command in commands(path, tmp_path):
            signal.alarm(30)
            try:
                code, out, errors = tfopt_main(*command)
                lines = [line for line in errors.splitlines() if not line.startswith("[data]")]
                good = code == 2 and not out and len(lines) == 1 and lines[0].startswith("tfopt: error: ")
                what = f"exit {code}, {len(lines)} lines: {' / '.join(lines)[-300:]}"
            except Exception as error:  # noqa: BLE001 - whatever comes out of a command is what is looked for
                good, what = False, f"{type(error).__name__}: {str(error)[:300]}"
            finally:
                signal.alarm(0)
            if not good:
                wrong.append(f"{' '.join(map(str, command[:2]))[-90:]} -> {what}")
    resource.setrlimit(resource.RLIMIT_AS, have)
    assert not wrong, f"{len(wrong)} wrong:\n" + "\n".join(wrong)
    assert not list(tmp_path.iterdir())


def address_space():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def too_long(number, frame):
    raise TimeoutError("it hangs")


def test_representative_data_of_other_shapes(tmp_path):
    inputs = tf_keras.Input((4,), name="x")
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(3)(inputs))
    for given in (np.ones((2, 4)), [[1, 2, 3, 4]], "text", 3, {"x": "text"}, {"x": [[1], [1, 2]]}, {"x": np.ones(4)},
                  {"x": None}, {3: np.ones((2, 4))}, {"x": np.full((2, 4), np.nan)}, iter([])):  # fmt: skip
        with pytest.raises(InputError, match="representative"):
            tfopt.export(model, tmp_path / "m.tflite", quantization="int8", representative=given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_what_a_technique_is_given(value):
    inputs = tf_keras.Input((8,), name="x")
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(8, name="d")(inputs))
    kernel = np.ones((8, 8), np.float32)
    kernel[2, 3] = value
    model.get_layer("d").kernel.assign(kernel)
    for work in (lambda: tfopt.factorize(model, rank=2), lambda: tfopt.prune(model, 0.5),
                 lambda: tfopt.cluster(model, 4), lambda: tfopt.quantize_aware(model)):  # fmt: skip
        with pytest.raises(TfoptError, match="NaN or infinit"):
            work()


def test_recipes_of_any_json_type(tmp_path):
    for values in ([], 3, None, {"schema": {}}, {"schema": 1, "name": ["x"]}, json.loads(DEEP[:200] + DEEP[-200:])):
        with pytest.raises(ValueError, match="validation error"):
            tfopt.Recipe.model_validate(values)
