"""Any file that generates, in EleutherAI's lm-evaluation-harness (extra `lmeval`).

    python -m tfopt.engine.lm_eval --model tfopt --model_args path=model.tflite --tasks hellaswag

is the harness's own command line, which knows the model "tfopt" then; in Python,
`lm_eval.simple_evaluate(model=TfoptLM("model.tflite"), tasks=[...])`. The harness is that of Gao et al.,
https://github.com/EleutherAI/lm-evaluation-harness.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows
except ImportError as error:
    raise ImportError("the harness is not installed: pip install 'tfopt[lmeval]'") from error

from tfopt.data.detokenizers import Tokenizer
from tfopt.decoding.generate import GenerateConfig
from tfopt.decoding.seq2seq_decoder import Seq2SeqDecoder
from tfopt.engine.generator import Generator
from tfopt.errors import InputError
from tfopt.numerics.agreement import log_softmax

_NEW_TOKENS = 256  # of an answer, where a task does not say; as the harness has it
_KNOWN = frozenset({"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"})


@register_model("tfopt")
class TfoptLM(TemplateLM):
    """A language model of whatever `Generator.load` takes.

    Args:
        path: the file or folder, or a `Generator`.
        threads: of a file's runtime; by default all cores.
        max_length: tokens of a text; by default, and at most, what the file's cache holds.

    Raises:
        InputError: a model without a tokenizer, or `max_length` out of range.
    """

    def __init__(
        self,
        path: Any,
        threads: int | None = None,
        max_length: int | None = None,
        batch_size: Any = 1,
        max_batch_size: Any = None,
        device: Any = None,
    ) -> None:
        super().__init__()  # batch sizes and device are what the harness passes to every model
        self._generator = path if isinstance(path, Generator) else Generator.load(path, threads=threads)
        decoder, self._tokens = self._generator.decoder, self._tokenizer()
        if isinstance(decoder, Seq2SeqDecoder):
            raise InputError("the harness is for causal language models; this one has an encoder")
        if max_length is not None and not 2 <= max_length <= decoder.context:
            raise InputError(f"max_length must be in [2, {decoder.context}], got {max_length}")
        self.max_length = max_length or decoder.context
        self._session = decoder.open([0])
        self._held: list[int] = []

    def _tokenizer(self) -> Tokenizer:
        if self._generator.tokenizer is None:
            raise InputError("the harness asks with texts, and the model came without a tokenizer")
        return self._generator.tokenizer

    @property
    def eot_token_id(self) -> int:
        ends = self._generator.decoder.config.end_tokens
        return ends[0] if ends else 0

    @property
    def prefix_token_id(self) -> int:
        """What begins a text, where the tokenizer says so."""
        begun = self._tokens.encode_ids("")
        return begun[0] if begun else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        return "tfopt"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **settings: Any) -> list[int]:
        return self._tokens.encode_whole(string) if add_special_tokens is False else self._tokens.encode_ids(string)

    def apply_chat_template(self, chat_history: Sequence[Any], add_generation_prompt: bool = True) -> str:
        template = self._generator.template
        if template is None:
            raise InputError("the model came without a chat template")
        return template.render(chat_history, answer=add_generation_prompt)

    def _loglikelihood_tokens(
        self, requests: Iterable[tuple[Any, list[int], list[int]]], **settings: Any
    ) -> list[tuple[float, bool]]:
        found = []
        for _, context, continuation in requests:
            said = self._after(context, continuation)
            right = said.argmax(-1) == continuation
            found.append((float(said[np.arange(len(continuation)), continuation].sum()), bool(right.all())))
        return found

    def _after(self, context: Sequence[int], continuation: Sequence[int]) -> np.ndarray:
        """Logarithms of probabilities (tokens, vocabulary) at each token of a continuation.

        What a text has in common with the one before, as choices have of one question, is not computed again.
        """
        count = len(continuation)
        if count > self.max_length:
            raise InputError(f"a continuation has {count} tokens; max_length is {self.max_length}")
        ids = [*context, *continuation][-self.max_length - 1 : -1]
        same = 0
        for mine, theirs in zip(ids[: len(ids) - count], self._held, strict=False):
            if mine != theirs:
                break
            same += 1
        self._session.rewind(same)
        self._held = ids
        return log_softmax(self._session.extend(np.array([ids[same:]], np.int32), every=True)[0, -count:])

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        found = []
        for request in requests:
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            windows = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            total = 0.0
            for given, wanted in windows:
                said = self._after(given[: len(given) - len(wanted) + 1], wanted)
                total += float(said[np.arange(len(wanted)), wanted].sum())
            found.append(total)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        return [self._continued(*request.args) for request in requests]

    def _continued(self, context: str, wanted: dict[str, Any]) -> str:
        unknown = sorted(set(wanted) - _KNOWN)
        if unknown:
            known = ", ".join(sorted(_KNOWN))
            raise InputError(f"a task asks for {', '.join(unknown)} in generation; known are {known}")
        until = wanted.get("until") or []
        sampled = {key: wanted[key] for key in ("temperature", "top_k", "top_p") if key in wanted}
        config = GenerateConfig(
            max_tokens=min(int(wanted.get("max_gen_toks", _NEW_TOKENS)), self.max_length - 1), truncate=True,
            stop=(until,) if isinstance(until, str) else tuple(until), **sampled if wanted.get("do_sample") else {},
        )  # fmt: skip
        return self._generator.generate([context], config)[0].text


def main() -> None:
    """The harness's command line."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
