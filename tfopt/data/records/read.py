"""Records in order, a window of them at a time: parsed, and cut into batches.

Records are parsed and grouped a window at a time instead of one by one: the tf.data operators then run once per
window of thousands of records, which is what makes reading fast. The order is a function of the seed and the
number of the pass alone, so that a training that was cut off in the middle of a pass goes on with the next batch.
All of it is a graph of TensorFlow: tf.data service can run it elsewhere.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import tensorflow as tf

from tfopt.data.records.fields import Field
from tfopt.data.records.framing import readable_records
from tfopt.data.records.manifest import Manifest, check_shards, damaged_shards, shard_path
from tfopt.errors import InputError

WINDOW_BATCHES = 64
# Records that are shuffled among each other, at least.
_SHUFFLED = 16_384
_AT_ONCE = 2
_FAR = 1_000_003  # so that one seed's passes are not another's
Cut = Callable[[dict[str, Any], tf.Tensor], Any]


@dataclasses.dataclass(frozen=True)
class Order:
    """Which records come, and when.

    Attributes:
        shuffle: a new order of shards, records and batches in every pass; else that of the files.
        seed: of the order.
        epoch: number of the pass, or a variable that holds it when the pass begins; None for another one each time.
        skip: batches of the pass that were had before.
        worker: number of this worker and how many there are: each reads records of its own, at most one more than
            another.
        on_damage: "error", or "skip" for records whose checksum is wrong.
        buckets: ascending lengths; a batch holds records whose lists fall into the same one, as far as it goes.
            Within one they mix, since length often says something about the label.
    """

    shuffle: bool = False
    seed: int = 0
    epoch: int | tf.Variable | None = None
    skip: int = 0
    worker: tuple[int, int] = (0, 1)
    on_damage: str = "error"
    buckets: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        index, count = self.worker
        if not 0 <= index < count:
            raise InputError(f"worker must be (its number from 0, how many there are), got {self.worker}")
        if self.on_damage not in ("error", "skip"):
            raise InputError(f"on_damage must be 'error' or 'skip', got {self.on_damage!r}")
        if self.skip < 0 or (isinstance(self.epoch, int) and self.epoch < 0):
            raise InputError(f"skip and epoch must be 0 or more, got {self.skip} and {self.epoch}")

    def key(self, epoch: tf.Tensor, place: tf.Tensor | int) -> tf.Tensor:
        """The seed of one shuffle of one pass."""
        return tf.stack([self.seed * _FAR + epoch, tf.cast(place, tf.int64)])


class Records(Protocol):
    """What is read: a `Source`, or several that are mixed."""

    @property
    def fields(self) -> Mapping[str, Field]: ...
    @property
    def records(self) -> int: ...
    def serialized(self, order: Order, epoch: tf.Tensor) -> tf.data.Dataset: ...


@dataclasses.dataclass(frozen=True)
class Source:
    """The shards of one split, compared with their manifest.

    Attributes:
        paths: files, in order.
        records: that are read from them.
        fields: name of a feature -> what it is.
        compression: "" or "GZIP".
        damaged: files of which only what can be read is read.
    """

    paths: list[str]
    records: int
    fields: Mapping[str, Field]
    compression: str
    damaged: frozenset[str]

    @classmethod
    def open(cls, folder: str | Path, manifest: Manifest, on_damage: str) -> "Source":
        """Compares the shards of a split with its manifest.

        Raises:
            DataError: a shard is missing, cut or damaged.
        """
        lost: dict[str, int] = {}
        if on_damage == "error":
            check_shards(folder, manifest)
        else:
            lost = damaged_shards(folder, manifest)
        paths = [str(shard_path(folder, shard)) for shard in manifest.shards]
        records = sum(lost.get(shard.file, shard.records) for shard in manifest.shards)
        damaged = frozenset(str(Path(folder, name)) for name in lost)
        return cls(paths, records, manifest.schema_fields, manifest.compression, damaged)

    def ordered(self, order: Order, epoch: tf.Tensor) -> tf.Tensor:
        """The files as one pass reads them."""
        paths = tf.constant(self.paths)
        return tf.random.experimental.stateless_shuffle(paths, order.key(epoch, -1)) if order.shuffle else paths

    def serialized(self, order: Order, epoch: tf.Tensor) -> tf.data.Dataset:
        """The records of one pass, one by one."""
        files = min(4, len(self.paths)) if order.shuffle else 1
        found = tf.data.Dataset.from_tensor_slices(self.ordered(order, epoch)).interleave(
            self.shard, cycle_length=files, block_length=64, num_parallel_calls=min(_AT_ONCE, files),
            deterministic=True,
        )  # fmt: skip
        index, count = order.worker
        return found.shard(count, index) if count > 1 else found

    def shard(self, path: tf.Tensor) -> tf.data.Dataset:
        """The records of one file."""
        if not self.damaged:
            return tf.data.TFRecordDataset(path, self.compression)

        def records(name: bytes) -> Any:
            return readable_records(name.decode(), self.compression)

        return tf.data.Dataset.from_generator(records, output_signature=tf.TensorSpec([], tf.string), args=(path,))


def parse(serialized: tf.Tensor, fields: Mapping[str, Field]) -> dict[str, Any]:
    """Features of a vector of serialized `tf.train.Example` records.

    A feature that is missing ends in an error of TensorFlow; a list that is, is parsed as an empty one, so that
    lists must not be empty.
    """
    dtypes = {"int64": tf.int64, "float32": tf.float32, "string": tf.string, "bytes": tf.string}
    spec: dict[str, Any] = {}
    for name, field in fields.items():
        dtype = dtypes[field.dtype]
        if field.is_ragged:
            inner = [tf.io.RaggedFeature.UniformRowLength(size) for size in field.shape[1:]]
            spec[name] = tf.io.RaggedFeature(dtype, partitions=inner, row_splits_dtype=tf.int64)
        else:
            spec[name] = tf.io.FixedLenFeature(field.shape, dtype)
    found = tf.io.parse_example(serialized, spec)
    ragged = [name for name, field in fields.items() if field.is_ragged]
    checks = [
        tf.debugging.assert_positive(tf.reduce_min(found[name].row_lengths()), f"a record has no {name}")
        for name in ragged
    ]
    with tf.control_dependencies(checks):
        for name in ragged:
            splits = tf.identity(found[name].row_splits)
            found[name] = tf.RaggedTensor.from_row_splits(found[name].values, splits, validate=False)
    return dict(found)


def read_batches(source: Records, batch_size: int, order: Order, cut: Cut) -> tf.data.Dataset:
    """Batches of the records of a source.

    Args:
        source: what is read.
        batch_size: records per batch; the last one may be smaller.
        order: which records, and when.
        cut: takes the features of a window and the numbers of the records of a batch in it, and gives the batch.

    Raises:
        InputError: a bad batch size, or more batches to skip than there are.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be 1 or more, got {batch_size}")
    index, count = order.worker
    records = (source.records - index + count - 1) // count
    total = -(-records // batch_size)
    if order.skip > total:
        raise InputError(f"skip must be at most {total}, the batches of a pass, got {order.skip}")
    if isinstance(order.epoch, tf.Variable):
        number = order.epoch
        epochs = tf.data.Dataset.from_tensors(0).map(lambda _: tf.cast(number.read_value(), tf.int64))
    elif order.epoch is not None or not order.shuffle:
        epochs = tf.data.Dataset.from_tensors(tf.constant(order.epoch or 0, tf.int64))
    else:  # a new number in every pass, the same ones for the same seed
        epochs = tf.data.Dataset.random(seed=order.seed, rerandomize_each_iteration=True).take(1)

    def one_pass(epoch: tf.Tensor) -> tf.data.Dataset:
        return _batches(
            source.serialized(order, epoch), source.fields, batch_size, order=order, epoch=epoch, cut=cut
        )

    found = epochs.flat_map(one_pass)
    return found.apply(tf.data.experimental.assert_cardinality(total - order.skip)).prefetch(4)


def read_by_file(source: Source, batch_size: int, order: Order, cut: Cut) -> tf.data.Dataset:
    """The same, each shard by itself: it begins with the files, which is what tf.data service deals out."""
    if batch_size < 1:
        raise InputError(f"batch_size must be 1 or more, got {batch_size}")
    epoch = tf.cast(0 if order.epoch is None else order.epoch, tf.int64)
    files = tf.data.Dataset.from_tensor_slices(source.ordered(order, epoch))

    def one_file(path: tf.Tensor) -> tf.data.Dataset:
        return _batches(source.shard(path), source.fields, batch_size, order=order, epoch=epoch, cut=cut)

    return files.flat_map(one_file)


def _batches(
    stream: tf.data.Dataset,
    fields: Mapping[str, Field],
    batch_size: int,
    *,
    order: Order,
    epoch: tf.Tensor,
    cut: Cut,
) -> tf.data.Dataset:
    """Batches of a stream of records."""
    skipped, within = divmod(order.skip, WINDOW_BATCHES)
    windows = _windows(stream, batch_size * WINDOW_BATCHES, order, epoch=epoch, skipped=skipped)
    parsed = windows.map(
        lambda strings, place: (parse(strings, fields), place), num_parallel_calls=_AT_ONCE, deterministic=True
    )
    found = parsed.flat_map(
        lambda features, place: _cut_window(features, order.key(epoch, place), batch_size, order=order, cut=cut)
    )
    return found.skip(within)


def _windows(
    stream: tf.data.Dataset, window: int, order: Order, *, epoch: tf.Tensor, skipped: int
) -> tf.data.Dataset:
    """Vectors of serialized records, each with a number of its own, without the first `skipped`."""
    first = tf.constant(skipped, tf.int64)
    if not order.shuffle:
        found = stream.skip(skipped * window).batch(window)
        return found.enumerate(first).map(lambda number, strings: (strings, number))
    together = max(4, -(-_SHUFFLED // window))  # windows that are shuffled among each other
    groups = stream.skip(skipped // together * together * window).batch(together * window)

    def shuffled(number: tf.Tensor, strings: tf.Tensor) -> tf.data.Dataset:
        mixed = tf.random.experimental.stateless_shuffle(strings, order.key(epoch, number))
        starts = tf.data.Dataset.range(0, tf.size(strings, tf.int64), window)
        return starts.map(lambda start: (mixed[start : start + window], number * together * window + start))

    return groups.enumerate(first // together).flat_map(shuffled).skip(skipped % together)


def _cut_window(
    features: dict[str, Any], key: tf.Tensor, batch_size: int, *, order: Order, cut: Cut
) -> tf.data.Dataset:
    """Batches of one window of parsed records."""
    lengths = next((v.row_lengths() for v in features.values() if isinstance(v, tf.RaggedTensor)), None)
    count = tf.shape(next(iter(features.values())), tf.int32)[0] if lengths is None else tf.size(lengths)
    rows = tf.range(count)
    if order.buckets and lengths is not None:
        rows = tf.argsort(tf.searchsorted(tf.constant(order.buckets, tf.int64), lengths), stable=True)
    starts = tf.range(0, count, batch_size)
    if order.shuffle:
        starts = tf.random.experimental.stateless_shuffle(starts, key)
    batches = tf.data.Dataset.from_tensor_slices(starts)
    return batches.map(
        lambda start: cut(features, rows[start : start + batch_size]),
        num_parallel_calls=_AT_ONCE,
        deterministic=True,
    )
