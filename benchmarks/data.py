"""Packing, writing, reading and batching TFRecord, and length buckets against fixed padding, on SST-2.

python -m benchmarks.data --train ../shared/data/sst2/train.tsv --tokenizer FOLDER
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from benchmarks.common import goal, milliseconds, paired, ratio, save, show, sst2_arguments
from tfopt.data.batches import batches
from tfopt.data.pack import pack
from tfopt.data.readers.texts import label_ids, label_names, read_texts
from tfopt.data.records.fields import Column, Field
from tfopt.data.records.manifest import read_manifest
from tfopt.data.records.read import WINDOW_BATCHES, parse
from tfopt.data.records.write import encode_block
from tfopt.data.tokenizers import encode, load_tokenizer
from tfopt.models import BertConfig, bert

BATCH, FIXED = 32, 128
FIELDS = {"input_ids": Field("int64", (None,)), "label": Field("int64")}


def usual_write(path: Path, tokens: np.ndarray, lengths: np.ndarray, labels: np.ndarray) -> None:
    """The loop of the TensorFlow tutorial: an Example object for each record."""

    def integers(values: Any) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    start = 0
    with tf.io.TFRecordWriter(str(path)) as writer:
        for length, label in zip(lengths, labels, strict=True):
            feature = {"input_ids": integers(tokens[start : start + length]), "label": integers([label])}
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())
            start += length


def usual_read(paths: list[str], width: int | None) -> Any:
    """Parse one, then batch, as most pipelines do."""
    spec = {"input_ids": tf.io.VarLenFeature(tf.int64), "label": tf.io.FixedLenFeature((), tf.int64)}

    def parse(record: tf.Tensor) -> Any:
        features = tf.io.parse_single_example(record, spec)
        ids = tf.cast(tf.sparse.to_dense(features["input_ids"]), tf.int32)
        return {"input_ids": ids, "attention_mask": tf.ones_like(ids)}, tf.cast(features["label"], tf.int32)

    shapes = ({"input_ids": [width], "attention_mask": [width]}, [])
    return tf.data.TFRecordDataset(paths).map(parse).padded_batch(BATCH, shapes).prefetch(4)


def parsed(folder: Path, paths: list[str]) -> Any:
    """Windows of our reading that are parsed and not cut into batches."""
    fields = read_manifest(folder).schema_fields
    return tf.data.TFRecordDataset(paths).batch(WINDOW_BATCHES * BATCH).map(lambda records: parse(records, fields))


def drain(dataset: Any) -> Any:
    return lambda: sum(1 for _ in dataset)


def main() -> None:
    arguments = sst2_arguments(__doc__, 9)
    texts = read_texts(arguments.train)
    tokenizer, names = load_tokenizer(arguments.tokenizer), label_names(texts)
    encoded, labels = encode(tokenizer, texts.texts, FIXED), np.array(label_ids(texts, names))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        columns = {
            "input_ids": Column(encoded.tokens, encoded.lengths), "label": Column(labels, np.ones_like(labels)),
        }  # fmt: skip
        pack(texts, tokenizer, out=folder / "packed", max_length=FIXED, labels=names, shards=8)
        writing = paired({
            "usual": lambda: usual_write(folder / "usual.tfrecord", encoded.tokens, encoded.lengths, labels=labels),
            "ours": lambda: (folder / "ours.tfrecord").write_bytes(
                encode_block(FIELDS, columns, shards=1, key=(0, 0), shuffle=False)[0][2]
            ),
        }, arguments.rounds, warm_up=1)  # fmt: skip
        # The usual loop writes its two features in no fixed order, so the files are equal but for that.
        assert (folder / "usual.tfrecord").stat().st_size == (folder / "ours.tfrecord").stat().st_size
        paths = sorted(str(p) for p in (folder / "packed").glob("*.tfrecord"))
        reading = paired({
            "usual": drain(usual_read(paths, None)), "usual, fixed": drain(usual_read(paths, FIXED)),
            "ours": drain(batches(folder / "packed", BATCH, shuffle=True)),
            "ours, parsing alone": drain(parsed(folder / "packed", paths)),
            "ours, fixed": drain(batches(folder / "packed", BATCH, buckets=[FIXED], by_length=False)),
        }, arguments.rounds, warm_up=1)  # fmt: skip
        training = paired(trainers(folder / "packed"), max(3, arguments.rounds // 2), warm_up=1)
    ratios = {
        "writing: usual / ours": ratio(writing["usual"], writing["ours"]),
        "reading: usual / ours": ratio(reading["usual"], reading["ours"]),
        "reading: parsing alone / ours": ratio(reading["ours, parsing alone"], reading["ours"]),
        "reading, fixed padding: usual / ours": ratio(reading["usual, fixed"], reading["ours, fixed"]),
        "training: fixed padding / buckets": ratio(training["fixed"], training["buckets"]),
    }
    groups = {"writing": writing, "reading": reading, "training": training}
    times = {f"{kind} {n}": milliseconds(s) for kind, group in groups.items() for n, s in group.items()}
    show({f"{n} [ms]": v for n, v in times.items()} | ratios)
    goals = [
        goal("TFRecord writing, usual / ours", ratios["writing: usual / ours"]["median"], 8),
        goal("TFRecord reading, usual / ours", ratios["reading: usual / ours"]["median"], 5),
        goal("training, buckets / fixed padding", ratios["training: fixed padding / buckets"]["median"], 2.5),
    ]  # fmt: skip
    save("data", {"records": len(texts), "times_ms": times, "ratios": ratios, "goals": goals})


def trainers(folder: Path) -> dict[str, Any]:
    """Training steps of a small encoder over the same number of records, padded both ways."""
    steps = 12

    def trainer(**how: Any) -> Any:
        model = bert(BertConfig(30522, num_hidden_layers=2, hidden_dropout_prob=0.0), 2)
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        stream = iter(batches(folder, BATCH, shuffle=True, **how).repeat())

        def work() -> None:
            for _ in range(steps):
                inputs, labels = next(stream)
                model.train_on_batch(inputs, labels)

        return work

    return {"fixed": trainer(buckets=[FIXED], by_length=False), "buckets": trainer()}


if __name__ == "__main__":
    main()
