"""Records of any features: their bytes, order, workers, damage, mixtures, sequences, and the service."""

import gzip
import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfopt.data.batches import batches
from tfopt.data.columns import record_batches
from tfopt.data.mixing import mixed_batches
from tfopt.data.pack import pack, write_pack
from tfopt.data.packing import bins
from tfopt.data.readers.texts import Texts
from tfopt.data.records.encode import encode_examples
from tfopt.data.records.fields import Column, Field, columns_of
from tfopt.data.records.framing import check_framing, readable_records, scan_records
from tfopt.data.records.manifest import read_manifest
from tfopt.data.records.read import Order
from tfopt.data.records.write import new_pack, write_records
from tfopt.data.sequences import sequence_batches
from tfopt.data.service import service_batches
from tfopt.data.tokenizers import train_bpe
from tfopt.data.verify import verify
from tfopt.errors import DataError, InputError

FIELDS = {
    "ids": Field("int64", (None,)), "logits": Field("float32", (3,)), "states": Field("float32", (None, 2)),
    "text": Field("string"), "blob": Field("bytes"), "label": Field("int64", (), 5),
}  # fmt: skip


def values(count, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 6, count)
    return {
        "ids": [rng.integers(0, 2**40, n) for n in lengths],
        "logits": rng.standard_normal((count, 3)).astype(np.float32),
        "states": [rng.standard_normal((n, 2)).astype(np.float32) for n in lengths],
        "text": [f"the {i}th té" * (i % 3) for i in range(count)],
        "blob": [bytes(rng.integers(0, 256, i % 300, dtype=np.uint8)) for i in range(count)],
        "label": rng.integers(0, 5, count),
    }  # fmt: skip


rows = st.lists(
    st.tuples(st.lists(st.integers(0, 2**62), max_size=5), st.lists(st.floats(width=32, allow_nan=False), max_size=4),
              st.binary(max_size=200)),
    min_size=1, max_size=8,
)  # fmt: skip


@settings(max_examples=60)
@given(rows)
def test_any_features_are_the_bytes_that_tensorflow_writes(found):
    fields = {"b": Field("bytes"), "i": Field("int64", (None,)), "f": Field("float32", (None,))}
    columns = {
        "b": Column(np.frombuffer(b"".join(b for *_, b in found), np.uint8), np.array([len(b) for *_, b in found])),
        "i": Column(np.array([v for i, *_ in found for v in i], np.int64), np.array([len(i) for i, *_ in found])),
        "f": Column(
            np.array([v for _, f, _ in found for v in f], np.float32), np.array([len(f) for _, f, _ in found])
        ),
    }
    content, ends = encode_examples(fields, columns)
    for (i, f, b), start, end in zip(found, [0, *ends], ends, strict=False):
        feature = {
            "b": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b])),
            "i": tf.train.Feature(int64_list=tf.train.Int64List(value=i)),
            "f": tf.train.Feature(float_list=tf.train.FloatList(value=f)),
        }
        example = tf.train.Example(features=tf.train.Features(feature=feature))
        assert content[start + 12 : end - 4] == example.SerializeToString(deterministic=True)


@pytest.mark.parametrize("compression", ["", "GZIP"])
def test_records_come_back_as_they_were(tmp_path, compression):
    parts = [values(40, seed) for seed in range(3)]
    written = write_records(tmp_path / "r", parts, fields=FIELDS, shards=2, compression=compression)
    assert written.records == 120 == verify(tmp_path / "r")["records"] and len(written.shards) == 2
    assert read_manifest(tmp_path / "r") == written and written.fields == FIELDS
    seen = {}
    for batch in record_batches(tmp_path / "r", 7, order=Order(shuffle=True)):
        for row in range(len(batch["label"])):
            one = {name: batch[name][row].numpy() for name in FIELDS}
            seen[one["logits"].tobytes()] = one
    for part in parts:
        for row in range(40):
            one = seen.pop(part["logits"][row].tobytes())
            assert one["text"].decode() == part["text"][row] and one["blob"] == part["blob"][row]
            assert (one["ids"] == part["ids"][row]).all() and (one["states"] == part["states"][row]).all()
            assert one["label"] == part["label"][row]
    assert not seen


@pytest.mark.parametrize(
    ("change", "says"),
    [({"label": np.full(4, 5)}, "'label' must be from 0 to 4, got 5"), ({"label": np.full(4, -1)}, "from 0 to 4, got -1"),
     ({"label": np.full(4, 0.5)}, "'label' must be integers"), ({"logits": np.full((4, 3), np.nan)}, "NaN or infinity"),
     ({"logits": np.zeros((4, 2))}, "'logits' must have the shape"), ({"text": ["a\ud800"] * 4}, "half a character"),
     ({"text": [b"x"] * 4}, "'text' must be string, got bytes"), ({"label": np.zeros(3, int)}, "differ in records"),
     ({"more": [1] * 4}, "must have the features")],
)  # fmt: skip
def test_values_that_do_not_fit_are_explained(tmp_path, change, says):
    with pytest.raises(DataError, match=says):
        write_records(tmp_path / "r", [values(4) | change], fields=FIELDS)
    assert not (tmp_path / "r").exists()


def test_fields_that_cannot_be_are_refused(tmp_path):
    for arguments in (("int32",), ("string", (3,)), ("int64", (2, None)), ("float32", (0,))):
        with pytest.raises(InputError, match="must be|cannot have"):
            Field(*arguments)
    with pytest.raises(InputError, match="compression must be"):
        write_records(tmp_path / "r", [values(4)], fields=FIELDS, compression="LZ4")


TEXTS = Texts(
    [f"the number {i} " + "and more " * (i % 7) for i in range(300)], [str(i % 3) for i in range(300)], "texts"
)
TOKENIZER = train_bpe(TEXTS.texts, 300)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records") / "p"
    pack(TEXTS, TOKENIZER, out=folder, max_length=60, shards=5)
    return folder


def flat(parts):
    return [one for part in parts for one in part]


def rows_of(data):
    return [
        tuple(row[: int(n)]) for inputs, _ in data
        for row, n in zip(inputs["input_ids"].numpy(), inputs["attention_mask"].numpy().sum(1), strict=True)
    ]  # fmt: skip


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_pass_that_was_cut_off_goes_on_exactly(packed, shuffle):
    """Batch by batch, also where the cut falls into a later window."""
    for batch_size, cuts in ((1, (64, 65, 299)), (4, (0, 74, 75))):
        whole = [rows_of([batch]) for batch in batches(packed, batch_size, shuffle=shuffle, seed=2, epoch=5)]
        for done in cuts:
            rest = batches(packed, batch_size, shuffle=shuffle, seed=2, epoch=5, skip=done)
            assert int(rest.cardinality()) == len(whole) - done
            assert [rows_of([batch]) for batch in rest] == whole[done:]
        again = [rows_of([batch]) for batch in batches(packed, batch_size, shuffle=shuffle, seed=2, epoch=6)]
        assert (again != whole) == shuffle and sorted(flat(again)) == sorted(flat(whole))
    with pytest.raises(InputError, match="skip must be at most 75"):
        batches(packed, 4, skip=76)


def test_workers_share_the_records(packed):
    everything = sorted(rows_of(batches(packed, 8)))
    parts = [rows_of(batches(packed, 8, shuffle=True, epoch=1, worker=(i, 7))) for i in range(7)]
    assert sorted(flat(parts)) == everything and {len(p) for p in parts} <= {42, 43}
    with pytest.raises(InputError, match="worker must be"):
        batches(packed, 8, worker=(2, 2))


@pytest.mark.parametrize("compression", ["", "GZIP"])
def test_damaged_records_are_skipped_only_if_that_is_asked_for(tmp_path, compression, caplog):
    folder = tmp_path / "p"
    pack(TEXTS, TOKENIZER, out=folder, max_length=60, shards=2, compression=compression)
    whole = rows_of(batches(folder, 8))
    shard = folder / read_manifest(folder).shards[0].file
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        batches(folder, 8)
    data = batches(folder, 8, on_damage="skip")
    kept = rows_of(data)
    lost = len(whole) - len(kept)
    assert set(kept) < set(whole) and lost > 0 and (compression or lost == 1)
    assert int(data.cardinality()) == -(-len(kept) // 8)
    assert f"{lost} of its 150 records are skipped" in caplog.text
    with pytest.raises(InputError, match="on_damage"):
        batches(folder, 8, on_damage="ignore")


def test_reading_goes_on_behind_a_damaged_length(packed):
    shard = packed / read_manifest(packed).shards[0].file
    records = list(scan_records(shard))
    content = shard.read_bytes()
    start = len(records[0]) + 16
    for damaged in (
        content[:start] + b"\xff" * 8 + content[start + 8 :],  # the length of the second record
        content[: start + 5] + content[start + 12 + len(records[1]) + 4 :],  # most of the record is gone
    ):
        (packed / "damaged").write_bytes(damaged)
        assert list(readable_records(packed / "damaged")) == [records[0], *records[2:]]
    (packed / "damaged").unlink()


def test_mixtures_have_the_shares_that_were_asked_for(tmp_path):
    for name, word in (("a", "one"), ("b", "two")):
        texts = Texts([f"{word} {i}" for i in range(50)], None, name)
        pack(texts, TOKENIZER, out=tmp_path / name, max_length=20)
    marks = {word: TOKENIZER.encode(word).ids[2] for word in ("one", "two")}

    def drawn(**changes):
        data = mixed_batches({tmp_path / "a": 3, tmp_path / "b": 1}, 10, steps=80, seed=1, **changes)
        return [batch["input_ids"].numpy().tolist() for batch in data]

    found = drawn()
    first = [row[2] for batch in found for row in batch]
    assert len(found) == 80 and 0.7 < np.mean([token == marks["one"] for token in first]) < 0.8
    assert drawn() == found and drawn(skip=70) == found[70:]
    # Each source goes through all its records before one comes again.
    ones = [tuple(row) for batch in found for row in batch if row[2] == marks["one"]]
    assert len(set(ones)) == 50
    with pytest.raises(InputError, match="weights must be above 0"):
        mixed_batches({tmp_path / "a": 0}, 10, steps=1)
    pack(TEXTS, TOKENIZER, out=tmp_path / "c", max_length=60)
    with pytest.raises(DataError, match="the same features and classes"):
        mixed_batches({tmp_path / "a": 1, tmp_path / "c": 1}, 10, steps=1)


def test_passes_of_a_mixture_go_through_all_of_a_large_source(tmp_path):
    """Three quarters of a pass are of the small one, which comes several times; the large one is gone through."""
    with new_pack(tmp_path / "m") as folder:
        for split, texts in (
            ("train", [f"one {i}" for i in range(20)]),
            ("train-1", [f"two {i}" for i in range(100)]),
        ):
            write_pack(folder, split, data=Texts(texts, None, "t"), tokenizer=TOKENIZER, shards=3)
    shares = {"train": 3.0, "train-1": 1.0}
    one, two = (TOKENIZER.encode(word).ids[2] for word in ("one", "two"))

    def of(epoch, **changes):
        data = batches(tmp_path / "m", 10, split=shares, shuffle=True, epoch=epoch, **changes)
        return [[tuple(i for i in row if i) for row in batch["input_ids"].numpy().tolist()] for batch in data]

    seen, small = set(), set()
    for epoch in range(5):
        rows = [row for batch in of(epoch) for row in batch]
        assert len(rows) == 120 and 0.6 < np.mean([row[2] == one for row in rows]) < 0.9
        seen |= {row for row in rows if row[2] == two}
        small |= {row for row in rows if row[2] == one}
    assert len(small) == 20 and len(seen) > 90  # five quarters of its size were drawn
    assert of(3) == of(3) and of(3, skip=4) == of(3)[4:] and of(3) != of(4)
    for wrong, said in (({"train": math.inf}, "above 0 and finite"), ({"train": 0}, "above 0")):
        with pytest.raises(InputError, match=said):
            batches(tmp_path / "m", 10, split=wrong)
    with pytest.raises(InputError, match="leave on_damage='skip' out"):
        batches(tmp_path / "m", 10, split=shares, on_damage="skip")


@given(st.lists(st.integers(1, 30), min_size=1, max_size=200))
def test_bins_hold_every_sequence_once(lengths):
    groups = bins(np.array(lengths), 30)
    assert sorted(flat(groups)) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in group) <= 30 for group in groups)
    assert len(groups) <= 2 * -(-sum(lengths) // 30)  # two groups that are less than half full would be one


def test_sequences_share_records_and_stay_apart(tmp_path):
    texts = Texts(TEXTS.texts, None, "texts")
    manifest = pack(texts, TOKENIZER, out=tmp_path / "s", max_length=64, layout="sequences", shards=2)
    plain = pack(texts, TOKENIZER, out=tmp_path / "p", max_length=64)
    assert manifest.tokens == plain.tokens and manifest.records < plain.records / 2
    verify(tmp_path / "s")
    seen, cells = [], 0
    for batch in sequence_batches(tmp_path / "s", 4, shuffle=True):
        ids, segments, positions = (batch[k].numpy() for k in ("input_ids", "segment_ids", "positions"))
        cells += ids.size
        assert ids.shape[1] == 64 and (ids[segments == 0] == 0).all()
        for row in range(len(ids)):
            for number in range(1, segments[row].max() + 1):
                where = segments[row] == number
                assert positions[row][where].tolist() == list(range(where.sum()))
                seen.append(tuple(ids[row][where].tolist()))
    assert sorted(seen) == sorted(tuple(e.ids) for e in TOKENIZER.encode_batch(TEXTS.texts))
    assert manifest.tokens > 0.9 * cells  # of the batches, less than a tenth is padding
    with pytest.raises(InputError, match="have no labels"):
        pack(TEXTS, TOKENIZER, out=tmp_path / "l", labels=["0", "1", "2"], layout="sequences")
    with pytest.raises(DataError, match="not packed with the layout 'sequences'"):
        sequence_batches(tmp_path / "p", 4)


def test_workers_of_a_service_read_every_record_once(packed):
    dispatcher = tf.data.experimental.service.DispatchServer()
    address = dispatcher.target.split("://")[1]
    servers = [
        tf.data.experimental.service.WorkerServer(
            tf.data.experimental.service.WorkerConfig(dispatcher_address=address, heartbeat_interval_ms=50)
        )
        for _ in range(2)
    ]
    data = service_batches(packed, 16, service=dispatcher.target, shuffle=True, epoch=3)
    assert sorted(rows_of(data)) == sorted(rows_of(batches(packed, 16)))
    assert dispatcher._num_workers() == 2 == len(servers)


def test_columns_are_taken_in_any_order():
    columns = columns_of(FIELDS, values(20))
    order = np.random.default_rng(1).permutation(20)[:9]
    taken = encode_examples(FIELDS, {name: column.take(order) for name, column in columns.items()})
    assert taken[0] == encode_examples(FIELDS, columns_of(FIELDS, {
        name: [column[i] for i in order] for name, column in values(20).items()
    }))[0]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "values_", "says"),
    [({"a": Field("int64")}, {"a": np.array([2**63 + 5], np.uint64)}, "64 bits with a sign"),
     ({"a" * 130: Field("int64")}, {"a" * 130: [1]}, "names of features"),
     ({"a": Field("int64", (None,))}, {"a": [np.array([1]), np.array([], int)]}, "is empty in some records")],
)  # fmt: skip
def test_what_could_not_be_read_again_is_not_written(tmp_path, fields, values_, says):
    with pytest.raises(DataError, match=says):
        write_records(tmp_path / "r", [values_], fields=fields)
    assert not (tmp_path / "r").exists()


def test_batches_that_would_cut_or_be_empty_are_refused(packed, tmp_path):
    pack(Texts(TEXTS.texts, None, "texts"), TOKENIZER, out=tmp_path / "s", max_length=64, layout="sequences")
    with pytest.raises(InputError, match="length must hold the longest record"):
        sequence_batches(tmp_path / "s", 4, length=8)
    fields = {"input_ids": Field("int64", (None,)), "segment_lengths": Field("int64", (None,))}
    write_records(tmp_path / "r", [{"input_ids": [[1, 2]], "segment_lengths": [[2]]}], fields=fields)
    for read in (sequence_batches, batches):
        with pytest.raises(InputError, match="length must hold|does not tell the longest record"):
            read(tmp_path / "r", 4)
    with pytest.raises(InputError, match="batch_size must be 1 or more"):
        service_batches(packed, 0, service="grpc://localhost:1")


def test_a_compressed_shard_that_is_cut_in_its_last_record_is_found(tmp_path):
    whole = write_records(tmp_path / "r", [values(9)], fields=FIELDS)
    content = (tmp_path / "r" / whole.shards[0].file).read_bytes()
    (tmp_path / "cut").write_bytes(gzip.compress(content[:-2]))
    with pytest.raises(DataError, match="is cut within the record"):
        check_framing(tmp_path / "cut", "GZIP")
