"""The shape of an encoder-decoder: T5, Marian and their like are points in one space."""

import dataclasses
import json
import math
from typing import Literal

import numpy as np

from tfopt.decoding.config import ACTIVATIONS, Norm, read_shape
from tfopt.errors import InputError

Positions = Literal["relative", "sinusoidal"]
_LARGEST = 1 << 24  # rows, widths and layers beyond this are of no model
_BEYOND = 1e18


@dataclasses.dataclass(frozen=True)
class Seq2SeqConfig:
    """Shape of an encoder-decoder; the defaults are those of a small T5, https://arxiv.org/abs/1910.10683.

    Attributes:
        vocab_size: rows of the token table, which both sides share.
        hidden_size: width of the residual stream.
        encoder_layers: layers that read the source.
        decoder_layers: layers that write the target.
        num_attention_heads: heads of each attention.
        head_dim: width of a head; by default hidden_size / heads.
        intermediate_size: width of the feed-forward layers.
        max_position_embeddings: longest source and longest target in tokens.
        positions: "relative" adds a bias by distance to the scores of each stack, "sinusoidal" a wave to the
            embeddings (Vaswani et al., https://arxiv.org/abs/1706.03762).
        relative_buckets: kinds of distances, an even number; the encoder has half of them for either side.
        relative_distance: from here on, distances are alike.
        norm: "rms" or "layer".
        norm_eps: epsilon of the norms.
        norm_first: norms stand before each layer and behind the last, as in T5; else behind each, as in Marian,
            https://arxiv.org/abs/1804.00344.
        hidden_act: activation of the feed-forward layers.
        gated: multiply the activation with a second projection.
        bias: dense layers have biases.
        logits_bias: so have the logits, where they come from the token table.
        tie_word_embeddings: logits come from the token table.
        embedding_scale: what the rows of the token table are multiplied by.
        score_scale: what scores are multiplied by.
        logit_scale: what the last hidden states are multiplied by before the logits.
        dropout: after embeddings and blocks while training, in [0, 1).
        start_token: what a target begins with.
        end_tokens: ids that end a target.
        barred_tokens: ids that never are an answer, such as Marian's padding.

    Raises:
        InputError: a value outside its range.
    """

    vocab_size: int
    hidden_size: int = 256
    encoder_layers: int = 3
    decoder_layers: int = 3
    num_attention_heads: int = 4
    head_dim: int | None = None
    intermediate_size: int = 1024
    max_position_embeddings: int = 512
    positions: Positions = "relative"
    relative_buckets: int = 32
    relative_distance: int = 128
    norm: Norm = "rms"
    norm_eps: float = 1e-6
    norm_first: bool = True
    hidden_act: str = "relu"
    gated: bool = False
    bias: bool = False
    logits_bias: bool = False
    tie_word_embeddings: bool = True
    embedding_scale: float = 1.0
    score_scale: float = 1.0
    logit_scale: float = 1.0
    dropout: float = 0.0
    start_token: int = 0
    end_tokens: tuple[int, ...] = (1,)
    barred_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("end_tokens", "barred_tokens"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.head_dim is None:
            object.__setattr__(self, "head_dim", max(self.hidden_size // max(self.num_attention_heads, 1), 1))
        for name in ("vocab_size", "hidden_size", "encoder_layers", "decoder_layers", "num_attention_heads",
                     "head_dim", "intermediate_size", "max_position_embeddings"):  # fmt: skip
            if not 1 <= getattr(self, name) <= _LARGEST:
                raise InputError(f"{name} must be from 1 to {_LARGEST:,}, got {getattr(self, name)}")
        for name, known in (("positions", ("relative", "sinusoidal")), ("norm", ("rms", "layer")),
                            ("hidden_act", ACTIVATIONS)):  # fmt: skip
            if getattr(self, name) not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("norm_eps", "embedding_scale", "score_scale", "logit_scale"):
            if not 0.0 < getattr(self, name) < _BEYOND:
                raise InputError(f"{name} must be above 0 and below {_BEYOND:g}, got {getattr(self, name)}")
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.positions == "sinusoidal" and self.hidden_size % 2:
            raise InputError(f"hidden_size must be even with sinusoidal positions, got {self.hidden_size}")
        if self.logits_bias and not self.tie_word_embeddings:
            raise InputError("logits_bias needs tie_word_embeddings")
        self._check_distances()
        for name in ("start_token", "end_tokens", "barred_tokens"):
            found = getattr(self, name)
            wrong = [t for t in (found if isinstance(found, tuple) else (found,)) if not 0 <= t < self.vocab_size]
            if wrong:
                raise InputError(f"{name} must be in [0, {self.vocab_size}), got {wrong[0]}")

    def _check_distances(self) -> None:
        few, far = self.relative_buckets, self.relative_distance
        if few < 4 or few % 4 or not few < far <= _LARGEST:
            raise InputError(
                "relative_buckets must be a multiple of 4, and relative_distance above it, got "
                f"{few} and {str(far)[:40]}"
            )

    @property
    def head_size(self) -> int:
        """Width of a head."""
        assert self.head_dim is not None
        return self.head_dim

    @property
    def logit_softcap(self) -> None:
        """Logits have no bound, as those of some decoders have."""
        return None

    def thresholds(self, both_sides: bool) -> np.ndarray:
        """The least distance of each kind but the first, int32: half of the kinds where both sides are told apart.

        Distances below half of them have a kind of their own, those beyond share one the further the more, as T5
        has it: the kind of a distance is how many thresholds it reaches.
        """
        kinds = self.relative_buckets // (2 if both_sides else 1)
        exact = kinds // 2
        far = np.arange(self.relative_distance + 1, dtype=np.float32)
        grown = np.log(np.maximum(far, 1) / np.float32(exact)) / math.log(self.relative_distance / exact)
        kind = np.where(far < exact, far, np.minimum(exact + np.trunc(grown * (kinds - exact)), kinds - 1))
        return np.searchsorted(kind, np.arange(1, kinds)).astype(np.int32)

    def frequencies(self) -> np.ndarray:
        """Radians from one position to the next of each wave, float32 (hidden_size / 2,)."""
        half = self.hidden_size // 2
        return (10000.0 ** (-np.arange(half) / half)).astype(np.float32)

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Seq2SeqConfig":
        """Reads what `to_json` wrote.

        Raises:
            ModelFileError: it is something else.
        """
        return read_shape(cls, content, "an encoder-decoder")
