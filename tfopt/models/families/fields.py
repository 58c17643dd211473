"""Types and ranges of what `config.json` holds, whichever family reads it.

Names are those of the public checkpoints. Nothing that exists lies beyond these ranges; numbers far beyond made a
model that took all memory, or all time, before its weights were looked at.
"""

from typing import Annotated, Any

import pydantic

from tfopt.errors import ModelFileError

_Layers = Annotated[int, pydantic.Field(ge=1, le=1024)]
_Heads = Annotated[int, pydantic.Field(ge=1, le=4096)]
_Width = Annotated[int, pydantic.Field(ge=1, le=2**20)]
_Rows = Annotated[int, pydantic.Field(ge=1, le=2**24)]
_Share = Annotated[float, pydantic.Field(ge=0.0, lt=1.0)]
_Epsilon = Annotated[float, pydantic.Field(gt=0.0, le=1.0)]
_Token = Annotated[int, pydantic.Field(ge=-1, lt=2**24)]


class _Fields(pydantic.BaseModel):
    """What is not named here is not read."""

    model_config = pydantic.ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())

    model_type: str
    # Encoders and decoders with rotary positions; then DistilBERT's and GPT-2's names for the same.
    vocab_size: _Rows | None = None
    hidden_size: _Width | None = None
    num_hidden_layers: _Layers | None = None
    num_attention_heads: _Heads | None = None
    num_key_value_heads: _Heads | None = None
    head_dim: _Width | None = None
    intermediate_size: _Width | None = None
    max_position_embeddings: _Rows | None = None
    type_vocab_size: Annotated[int, pydantic.Field(ge=0, le=1024)] | None = None
    dim: _Width | None = None
    n_layers: _Layers | None = None
    n_heads: _Heads | None = None
    hidden_dim: _Width | None = None
    n_embd: _Width | None = None
    n_layer: _Layers | None = None
    n_head: _Heads | None = None
    n_inner: _Width | None = None
    n_positions: _Rows | None = None
    n_ctx: _Rows | None = None
    # Encoder-decoders: T5's names, then Marian's.
    d_model: _Width | None = None
    d_kv: _Width | None = None
    d_ff: _Width | None = None
    num_layers: _Layers | None = None
    num_decoder_layers: _Layers | None = None
    num_heads: _Heads | None = None
    relative_attention_num_buckets: Annotated[int, pydantic.Field(ge=4, le=2**16)] | None = None
    relative_attention_max_distance: Annotated[int, pydantic.Field(ge=1, le=2**20)] | None = None
    encoder_layers: _Layers | None = None
    decoder_layers: _Layers | None = None
    encoder_attention_heads: _Heads | None = None
    decoder_attention_heads: _Heads | None = None
    encoder_ffn_dim: _Width | None = None
    decoder_ffn_dim: _Width | None = None
    decoder_vocab_size: _Rows | None = None
    # Numerics.
    dropout_rate: _Share | None = None
    layer_norm_eps: _Epsilon | None = None
    layer_norm_epsilon: _Epsilon | None = None
    rms_norm_eps: _Epsilon | None = None
    rope_theta: Annotated[float, pydantic.Field(gt=0.0, le=1e12)] | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    hidden_dropout_prob: _Share | None = None
    attention_probs_dropout_prob: _Share | None = None
    dropout: _Share | None = None
    attention_dropout: _Share | None = None
    embd_pdrop: _Share | None = None
    resid_pdrop: _Share | None = None
    attn_pdrop: _Share | None = None
    # Kinds.
    scale_decoder_outputs: bool | None = None
    feed_forward_proj: str | None = None
    scale_embedding: bool | None = None
    share_encoder_decoder_embeddings: bool | None = None
    normalize_embedding: bool | None = None
    normalize_before: bool | None = None
    add_final_layer_norm: bool | None = None
    decoder_start_token_id: _Token | None = None
    hidden_act: str | None = None
    activation: str | None = None
    activation_function: str | None = None
    position_embedding_type: str | None = None
    tie_word_embeddings: bool | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    use_sliding_window: bool | None = None
    scale_attn_by_inverse_layer_idx: bool | None = None
    sliding_window: _Rows | None = None
    no_rope_layer_interval: Annotated[int, pydantic.Field(ge=1, le=1024)] | None = None
    no_rope_layers: Annotated[list[int], pydantic.Field(max_length=1024)] | None = None
    layer_types: Annotated[list[str], pydantic.Field(max_length=1024)] | None = None
    sliding_window_pattern: Annotated[int, pydantic.Field(ge=1, le=1024)] | None = None
    local_attention: _Rows | None = None
    global_attn_every_n_layers: Annotated[int, pydantic.Field(ge=1, le=1024)] | None = None
    global_rope_theta: Annotated[float, pydantic.Field(gt=0.0, le=1e12)] | None = None
    local_rope_theta: Annotated[float, pydantic.Field(gt=0.0, le=1e12)] | None = None
    norm_eps: _Epsilon | None = None
    norm_bias: bool | None = None
    classifier_bias: bool | None = None
    classifier_activation: str | None = None
    classifier_pooling: str | None = None
    embedding_dropout: _Share | None = None
    use_bidirectional_attention: bool | None = None
    partial_rotary_factor: Annotated[float, pydantic.Field(ge=0.0, le=1.0)] | None = None
    rope_local_base_freq: Annotated[float, pydantic.Field(gt=0.0, le=1e12)] | None = None
    query_pre_attn_scalar: Annotated[float, pydantic.Field(gt=0.0, le=2**20)] | None = None
    attn_logit_softcapping: Annotated[float, pydantic.Field(gt=0.0, le=1e9)] | None = None
    final_logit_softcapping: Annotated[float, pydantic.Field(gt=0.0, le=1e9)] | None = None
    hidden_activation: str | None = None
    problem_type: str | None = None
    max_window_layers: Annotated[int, pydantic.Field(ge=0, le=1024)] | None = None
    eos_token_id: _Token | Annotated[list[_Token], pydantic.Field(max_length=64)] | None = None
    pad_token_id: _Token | None = None
    id2label: Annotated[dict[str, str], pydantic.Field(max_length=2**20)] | None = None


def check_fields(raw: Any, where: str) -> dict[str, Any]:
    """The content of a `config.json`, of the types and in the ranges that it must have.

    Raises:
        ModelFileError: it has not; the field, its value and what is allowed are named.
    """
    if not isinstance(raw, dict):
        raise ModelFileError(f"{where} must hold an object, it holds a {type(raw).__name__}")
    try:
        _Fields.model_validate(raw)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][:1])
        raise ModelFileError(f"{where}: {name}: {first['msg']}, got {str(first['input'])[:80]}") from error
    # Null stands for the default; of windows, it says that there is none.
    return {name: value for name, value in raw.items() if value is not None or name == "sliding_window"}
