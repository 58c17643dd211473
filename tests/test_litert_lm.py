"""`.litertlm` files: LiteRT-LM itself says, scores and answers what the model does."""

import dataclasses
import importlib.util
import json
import shutil
import types

import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tfopt._base.children import LIGHT, run_in_child
from tfopt._base.formats import format_of, kind_of
from tfopt._base.members import CHAT
from tfopt._keras import extras
from tfopt._keras.keras_api import weights
from tfopt.data.chat import ChatTemplate
from tfopt.decoding import whole_cache
from tfopt.decoding.config import MASKED
from tfopt.decoding.generate import GenerateConfig
from tfopt.decoding.step import Cache, float_products
from tfopt.decoding.weights import config_of, weights_of
from tfopt.decoding.whole_cache import forward_whole
from tfopt.engine.generator import Generator
from tfopt.engine.opening import generates
from tfopt.errors import InputError, ModelFileError, VerificationError
from tfopt.export.decoder import converted, finished
from tfopt.export.litert_lm import COMPARED, _functions
from tfopt.export.litert_lm_check import _texts, check_in_litert_lm, follow, say
from tfopt.export.litert_lm_words import Words
from tfopt.export.said import said_by
from tfopt.runtime.eager_decoder import EagerDecoder
from tfopt.tflite.litert_lm_file import read_litert_lm, write_litert_lm
from tfopt.tflite.owners import Owners

from .decoders import FAMILIES, logits_of, make, tokens
from .test_chat import GOLDEN, TALK, TOKENIZER, folder  # noqa: F401 - a fixture

pytestmark = pytest.mark.skipif(importlib.util.find_spec("litert_lm") is None, reason="litert-lm-api is not there")
SLOTS = 32
# Marks for trainings, with their own way to cut what stands around them.
MARKED = (
    "{% for m in messages %}\n    {%- generation -%}\n {{ m.role }} {% endgeneration %}\n"
    "{% generation %}{{ m.content ~ eos_token }}{%- endgeneration %} {% endfor %}"
)


@pytest.mark.parametrize("family", FAMILIES)
def test_caches_that_come_out_whole(family):
    """A prompt in pieces, the second with padding that reaches over the end of the caches, then single tokens."""
    model = make(family)
    c, products = config_of(model), float_products(config_of(model), weights_of(model))
    ids, want = tokens(length=SLOTS), logits_of(model, tokens(length=SLOTS))
    empty = tf.zeros([1, c.key_value_heads, SLOTS, c.head_size])
    caches = [Cache(empty, empty) for _ in range(c.num_hidden_layers)]
    start = 0
    for size, real in ((16, 16), (16, 12), (1, 1), (1, 1), (1, 1), (1, 1)):
        places = np.zeros(size, np.int32)
        places[:real] = np.arange(start, start + real)
        new = np.zeros((1, size), np.int32)
        new[0, :real] = ids[0, start : start + real]
        mask = np.where(np.arange(SLOTS) <= places[:, None], 0, MASKED).astype(np.float32)
        mask[real:] = MASKED
        hidden, caches = forward_whole(
            c, products, tf.constant(new), positions=tf.constant(places), mask=tf.constant(mask[None, None]),
            caches=caches,
        )  # fmt: skip
        found = products.logits(hidden)[0, :real]
        np.testing.assert_allclose(found, want[0, start : start + real], atol=2e-4)
        start += real


@pytest.fixture(scope="module")
def talking(folder, tmp_path_factory):  # noqa: F811
    """A model with a chat template, and its file."""
    model = tfopt.models.from_pretrained(folder, "keras")
    path = tmp_path_factory.mktemp("litertlm") / "m.litertlm"
    artifact = tfopt.export(model, path, lengths=[192])
    return model, artifact


def test_a_template_that_litert_lm_cannot_use_is_left_out_where_that_is_accepted(talking, tmp_path):
    model, _ = talking
    before = extras.of(model)[CHAT]
    extras.keep(model, CHAT, ChatTemplate(GOLDEN["templates"]["brackets"], "<s>", "</s>").to_json())
    try:
        with pytest.raises(InputError, match=r"has break or continue.*accept=\['chat'\] leaves the template out"):
            tfopt.export(model, tmp_path / "m.litertlm", lengths=[32])
        artifact = tfopt.export(model, tmp_path / "m.litertlm", lengths=[32], accept=["chat"])
    finally:
        extras.keep(model, CHAT, before)
    assert [check.name for check in artifact.checks if check.accepted] == ["chat"]
    assert Generator.load(artifact.path).generate("Hi", GenerateConfig(max_tokens=3))[0].tokens
    assert not read_litert_lm(artifact.path).metadata().jinja_prompt_template, "tfopt itself still has it"


def test_litert_lm_does_what_the_model_does(talking):
    _, artifact = talking
    found = {check.name: check for check in artifact.checks}
    assert artifact.format == "litertlm" and artifact.lengths == (192,)
    assert {"tokenizer", "greedy_text", "text_scores", "chat", "max_abs_error", "next_tokens"} <= set(found)
    assert found["text_scores"].found < 1e-3 and found["second runtime"].found.startswith("LiteRT-LM")
    assert not any(check.accepted for check in artifact.checks)
    file = read_litert_lm(artifact.path)
    said = file.metadata()
    assert said.max_num_tokens == 192 and [list(t.token_ids.ids) for t in said.stop_tokens] == [[257], [256], [259]]
    assert json.loads(file.tokenizer())["model"] == json.loads(TOKENIZER)["model"]


def test_it_generates_here_too(talking, tfopt_main):
    model, artifact = talking
    assert generates(artifact.path) and kind_of(artifact.path) == format_of(artifact.path).name == "litertlm"
    ours, file = tfopt.Generator.load(model, runtime="eager"), tfopt.Generator.load(artifact.path)
    config = tfopt.GenerateConfig(max_tokens=20)
    assert file.chat(TALK, config).tokens == ours.chat(TALK, config).tokens
    prompt = [int(i) for i in tokens(length=150)[0]]
    assert file.generate([prompt], config)[0].tokens == ours.generate([prompt], config)[0].tokens
    ids = tokens(rows=2, length=12)
    predictor = tfopt.Predictor.load(artifact.path)
    found = predictor.predict({"input_ids": ids, "attention_mask": np.ones_like(ids)})["logits"]
    np.testing.assert_allclose(found, logits_of(model, ids), atol=1e-3)
    assert predictor.format == "litertlm" and predictor.weights() and tfopt.measure(artifact.path).bytes > 1000
    code, out, _ = tfopt_main("inspect", artifact.path, "--json")
    shown = json.loads(out)
    tables = [layer["kind"] for layer in shown["layers"] if layer["parameters"] == 32 * config_of(model).vocab_size]
    assert code == 0 and shown["format"] == "litertlm" and sorted(tables) == ["FULLY_CONNECTED", "GATHER"]
    with pytest.raises(InputError, match="without a weight cache"):
        tfopt.Generator.load(artifact.path, weight_cache="x")


def test_a_table_is_stored_once(tmp_path, shared_data):
    """The trained model with a tied table: in 8 bits it says what the reference says, and takes a quarter."""
    model = tfopt.models.from_pretrained(shared_data / "tinystories260k", "tf_keras")
    path = tmp_path / "stories.litertlm"
    artifact = tfopt.export(model, path, quantization="dynamic_int8", lengths=[256])
    assert all(layer.bits == 8 or "folded" in layer.reason for layer in artifact.layers)
    parameters = sum(int(np.prod(w.variable.shape)) for w in weights(model))
    section = next(s for s in read_litert_lm(path).sections if s.kind == "TFLiteModel")
    assert section.end - section.begin < 1.9 * parameters  # signatures, scales and norms besides
    golden = json.loads((shared_data / "tinystories260k" / "greedy.json").read_text("utf-8"))
    prompt, text = next(iter(golden["continuations"].items()))
    said = run_in_child(say, str(path), [prompt], text[:40], None, 24, preload=LIGHT)
    assert text.startswith(prompt + said.texts[0][:60])


@pytest.mark.parametrize("name", [*GOLDEN["templates"], "marked"])
def test_templates_write_the_same_in_litert_lm(name, talking):
    """Whatever LiteRT-LM passes: contents as parts, no tokens. Its Jinja knows no `continue`."""
    model, artifact = talking
    chat = ChatTemplate({**GOLDEN["templates"], "marked": MARKED}[name], "<s>", "</s>")
    if name == "brackets":
        with pytest.raises(InputError, match="has break or continue"):
            Words.of(extras.of(model)["tfopt_tokenizer.json"], chat, config_of(model), slots=192)
        return
    words = Words.of(extras.of(model)["tfopt_tokenizer.json"], chat, config_of(model), slots=192)
    for text in ("Hi", 'It\'s\n"so" {{ x }} é'):
        rendered = run_in_child(_rendered, str(artifact.path), words.template(), text, preload=LIGHT)
        assert rendered == words.prompt(text)


def _rendered(path, template, text):
    import litert_lm

    with (
        litert_lm.Engine(path, backend=litert_lm.Backend.CPU(), cache_dir=":nocache") as engine,
        engine.create_conversation(chat_template=template) as talk,
    ):
        return talk.render_message_to_string(text)


def test_broken_files_do_not_pass(talking, tmp_path, monkeypatch):
    """Another model's weights, another tokenizer, a template as it came, other first and last tokens, caches that keep
    nothing, a model that finds everything as likely."""
    model, artifact = talking
    path, file, broken = artifact.path, read_litert_lm(artifact.path), tmp_path / "broken.litertlm"
    words = Words.of(
        file.tokenizer(), ChatTemplate.from_json(extras.of(model)["tfopt_chat.json"], "m"), config_of(model), 192
    )
    samples = {"input_ids": said_by(model, COMPARED)}
    job = types.SimpleNamespace(model=model, samples=samples, config=None, name=None)
    assert {c.name for c in check_in_litert_lm(path, job, words)} == {
        "tokenizer",
        "greedy_text",
        "text_scores",
        "chat",
    }
    inner = file.decoder(tmp_path / "m.tflite")
    begun = words.begun(words.tokenizer.encode_whole(_texts(job, words, 24)[0][0]))
    said, _ = follow(EagerDecoder(model), [begun], [1], room=24, ends=words.ends).continued[0]
    other = make(dataclasses.replace(config_of(model)), seed=1)
    with pytest.raises(VerificationError, match="greedy_text|text_scores"):
        check_in_litert_lm(path, types.SimpleNamespace(model=other, samples=samples, config=None, name=None), words)
    for name, tokenizer, metadata in (
        ("tokenizer", _turned(file.tokenizer()), words.metadata()),
        ("chat", file.tokenizer(), _with_template(file, words.chat.template)),
        ("greedy_text|text_scores", file.tokenizer(), _with_first(file, 3)),
        ("greedy_text", file.tokenizer(), _with_end(file, said[0])),
    ):
        write_litert_lm(broken, decoder=inner, tokenizer=tokenizer, metadata=metadata)
        with pytest.raises(VerificationError, match=name):
            check_in_litert_lm(broken, job, words)
    even = make(dataclasses.replace(config_of(model)))
    even.get_layer("final_norm").gamma.assign(np.zeros(32))
    with pytest.raises(VerificationError, match="which shows nothing"):
        check_in_litert_lm(path, types.SimpleNamespace(model=even, samples=samples, config=None, name=None), words)
    monkeypatch.setattr(whole_cache._WholePass, "_put", lambda self, cache, fresh: cache)
    content = converted(model, lambda c, p: _functions(c, p, 192), fold=True, owners=Owners.of(()))
    inner.write_bytes(finished(content, {}, float16=False))
    write_litert_lm(broken, decoder=inner, tokenizer=file.tokenizer(), metadata=words.metadata())
    with pytest.raises(VerificationError, match="greedy_text|text_scores"):
        check_in_litert_lm(broken, job, words)
    inner.write_bytes(b"nothing")
    write_litert_lm(broken, decoder=inner, tokenizer=file.tokenizer(), metadata=words.metadata())
    with pytest.raises(VerificationError, match="does not run the file"):
        check_in_litert_lm(broken, job, words)


def _turned(tokenizer):
    found = json.loads(tokenizer)
    found["model"]["vocab"] = {word: i if i > 255 else 255 - i for word, i in found["model"]["vocab"].items()}
    return json.dumps(found).encode()


def _with_template(file, template):
    said = file.metadata()
    said.jinja_prompt_template = template
    return said.SerializeToString()


def _with_end(file, token):
    said = file.metadata()
    said.stop_tokens.add().token_ids.ids.append(token)
    return said.SerializeToString()


def _with_first(file, token):
    said = file.metadata()
    said.start_token.token_ids.ids[:] = [token]
    return said.SerializeToString()


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not: use .tflite"):
        tfopt.export(
            tfopt.models.bert(tfopt.models.BertConfig(64, 16, 1, 2, 32, 32), num_labels=2), tmp_path / "m.litertlm"
        )
    model = make("llama")
    with pytest.raises(InputError, match="has no tokenizer: give tokenizer="):
        tfopt.export(model, tmp_path / "m.litertlm")
    (tmp_path / "tokenizer.json").write_text(TOKENIZER)
    with pytest.raises(InputError, match="the tokenizer has token 25., the model's table 64 rows"):
        tfopt.export(model, tmp_path / "m.litertlm", tokenizer=tmp_path / "tokenizer.json")
    for wrong, says in (
        ({"quantization": "int8"}, "takes quantization float16, dynamic_int8"),
        ({"lengths": [16, 32]}, "one cache of 8"), ({"cache": "int8"}, "in float32"), ({"batch_size": 2}, "one text"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says):
            tfopt.export(model, tmp_path / "m.litertlm", tokenizer=tmp_path / "tokenizer.json", **wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_tokenizers_that_do_not_fit_as_they_are():
    """Cutting is turned off, tokens without a row are left out, and nothing is written first that ends texts."""
    found = json.loads(TOKENIZER)
    found["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    size = max(token["id"] for token in found["added_tokens"]) + 1
    extra = {**found["added_tokens"][0], "id": size, "content": "<image>"}
    found["added_tokens"].append(extra)
    config = dataclasses.replace(FAMILIES["llama"], vocab_size=size, end_tokens=(257,))
    words = Words.of(json.dumps(found).encode(), None, config, slots=64)
    assert len(words.tokenizer.encode_whole("a long text that would be cut")) > 4
    assert "<image>" not in words.content.decode() and json.loads(words.content)["truncation"] is None
    ending = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}},
              {"SpecialToken": {"id": "</s>", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}},
              {"Sequence": {"id": "B", "type_id": 1}}],
              "special_tokens": {"</s>": {"id": "</s>", "ids": [257], "tokens": ["</s>"]}}}  # fmt: skip
    assert Words.of(json.dumps({**found, "post_processor": ending}).encode(), None, config, slots=64).first is None
    with pytest.raises(InputError, match="needs a token that ends a text"):
        Words.of(TOKENIZER.encode(), None, dataclasses.replace(config, end_tokens=()), slots=64)
    with pytest.raises(InputError, match="no room for two messages"):
        Words.of(TOKENIZER.encode(), ChatTemplate(GOLDEN["templates"]["chatml"]), config, slots=16)


def test_damaged_containers(talking, tmp_path):
    _, artifact = talking
    path, content = tmp_path / "m.litertlm", artifact.path.read_bytes()
    huge = bytearray(content)
    huge[24:32] = (2**40).to_bytes(8, "little")
    for damage, says in (
        (b"PK\x03\x04" + content[4:], "not a LiteRT-LM file"), (content[:20], "not a LiteRT-LM file"),
        (content[: len(content) // 2], "lies at bytes"), (bytes(huge), "header ends at"),
        (content[:8] + b"\x09" + content[9:], "version 9"),
    ):  # fmt: skip
        path.write_bytes(damage)
        with pytest.raises(ModelFileError, match=says):
            tfopt.Generator.load(path)
    shutil.copy(artifact.path, path)
    inner = read_litert_lm(path).decoder(tmp_path / "m.tflite")
    inner.write_bytes(inner.read_bytes().replace(b"tfopt_causal_lm.json", b"tfopt_causal_ml.json"))
    write_litert_lm(
        path, decoder=inner, tokenizer=TOKENIZER.encode(), metadata=_with_first(read_litert_lm(path), 3)
    )
    with pytest.raises(ModelFileError, match="no causal language model of tfopt"):
        tfopt.Generator.load(path)
