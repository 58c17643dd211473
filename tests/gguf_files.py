"""GGUF files by the writer and the names of the package `gguf`, in the layout that llama.cpp's converters give."""

import gguf
import numpy as np

from tfopt._keras import keras_api
from tfopt.models.families import FAMILIES, write_causal

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3,
    "smollm3": gguf.MODEL_ARCH.SMOLLM3, "gemma": gguf.MODEL_ARCH.GEMMA, "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3, "phi3": gguf.MODEL_ARCH.PHI3,
}  # fmt: skip
_PAIRED = ("llama", "smollm3")  # rotary pairs lie side by side


def write(path, model, config, *, kind=None, quantized=None, metadata=(), tokenizer=None, factors=None):
    """Writes a decoder; `quantized` is the name of a type for matrices, `metadata` calls methods of the writer."""
    kind = kind or write_causal(config)["model_type"]
    family, architecture = FAMILIES[kind], ARCHITECTURES[kind]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    describe(writer, config)
    for method, *arguments in metadata:
        getattr(writer, method)(*arguments)
    if tokenizer is not None:
        tokenizer(writer)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    weights = {w.path: keras_api.to_numpy(w.variable) for w in keras_api.weights(model)}
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(factors, np.float32))
    for entry in family.entries(config):
        value = np.ascontiguousarray(entry.write(weights))
        name = names.get_name(entry.theirs, try_suffixes=(".weight", ".bias"))
        if kind in _PAIRED and name.endswith(("attn_q.weight", "attn_k.weight")):
            heads = value.shape[0] // config.head_size
            value = value.reshape(heads, 2, config.head_size // 2, -1).swapaxes(1, 2).reshape(value.shape)
        if kind.startswith("gemma") and "norm" in name:
            value = value + 1.0
        if quantized is not None and value.ndim == 2:
            number = gguf.GGMLQuantizationType[quantized]
            writer.add_tensor(name, gguf.quants.quantize(value, number), raw_dtype=number)
        else:
            writer.add_tensor(name, value.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def describe(writer, c):
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.key_value_heads)
    writer.add_key_length(c.head_size)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_rope_dimension_count(c.head_size)
    if c.sliding_window is not None:
        writer.add_sliding_window(c.sliding_window)
    if c.attention_softcap is not None:
        writer.add_attn_logit_softcapping(c.attention_softcap)
    if c.logit_softcap is not None:
        writer.add_final_logit_softcapping(c.logit_softcap)
    if c.end_tokens:
        writer.add_eos_token_id(c.end_tokens[0])


def byte_level(tokenizer, pre="gpt-2"):
    """Writes a byte-level BPE of the package `tokenizers`, given as the content of its JSON."""

    def work(writer):
        tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
        special = {added["content"] for added in tokenizer["added_tokens"]}
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([3 if token in special else 1 for token in tokens])
        merges = tokenizer["model"]["merges"]
        writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])

    return work


def pieces(tokens, scores, begins=True):
    """Writes SentencePiece's pieces with their scores; the first three are unknown, begin and end."""

    def work(writer):
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_scores(scores)
        writer.add_token_types([2, 3, 3, *(6 if t.startswith("<0x") else 1 for t in tokens[3:])])
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_add_bos_token(begins)

    return work
