import gzip
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import tfopt
from tfopt._base.children import LIGHT, ChildFailedError, run_in_child
from tfopt.errors import DataError, InputError
from tfopt.measure import findings, latency, size
from tfopt.measure.results import Latency, Measurement
from tfopt.report import Report, Step, html, machine_info
from tfopt.report.plots import plots
from tfopt.run.named import told
from tfopt.runtime import StoredWeight
from tfopt.runtime.child import try_in_child
from tfopt.runtime.operators import operator_times


class Fake:
    """A predictor that takes a known number of counted ticks instead of time."""

    def __init__(self, clock, ticks):
        self.clock, self.ticks, self.calls = clock, ticks, 0

    def predict(self, inputs):
        self.calls += 1
        self.clock[0] += self.ticks


def test_speedups_come_from_paired_rounds(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[0])
    slow, fast = Fake(clock, 0.012), Fake(clock, 0.004)
    timings = latency.interleaved([slow, fast], {"x": np.zeros((1, 2))}, rounds=20)
    assert latency.speedup(timings[0], timings[1]) == pytest.approx(3)
    assert timings[1].latency.p50 == pytest.approx(4) and timings[0].spread == pytest.approx(0, abs=1e-9)
    assert slow.calls == fast.calls == 25


def test_sizes_are_counted_from_what_is_stored(tmp_path):
    weights = [
        StoredWeight("a", 32, np.array([[0, 1.0], [2, 0]])),
        StoredWeight("b", 8, np.array([[1, 1, 0, 1]]), is_kernel=False),
    ]
    assert size.sparsity(weights) == 3 / 8 and size.weight_bits(weights) == 20 and size.sparsity([]) is None
    (tmp_path / "f").write_bytes(b"abc" * 5000)
    assert abs(size.gzip_bytes(tmp_path) - len(gzip.compress(b"abc" * 5000, 6))) < 20


def test_a_child_has_its_own_peak_memory(finished_run):
    ids = np.ones((1, 8), int)
    inputs = {"input_ids": ids, "attention_mask": ids}
    block = np.ones(80_000_000)  # 640 MB that must not show up in the child
    lite = try_in_child(finished_run / "baseline_tflite" / "model.tflite", inputs, alone=True)
    full = try_in_child(finished_run / "baseline" / "saved_model", inputs, alone=True)
    assert 20e6 < lite.peak_memory_bytes < 300e6 < full.peak_memory_bytes and block.sum() > 0
    np.testing.assert_allclose(lite.outputs["logits"], full.outputs["logits"], atol=1e-5)


def test_a_child_that_dies_is_an_error_with_its_last_words(tmp_path):
    (tmp_path / "bad.tflite").write_bytes(b"bad")
    with pytest.raises(
        ChildFailedError, match=r"running .*bad.tflite in a child process failed: .*not a TFLite file"
    ):
        try_in_child(tmp_path / "bad.tflite", {"x": np.ones(1)})
    with pytest.raises(ChildFailedError, match=r"a child process ended \(signal 11\): the last words"):
        run_in_child(crash, "the last words")
    with pytest.raises(ChildFailedError, match="ended .exit code 3."):
        run_in_child(os._exit, 3)
    with pytest.raises(ChildFailedError, match="ValueError: could not convert"):
        run_in_child(float, "no number")
    with pytest.raises(ChildFailedError, match="no answer within the time"):
        run_in_child(time.sleep, 60, timeout_s=0.5)


def crash(words):
    sys.stderr.write(f"{words}\n")
    os.kill(os.getpid(), signal.SIGSEGV)


def counted(count, log):
    for number in range(count):
        log(f"line {number}")
    return os.getpid(), "tensorflow" in sys.modules, getattr(sys.modules["__main__"], "__file__", None)


def test_children_start_warm_tell_lines_and_do_not_run_the_main_module_again():
    lines = []
    pid, is_warm, main = run_in_child(counted, 3, log=lines.append)
    assert lines == ["line 0", "line 1", "line 2"] and pid != os.getpid() and is_warm and main is None
    assert not run_in_child(counted, 0, preload=LIGHT, log=lines.append)[1]


def test_a_killed_parent_leaves_no_child(tmp_path):
    (tmp_path / "napping.py").write_text(
        "import os, time\nfrom pathlib import Path\n"
        "def nap(path):\n    Path(path).write_text(str(os.getpid()))\n    time.sleep(300)\n"
    )
    script = (
        "import sys\nsys.path.insert(0, sys.argv[1])\nimport napping\n"
        "from tfopt._base.children import LIGHT, run_in_child\n"
        "run_in_child(napping.nap, sys.argv[1] + '/pid', preload=LIGHT)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    found = wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    assert wait_for(lambda: not is_alive(int(found)))


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return value


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_script_without_a_guard_exports(tmp_path):
    """`multiprocessing` would run it again in every child."""
    script = tmp_path / "script.py"
    script.write_text(
        "import tf_keras, tfopt\nprint('once')\n"
        "model = tf_keras.Sequential([tf_keras.layers.Input((4,)), tf_keras.layers.Dense(3)])\n"
        f"print(tfopt.export(model, {str(tmp_path / 'm.tflite')!r}).format)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == ["once", "tflite"], done.stderr


def measurement(name, **values):
    defaults = {
        "format": "tflite",
        "path": name,
        "bytes": 1000,
        "latency_ms": Latency(1.0, 1.1, 1.2),
        "speedup": 2.0,
    }
    return Measurement(name, **{**defaults, **values})


def test_findings_say_where_a_technique_brought_nothing():
    base, pruned = measurement("a", bytes_gzip=900), measurement("b", bytes_gzip=500, kernel_sparsity=0.8)
    notes = findings.findings([base, pruned], {"b": "a"})
    assert "b: 80% zeros in the kernels brought no speed (1.00 times a)." in notes
    assert "b: 80% zeros in the kernels saved of the bytes of a 0% as it is, 44% after gzip." in notes
    faster = measurement("b", latency_ms=Latency(0.5, 0.6, 0.7))
    assert not any("brought no speed" in n for n in findings.findings([base, faster], {"b": "a"}))
    slow = findings.findings([measurement("a"), measurement("x", format="saved_model", speedup=0.9)])
    assert slow == ["x: no faster than a here (0.90 times)."]
    assert any("busy" in n for n in findings.findings([measurement("a", latency_spread=0.3)]))


def test_findings_say_what_became_of_the_accuracy():
    """A variant that fell from 79.75 to 58.75 % and a baseline that learned nothing once went unsaid."""
    base = measurement("base", quality={"accuracy": 0.7975})
    lost, same, more = (
        measurement(name, quality={"accuracy": value})
        for name, value in (("lost", 0.5875), ("same", 0.79), ("more", 0.85))
    )
    notes = findings.findings([base, lost, same, more], rows=10_000, majority=0.5)
    assert "lost: 58.75% accuracy, 21.0 points below base." in notes
    assert any(note.startswith("more: 5.2 points above base; what gains is mostly more training") for note in notes)
    assert not any("same" in note or "learned little" in note for note in notes)
    assert not any("more" in n for n in findings.findings([base, more], rows=100))  # within two standard errors
    flat = findings.findings([measurement("flat", quality={"accuracy": 0.213})], rows=500, majority=0.2)
    assert any(
        "its accuracy of 21.30% is about what always naming the most frequent class gives" in n for n in flat
    )


def test_reports_are_short_where_they_are_shown():
    report = Report({}, {"name": "mine"}, [measurement("a"), measurement("b")], steps=[])
    assert repr(report) == "Report('mine', 2 artifacts: a, b)"
    assert repr(measurement("a", quality={"accuracy": 0.5})).endswith("accuracy 0.5)")


def test_reports_survive_json_and_leave_out_what_was_not_measured(tmp_path):
    report = Report(
        machine_info(), {"name": "x"}, [measurement("a", quality={"accuracy": 0.5})], steps=[Step("s", 1.5)]
    )
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report
    stored = report.to_dict()
    assert stored["schema"] == 1 and "throughput_per_s" not in stored["artifacts"][0]
    assert stored["artifacts"][0]["latency_ms"] == {"p50": 1.0, "p95": 1.1, "p99": 1.2}
    (tmp_path / "report.json").write_text('{"schema": 2}')
    with pytest.raises(DataError, match="has report schema 2"):
        Report.load(tmp_path / "report.json")


def test_html_needs_nothing_beside_it_and_escapes():
    report = Report(
        machine_info(), {"name": "<b>"}, [measurement("<i>", quality={"accuracy": 0.5})], steps=[], notes=["<u>"]
    )
    pictures = plots(report)
    assert set(pictures) == {"size_accuracy", "latency_accuracy"} and pictures["size_accuracy"][:4] == b"\x89PNG"
    page = html.page(report, pictures, "x = '<s>'")
    assert not any(f"<{tag}>" in page for tag in "bius") and 'src="data:image/png;base64,' in page
    assert "http" not in page.replace("https://www.w3.org", "")


def test_measure_and_compare(finished_run, tokens):
    inputs = {k: v[:4, :8] for k, v in tokens.items()}
    one = tfopt.measure(finished_run / "baseline_tflite" / "model.tflite", inputs=inputs, rounds=3)
    assert one.latency_ms.p50 > 0 and one.throughput_per_s > 0 and one.speedup is None and one.quality is None
    folders = ("baseline_tflite", "half_tflite_dynamic_int8")
    report = tfopt.compare({n: finished_run / n / "model.tflite" for n in folders}, inputs=inputs, rounds=3)
    assert report.artifact("half_tflite_dynamic_int8").shrink > 1 and report.baseline.shrink == 1
    with pytest.raises(InputError, match="nothing to compare"):
        tfopt.compare([])


def test_operators_are_timed_and_told_by_the_path_they_ran_on(make_bert, tokens, tmp_path):
    """The accelerated path of LiteRT computes products, and looks nothing up."""
    path = tfopt.export(make_bert(), tmp_path / "m.tflite", lengths=[8, 12]).path
    times = {time.name: time for time in operator_times(path, {n: v[:1] for n, v in tokens.items()}, threads=1)}
    products, lookups = times["FULLY_CONNECTED"], times.get("GATHER") or times["EMBEDDING_LOOKUP"]
    assert products.count == products.accelerated == 7 and lookups.accelerated == 0 < lookups.count
    assert all(time.milliseconds >= 0 for time in times.values())
    assert list(times) == sorted(times, key=lambda name: -times[name].milliseconds)


def test_the_operator_that_takes_the_time_is_told_first(keras, tmp_path):
    """2 billion multiplications beside 2,000 additions: no noise of a machine turns them around."""
    inputs = keras.Input((64, 1024), name="x")
    wide = keras.layers.Dense(1024, use_bias=False)(inputs)
    outputs = keras.layers.Softmax()(keras.layers.Dense(2)(wide))
    path = tfopt.export(keras.Model(inputs, outputs), tmp_path / "m.tflite").path
    times = operator_times(path, {"x": np.ones((16, 64, 1024), np.float32)}, threads=1)
    assert times[0].name == "FULLY_CONNECTED" and times[0].milliseconds > times[1].milliseconds


def test_changed_answers_have_their_texts_and_names():
    measured = Measurement(
        "m", "tflite", "m.tflite", bytes=1, confusion={"classes": [0, 1], "counts": [[1, 1], [0, 1]]},
        changed=[{"row": 2, "answer": 1, "baseline": 0, "true": 0}, {"row": 7, "answer": 0, "baseline": 1, "true": 1}],
    )  # fmt: skip
    found = told(measured, ["no", "yes"], lambda rows: {row: f"text {row}" for row in rows if row < 5})
    assert found.confusion == {"classes": ["no", "yes"], "counts": [[1, 1], [0, 1]]}
    assert found.changed == [
        {"row": 2, "answer": "yes", "baseline": "no", "true": "no", "text": "text 2"},
        {"row": 7, "answer": "no", "baseline": "yes", "true": "yes"},
    ]
