"""The report in a real browser: everything fits the page, in light and in dark."""

import dataclasses
import json
import re
import shutil
import subprocess

import pytest

import tfopt
from tfopt.measure.results import Latency, Measurement
from tfopt.numerics.metrics import confusion
from tfopt.report import Report, Step
from tfopt.report.html import page
from tfopt.report.plots import plots

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--virtual-time-budget=2000",
)  # fmt: skip
# Tells what is wider than the window or than the box that holds it, and the colours of page and letters.
PROBE = """<script>addEventListener("load", () => {
for (const part of document.querySelectorAll("details")) part.open = true;
const wide = document.documentElement.scrollWidth > innerWidth ? ["page"] : [];
for (const box of document.querySelectorAll(".wide, pre")) {
  if (box.scrollWidth > box.clientWidth + 1 && box.tagName != "PRE") wide.push(box.innerText.slice(0, 60));
}
const broken = [...document.images].filter((i) => !i.naturalWidth).map((i) => i.alt);
const style = getComputedStyle(document.body);
document.body.innerHTML = "<p id=found>" + JSON.stringify({wide, broken, ink: style.color, paper: style.backgroundColor})
  .replaceAll("<", " ") + "</p>";
});</script>"""


def measured(name, accuracy, **changes):
    answers = ["yes"] * 60 + ["no"] * 40
    return Measurement(
        name, "tflite", f"{name}/model.tflite", bytes=23_454_680, bytes_gzip=21_000_000, bytes_packed=20_885_750,
        bytes_entropy=20_738_413, sparsity=0.1, kernel_sparsity=0.1, weight_bits=8.1, speedup=23.55, shrink=24.83,
        latency_ms=Latency(12.345, 23.456, 34.567), latency_spread=0.02, throughput_per_s=12_345.6,
        peak_memory_bytes=1_030_000_000, quality={"accuracy": accuracy}, max_abs_error=0.01234, agreement=0.987,
        confusion=confusion(answers, answers[::-1]),
        changed=[{"row": 3, "answer": "yes", "baseline": "no", "true": "no", "text": "<b>word</b> " * 60}] * 20,
        operators=[{"name": "FULLY_CONNECTED", "count": 37, "accelerated": 37, "milliseconds": 3.5}], **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def report():
    names = ["baseline", "baseline_tflite_dynamic_int8_gptq_smooth", "pooled-narrow-all-words", "small"]
    found = [measured(name, 0.9 - 0.01 * i) for i, name in enumerate(names)]
    found[2] = dataclasses.replace(found[2], layers=[
        {"path": "layer_0_attention_query/kernel", "bits": 8, "granularity": "channel", "reason": "because " * 30}
    ])  # fmt: skip
    curves = {name: {"loss": [0.5, 0.3], "val_loss": [0.6, 0.5], "val_accuracy": [0.7, 0.8]} for name in names}
    return Report(
        {"processor": "x" * 60, "versions": {f"package-{i}": "1.2.3" for i in range(12)}}, {"name": "a report"},
        found, [Step("train baseline", 12.0)], {"validation_records": 872, "labels": ["no", "yes"] * 9},
        notes=["model.tflite: 23.6 times faster and 24.8 times smaller.", "Something else. " * 20], curves=curves,
        shipped="small",
    )  # fmt: skip


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize(("width", "dark"), [(1400, False), (1400, True)])
def test_a_page_fits_the_window(report, tmp_path, width, dark):
    pictures = plots(report)
    assert set(pictures) == {"size_accuracy", "latency_accuracy", "training"}
    content = page(report, pictures, "schema = 1\n" + "x" * 400)
    assert "<b>word" not in content and "&lt;b&gt;word" in content
    found = shown(content, tmp_path, width=width, dark=dark)
    assert found["wide"] == [] and found["broken"] == []
    ink, paper = (sum(map(int, re.findall(r"\d+", found[part])[:3])) for part in ("ink", "paper"))
    assert (ink > paper + 300) if dark else (paper > ink + 300)


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium")
def test_a_page_that_does_not_fit_is_seen(report, tmp_path):
    wide = measured("x" * 300, 0.9)
    content = page(dataclasses.replace(report, artifacts=[*report.artifacts, wide]), {"gone": b"no picture"}, "")
    found = shown(content, tmp_path, width=1400, dark=False)
    assert found["wide"] and found["broken"] == ["gone"]


def shown(content, folder, *, width, dark):
    path = folder / "page.html"
    path.write_text(content.replace("</body>", PROBE + "</body>"))
    flags = [*FLAGS, f"--window-size={width},2000", f"--user-data-dir={folder / 'browser'}"]
    flags += ["--blink-settings=preferredColorScheme=0"] if dark else ["--blink-settings=preferredColorScheme=1"]
    run = subprocess.run(
        [BROWSER, *flags, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120
    )
    found = re.search(r'<p id="found">(.*)</p>', run.stdout)
    assert found, run.stderr[-2000:]
    return json.loads(found[1].replace("&amp;", "&"))


def test_the_page_names_the_file_to_ship(report):
    content = page(report, {}, "")
    assert '<p class="headline">model.tflite: 23.6 times faster' in content
    assert '<tr class="chosen"><td>small</td>' in content
    assert content.index("accuracy</th>") < content.index("What the figures say") < content.index("gzip</th>")
    assert "precision" in content and "FULLY_CONNECTED" in content and "Texts whose answer changed" in content
    plain = page(dataclasses.replace(report, shipped=None), {}, "")
    assert 'class="headline"' not in plain and "<li>model.tflite: 23.6" in plain


def test_what_a_report_says_of_trainings_and_answers_is_read_back(report, tmp_path):
    again = tfopt.Report.load(report.save(tmp_path / "report.json"))
    assert again == report
