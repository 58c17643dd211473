"""Packing of any source: read in pieces, cleaned, in several processes, as a pipeline of Beam; the result is one."""

import hashlib
import json
import operator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfopt._base.children import ChildFailedError
from tfopt._base.workers import in_children
from tfopt.data.clean import Cleaning, read_stop_words
from tfopt.data.columns import record_batches
from tfopt.data.pack import pack
from tfopt.data.readers import lines
from tfopt.data.readers.open import LINES, Sources, open_source
from tfopt.data.readers.texts import Texts, distinct_labels, read_texts
from tfopt.data.tokenizers import train_bpe
from tfopt.data.verify import verify
from tfopt.errors import DataError, InputError

ROWS = [
    {
        "label": i % 3,
        "text": f'line {i}, "quoted",\nand\ttabs é {i % 50}' if i % 5 == 0 else f"text number {i % 90} à",
    }
    for i in range(600)
]
FLAT = [{"label": row["label"], "text": " ".join(row["text"].split())} for row in ROWS]


def write(folder, kind):
    """The same rows as a file of each kind, written by other programs where those exist."""
    import csv

    path = folder / f"texts.{kind}"
    if kind == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, ["label", "text"])
            table.writeheader()
            table.writerows(ROWS)
    elif kind == "tsv":
        path.write_text("label\ttext\n" + "".join(f"{r['label']}\t{r['text']}\n" for r in FLAT), "utf-8")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    elif kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=100)
    elif kind == "dataset":
        import datasets

        features = datasets.Features(
            {"label": datasets.ClassLabel(names=["0", "1", "2"]), "text": datasets.Value("string")}
        )
        datasets.Dataset.from_list(ROWS, features=features).save_to_disk(str(path))
    return path


KINDS = ["csv", "tsv", "jsonl", "parquet", "dataset"]


def test_every_format_of_the_table_is_tried():
    assert set(LINES.values()) | {"parquet", "dataset"} == {*KINDS, "text"}  # plain text has no labels
    assert set(lines._ROWS) == set(lines._AT_ONCE) == set(LINES.values())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_read_in_pieces_to_the_same_rows(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(lines, "_PIECE_BYTES", 333)
    source = open_source(write(tmp_path, kind))
    pieces = list(source.pieces())
    assert len(pieces) > (1 if kind != "dataset" else 0) and source.labelled
    assert 0 < sum(piece.weight for piece in pieces) <= source.weight
    found = [piece.read() for piece in pieces]
    rows = FLAT if kind == "tsv" else ROWS
    assert [t for part in found for t in part.texts] == [row["text"] for row in rows]
    assert [t for part in found for t in part.labels] == [str(row["label"]) for row in rows]


@pytest.mark.parametrize(
    "line", ["[1]", "{}", '{"a": 1', '{"a": 1}, {"b": 2}', '{"text": 3}', '{"text": " "}', "null"]
)
def test_rows_that_are_read_at_once_are_held_to_the_same(tmp_path, line, monkeypatch):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "x"}\n' * 3 + line + '\n{"text": "y"}\n')
    with pytest.raises(DataError) as found:
        read_texts(path, None, None)
    monkeypatch.setattr(lines, "_AT_ONCE", dict.fromkeys(lines._AT_ONCE, lambda content, piece: None))
    with pytest.raises(DataError) as expected:
        read_texts(path, None, None)
    assert str(found.value) == str(expected.value) and "line 4" in str(found.value)


cells = st.text(st.sampled_from('ab",\n\r é'), max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=12), st.integers(1, 40))
def test_tables_are_cut_only_between_rows(tmp_path_factory, rows, size):
    """Also where quotation marks, commas and line ends stand in fields, and a piece is smaller than a row."""
    import csv
    import io

    out = io.StringIO(newline="")
    csv.writer(out).writerows([("a", "b"), *rows])
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    path.write_bytes(out.getvalue().encode())
    before = lines._PIECE_BYTES
    lines._PIECE_BYTES = size
    try:
        found = [row for piece in open_source(path, "a", "b").pieces() for row in piece.rows()]
    finally:
        lines._PIECE_BYTES = before
    expected = csv.reader(io.StringIO(out.getvalue(), newline=""))
    next(expected)
    assert [list(row.values()) for _, row in found] == [row for row in expected if row]
    whole = csv.reader(io.StringIO(out.getvalue(), newline=""))
    next(whole)
    if "\r" not in "".join(a + b for a, b in rows):  # which csv counts as the end of a line, and editors do not
        assert [number for number, _ in found] == [whole.line_num for row in whole if row]


def test_broken_rows_are_named_by_their_line_in_the_whole_file(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "_PIECE_BYTES", 64)
    path = tmp_path / "t.jsonl"
    good = [json.dumps({"text": f"text {i}", "label": 1}) for i in range(50)]
    path.write_text("\n".join([*good, "{no}", *good]))
    with pytest.raises(DataError, match="line 51 is not JSON"):
        read_texts(path)
    path.write_bytes("\n".join(good).encode() + b"\n\xff")
    with pytest.raises(DataError, match=f"line 51 is not UTF-8 .byte 0xff at offset {path.stat().st_size - 1}"):
        read_texts(path)


def test_folders_and_columns_that_do_not_fit_are_explained(tmp_path):
    import datasets

    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(DataError, match="choose one of its folders: test, train"):
        open_source(tmp_path / "d").weight  # noqa: B018
    for source in (open_source(tmp_path / "d" / "train", "body"), open_source(write(tmp_path, "parquet"), "body")):
        with pytest.raises(DataError, match="has no column 'body'; it has"):
            next(source.pieces()).read()
    (tmp_path / "d" / "train" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="is not a dataset that can be read"):
        open_source(tmp_path / "d" / "train").weight  # noqa: B018


TOKENIZER = train_bpe([row["text"] for row in ROWS], 320)


def shards_of(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize("layout", ["tokens", "text"])
def test_a_pack_is_the_same_by_one_process_by_several_and_by_beam(tmp_path, monkeypatch, layout):
    from tfopt.data.beam import beam_pack

    monkeypatch.setattr(lines, "_PIECE_BYTES", 2000)
    source = open_source(write(tmp_path, "jsonl"))
    settings = {
        "max_length": 64, "shards": 3, "seed": 4, "layout": layout, "compression": "GZIP",
        "cleaning": Cleaning(duplicates=True, normalize="NFKC"),
    }  # fmt: skip
    tokenizer = None if layout == "text" else TOKENIZER
    told = []
    one = pack(source, tokenizer, out=tmp_path / "one", progress=lambda *a: told.append(a), **settings)
    two = pack(source, tokenizer, out=tmp_path / "two", workers=2, **settings)
    beam = beam_pack(source, tokenizer, out=tmp_path / "beam", options=["--runner=DirectRunner"], **settings)
    assert one == two == beam and shards_of(tmp_path / "one") == shards_of(tmp_path / "two") == shards_of(
        tmp_path / "beam"
    )
    assert told[-1][0] == told[-1][1] and [done for done, _ in told] == sorted(done for done, _ in told)
    distinct = {row["text"] for row in ROWS}
    assert one.records == len(distinct) and one.cleaned["duplicate"] == len(ROWS) - len(distinct)
    assert one.labels == ["0", "1", "2"] and sum(one.class_counts) == one.records
    assert verify(tmp_path / "one")["records"] == one.records
    if layout == "text":
        found = [t.decode() for batch in record_batches(tmp_path / "one", 50) for t in batch["text"].numpy()]
        assert sorted(found) == sorted(distinct)


def test_a_broken_row_ends_a_pack_in_any_process_and_leaves_nothing(tmp_path, monkeypatch):
    from tfopt.data.beam import beam_pack

    monkeypatch.setattr(lines, "_PIECE_BYTES", 500)
    path = write(tmp_path, "jsonl")
    path.write_text(path.read_text() + "{no}\n")
    for workers in (1, 2):
        with pytest.raises(DataError, match="line 601 is not JSON"):
            pack(open_source(path), TOKENIZER, out=tmp_path / "p", labels=["0", "1", "2"], workers=workers)
    with pytest.raises(Exception, match="line 601 is not JSON"):
        beam_pack(open_source(path), TOKENIZER, out=tmp_path / "p", labels=["0", "1", "2"])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_several_sources_are_one(tmp_path):
    paths = [write(tmp_path, kind) for kind in ("jsonl", "parquet")]
    manifest = pack(Sources([open_source(path) for path in paths]), layout="text", out=tmp_path / "p")
    assert manifest.records == 2 * len(ROWS)


def test_cleaning_knows_no_language(tmp_path):
    control = Cleaning(control=True)
    assert control("a\u200bb\x07c\nd\ufeff \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645") == (
        "abc\nd \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    )
    assert Cleaning(normalize="NFKC")("\ufb01ne \uff21\uff11") == "fine A1"
    (tmp_path / "words").write_text("# the most frequent\nThe\nund\nи\nl'été\n", "utf-8")
    words = Cleaning(stop_words=read_stop_words(tmp_path / "words"))
    assert words("THE cat Und dog, und и кот; l'été l'hiver") == "cat dog, кот; l'hiver"
    assert not Cleaning().changes_texts and Cleaning()("  as it is\x07 ") == "as it is\x07"
    for wrong, says in (
        ({"normalize": "nfc"}, "normalize must be"),
        ({"stop_words": "the"}, "must be a set of words"),
    ):
        with pytest.raises(InputError, match=says):
            Cleaning(**wrong)
    (tmp_path / "words").write_text("# none\n")
    with pytest.raises(DataError, match="holds no words"):
        read_stop_words(tmp_path / "words")


def test_texts_that_cleaning_empties_are_left_out_and_counted(tmp_path):
    data = Texts(["the", "the cat", "a dog", "cat"], None, "texts")
    cleaning = Cleaning(stop_words=frozenset({"the"}), duplicates=True)
    manifest = pack(data, layout="text", out=tmp_path / "p", cleaning=cleaning)
    assert manifest.records == 2 and manifest.cleaned == {"empty": 1, "duplicate": 1} and manifest.texts == 4


def test_workers_answer_in_order_and_few_calls_are_under_way():
    drawn = []

    def calls():
        for value in range(30):
            drawn.append(value)
            yield value, 2

    for number, result in enumerate(in_children(operator.mul, calls(), workers=2, preload=("numpy",))):
        assert result == 2 * number and len(drawn) <= number + 8
    one_label = [(["a", "b"], "x"), (["a"], "x"), (["b"], "x")]
    with pytest.raises(DataError, match="every text has the label"):
        list(in_children(distinct_labels, iter(one_label), workers=2, preload=("numpy",)))
    with pytest.raises(ChildFailedError, match="ZeroDivisionError"):
        list(in_children(operator.truediv, iter([(1, 1), (1, 0)]), workers=2, preload=("numpy",)))


def test_the_command_packs_cleans_and_says_what_was_left_out(tfopt_main, tmp_path):
    path = write(tmp_path, "csv")
    code, out, err = tfopt_main(
        "data", "pack", path, "--out", tmp_path / "p", "--vocab-size", 300, "--drop-duplicates", "--layout", "sequences",
        "--label-column", "", "--text-column", "text", "--compression", "GZIP", "--json",
    )  # fmt: skip
    assert code == 0 and "texts were left out (duplicate)" in err
    manifest = json.loads(out)
    assert manifest["compression"] == "GZIP" and manifest["fields"]["segment_lengths"]["dtype"] == "int64"
    assert tfopt_main("data", "verify", tmp_path / "p")[0] == 0
    assert tfopt_main("data", "inspect", tmp_path / "p")[0] == 0
    code, _, err = tfopt_main("data", "pack", path, "--out", tmp_path / "q", "--layout", "rows")
    assert code == 2 and "layout must be" in err and not (tmp_path / "q").exists()


def test_settings_and_texts_that_do_not_fit_are_explained(tmp_path):
    plain = Texts(["a b", "c"], None, "texts")
    for settings_, says in (
        ({"seed": -1}, "seed must be 0 or more"), ({"labels": ["p", "q"]}, "has no labels"), ({"max_length": 0}, "1 or more"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says):
            pack(plain, TOKENIZER, out=tmp_path / "p", **settings_)
    with pytest.raises(DataError, match="half a character"):
        pack(Texts(["a \ud800 b"], None, "texts"), TOKENIZER, out=tmp_path / "p")
    path = tmp_path / "t.jsonl"
    path.write_text('{"text":"a"},{"text":"b"}\n{"text":"}\n{"}\n')
    with pytest.raises(DataError, match="line 1 is not JSON"):
        read_texts(path, None, None)
    (tmp_path / "t.csv").write_text("text,label,label\nx,1,2\n")
    with pytest.raises(DataError, match="two columns called 'label'"):
        read_texts(tmp_path / "t.csv")
