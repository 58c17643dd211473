"""Makes `tests/data/chat/golden.json`: what transformers makes of chat templates.

    python -m benchmarks.golden_chat      # with transformers and Jinja2; imports nothing of tfopt

The templates are in the manner of public ones (ChatML, Llama 3, Gemma, Mistral), with what those use of Jinja2.
"""

import json
from pathlib import Path

FILE = Path(__file__).parents[1] / "tests" / "data" / "chat" / "golden.json"
TOKENS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>", "<turn>", "<end_turn>")
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "headers": (
        "{{- bos_token }}\n{%- set ns = namespace(system='') %}\n"
        "{%- if messages[0]['role'] == 'system' %}\n    {%- set ns.system = messages[0]['content'] | trim %}\n"
        "    {%- set messages = messages[1:] %}\n{%- endif %}\n"
        "{{- '<|start|>system<|end|>\n\n' + ns.system + '<|eot|>' }}\n"
        "{%- for message in messages %}\n    {%- if message.role not in ['user', 'assistant'] %}\n"
        "        {{- raise_exception('only users and assistants talk here') }}\n    {%- endif %}\n"
        "    {{- '<|start|>' + message['role'] + '<|end|>\n\n' + message['content'] | trim + '<|eot|>' }}\n"
        "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|start|>assistant<|end|>\n\n' }}\n{%- endif %}\n"
    ),
    "turns": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<turn>' + role + '\n' + message['content'] | trim + '<end_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<turn>model\n'}}{% endif %}"
    ),
    "brackets": (
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}"
        "{{ '[INST] ' ~ message.content ~ ' [/INST]' }}{% elif message.role == 'assistant' %}"
        "{{ message.content ~ eos_token }}{% else %}{% continue %}{% endif %}{% endfor %}"
    ),
}
TALKS = {
    "one": [{"role": "user", "content": "Hello, who are you?"}],
    "told": [{"role": "system", "content": " Answer in Latin. "}, {"role": "user", "content": "Salve\n"}],
    "long": [
        {"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"},
        {"role": "user", "content": "<b>so</b> & \"so\" - 猫"},
    ],
    "wrong": [{"role": "assistant", "content": "I begin"}, {"role": "tool", "content": "{}"}],
}  # fmt: skip


def main() -> None:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(alphabet, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.add_special_tokens(list(TOKENS))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    cases = []
    for name, template in TEMPLATES.items():
        tokenizer.chat_template = template
        for talk, messages in TALKS.items():
            for answer in (True, False):
                case = {"template": name, "talk": talk, "answer": answer}
                try:
                    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
                    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=answer, return_dict=False)
                    case |= {"text": text, "ids": [int(i) for i in ids]}
                except Exception as error:  # noqa: BLE001 - whatever a template raises is what is kept
                    case["refused"] = str(error)
                cases.append(case)
    made_by = {"transformers": transformers.__version__}
    content = {"made_by": made_by, "tokenizer": json.loads(inner.to_str()), "templates": TEMPLATES, "talks": TALKS}
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps({**content, "cases": cases}, ensure_ascii=False, indent=1) + "\n", "utf-8")
    print(f"{len(cases)} cases, {sum('refused' in c for c in cases)} refused")


if __name__ == "__main__":
    main()
