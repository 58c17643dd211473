"""The tokenizer that llama2.c stores: pieces with scores, merged greedily.

Karpathy, llama2.c, https://github.com/karpathy/llama2.c. It has the methods of a `tokenizers.Tokenizer` that
tfopt calls, so that one can stand for the other.
"""

import heapq
import struct
from collections.abc import Sequence
from pathlib import Path

from tfopt._base.foreign import read_bytes
from tfopt._base.limits import MAX_MEMBER_BYTES
from tfopt.data.detokenizers import ByteStream
from tfopt.data.gguf_tokenizer import tokenizer_json
from tfopt.errors import InputError, ModelFileError

UNKNOWN, BOS, EOS, _FIRST_BYTE = 0, 1, 2, 3


class Llama2cTokenizer:
    """Turns text into ids and back.

    Attributes:
        pieces: the bytes of every token.
    """

    def __init__(self, pieces: list[bytes], scores: list[float]) -> None:
        self.pieces = pieces
        self._scores = scores
        self._ids = {piece: i for i, piece in reversed(list(enumerate(pieces)))}

    @classmethod
    def read(cls, path: str | Path) -> "Llama2cTokenizer":
        """Reads a tokenizer file, `tok512.bin` for one.

        Raises:
            MissingFileError: no such file.
            ModelFileError: it is something else.
        """
        return cls.parse(read_bytes(path, "tokenizer", most=MAX_MEMBER_BYTES, error=ModelFileError), str(path))

    @classmethod
    def parse(cls, content: bytes, path: str = "the tokenizer") -> "Llama2cTokenizer":
        """The tokenizer that a file's content is; `path` names it in messages."""
        pieces, scores, at = [], [], 4
        try:
            struct.unpack_from("<i", content)
            while at < len(content):
                score, size = struct.unpack_from("<fi", content, at)
                if not 0 <= size <= len(content) - at - 8:
                    raise ModelFileError(f"{path} is no llama2.c tokenizer: a token of {size} bytes at {at}")
                pieces.append(content[at + 8 : at + 8 + size])
                scores.append(score)
                at += 8 + size
        except struct.error as error:
            raise ModelFileError(f"{path} is no llama2.c tokenizer: it ends inside token {len(pieces)}") from error
        if len(pieces) < _FIRST_BYTE + 256:
            raise ModelFileError(
                f"{path} is no llama2.c tokenizer: {len(pieces)} tokens, 256 bytes alone need more"
            )
        return cls(pieces, scores)

    def to_json(self) -> bytes:
        """The same as a `tokenizer.json`."""
        tokens = [piece.decode("utf-8", "replace").replace(" ", "▁") for piece in self.pieces]
        tokens[_FIRST_BYTE : _FIRST_BYTE + 256] = [f"<0x{byte:02X}>" for byte in range(256)]
        tokens[UNKNOWN], tokens[BOS], tokens[EOS] = "<unk>", "<s>", "</s>"
        kinds = [1] * len(tokens)
        kinds[BOS] = kinds[EOS] = 3
        metadata = {
            "model": "llama", "tokens": tokens, "scores": [float(s) for s in self._scores], "token_type": kinds,
            "bos_token_id": BOS, "unknown_token_id": UNKNOWN,
        }  # fmt: skip
        named = {f"tokenizer.ggml.{name}": value for name, value in metadata.items()}
        found = tokenizer_json(named, len(tokens), where="a tokenizer of llama2.c")
        assert found is not None
        return found

    def get_vocab_size(self) -> int:
        return len(self.pieces)

    def encode_ids(self, text: str) -> list[int]:
        """Ids of a text, after the token that begins every text."""
        ids = [BOS]
        if not text:
            return ids
        for character in " " + text:
            piece = character.encode()
            found = self._ids.get(piece)
            ids.extend([found] if found is not None else [byte + _FIRST_BYTE for byte in piece])
        return self._merged(ids)

    def encode_whole(self, text: str) -> list[int]:
        """Ids of a text alone."""
        return self.encode_ids(text)[1:]

    def _merged(self, ids: list[int]) -> list[int]:
        """Joins the pair with the highest score first, the leftmost of equals, until none is a token."""
        after, before = [*range(1, len(ids)), -1], list(range(-1, len(ids) - 1))
        tokens: list[int | None] = list(ids)
        waiting: list[tuple[float, int, int, int, int]] = []

        def offer(left: int) -> None:
            right = after[left] if left >= 0 else -1
            if right < 0:
                return
            first, second = tokens[left], tokens[right]
            assert first is not None and second is not None
            joined = self._ids.get(self.pieces[first] + self.pieces[second])
            if joined is not None:
                heapq.heappush(waiting, (-self._scores[joined], left, joined, first, second))

        for place in range(len(ids)):
            offer(place)
        while waiting:
            _, left, joined, first, second = heapq.heappop(waiting)
            right = after[left]
            if right < 0 or tokens[left] != first or tokens[right] != second:
                continue  # one of the two was joined with another meanwhile
            tokens[left], tokens[right] = joined, None
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            offer(before[left])
            offer(left)
        return [token for token in tokens if token is not None]

    def stream(self, prompt: Sequence[int]) -> ByteStream:
        """Turns the tokens after a prompt into text."""
        return ByteStream(self.piece, prompt[-1] if prompt else None)

    def piece(self, token: int, previous: int | None) -> bytes:
        """The bytes that a token adds to a text; a blank that begins the text is no part of it."""
        if not 0 <= token < len(self.pieces):
            raise InputError(f"token id must be in [0, {len(self.pieces)}), got {token}")
        if token in (BOS, EOS):
            return b""
        piece = self.pieces[token]
        if len(piece) == 6 and piece.startswith(b"<0x") and piece.endswith(b">"):
            return bytes([int(piece[3:5], 16)])
        return piece[1:] if previous == BOS and piece.startswith(b" ") else piece
