"""Chat templates: how messages become a prompt, and where an answer ends.

Templates are written in Jinja2 and come with checkpoints, https://huggingface.co/docs/transformers/chat_templating.
They are programs of somebody else: they run in Jinja2's sandbox, and see nothing but the messages.
"""

import contextvars
import dataclasses
import datetime
import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tfopt._base.foreign import check_whole, parse_json, read_json, read_text
from tfopt.errors import InputError, ModelFileError

Message = Mapping[str, Any]
ROLES = ("system", "user", "assistant", "tool")
_MARK = "\u2402answer\u2403"  # in no template
_TEMPLATE_FILE, _CONFIG_FILE = "chat_template.jinja", "tokenizer_config.json"
_LARGEST, _MOST_OUTPUT, _MOST_ITEMS = 1 << 20, 1 << 24, 1 << 18
_TIMED = "timed values"  # a filter that no template can name
# Methods of texts that make them as long as a number says.
_WIDENING = frozenset({
    "center", "expandtabs", "format", "format_map", "ljust", "rjust", "zfill", "translate", "to_bytes",
})  # fmt: skip
_WIDENING_FILTERS = (
    "batch", "center", "format", "indent", "wordwrap", "pprint", "xmlattr", "urlize", "filesizeformat", "slice",
)  # fmt: skip
_LARGEST_NUMBER = 1e18
_SECONDS = 10.0  # a prompt takes milliseconds
_END: contextvars.ContextVar[float] = contextvars.ContextVar("end of the time that a template has")


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template with the tokens that it names.

    Attributes:
        template: in Jinja2.
        bos_token: what begins a text, "" for nothing.
        eos_token: what ends one.
    """

    template: str
    bos_token: str = ""
    eos_token: str = ""

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """The prompt of a conversation.

        Args:
            messages: each with a "role" (system, user, assistant, tool) and a "content".
            answer: end with what begins an answer.

        Raises:
            InputError: messages of another form, or that the template refuses.
        """
        for number, message in enumerate(checked(messages)):
            check_whole(message["content"], f"message {number}")
        return self._rendered([dict(message) for message in messages], answer)

    def end_of_turn(self) -> str:
        """What stands behind an answer, "" where nothing does."""
        talk: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
        return self._rendered(talk, answer=False).partition(_MARK)[2]

    def to_json(self) -> bytes:
        """The member of a file."""
        return json.dumps({"schema": 1, **dataclasses.asdict(self)}, ensure_ascii=False).encode()

    @staticmethod
    def from_json(content: bytes, source: str) -> "ChatTemplate":
        """Reads what `to_json` wrote.

        Raises:
            ModelFileError: it is damaged, or no template; `source` names it.
        """
        found = parse_json(content, source, ModelFileError)
        names = [field.name for field in dataclasses.fields(ChatTemplate)]
        if not isinstance(found, dict) or found.get("schema") != 1:
            raise ModelFileError(f"{source} must hold a chat template in schema 1, got {found!r:.80}")
        if not all(isinstance(found.get(name), str) for name in names):
            raise ModelFileError(f"{source} holds a chat template whose parts are no texts")
        return ChatTemplate(**{name: found[name] for name in names}).compiled(source)

    def compiled(self, source: str) -> "ChatTemplate":
        """The same, once it was seen to be a template.

        Raises:
            ModelFileError: it is none; `source` names it.
        """
        if len(self.template) > _LARGEST:
            raise ModelFileError(f"{source} has a chat template of {len(self.template):,} characters")
        try:
            _environment().parse(self.template)  # whose expressions are not computed before they are rendered
        except Exception as error:  # whatever Jinja2 and Python's parser make of a text of somebody else
            raise ModelFileError(f"{source} has a chat template that does not compile: {error}") from error
        return self

    def _rendered(self, messages: list[Any], answer: bool) -> str:
        begun = _END.set(time.monotonic() + _SECONDS)
        try:
            return self._written(messages, answer)
        finally:
            _END.reset(begun)

    def _written(self, messages: list[Any], answer: bool) -> str:
        try:
            parts = _environment().from_string(self.template).generate(
                messages=messages, add_generation_prompt=answer, bos_token=self.bos_token, eos_token=self.eos_token,
                tools=None, documents=None,
            )  # fmt: skip
            found = ""
            for part in parts:
                found += part
                if len(found) > _MOST_OUTPUT:
                    raise InputError(f"the chat template writes more than {_MOST_OUTPUT:,} characters")
        except _RefusedError as error:
            raise InputError(f"the chat template refuses these messages: {error}") from error
        except InputError:
            raise
        except Exception as error:  # whatever a program of somebody else raises
            raise InputError(f"the chat template cannot make a prompt of these messages: {error}") from error
        check_whole(found, "what the chat template makes of these messages")
        return found


class _RefusedError(Exception):
    """What a template raises itself."""


@functools.cache
def _environment() -> Any:
    """Jinja2 as transformers sets it up, with bounds on what a text may become."""
    from jinja2 import nodes
    from jinja2.compiler import CodeGenerator
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """What an assistant says is marked for trainings; here it is written as it is."""

        tags = {"generation"}  # noqa: RUF012 - as Jinja2 declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Bounded(ImmutableSandboxedEnvironment):
        """Whose templates cannot ask for more memory than a prompt may have."""

        intercepted_binops = frozenset({"+", "*", "**", "%"})
        joined, timely = staticmethod(_joined), staticmethod(_timely)

        def _parse(self, source: str, name: str | None, filename: str | None) -> Any:
            tree = super()._parse(source, name, filename)
            for loop in tree.find_all(nodes.For):
                loop.iter = nodes.Filter(loop.iter, _TIMED, [], [], None, None, lineno=loop.lineno)
            return tree

        def call(self, context: Any, obj: Any, *args: Any, **settings: Any) -> Any:
            _check_time()
            return super().call(context, obj, *args, **settings)

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            return attr not in _WIDENING and super().is_safe_attribute(obj, attr, value)

        def getattr(self, obj: Any, attribute: str) -> Any:
            if isinstance(obj, str) and attribute == "replace":
                return functools.partial(_replaced, obj)
            if isinstance(obj, str) and attribute == "join":
                return lambda values: _joined(values, obj)
            return super().getattr(obj, attribute)

        def wrap_str_format(self, value: Any) -> Any:
            return None  # else `format` would be allowed before it is asked whether it is

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_time()
            if operator == "+" and not isinstance(left, int | float):
                if len(left) + len(right) > (_MOST_OUTPUT if isinstance(left, str) else _MOST_ITEMS):
                    raise _RefusedError("a text or list that grows and grows")
            elif not all(isinstance(one, int | float) and abs(one) < _LARGEST_NUMBER for one in (left, right)):
                raise _RefusedError(f"{left!r:.20} {operator} {right!r:.20} is nothing that a prompt needs")
            elif operator == "**" and not abs(right) <= 64:
                raise _RefusedError(f"{left!r:.20} ** {right!r:.20} is nothing that a prompt needs")
            return super().call_binop(context, operator, left, right)

    class Joining(CodeGenerator):
        """Which has `~` computed here instead of by a function that joins whatever it is given."""

        def visit_Compare(self, node: Any, frame: Any) -> None:
            self.write("environment.timely(")
            super().visit_Compare(node, frame)
            self.write(")")

        def visit_Concat(self, node: Any, frame: Any) -> None:
            self.write("environment.joined((")
            for one in node.nodes:
                self.visit(one, frame)
                self.write(", ")
            self.write("))")

    Bounded.code_generator_class = Joining
    made = Bounded(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[loopcontrols, Generation])
    for name in (*_WIDENING_FILTERS, "tojson"):
        made.filters.pop(name, None)
    made.filters["tojson"] = _to_json
    made.filters["join"] = _joined
    made.filters["replace"] = _replaced
    made.filters = {name: _watched(cast(Any, function)) for name, function in made.filters.items()}
    made.tests = {name: _watched(cast(Any, function)) for name, function in made.tests.items()}
    made.filters[_TIMED] = _timed
    made.globals = {name: made.globals[name] for name in ("range", "dict", "namespace")}
    made.globals |= {"raise_exception": _raise, "strftime_now": _now}
    return made


def _check_time() -> None:
    if time.monotonic() > _END.get():
        raise _RefusedError(f"it took more than {_SECONDS:g} seconds")


def _timely(value: Any) -> Any:
    """What was compared, as long as there is time."""
    _check_time()
    return value


def _watched(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that is not begun when the time is over."""

    @functools.wraps(function)  # with what Jinja2 notes on it
    def watched(*args: Any, **settings: Any) -> Any:
        _check_time()
        return function(*args, **settings)

    return watched


def _timed(values: Iterable[Any]) -> Iterator[Any]:
    """What a loop goes through, as long as there is time."""
    for value in values:
        _check_time()
        yield value


def _raise(message: str) -> None:
    raise _RefusedError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _to_json(value: Any, indent: int | None = None, **settings: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent if indent is None else min(int(indent), 16))


def _joined(values: Any, between: str = "", attribute: str | None = None) -> str:
    _check_time()
    parts = [str(one if attribute is None else one[attribute]) for one in values]
    if sum(map(len, parts)) + len(between) * len(parts) > _MOST_OUTPUT:
        raise _RefusedError("a text that grows and grows")
    return between.join(parts)


def _replaced(text: Any, old: str, new: str, count: int = -1) -> str:
    text = str(text)
    if len(text) + text.count(old) * len(new) > _MOST_OUTPUT:
        raise _RefusedError("a text that grows and grows")
    return text.replace(old, new, count)


def checked(messages: Any) -> Sequence[Message]:
    """Messages of the form that they must have.

    Raises:
        InputError: they have not.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise InputError(f"messages must be a list of {{'role': ..., 'content': ...}}, got {messages!r:.80}")
    for number, message in enumerate(messages):
        fine = isinstance(message, Mapping) and isinstance(message.get("content"), str)
        if not fine or message.get("role") not in ROLES:
            raise InputError(
                f"message {number} must have a role out of {', '.join(ROLES)} and a text as content, "
                f"got {message!r:.80}"
            )
    return messages


def template_of_folder(folder: Path) -> ChatTemplate | None:
    """The chat template of a Hugging Face folder, None without one.

    Raises:
        ModelFileError: it does not compile, or its file is damaged.
    """
    path, config = folder / _TEMPLATE_FILE, folder / _CONFIG_FILE
    said = read_json(config, "tokenizer configuration", error=ModelFileError) if config.is_file() else {}
    if not isinstance(said, dict):
        raise ModelFileError(f"{config} must hold an object, it holds a {type(said).__name__}")
    if path.is_file():
        text: Any = read_text(path, "chat template", most=_LARGEST, error=ModelFileError)
    else:
        text = said.get("chat_template")
        if isinstance(text, list):  # several by name
            text = next((one.get("template") for one in text
                         if isinstance(one, dict) and one.get("name") == "default"), None)  # fmt: skip
    if text is None:
        return None
    if not isinstance(text, str):
        raise ModelFileError(f"{config}: chat_template must be a text, got {text!r:.80}")
    tokens = {name: _token(said.get(name)) for name in ("bos_token", "eos_token")}
    return ChatTemplate(text, **tokens).compiled(str(folder))


def write_template(template: ChatTemplate, folder: Path) -> list[Path]:
    """Writes a template into a Hugging Face folder."""
    (folder / _TEMPLATE_FILE).write_text(template.template, "utf-8")
    said = {"bos_token": template.bos_token or None, "eos_token": template.eos_token or None}
    (folder / _CONFIG_FILE).write_text(json.dumps(said, ensure_ascii=False, indent=2) + "\n", "utf-8")
    return [folder / _TEMPLATE_FILE, folder / _CONFIG_FILE]


def _token(value: Any) -> str:
    found = value.get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) else ""
