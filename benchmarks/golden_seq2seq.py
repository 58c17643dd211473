"""Makes `tests/data/tiny_seq2seq`: small encoder-decoders of transformers, and what they compute.

    python -m benchmarks.golden_seq2seq    # with torch and transformers

It imports nothing of tfopt, so that folders, names and numbers are nobody's but the references'.
"""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parents[1] / "tests" / "data" / "tiny_seq2seq"
ROWS, SOURCE, TARGET, WORDS, NEW = 3, 24, 11, 48, 16
_T5 = {
    "vocab_size": WORDS, "d_model": 16, "d_kv": 6, "d_ff": 20, "num_layers": 2, "num_decoder_layers": 3,
    "num_heads": 2, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16, "n_positions": 64,
    "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "dropout_rate": 0.0,
}  # fmt: skip
_MARIAN = {
    "vocab_size": WORDS, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 20, "decoder_ffn_dim": 20, "max_position_embeddings": 64,
    "activation_function": "swish", "scale_embedding": True, "pad_token_id": WORDS - 1, "eos_token_id": 0,
    "decoder_start_token_id": WORDS - 1, "forced_eos_token_id": None, "dropout": 0.0,
}  # fmt: skip
_SPREAD = {"shared": 0.3, "relative": 1.5, "final_logits_bias": 0.1, "bias": 0.2}


def main() -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    mask = (np.arange(SOURCE) < np.array([[SOURCE], [15], [4]])).astype(np.int64)
    ids, target = rng.integers(2, WORDS - 1, (ROWS, SOURCE)), rng.integers(2, WORDS - 1, (ROWS, TARGET))
    shutil.rmtree(FOLDER, ignore_errors=True)
    found: dict[str, Any] = {"attention_mask": mask.astype(np.int32)}
    kinds = {
        "t5": (transformers.T5ForConditionalGeneration, transformers.T5Config(**_T5)),
        "t5_gated": (
            transformers.T5ForConditionalGeneration,
            transformers.T5Config(**_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        ),
        "marian": (transformers.MarianMTModel, transformers.MarianConfig(**_MARIAN)),
    }
    for name, (kind, config) in kinds.items():
        model = kind(config).eval()
        pad, start = config.pad_token_id, config.decoder_start_token_id
        _randomize(model, rng)
        # A copy: narrowing rounds the waves too, which are no parameters.
        copy.deepcopy(model).half().save_pretrained(FOLDER / name)
        source = np.where(mask, ids, pad)
        behind = np.concatenate([np.full((ROWS, 1), start), target[:, :-1]], 1)
        given = {"input_ids": torch.tensor(source), "attention_mask": torch.tensor(mask)}
        with torch.no_grad():
            logits = model(**given, decoder_input_ids=torch.tensor(behind)).logits
            text = model.generate(**given, max_new_tokens=NEW, do_sample=False, num_beams=1, use_cache=False)
        found |= {
            f"{name}_input_ids": source.astype(np.int32), f"{name}_decoder_input_ids": behind.astype(np.int32),
            f"{name}_logits": logits.numpy(), f"{name}_greedy": text[:, 1:].numpy().astype(np.int32),
        }  # fmt: skip
    bucket, far = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket, torch.arange(-300, 301)
    for both in (True, False):
        found[f"buckets_{both}"] = bucket(far, bidirectional=both).numpy().astype(np.int32)
    np.savez_compressed(FOLDER / "golden.npz", **found)
    versions = {m.__name__: m.__version__ for m in (torch, transformers)}
    (FOLDER / "made_by.json").write_text(json.dumps(versions, indent=2) + "\n")


def _randomize(model: Any, rng: np.random.Generator) -> None:
    """Weights with which greedy texts differ by source and do not repeat one token."""
    import torch

    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if "embed_positions" in name or "embed_tokens" in name:
                continue
            middle = 1.0 if name.endswith("norm.weight") else 0.0
            spread = next((s for part, s in _SPREAD.items() if part in name), 0.5)
            value.copy_(torch.tensor(rng.normal(middle, spread, value.shape)).half().float())


if __name__ == "__main__":
    main()
