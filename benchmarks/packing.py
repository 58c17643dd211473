"""Packing 200,000 short texts, of SST-2 over and over, against the usual loop over `tf.train.Example`; and memory.

python -m benchmarks.packing --train ../shared/data/sst2/train.tsv --tokenizer FOLDER
"""

import csv
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import tensorflow as tf

from benchmarks.common import goal, milliseconds, paired, ratio, save, show, sst2_arguments
from tfopt._base.cores import usable_cores
from tfopt.data.pack import pack
from tfopt.data.readers.open import open_source
from tfopt.data.readers.texts import Texts, read_texts
from tfopt.data.tokenizers import load_tokenizer

COUNT, LABELS = 200_000, ["0", "1"]


def integers(values: Any) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def usual(rows: Any, path: Path, tokenizer: Any = None) -> None:
    """The loop of the TensorFlow tutorial: an Example object for each (text, label)."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for text, label in rows:
            if tokenizer is None:
                content = tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode()]))
                feature = {"text": content, "label": integers([int(label)])}
            else:
                feature = {"input_ids": integers(tokenizer.encode(text).ids), "label": integers([int(label)])}
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


def lines(path: Path) -> Any:
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            yield row["text"], row["label"]


def table(path: Path) -> Any:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows)
        for label, text in rows:
            yield text, label


# Its highest memory, in a process that packs a file without TensorFlow.
PEAK = """
import sys
from tfopt.data.pack import pack
from tfopt.data.readers.open import open_source
from tfopt._base.memory import peak_memory_bytes

pack(open_source(sys.argv[1]), layout="text", labels=["0", "1"], out=sys.argv[2])
print(peak_memory_bytes() / 2**20)
"""


def peak_mebibytes(source: Path, out: Path) -> float:
    """Highest memory of a process that packs a file."""
    command = [sys.executable, "-c", PEAK, str(source), str(out)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    arguments = sst2_arguments(__doc__, 7)
    few, tokenizer = read_texts(arguments.train), load_tokenizer(arguments.tokenizer)
    chosen = list(itertools.islice(itertools.cycle(zip(few.texts, few.labels or [], strict=True)), COUNT))
    texts = Texts([text for text, _ in chosen], [label for _, label in chosen], "texts")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jsonl, tsv, large = (folder / file for file in ("t.jsonl", "t.tsv", "large.jsonl"))
        jsonl.write_text("".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in chosen), "utf-8")
        tsv.write_text("label\ttext\n" + "".join(f"{y}\t{t}\n" for t, y in chosen), "utf-8")
        large.write_text(jsonl.read_text("utf-8") * 10, "utf-8")

        def ours(source: Any, layout: str, workers: int) -> None:
            pack(source, tokenizer if layout == "tokens" else None, out=folder / "ours", layout=layout,  # type: ignore[arg-type]
                 labels=LABELS, max_length=512, workers=workers)  # fmt: skip

        cores, out = usable_cores(), folder / "usual"
        seconds = paired({
            "usual, texts in memory": lambda: usual(chosen, out),
            "ours, texts in memory": lambda: ours(texts, "text", 1),
            "usual, texts of a table": lambda: usual(table(tsv), out),
            "ours, texts of a table": lambda: ours(open_source(tsv), "text", cores),
            "usual, texts of JSON lines": lambda: usual(lines(jsonl), out),
            "ours, texts of JSON lines": lambda: ours(open_source(jsonl), "text", cores),
        }, arguments.rounds, warm_up=1)  # fmt: skip
        seconds |= paired({
            "usual, tokens of a table": lambda: usual(table(tsv), out, tokenizer),
            "ours, tokens of a table": lambda: ours(open_source(tsv), "tokens", cores),
            "the tokenizer alone": lambda: tokenizer.encode_batch_fast(texts.texts),
        }, max(3, arguments.rounds // 2), warm_up=1)  # fmt: skip
        peaks = {size: peak_mebibytes(path, folder / "peak") for size, path in (("1", jsonl), ("10", large))}
    kinds = [name.removeprefix("usual, ") for name in seconds if name.startswith("usual")]
    ratios = {f"{kind}: usual / ours": ratio(seconds[f"usual, {kind}"], seconds[f"ours, {kind}"]) for kind in kinds}
    ratios["tokens of a table: usual / the tokenizer alone"] = ratio(
        seconds["usual, tokens of a table"], seconds["the tokenizer alone"]
    )
    times = {name: milliseconds(values) for name, values in seconds.items()}
    memory = {f"{size} x {COUNT} texts": round(peak, 1) for size, peak in peaks.items()}
    show({f"{n} [ms]": v for n, v in times.items()} | ratios | {"peak memory [MiB]": memory})
    goals = [goal(f"packing {kind}, usual / ours", ratios[f"{kind}: usual / ours"]["median"], 8) for kind in kinds]
    goals.append(goal("memory of ten times the texts", peaks["10"] / peaks["1"], 1.1, at_most=True))
    save("packing", {"texts": COUNT, "times_ms": times, "ratios": ratios, "peak_mib": memory, "goals": goals})


if __name__ == "__main__":
    main()
