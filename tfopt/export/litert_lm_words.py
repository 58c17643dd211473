"""What a `.litertlm` file says of texts: its tokenizer, first and last tokens, limits, sampling, chat template."""

import dataclasses
import functools
import json
import re

from tfopt.data.chat import ChatTemplate
from tfopt.data.detokenizers import HuggingFaceTokenizer
from tfopt.data.tokenizers import parse_tokenizer
from tfopt.decoding.config import CausalLMConfig
from tfopt.errors import InputError

# LiteRT-LM gives the content of a message as a list of parts, where templates await a text, and defines neither of
# the tokens. The line that this ends with is gone, as behind every block.
_PREAMBLE = """{%- set whole = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set said = namespace(text='') -%}
{%- if message.content is string -%}{%- set said.text = message.content -%}
{%- else -%}
{%- for part in message.content -%}{%- set said.text = said.text ~ part.text -%}{%- endfor -%}
{%- endif -%}
{%- set whole.messages = whole.messages + [{'role': message.role, 'content': said.text}] -%}
{%- endfor -%}
{%- set messages = whole.messages -%}
{%- set bos_token = BOS -%}
{%- set eos_token = EOS %}
"""
# Marks for trainings, which it does not know; what stands around them is cut as before.
_GENERATION = (
    (re.compile(r"\{%(-?)\s*generation\s*(-?)%\}"), r"{%\1 if true \2%}"),
    (re.compile(r"\{%(-?)\s*endgeneration\s*(-?)%\}"), r"{%\1 endif \2%}"),
)
_LOOPS = re.compile(r"\{%-?\s*(?:break|continue)\s*-?%\}")
LEAVE_OUT = "accept=['chat'] leaves the template out"
_TURN = ({"role": "user", "content": "Hello"},)


@dataclasses.dataclass(frozen=True)
class Words:
    """The texts of a model.

    Attributes:
        content: its `tokenizer.json`.
        chat: its template, if it has one.
        first: the token that LiteRT-LM puts before every text and conversation, None for none.
        ends: tokens that end a text.
        slots: most tokens of a text.
    """

    content: bytes
    chat: ChatTemplate | None
    first: int | None
    ends: tuple[int, ...]
    slots: int

    @staticmethod
    def of(content: bytes, chat: ChatTemplate | None, config: CausalLMConfig, slots: int) -> "Words":
        """The words of a model with that tokenizer and template.

        Raises:
            InputError: the tokenizer has more tokens than the model, nothing ends a text, or the template cannot be
                used by LiteRT-LM.
        """
        content = _fitting(content, config.vocab_size)
        tokenizer = HuggingFaceTokenizer(parse_tokenizer(content.decode(), "the model's tokenizer"))
        begun = _first_of(tokenizer)
        ends = tuple(end for end in config.end_tokens if 0 <= end < config.vocab_size)
        if chat is not None:
            if _LOOPS.search(chat.template):
                raise InputError(
                    "the chat template has break or continue, which the Jinja of LiteRT-LM does not know; "
                    f"{LEAVE_OUT}"
                )
            if 2 * len(tokenizer.encode_whole(chat.render(_TURN))) + 16 > slots:
                raise InputError(
                    f"a cache of {slots} tokens has no room for two messages of the chat template; {LEAVE_OUT}"
                )
            ends += tuple(tokenizer.special_ids(chat.end_of_turn())[:1])
            # One token cannot be first in texts only: conversations are what such a model is for. Nor may it be
            # written twice, by LiteRT-LM and by a template that has it in its own text.
            named, unnamed = (
                tokenizer.encode_whole(one.render(_TURN))[:1]
                for one in (chat, dataclasses.replace(chat, bos_token=""))
            )
            begun = begun if named == begun != unnamed else []
        if not ends:
            raise InputError(
                "LiteRT-LM needs a token that ends a text: give its configuration end_tokens, or its folder "
                "a generation_config.json with eos_token_id"
            )
        return Words(content, chat, first=begun[0] if begun else None, ends=tuple(dict.fromkeys(ends)), slots=slots)

    @functools.cached_property
    def tokenizer(self) -> HuggingFaceTokenizer:
        return HuggingFaceTokenizer(parse_tokenizer(self.content.decode(), "the model's tokenizer"))

    def begun(self, ids: list[int]) -> list[int]:
        """Tokens of a text, behind the one that begins it."""
        return ids if self.first is None else [self.first, *ids]

    def template(self) -> str | None:
        """The chat template as LiteRT-LM takes it."""
        if self.chat is None:
            return None
        said = {"BOS": self.chat.bos_token if self.first is None else "", "EOS": self.chat.eos_token}
        preamble = _PREAMBLE
        for name, token in said.items():
            preamble = preamble.replace(f"= {name} ", f"= {_quoted(token)} ")
        template = self.chat.template
        for mark, instead in _GENERATION:
            template = mark.sub(instead, template)
        return preamble + template

    def prompt(self, text: str) -> str:
        """A conversation of one message, as LiteRT-LM should write it."""
        assert self.chat is not None
        rendered = self.chat.render([{"role": "user", "content": text}])
        return rendered if self.first is None else rendered.removeprefix(self.chat.bos_token)

    def metadata(self) -> bytes:
        """The section of what LiteRT-LM has to know."""
        from litert_lm_builder.runtime.proto import llm_metadata_pb2, sampler_params_pb2

        said = llm_metadata_pb2.LlmMetadata(max_num_tokens=self.slots)
        said.llm_model_type.generic_model.SetInParent()
        if self.first is not None:
            said.start_token.token_ids.ids.append(self.first)
        for end in self.ends:
            said.stop_tokens.add().token_ids.ids.append(end)
        # Of its kinds of sampling, version 0.18 knows one; the likeliest of one token is the greedy choice.
        kind = sampler_params_pb2.SamplerParameters.TOP_P
        said.sampler_params.CopyFrom(sampler_params_pb2.SamplerParameters(type=kind, k=1, p=1.0, temperature=1.0))
        template = self.template()
        if template is not None:
            said.jinja_prompt_template = template
        return bytes(said.SerializeToString(deterministic=True))


def _fitting(content: bytes, rows: int) -> bytes:
    """The tokenizer without limits of length, and without added tokens that the table has no rows for.

    Gemma's multimodal tokenizer has one more than its text models.
    """
    tokenizer = parse_tokenizer(content.decode(), "the model's tokenizer")
    found = json.loads(tokenizer.to_str())
    found["added_tokens"] = [token for token in found["added_tokens"] if token["id"] < rows]
    most = max(tokenizer.get_vocab(with_added_tokens=False).values(), default=0)
    if most >= rows:
        raise InputError(f"the tokenizer has token {most:,}, the model's table {rows:,} rows")
    return json.dumps(found, ensure_ascii=False).encode()


def _first_of(tokenizer: HuggingFaceTokenizer) -> list[int]:
    """The token that the tokenizer puts before every text, if it does.

    Raises:
        InputError: there are several, of which LiteRT-LM takes one.
    """
    encoding = tokenizer.tokenizer.encode("a")
    first = list(encoding.ids)[: next((i for i, s in enumerate(encoding.special_tokens_mask) if not s), 0)]
    if len(first) > 1:
        raise InputError(f"the tokenizer puts {len(first)} tokens before every text, LiteRT-LM one at most")
    return first


def _quoted(text: str) -> str:
    """A literal of Jinja2."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"
