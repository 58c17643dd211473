"""How the next token is chosen from logits.

Temperature; the k most likely (Fan et al., https://arxiv.org/abs/1805.04833); the nucleus of probability p
(Holtzman et al., https://arxiv.org/abs/1904.09751); a penalty on tokens that were said (Keskar et al.,
https://arxiv.org/abs/1909.05858).
"""

import dataclasses

import numpy as np

from tfopt.errors import InputError


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How tokens are chosen; the default always takes the most likely one.

    Attributes:
        temperature: divides the logits, 0.0001 or more; 0 takes the most likely token.
        top_k: choose among this many of the most likely tokens; None for all.
        top_p: choose among the most likely tokens that together reach this probability, in (0, 1].
        repetition_penalty: divides positive logits of tokens that the text already has, and multiplies negative
            ones; 1 does nothing.
        seed: of the choices; the same seed gives the same text.

    Raises:
        InputError: a value outside its range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature != 0 and not 1e-4 <= self.temperature < float("inf"):
            raise InputError(f"temperature must be 0, or 0.0001 or more, got {self.temperature}")
        if self.seed < 0:
            raise InputError(f"seed must be 0 or more, got {self.seed}")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k must be 1 or more, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if not self.repetition_penalty > 0:
            raise InputError(f"repetition_penalty must be above 0, got {self.repetition_penalty}")

    @property
    def greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature == 0 or self.top_k == 1


class Sampler:
    """Chooses tokens for one text; keeps the numbers it draws apart from everybody else's.

    Args:
        config: how.
        row: index of the text in its batch, so that equal prompts get different texts.
    """

    def __init__(self, config: SamplingConfig, row: int = 0) -> None:
        self.config = config
        self._random = np.random.default_rng([config.seed, row])

    def uniform(self) -> float:
        """The next number in [0, 1)."""
        return float(self._random.random())

    def choose(self, logits: np.ndarray, said: np.ndarray) -> int:
        """The next token.

        Args:
            logits: (vocab,) float32; -inf forbids a token.
            said: (vocab,) bool, tokens that the text has.
        """
        if self.config.greedy:
            return int(penalized(logits, said, self.config.repetition_penalty).argmax())
        return pick(self.distribution(logits, said), self.uniform())

    def distribution(self, logits: np.ndarray, said: np.ndarray) -> np.ndarray:
        """Probabilities (vocab,) float64 that `choose` draws from."""
        return distribution(penalized(logits, said, self.config.repetition_penalty), self.config)


def penalized(logits: np.ndarray, said: np.ndarray, penalty: float) -> np.ndarray:
    """Logits with tokens that were said made less likely."""
    if penalty == 1.0:
        return logits
    lowered = np.where(logits > 0, logits / penalty, logits * penalty)
    return np.where(said, lowered, logits)


def distribution(logits: np.ndarray, config: SamplingConfig) -> np.ndarray:
    """Probabilities after temperature, top-k and top-p; a single token when greedy."""
    if config.greedy:
        chosen = np.zeros(len(logits))
        chosen[int(logits.argmax())] = 1.0
        return chosen
    kept = np.arange(len(logits))
    if config.top_k is not None and config.top_k < len(logits):
        kept = np.argpartition(-logits, config.top_k - 1)[: config.top_k]
    weights = np.exp((logits[kept].astype(np.float64) - float(logits.max())) / config.temperature)
    weights /= weights.sum()
    if config.top_p is not None and config.top_p < 1:
        order = np.argsort(-weights, kind="stable")
        before = np.cumsum(weights[order]) - weights[order]
        order = order[before < config.top_p]  # the one that crosses p is in, so there always is one
        kept, weights = kept[order], weights[order] / weights[order].sum()
    result = np.zeros(len(logits))
    result[kept] = weights
    return result


def pick(probabilities: np.ndarray, uniform: float) -> int:
    """The token whose share of [0, 1) the number falls into."""
    edges = np.cumsum(probabilities)
    found = int(np.searchsorted(edges, uniform * edges[-1], side="right"))
    return min(found, int(np.flatnonzero(probabilities)[-1]))
