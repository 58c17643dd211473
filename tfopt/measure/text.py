"""Causal language models: how well each artifact predicts held-out text, how fast it answers, and what it says."""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from tfopt.decoding.decoder import Decoder
from tfopt.decoding.generate import GenerateConfig, Texts
from tfopt.measure.choices import questions_of, right_choices
from tfopt.measure.generation import measure_generation
from tfopt.measure.perplexity import text_windows
from tfopt.measure.results import Measurement
from tfopt.numerics.agreement import log_softmax
from tfopt.runtime import Predictor

_PROMPTS, _PROMPT_TOKENS, _GREEDY_TOKENS = 4, 16, 100
_TIMED_TOKENS, _ROUNDS = 64, 10


def text_quality(
    predictors: Mapping[str, Predictor], text: np.ndarray, window: int
) -> dict[str, tuple[dict[str, float], float]]:
    """What each artifact makes of a text, and its agreement with the first one.

    Args:
        predictors: artifacts by name that take token ids and a mask.
        text: token ids (length,).
        window: tokens that an artifact sees at once.

    Returns:
        Name -> (quality, share of the tokens at which both choose the same). Of quality, "divergence" is the mean
        Kullback-Leibler divergence from the first artifact in nats a token, and "multiple_choice" the share of
        right answers as in `choices`, where the text is long enough.
    """
    read = {name: _Read() for name in predictors}
    for part, fresh in text_windows(window, text):  # all artifacts at each: logits of a whole text are too large
        expected = None
        for name, predictor in predictors.items():
            found = log_softmax(_logits(predictor, part[None, :-1])[0, -fresh:])
            expected = found if expected is None else expected
            read[name].add(found, expected, part[-fresh:])
    questions = questions_of(text, window)
    quality = {}
    for name, predictor in predictors.items():
        values, agreement = read[name].figures()
        if questions:
            values["multiple_choice"] = right_choices(functools.partial(_logits, predictor), questions)
        quality[name] = (values, agreement)
    return quality


def _logits(predictor: Predictor, ids: np.ndarray) -> np.ndarray:
    """Token ids (texts, length) -> logits (texts, length, vocabulary)."""
    outputs = predictor.predict({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    return next(iter(outputs.values()))


class _Read:
    """Sums over the tokens of a text, as one artifact predicted them."""

    def __init__(self) -> None:
        self._tokens = 0
        self._loss = self._right = self._same = self._divergence = 0.0

    def add(self, found: np.ndarray, expected: np.ndarray, tokens: np.ndarray) -> None:
        """Logarithms of probabilities (tokens, vocabulary), those of the first artifact, and what came."""
        chosen = found.argmax(-1)
        self._tokens += len(tokens)
        self._loss -= float(found[np.arange(len(tokens)), tokens].sum())
        self._right += int((chosen == tokens).sum())
        self._same += int((chosen == expected.argmax(-1)).sum())
        self._divergence += float((np.exp(expected) * (expected - found)).sum())

    def figures(self) -> tuple[dict[str, float], float]:
        """The means, and the share of tokens at which both choose the same."""
        count = self._tokens
        values = {
            "next_token_accuracy": self._right / count, "perplexity": float(np.exp(self._loss / count)),
            "divergence": max(self._divergence / count, 0.0),
        }  # fmt: skip
        return values, self._same / count


def generation_figures(
    predictors: Mapping[str, Predictor], text: np.ndarray, window: int, rounds: int
) -> dict[str, dict[str, float]]:
    """How fast the artifacts that generate do so, and how far their greedy text is the first one's.

    Args:
        predictors: artifacts by name; a SavedModel, which recomputes a whole text, has no figures.
        text: token ids (length,) that prompts are taken from.
        window: most tokens of a prompt and its answer.
        rounds: timed answers of each, at most 10.

    Returns:
        Name -> figures, see `Measurement.generation`.
    """
    decoders = {name: _decoder_of(p) for name, p in predictors.items() if p.format != "saved_model"}
    if not decoders:
        return {}
    count = max(2, min(_TIMED_TOKENS, window // 2))
    speeds = measure_generation(decoders, prompt_tokens=count, new_tokens=count, rounds=min(rounds, _ROUNDS))
    greedy = greedy_agreement(decoders, text, window)
    return {
        speed.name: {
            "prefill_tokens_per_s": speed.prefill_tokens_per_s, "decode_tokens_per_s": speed.decode_tokens_per_s,
            "first_token_s": speed.first_token_s, "cache_bytes": speed.cache_bytes, **greedy[speed.name],
        }
        for speed in speeds
    }  # fmt: skip


def add_text_figures(
    found: Mapping[str, Measurement],
    predictors: Mapping[str, Predictor],
    text: np.ndarray,
    window: int,
    rounds: int,
) -> dict[str, Measurement]:
    """The measurements with quality, agreement and generation filled in."""
    quality = text_quality(predictors, text, window)
    generation = generation_figures(predictors, text, window, rounds=rounds)
    return {
        name: dataclasses.replace(
            m, quality=quality[name][0], agreement=quality[name][1], generation=generation.get(name)
        )
        for name, m in found.items()
    }


def _decoder_of(predictor: Predictor) -> Decoder:
    """What generates; a Keras model is run as `Generator` runs it, by XLA."""
    from tfopt.runtime.keras_model import KerasPredictor

    if isinstance(predictor, KerasPredictor):
        from tfopt.runtime.xla_decoder import XlaDecoder

        return XlaDecoder(predictor.model)
    return predictor.make_decoder()


def greedy_agreement(decoders: Mapping[str, Decoder], text: np.ndarray, window: int) -> dict[str, dict[str, float]]:
    """Share of greedy tokens equal to the first decoder's, and how sure that one was at the first difference."""
    size = max(1, min(_PROMPT_TOKENS, window // 4))
    starts = np.linspace(0, max(0, len(text) - size), _PROMPTS).astype(int)
    prompts = [text[start : start + size].tolist() for start in starts]
    count = min(_GREEDY_TOKENS, window - size)
    answers = {name: [_greedy(decoder, prompt, count) for prompt in prompts] for name, decoder in decoders.items()}
    first, reference = next(iter(answers.items()))
    margins = [_margins(decoders[first], prompt, answer) for prompt, answer in zip(prompts, reference, strict=True)]
    found = {}
    for name, own in answers.items():
        equal = np.asarray(own) == np.asarray(reference)
        found[name] = {"greedy_agreement": float(equal.mean())}
        if not equal.all():
            ends = [int(row.argmin()) if not row.all() else count for row in equal]
            row = int(np.argmin(ends))
            found[name] |= {
                "greedy_differs_at": ends[row],
                "greedy_margin_there": float(margins[row][ends[row]]),
                "greedy_margin_median": float(np.median(np.concatenate(margins))),
            }
    return found


def _greedy(decoder: Decoder, prompt: list[int], count: int) -> list[int]:
    config = GenerateConfig(max_tokens=count, stop_tokens=())
    return [token for (token,) in Texts(decoder, [prompt], config).steps() if token is not None]


def _margins(decoder: Decoder, prompt: list[int], answer: list[int]) -> np.ndarray:
    """By how much the most likely token's logit was above the next one's, at each token of an answer."""
    with decoder.open([0]) as session:
        logits = session.extend(np.asarray([prompt + answer[:-1]], np.int32), every=True)[0, len(prompt) - 1 :]
    best = np.partition(logits, -2, axis=-1)
    return best[:, -1] - best[:, -2]
