"""Makes `tests/data/tiny_decoder`: a trained decoder, and what independent implementations compute with it.

    python -m benchmarks.golden train                # with tfopt: trains it on Python's own documentation
    python -m benchmarks.golden references           # with torch, transformers, gguf and llama-cpp-python

The second step imports nothing of tfopt, so that its numbers are nobody's but the references'.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parents[1] / "tests" / "data" / "tiny_decoder"
PROMPTS = ("Return the number of", "If the file does not exist")
NEW, CONTEXT = 32, 96


def train(steps: int = 1500) -> None:
    """Trains a decoder of 80,000 parameters."""
    import tensorflow as tf

    import tfopt
    from tfopt._keras import extras, keras_api
    from tfopt.data.stdlib_docs import read_stdlib_docs
    from tfopt.data.tokenizers import train_bpe

    texts = read_stdlib_docs(0)[0].texts
    end = "<|endoftext|>"
    tokenizer = train_bpe(texts, 512, end)
    ids = np.concatenate([[*tokenizer.encode(text).ids, tokenizer.token_to_id(end)] for text in texts])
    windows = ids[: len(ids) // (CONTEXT // 2) * (CONTEXT // 2)].reshape(-1, CONTEXT // 2)
    config = tfopt.models.CausalLMConfig(
        512, 48, 2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128,
        max_position_embeddings=CONTEXT, tie_word_embeddings=True, end_tokens=(tokenizer.token_to_id(end),),
    )  # fmt: skip
    keras = keras_api.keras_module("tf_keras")
    keras.utils.set_random_seed(0)
    model = tfopt.models.causal_lm(config, "tf_keras")
    extras.keep(model, extras.TOKENIZERS[0], tokenizer.to_str().encode())
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    model.compile(keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    def parts(window: Any) -> Any:
        inputs = window[:, :-1]
        return {"input_ids": inputs, "attention_mask": tf.ones_like(inputs)}, window[:, 1:]

    data = tf.data.Dataset.from_tensor_slices(windows.astype(np.int32)).shuffle(10_000, seed=0).repeat()
    model.fit(data.batch(32).map(parts), steps_per_epoch=steps, verbose=2)
    tfopt.models.save_pretrained(model, FOLDER)


def references() -> None:
    """Logits, hidden states and greedy text by transformers and by llama.cpp."""
    import tokenizers
    import torch
    import transformers

    tokenizer = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        other = LlamaCpp(write_gguf(model, Path(folder, "model.gguf")))
        for number, prompt in enumerate(PROMPTS):
            ids = tokenizer.encode(prompt).ids
            with torch.no_grad():
                out = model(torch.tensor([ids]), output_hidden_states=True)
                text = model.generate(
                    torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
                )
            found |= {
                f"ids_{number}": np.array(ids, np.int32),
                f"logits_{number}": out.logits[0].numpy(),
                f"hidden_{number}": np.stack([state[0].numpy() for state in out.hidden_states]),
                f"greedy_{number}": text[0, len(ids) :].numpy().astype(np.int32),
                f"llama_cpp_logits_{number}": other.logits(ids),
                f"llama_cpp_greedy_{number}": np.array(other.greedy(ids, NEW), np.int32),
            }
    np.savez_compressed(FOLDER / "golden.npz", prompts=np.array(PROMPTS), **found)
    versions = {name: __import__(name).__version__ for name in ("torch", "transformers", "llama_cpp")}
    (FOLDER / "made_by.json").write_text(json.dumps(versions, indent=2) + "\n")
    for number in range(len(PROMPTS)):
        off = np.abs(found[f"logits_{number}"] - found[f"llama_cpp_logits_{number}"]).max()
        same = (found[f"greedy_{number}"] == found[f"llama_cpp_greedy_{number}"]).all()
        print(f"prompt {number}: the references differ by {off:.2g}, greedy text equal: {same}")


def write_gguf(model: Any, path: Path) -> Path:
    """A float32 GGUF file of a transformers LLaMA; llama.cpp has the halves of rotary pairs next to each other."""
    import gguf

    c, weights = model.config, {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_dimension_count(c.hidden_size // c.num_attention_heads)
    writer.add_tokenizer_model("llama")
    names = ["<unk>", "<s>", "</s>", *(f"t{i}" for i in range(c.vocab_size - 3))]
    writer.add_token_list(names)
    writer.add_token_scores([0.0] * len(names))
    writer.add_token_types([2, 3, 3] + [1] * (len(names) - 3))

    def rotated(value: np.ndarray, heads: int) -> np.ndarray:
        pairs = value.reshape(heads, 2, value.shape[0] // heads // 2, value.shape[1])
        return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(value.shape))

    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"])
    places = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    heads = {"attn_q": c.num_attention_heads, "attn_k": c.num_key_value_heads}
    for i in range(c.num_hidden_layers):
        for name, place in places.items():
            value = weights[f"model.layers.{i}.{place}.weight"]
            writer.add_tensor(f"blk.{i}.{name}.weight", rotated(value, heads[name]) if name in heads else value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class LlamaCpp:
    """A GGUF file in llama.cpp."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        self._llama = llama_cpp.Llama(
            str(path), n_ctx=CONTEXT, n_batch=CONTEXT, n_ubatch=CONTEXT, logits_all=True, n_threads=1,
            verbose=False, flash_attn=False, type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
        )  # fmt: skip

    def logits(self, ids: list[int]) -> np.ndarray:
        self._llama.reset()
        self._llama.eval(ids)
        return np.array(self._llama.scores[: len(ids)], np.float32)

    def greedy(self, ids: list[int], count: int) -> list[int]:
        found: list[int] = []
        for _ in range(count):
            found.append(int(self.logits([*ids, *found])[-1].argmax()))
        return found


if __name__ == "__main__":
    {"train": train, "references": references}[sys.argv[1]]()
