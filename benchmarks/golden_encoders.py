"""Makes `tests/data/tiny_encoders`: small encoders of transformers with random weights, and what they compute.

    python -m benchmarks.golden_encoders    # with torch, transformers and sentence-transformers

It imports nothing of tfopt, so that folders, names and numbers are nobody's but the references'.
"""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parents[1] / "tests" / "data" / "tiny_encoders"
ROWS, LENGTH, WORDS = 3, 20, 48
_MODERN = {
    "vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 5,
    "num_attention_heads": 2, "max_position_embeddings": 64, "local_attention": 8, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2, "num_labels": 3,
}  # fmt: skip
_GEMMA = {
    "vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 7,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6, "query_pre_attn_scalar": 6,
    "max_position_embeddings": 64, "sliding_window": 8, "use_bidirectional_attention": True, "pad_token_id": 0,
}  # fmt: skip


def main() -> None:
    import sentence_transformers
    import torch
    import transformers
    from sentence_transformers.base.modules.dense import Dense

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    ids = rng.integers(3, WORDS, (ROWS, LENGTH))
    mask = (np.arange(LENGTH) < np.array([[LENGTH], [13], [5]])).astype(np.int64)
    given = {"input_ids": torch.tensor(ids * mask), "attention_mask": torch.tensor(mask)}
    shutil.rmtree(FOLDER, ignore_errors=True)
    found: dict[str, Any] = {"input_ids": (ids * mask).astype(np.int32), "attention_mask": mask.astype(np.int32)}

    def kept(name: str, kind: Any, config: Any) -> Any:
        model = kind(config).eval()
        with torch.no_grad():
            for weight, value in model.named_parameters():
                # Gemma stores scales of norms less one.
                middle = 1.0 if weight.endswith("norm.weight") and "gemma" not in name else 0.0
                value.copy_(torch.tensor(rng.normal(middle, 0.3, value.shape)).half().float())
        # A copy: narrowing rounds the frequencies too, which are no parameters.
        copy.deepcopy(model).half().save_pretrained(FOLDER / name)
        return model

    def answers(name: str, values: Any) -> None:
        found.update({f"{name}_{part}": value.numpy() for part, value in values.items()})

    with torch.no_grad():
        for pooling in ("cls", "mean"):
            config = transformers.ModernBertConfig(**_MODERN, classifier_pooling=pooling)
            model = kept(f"modernbert_{pooling}", transformers.ModernBertForSequenceClassification, config)
            answers(f"modernbert_{pooling}", {
                "hidden": model.model(**given).last_hidden_state, "logits": model(**given).logits,
            })  # fmt: skip
        config = transformers.ModernBertConfig(**_MODERN)
        model = kept("modernbert_words", transformers.ModernBertForMaskedLM, config)
        answers("modernbert_words", {"logits": model(**given).logits})
        config = transformers.Gemma3TextConfig(**_GEMMA)
        model = kept("embedding_gemma", transformers.Gemma3TextModel, config)
        hidden = model(**given).last_hidden_state
        weights = given["attention_mask"][:, :, None].float()
        vector = (hidden * weights).sum(1) / weights.sum(1)
        layers = []
        for units in (24, 16):
            last = layers[-1].linear.out_features if layers else 16
            layer = Dense(last, units, bias=False, activation_function=torch.nn.Identity())
            layer.linear.weight.copy_(torch.tensor(rng.normal(0, 0.3, (units, last))))
            layers.append(layer)
            vector = layer({"sentence_embedding": vector})["sentence_embedding"]
        found["embedding_gemma_hidden"] = hidden.numpy()
        found["embedding_gemma_vector"] = torch.nn.functional.normalize(vector, dim=1).numpy()
        _write_modules(FOLDER / "embedding_gemma", layers)
    np.savez_compressed(FOLDER / "golden.npz", **found)
    versions = {m.__name__: m.__version__ for m in (torch, transformers, sentence_transformers)}
    (FOLDER / "made_by.json").write_text(json.dumps(versions, indent=2) + "\n")


def _write_modules(folder: Path, layers: list[Any]) -> None:
    """The modules as sentence-transformers saves them, each by itself: the whole needs a tokenizer."""
    from sentence_transformers.base.modules.normalize import Normalize
    from sentence_transformers.sentence_transformer.modules.pooling import Pooling

    modules = [Pooling(16, "mean"), *layers, Normalize()]
    rows = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for number, module in enumerate(modules, 1):
        path = f"{number}_{type(module).__name__}"
        (folder / path).mkdir()
        module.save(str(folder / path))
        kind = f"{type(module).__module__}.{type(module).__name__}"
        rows.append({"idx": number, "name": str(number), "path": path, "type": kind})
    (folder / "modules.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
