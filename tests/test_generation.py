"""Choosing tokens, drafts, pieces of text, ends, and what is refused."""

import numpy as np
import pytest

from tfopt.data.detokenizers import ByteStream, HuggingFaceTokenizer
from tfopt.data.llama2c_tokenizer import Llama2cTokenizer
from tfopt.decoding.decoder import Decoder, Session
from tfopt.decoding.generate import GenerateConfig, Texts
from tfopt.decoding.sampling import Sampler, SamplingConfig, distribution, penalized, pick
from tfopt.decoding.speculative import DraftModel, speculate
from tfopt.decoding.stop_strings import StopStrings
from tfopt.decoding.weights import config_of
from tfopt.engine.generator import Generator
from tfopt.errors import InputError, ModelFileError
from tfopt.runtime.eager_decoder import EagerDecoder
from tfopt.runtime.xla_decoder import XlaDecoder, choose

from .decoders import logits_of, make, tokens


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
        found[tuple(speculate(large, DraftModel(small), prompt, config, proposals=2))] += 1
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
