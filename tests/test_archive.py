import contextlib
import gzip
import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tfopt
from tfopt import archive
from tfopt._base.files import tree_digest
from tfopt.archive.coding import decode, encode
from tfopt.archive.entropy import bound
from tfopt.errors import DataError, InputError, MissingFileError
from tfopt.models import BertConfig, bert

RNG = np.random.default_rng(0)


def trained(bits, sparsity, shape=(1024, 384)):
    """A Gaussian matrix with the smallest weights at zero, rounded per channel."""
    matrix = RNG.standard_normal(shape)
    matrix[np.abs(matrix) < np.quantile(np.abs(matrix), sparsity)] = 0
    scale = np.abs(matrix).max(0) / (2 ** (bits - 1) - 1)
    return np.rint(matrix / scale).astype(np.int8)


def stored(values, bits):
    """As a TFLite file has them."""
    flat = values.reshape(-1).view(np.uint8)
    return flat.tobytes() if bits == 8 else ((flat[::2] & 15) | (flat[1::2] << 4)).tobytes()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("sparsity", [0, 0.3, 0.5, 0.8, 0.9, 0.95, 0.99])
def test_integers_come_close_to_their_entropy(bits, sparsity):
    content = stored(trained(bits, sparsity), bits)
    coded = encode(content, bits)
    assert decode(coded) == content
    assert bound(content, bits) <= 1.02 * len(coded) and len(coded) <= 1.06 * bound(content, bits)


@pytest.mark.parametrize(("bits", "sparsity", "asked"), [(8, 0.8, 2.10), (8, 0.9, 1.15), (4, 0.8, 1.29)])
def test_bits_a_weight_are_those_of_the_entropy(bits, sparsity, asked):
    values = trained(bits, sparsity)
    content = stored(values, bits)
    assert 8 * bound(content, bits) / values.size == pytest.approx(asked, rel=0.05)
    assert 8 * len(encode(content, bits)) / values.size < 1.03 * asked


def test_zeros_and_shared_values_of_floats_cost_little():
    matrix = RNG.standard_normal(1 << 18).astype(np.float32)
    pruned = np.where(RNG.random(matrix.size) < 0.8, np.float32(0), matrix)
    shared = RNG.standard_normal(16).astype(np.float32)[RNG.integers(0, 16, matrix.size)]
    for values, most in ((pruned, 0.8 + 0.2 * 32), (shared, 4.05)):
        coded = encode(values.tobytes(), 32)
        assert decode(coded) == values.tobytes()
        assert 8 * len(coded) / values.size < most
        assert len(coded) < 1.02 * bound(values.tobytes(), 32)
    halves = matrix.astype(np.float16)
    assert len(encode(halves.tobytes(), 16)) < 0.93 * len(gzip.compress(halves.tobytes(), 9))


@settings(max_examples=150, deadline=None)
@given(
    content=st.one_of(
        st.binary(max_size=600),
        st.tuples(st.binary(max_size=12), st.integers(0, 400), st.binary(max_size=12)).map(
            lambda t: t[0] + bytes(t[1]) + t[2] * 7
        ),
    ),
    bits=st.sampled_from([0, 4, 8, 16, 32]),
)
def test_anything_comes_back_bit_for_bit(content, bits):
    assert decode(encode(content, bits)) == content


@settings(max_examples=150, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), bits=st.sampled_from([4, 8, 32]))
def test_damaged_values_raise_and_nothing_else(at, byte, bits):
    coded = bytearray(encode(bytes(200) + b"abcdefgh" * 9 + bytes(300), bits))
    coded[int(at * len(coded))] = byte
    with contextlib.suppress(DataError):
        decode(bytes(coded))


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "saved_model"
    (made / "variables").mkdir(parents=True)
    values = np.where(RNG.random(300_000) < 0.7, 0, RNG.standard_normal(300_000)).astype(np.float32)
    (made / "variables" / "variables.data").write_bytes(b"xyz" + values.tobytes())  # not at a multiple of four
    (made / "saved_model.pb").write_bytes(b"graph" * 100)
    (made / "empty").write_bytes(b"")
    return made


def test_a_folder_comes_back_from_a_stream(folder, tmp_path):
    packed = archive.pack(folder, tmp_path / "m.tfopt")
    assert packed.path.stat().st_size == packed.packed_bytes and packed.files == 3
    assert packed.packed_bytes < 0.36 * packed.bytes  # zeros are found, wherever the values begin
    assert packed.entropy_bytes <= packed.packed_bytes < 1.02 * packed.entropy_bytes
    assert archive.sizes(folder).packed_bytes == packed.packed_bytes

    class Slow(io.RawIOBase):
        def __init__(self, content):
            self.rest = content

        def readable(self):
            return True

        def read(self, size=-1):
            piece, self.rest = self.rest[: min(size, 1000)], self.rest[min(size, 1000) :]
            return piece

    archive.unpack(Slow(packed.path.read_bytes()), tmp_path / "back")
    assert tree_digest(tmp_path / "back") == tree_digest(folder)
    assert archive.check(packed.path) == 3


def test_an_integer_file_packs_by_its_tensors_and_runs(tmp_path):
    model = tfopt.prune(bert(BertConfig(300, 64, 1, num_attention_heads=4, intermediate_size=128), 2), 0.8)
    for quantization, bits in (("dynamic_int8", 8), ("dynamic_int4", 4)):
        path = tmp_path / f"{quantization}.tflite"
        tfopt.export(model, path, format="tflite", quantization=quantization, lengths=[8])
        packed = tfopt.pack(path)
        assert packed.path == tmp_path / f"{quantization}.tflite.tfopt"
        assert packed.packed_bytes < len(gzip.compress(path.read_bytes(), 9))
        back = tfopt.unpack(packed.path, tmp_path / f"back{bits}.tflite")
        assert back.read_bytes() == path.read_bytes()


def test_damage_is_found_and_nothing_is_left_behind(folder, tmp_path):
    whole = archive.pack(folder, tmp_path / "m.tfopt").path.read_bytes()
    target = tmp_path / "out"
    places = [0, 9, 14, 20, len(whole) // 2, len(whole) - 1]
    damaged = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in places]
    for content in (*damaged, b"", whole[:7], whole[: len(whole) // 2], whole[:-1], b"PK" + whole):
        with pytest.raises(DataError, match="archive"):
            archive.unpack(io.BytesIO(content), target)
        assert not target.exists() and sorted(p.name for p in tmp_path.iterdir()) == ["m.tfopt", "saved_model"]


def test_paths_stay_below_the_target(tmp_path):
    for name in (
        b"../evil",
        b"/etc/evil",
        b"a/../../evil",
        b"a\\evil",
        b"nul",
        b"a/COM1.txt",
        b"x.",
        b"a\nb",
        b"a?",
    ):
        record = struct.pack("<BII", ord("F"), len(name), zlib.crc32(name)) + name
        with pytest.raises(DataError, match="leads elsewhere"):
            archive.unpack(io.BytesIO(b"TFOPT1\r\n" + record), tmp_path / "out")


def test_an_archive_ends_where_it_ends_and_unpacks_to_what_is_sensible(folder, tmp_path):
    whole = archive.pack(folder, tmp_path / "m.tfopt").path.read_bytes()
    with pytest.raises(DataError, match="more bytes follow its end"):
        archive.unpack(io.BytesIO(whole + b"\0"), tmp_path / "out")

    def record(kind, content):
        return struct.pack("<BII", ord(kind), len(content), zlib.crc32(content)) + content

    bomb = b"TFOPT1\r\n" + record("F", b"a") + record("P", encode(bytes(1 << 22), 0)) * 40
    with pytest.raises(DataError, match="would unpack"):
        archive.unpack(io.BytesIO(bomb), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.tfopt", "saved_model"]


def test_links_out_of_the_folder_are_not_packed(folder, tmp_path):
    (tmp_path / "secret").write_text("x")
    (folder / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="is a link out of the folder"):
        archive.pack(folder, tmp_path / "m.tfopt")
    (folder / "link").unlink()
    (folder / "SAVED_MODEL.pb").write_bytes(b"x")
    with pytest.raises(InputError, match="the name of another file but for its case"):
        archive.pack(folder, tmp_path / "m.tfopt")
    assert not (tmp_path / "m.tfopt").exists()


def test_nothing_that_is_there_is_lost(folder, tmp_path):
    for artifact, out in ((folder, tmp_path), (folder / "saved_model.pb", folder / "saved_model.pb"),
                          (folder / "saved_model.pb", folder)):  # fmt: skip
        with pytest.raises(InputError, match="would replace what is there|must not lie"):
            archive.pack(artifact, out)
    (folder / "a:b").write_bytes(b"x")
    with pytest.raises(InputError, match="a name that not every system can write"):
        archive.pack(folder, tmp_path / "m.tfopt")
    (folder / "a:b").unlink()
    with pytest.raises(InputError, match="is a folder"):
        archive.unpack(folder, tmp_path / "x")
    assert (folder / "saved_model.pb").read_bytes() == b"graph" * 100
    assert sorted(p.name for p in tmp_path.iterdir()) == ["saved_model"]


def test_archives_cannot_ask_for_much_memory_or_for_paths_twice(tmp_path):
    zeros = encode(bytes(1 << 20), 0)
    many = zeros + zeros[zeros.index(b"\x01", 14) :] * 20
    with pytest.raises(DataError, match="damaged"):
        decode(many)

    def record(kind, content):
        return struct.pack("<BII", ord(kind), len(content), zlib.crc32(content)) + content

    for names in (
        (b"a", b"a"),
        (b"a", b"A"),
        ("é".encode(), "e\u0301".encode()),
        (b"a", b"a/b"),
        (b".",),
        (b"a", b"./a"),
        (b"x" * 300,),
    ):
        content = b"TFOPT1\r\n" + b"".join(record("F", name) for name in names)
        with pytest.raises(DataError):
            archive.unpack(io.BytesIO(content), tmp_path / "out")
        assert not list(tmp_path.iterdir())


def test_what_is_no_whole_number_of_values_is_packed_as_bytes(tmp_path):
    assert bound(b"abc", 32) == 3 and decode(encode(b"abc", 32)) == b"abc"
    (tmp_path / "x.tflite").write_bytes(b"\x20\0\0\0TFL3" + bytes(range(200)))  # no flatbuffer behind the magic
    packed = archive.pack(tmp_path / "x.tflite")
    back = archive.unpack(packed.path, tmp_path / "y.tflite")
    assert back.read_bytes() == (tmp_path / "x.tflite").read_bytes()


def test_bad_arguments_say_what_to_do(folder, tmp_path):
    with pytest.raises(MissingFileError, match="artifact not found"):
        archive.pack(tmp_path / "nothing")
    with pytest.raises(InputError, match="must not lie in the folder"):
        archive.pack(folder, folder / "m.tfopt")
    packed = archive.pack(folder).path
    assert packed.name == "saved_model.tfopt"
    with pytest.raises(InputError, match="is there already"):
        archive.unpack(packed, folder)
    (tmp_path / "hollow").mkdir()
    with pytest.raises(InputError, match="holds no file"):
        archive.pack(tmp_path / "hollow")


def test_commands(folder, tmp_path):
    def tfopt(*arguments, **settings):
        return subprocess.run(
            [sys.executable, "-m", "tfopt", *map(str, arguments)], capture_output=True, **settings
        )

    out = tmp_path / "m.tfopt"
    assert b"times fewer" in tfopt("pack", folder, "-o", out).stdout
    assert b"3 files, every check passed" in tfopt("verify", out).stdout
    assert tfopt("unpack", "-", "-o", tmp_path / "back", input=out.read_bytes()).returncode == 0
    assert tree_digest(tmp_path / "back") == tree_digest(folder)
    out.write_bytes(out.read_bytes()[:-5])
    failed = tfopt("verify", out)
    assert failed.returncode == 2 and b"ends early" in failed.stderr
