import hashlib
import json
import os
import shutil
import struct

import google_crc32c
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfopt.data import pack as packing
from tfopt.data.batches import batches, samples
from tfopt.data.describe import describe
from tfopt.data.readers.texts import label_ids, label_names, read_texts
from tfopt.data.records.encode import encode_examples
from tfopt.data.records.fields import Column, Field
from tfopt.data.records.framing import scan_records
from tfopt.data.records.manifest import check_shards, read_manifest
from tfopt.data.tokenizers import encode, load_tokenizer, save_tokenizer, train_bpe
from tfopt.data.verify import verify
from tfopt.errors import DataError, InputError, MissingFileError, ModelFileError

records = st.lists(
    st.tuples(st.lists(st.one_of(st.integers(0, 300), st.integers(0, 2**40)), min_size=1, max_size=200),
              st.integers(0, 2**20)),
    min_size=1, max_size=12,
)  # fmt: skip


def as_arrays(rows):
    tokens = np.array([t for row, _ in rows for t in row], np.int64)
    return tokens, np.array([len(row) for row, _ in rows]), np.array([label for _, label in rows])


def encoded(tokens, lengths, labels):
    fields = {"input_ids": Field("int64", (None,))}
    columns = {"input_ids": Column(tokens, lengths)}
    if labels is not None:
        fields["label"], columns["label"] = Field("int64"), Column(labels, np.ones(len(labels), np.int64))
    return encode_examples(fields, columns)


@settings(max_examples=60)
@given(records, st.booleans())
def test_records_are_the_bytes_that_tensorflow_writes(rows, labelled):
    tokens, lengths, labels = as_arrays(rows)
    content, ends = encoded(tokens, lengths, labels if labelled else None)
    assert ends[-1] == len(content)
    position = 0
    for (row, label), end in zip(rows, ends, strict=True):
        feature = {"input_ids": tf.train.Feature(int64_list=tf.train.Int64List(value=row))}
        if labelled:
            feature["label"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))
        example = tf.train.Example(features=tf.train.Features(feature=feature))
        assert content[position + 12 : end - 4] == example.SerializeToString(deterministic=True)
        position = end


def test_tensorflow_reads_what_was_written(tmp_path):
    rows = [([1, 2, 300], 0), ([70000], 5), (list(range(200)), 1)]
    content, _ = encoded(*as_arrays(rows))
    path = tmp_path / "x.tfrecord"
    path.write_bytes(content)
    read = [tf.train.Example.FromString(r.numpy()) for r in tf.data.TFRecordDataset(str(path))]
    assert [list(e.features.feature["input_ids"].int64_list.value) for e in read] == [r for r, _ in rows]
    assert [e.features.feature["label"].int64_list.value[0] for e in read] == [label for _, label in rows]
    assert len(list(scan_records(path))) == 3


@pytest.mark.parametrize("position", [3, 9, 20, -2])
def test_any_flipped_byte_is_found(tmp_path, position):
    content = bytearray(encoded(np.arange(9), np.array([4, 5]), None)[0])
    content[position] ^= 0xFF
    (tmp_path / "bad.tfrecord").write_bytes(content)
    with pytest.raises(DataError, match="bad.tfrecord is (damaged|cut)"):
        list(scan_records(tmp_path / "bad.tfrecord"))


@pytest.fixture
def texts(labelled_tsv):
    return read_texts(labelled_tsv[0])


@pytest.fixture
def packed(texts, tmp_path):
    manifest = packing.pack(
        texts, train_bpe(texts.texts, 300), out=tmp_path / "p", max_length=32, labels=label_names(texts), shards=3
    )
    return tmp_path / "p", manifest


def test_every_record_comes_once_in_every_pass(packed, texts):
    folder, manifest = packed
    assert manifest.records == len(texts) == sum(s.records for s in manifest.shards)
    for arguments in ({}, {"shuffle": True}, {"by_length": False}):
        data = batches(folder, 7, **arguments)
        for _ in range(2):
            seen, sizes = [], []
            for inputs, labels in data:
                lengths = inputs["attention_mask"].numpy().sum(axis=1)
                rows = inputs["input_ids"].numpy()
                seen += [(tuple(r[:n]), int(c)) for r, n, c in zip(rows, lengths, labels.numpy(), strict=True)]
                sizes.append(len(rows))
                assert (rows[inputs["attention_mask"].numpy() == 0] == 0).all()
            assert len(sizes) == data.cardinality().numpy() == -(-len(texts) // 7)
            expected = encode(load_tokenizer(folder), texts.texts, 32)
            starts = np.cumsum(expected.lengths) - expected.lengths
            labels = label_ids(texts, manifest.labels)
            wanted = [
                (tuple(expected.tokens[s : s + n]), c)
                for s, n, c in zip(starts, expected.lengths, labels, strict=True)
            ]
            assert sorted(seen) == sorted(wanted)


def test_shuffling_changes_with_the_pass_and_repeats_with_the_seed(packed):
    def passes(seed):
        data = batches(packed[0], 8, shuffle=True, seed=seed)
        rows = [[(i["input_ids"].shape[1], labels.numpy().tolist()) for i, labels in data] for _ in range(2)]
        widths = [[width for width, _ in row] for row in rows]
        assert widths[0] != widths[1]  # the order of the lengths is drawn anew, too
        return rows

    first, second = passes(1)
    assert first != second and passes(1) == [first, second] and passes(2)[0] != first


def test_grouping_by_length_pads_less(packed):
    def cells(by_length):
        return sum(int(tf.size(i["input_ids"])) for i, _ in batches(packed[0], 8, by_length=by_length))

    widths = {i["input_ids"].shape[1] for i, _ in batches(packed[0], 8, buckets=[8, 16, 32])}
    assert cells(True) < cells(False) and widths <= {8, 16, 32}


def test_samples_and_describe(packed):
    found = samples(packed[0], 5)
    assert found["input_ids"].shape[0] == 5 and set(found) == {"input_ids", "attention_mask", "label"}
    facts = describe(packed[0])["data"]
    assert sum(facts["length_histogram"].values()) == facts["records"] == sum(facts["class_counts"])


def test_a_shard_cut_at_a_record_boundary_is_found_and_named(packed):
    folder, manifest = packed
    shard = folder / manifest.shards[1].file
    first = next(scan_records(shard))
    shard.write_bytes(shard.read_bytes()[: 12 + len(first) + 4])
    assert verify(shard)["records"] == 1  # alone it looks healthy
    for read in (lambda: batches(folder, 4), lambda: verify(folder), lambda: check_shards(folder, manifest)):
        with pytest.raises(DataError, match=f"{shard.name} is cut or changed"):
            read()
    shard.unlink()
    with pytest.raises(DataError, match=f"{shard.name} is missing"):
        verify(folder)


def forged(packed, tmp_path, change):
    """A copy of the pack whose first shard and manifest an attacker has written to agree with each other."""
    copy = tmp_path / "forged"
    shutil.copytree(packed[0], copy)
    manifest = json.loads((copy / "data.manifest.json").read_text())
    entry = manifest["shards"][0]
    shard = copy / entry["file"]
    change(shard, entry)
    if shard.exists():
        entry |= {"bytes": shard.stat().st_size, "sha256": hashlib.sha256(shard.read_bytes()).hexdigest()}
    (copy / "data.manifest.json").write_text(json.dumps(manifest))
    return copy


@pytest.mark.parametrize("length", [2**62, 2**40, 2**20])
def test_a_record_length_that_is_forged_is_an_error_and_no_crash(packed, tmp_path, length):
    """Its checksum is right: TensorFlow believes it and ends the process."""

    def forge(shard, entry):
        head = struct.pack("<Q", length)
        crc = google_crc32c.value(head)
        masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
        shard.write_bytes(head + struct.pack("<I", masked) + shard.read_bytes()[12:])

    copy = forged(packed, tmp_path, forge)
    with pytest.raises(DataError, match=f"it says it has {length} bytes"):
        describe(copy)
    with pytest.raises(DataError, match="is cut within the record at byte 0"):
        batches(copy, 4)


def example(**features):
    kinds = {int: ("int64_list", tf.train.Int64List), float: ("float_list", tf.train.FloatList),
             bytes: ("bytes_list", tf.train.BytesList)}  # fmt: skip
    found = {}
    for name, values in features.items():
        kind, make = kinds[type(values[0])] if values else kinds[int]
        found[name] = tf.train.Feature(**{kind: make(value=values)})
    return tf.train.Example(features=tf.train.Features(feature=found)).SerializeToString()


RECORDS = (
    [(example(input_ids=[5, 6]), "record 0 has no feature 'label'; it has input_ids"),
     (example(label=[1]), "record 0 has no feature 'input_ids'"),
     (example(input_ids=[], label=[1]), "'input_ids' has 0 values, it must have some"),
     (example(input_ids=[5.5], label=[1]), "'input_ids' must be a list of integers, it is float_list"),
     (example(input_ids=[5, 99999], label=[1]), r"'input_ids' must be from 0 to \d+, got 99999"),
     (example(input_ids=[5, -1], label=[1]), r"'input_ids' must be from 0 to \d+, got -1"),
     (example(input_ids=[5], label=[2]), "'label' must be from 0 to 1, got 2"),
     (example(input_ids=[5], label=[0, 1]), "'label' has 2 values, it must have 1"),
     (example(input_ids=[5], label=[b"x"]), "'label' must be a list of integers, it is bytes_list"),
     (example(input_ids=[5], label=[1]), "has records .*, its manifest says|holds 1 records, the manifest says"),
     (b"no example", "record 0 is no tf.train.Example")]
)  # fmt: skip


@pytest.mark.parametrize("number", range(len(RECORDS)))  # bytes of a protocol buffer differ from process to process
def test_verifying_looks_inside_records(packed, tmp_path, number):
    record, says = RECORDS[number]

    def forge(shard, entry):
        with tf.io.TFRecordWriter(str(shard)) as writer:
            writer.write(record)

    with pytest.raises(DataError, match=says):
        verify(forged(packed, tmp_path, forge))


def test_token_ids_that_are_missing_are_not_taken_for_an_empty_text(packed, tmp_path):
    def forge(shard, entry):
        with tf.io.TFRecordWriter(str(shard)) as writer:
            writer.write(example(label=[1]))

    copy = forged(packed, tmp_path, forge)
    with pytest.raises(tf.errors.InvalidArgumentError, match="a record has no input_ids"):
        list(batches(copy, 4))
    with pytest.raises(DataError, match="holds records without token ids"):
        describe(copy)


def test_records_that_are_none_of_ours_are_an_error(packed, tmp_path):
    def forge(shard, entry):
        with tf.io.TFRecordWriter(str(shard)) as writer:
            writer.write(b"no example")

    with pytest.raises(DataError, match="holds records without token ids"):
        describe(forged(packed, tmp_path, forge))


@pytest.mark.parametrize("name", ["../outside.tfrecord", "/dev/zero", "folder/x.tfrecord"])
def test_shards_lie_in_the_folder_itself(packed, tmp_path, name):
    copy = forged(packed, tmp_path, lambda shard, entry: entry.update(file=name))
    for read in (describe, verify, lambda folder: batches(folder, 4)):
        with pytest.raises(DataError, match="shards lie in the folder itself"):
            read(copy)


def test_a_manifest_names_files_that_are_files(packed, tmp_path):
    for name, make in (("pipe.tfrecord", os.mkfifo), ("zero.tfrecord", lambda p: p.symlink_to("/dev/zero")),
                       ("out.tfrecord", lambda p: p.symlink_to(tmp_path / "elsewhere"))):  # fmt: skip
        copy = forged(packed, tmp_path, lambda shard, entry, name=name: entry.update(file=name))
        (tmp_path / "elsewhere").touch()
        make(copy / name)
        with pytest.raises(DataError, match="must be a file, it is a pipe|leads out of its folder"):
            describe(copy)
        shutil.rmtree(copy)


@pytest.mark.parametrize(
    ("change", "says"),
    [(lambda m: m.update(records="many"), "records: Input should be a valid integer"),
     (lambda m: m.update(shards=[1]), "shards.0: Input should be an object"),
     (lambda m: m.update(surprise=1), "surprise: Unexpected"), (lambda m: m.clear(), "records: "),
     (lambda m: m.update(compression="LZ4"), "compression must be")],
)  # fmt: skip
def test_every_field_of_a_manifest_has_a_type(packed, tmp_path, change, says):
    copy = tmp_path / "forged"
    shutil.copytree(packed[0], copy)
    values = json.loads((copy / "data.manifest.json").read_text())
    change(values)
    (copy / "data.manifest.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=says):
        read_manifest(copy)


def test_bad_requests(packed, texts, tmp_path):
    folder, _ = packed
    with pytest.raises(InputError, match="batch_size must be 1 or more, got 0"):
        batches(folder, 0)
    with pytest.raises(InputError, match="buckets must ascend"):
        batches(folder, 4, buckets=[4])
    with pytest.raises(MissingFileError):
        read_manifest(tmp_path / "nowhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    with pytest.raises(InputError, match="holds no pack"):
        packing.pack(texts, train_bpe(texts.texts, 300), out=tmp_path / "full", max_length=32)
    assert (tmp_path / "full" / "precious").exists()


def test_reading_tables_json_and_plain_text(tmp_path):
    (tmp_path / "a.tsv").write_text('label\tsentence\n1\tsay "hi"\n0\tplain\n', "utf-8")
    (tmp_path / "b.csv").write_text('text,label\n"one, two\nthree",x\nfour,y\n', "utf-8")
    (tmp_path / "c.jsonl").write_text('{"label": 1, "text": "é"}\n\n{"label": 2, "text": "b"}\n', "utf-8")
    (tmp_path / "d.txt").write_text("one\n\n two \n", "utf-8")
    assert read_texts(tmp_path / "a.tsv").texts == ['say "hi"', "plain"]
    assert read_texts(tmp_path / "b.csv").texts == ["one, two\nthree", "four"]
    assert read_texts(tmp_path / "c.jsonl").labels == ["1", "2"]
    assert read_texts(tmp_path / "d.txt").texts == ["one", "two"] and read_texts(tmp_path / "d.txt").labels is None


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.tsv", b"", "holds no texts"),
        ("a.tsv", b"label\ttext\n", "holds no texts"),
        ("a.tsv", b"label\tbody\tmore\n1\tx\ty\n", "which column is the text"),
        ("a.tsv", b"text\tkind\nx\t1\n", "line 2 has no column 'label'; it has 'text', 'kind'"),
        ("a.tsv", b"label\ttext\n1\n", "line 2 has 1 columns, the header has 2"),
        ("a.tsv", b"label\ttext\n1\t \n", "line 2 has an empty text"),
        ("a.tsv", b"label\ttext\n\tx\n", "line 2 has an empty label"),
        ("a.tsv", b"label\ttext\n1\tok\n1\tcaf\xe9\n", "line 3 is not UTF-8 .byte 0xe9 at offset"),
        ("a.jsonl", b'{"text": 3, "label": 1}\n', "must be a string, got int"),
        ("a.jsonl", b'{"text": "x", "label": null}\n', "line 1 has an empty label"),
        ("a.jsonl", b"[1]\n", "must be a JSON object, got list"),
        ("a.jsonl", b"{no}\n", "line 1 is not JSON"),
        ("a.csv", b'text,label\n"open,1\n', "line 2"),
        ("a.parquet", b"x", "is not a Parquet file"),
        ("a.xlsx", b"x", "unknown kind of data file"),
    ],
)
def test_bad_data_files_are_explained(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_texts(tmp_path / name)


def test_labels_may_be_numbers_or_words(tmp_path):
    def table(*labels):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.tsv"
        path.write_text("label\ttext\n" + "".join(f"{label}\tx\n" for label in labels), "utf-8")
        return read_texts(path)

    assert label_names(table("10", "9", "9")) == ["9", "10"]
    assert label_names(table("b", "a")) == ["a", "b"]
    assert label_ids(table("a", "b", "a"), ["a", "b"]) == [0, 1, 0]
    with pytest.raises(DataError, match="every text has the label 'a'"):
        label_names(table("a", "a"))
    with pytest.raises(DataError, match=r"label 'c' \(2 texts\) never occurs in the training data"):
        label_ids(table("a", "c", "c"), ["a", "b"])


def test_only_line_ends_end_lines(tmp_path):
    text = "one\u2028still one\x0cand\x85on"
    (tmp_path / "a.tsv").write_text(f"label\ttext\na\t{text}\r\nb\ttwo\n", "utf-8", newline="")
    (tmp_path / "b.txt").write_text(f"{text}\ntwo\n", "utf-8", newline="")
    assert read_texts(tmp_path / "a.tsv").texts == read_texts(tmp_path / "b.txt").texts == [text, "two"]


def test_long_texts_are_counted_never_silently_cut(texts, tmp_path):
    tokenizer = train_bpe(texts.texts, 300)
    with pytest.raises(DataError, match=r"of 320 texts are longer than the 6 tokens"):
        encode(tokenizer, texts.texts, 6)
    cut = encode(tokenizer, texts.texts, 6, on_long="truncate")
    assert cut.too_long > 0 and cut.lengths.max() == 6 and cut.lengths.size == 320
    ends = np.cumsum(cut.lengths) - 1
    assert (cut.tokens[ends] == tokenizer.token_to_id("[SEP]")).all()
    dropped = encode(tokenizer, texts.texts, 6, on_long="drop")
    assert dropped.lengths.size == 320 - dropped.too_long
    left = packing.pack(texts, tokenizer, out=tmp_path / "d", max_length=6, on_long="drop")
    assert (left.texts, left.records) == (320, 320 - dropped.too_long)
    manifest = packing.pack(texts, tokenizer, out=tmp_path / "p", max_length=6, on_long="truncate")
    assert manifest.too_long == cut.too_long and manifest.on_long == "truncate"


def test_tokenizers_survive_a_round_trip_and_bad_ones_are_refused(texts, tmp_path):
    tokenizer = train_bpe(texts.texts, 300)
    save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    strange = "naïve 😀 text"
    again = load_tokenizer(tmp_path)
    assert again.encode(strange).ids == tokenizer.encode(strange).ids
    assert again.decode(again.encode(strange).ids).strip() == strange
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFileError, match="is not a tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(InputError, match="vocab_size must be 260 or more, got 100"):
        train_bpe(texts.texts, 100)


def test_ids_equal_the_reference(minilm_folder, shared_data):
    golden = np.load(shared_data / "minilm_golden.npz")
    found = encode(load_tokenizer(minilm_folder), [str(s) for s in golden["sentences"]], 128)
    wanted = golden["input_ids"][golden["attention_mask"].astype(bool)]
    np.testing.assert_array_equal(found.tokens, wanted)


def test_the_demo_task_splits_by_file_and_is_neither_tiny_nor_trivial():
    from tfopt.data.stdlib_docs import read_stdlib_docs

    train, validation = read_stdlib_docs(seed=1)
    assert len(train) + len(validation) >= 5000 and not set(train.texts) & set(validation.texts)
    assert set(train.labels) == set(validation.labels) == {"class", "function", "comment"}
    majority = max(validation.labels.count(x) for x in set(validation.labels)) / len(validation)
    assert majority < 0.6
