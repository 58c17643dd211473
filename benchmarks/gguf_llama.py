"""The peer of the generation benchmark: llama.cpp, on files of the same shapes with random weights."""

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from tfopt.decoding.config import CausalLMConfig

KINDS = {"float": "F32", "Q8_0": "Q8_0", "Q4_0": "Q4_0"}


def write_gguf(config: CausalLMConfig, path: Path, kind: str) -> Path:
    """Writes a LLaMA of this shape; matrices in `kind`, norms in float."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.key_value_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_tokenizer_model("llama")
    names = ["<unk>", "<s>", "</s>", *(f"t{i}" for i in range(config.vocab_size - 3))]
    writer.add_token_list(names)
    writer.add_token_scores([0.0] * len(names))
    writer.add_token_types([2, 3, 3] + [1] * (len(names) - 3))
    rng, number = np.random.default_rng(0), gguf.GGMLQuantizationType[KINDS[kind]]

    def matrix(name: str, outputs: int, inputs: int) -> None:
        values = (rng.standard_normal((outputs, inputs)) * 0.05).astype(np.float32)
        writer.add_tensor(name, gguf.quants.quantize(values, number), raw_dtype=number)

    width, keys = config.num_attention_heads * config.head_size, config.key_value_heads * config.head_size
    hidden, inner = config.hidden_size, config.intermediate_size
    matrix("token_embd.weight", config.vocab_size, hidden)
    for i in range(config.num_hidden_layers):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", np.ones(hidden, np.float32))
        shapes = {"attn_q": (width, hidden), "attn_k": (keys, hidden), "attn_v": (keys, hidden),
                  "attn_output": (hidden, width), "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden),
                  "ffn_down": (hidden, inner)}  # fmt: skip
        for name, shape in shapes.items():
            matrix(f"blk.{i}.{name}.weight", *shape)
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantized(source: Path, target: Path, kind: str) -> Path:
    """A file that llama.cpp's own quantizer makes; `kind` as it names them, for example "MOSTLY_Q8_0"."""
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.allow_requantize = getattr(llama_cpp, f"LLAMA_FTYPE_{kind}"), True
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), settings):
        raise RuntimeError(f"llama.cpp could not write {target}")
    return target


class LlamaCpp:
    """A GGUF file in llama.cpp, called without the layers of Python that its high-level interface has."""

    def __init__(self, path: Path, threads: int, context: int, every: bool = False) -> None:
        import llama_cpp

        self._lib = llama_cpp
        self._llama = llama_cpp.Llama(
            str(path), n_ctx=context, n_batch=context, n_ubatch=context, n_threads=threads,
            n_threads_batch=threads, logits_all=every, verbose=False,
        )  # fmt: skip
        self._context: Any = self._llama._ctx.ctx
        self._vocab = self._llama.n_vocab()

    def rewind(self, length: int) -> None:
        """Forgets what comes after the first `length` tokens."""
        self._llama._ctx.kv_cache_seq_rm(0, length, -1)

    def every(self, tokens: np.ndarray) -> np.ndarray:
        """Logits at each token of a text; the file was opened with `every`."""
        self.rewind(0)
        self._llama.reset()
        self._llama.eval([int(token) for token in tokens])
        return np.array(self._llama.scores[: len(tokens)], np.float32)

    def extend(self, tokens: np.ndarray) -> np.ndarray:
        """Adds tokens; gives the logits at the last one."""
        ids = np.ascontiguousarray(tokens, np.int32)
        pointer = ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        if self._lib.llama_decode(self._context, self._lib.llama_batch_get_one(pointer, len(ids))):
            raise RuntimeError("llama.cpp could not decode")
        logits = self._lib.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, (self._vocab,))
