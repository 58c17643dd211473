"""Every parser that meets foreign bytes: a good file, how to damage it, and how to read it."""

import dataclasses
import functools
import importlib.util
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from litert_lm_builder.runtime.proto.llm_metadata_pb2 import LlmMetadata

import tfopt
from tfopt._base.files import remove
from tfopt._keras import keras_api
from tfopt.archive import archive
from tfopt.data.describe import describe
from tfopt.data.llama2c_tokenizer import Llama2cTokenizer
from tfopt.data.lookup import Lookup, from_json, to_json
from tfopt.data.marian_tokenizer import marian_tokenizer
from tfopt.data.pack import pack
from tfopt.data.readers import hugging_face
from tfopt.data.readers.base import Columns
from tfopt.data.readers.texts import Texts, read_texts
from tfopt.data.records.fields import Field
from tfopt.data.records.write import write_records
from tfopt.data.text_facts import ONLY, TextFacts
from tfopt.data.tokenizers import load_tokenizer, parse_tokenizer, train_bpe
from tfopt.data.verify import verify
from tfopt.models import (
    BertConfig,
    CausalLMConfig,
    RotaryEncoderConfig,
    Seq2SeqConfig,
    bert,
    causal_lm,
    encoder,
    seq2seq,
)
from tfopt.models.keras_hub_presets import from_preset
from tfopt.quantization import QuantizeConfig
from tfopt.quantization.calibration import quantize_weights
from tfopt.quantization.record import from_bytes, to_bytes
from tfopt.recipe import Recipe
from tfopt.run.state import DoneStep, State, read_state
from tfopt.run.verification import check_manifest
from tfopt.store import Store
from tfopt.tflite.litert_lm_file import read_litert_lm, write_litert_lm

from .. import gguf_files
from .mutate import damaged, damaged_json, damaged_zip

Change = Callable[[bytes, random.Random], bytes]


@dataclasses.dataclass(frozen=True)
class Parser:
    """One parser.

    Attributes:
        make: writes a good file or folder below the one that it is given, and returns its path.
        read: reads it.
        change: damages the content of a file.
        files: which files of a folder are damaged, as patterns.
        checked: there are checksums over everything, so that no damage may be accepted.
        here: does in one process what `read` does in processes apart, which take a second each; what goes wrong so
            is read once more.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    change: Change = damaged
    files: tuple[str, ...] = ("*",)
    checked: bool = False
    here: Callable[[Path], Any] | None = None

    def cases(self, path: Path, seed: int, count: int) -> Iterator[tuple[int, Path]]:
        """Damaged copies beside `path`, each with the number that makes it again."""
        for number in range(seed, seed + count):
            rng = random.Random(number)
            copy = path.with_name(f"case-{path.name}")
            remove(copy)
            (shutil.copytree if path.is_dir() else shutil.copy)(path, copy)
            names = sorted(f for pattern in self.files for f in copy.rglob(pattern)) if path.is_dir() else [copy]
            chosen = rng.choice([f for f in names if f.is_file()])
            change = damaged_json if chosen.suffix == ".json" and not self.checked else self.change
            before = chosen.read_bytes()
            after = change(before, rng)
            if after != before:
                chosen.write_bytes(after)
                yield number, copy


def _model(generation: str) -> Any:
    return bert(BertConfig(40, 8, 1, 2, 16, 12), 2, generation=generation)


def _keras(generation: str) -> Callable[[Path], Path]:
    return lambda folder: tfopt.models.save(_model(generation), folder / "m.keras")


def _h5(folder: Path) -> Path:
    _model("tf_keras").save(folder / "m.h5")
    return folder / "m.h5"


def _exported(name: str, **settings: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        return tfopt.export(_model("tf_keras"), folder / name, **settings).path

    return make


def _predict(path: Path) -> Any:
    predictor = tfopt.Predictor.load(path)
    ids = np.full((1, 4), 3)
    return predictor.predict({"input_ids": ids, "attention_mask": np.ones_like(ids)})


def _decoder(folder: Path) -> Path:
    config = CausalLMConfig(40, 8, 1, 2, intermediate_size=16, max_position_embeddings=16)
    return tfopt.export(causal_lm(config), folder / "g.tflite").path


def _translator(folder: Path) -> Path:
    config = Seq2SeqConfig(40, 8, 1, 1, 2, intermediate_size=16, max_position_embeddings=16, relative_buckets=8)
    return tfopt.export(seq2seq(config), folder / "t.tflite", lengths=[8]).path


def _translate(path: Path) -> Any:
    return tfopt.Generator.load(path).generate([[3, 4]], tfopt.GenerateConfig(max_tokens=2))


def _generate(path: Path) -> Any:
    return list(tfopt.Predictor.load(path).stream([3, 4], tfopt.GenerateConfig(max_tokens=2)))


def _folder(folder: Path) -> Path:
    model = bert(BertConfig(40, 8, 1, 2, 16, 12), generation="tf_keras")
    tfopt.models.save_pretrained(model, folder / "m")
    return folder / "m"


def _modules(folder: Path) -> Path:
    """An encoder with the modules of sentence-transformers."""
    network = CausalLMConfig(
        40, 8, 2, 2, intermediate_size=12, max_position_embeddings=12, post_norms=True, query_key_norm=True,
        query_scale=0.5, embedding_scale=8**0.5, hidden_act="gelu_tanh", sliding_window=4, full_layers=(1,),
        rope_theta=1e6, local_rope_theta=1e4, norm_eps=1e-6,
    )  # fmt: skip
    model = encoder(RotaryEncoderConfig(network, embedding_widths=(12, 6)), head="embedding")
    tfopt.models.save_pretrained(model, folder / "m")
    return folder / "m"


def _preset(folder: Path) -> Path:
    """As KerasHub writes it."""
    hub = importlib.import_module("keras_hub")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    preprocessor = hub.models.BertTextClassifierPreprocessor(hub.models.BertTokenizer(words), sequence_length=8)
    backbone = hub.models.BertBackbone(
        vocabulary_size=7, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8, max_sequence_length=8
    )
    hub.models.BertTextClassifier(backbone, 2, preprocessor=preprocessor).save_to_preset(str(folder / "m"))
    return folder / "m"


def _quantized(folder: Path) -> Path:
    """What a model says of its quantization."""
    path = folder / "quantization.npz"
    path.write_bytes(to_bytes(quantize_weights(_quantized_model(), QuantizeConfig(weight_bits=4))[0]))
    return path


@functools.cache
def _quantized_model() -> Any:
    keras_api.keras_module("tf_keras").utils.set_random_seed(0)
    return _model("tf_keras")


def _lookups(folder: Path) -> Path:
    """Vocabularies that a file was cut behind."""
    words = Lookup(
        "word", "ids", {"a": 1, "b": 2}, 0, words=True, standardize="lower", split="whitespace", length=4
    )
    path = folder / "lookups.json"
    path.write_bytes(to_json([words]))
    return path


def _facts(folder: Path) -> Path:
    path = folder / "text.json"
    path.write_bytes(TextFacts("classification", {ONLY: ("no", "yes")}, max_length=9).as_json())
    return path


def _llama2c(folder: Path) -> Path:
    header = np.array([8, 16, 1, 2, 2, 300, 16], np.int32).tobytes()
    count = 300 * 8 + 8 + 4 * 64 + 8 + 3 * 128 + 8 + 2 * 16 * 2
    path = folder / "m.bin"
    path.write_bytes(header + np.random.default_rng(0).standard_normal(count).astype(np.float32).tobytes())
    return path


def _gguf(folder: Path) -> Path:
    """A decoder with 8-bit matrices and SentencePiece's pieces."""
    config = CausalLMConfig(300, 32, 1, 2, intermediate_size=32, max_position_embeddings=16, end_tokens=(2,))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *(f"\u2581{i}" for i in range(41))]
    written = gguf_files.pieces(tokens, [-float(i) for i in range(300)])
    return gguf_files.write(folder / "m.gguf", causal_lm(config), config, quantized="Q8_0", tokenizer=written)


def _litert_lm(folder: Path) -> Path:
    """A container whose TFLite file is not looked into: that is another parser's."""
    (folder / "m.tflite").write_bytes(b"\0\0\0\0TFL3" + bytes(2000))
    tokenizer = train_bpe(["some words to learn"] * 3, 300).to_str().encode()
    said = LlmMetadata(max_num_tokens=64, jinja_prompt_template="{{ messages }}")
    write_litert_lm(
        folder / "m.litertlm", decoder=folder / "m.tflite", tokenizer=tokenizer, metadata=said.SerializeToString()
    )
    (folder / "m.tflite").unlink()
    return folder / "m.litertlm"


def _read_litert_lm(path: Path) -> None:
    file = read_litert_lm(path)
    file.metadata()
    file.tokenizer()
    file.decoder(path.with_suffix(".copy")).unlink()


def _damaged_front(content: bytes, rng: random.Random) -> bytes:
    """Most of a container is room between its sections; its header lies in front."""
    if rng.random() < 0.3:
        return damaged(content, rng)
    return damaged(content[:1024], rng) + content[1024:]


def _llama2c_tokenizer(folder: Path) -> Path:
    pieces = [b"<unk>", b"<s>", b"</s>", *(f"<0x{i:02X}>".encode() for i in range(256)), b"a", b"b", b"ab"]
    path = folder / "tok.bin"
    path.write_bytes(b"\x08\0\0\0" + b"".join(
        np.float32(i).tobytes() + np.int32(len(piece)).tobytes() + piece for i, piece in enumerate(pieces)
    ))  # fmt: skip
    return path


def _marian(folder: Path) -> Path:
    """Pieces and a vocabulary, in the wire format of protobuf."""

    def piece(text: str, score: float) -> bytes:
        content = b"\x0a" + bytes([len(text.encode())]) + text.encode() + b"\x15" + np.float32(score).tobytes()
        return b"\x0a" + bytes([len(content)]) + content

    path = folder / "marian"
    path.mkdir()
    names = ["\u2581", "a", "b", "\u2581ab", "ba"]
    (path / "source.spm").write_bytes(b"".join(piece(name, -i) for i, name in enumerate(names)))
    (path / "vocab.json").write_text(json.dumps({n: i for i, n in enumerate(["</s>", "<unk>", *names, "<pad>"])}))
    return path


def _cut(path: Path) -> Any:
    found = marian_tokenizer(path, 8)
    return found and parse_tokenizer(found.decode(), str(path)).encode("ab ba")


_TEXTS = Texts([f"the word {i} and more" for i in range(30)], ["ab"[i % 2] for i in range(30)], "texts")


def _tokenizer(folder: Path) -> Path:
    train_bpe(_TEXTS.texts, 300).save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def _pack(folder: Path) -> Path:
    pack(_TEXTS, train_bpe(_TEXTS.texts, 300), out=folder / "p", max_length=40, labels=["a", "b"], shards=2)
    return folder / "p"


def _records(folder: Path) -> Path:
    pack(_TEXTS, out=folder / "p", layout="text", labels=["a", "b"], shards=2, compression="GZIP")
    return folder / "p"


def _store(**settings: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        tensors = {
            "a": np.arange(3000.0),
            "b": np.zeros(5000, np.float32),
            "c": np.arange(5000) % 7 / np.float32(3),
        }
        return tfopt.store.save(tensors, folder / "s", narrow=True, **settings).folder

    return make


def _parquet(folder: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    rows = {"text": list(_TEXTS.texts), "label": list(_TEXTS.labels or [])}
    pyarrow.parquet.write_table(pyarrow.table(rows), folder / "t.parquet", row_group_size=10)
    return folder / "t.parquet"


def _dataset(folder: Path) -> Path:
    import datasets

    rows = {"text": list(_TEXTS.texts), "label": list(_TEXTS.labels or [])}
    datasets.Dataset.from_dict(rows).save_to_disk(str(folder / "d"))
    return folder / "d"


def _pieces(path: Path) -> None:
    rows = hugging_face.rows_of(path)
    hugging_face.DatasetPiece(path, 0, rows, columns=Columns(None, "label")).read()


def _tfrecord(folder: Path) -> Path:
    fields = {"input_ids": Field("int64", (None,)), "label": Field("int64")}
    columns = {"input_ids": np.arange(60).reshape(12, 5), "label": np.arange(12) % 3}
    written = write_records(folder / "r", [columns], fields=fields)
    return (folder / "r" / written.shards[0].file).rename(folder / "m.tfrecord")


def _archive(folder: Path) -> Path:
    (folder / "f" / "sub").mkdir(parents=True)
    (folder / "f" / "a").write_bytes(np.arange(300, dtype=np.float32).tobytes())
    (folder / "f" / "sub" / "b").write_bytes(bytes(2000))
    return archive.pack(folder / "f", folder / "m.tfopt").path


def _table(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / f"t{suffix}"
        if suffix == ".jsonl":
            path.write_text("".join(json.dumps({"text": f"é {i}", "label": i % 2}) + "\n" for i in range(20)))
        else:
            mark = "\t" if suffix == ".tsv" else ","
            path.write_text(f"label{mark}text\n" + "".join(f'{i % 2}{mark}"é {i}"\n' for i in range(20)))
        return path

    return make


def _recipe(folder: Path) -> Path:
    path = folder / "r.toml"
    path.write_text(Recipe.load("demo").to_toml(), "utf-8")
    return path


def _state(folder: Path) -> Path:
    steps = [DoneStep(f"step {i}", 1.5, {f"out{i}": "ab" * 32}, result={"x": i}) for i in range(4)]
    State("f" * 64, tfopt.__version__, steps).write(folder / "state.json")
    return folder / "state.json"


def _manifest(folder: Path) -> Path:
    (folder / "run").mkdir()
    (folder / "run" / "a").write_bytes(b"abc")
    entry = {"path": "a", "bytes": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    (folder / "run" / "manifest.json").write_text(json.dumps({"schema": 1, "files": [entry], "versions": {}}))
    return folder / "run"


def _report(folder: Path) -> Path:
    report = tfopt.compare({"m": _keras("tf_keras")(folder)}, inputs={
        "input_ids": np.full((1, 4), 3), "attention_mask": np.ones((1, 4), int)
    }, rounds=1, seconds=0.01, memory=False)  # fmt: skip
    return report.save(folder / "report.json")


PARSERS: dict[str, Parser] = {
    "keras": Parser(_keras("keras"), tfopt.models.load, damaged_zip),
    "tf_keras": Parser(_keras("tf_keras"), tfopt.models.load, damaged_zip),
    "h5": Parser(_h5, tfopt.models.load),
    "saved_model": Parser(_exported("m"), _predict, files=("saved_model.pb", "variables.*", "*.json")),
    "tflite": Parser(_exported("m.tflite", lengths=[4]), _predict),
    "generating_tflite": Parser(_decoder, _generate),
    "translating_tflite": Parser(_translator, _translate),
    "quantization": Parser(_quantized, lambda path: from_bytes(path.read_bytes(), _quantized_model()), damaged_zip),
    "lookups": Parser(_lookups, lambda path: from_json(path.read_bytes(), str(path)), damaged_json),
    "text_facts": Parser(_facts, lambda path: TextFacts.from_json(path.read_bytes(), str(path)), damaged_json),
    "hugging_face": Parser(_folder, tfopt.models.from_pretrained),
    "sentence_transformers": Parser(
        _modules, lambda path: tfopt.models.from_pretrained(path, head="embedding"), damaged_json, files=("*.json",)
    ),
    "gguf": Parser(_gguf, tfopt.models.from_pretrained),
    "litert_lm": Parser(_litert_lm, _read_litert_lm, _damaged_front),
    "llama2c": Parser(_llama2c, tfopt.models.read_llama2c),
    "llama2c_tokenizer": Parser(_llama2c_tokenizer, Llama2cTokenizer.read),
    "tokenizer": Parser(_tokenizer, load_tokenizer, damaged_json),
    "marian_tokenizer": Parser(_marian, _cut),
    "pack": Parser(_pack, lambda path: (verify(path), describe(path)), checked=True, files=("*.tfrecord",)),
    "manifest": Parser(_pack, verify, damaged_json, files=("*.manifest.json",)),
    "tfrecord": Parser(_tfrecord, verify),  # alone, a file that is cut between records looks whole
    "archive": Parser(_archive, archive.check, checked=True),
    "tsv": Parser(_table(".tsv"), lambda path: read_texts(path, None, "label")),
    "csv": Parser(_table(".csv"), lambda path: read_texts(path, None, "label")),
    "jsonl": Parser(_table(".jsonl"), lambda path: read_texts(path, None, "label")),
    "parquet": Parser(_parquet, lambda path: read_texts(path, None, "label")),
    "dataset": Parser(_dataset, lambda path: read_texts(path, None, "label"), here=_pieces),
    "records": Parser(_records, lambda path: (verify(path), describe(path)), checked=True, files=("*.tfrecord",)),
    "store": Parser(_store(), lambda path: Store(path).verify(), checked=True, files=("*.safetensors",)),
    "store_index": Parser(_store(), lambda path: Store(path).verify(), damaged_json, files=("*.json",)),
    "store_hdf5": Parser(
        _store(format="hdf5", compression="gzip"), lambda path: Store(path).verify(), files=("*.h5",)
    ),
    "recipe": Parser(_recipe, Recipe.load),
    "state": Parser(_state, lambda path: read_state(path, "f" * 64)),
    "run_manifest": Parser(_manifest, check_manifest, damaged_json, files=("manifest.json",)),
    "report": Parser(_report, tfopt.Report.load, damaged_json),
}
if importlib.util.find_spec("keras_hub"):
    PARSERS["keras_hub"] = Parser(_preset, from_preset)
