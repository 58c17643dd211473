"""Cached decoding on every runtime: the same logits as recomputing, the same text as a C implementation."""

import asyncio
import json

import numpy as np
import pytest

import tfopt
from tfopt._keras import keras_api
from tfopt.compress import quantize
from tfopt.data.detokenizers import ByteStream, HuggingFaceTokenizer
from tfopt.data.llama2c_tokenizer import Llama2cTokenizer
from tfopt.decoding.decoder import Decoder, Session
from tfopt.decoding.generate import GenerateConfig, Texts
from tfopt.decoding.sampling import Sampler, SamplingConfig, distribution, penalized, pick
from tfopt.decoding.speculative import speculate
from tfopt.decoding.stop_strings import StopStrings
from tfopt.decoding.weights import config_of
from tfopt.engine.generator import Generator
from tfopt.errors import InputError, ModelFileError
from tfopt.measure.generation import measure_generation
from tfopt.models import read_llama2c
from tfopt.quantization import NAMED, QuantizeConfig
from tfopt.quantization.calibration import quantize_weights
from tfopt.quantization.weights import on_grids
from tfopt.runtime.eager_decoder import EagerDecoder
from tfopt.runtime.tflite_decoder import TFLiteDecoder
from tfopt.runtime.xla_decoder import XlaDecoder, choose
from tfopt.tflite.file import read_metadata, read_tflite

from .decoders import FAMILIES, logits_of, make, tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_changes_nothing(family, generation):
    model, ids = make(family, generation), tokens(2)
    full = logits_of(model, ids)
    with EagerDecoder(model).open([0, 0]) as session:
        parts = [session.extend(ids[:, :7], every=True), session.extend(ids[:, 7:9], every=True)]
        parts += [session.extend(ids[:, i : i + 1]) for i in range(9, 20)]
        assert session.length == 20 and session.cache_bytes > 0
    np.testing.assert_allclose(np.concatenate(parts, 1), full, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_at_either_end_changes_nothing(family, generation):
    model, ids = make(family, generation), tokens(1, 12)
    full = logits_of(model, ids)
    zeros, ones = np.zeros((1, 5), np.int32), np.ones_like(ids)
    left, right = np.concatenate([zeros, ids], 1), np.concatenate([ids, zeros], 1)
    np.testing.assert_allclose(logits_of(model, left, np.concatenate([zeros, ones], 1))[:, 5:], full, atol=1e-4)
    np.testing.assert_allclose(logits_of(model, right, np.concatenate([ones, zeros], 1))[:, :12], full, atol=1e-4)
    with EagerDecoder(model).open([5]) as session:
        np.testing.assert_allclose(session.extend(left, every=True)[:, 5:], full, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_runtime_gives_the_same(family, tmp_path):
    model, ids = make(family), tokens(1, 40)
    full = logits_of(model, ids)
    tfopt.export(model, tmp_path / "m.tflite", format="tflite", lengths=[16, 48])
    for decoder in (XlaDecoder(model), TFLiteDecoder(tmp_path / "m.tflite", 1)):
        with decoder.open([0]) as session:
            parts = [session.extend(ids[:, :11], every=True)]
            parts += [session.extend(ids[:, i : i + 1]) for i in range(11, 40)]
        np.testing.assert_allclose(np.concatenate(parts, 1), full, atol=2e-4)
        with decoder.open([0]) as session:  # prompts, then back, then on
            session.extend(ids[:, :30])
            session.rewind(20)
            np.testing.assert_allclose(session.extend(ids[:, 20:40])[:, -1], full[:, -1], atol=2e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_models_train_save_and_take_every_technique(family, keras, generation, tmp_path):
    model = tfopt.models.causal_lm(FAMILIES[family], generation)
    ids = np.tile(np.arange(16, dtype=np.int32), (32, 1))
    inputs, targets = {"input_ids": ids[:, :-1], "attention_mask": np.ones_like(ids[:, :-1])}, ids[:, 1:]
    quantize.prepare(model, QuantizeConfig())
    model.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses = model.fit(inputs, targets, epochs=6, batch_size=8, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    simulated = logits_of(model, ids[:1])
    tfopt.finish(model)
    tfopt.prune(model, 0.3)
    tfopt.models.save(model, tmp_path / "m.keras")
    again = tfopt.models.load(tmp_path / "m.keras")
    np.testing.assert_array_equal(logits_of(again, ids[:1]), logits_of(model, ids[:1]))
    assert EagerDecoder(again).config == FAMILIES[family]
    assert simulated.shape == (1, 16, 64)


def test_trained_grids_are_in_the_file_that_generates(keras, generation, tmp_path):
    model = make("llama", generation)
    quantize.prepare(model, QuantizeConfig(weight_bits=4))
    ids = tokens(8, 12)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit({"input_ids": ids[:, :-1], "attention_mask": np.ones_like(ids[:, 1:])}, ids[:, 1:], verbose=0)
    simulated = logits_of(model, ids[:1])
    tfopt.finish(model)
    artifact = tfopt.export(model, tmp_path / "m.tflite", format="tflite", quantization="trained")
    assert {layer.bits for layer in artifact.layers} == {4}
    found = tfopt.Predictor.load(artifact.path).predict(
        {"input_ids": ids[:1], "attention_mask": np.ones_like(ids[:1])}
    )["logits"]
    np.testing.assert_allclose(found, simulated, atol=0.05 * np.abs(simulated).max())


# the trained model of 260k parameters


@pytest.fixture(scope="module")
def stories(tmp_path_factory, shared_data):
    folder = shared_data / "tinystories260k"
    golden = json.loads((folder / "greedy.json").read_text("utf-8"))
    models = {
        generation: read_llama2c(folder / "stories260K.bin", generation=generation, tokenizer=folder / "tok512.bin")
        for generation in keras_api.GENERATIONS
    }
    target = tmp_path_factory.mktemp("stories")
    for name, kind in (("float", None), ("int8", "weight_only_int8")):
        tfopt.export(
            models["keras"], target / f"{name}.tflite", format="tflite", quantization=kind, lengths=[64, 512]
        )
    return models, golden, target


def continued(generator, golden):
    for prompt, text in golden["continuations"].items():
        room = golden["steps"] + 1 - len(generator.tokenizer.encode_ids(prompt))
        yield prompt + generator.generate(prompt, GenerateConfig(max_tokens=room))[0].text + "\n", text


@pytest.mark.parametrize("runtime", ["eager", "xla", "tflite"])
def test_greedy_text_is_that_of_the_reference(runtime, generation, stories):
    models, golden, folder = stories
    source = folder / "float.tflite" if runtime == "tflite" else models[generation]
    for found, text in continued(Generator.load(source, runtime=runtime), golden):
        assert found == text


def test_int8_agrees_on_the_first_tokens(stories):
    models, golden, folder = stories
    exact, narrow = Generator.load(models["keras"], runtime="eager"), Generator.load(folder / "int8.tflite")
    shares = []
    for prompt in golden["continuations"]:
        texts = [g.generate(prompt, GenerateConfig(max_tokens=100))[0].tokens for g in (exact, narrow)]
        shares.append(np.mean([a == b for a, b in zip(*texts, strict=True)]))
    assert np.mean(shares) >= 0.95
    assert (folder / "int8.tflite").stat().st_size < 0.6 * (folder / "float.tflite").stat().st_size


def test_narrow_weights_in_xla(stories):
    models, golden, _ = stories
    prompt = next(iter(golden["continuations"]))
    whole, eight, four = (XlaDecoder(models["keras"], bits) for bits in (None, 8, 4))
    assert four.weight_bytes < eight.weight_bytes / 1.5 < whole.weight_bytes / 4
    ids = np.asarray([Generator.load(models["keras"], runtime="eager").tokenizer.encode_ids(prompt)], np.int32)
    logits = []
    for decoder in (whole, eight, four):
        with decoder.open([0]) as session:
            logits.append(session.extend(ids, every=True))
    reach = np.abs(logits[0]).max()
    assert np.abs(logits[1] - logits[0]).max() < 0.05 * reach
    assert 0.05 * reach < np.abs(logits[2] - logits[0]).max() < reach


def test_batches_streams_and_stops_agree_with_single_answers(stories):
    models, golden, _ = stories
    prompts = [*golden["continuations"], "Lily"]
    for runtime in ("eager", "xla"):
        generator = Generator.load(models["tf_keras"], runtime=runtime)
        together = generator.generate(prompts, GenerateConfig(max_tokens=24))
        for prompt, answer in zip(prompts, together, strict=True):
            pieces = list(generator.stream(prompt, GenerateConfig(max_tokens=24)))
            assert "".join(p.text for p in pieces) == answer.text
            assert tuple(p.token for p in pieces if p.token is not None) == answer.tokens
        stopped = generator.generate(prompts[0], GenerateConfig(max_tokens=60, stop=("park", "xyz")))[0]
        assert stopped.finish == "stop" and stopped.text.endswith("outside in the ")
        never = generator.generate(prompts[0], GenerateConfig(max_tokens=9, stop=("never said",)))[0]
        assert never.finish == "length" and len(never.tokens) == 9


def test_the_same_seed_gives_the_same_text_on_every_runtime(stories):
    models, golden, folder = stories
    prompt = next(iter(golden["continuations"]))
    ways = [{"temperature": 0.9, "top_p": 0.9}, {"temperature": 1.1, "top_k": 12, "repetition_penalty": 1.3}]
    for way in ways:
        texts = {
            Generator.load(source, runtime=runtime)
            .generate(prompt, GenerateConfig(max_tokens=40, seed=5, **way))[0]
            .text
            for source, runtime in (
                (models["keras"], "eager"),
                (models["keras"], "xla"),
                (folder / "float.tflite", None),
            )
        }
        assert len(texts) == 1
        other = Generator.load(folder / "float.tflite").generate(
            prompt, GenerateConfig(max_tokens=40, seed=6, **way)
        )
        assert other[0].text not in texts


def test_a_draft_changes_no_greedy_text(stories):
    models, golden, folder = stories
    for draft in (folder / "int8.tflite", folder / "float.tflite"):
        generator = Generator.load(models["keras"], runtime="eager", draft=draft)
        for found, text in continued(generator, golden):
            assert found == text


def test_perplexity_and_speed(stories):
    models, golden, folder = stories
    text = next(iter(golden["continuations"].values()))
    generator = Generator.load(folder / "float.tflite")
    ids = generator.tokenizer.encode_ids(text)
    found = tfopt.perplexity(generator.decoder, ids, window=64, stride=16)
    logits = logits_of(models["keras"], np.asarray([ids], np.int32))[0, :-1].astype(np.float64)
    chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    whole = np.exp(-chances[np.arange(len(ids) - 1), ids[1:]].mean())
    assert found.tokens == len(ids) - 1 and found.next_token_accuracy > 0.8
    once = tfopt.perplexity(generator.decoder, ids)
    assert once.perplexity == pytest.approx(whole, rel=1e-4) and found.perplexity == pytest.approx(whole, rel=0.2)
    (speed,) = measure_generation({"m": generator.decoder}, prompt_tokens=16, new_tokens=8, rounds=2)
    assert speed.decode_tokens_per_s > 0 and speed.first_token_s > 0 and speed.cache_bytes > 0


def test_cancelling_frees_the_cache(stories):
    models, golden, _ = stories
    generator = Generator.load(models["keras"], runtime="eager")
    opened = []
    real = generator.decoder.open

    def watching(pads):
        opened.append(real(pads))
        return opened[-1]

    generator.decoder.open = watching
    prompt = next(iter(golden["continuations"]))

    async def main():
        stream = generator.astream(prompt, GenerateConfig(max_tokens=200))
        pieces = [await anext(stream) for _ in range(3)]
        task = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await stream.aclose()
        return pieces

    async def left_to_the_end():
        stream = generator.astream(prompt, GenerateConfig(max_tokens=200))
        task = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        assert not task.done()

    assert len(asyncio.run(main())) == 3 and opened[0].cache_bytes == 0
    asyncio.run(left_to_the_end())
    assert opened[1].cache_bytes == 0
    steps = generator.stream(prompt)
    next(steps)
    steps.close()
    assert opened[2].cache_bytes == 0


# choosing tokens


def test_distributions_are_those_of_the_definitions():
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1])).astype(np.float32)
    np.testing.assert_allclose(distribution(logits, SamplingConfig(1.0)), [0.4, 0.3, 0.2, 0.1], atol=1e-6)
    np.testing.assert_allclose(distribution(logits, SamplingConfig(1.0, top_k=2)), [4 / 7, 3 / 7, 0, 0], atol=1e-6)
    np.testing.assert_allclose(
        distribution(logits, SamplingConfig(1.0, top_p=0.5)), [4 / 7, 3 / 7, 0, 0], atol=1e-6
    )
    squared = np.array([16, 9, 4, 1]) / 30
    np.testing.assert_allclose(distribution(logits, SamplingConfig(0.5)), squared, atol=1e-6)
    said = np.array([True, False, True, False])
    np.testing.assert_allclose(penalized(np.array([2.0, 2, -1, -1]), said, 2.0), [1, 2, -2, -1])
    assert pick(np.array([0.0, 0.5, 0.5]), 0.0) == 1 and pick(np.array([0.5, 0.5, 0.0]), 0.9999999) == 1


@pytest.mark.parametrize("config", [
    SamplingConfig(), SamplingConfig(0.7), SamplingConfig(1.3, top_k=5), SamplingConfig(1.0, top_p=0.8),
    SamplingConfig(0.9, 20, 0.9, repetition_penalty=1.4),
])  # fmt: skip
def test_programs_choose_as_numpy_does(config):
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (64, 50)).astype(np.float32)
    said, uniforms = rng.random((64, 50)) < 0.3, rng.random(64).astype(np.float32)
    found = choose(logits, said, uniforms, config=config).numpy()
    sampler = Sampler(config)
    for row in range(64):
        sampler.uniform = lambda row=row: float(uniforms[row])
        assert found[row] == sampler.choose(logits[row], said[row])


class Remembered(Decoder):
    """A model whose logits after a text are computed once: thousands of short texts share their beginnings."""

    def __init__(self, model):
        self.config, self.context, self.model, self.known = config_of(model), 48, model, {}

    def open(self, pads):
        return RememberedSession(self)

    def after(self, text):
        if text not in self.known:
            self.known[text] = logits_of(self.model, np.asarray([text], np.int32))[0, -1]
        return self.known[text]


class RememberedSession(Session):
    text = ()

    def _extend(self, ids, every):
        self.text = (*self.text[: self.length], *(int(i) for i in ids[0]))
        ends = range(self.length + 1 if every else len(self.text), len(self.text) + 1)
        return np.stack([self._decoder.after(self.text[:end]) for end in ends])[None]

    cache_bytes = 0

    def close(self):
        pass


def test_a_draft_does_not_change_the_distribution():
    """Over many texts, three tokens come as often as without a draft."""
    draft, rng = make("llama"), np.random.default_rng(3)
    draft.set_weights(
        [w + rng.normal(0, 0.03, w.shape) for w in draft.get_weights()]
    )  # mostly the same three tokens
    large, small = Remembered(make("llama")), Remembered(draft)
    prompt, count, said = (1, 2, 3), 4000, np.zeros(64, bool)
    sampler = Sampler(GenerateConfig(temperature=1.0, top_k=3))
    expected = {(): 1.0}
    for _ in range(3):
        expected = {
            (*text, int(token)): chance * chances[token]
            for text, chance in expected.items()
            for chances in [sampler.distribution(large.after((*prompt, *text)), said)]
            for token in np.flatnonzero(chances)
        }
    found = dict.fromkeys(expected, 0)
    for seed in range(count):
        config = GenerateConfig(temperature=1.0, top_k=3, seed=seed, max_tokens=3)
        found[tuple(speculate(large, small, prompt, config=config, proposals=2))] += 1
    squared = sum((found[k] - count * p) ** 2 / (count * p) for k, p in expected.items())
    assert len(expected) == 27 and squared < 54.1  # chi-square with 26 degrees of freedom, one in a thousand


# text


def test_characters_are_whole():
    data = "aé€😀z".encode()
    stream = ByteStream(lambda token, _: data[token : token + 1], None)
    shown = [stream.push(i) for i in range(len(data))]
    assert "".join(shown) == "aé€😀z" and all("�" not in s for s in shown) and stream.rest() == ""
    cut = ByteStream(lambda token, _: data[token : token + 1], None)
    assert cut.push(1) == "" and cut.rest() == "�"


def test_hugging_face_tokenizers_stream_what_they_decode():
    from tfopt.data.tokenizers import train_bpe

    tokenizer = train_bpe(["naïve café — 😀 words and more words"] * 4, 300)
    wrapped = HuggingFaceTokenizer(tokenizer)
    text = "more naïve 😀 café — words"
    ids = wrapped.encode_ids(text)
    assert ids[-1] != tokenizer.token_to_id("[SEP]") and ids[0] == tokenizer.token_to_id("[CLS]")
    stream = wrapped.stream(ids[:2])
    shown = [stream.push(i) for i in ids[2:]] + [stream.rest()]
    assert "".join(shown) == tokenizer.decode(ids)[len(tokenizer.decode(ids[:2])) :]
    assert all("�" not in s for s in shown)


def test_stop_strings_across_pieces():
    stops = StopStrings(("END", "ENOUGH"))
    assert [stops.push(p) for p in ("say E", "N", "x EN", "D more")] == ["say ", "", "ENx ", ""] and stops.found
    held = StopStrings(("END",))
    assert held.push("the EN") == "the " and held.rest() == "EN" and not held.found


def test_llama2c_tokenizers(tmp_path, shared_data):
    tokenizer = Llama2cTokenizer.read(shared_data / "tinystories260k" / "tok512.bin")
    assert len(tokenizer.encode_ids("Once upon a time there was " * 4000)) > 1000  # in no time
    for text in ("Once upon a time", "naïve 😀", "a  b", "x"):
        ids = tokenizer.encode_ids(text)
        stream = tokenizer.stream(ids[:1])
        assert "".join(stream.push(i) for i in ids[1:]) + stream.rest() == text
    (tmp_path / "bad.bin").write_bytes(b"\x05\0\0\0" + b"\1" * 30)
    with pytest.raises(ModelFileError, match="is no llama2.c tokenizer"):
        Llama2cTokenizer.read(tmp_path / "bad.bin")


# ends and errors


def test_stop_tokens_and_least_lengths():
    decoder = EagerDecoder(make("llama"))
    config = GenerateConfig(max_tokens=12, stop_tokens=())
    free = [row[0] for row in Texts(decoder, [[1, 2]], config).steps()]
    assert len(free) == 12
    place = next(i for i in range(2, 12) if free[i] not in free[:i])
    ended = Texts(decoder, [[1, 2]], GenerateConfig(max_tokens=12, stop_tokens=(free[place],))).steps()
    assert [row[0] for row in ended] == free[:place]
    later = Texts(
        decoder, [[1, 2]], GenerateConfig(max_tokens=12, stop_tokens=(free[place],), min_tokens=place + 1)
    )
    assert len(list(later.steps())) > place
    full = list(Texts(decoder, [[1] * 40], GenerateConfig(max_tokens=99, stop_tokens=())).steps())
    assert len(full) == 48 - 40 + 1  # the last token of a full context is still chosen


@pytest.mark.parametrize(("prompt", "settings", "says"), [
    ([1] * 49, {}, "the prompt has 49 tokens, the context holds 48; .* truncate to keep its end"),
    ([], {}, "the prompt has no tokens"),
    ([1, 64], {}, r"token id must be in \[0, 64\), got 64"),
    ([-1], {}, r"token id must be in \[0, 64\), got -1"),
    ([1], {"stop_tokens": (99,)}, r"stop token must be in \[0, 64\), got 99"),
    ([1], {"stop": ("x",)}, "stop strings need a tokenizer"),
    ("text", {}, "the model came without a tokenizer"),
])  # fmt: skip
def test_bad_prompts(prompt, settings, says):
    with pytest.raises(InputError, match=says):
        Generator(EagerDecoder(make("llama"))).generate([prompt], GenerateConfig(**settings))


@pytest.mark.parametrize(("settings", "says"), [
    ({"temperature": -0.1}, "temperature must be 0, or 0.0001 or more, got -0.1"),
    ({"temperature": float("nan")}, "temperature must be 0, or 0.0001 or more, got nan"),
    ({"seed": -1}, "seed must be 0 or more, got -1"),
    ({"top_k": 0}, "top_k must be 1 or more"),
    ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
    ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
    ({"max_tokens": 0}, "max_tokens must be 1 or more"),
    ({"min_tokens": 200}, r"min_tokens must be in \[0, 128\]"),
    ({"stop": "x"}, "stop must be a tuple of strings"),
])  # fmt: skip
def test_bad_settings(settings, says):
    with pytest.raises(InputError, match=says):
        GenerateConfig(**settings)


def test_long_prompts_are_cut_only_when_asked(tmp_path):
    generator = Generator(EagerDecoder(make("llama")))
    ids = tokens(1, 60)[0].tolist()
    kept = generator.generate([ids], GenerateConfig(max_tokens=1, truncate=True))[0]
    assert kept.tokens == generator.generate([ids[-47:]], GenerateConfig(max_tokens=1))[0].tokens
    assert kept.prompt_tokens == 47 and kept.finish == "length"
    long = generator.generate([ids], GenerateConfig(max_tokens=99, truncate=True, stop_tokens=()))[0]
    assert long.prompt_tokens == 36 and len(long.tokens) == 13 and long.finish == "context"


def test_short_texts_get_their_answers_beside_long_ones():
    generator = Generator(EagerDecoder(make("llama")))
    config = GenerateConfig(max_tokens=20, stop_tokens=())
    short = generator.generate([[1, 2]], config)[0]
    beside = generator.generate([tokens(1, 40)[0], np.array([1, 2])], config)
    assert beside[1].tokens == short.tokens and beside[1].finish == "length" and beside[0].finish == "context"


@pytest.mark.parametrize("runtime", [EagerDecoder, XlaDecoder])
def test_least_lengths_hold_on_every_runtime(runtime):
    decoder = runtime(make("llama"))
    config = GenerateConfig(max_tokens=12, min_tokens=10, stop_tokens=tuple(range(0, 64, 2)))
    found = Generator(decoder).generate([[1, 2]], config)[0].tokens
    assert 10 <= len(found) <= 12 and not set(found[:10]) & set(config.stop_tokens)


def test_drafts_keep_rows_apart_and_stop():
    large, small = EagerDecoder(make("llama")), EagerDecoder(make("llama", seed=9))
    generator = Generator(large, draft=small)
    first, second = generator.generate([[1, 2], [1, 2]], GenerateConfig(1.0, max_tokens=20, stop_tokens=()))
    assert first.tokens != second.tokens


def test_small_caches_and_tied_tables(tmp_path):
    model, ids = make("qwen2"), tokens(1, 40)
    artifact = tfopt.export(model, tmp_path / "m.tflite", format="tflite", lengths=[5, 48])
    with TFLiteDecoder(artifact.path, 1).open([0]) as session:
        session.extend(ids[:, :3])
        np.testing.assert_allclose(session.extend(ids[:, 3:40])[:, -1], logits_of(model, ids)[:, -1], atol=2e-4)
    with pytest.raises(InputError, match="this session is closed"):
        session.extend(ids[:, :1])
    for kind, limit in ((None, 1e-4), ("float16", 0.02), ("weight_only_int8", 0.06), ("weight_only_int4", 0.0)):
        path = tfopt.export(model, tmp_path / "k.tflite", format="tflite", quantization=kind).path
        tables = [c for c in read_tflite(path).constants if sorted(c.shape) == [32, 64]]
        assert len(tables) == 1, "the output is tied to the table"
        expected = logits_of(model, ids)
        if kind == "weight_only_int4":  # 8 bits are rounded with the norms folded into them
            with on_grids(model, quantize_weights(model, NAMED[kind])[0].grids):
                expected, limit = logits_of(model, ids), 2e-3
        found = tfopt.Predictor.load(path).predict({"input_ids": ids, "attention_mask": np.ones_like(ids)})[
            "logits"
        ]
        np.testing.assert_allclose(found, expected, atol=limit * np.abs(expected).max())


def test_files_that_generate(tmp_path):
    model = make("llama")
    artifact = tfopt.export(
        model, tmp_path / "m.tflite", format="tflite", quantization="dynamic_int8", lengths=[16, 48]
    )
    assert artifact.lengths == (16, 48) and "tfopt_causal_lm.json" in read_metadata(artifact.path)
    decoder = TFLiteDecoder(artifact.path, 1, tmp_path / "cache")
    keys = {s.key for s in decoder.signatures}
    assert {"decode", "decode_16", "prefill_16", "prefill_16_16", "verify_8", "verify_8_16"} <= keys
    stored = [c for c in read_tflite(artifact.path).constants if c.is_matrix and c.data.size > 1000]
    assert stored and all(c.dtype == "int8" for c in stored)
    assert Generator.load(artifact.path).decoder.rows == 1
    with pytest.raises(InputError, match="takes one text at a time"):
        decoder.open([0, 0])
    with pytest.raises(InputError, match=r"lengths of a cache must be in \[1, 48\]"):
        tfopt.export(model, tmp_path / "m.tflite", format="tflite", lengths=[64])
    with pytest.raises(InputError, match="no static kind"):
        tfopt.export(model, tmp_path / "m.tflite", format="tflite", quantization="int8",
                     representative={n: tokens(8, 12) for n in ("input_ids", "attention_mask")})  # fmt: skip
    whole = artifact.path.read_bytes()
    for cut in (100, len(whole) // 2, len(whole) - 5000):
        (tmp_path / "cut.tflite").write_bytes(whole[:cut])
        with pytest.raises(ModelFileError):
            TFLiteDecoder(tmp_path / "cut.tflite")
    (kept,) = (tmp_path / "cache").iterdir()
    (tmp_path / "m.tflite").write_bytes(whole)  # the same file anew: what was kept for the old one is not used
    TFLiteDecoder(artifact.path, 1, tmp_path / "cache")
    assert kept.exists() and len(list((tmp_path / "cache").iterdir())) == 2
    again = TFLiteDecoder(artifact.path, 1, tmp_path / "cache")
    for decoder_ in (decoder, again):
        with decoder_.open([0]) as session:
            found = session.extend(tokens(1, 20), every=True)
        np.testing.assert_allclose(found, logits_of(model, tokens(1, 20)), atol=0.1 * np.abs(found).max())


@pytest.mark.parametrize("slots", [[9, 48], [48]])
def test_narrow_caches_and_odd_ones(slots, tmp_path):
    """Nine slots do not begin where LiteRT wants them to unless they are put there."""
    model, ids = make("qwen2"), tokens(1, 40)
    full, sizes = logits_of(model, ids), {}
    for cache, limit in (("float32", 1e-4), ("int8", 0.05)):
        path = tfopt.export(model, tmp_path / f"{cache}.tflite", format="tflite", lengths=slots, cache=cache).path
        with TFLiteDecoder(path, 1).open([0]) as session:
            parts = [session.extend(ids[:, :5], every=True)] + [
                session.extend(ids[:, i : i + 1]) for i in range(5, 40)
            ]
            sizes[cache] = session.cache_bytes
        np.testing.assert_allclose(np.concatenate(parts, 1), full, atol=limit * np.abs(full).max())
    assert sizes["int8"] == sizes["float32"] * (8 + 4) / 32  # eight values and a scale
    with pytest.raises(InputError, match="cache='int8' is for a TFLite file that generates"):
        tfopt.export(model, tmp_path / "x", cache="int8")


def test_predictors_stream_tokens(tmp_path):
    model = make("llama")
    tfopt.models.save(model, tmp_path / "m.keras")
    tfopt.export(model, tmp_path / "m.tflite", format="tflite")
    config = GenerateConfig(max_tokens=9, stop_tokens=())
    first, second = (
        list(tfopt.Predictor.load(tmp_path / name).stream([1, 2, 3], config)) for name in ("m.keras", "m.tflite")
    )
    assert first == second and len(first) == 9


def test_sources_that_do_not_generate(make_bert, tmp_path):
    tfopt.models.save(make_bert(), tmp_path / "m.keras")
    with pytest.raises(InputError, match="does not generate; export a causal language model"):
        tfopt.Predictor.load(tmp_path / "m.keras").stream([1])
    with pytest.raises(InputError, match="is no causal language model of tfopt"):
        Generator.load(tmp_path / "m.keras")
    with pytest.raises(InputError, match="runtime must be one of eager, xla, tflite, got 'tpu'"):
        Generator.load(tmp_path / "m.keras", runtime="tpu")
    (tmp_path / "w.bin").write_bytes(b"\x80\x02rest")
    with pytest.raises(ModelFileError, match="is a pickle, which runs code"):
        Generator.load(tmp_path / "w.bin")
    (tmp_path / "v.bin").write_bytes(b"\1\0\0\0" * 20)
    with pytest.raises(ModelFileError, match="header"):
        Generator.load(tmp_path / "v.bin")
