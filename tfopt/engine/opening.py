"""Opens whatever generates: a model, a checkpoint, or an exported file."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tfopt._base.formats import kind_of
from tfopt._base.members import CHAT
from tfopt._keras import extras
from tfopt.data.chat import ChatTemplate
from tfopt.data.detokenizers import HuggingFaceTokenizer, Tokenizer
from tfopt.data.llama2c_tokenizer import Llama2cTokenizer
from tfopt.decoding.config import CausalLMConfig
from tfopt.decoding.decoder import Decoder
from tfopt.decoding.seq2seq_config import Seq2SeqConfig
from tfopt.decoding.weights import is_seq2seq
from tfopt.errors import InputError
from tfopt.models.keras_hub import as_decoder
from tfopt.models.keras_hub_presets import class_in
from tfopt.tflite.file import read_metadata

RUNTIMES = ("eager", "xla", "tflite")
_GENERATING = {extras.CONFIG, extras.SEQ2SEQ}


class Opened(NamedTuple):
    """A decoder, and what came with it."""

    decoder: Decoder
    tokenizer: Tokenizer | None
    chat: ChatTemplate | None


def open_decoder(
    source: Any,
    runtime: str | None,
    threads: int | None,
    bits: int | None,
    weight_cache: str | Path | None,
    trust: bool,
    imports: Sequence[str] = (),
) -> Opened:
    """The decoder, and what comes with it, of whatever `Generator.load` takes."""
    if runtime not in (None, *RUNTIMES):
        raise InputError(f"runtime must be one of {', '.join(RUNTIMES)}, got {runtime!r}")
    if isinstance(source, (str, Path)) and Path(source).suffix == ".tflite":
        from tfopt.runtime.tflite_decoder import TFLiteDecoder
        from tfopt.runtime.tflite_seq2seq import TFLiteSeq2SeqDecoder, is_seq2seq_file

        if runtime not in (None, "tflite") or bits is not None:
            raise InputError("a .tflite file runs on runtime 'tflite', in the bits it was exported with")
        kind = TFLiteSeq2SeqDecoder if is_seq2seq_file(Path(source)) else TFLiteDecoder
        file = kind(source, threads, weight_cache)
        return Opened(file, tokenizer_of(file.members), chat_of(file.members))
    if isinstance(source, (str, Path)) and Path(source).suffix == ".litertlm":
        from tfopt.runtime.litert_lm import LiteRtLmDecoder

        if runtime not in (None, "tflite") or bits is not None or weight_cache is not None:
            raise InputError(
                "a .litertlm file runs on runtime 'tflite', as it was exported, without a weight cache"
            )
        container = LiteRtLmDecoder(source, threads)
        return Opened(container, tokenizer_of(container.members), chat_of(container.members))
    if runtime == "tflite":
        raise InputError("runtime 'tflite' takes a .tflite file: export the model first")
    if isinstance(source, (str, Path)):
        from tfopt.models.source import load_any

        source = load_any(source, trust=trust, imports=imports)
    source = as_decoder(source)
    members = extras.of(source)
    tokenizer, chat = tokenizer_of(members), chat_of(members)
    if runtime == "eager" and bits is not None:
        raise InputError(f"runtime 'eager' computes in float, got bits={bits}")
    return Opened(_of_model(source, runtime, bits), tokenizer, chat)


def _of_model(model: Any, runtime: str | None, bits: int | None) -> Decoder:
    """A Keras model on a runtime."""
    if is_seq2seq(model):
        if runtime == "eager":
            from tfopt.runtime.eager_seq2seq import EagerSeq2SeqDecoder

            return EagerSeq2SeqDecoder(model)
        from tfopt.runtime.xla_seq2seq import XlaSeq2SeqDecoder

        return XlaSeq2SeqDecoder(model, bits)
    if runtime == "eager":
        from tfopt.runtime.eager_decoder import EagerDecoder

        return EagerDecoder(model)
    from tfopt.runtime.xla_decoder import XlaDecoder

    return XlaDecoder(model, bits)


def generates(path: Path) -> bool:
    """Whether a file or folder holds a model that generates; the model itself is not read.

    Raises:
        MissingFileError: nothing is there.
    """
    path, kind = Path(path), kind_of(path)
    if kind == "litertlm":
        return True
    if kind == "tflite":
        return not _GENERATING.isdisjoint(read_metadata(path))
    if kind == "keras" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return not _GENERATING.isdisjoint(archive.namelist())
    if kind == "hugging_face":
        from tfopt.models.pretrained import read_config

        return isinstance(read_config(path), CausalLMConfig | Seq2SeqConfig)
    if kind == "keras_hub":
        return class_in(path).endswith("CausalLM")
    return kind in ("llama2c", "gguf")


def tokenizer_of(members: Mapping[str, bytes]) -> Tokenizer | None:
    """The tokenizer that a model file carries."""
    as_json, as_pieces = (members.get(name) for name in extras.TOKENIZERS)
    if as_json is not None:
        from tfopt.data.tokenizers import parse_tokenizer

        return HuggingFaceTokenizer(parse_tokenizer(as_json.decode(), "the model's tokenizer"))
    return None if as_pieces is None else Llama2cTokenizer.parse(as_pieces)


def chat_of(members: Mapping[str, bytes]) -> ChatTemplate | None:
    """The chat template that a model file carries."""
    return ChatTemplate.from_json(members[CHAT], "the model's chat template") if CHAT in members else None
