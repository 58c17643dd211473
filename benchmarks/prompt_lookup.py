"""Speculative decoding without a second model, on text that repeats itself and on text that does not.

A chat model is asked to say passages again, word by word, and to go on with them. Each answer is made as it is and
with `draft="lookup"`, here and by the prompt lookup of llama.cpp's Python package on its Q8_0 of the same weights,
taking turns. In float the texts are equal; in 8 bits, tokens that are computed together are rounded a little
otherwise, and where two are nearly as likely the other may come.

    python -m benchmarks.prompt_lookup --model SmolLM2-135M-Instruct.Q4_1.gguf --text passages.txt
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tfopt
from benchmarks.common import goal, paired, ratio, save, show
from benchmarks.gguf_llama import quantized
from tfopt.decoding.generate import GenerateConfig

NEW, CONTEXT, CHARACTERS, PROPOSALS = 96, 256, 320, 7
TASKS = {"say it again": "Repeat the following text word by word:\n\n{}", "go on": "Continue this scene:\n\n{}"}
GREEDY = GenerateConfig(max_tokens=NEW, temperature=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a .gguf file of a chat model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--file", type=Path, help="an 8-bit export of it; by default one is made")
    parser.add_argument("--passages", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    text = given.text.read_text("utf-8")
    starts = np.linspace(0, len(text) - CHARACTERS, given.passages).astype(int)
    passages = [text[start : start + CHARACTERS] for start in starts]
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        ways = Ways(given.model, Path(folder), given.threads, file=given.file)
        for task, question in TASKS.items():
            prompts = [ways.prompt(question.format(passage)) for passage in passages]
            same = [ways.plain(one) == ways.lookup(one) for one in prompts]
            seconds = paired({name: _all(say, prompts) for name, say in ways.named.items()}, given.rounds)
            counts = {name: sum(len(say(one)) for one in prompts) for name, say in ways.named.items()}
            each = {name: found / counts[name] for name, found in seconds.items()}  # of a token
            rows[task] = {
                "same_texts": f"{sum(same)} of {len(same)}",
                "tokens_per_s": {name: round(1 / float(np.median(found)), 1) for name, found in each.items()},
                "lookup / plain": ratio(each["plain"], each["lookup"]),
                "lookup / plain, llama.cpp": ratio(each["llama.cpp"], each["llama.cpp, lookup"]),
            }  # fmt: skip
    show(rows)
    again, on = (rows[task]["lookup / plain"]["median"] for task in TASKS)
    goals = [
        goal("lookup / plain where a text is said again", again, 2.0),
        goal("lookup / plain elsewhere", on, 0.95),
    ]
    save("prompt_lookup", {"threads": given.threads, "rows": rows, "goals": goals})


Say = Callable[[Sequence[int]], Sequence[int]]


def _all(say: Say, prompts: Sequence[Sequence[int]]) -> Callable[[], None]:
    def work() -> None:
        for prompt in prompts:
            say(prompt)

    return work


class Ways:
    """Ways to answer, as functions of token ids.

    Attributes:
        named: all of them.
    """

    def __init__(self, model: Path, folder: Path, threads: int, file: Path | None) -> None:
        if file is None:
            file = folder / "m.tflite"
            tfopt.export(tfopt.models.from_pretrained(model), file, quantization="dynamic_int8", lengths=[CONTEXT])
        self._plain = tfopt.Generator.load(file, threads=threads)
        self._lookup = tfopt.Generator.load(file, threads=threads, draft="lookup")
        plain = quantized(quantized(model, folder / "F32.gguf", "ALL_F32"), folder / "Q8_0.gguf", "MOSTLY_Q8_0")
        peer, with_lookup = _llama(plain, threads, draft=False), _llama(plain, threads, draft=True)
        self.named: dict[str, Say] = {
            "plain": self.plain, "lookup": self.lookup, "llama.cpp": peer, "llama.cpp, lookup": with_lookup,
        }  # fmt: skip

    def prompt(self, message: str) -> list[int]:
        """The ids of a question."""
        template, tokenizer = self._plain.template, self._plain.tokenizer
        assert template is not None and tokenizer is not None
        return tokenizer.encode_whole(template.render([{"role": "user", "content": message}]))

    def plain(self, prompt: Sequence[int]) -> Sequence[int]:
        return self._plain.generate([prompt], GREEDY)[0].tokens

    def lookup(self, prompt: Sequence[int]) -> Sequence[int]:
        return self._lookup.generate([prompt], GREEDY)[0].tokens


def _llama(path: Path, threads: int, draft: bool) -> Say:
    """llama.cpp, with the prompt lookup that comes with its Python package."""
    import llama_cpp
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    helper = LlamaPromptLookupDecoding(num_pred_tokens=PROPOSALS) if draft else None
    llama = llama_cpp.Llama(
        str(path), n_ctx=CONTEXT, n_batch=CONTEXT, n_threads=threads, n_threads_batch=threads, draft_model=helper,
        logits_all=draft, verbose=False,
    )  # fmt: skip

    def say(prompt: Sequence[int]) -> Sequence[int]:
        llama.reset()
        found: list[int] = []
        for token in llama.generate(list(prompt), temp=0.0, repeat_penalty=1.0):
            if token == llama.token_eos() or len(found) == NEW:
                break
            found.append(token)
        return found

    return say


if __name__ == "__main__":
    main()
