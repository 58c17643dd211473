import dataclasses
import html
import json

import numpy as np
import pytest

import tfopt
from tfopt._keras import keras_api
from tfopt.compress.base import Option
from tfopt.errors import InputError
from tfopt.models import BertConfig, bert
from tfopt.search import plan as planning
from tfopt.search.front import Point, choose, front_of
from tfopt.search.options import matrices_of, options_of
from tfopt.search.plan import Candidate
from tfopt.search.table import sensitivity
from tfopt.structure.blocks import blocks_of
from tfopt.structure.cut import Kept, cut, renaming
from tfopt.structure.groups import structure_of

from .conftest import TINY

RNG = np.random.default_rng(0)


def samples(rows=8):
    return {
        "input_ids": RNG.integers(0, 60, (rows, 10)).astype(np.int32),
        "attention_mask": np.ones((rows, 10), np.int32),
    }


def quiet(line):
    pass


@pytest.fixture(scope="module", params=keras_api.GENERATIONS)
def measured(request, tmp_path_factory):
    """A model, its options and the table."""
    keras, path = keras_api.keras_module(request.param), tmp_path_factory.mktemp("table") / "t.json"
    keras.utils.set_random_seed(0)
    config = BertConfig(
        60, 32, 2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=24, hidden_dropout_prob=0.0
    )
    model = bert(config, 3, generation=request.param)
    data = [(samples(), np.arange(8) % 3)]
    before = {w.path: keras_api.to_numpy(w.variable).copy() for w in keras_api.weights(model)}
    structure, given = structure_of(model), samples()
    options = options_of(model)
    losses = sensitivity(model, structure, options, samples=given, data=data, path=path, log=quiet)
    for weight in keras_api.weights(model):
        np.testing.assert_array_equal(keras_api.to_numpy(weight.variable), before[weight.path])
    return model, structure, options, given, data, losses, path


def test_the_table_has_every_option_and_is_measured_once(measured, tmp_path):
    model, structure, options, given, data, losses, path = measured
    assert {o.key for o in options} == set(losses) and all(0 <= loss < 10 for loss in losses.values())
    assert {o.kind for o in options} == {"layer", "pooling", "heads", "neurons", "width", "rank", "zeros", "bits"}
    zeros = [o for o in options if o.kind == "zeros"]
    assert np.mean([losses[a.key] < losses[b.key] for a, b in zip(zeros[::2], zeros[1::2], strict=True)]) > 0.8
    table, lines, copy = json.loads(path.read_text()), [], tmp_path / "t.json"
    gone = list(table["rows"])[-3:]
    table["rows"] = {key: -1.0 for key in table["rows"] if key not in gone}
    copy.write_text(json.dumps(table))
    again = sensitivity(model, structure, options, samples=given, data=data, path=copy, log=lines.append)
    assert lines == [f"sensitivity of 3 options ({len(losses) - 3} are known)"]
    assert {key for key, loss in again.items() if loss >= 0} == set(gone)
    assert all(again[key] == pytest.approx(losses[key], abs=1e-6) for key in gone)
    table["fingerprint"] = "of another model"
    copy.write_text(json.dumps(table))
    assert all(
        loss >= 0
        for loss in sensitivity(model, structure, options, samples=given, data=data, path=copy, log=quiet).values()
    )
    copy.write_text("{")
    with pytest.raises(InputError, match="is no sensitivity table"):
        sensitivity(model, structure, options, samples=given, data=data, path=copy, log=quiet)


def test_pooling_early_costs_nothing_where_one_token_is_taken(tmp_path):
    config = BertConfig(
        60, 32, 3, num_attention_heads=4, intermediate_size=64, max_position_embeddings=24, hidden_dropout_prob=0.0
    )
    model = bert(config, 3, pooling="cls", generation="keras")
    structure, data = structure_of(model), [(samples(), np.arange(8) % 3)]
    matrices, options = matrices_of(model), options_of(model)
    losses = sensitivity(
        model, structure, options, samples=samples(), data=data, path=tmp_path / "t.json", log=quiet
    )
    assert losses["pooling|2|1"] < 1e-9
    pooling = next(o for o in options if o.kind == "pooling")
    names = ("attention_query", "attention_output", "intermediate", "output")
    assert pooling.paths == {f"layer_2_{name}/kernel" for name in names}
    before, after = (planning.costs(matrices, plan) for plan in (Candidate(), Candidate((pooling,))))
    # Of each layer's 4 w² + 2 w n products those of keys and values stay in the last one; w = 32, n = 64.
    assert before["latency"] - after["latency"] == 2 * 32 * 32 + 2 * 32 * 64 and before["bytes"] == after["bytes"]
    assert planning.path_of(matrices, options, losses, measure="latency")[1] == Candidate(
        (pooling,), losses[pooling.key]
    )
    assert planning.variant(Candidate((pooling,)), "p", {}, epochs=0, named=str)["shrink"] == {
        "pool_early": True,
        "importance": "first_order",
    }
    without = planning.path_of(matrices, options, {**losses, "layer|2|1": 0.0}, measure="latency")[-1]
    assert not [o for o in without.options if o.kind == "pooling"]


def test_plans_get_smaller_and_what_they_hold_goes_together(measured):
    model, _, options, _, _, losses, _ = measured
    matrices = matrices_of(model)
    for measure in ("bytes", "packed", "latency", "both"):
        plans = planning.path_of(matrices, options, losses, measure=measure)
        assert plans[0] == Candidate() and len(plans) > 10
        sizes = [planning.costs(matrices, plan)["packed" if measure == "both" else measure] for plan in plans]
        assert sizes[-1] < 0.5 * sizes[0]
        for plan in plans:
            gone = {path for o in plan.of_kind("layer") for path in o.shares}
            assert len(plan.of_kind("layer")) < 2
            others = [o for o in plan.options if o.kind not in ("layer", "width")]
            assert not any(o.paths & gone for o in others)
            assert len({(o.kind, o.place) for o in plan.options}) == len(plan.options)
            cut = {path for o in plan.of_kind("heads", "neurons") for path in o.shares}
            assert not cut & {o.place for o in plan.of_kind("rank")}


def test_a_plan_becomes_a_variant_with_the_names_after_the_cut():
    plan = Candidate((
        Option("layer", "1", 1), Option("neurons", "layer_2_intermediate", 0.5), Option("zeros", "layer_0_x/kernel", 0.8),
        Option("rank", "layer_3_x/kernel", 4), Option("bits", "layer_3_x/kernel", 4),
    ))  # fmt: skip
    split = {"layer_3_x/kernel": ("layer_3_x_low/kernel", "layer_3_x/kernel")}
    named = {"layer_2_intermediate": "layer_1_intermediate", "layer_3_x/kernel": "layer_2_x/kernel"}
    named["layer_3_x_low/kernel"] = "layer_2_x_low/kernel"
    found = planning.variant(plan, "p", split, epochs=0, named=lambda name: named.get(name, name))
    assert found["shrink"] == {"neurons": {"layer_1_intermediate": 0.5}, "layers": [1], "importance": "first_order"}
    assert found["factorize"] == {"rank": {"layer_2_x/kernel": 4}}
    assert found["prune"] == [{"sparsity": 0.8, "include": ["layer_0_x/kernel"]}]
    assert planning.bits(plan, split, lambda name: named.get(name, name)) == {
        "layer_2_x_low/kernel": 4,
        "layer_2_x/kernel": 4,
    }


def test_the_front_holds_what_nothing_beats():
    def point(name, accuracy, size, latency):
        return Point(
            name, accuracy, size, packed_bytes=size, latency_ms=latency, artifact=None, recipe=None, choices=""
        )

    best, small, worse, same = (
        point("a", 0.9, 9, latency=9),
        point("b", 0.8, 5, latency=9),
        point("c", 0.8, 6, latency=9),
        point("d", 0.9, 9, latency=9),
    )
    assert front_of([best, small, worse, same]) == (best, small, same)


@pytest.fixture(scope="module")
def found(finished_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("search")
    result = tfopt.search(
        finished_run / "baseline" / "model.keras",
        finished_run / "data",
        out=out,
        max_loss=5.0,
        points=2,
        rounds=3,
        log=quiet,
    )
    return out, result


def test_a_search_ends_with_a_point_within_the_budget(found, finished_run, tmp_path):
    out, result = found
    plain = next(p for p in result.points if p.name == "baseline_tflite_dynamic_int8")
    full = result.baseline.quality["accuracy"]
    assert 100 * (full - result.chosen.accuracy) <= 5.0
    assert result.chosen.packed_bytes <= plain.packed_bytes and result.chosen in result.points
    assert set(result.front) <= set(result.points) and (out / "front.png").read_bytes()[:4] == b"\x89PNG"
    page = (out / "report.html").read_text()
    assert f"Chosen is {result.chosen.name}: {html.escape(result.chosen.choices)}" in page and "front" in page
    assert {p.name for p in result.points if p.recipe} <= {
        a.name.split("_")[0] for a in tfopt.Report.load(out / "report.json").artifacts
    }
    assert "<table" in result._repr_html_() and len(repr(result)) < 400
    assert (
        "accuracy" in result.text() and json.loads((out / "front.json").read_text())["chosen"] == result.chosen.name
    )
    smallest = min((p for p in result.points if p.recipe), key=lambda p: p.packed_bytes)
    report = tfopt.run(
        tfopt.Recipe.load(smallest.recipe).with_changes({"measure.memory": False, "measure.seconds": 0.05}),
        tmp_path / "again",
        log=quiet,
    )
    again = report.artifact(smallest.artifact.parent.name)
    assert again.bytes == smallest.bytes and again.quality["accuracy"] == pytest.approx(smallest.accuracy)


def test_another_budget_reuses_what_is_there(found, finished_run, tfopt_main):
    out, result = found
    at = [
        "search",
        str(finished_run / "baseline" / "model.keras"),
        "--data",
        str(finished_run / "data"),
        "-o",
        str(out),
    ]

    code, shown, progress = tfopt_main(*at, "--max-loss", 5, "--points", 2, "--rounds", 3, "--json")
    assert code == 0 and json.loads(shown)["chosen"] == result.chosen.name
    assert "sensitivity" not in progress and "[export" not in progress  # nothing was done again


def test_layers_are_renamed_as_the_cut_names_them(measured):
    model, structure, *_ = measured
    blocks = blocks_of(model, structure)
    named = renaming(model, (blocks[0],))
    smaller = cut(model, structure, Kept({}, (blocks[0],)))
    assert named("layer_1_output/kernel") == "layer_0_output/kernel" and named("logits/kernel") == "logits/kernel"
    assert {named(p) for p in matrices_of(model) if "layer_0_" not in p} == set(matrices_of(smaller))


def test_data_that_does_not_fit_is_refused_before_any_work(finished_run, tmp_path):
    for changes, message in (
        ({"vocab_size": 50}, r"does not take \d+ tokens with ids up to"), ({"max_position_embeddings": 8}, "does not take"),
    ):  # fmt: skip
        config = BertConfig(**{**dataclasses.asdict(TINY), **changes})
        with pytest.raises(InputError, match=message):
            tfopt.search(bert(config, 2), finished_run / "data", out=tmp_path / "s", max_loss=1)
    with pytest.raises(InputError, match=r"gives .*\(1, 5\).* needs logits for"):
        tfopt.search(
            bert(dataclasses.replace(TINY, vocab_size=9000), 5),
            finished_run / "data",
            out=tmp_path / "s",
            max_loss=1,
        )
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "give exactly one of max_bytes, max_packed_bytes, max_latency_ms, max_loss, got none"),
        ({"max_bytes": 1, "max_loss": 1}, "got max_bytes, max_loss"),
        ({"max_bytes": 0}, "max_bytes must be above 0, got 0"),
        ({"max_loss": 1, "points": 1}, "points must be 2 or more, got 1"),
    ],
)
def test_bad_budgets(finished_run, tmp_path, budget, message):
    with pytest.raises(InputError, match=message):
        tfopt.search(finished_run / "baseline" / "model.keras", finished_run / "data", out=tmp_path / "s", **budget)


def test_the_point_within_a_budget():
    points = [
        Point("a", 0.90, 900, packed_bytes=800, latency_ms=3.0, artifact=None, recipe=None, choices="x"),
        Point("b", 0.88, 500, packed_bytes=300, latency_ms=2.0, artifact=None, recipe=None, choices="y"),
    ]
    assert (
        choose(points, 0.9, "max_bytes", limit=1000).name == "a"
        and choose(points, 0.9, "max_bytes", limit=600).name == "b"
    )
    assert (
        choose(points, 0.9, "max_loss", limit=2.5).name == "b"
        and choose(points, 0.9, "max_loss", limit=1.0).name == "a"
    )
    assert (
        choose(points, 0.9, "max_packed_bytes", limit=300).name
        == choose(points, 0.9, "max_latency_ms", limit=2).name
        == "b"
    )
    with pytest.raises(
        InputError, match=r"no point meets max_bytes 10; the smallest that one meets is 500 \(b, .*y"
    ):
        choose(points, 0.9, "max_bytes", limit=10)
