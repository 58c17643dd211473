"""Running text, a model that predicts the next token, perplexity."""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._base.files import existing, replacing
from tfopt._base.formats import kind_of
from tfopt._base.remaining import told_now_and_then
from tfopt._keras import extras
from tfopt.data import batches as batching
from tfopt.data.blocks import hold_out, next_tokens, token_stream, write_blocks
from tfopt.data.detokenizers import HuggingFaceTokenizer, Tokenizer
from tfopt.data.features import Feature
from tfopt.data.llama2c_tokenizer import Llama2cTokenizer
from tfopt.data.readers.texts import Texts, read_documents
from tfopt.data.stdlib_docs import read_stdlib_docs
from tfopt.data.tokenizers import load_tokenizer, train_bpe
from tfopt.decoding.config import CausalLMConfig
from tfopt.errors import InputError, ModelFileError
from tfopt.models.causal_lm import causal_lm
from tfopt.models.checkpoints import files_of
from tfopt.models.gguf import gguf_config, gguf_tokenizer
from tfopt.models.llama2c import llama2c_config, llama2c_files
from tfopt.models.pretrained import check_weights, read_config
from tfopt.models.source import load_any
from tfopt.recipe.sections import ExportSection
from tfopt.tasks.base import HeldOut, Log, Task, widened

END_OF_TEXT = "<|endoftext|>"
# What each architecture is, beside the sizes; the defaults of CausalLMConfig are LLaMA's.
_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {
        "positions": "learned", "norm": "layer", "gated": False, "attention_bias": True, "output_bias": True,
        "hidden_act": "gelu_tanh",
    },
}  # fmt: skip
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.bin")  # in the order of extras.TOKENIZERS
_TEXT = "validation.txt"


class CausalLMTask(Task):
    """The next token, by a decoder."""

    features = (Feature("input_ids", "tokens"),)
    metrics = ("next_token_accuracy", "perplexity", "divergence", "multiple_choice")
    samples_count = 8  # each row has logits of the whole vocabulary at every token

    def check_inputs(self) -> list[Path]:
        recipe, inputs = self.recipe, []
        if recipe.data.source == "files":
            if recipe.data.train is None:
                raise InputError(f"recipe {recipe.name!r} needs data.train: set it or pass --train FILE")
            named = {"train": recipe.data.train, "validation": recipe.data.validation}
            inputs = [existing(path, f"{key} data") for key, path in named.items() if path is not None]
            inputs += [existing(path, "data to mix") for path in recipe.data.mix]
        if recipe.model.kind == "pretrained":
            return inputs + self._check_folder()
        if recipe.model.folder is not None:
            raise InputError("model.folder was given, but model.kind is 'fresh'; set it to 'pretrained'")
        if recipe.data.tokenizer is not None:
            tokenizer = Path(recipe.data.tokenizer)
            load_tokenizer(tokenizer)
            inputs.append(tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer)
        return inputs

    def _check_folder(self) -> list[Path]:
        """The files of the model to start from, which must generate, fit the windows, and have a tokenizer."""
        recipe = self.recipe
        if recipe.model.folder is None:
            raise InputError(f"recipe {recipe.name!r} needs model.folder: set it or pass --model DIR")
        if recipe.data.tokenizer is not None:
            raise InputError("data.tokenizer is for fresh models; a checkpoint keeps the one in its folder")
        folder = existing(recipe.model.folder, "model folder")
        if (folder / "config.json").exists():
            config = read_config(folder)
            if not isinstance(config, CausalLMConfig):
                raise ModelFileError(f"{folder} holds an encoder; task 'causal_lm' needs a model that generates")
            check_weights(folder, config)
            files = [folder / "config.json", *files_of(folder)]
            tokenizer: Path | None = existing(folder / "tokenizer.json", "tokenizer")
        elif kind_of(folder) == "gguf":
            config, files = gguf_config(folder), [folder]
            tokenizer = None if gguf_tokenizer(folder) is None else folder
        else:
            model, tokenizer = llama2c_files(folder)
            config, files = llama2c_config(model), [model]
        if tokenizer is None:
            raise InputError(f"{folder} holds no tokenizer, so no text can be read for it")
        if recipe.data.max_length > config.max_position_embeddings:
            raise InputError(
                f"data.max_length {recipe.data.max_length} is more than the {config.max_position_embeddings} "
                "positions of the model"
            )
        return list(dict.fromkeys((*files, tokenizer)))

    def pack(self, log: Log) -> dict[str, Any]:
        section = self.recipe.data
        train, validation = self._documents()
        given = {"train": train, "validation": validation}
        given |= {split: read_documents(path, section.text_column) for split, path in self.mixed.items()}
        with replacing(self.data) as folder:
            folder.mkdir()
            end = self._write_tokenizer(
                folder, [text for split, texts in given.items() if split != "validation" for text in texts.texts]
            )
            tokenizer = _read_tokenizer(folder)
            (folder / _TEXT).write_bytes("\n".join(validation.texts).encode())
            facts: dict[str, Any] = {"end_token": end}
            for split, texts in given.items():
                ids = token_stream(
                    texts.texts,
                    tokenizer.encode_ids,
                    end,
                    progress=told_now_and_then(f"packing {split} texts", log),
                )
                shards = 1 if split == "validation" else section.shards
                written = write_blocks(
                    folder,
                    split,
                    ids,
                    length=section.max_length + 1,
                    texts=len(texts),
                    source=texts.source,
                    shards=shards,
                    seed=self.recipe.seed,
                )
                counts = {"texts": len(texts), "records": written.records, "tokens": len(ids)}
                for name, count in counts.items():  # of all that is trained on together
                    key = f"{split.partition('-')[0]}_{name}"
                    facts[key] = facts.get(key, 0) + count
        facts["vocab_size"] = _vocab_size(tokenizer)
        return facts

    def _documents(self) -> tuple[Texts, Texts]:
        section = self.recipe.data
        if section.source == "stdlib_docs":
            return read_stdlib_docs(self.recipe.seed)
        train = read_documents(str(section.train), section.text_column)
        if section.validation is None:
            return hold_out(train)
        return train, read_documents(section.validation, section.text_column)

    def _write_tokenizer(self, folder: Path, texts: list[str]) -> int | None:
        """Writes the tokenizer's file and returns the token that ends a document."""
        section = self.recipe
        if section.model.folder is None:
            if section.data.tokenizer is not None:
                tokenizer = load_tokenizer(section.data.tokenizer)
            else:
                tokenizer = train_bpe(texts, section.data.vocab_size, END_OF_TEXT)
            tokenizer.save(str(folder / _TOKENIZER_FILES[0]))
            found = tokenizer.token_to_id(END_OF_TEXT)
            return None if found is None else int(found)
        source = Path(section.model.folder)
        if (source / "config.json").exists():
            config = read_config(source)
            assert isinstance(config, CausalLMConfig)
            (folder / _TOKENIZER_FILES[0]).write_bytes((source / "tokenizer.json").read_bytes())
        elif kind_of(source) == "gguf":
            config, content = gguf_config(source), gguf_tokenizer(source)
            assert content is not None
            (folder / _TOKENIZER_FILES[0]).write_bytes(content)
        else:
            model, stored = llama2c_files(source)
            assert stored is not None
            config = llama2c_config(model)
            (folder / _TOKENIZER_FILES[1]).write_bytes(stored.read_bytes())
        # The first ends a text, others a turn; llama2.c begins texts with its first.
        ends = config.end_tokens[::-1] if kind_of(source) == "llama2c" else config.end_tokens
        return ends[0] if ends else None

    def build(self, facts: dict[str, Any]) -> Any:
        section = self.recipe.model
        if section.folder is not None:
            return load_any(section.folder, generation=self.recipe.generation, dropout=section.dropout)
        end = facts["end_token"]
        config = CausalLMConfig(
            vocab_size=facts["vocab_size"], hidden_size=section.hidden_size,
            num_hidden_layers=section.num_hidden_layers, num_attention_heads=section.num_attention_heads,
            num_key_value_heads=section.num_key_value_heads, intermediate_size=section.intermediate_size,
            max_position_embeddings=self.recipe.data.max_length, tie_word_embeddings=section.tie_word_embeddings,
            dropout=section.dropout, end_tokens=() if end is None else (end,),
            **_ARCHITECTURES[section.architecture],
        )  # fmt: skip
        model = causal_lm(config, self.recipe.generation)
        extras.keep(model, extras.TOKENIZERS[0], (self.data / _TOKENIZER_FILES[0]).read_bytes())
        return model

    def batches(self, batch_size: int, split: str, **order: Any) -> tf.data.Dataset:
        return next_tokens(self.data, batch_size, self.drawn_from(split), seed=self.recipe.seed, **order)

    def lengths(self, section: ExportSection) -> list[int] | None:
        """Lengths of caches for TFLite, of windows for XLA."""
        if section.format == "saved_model":
            return (self.recipe.lengths or [self.recipe.data.max_length]) if section.jit_compile else None
        if section.format == "litertlm":  # which has one cache
            return [max(self.recipe.lengths or [self.recipe.data.max_length])]
        return self.recipe.lengths

    def samples(self) -> dict[str, np.ndarray]:
        return self._windows(self.samples_count, "validation")

    def calibration(self) -> dict[str, np.ndarray]:
        return self._windows(2 * self.samples_count, "train")

    def _windows(self, count: int, split: str) -> dict[str, np.ndarray]:
        """Records without their last token, which is only a label."""
        found = batching.samples(self.data, count, split=self.drawn_from(split))
        return {name: value[:, :-1] for name, value in found.items()}

    def held_out(self) -> HeldOut:
        length, samples = self.recipe.measure.length or self.recipe.data.max_length, self.samples()
        inputs = {name: widened(value, length) for name, value in samples.items()}
        text = (self.data / _TEXT).read_bytes().decode()
        ids = np.asarray(_read_tokenizer(self.data).encode_ids(text), np.int32)
        return HeldOut(inputs, text=ids[: self.recipe.measure.text_tokens], window=self.recipe.data.max_length)

    def notes(self, facts: dict[str, Any]) -> list[str]:
        limit, found = self.recipe.measure.text_tokens, facts["validation_tokens"]
        if found <= limit:
            return []
        return [f"Perplexity is that of the first {limit:,} of {found:,} held-out tokens (measure.text_tokens)."]


def _read_tokenizer(folder: Path) -> Tokenizer:
    as_json, as_pieces = (folder / name for name in _TOKENIZER_FILES)
    return HuggingFaceTokenizer(load_tokenizer(as_json)) if as_json.exists() else Llama2cTokenizer.read(as_pieces)


def _vocab_size(tokenizer: Tokenizer) -> int:
    inner: Any = tokenizer.tokenizer if isinstance(tokenizer, HuggingFaceTokenizer) else tokenizer
    return int(inner.get_vocab_size())
