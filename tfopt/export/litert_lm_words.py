"""What a `.litertlm` file says of texts: its tokenizer, first and last tokens, limits, sampling, chat template."""

import dataclasses
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
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # marks for trainings, which it does not know
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
            InputError: the tokenizer has more tokens than the model.
        """
        tokenizer = HuggingFaceTokenizer(parse_tokenizer(content.decode(), "the model's tokenizer"))
        size = tokenizer.tokenizer.get_vocab_size()
        if size > config.vocab_size:
            raise InputError(f"the tokenizer has {size:,} tokens, the model's table {config.vocab_size:,} rows")
        begun = tokenizer.encode_ids("")
        ends = tuple(end for end in config.end_tokens if 0 <= end < config.vocab_size)
        if chat is not None:
            ends += tuple(tokenizer.special_ids(chat.end_of_turn())[:1])
            # One token cannot be first in texts only: conversations are what such a model is for.
            shown = tokenizer.encode_whole(chat.render(_TURN))
            begun = begun[:1] if begun and shown[:1] == begun[:1] else []
        return Words(content, chat, first=begun[0] if begun else None, ends=tuple(dict.fromkeys(ends)), slots=slots)

    @property
    def tokenizer(self) -> HuggingFaceTokenizer:
        return HuggingFaceTokenizer(parse_tokenizer(self.content.decode(), "the model's tokenizer"))

    def begun(self, ids: list[int]) -> list[int]:
        """Tokens of a text, behind the one that begins it."""
        return ids if self.first is None else [self.first, *ids]

    def tokenizer_json(self) -> bytes:
        """The tokenizer's section."""
        return self.content

    def template(self) -> str | None:
        """The chat template as LiteRT-LM takes it."""
        if self.chat is None:
            return None
        first = self._is_written_first()
        said = {"BOS": "" if first else self.chat.bos_token, "EOS": self.chat.eos_token}
        preamble = _PREAMBLE
        for name, token in said.items():
            preamble = preamble.replace(f"= {name} ", f"= {_quoted(token)} ")
        return preamble + _GENERATION.sub("", self.chat.template)

    def prompt(self, text: str) -> str:
        """A conversation of one message, as LiteRT-LM should write it."""
        assert self.chat is not None
        rendered = self.chat.render([{"role": "user", "content": text}])
        return rendered.removeprefix(self.chat.bos_token) if self._is_written_first() else rendered

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

    def _is_written_first(self) -> bool:
        return self.first is not None


def _quoted(text: str) -> str:
    """A literal of Jinja2."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"
