"""Text in, text out, on any runtime."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import numbers
import time
from collections import abc
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tfopt._base.foreign import check_whole
from tfopt.data.chat import ChatTemplate, Message
from tfopt.data.detokenizers import HuggingFaceTokenizer, Tokenizer
from tfopt.decoding.decoder import Decoder
from tfopt.decoding.generate import GenerateConfig, Texts, check_prompts, with_ends
from tfopt.decoding.seq2seq_decoder import Seq2SeqDecoder
from tfopt.decoding.speculative import LOOKUP, DraftModel, PromptLookup, speculate
from tfopt.decoding.stop_strings import StopStrings
from tfopt.engine.opening import open_decoder
from tfopt.errors import InputError

Prompt = str | Sequence[int]


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        text: what was generated, without the prompt; "" where there is no tokenizer.
        tokens: ids of the new tokens.
        finish: why it ended: "stop" (a stop token or string), "length" (`max_tokens`) or "context" (it is full).
        prompt_tokens: tokens of the prompt, as far as it was kept.
        first_token_s: seconds until the first token, None if none came.
        seconds: seconds in all.
    """

    text: str
    tokens: tuple[int, ...]
    finish: str
    prompt_tokens: int
    first_token_s: float | None
    seconds: float


@dataclasses.dataclass(frozen=True)
class Piece:
    """What one step added to a text.

    Attributes:
        token: the new token.
        text: characters that are complete and shown now; may be "" or belong to tokens before.
    """

    token: int | None
    text: str


class Generator:
    """A causal language model, or an encoder-decoder such as a translator, with its tokenizer.

    Args:
        decoder: the model on some runtime.
        tokenizer: of its prompts; None takes and gives token ids only.
        draft: for speculative decoding, a smaller model with the same vocabulary, or "lookup": what followed the
            last words where they stood before is proposed.
        template: how messages become a prompt, for `chat`.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer | None = None,
        *,
        draft: Decoder | Literal["lookup"] | None = None,
        template: ChatTemplate | None = None,
    ) -> None:
        if draft is not None and isinstance(decoder, Seq2SeqDecoder):
            raise InputError("speculative decoding is for causal language models; this one has an encoder")
        self.decoder, self.tokenizer, self.draft, self.template = decoder, tokenizer, draft, template

    @staticmethod
    def load(
        source: Any,
        *,
        runtime: str | None = None,
        threads: int | None = None,
        draft: Any = None,
        bits: int | None = None,
        weight_cache: str | Path | None = None,
        trust: bool = False,
        imports: Sequence[str] = (),
    ) -> "Generator":
        """Loads a model to generate with.

        Args:
            source: a Keras model of `models.causal_lm` or `models.seq2seq`, a `CausalLM` of KerasHub, a `.keras`
                file of one, a Hugging Face folder, a `.gguf` file, a llama2.c `.bin` file or a folder with one and
                its tokenizer, or a `.tflite` file that `export` wrote.
            runtime: "eager" (the reference), "xla" or "tflite"; by default "tflite" for such files, else "xla".
            threads: threads of a TFLite file; by default all cores.
            draft: for speculative decoding, a smaller model likewise, or "lookup".
            bits: for "xla", 8 or 4 keeps weights in so few bits; None in float.
            weight_cache: for TFLite, a folder that makes later starts faster.
            trust: run code that a Keras file holds or names; what that is, is logged.
            imports: modules or files that define classes of a Keras file, such as "keras_hub"; they are run.

        Raises:
            InputError: a model that does not generate, or a runtime that does not take it.
        """
        found = open_decoder(
            source, runtime, threads, bits=bits, weight_cache=weight_cache, trust=trust, imports=imports
        )
        is_file = isinstance(draft, (str, Path)) and Path(draft).suffix in (".tflite", ".litertlm")
        helper: Any = draft
        if draft not in (None, LOOKUP):
            helper = open_decoder(
                draft, None, threads, bits=None if is_file else bits,  # a file has bits of its own
                weight_cache=None if Path(str(draft)).suffix == ".litertlm" else weight_cache, trust=trust,
                imports=imports,
            ).decoder  # fmt: skip
        return Generator(found.decoder, found.tokenizer, draft=helper, template=found.chat)

    def swap(self, values: Mapping[str, Any]) -> None:
        """Goes on with other values of some weights, at once and without compiling anything again.

        `generator.swap(adapters.use("french"))` changes the adapter of a model that runs eagerly or by XLA; texts
        that are under way go on with the new one.

        Args:
            values: by path, as `compress.adapters.Adapters.use` returns them.

        Raises:
            InputError: the model is in a file, or a weight is not there.
        """
        # Statistics of norms, which a layer that was trained whole has as well, are none of a decoder's weights.
        weights = {path: value for path, value in values.items() if "/moving_" not in path}
        self.decoder.swap(weights)

    def generate(self, prompts: Prompt | Sequence[Prompt], config: GenerateConfig | None = None) -> list[Answer]:
        """Continues texts, several at once where the runtime can.

        Args:
            prompts: one prompt or several, each a text or token ids.
            config: how.

        Raises:
            InputError: a bad prompt, or strings without a tokenizer.
        """
        config = config or GenerateConfig()
        several = check_prompts([self._ids(prompt) for prompt in _as_list(prompts)], self.decoder, config)
        # Padding of short prompts takes room from their answers.
        fits = self.decoder.fits(max(map(len, several)), config.max_tokens)
        together = fits and self.decoder.rows is None and self.draft is None
        at_once = len(several) if together else 1
        results: list[Answer] = []
        for start in range(0, len(several), at_once):
            results += self._together(several[start : start + at_once], config, start)
        return results

    def stream(self, prompt: Prompt, config: GenerateConfig | None = None) -> abc.Generator[Piece]:
        """Continues one text, token by token; closing the iterator frees keys and values.

        Raises:
            InputError: a bad prompt, or a string without a tokenizer.
        """
        config = config or GenerateConfig()
        (ids,) = check_prompts([self._ids(prompt)], self.decoder, config)
        answer = self._begun(ids, config)
        with contextlib.closing(self._tokens([answer], config, 0)) as steps:
            for (token,) in steps:
                if token is None:
                    break
                yield Piece(token, answer.push(token))
                if answer.ended:
                    return
        rest = answer.rest()
        if rest:
            yield Piece(None, rest)

    def chat(self, messages: Sequence[Message], config: GenerateConfig | None = None) -> Answer:
        """Answers the last message of a conversation.

        Args:
            messages: each with a "role" (system, user or assistant) and a "content".
            config: how; an answer also ends where the template ends one.

        Raises:
            InputError: a model without a chat template, or messages that it refuses or that are too long.
        """
        ids, config = self._conversation(messages, config)
        (answer,) = self.generate([ids], config)
        return answer

    def chat_stream(
        self, messages: Sequence[Message], config: GenerateConfig | None = None
    ) -> abc.Generator[Piece]:
        """`chat`, token by token; raises as it does."""
        ids, config = self._conversation(messages, config)
        return self.stream(ids, config)

    def _conversation(
        self, messages: Sequence[Message], config: GenerateConfig | None
    ) -> tuple[list[int], GenerateConfig]:
        """The prompt of a conversation, and a configuration that ends where an answer does."""
        tokenizer = self.tokenizer
        if self.template is None or not isinstance(tokenizer, HuggingFaceTokenizer):
            raise InputError("the model came without a chat template; generate(...) continues a text")
        ids = tokenizer.encode_whole(self.template.render(messages))
        config = with_ends(config or GenerateConfig(), self.decoder)
        ends = tokenizer.special_ids(self.template.end_of_turn())[:1]
        stops = tuple(dict.fromkeys((*(config.stop_tokens or ()), *ends)))
        return ids, dataclasses.replace(config, stop_tokens=stops)

    async def astream(self, prompt: Prompt, config: GenerateConfig | None = None) -> AsyncIterator[Piece]:
        """`stream` for asyncio: steps run in a thread. Cancelled or closed, it frees keys and values."""
        steps = self.stream(prompt, config)
        # One worker: a step cannot be interrupted, and closing waits behind it, whatever is cancelled meanwhile.
        worker = concurrent.futures.ThreadPoolExecutor(1)
        try:
            while True:
                piece = await asyncio.wrap_future(worker.submit(next, steps, None))
                if piece is None:
                    return
                yield piece
        finally:
            closing = worker.submit(steps.close)
            worker.shutdown(wait=False)
            await asyncio.shield(asyncio.wrap_future(closing))

    def _together(self, prompts: Sequence[list[int]], config: GenerateConfig, first: int) -> list[Answer]:
        answers = [self._begun(ids, config) for ids in prompts]
        started = time.perf_counter()
        first_token: float | None = None
        with contextlib.closing(self._tokens(answers, config, first)) as steps:
            for tokens in steps:
                first_token = first_token or time.perf_counter() - started
                for answer, token in zip(answers, tokens, strict=True):
                    if token is not None and not answer.ended:
                        answer.push(token)
        seconds = time.perf_counter() - started
        return [self._finished(answer, config, first_token, seconds=seconds) for answer in answers]

    def _begun(self, ids: list[int], config: GenerateConfig) -> "_Growing":
        return _Growing(ids, self.tokenizer, config.stop, continues=self.decoder.continues)

    def _finished(self, answer: "_Growing", config: GenerateConfig, first: float | None, seconds: float) -> Answer:
        answer.rest()
        full = not self.decoder.fits(len(answer.prompt), len(answer.tokens))
        finish = "length" if len(answer.tokens) >= config.max_tokens else "context" if full else "stop"
        finish = "stop" if answer.ended else finish
        return Answer(
            answer.text,
            tuple(answer.tokens),
            finish,
            prompt_tokens=len(answer.prompt),
            first_token_s=first,
            seconds=seconds,
        )

    def _tokens(
        self, answers: "list[_Growing]", config: GenerateConfig, first: int
    ) -> abc.Generator[Sequence[int | None]]:
        if config.stop and self.tokenizer is None:
            raise InputError("stop strings need a tokenizer; use stop_tokens")
        if self.draft is not None:
            (answer,) = answers
            draft = PromptLookup() if isinstance(self.draft, str) else DraftModel(self.draft)
            with contextlib.closing(
                speculate(self.decoder, draft, answer.prompt, config=config, row=first)
            ) as some:
                for token in some:
                    yield (token,)
                    if answer.ended:
                        return
            return
        texts = Texts(self.decoder, [a.prompt for a in answers], config, first=first)
        with contextlib.closing(texts.steps()) as steps:
            for tokens in steps:
                yield tokens
                for row, answer in enumerate(answers):
                    if answer.ended:
                        texts.end(row)

    def _ids(self, prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str):
            return [int(i) for i in prompt]
        if self.tokenizer is None:
            raise InputError("the model came without a tokenizer; give token ids, or load it from its folder")
        if not prompt:
            raise InputError("the prompt is empty; give at least a word, or the ids that begin a text")
        check_whole(prompt, "a prompt")
        if isinstance(self.decoder, Seq2SeqDecoder) and isinstance(self.tokenizer, HuggingFaceTokenizer):
            return self.tokenizer.encode_closed(prompt)
        return self.tokenizer.encode_ids(prompt)


class _Growing:
    """The text of one answer so far."""

    def __init__(
        self, prompt: list[int], tokenizer: Tokenizer | None, stop: Sequence[str], continues: bool
    ) -> None:
        self.prompt, self.tokens, self.text = prompt, list[int](), ""
        self._stream = None if tokenizer is None else tokenizer.stream(prompt if continues else [])
        self._stops = StopStrings(stop)

    @property
    def ended(self) -> bool:
        return self._stops.found

    def push(self, token: int) -> str:
        self.tokens.append(token)
        shown = self._stops.push(self._stream.push(token)) if self._stream is not None else ""
        self.text += shown
        return shown

    def rest(self) -> str:
        if self._stream is None or self.ended:
            return ""
        shown = self._stops.push(self._stream.rest())
        shown += "" if self.ended else self._stops.rest()
        self.text += shown
        return shown


def _as_list(prompts: Any) -> list[Prompt]:
    if isinstance(prompts, str) or (len(prompts) and isinstance(prompts[0], numbers.Integral)):
        return [prompts]
    return list(prompts)
