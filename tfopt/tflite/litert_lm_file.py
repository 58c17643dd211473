"""Looks into a `.litertlm` file: the container of LiteRT-LM, whose sections are a TFLite file and what it needs.

https://ai.google.dev/edge/litert-lm/file_builder. A header tells where each section lies; nothing is believed of it
before it was compared with the file.
"""

import dataclasses
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

from tfopt._base.foreign import regular
from tfopt._base.limits import MAX_MEMBER_BYTES, MAX_RATIO, MAX_TEXT_BYTES
from tfopt.errors import ModelFileError

_MAGIC, _HEADER_AT, _END_AT = b"LITERTLM", 32, 24
_MOST_SECTIONS = 64
TFLITE, METADATA, TOKENIZER = "TFLiteModel", "LlmMetadataProto", "HF_Tokenizer_Zlib"
DECODER = "tf_lite_prefill_decode"


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the file.

    Attributes:
        kind: "TFLiteModel", "LlmMetadataProto", "HF_Tokenizer_Zlib" and so on.
        model: of a TFLite file, what it is for, such as "tf_lite_prefill_decode"; "" else.
        begin: its first byte in the file.
        end: the byte behind its last.
    """

    kind: str
    model: str
    begin: int
    end: int


@dataclasses.dataclass(frozen=True)
class LiteRtLmFile:
    """What a file holds.

    Attributes:
        path: the file.
        sections: in their order.
    """

    path: Path
    sections: tuple[Section, ...]

    def decoder(self, target: Path) -> Path:
        """Copies the TFLite file that decodes to `target`.

        Raises:
            ModelFileError: there is none.
        """
        section = self._only(TFLITE, DECODER)
        if section is None:
            raise ModelFileError(f"{self.path} holds no TFLite file that decodes")
        with self.path.open("rb") as source, target.open("wb") as copy:
            source.seek(section.begin)
            left = section.end - section.begin
            while left:
                left -= copy.write(source.read(min(left, 1 << 24)))
        return target

    def tokenizer(self) -> bytes | None:
        """Its `tokenizer.json`; None where it has one of another kind.

        Raises:
            ModelFileError: it is damaged, or larger than tokenizers are.
        """
        packed = self._content(TOKENIZER, most=MAX_MEMBER_BYTES)
        if packed is None:
            return None
        size = int.from_bytes(packed[:8], "little")
        if not 0 < size <= min(MAX_MEMBER_BYTES, MAX_RATIO * len(packed)):
            raise ModelFileError(
                f"{self.path} says that its tokenizer has {size:,} bytes, packed in {len(packed):,}"
            )
        unpacker = zlib.decompressobj()
        try:
            content = unpacker.decompress(packed[8:], size)
        except zlib.error as error:
            raise ModelFileError(f"{self.path} has a damaged tokenizer: {error}") from error
        if len(content) != size or unpacker.unconsumed_tail:
            raise ModelFileError(f"{self.path} has a tokenizer of another size than it says")
        return content

    def metadata(self) -> Any:
        """Its `LlmMetadata`: first and last tokens, limits, sampling, and the chat template.

        Raises:
            ModelFileError: there is none, or it is damaged.
        """
        from google.protobuf.message import DecodeError
        from litert_lm_builder.runtime.proto.llm_metadata_pb2 import LlmMetadata

        content = self._content(METADATA, most=MAX_TEXT_BYTES)
        if content is None:
            raise ModelFileError(f"{self.path} says nothing about its language model")
        found = LlmMetadata()
        try:
            found.ParseFromString(content)
        except DecodeError as error:
            raise ModelFileError(f"{self.path} says something damaged about its model: {error}") from error
        return found

    def _only(self, kind: str, model: str = "") -> Section | None:
        found = [section for section in self.sections if section.kind == kind and section.model == model]
        if len(found) > 1:
            raise ModelFileError(f"{self.path} has {len(found)} sections {kind} {model}, where one is expected")
        return found[0] if found else None

    def _content(self, kind: str, most: int) -> bytes | None:
        section = self._only(kind)
        if section is None:
            return None
        if section.end - section.begin > most:
            raise ModelFileError(f"{self.path}: section {kind} of {section.end - section.begin:,} bytes")
        with self.path.open("rb") as file:
            file.seek(section.begin)
            return file.read(section.end - section.begin)


def read_litert_lm(path: str | Path) -> LiteRtLmFile:
    """Reads the header of a file.

    Raises:
        MissingFileError: no such file.
        ModelFileError: it is something else, or damaged.
    """
    path = regular(path, "LiteRT-LM file", ModelFileError)
    size = path.stat().st_size
    with path.open("rb") as file:
        begun = file.read(_HEADER_AT)
        if begun[: len(_MAGIC)] != _MAGIC or len(begun) < _HEADER_AT:
            raise ModelFileError(f"{path} is not a LiteRT-LM file")
        major, end = struct.unpack_from("<I", begun, len(_MAGIC))[0], struct.unpack_from("<Q", begun, _END_AT)[0]
        if major != 1:
            raise ModelFileError(f"{path} is of version {major} of the format, only version 1 is known")
        if not _HEADER_AT < end <= min(size, MAX_TEXT_BYTES):
            raise ModelFileError(f"{path} is damaged: its header ends at byte {end:,} of {size:,}")
        header = file.read(end - _HEADER_AT)
    try:
        sections = _sections(header)
    except Exception as error:  # a damaged buffer fails anywhere, with whatever its bytes lead to
        raise ModelFileError(f"{path} is damaged: {error}") from error
    last = end
    for section in sorted(sections, key=lambda s: s.begin):
        if not last <= section.begin < section.end <= size:
            raise ModelFileError(
                f"{path} is damaged: section {section.kind} lies at bytes {section.begin:,} to {section.end:,} "
                f"of {size:,}"
            )
        last = section.end
    return LiteRtLmFile(path, tuple(sections))


def _sections(header: bytes) -> list[Section]:
    from litert_lm_builder import litertlm_header_schema_py_generated as schema

    kinds = {value: name for name, value in vars(schema.AnySectionDataType).items() if isinstance(value, int)}
    table = schema.LiteRTLMMetaData.GetRootAs(header, 0).SectionMetadata()
    count = table.ObjectsLength()
    if count > _MOST_SECTIONS:
        raise ModelFileError(f"{count:,} sections, {_MOST_SECTIONS} are the most")
    found = []
    for one in map(table.Objects, range(count)):
        model = ""
        for item in map(one.Items, range(one.ItemsLength())):
            if item.Key() == b"model_type" and item.ValueType() == schema.VData.StringValue:
                text = schema.StringValue()
                text.Init(item.Value().Bytes, item.Value().Pos)
                model = (text.Value() or b"").decode()
        found.append(Section(kinds.get(one.DataType(), "unknown"), model, one.BeginOffset(), end=one.EndOffset()))
    return found


def write_litert_lm(path: Path, *, decoder: Path, tokenizer: bytes, metadata: bytes) -> None:
    """Writes a file.

    Args:
        path: the file.
        decoder: a TFLite file with signatures `decode` and `prefill_*`.
        tokenizer: a `tokenizer.json`.
        metadata: a serialized `LlmMetadata`.
    """
    from litert_lm_builder import DType, LitertLmFileBuilder, Metadata, TfLiteModelType

    folder = path.with_name(f"{path.name}.parts")
    folder.mkdir()
    try:
        (folder / "tokenizer.json").write_bytes(tokenizer)
        (folder / "metadata.pb").write_bytes(metadata)
        builder = LitertLmFileBuilder()
        builder.add_system_metadata(Metadata(key="Authors", value="tfopt", dtype=DType.STRING))
        builder.add_llm_metadata(str(folder / "metadata.pb"))
        builder.add_hf_tokenizer(str(folder / "tokenizer.json"))
        builder.add_tflite_model(str(decoder), TfLiteModelType.PREFILL_DECODE)
        with path.open("wb") as stream:
            builder.build(stream)
    finally:
        shutil.rmtree(folder)
