"""The trained model of 260k parameters on every runtime: the same text as a C implementation."""

import asyncio
import json

import numpy as np
import pytest

import tfopt
from tfopt._keras import keras_api
from tfopt.decoding.generate import GenerateConfig
from tfopt.engine.generator import Generator
from tfopt.measure.generation import measure_generation
from tfopt.models import read_llama2c
from tfopt.runtime.xla_decoder import XlaDecoder

from .decoders import logits_of


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
        tfopt.export(models["keras"], target / f"{name}.tflite", format="tflite", quantization=kind, lengths=[512])
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
