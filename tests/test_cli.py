import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tfopt._keras import keras_api
from tfopt.cli.words import in_words_of_the_shell
from tfopt.data.records.framing import scan_records


def recipe_with(tiny_recipe, tmp_path, old, new):
    text = tiny_recipe().read_text()
    assert old in text
    path = tmp_path / "changed.toml"
    path.write_text(text.replace(old, new))
    return path


def table(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


TRAIN = "label\ttext\n" + "".join(f"{'ab'[i % 2]}\tword{i} and more\n" for i in range(40))
BAD_DATA = {
    "missing": (None, "train data not found"),
    "empty": ("", "holds no texts"),
    "one class": ("label\ttext\n1\tx\n1\ty\n", "every text has the label '1'"),
    "no column": ("kind\ttext\n1\tx\n", "has no column 'label'"),
    "not UTF-8": (b"label\ttext\n1\tcaf\xe9\n", "is not UTF-8"),
    "too long": ("label\ttext\na\t" + "word " * 50 + "\nb\ty\n", "longer than the 16 tokens"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_one_line_and_writes_nothing(tfopt_main, tiny_recipe, tmp_path, case):
    content, says = BAD_DATA[case]
    train = tmp_path / "train.tsv" if content is None else table(tmp_path, "train.tsv", content)
    code, out, err = tfopt_main("run", tiny_recipe(), "--train", train, "--out", tmp_path / "out")
    lines = [line for line in err.splitlines() if not line.startswith("[data]")]
    assert (
        code == 2 and out == "" and len(lines) == 1 and lines[0].startswith("tfopt: error: ") and says in lines[0]
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("labels", "unknown"), [("ab", "c"), ("12", "3")])
def test_a_label_never_seen_in_training(tfopt_main, tiny_recipe, tmp_path, labels, unknown):
    train = table(
        tmp_path, "t.tsv", TRAIN.replace("\na\t", f"\n{labels[0]}\t").replace("\nb\t", f"\n{labels[1]}\t")
    )
    validation = table(tmp_path, "v.tsv", f"label\ttext\n{unknown}\tword\n{labels[0]}\tword\n")
    code, _, err = tfopt_main(
        "run", tiny_recipe(), "--train", train, "--validation", validation, "--out", tmp_path / "out"
    )
    assert code == 2 and f"label '{unknown}' (1 texts) never occurs in the training data" in err
    assert not (tmp_path / "out").exists()


BAD_RECIPES = {
    "unknown key": ("rounds = 5", "ronds = 5", "unknown key 'measure.ronds'; did you mean 'rounds'?"),
    "sparsity": ("sparsity = 0.5", "sparsity = 1.0", "sparsity must be in [0, 1), got 1.0"),
    "order": ("frequency = 4", "begin = 0.9", "begin must come before end, got begin 0.9, end 0.6"),
}


@pytest.mark.parametrize("case", BAD_RECIPES)
def test_bad_recipes(tfopt_main, tiny_recipe, tmp_path, case):
    old, new, says = BAD_RECIPES[case]
    recipe = recipe_with(tiny_recipe, tmp_path, old, new=new)
    code, out, err = tfopt_main("run", recipe, "--out", tmp_path / "out")
    assert code == 2 and out == "" and says in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_bad_models(tfopt_main, tmp_path):
    keras = keras_api.keras_module("tf_keras")
    layers = [keras.layers.Input((3,)), keras.layers.Lambda(lambda x: x, name="code"), keras.layers.Dense(2)]
    keras.Sequential(layers).save(tmp_path / "lambda.keras")
    (tmp_path / "text.keras").write_text("no model")
    (tmp_path / "folder").mkdir()
    for name, says in (
        ("none.keras", "model not found"), ("text.keras", "not a Keras model file"),
        ("lambda.keras", "holds a Lambda layer (code)"), ("folder", "is no model"),
    ):  # fmt: skip
        code, out, err = tfopt_main("export", tmp_path / name, "--format", "tflite", "-o", tmp_path / "o.tflite")
        assert code == 2 and says in err and len(err.splitlines()) == 1 and out == "", name
        assert not (tmp_path / "o.tflite").exists()
    assert tfopt_main("inspect", tmp_path / "folder")[0] == 2


def test_inspecting_and_exporting_never_replace_what_is_not_theirs(tfopt_main, finished_run, tmp_path, monkeypatch):
    keras_file = finished_run / "half" / "model.keras"
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "precious").write_text("x")
    monkeypatch.chdir(tmp_path / "project")
    for target in (tmp_path / "project", "."):
        code, _, err = tfopt_main("export", keras_file, "--format", "saved_model", "-o", target)
        assert code == 2 and "is not empty and holds no SavedModel" in err
    assert (tmp_path / "project" / "precious").exists()


def test_damaged_records_are_named(tfopt_main, finished_run, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(finished_run / "data", copy)
    shard = sorted(copy.glob("train*.tfrecord"))[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    code, _, err = tfopt_main("data", "verify", copy)
    assert code == 2 and shard.name in err and "damaged" in err
    shard.write_bytes(content[: 12 + len(next(scan_records(finished_run / "data" / shard.name))) + 4])
    code, _, err = tfopt_main("data", "verify", copy)
    assert code == 2 and f"{shard.name} is cut" in err


def test_wrong_usage_is_2(tfopt_main):
    for arguments in (
        ["nonsense"],
        ["run"],
        ["export", "x", "--format", "tflite"],
        ["bench", "--rounds", "x", "y"],
    ):
        assert tfopt_main(*arguments)[0] == 2
    assert tfopt_main("--help")[0] == 0


def one_json(out):
    return json.loads(out)  # fails if anything else stands on standard output


def test_json_of_every_command(tfopt_main, run_copy, labelled_tsv, tiny_recipe, tmp_path):
    code, out, _ = tfopt_main("run", tiny_recipe(), "--out", run_copy, "--resume", "--json")
    assert code == 0 and one_json(out)["schema"] == 1
    lite = run_copy / "half_tflite_dynamic_int8"
    code, out, err = tfopt_main("bench", run_copy / "baseline", lite, "--rounds", 3, "--json",
                                "--data", run_copy / "data")  # fmt: skip
    assert "timed with 16 tokens, the most that all artifacts take; 128 were asked for" in err
    values = {a["name"]: a for a in one_json(out)["artifacts"]}
    assert code == 0 and values["half_tflite_dynamic_int8"]["quality"]["accuracy"] > 0.9
    assert set(values) == {"baseline", "half_tflite_dynamic_int8"}
    keras_file = run_copy / "half" / "model.keras"
    code, out, _ = tfopt_main("inspect", keras_file, "--length", 16, "--json")
    layers = {layer["name"]: layer for layer in one_json(out)["layers"]}
    assert layers["layer_0_intermediate"]["multiply_adds"] == 32 * 64 * 16
    assert layers["layer_0_intermediate"]["sparsity"] == 0.5
    assert layers["layer_0_intermediate"]["techniques"]["prune"] == "kernel: prunable"
    assert "no kernel" in layers["word_embeddings"]["techniques"]["prune"]
    assert sum(x["time_share"] or 0 for x in layers.values()) > 0.1
    for target in (lite / "model.tflite", run_copy / "baseline" / "saved_model"):
        assert one_json(tfopt_main("inspect", target, "--json")[1])["parameters"] > 1000
    code, out, _ = tfopt_main("export", keras_file, "--format", "tflite", "--quantization", "dynamic_int8",
                              "--length", 16, "-o", tmp_path / "x.tflite", "--json")  # fmt: skip
    assert code == 0 and one_json(out)["quantization"] == "dynamic_int8"
    code, out, _ = tfopt_main("verify", run_copy, "--json")
    assert code == 0 and "half_tflite" in one_json(out)["artifacts"]
    pack = tmp_path / "pack"
    code, out, _ = tfopt_main(
        "data", "pack", labelled_tsv[0], "--out", pack, "--shards", 2, "--vocab-size", 300, "--json"
    )
    assert code == 0 and one_json(out)["records"] == 320 and len(one_json(out)["shards"]) == 2
    assert one_json(tfopt_main("data", "verify", pack, "--json")[1])["records"] == 320
    assert one_json(tfopt_main("data", "inspect", pack, "--json")[1])["data"]["labels"] == ["fruit", "metal"]


def test_exporting_within_a_budget(tfopt_main, finished_run, labelled_tsv, tmp_path):
    pack = tmp_path / "pack"
    tokenizer = finished_run / "data" / "tokenizer.json"
    assert tfopt_main("data", "pack", labelled_tsv[0], "--out", pack, "--tokenizer", tokenizer)[0] == 0
    keras_file, out = finished_run / "baseline" / "model.keras", tmp_path / "x.tflite"
    base = ["export", keras_file, "--format", "tflite", "--length", 16, "-o", out, "--quantization", "dynamic_int8"]
    code, _, err = tfopt_main(*base, "--max-loss", 5)
    assert code == 2 and "--max-loss need --representative" in err and not out.exists()
    data = ["--representative", pack, "--samples", 16]
    code, _, err = tfopt_main(*base, *data, "--max-loss", 5, "--max-bytes", 9000)
    assert code == 2 and "give either --max-bytes or --max-loss, got 9000 and 5.0" in err
    code, stdout, err = tfopt_main(*base, *data, "--max-loss", 100, "--smooth", 0.5, "--json")
    assert code == 0 and "bytes" in err and (tmp_path / "x.tflite.sensitivity.json").exists()
    found = one_json(stdout)
    assert "smooth" in {check["name"] for check in found["checks"]}
    assert {layer["bits"] for layer in found["layers"] if layer["bits"] < 32} == {4}


def test_what_people_read(tfopt_main, run_copy, tiny_recipe):
    _, out, _ = tfopt_main("run", tiny_recipe(), "--out", run_copy, "--resume")
    assert "half_tflite_dynamic_int8" in out and "report.html" in out and "accuracy" in out
    assert all(name in out for name in ("latency p50", "faster", "memory"))
    _, out, _ = tfopt_main("inspect", run_copy / "half" / "model.keras")
    assert "layer_0_intermediate" in out and "50.0%" in out
    _, out, _ = tfopt_main("verify", run_copy)
    assert "artifacts verified" in out


def test_a_terminated_run_is_resumable_and_says_so(tiny_recipe, tmp_path, tfopt_command):
    command, environment = tfopt_command
    with subprocess.Popen(
        [*command, "run", str(tiny_recipe()), "--out", str(tmp_path / "out")], env=environment,
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        errors = ""
        for line in process.stderr:
            errors += line
            if "[train baseline]" in line:
                process.terminate()
    assert process.returncode == 75
    assert "interrupted" in errors and "--resume" in errors and "Traceback" not in errors
    state = json.loads((tmp_path / "out" / "state.json").read_text())
    assert [s["name"] for s in state["steps"]] == ["data"]


@pytest.mark.skipif(os.name == "nt", reason="limits on file sizes are a Unix matter")
def test_a_full_disk_fails_with_one_line_and_keeps_the_good_artifact(finished_run, tmp_path):
    """The model is loaded first; then the kernel refuses to let any file grow, as on a full disk."""
    target = tmp_path / "good.tflite"
    target.write_bytes(b"good")
    arguments = ["tfopt", "export", str(finished_run / "half" / "model.keras"), "--format", "tflite", "--length", "16",
                 "-o", str(target)]  # fmt: skip
    script = (
        "import resource, signal, sys\n"
        "import tfopt.cli, tfopt.models.source as source\n"
        "load = source.load_any\n"
        "def load_then_fill(path, **more):\n"
        "    model = load(path, **more)\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "    return model\n"
        "source.load_any = load_then_fill\n"
        f"sys.argv = {arguments!r}\n"
        "tfopt.cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    errors = [line for line in done.stderr.splitlines() if line.startswith("tfopt: error: ")]
    assert done.returncode == 1 and len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    assert "Model" in errors[0] or "large" in errors[0]
    assert target.read_bytes() == b"good" and list(tmp_path.iterdir()) == [target]


def test_the_numbers_in_a_report_are_those_of_the_artifact(finished_run):
    """Accuracy counted here, by hand, from the stored file."""
    import tfopt
    from tfopt.data.batches import samples

    report = tfopt.Report.load(finished_run / "report.json")
    held_out = samples(finished_run / "data", 96, split="validation")
    predictor = tfopt.Predictor.load(finished_run / "half_tflite_dynamic_int8" / "model.tflite")
    scores = predictor.predict({k: held_out[k] for k in ("input_ids", "attention_mask")})["logits"]
    share = float((scores.argmax(1) == held_out["label"]).mean())
    assert report.artifact("half_tflite_dynamic_int8").quality["accuracy"] == pytest.approx(share)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["export", "{model}", "-o", "m.tflite", "--format", "onnx"],
            "--format must be one of saved_model, tflite",
        ),
        (
            ["export", "{model}", "-o", "m.tflite", "--quantization", "int3"],
            "--quantization must be float16, dynamic",
        ),
        (
            ["export", "{model}", "-o", "m", "--quantization", "int8"],
            "--quantization must be left out: a SavedModel",
        ),
        (["export", "{model}", "-o", "m.tflite", "--jit-compile"], "--jit-compile is for SavedModels"),
        (["export", "{model}", "-o", "m.tflite", "--accept", "loads"], "--accept must be one of max_abs_error"),
        (["export", "nothing.keras", "-o", "m.tflite"], "model not found: nothing.keras"),
        (["inspect", "nothing.keras"], "model not found: nothing.keras"),
        (["bench", "{model}", "nothing.tflite"], "artifact not found: nothing.tflite"),
        (["optimize", "nothing", "--train", "{model}", "-o", "o"], "model not found: nothing"),
        (
            ["optimize", "{model}", "--train", "x", "-o", "o", "--accuracy", "2"],
            "accuracy must be in (0, 1], got 2",
        ),
        (["search", "{model}", "--data", "nothing", "-o", "o"], "packed data not found: nothing"),
        (["verify", "nothing"], "run folder not found: nothing"),
        (["run", "nothing"], "no recipe file 'nothing'"),
        (["predict", "nothing.tflite", "x"], "artifact not found: nothing.tflite"),
        (["generate", "caf\udce9", "--prompt", "x"], "an argument must be text in UTF-8"),
    ],
)
def test_arguments_are_checked_before_tensorflow_is_loaded(tmp_path, arguments, says):
    """A wrong `--format` once took eight seconds."""
    (tmp_path / "m.keras").touch()
    code = (
        "import sys\nfrom tfopt.cli.app import main\ntry:\n    main()\nexcept SystemExit as end:\n"
        "    print(end.code, 'tensorflow' in sys.modules)\n"
    )
    given = [a.format(model=tmp_path / "m.keras") for a in arguments]
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == ["2", "False"], done.stderr
    assert f"tfopt: error: {says}" in done.stderr and done.stderr.count("\n") == 1


def test_messages_speak_of_options():
    words = in_words_of_the_shell(
        "static quantization needs representative data: pass representative={name: array}, or train the model with "
        "quantize_aware(...)"
    )
    assert words == "static quantization needs representative data: give --representative DIR"
    assert in_words_of_the_shell("load it yourself and pass the model object, or give trust=True") == "or --trust"
