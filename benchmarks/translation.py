"""Trains small translators, and measures their files: numbers and dates, from English to German.

    python -m benchmarks.translation

A program makes the data, and no source of the held-out ones is trained on. A T5 shape is trained in tf_keras, a
Marian shape in Keras 3; what counts is the share of held-out sources whose translation is right to the last letter,
by the Keras model (recomputed without a cache), by XLA over a cache, and by TFLite files.
"""

import functools
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import tfopt
from benchmarks.common import goal, paired, ratio, save
from tfopt._keras import extras, keras_api

SHAPES = {
    "t5 (tf_keras)": ("tf_keras", {"gated": True, "hidden_act": "gelu_tanh", "relative_buckets": 16,
                                   "relative_distance": 32, "logit_scale": 96**-0.5}),
    "marian (keras)": ("keras", {"positions": "sinusoidal", "norm": "layer", "norm_first": False, "bias": True,
                                 "logits_bias": True, "embedding_scale": 96**0.5, "score_scale": 24**-0.5,
                                 "norm_eps": 1e-5, "hidden_act": "silu", "barred_tokens": (0,)}),
}  # fmt: skip
KINDS = (None, "float16", "dynamic_int8", "weight_only_int8")
STEPS, BATCH, HELD_OUT, LENGTH, ROUNDS = 3000, 64, 300, 16, 7


def _words(text: str) -> list[str]:
    return text.split()


_EN_ONES = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_EN_TENS = _words("_ _ twenty thirty forty fifty sixty seventy eighty ninety")
_DE_ONES = _words(
    "null ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn "
    "siebzehn achtzehn neunzehn"
)
_DE_TENS = _words("_ _ zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig")
_EN_MONTHS = _words("January February March April May June July August September October November December")
_DE_MONTHS = _words("Januar Februar März April Mai Juni Juli August September Oktober November Dezember")


def english(number: int) -> str:
    """A number below 10,000 in words."""
    if number < 20:
        return _EN_ONES[number]
    if number < 100:
        return _EN_TENS[number // 10] + (f"-{_EN_ONES[number % 10]}" if number % 10 else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    rest = number % size
    return f"{english(number // size)} {name}" + (f" {english(rest)}" if rest else "")


def german(number: int, last: bool = True) -> str:
    """The same in German, which puts ones before tens, and writes them as one word."""
    if number < 20:
        return _DE_ONES[number] + ("s" if number == 1 and last else "")
    if number < 100:
        ones = f"{german(number % 10, last=False)}und" if number % 10 else ""
        return ones + _DE_TENS[number // 10]
    size, name = (1000, "tausend") if number >= 1000 else (100, "hundert")
    rest = number % size
    return german(number // size, last=False) + name + (german(rest) if rest else "")


def pairs(seed: int = 0) -> list[tuple[str, str]]:
    """All numbers, and days of a century, in a random order."""
    found = [(english(n), german(n)) for n in range(10_000)]
    for year in range(1950, 2050):
        for month, (en, de) in enumerate(zip(_EN_MONTHS, _DE_MONTHS, strict=True)):
            for day in range(1 + (year + month) % 3, 29, 3):
                found.append((f"{en} {day}, {year}", f"{day}. {de} {year}"))
    return [found[i] for i in np.random.default_rng(seed).permutation(len(found))]


def make_tokenizer(texts: list[str]) -> Any:
    """Byte-level BPE of both languages; a text ends in `</s>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def encoded(tokenizer: Any, texts: list[str]) -> np.ndarray:
    """(texts, LENGTH) int32, padded with zeros."""
    rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    assert max(map(len, rows)) <= LENGTH
    return np.array([row + [0] * (LENGTH - len(row)) for row in rows], np.int32)


def train(
    generation: str, settings: dict[str, Any], tokenizer: Any, sources: np.ndarray, targets: np.ndarray
) -> Any:
    """A translator of half a million parameters."""
    keras = keras_api.keras_module(generation)
    keras.utils.set_random_seed(0)
    config = tfopt.models.Seq2SeqConfig(
        tokenizer.get_vocab_size(), 96, 2, 2, 4, intermediate_size=256, max_position_embeddings=LENGTH, **settings
    )
    model = tfopt.models.seq2seq(config, generation)
    extras.keep(model, extras.TOKENIZERS[0], tokenizer.to_str().encode())
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, STEPS, alpha=0.0, warmup_target=2e-3, warmup_steps=STEPS // 20
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate, beta_2=0.98), loss)
    behind = np.concatenate([np.zeros_like(targets[:, :1]), targets[:, :-1]], 1)
    inputs = {"input_ids": sources, "attention_mask": (sources > 0).astype(np.int32), "decoder_input_ids": behind}
    weights = (targets > 0).astype(np.float32)
    epochs = -(-STEPS * BATCH // len(sources))
    model.fit(inputs, targets, sample_weight=weights, batch_size=BATCH, epochs=epochs, verbose=2)
    return model


def recomputed(model: Any, tokenizer: Any, sources: np.ndarray) -> list[str]:
    """Greedy translations by the Keras model alone, which computes every token anew at each step."""
    ids = np.zeros((len(sources), LENGTH), np.int32)
    mask = (sources > 0).astype(np.int32)
    for place in range(LENGTH - 1):
        inputs = {"input_ids": sources, "attention_mask": mask, "decoder_input_ids": ids}
        ids[:, place + 1] = np.asarray(model.predict(inputs, batch_size=100, verbose=0))[:, place].argmax(-1)
    rows = [row[1:].tolist() for row in ids]
    return tokenizer.decode_batch([row[: row.index(1)] if 1 in row else row for row in rows])


def measure(name: str, model: Any, tokenizer: Any, held_out: list[tuple[str, str]], folder: Path) -> dict[str, Any]:
    """Shares of right translations, bytes, and speed beside XLA's."""
    wanted = [target for _, target in held_out]

    def right(found: list[str]) -> float:
        return float(np.mean([a == b for a, b in zip(found, wanted, strict=True)]))

    def by(generator: Any) -> list[str]:
        config = tfopt.GenerateConfig(max_tokens=LENGTH - 1)
        return [answer.text for answer in generator.generate([source for source, _ in held_out], config)]

    rows: dict[str, Any] = {}
    plain = recomputed(model, tokenizer, encoded(tokenizer, [source for source, _ in held_out]))
    rows["Keras, recomputed"] = {"right": right(plain)}
    wrong = [(s, f, t) for (s, t), f in zip(held_out, plain, strict=True) if f != t]
    for source, found, target in wrong[:5]:
        print(f"{source!r} became {found!r}, not {target!r}", flush=True)
    generators = {"XLA": tfopt.Generator.load(model, runtime="xla")}
    found = by(generators["XLA"])
    rows["XLA"] = {
        "right": right(found),
        "same_as_keras": float(np.mean([a == b for a, b in zip(found, plain, strict=True)])),
    }
    given = None
    for kind in KINDS:
        label = f"TFLite {kind or 'float32'}"
        artifact = tfopt.export(
            model, folder / f"{kind}.tflite", quantization=kind, lengths=[LENGTH], representative=given
        )
        generators[label] = tfopt.Generator.load(artifact.path, threads=1)
        found = by(generators[label])
        rows[label] = {
            "right": right(found),
            "same_as_keras": float(np.mean([a == b for a, b in zip(found, plain, strict=True)])),
            "bytes": artifact.path.stat().st_size,
        }  # fmt: skip
    some, config = [source for source, _ in held_out[:5]], tfopt.GenerateConfig(max_tokens=LENGTH - 1)
    seconds = paired({n: functools.partial(_one_by_one, g, some, config) for n, g in generators.items()}, ROUNDS)
    for label, values in seconds.items():
        rows[label]["times_as_fast_as_xla"] = ratio(seconds["XLA"], values)
        rows[label]["ms_per_text"] = round(float(np.median(values)) / len(some) * 1e3, 2)
    for label, row in rows.items():
        print(f"{name:16} {label:24} {row}", flush=True)
    return rows


def _one_by_one(generator: Any, texts: list[str], config: Any) -> None:
    for text in texts:
        generator.generate(text, config)


def main() -> None:
    data = pairs()
    held_out, training = data[:HELD_OUT], data[HELD_OUT:]
    tokenizer = make_tokenizer([text for pair in training for text in pair])
    sources, targets = (encoded(tokenizer, [pair[side] for pair in training]) for side in (0, 1))
    results: dict[str, Any] = {}
    goals = []
    for name, (generation, settings) in SHAPES.items():
        started = time.perf_counter()
        model = train(generation, settings, tokenizer, sources, targets)
        seconds = time.perf_counter() - started
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(name, model, tokenizer, held_out=held_out, folder=Path(folder))
        results[name] = {"parameters": model.count_params(), "train_seconds": round(seconds), "runs": rows}
        goals.append(goal(f"{name}: right, Keras", rows["Keras, recomputed"]["right"], 0.95))
        goals.append(goal(f"{name}: TFLite as Keras", rows["TFLite float32"]["same_as_keras"], 1.0))
        goals.append(goal(f"{name}: right, 8 bits", rows["TFLite dynamic_int8"]["right"], 0.95))
    save("translation", {"pairs": len(training), "held_out": HELD_OUT, "steps": STEPS, "translators": results,
                         "goals": goals})  # fmt: skip


if __name__ == "__main__":
    main()
