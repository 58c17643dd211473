"""Reads and writes Hugging Face folders: `config.json`, safetensors, and the tokenizer beside them."""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from tfopt._base.files import existing
from tfopt._base.foreign import read_bytes, read_json
from tfopt._base.formats import kind_of, llama2c_models
from tfopt._base.limits import MAX_MEMBER_BYTES
from tfopt._base.members import CHAT, FACTS
from tfopt._keras import extras, keras_api
from tfopt._keras.room import room_for
from tfopt.data.chat import ChatTemplate, template_of_folder, write_template
from tfopt.data.marian_tokenizer import FILES, marian_tokenizer
from tfopt.data.text_facts import ONLY, TextFacts, TextTask
from tfopt.decoding.config import CausalLMConfig
from tfopt.decoding.seq2seq_config import Seq2SeqConfig
from tfopt.decoding.weights import config_of, is_causal_lm, is_seq2seq, seq2seq_config_of
from tfopt.errors import InputError, MissingFileError, ModelFileError
from tfopt.models.assign import assign, check_names
from tfopt.models.causal_lm import causal_lm
from tfopt.models.checkpoints import Tensors, opened, write_tensors
from tfopt.models.encoder import EncoderConfig, Head, Pooling, encoder, encoder_config
from tfopt.models.families import (
    FAMILIES,
    Config,
    Entry,
    Family,
    family_of,
    kind_of_encoder,
    write_causal,
    write_seq2seq,
)
from tfopt.models.families.fields import check_fields
from tfopt.models.gguf import read_gguf
from tfopt.models.heads import (
    OF_THE_ENCODER,
    check_public,
    head_config,
    head_entries,
    named_head,
    pooling_of,
    stored_entries,
    stored_labels,
    stored_names,
)
from tfopt.models.llama2c import llama2c_files, read_llama2c
from tfopt.models.rotary_encoder import RotaryEncoderConfig
from tfopt.models.sentence_modules import assign_dense, dense_folders, widths, write_modules
from tfopt.models.seq2seq import seq2seq

# Masks that old GPT-2 checkpoints store, and frequencies that old LLaMA ones do.
_BUFFERS = re.compile(r"(\.attn\.(masked_)?bias|rotary_emb\.inv_freq)$")
_SHARD = 5_000_000_000
_ONE_LABEL = "single_label_classification"
# Head -> the task with texts that it is for.
_TASKS: dict[str, TextTask] = {
    "classification": "classification", "tokens": "token_classification", "span": "span", "embedding": "embedding",
}  # fmt: skip


def from_pretrained(
    folder: str | Path,
    generation: str = "tf_keras",
    *,
    num_labels: int | None = None,
    pooling: Pooling = "mean",
    dropout: float | None = None,
    head: Head | Literal["stored"] | None = None,
    heads: Mapping[str, int] | None = None,
) -> Any:
    """Builds the model that a Hugging Face folder describes and gives it the stored weights.

    Args:
        folder: holds `config.json` and `model.safetensors`, or several files and their index, or what llama2.c
            writes, a `.bin` with its tokenizer; or a `.gguf` file of a decoder. Known are BERT, DistilBERT,
            RoBERTa, ModernBERT, EmbeddingGemma, T5, Marian, GPT-2, LLaMA, Mistral, Qwen2 and 3, SmolLM3, Phi-3,
            and the text models of Gemma 1 to 3.
        generation: "tf_keras" or "keras".
        num_labels: for a classifier; with `head`, by default as many as the checkpoint's has.
        pooling: for a classifier, as for `models.encoder`.
        dropout: overrides the checkpoint's dropout while training, in [0, 1).
        head: for encoders, as for `models.encoder`. Weights that the checkpoint has for it are read ("pooler" only
            for classifiers); the others are fresh. "stored" is the head that the checkpoint was trained for a task
            with, whole, or none if it has none.
        heads: for encoders, several fresh classifiers, as for `models.encoder`.

    Raises:
        MissingFileError: the folder or one of its files is missing.
        ModelFileError: an unknown architecture, a pickle, or a missing, extra or misshapen tensor (named).
        InputError: labels or a head for a model that generates.
    """
    folder = _found(folder)
    is_told = (num_labels, head, heads) not in ((None, None, None), (None, "stored", None))
    if is_told and kind_of(folder) in ("gguf", "llama2c"):
        raise InputError(f"labels and heads are for encoders; {folder} holds a model that generates")
    if folder.suffix == ".gguf":
        return read_gguf(folder, generation=generation, dropout=dropout)
    if not (folder / "config.json").exists() and llama2c_models(folder):
        path, tokenizer = llama2c_files(folder)
        return read_llama2c(path, generation=generation, tokenizer=tokenizer, dropout=dropout)
    config, architecture = read_family(folder)
    model: Any
    extra: list[Entry] = []
    if isinstance(config, CausalLMConfig | Seq2SeqConfig):
        head = None if head == "stored" else head
        if num_labels is not None or head is not None or heads is not None:
            given = f"num_labels={num_labels}" if head is None else f"head={head!r}"
            raise InputError(f"{given} is for encoders; {folder} holds a model that generates")
        if dropout is not None:
            config = dataclasses.replace(config, dropout=dropout)
        with room_for(_checked_bytes(folder, config, architecture), folder):
            if isinstance(config, CausalLMConfig):
                model = causal_lm(config, generation)
            else:
                model = seq2seq(config, generation)
        words = _tokenizer_for(folder, config)
        if words is not None:
            extras.keep(model, extras.TOKENIZERS[0], words)
        template = template_of_folder(folder)
        if template is not None:
            extras.keep(model, CHAT, template.to_json())
    else:
        if dropout is not None:
            config = config.with_dropout(dropout)
        if head == "stored":
            head, pooling = _head_of(folder, config, architecture)
        head = head or (None if num_labels is None else "classification")
        extra, found = _stored_head(folder, config, architecture, head=head, pooling=pooling)
        if head in ("classification", "tokens") and num_labels is None:
            num_labels = found
        dense: list[Path] = []
        if head == "embedding" and isinstance(config, RotaryEncoderConfig):
            dense = dense_folders(folder, pooling)
            config = dataclasses.replace(config, embedding_widths=widths(dense))
        with room_for(_checked_bytes(folder, config, architecture), folder):
            model = encoder(config, num_labels, pooling=pooling, generation=generation, head=head, heads=heads)
        _keep_for_texts(model, folder, config, head=head if extra or head == "embedding" else None)
        assign_dense(model, dense)
    with opened(folder) as tensors:
        stored = stored_names_of(tensors, architecture)
        assign(model, [*architecture.entries(config), *extra], tensors, names=stored, where=folder)
    return model


def _tokenizer_for(folder: Path, config: CausalLMConfig | Seq2SeqConfig) -> bytes | None:
    """The `tokenizer.json` of a model that generates, made of SentencePiece's files where these are alone."""
    if (folder / "tokenizer.json").exists():
        return tokenizer_of_folder(folder)
    if all((folder / name).exists() for name in FILES):
        return marian_tokenizer(folder, config.vocab_size)
    return None


def _keep_for_texts(model: Any, folder: Path, config: EncoderConfig, head: Head | None) -> None:
    """What answers to texts need: the tokenizer, and the names of classes of a head that was read."""
    if (folder / "tokenizer.json").exists():
        extras.keep(model, extras.TOKENIZERS[0], tokenizer_of_folder(folder))
    task = _TASKS.get(head or "")
    if task is None:
        return
    raw = read_json(folder / "config.json", "model configuration", error=ModelFileError)
    named = task.endswith("classification")
    labels = {ONLY: stored_names(raw, int(model.output.shape[-1]))} if named else {}
    facts = TextFacts(task, labels, max_length=config.most_tokens)
    extras.keep(model, FACTS, facts.as_json())


def _found(folder: str | Path) -> Path:
    """The folder, or for the name of a repository how it becomes one."""
    name = str(folder)
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not Path(folder).exists():
        raise MissingFileError(
            f"model folder not found: {name}. Models are read from folders; one of the Hugging Face hub becomes "
            f"one by `hf download {name} --local-dir {name.rpartition('/')[2]}`"
        )
    return existing(folder, "model folder")


def _checked_bytes(folder: Path, config: Config, architecture: Family) -> int:
    """Bytes of the stored tensors as float32, after their names were checked: headers only."""
    with opened(folder) as tensors:
        names = {e.theirs for e in architecture.entries(config)}
        check_names(names, set(stored_names_of(tensors, architecture)), architecture.unused, where=folder)
        return 4 * sum(math.prod(shape) for shape in tensors.shapes.values())


def tokenizer_of_folder(folder: Path) -> bytes:
    """The `tokenizer.json` of a folder."""
    return read_bytes(folder / "tokenizer.json", "tokenizer", most=MAX_MEMBER_BYTES, error=ModelFileError)


def _stored_head(
    folder: Path, config: EncoderConfig, architecture: Family, head: Head | None, pooling: Pooling
) -> tuple[list[Entry], int | None]:
    """The tensors that a checkpoint has for a head, and its number of classes."""
    wanted = _head_entries(config, head, pooling)
    with opened(folder) as tensors:
        names = stored_names_of(tensors, architecture)
        entries = stored_entries(wanted, names, str(folder))
        return entries, stored_labels(entries, {ours: tensors.shapes[name] for ours, name in names.items()})


def _head_of(folder: Path, config: EncoderConfig, architecture: Family) -> tuple[Head | None, Pooling]:
    """The head that a checkpoint was trained with, if all of it is there, and where a classifier looks."""
    raw = read_json(folder / "config.json", "model configuration", error=ModelFileError)
    head = cast(Head | None, named_head(raw))
    pooling: Pooling = cast(Pooling, pooling_of(raw)) if head == "classification" else "mean"
    found, classes = _stored_head(folder, config, architecture, head=head, pooling=pooling)
    whole = head is not None and len(found) == len(_head_entries(config, head, pooling))
    if head == "classification" and (raw.get("problem_type") or _ONE_LABEL) != _ONE_LABEL:
        whole = False  # several labels at once, or a number: no one label is the answer
    return (None, "mean") if not whole or classes == 1 else (head, pooling)  # one class is a number, not a label


def _head_entries(config: EncoderConfig, head: Head | None, pooling: Pooling) -> list[Entry]:
    has_bias = not isinstance(config, RotaryEncoderConfig) or config.norm_bias
    return head_entries(kind_of_encoder(config), head, pooling, norm_bias=has_bias)


def read_config(folder: Path) -> Config:
    """The shape that a folder's `config.json` describes: of an encoder, or of a model that generates.

    Raises:
        ModelFileError: it is not one that is known.
    """
    return read_family(folder)[0]


def check_weights(folder: Path, config: Config) -> None:
    """Checks names and shapes of the stored tensors, reading no more than headers.

    Raises:
        ModelFileError: a missing, extra or misshapen tensor, or an unreadable file.
    """
    _, architecture = read_family(folder)
    with opened(folder) as tensors:
        stored = stored_names_of(tensors, architecture)
        check_names(
            {e.theirs for e in architecture.entries(config)}, set(stored), architecture.unused, where=folder
        )
        table = next(e.theirs for e in architecture.entries(config))
        shape = tensors.shapes[stored[table]]
    if shape != (config.vocab_size, config.hidden_size):
        raise ModelFileError(
            f"{folder}: the word table has shape {shape}, the configuration asks for "
            f"{(config.vocab_size, config.hidden_size)}"
        )


def save_pretrained(
    model: Any, folder: str | Path, *, shard_bytes: int = _SHARD, dtype: str = "float32"
) -> list[Path]:
    """Writes a model back as a Hugging Face folder, in the layout that its architecture has there.

    Args:
        model: a causal language model, an encoder-decoder, or an encoder, with a head that public checkpoints have
            ("pooler" classifiers, "tokens", "span", "masked_lm") or without; compressed ones keep their values.
        folder: where; files there with the same names are replaced.
        shard_bytes: most bytes of one file.
        dtype: "float32", "float16" or "bfloat16".

    Returns:
        The files that were written.

    Raises:
        InputError: a model that no public layout holds.
    """
    if dtype not in ("float32", "float16", "bfloat16"):
        raise InputError(f"dtype must be float32, float16 or bfloat16, got {dtype!r}")
    if shard_bytes < 1:
        raise InputError(f"shard_bytes must be 1 or more, got {shard_bytes}")
    weights = {w.path: keras_api.to_numpy(w.variable) for w in keras_api.weights(model)}
    config: Config
    heads: list[Entry] = []
    if is_causal_lm(model):
        config = config_of(model)
        raw = write_causal(config)
    elif is_seq2seq(model):
        config = seq2seq_config_of(model)
        raw = write_seq2seq(config)
    else:
        config, raw, heads = _encoder(model, weights)
    (_, architecture), folder = family_of(raw, "config.json"), Path(folder)
    # With a head, the encoder's names have a prefix and the head's have none.
    prefix = max(architecture.prefixes, key=len) if heads else architecture.prefixes[0]
    values = {prefix + e.theirs: e.write(weights) for e in architecture.entries(config)}
    values |= {(prefix if e.theirs.startswith(OF_THE_ENCODER) else "") + e.theirs: e.write(weights) for e in heads}
    files = write_tensors(folder, values, raw, shard_bytes=shard_bytes, dtype=dtype)
    dense = [path for path in weights if path.startswith("embedding_dense_")]
    if dense:
        kernels = [weights[f"embedding_dense_{i}/kernel"] for i in range(len(dense))]
        pooling = encoder_config(model)[2]
        files += write_modules(folder, kernels, width=config.hidden_size, pooling=pooling, dtype=dtype)
    tokenizer = extras.of(model).get(extras.TOKENIZERS[0])
    if tokenizer is not None:
        (folder / "tokenizer.json").write_bytes(tokenizer)
        files.append(folder / "tokenizer.json")
    if CHAT in extras.of(model):
        files += write_template(ChatTemplate.from_json(extras.of(model)[CHAT], f"model {model.name!r}"), folder)
    return files


def _encoder(model: Any, weights: dict[str, np.ndarray]) -> tuple[EncoderConfig, dict[str, Any], list[Entry]]:
    """Shape, `config.json` and head of an encoder that `models.encoder` built."""
    config, head, pooling = encoder_config(model)
    kind = kind_of_encoder(config)
    check_public(kind, head, pooling)
    raw = FAMILIES[kind].write_config(config)
    entries = _head_entries(config, head, pooling)
    if entries and head is not None:
        raw |= head_config(kind, head, _names_of_classes(model, weights), pooling=pooling)
    return config, raw, entries


def _names_of_classes(model: Any, weights: Mapping[str, np.ndarray]) -> tuple[str, ...] | None:
    if "logits/bias" not in weights:
        return None
    content, classes = extras.of(model).get(FACTS), weights["logits/bias"].size
    facts = None if content is None else TextFacts.from_json(content, f"model {model.name!r}")
    names = () if facts is None else facts.labels.get(ONLY, ())
    return names if len(names) == classes else stored_names({}, classes)


def read_family(folder: Path) -> tuple[Config, Family]:
    """The shape that a folder's `config.json` describes, and the family that it is of; raises as `read_config`."""
    path = folder / "config.json"
    raw = check_fields(read_json(path, "model configuration", error=ModelFileError), str(path))
    beside = folder / "generation_config.json"
    if beside.is_file():  # which knows ends that `config.json` does not, such as those of turns
        told = read_json(beside, "generation configuration", error=ModelFileError)
        named = told.get("eos_token_id") if isinstance(told, dict) else None
        if named is not None:
            raw = check_fields({**raw, "eos_token_id": _joined(raw.get("eos_token_id"), named)}, str(beside))
    _, architecture = family_of(raw, str(path))
    try:
        return architecture.config(raw), architecture
    except (TypeError, KeyError, ArithmeticError, InputError) as error:
        raise ModelFileError(f"{path}: {error}") from error


def _joined(*ends: Any) -> list[Any]:
    """Every token that ends a text, once."""
    lists = [end if isinstance(end, list) else [end] for end in ends if end is not None]
    found: list[Any] = []
    for end in itertools.chain(*lists):
        if end not in found:
            found.append(end)
    return found


def stored_names_of(tensors: Tensors, architecture: Family) -> dict[str, str]:
    """Stored names by the name without a prefix."""
    prefixes = [p for p in architecture.prefixes if p]
    found = {}
    for name in tensors.shapes:
        prefix = next((p for p in prefixes if name.startswith(p)), "")
        if not _BUFFERS.search(name):
            found[name.removeprefix(prefix)] = name
    return found
