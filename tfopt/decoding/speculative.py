"""Speculative decoding: a small model proposes tokens, the large one checks all of them in one pass.

Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", https://arxiv.org/abs/2211.17192:
a proposal is kept with probability min(1, p / q), else a token is drawn from the positive part of p - q, so that
texts are distributed as if the large model had written them alone. When greedy, they are equal.
"""

from collections import abc
from collections.abc import Sequence

import numpy as np

from tfopt.decoding.decoder import Decoder, Session
from tfopt.decoding.generate import Choices, GenerateConfig, check_prompts, with_ends
from tfopt.decoding.sampling import pick
from tfopt.errors import InputError


def speculate(
    decoder: Decoder,
    draft: Decoder,
    prompt: Sequence[int],
    config: GenerateConfig,
    proposals: int = 4,
    row: int = 0,
) -> abc.Generator[int]:
    """Continues one text.

    Args:
        decoder: the model whose text it is.
        draft: a smaller one with the same vocabulary.
        prompt: token ids.
        config: how.
        proposals: tokens that the draft proposes at a time.
        row: index of the text among several, which its random numbers depend on.

    Yields:
        The next token.

    Raises:
        InputError: different vocabularies, or see `generate.check_prompts`.
    """
    if draft.config.vocab_size != decoder.config.vocab_size:
        raise InputError(
            "the draft must have the vocabulary of the model, got "
            f"{draft.config.vocab_size} and {decoder.config.vocab_size} tokens"
        )
    if proposals < 1:
        raise InputError(f"proposals must be 1 or more, got {proposals}")
    config = with_ends(config, decoder)
    (ids,) = check_prompts([prompt], decoder, config)
    text = Choices(ids, config, decoder.config.vocab_size, row=row)
    with decoder.open([0]) as session, draft.open([0]) as helper:
        if len(ids) > 1:
            session.extend(np.asarray([ids[:-1]], np.int32))
        while not text.full and len(text.tokens) < decoder.context + 1:
            for token in _round(session, helper, text, proposals=min(proposals, config.max_tokens - text.new - 1)):
                if text.take(token) is None:
                    return
                yield token
                if text.full:
                    return


def _round(session: Session, helper: Session, text: Choices, proposals: int) -> list[int]:
    """Tokens that are certain after one pass of the large model; at least one."""
    base = len(text.tokens)
    room = min(session._decoder.context, helper._decoder.context) - base
    proposed, chances = _propose(helper, text, max(0, min(proposals, room)))
    ids = [text.tokens[-1], *proposed]
    logits = session.extend(np.asarray([ids], np.int32), every=True)[0]
    said, accepted = text.said.copy(), []
    for step, row in enumerate(logits):
        wanted = text.sampler.distribution(text.allowed(row, ahead=step), said)
        if step == len(proposed):
            accepted.append(pick(wanted, text.sampler.uniform()))
            break
        token, offered = proposed[step], chances[step]
        if text.sampler.uniform() * offered[token] < wanted[token]:
            accepted.append(token)
            said[token] = True
            continue
        left = np.maximum(wanted - offered, 0.0)
        accepted.append(pick(left if left.sum() > 0 else wanted, text.sampler.uniform()))
        break
    session.rewind(base - 1 + len(accepted))
    helper.rewind(min(helper.length, base - 1 + len(accepted)))
    return accepted


def _propose(helper: Session, text: Choices, count: int) -> tuple[list[int], list[np.ndarray]]:
    """The draft's next tokens and the distributions they were drawn from."""
    if count == 0:
        return [], []
    proposed: list[int] = []
    chances: list[np.ndarray] = []
    said = text.said.copy()
    ids = text.tokens[helper.length :]
    for step in range(count):
        logits = helper.extend(np.asarray([ids], np.int32))[0, -1]
        chances.append(text.sampler.distribution(text.allowed(logits, ahead=step), said))
        proposed.append(pick(chances[-1], text.sampler.uniform()))
        said[proposed[-1]] = True
        ids = proposed[-1:]
    return proposed, chances
