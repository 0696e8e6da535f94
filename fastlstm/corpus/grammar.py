"""A corpus with a planted truth: generated reviews with a sentiment and the exact Penn tag of every word.

Synthetic text, for the demo and as the ground truth on which probes are tested. Review i of a seed
depends on the seed and i alone, so any size, order and number of processes give the same reviews. The
rules are in `grammar_rules.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.corpus.grammar_rules import BRANDS, PRODUCTS, RULES

PREPROCESSING = "grammar-1"
_DRAWS = 256  # uniform numbers set aside per review; the longest needs about 100
_COUNTER_STEPS = _DRAWS // 4  # Philox makes four per step

# Each alternative: terminals (int) and further Alternatives.
Alternatives = list[tuple[Any, ...]]


@dataclass(frozen=True)
class GrammarBlock:
    """Reviews first .. first + n - 1 of a seed.

    text: bytes, one review after another, each as the model reads it. offset: int64 (n+1,). label:
    float32 (n,), 1 positive, 0 negative. word_start, word_end: int64 (W,), half-open byte ranges in
    `text`; word_tag: uint8 (W,), index into `tagset()`. Review r holds the words
    word_offset[r]:word_offset[r+1].
    """

    first: int
    text: bytes
    offset: npt.NDArray[np.int64]
    label: npt.NDArray[np.float32]
    word_offset: npt.NDArray[np.int64]
    word_start: npt.NDArray[np.int64]
    word_end: npt.NDArray[np.int64]
    word_tag: npt.NDArray[np.uint8]


class _Grammar:
    """The rules, compiled: terminals numbered, one graph of alternatives per sentiment."""

    def __init__(self) -> None:
        rules = _parse(RULES)
        rules |= {"PRODUCT": [("", ["PRODUCT/NN"])], "PRODUCTS": [("", ["PRODUCTS/NNS"])]}
        rules |= {"BRAND": [("", ["BRAND/NNP"])]}
        named = [f"{one}/NN" for one, _ in PRODUCTS], [f"{many}/NNS" for _, many in PRODUCTS]
        terminals = {part for rule in rules.values() for _, parts in rule for part in parts if "/" in part}
        self.terminals = sorted(terminals.union(*named, (f"{brand}/NNP" for brand in BRANDS), ["an/DT"]))
        number = {terminal: i for i, terminal in enumerate(self.terminals)}
        words, tags = zip(*(terminal.rsplit("/", 1) for terminal in self.terminals), strict=True)
        self.tagset = tuple(sorted(set(tags)))
        self.tag = np.array([self.tagset.index(tag) for tag in tags], np.uint8)
        joined = {word for word in words if word in ".,!)" or "'" in word}
        plain = [word if word in joined else " " + word for word in words]
        # Three spellings of each terminal: as it is, at the start of a sentence, after an opening parenthesis.
        capital = [" " + word[0].upper() + word[1:] for word in words]
        self.spelling = [text.encode("ascii") for text in (*plain, *capital, *words)]
        self.ends_sentence = np.array([tag == "." for tag in tags])
        self.opens = np.array([word == "(" for word in words])
        self.vowel = np.array([word[0] in "aeiou" for word in words])
        self.a, self.an = number["a/DT"], number["an/DT"]
        self.fixed = {  # terminal that stands for the review's own product or brand -> the choices
            number["PRODUCT/NN"]: np.array([number[name] for name in named[0]]),
            number["PRODUCTS/NNS"]: np.array([number[name] for name in named[1]]),
            number["BRAND/NNP"]: np.array([number[f"{brand}/NNP"] for brand in BRANDS]),
        }
        self.review = tuple(_compile(rules, number, sign)["REVIEW"] for sign in ("-", "+"))


def _parse(rules: str) -> dict[str, list[tuple[str, list[str]]]]:
    """Name -> alternatives (sign "+", "-" or "", parts), one repeated as often as it weighs."""
    parsed: dict[str, list[tuple[str, list[str]]]] = {}
    for line in re.sub(r"\n +", " ", rules).split("\n"):
        if words := re.fullmatch(r"([A-Z]+)/(\S+) = (.+)", line):
            name, tag, listed = words.groups()
            parsed[name] = [("", [f"{word}/{tag}"]) for word in listed.split()]
        elif rule := re.fullmatch(r"([A-Z]+): (.+)", line):
            parsed[rule[1]] = []
            for alternative in rule[2].split(" | "):
                parts = alternative.split()
                weight = int(parts.pop()[1:]) if re.fullmatch(r"\*\d+", parts[-1]) else 1
                sign = parts.pop(0) if parts[0] in "+-" else ""
                parsed[rule[1]] += [(sign, parts)] * weight
    return parsed


def _compile(
    rules: dict[str, list[tuple[str, list[str]]]], number: dict[str, int], sign: str
) -> dict[str, Alternatives]:
    """The rules of one sentiment as lists that point to each other."""
    compiled: dict[str, Alternatives] = {name: [] for name in rules}
    for name, alternatives in rules.items():
        for own_sign, parts in alternatives:
            if own_sign in ("", sign):
                compiled[name].append(tuple(number[p] if "/" in p else compiled[p] for p in parts))
    return compiled


@cache
def _grammar() -> _Grammar:
    return _Grammar()


def tagset() -> tuple[str, ...]:
    """The Penn tags that occur, sorted; `word_tag` indexes them."""
    return _grammar().tagset


def generate(seed: int, first: int, count: int) -> GrammarBlock:
    """Reviews first .. first + count - 1 of a seed (0 <= seed < 2**64)."""
    grammar = _grammar()
    philox = np.random.Philox(key=seed, counter=first * _COUNTER_STEPS)
    # Columns: 0 sentiment, 1 product, 2 brand, then one number per choice among alternatives.
    random = np.random.Generator(philox).random((count, _DRAWS))
    label = (random[:, 0] < 0.5).astype(np.int64)
    tokens: list[int] = []
    ends = np.empty(count, np.int64)
    for r in range(count):
        _expand(grammar.review[label[r]], iter(random[r, 3:].tolist()), tokens)
        ends[r] = len(tokens)

    token = np.array(tokens, np.int64)
    word_offset = np.concatenate([np.zeros(1, np.int64), ends])
    review = np.repeat(np.arange(count), np.diff(word_offset))
    for terminal, choices in grammar.fixed.items():
        at = np.flatnonzero(token == terminal)
        column = 2 if len(choices) == len(BRANDS) else 1
        token[at] = choices[(random[review[at], column] * len(choices)).astype(np.int64)]
    a = np.flatnonzero(token == grammar.a)
    token[a[grammar.vowel[token[a + 1]]]] = grammar.an

    before = np.concatenate([token[-1:], token[:-1]])
    first_word = grammar.ends_sentence[before]
    first_word[word_offset[:-1]] = True
    spelling = token + len(grammar.terminals) * np.where(first_word, 1, np.where(grammar.opens[before], 2, 0))
    pieces = [grammar.spelling[s] for s in spelling.tolist()]
    length = np.array([len(piece) for piece in pieces], np.int64)
    # Every review has a newline before and after: words of review r stand 2 r + 1 bytes further on.
    end = np.cumsum(length) + 2 * review + 1
    has_space = np.array([piece[:1] == b" " for piece in pieces])
    offset = np.concatenate([np.zeros(1, np.int64), end[ends - 1] + 1])
    text = b"".join(b"\n" + b"".join(pieces[start:stop]) + b"\n" for start, stop in pairwise(word_offset.tolist()))
    return GrammarBlock(
        first=first,
        text=text,
        offset=offset,
        label=label.astype(np.float32),
        word_offset=word_offset,
        word_start=end - length + has_space,
        word_end=end,
        word_tag=grammar.tag[token],
    )


def _expand(alternatives: Alternatives, draws: Iterator[float], tokens: list[int]) -> None:
    for part in alternatives[int(next(draws) * len(alternatives))]:
        if part.__class__ is int:
            tokens.append(part)
        else:
            _expand(part, draws, tokens)
