"""Part-of-speech tags for the untouched bytes of a text, by NLTK's sentence splitter, tokenizer and tagger.

NLTK's tokenizer rewrites `"` to two backquotes or two apostrophes, and joining its tokens again loses the
spacing; a model must not read such a text. Here the tokens are only used to tag, and every word is a byte
range of the text as it came.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Protocol

from fastlstm.corpus.shards import Word
from fastlstm.errors import InputError

REWRITTEN_QUOTES = ("``", "''")
SOURCES_OF_A_QUOTE = ("``", "''", '"')


class SentenceSplitter(Protocol):
    def span_tokenize(self, text: str) -> Iterator[tuple[int, int]]: ...


class WordTokenizer(Protocol):
    def tokenize(self, text: str) -> list[str]: ...


class Tagger(Protocol):
    def tag(self, tokens: Sequence[str]) -> list[tuple[str, str]]: ...


def nltk_data_missing(error: LookupError) -> InputError:
    """The one-line error for a resource that NLTK did not find; NLTK's own message is 20 lines."""
    found = re.search(r"Resource\s+(?:\x1b\[\d+m)?'?([\w/.]+)", str(error))
    resource = found.group(1) if found else "a resource"
    return InputError(
        f"NLTK data: {resource} not found; set NLTK_DATA to the folder that holds it, or run "
        "`python -m nltk.downloader averaged_perceptron_tagger_eng punkt_tab treebank`"
    )


@functools.cache
def nltk_models() -> tuple[SentenceSplitter, WordTokenizer, Tagger]:
    """NLTK's English models, loaded once (0.3 s).

    Raises InputError if the data of `punkt_tab` or `averaged_perceptron_tagger_eng` is not there.
    """
    # Imported here: nltk takes about a second, which `fastlstm-probes --help` must not.
    from nltk.tag.perceptron import PerceptronTagger
    from nltk.tokenize import NLTKWordTokenizer, PunktTokenizer

    try:
        return PunktTokenizer("english"), NLTKWordTokenizer(), PerceptronTagger(lang="eng")
    except LookupError as error:
        raise nltk_data_missing(error) from error


def align_tokens(tokens: Sequence[str], sentence: str) -> list[tuple[int, int]] | None:
    """Where the tokens of a sentence stand in it: half-open character ranges, one per token.

    Nothing but whitespace may lie between tokens, so that no character is silently without a word; None if
    the tokens do not cover the sentence so. A token that is a rewritten quotation mark stands for any of the
    marks that NLTK rewrites. NLTK's own `span_tokenize` gives the same ranges (on 60,000 random strings of
    quotation marks, contractions and odd spaces) but would skip characters that it cannot place.
    """
    spans = []
    point = 0
    for token in tokens:
        while point < len(sentence) and sentence[point].isspace():
            point += 1
        forms = (token, *SOURCES_OF_A_QUOTE) if token in REWRITTEN_QUOTES else (token,)
        for form in forms:
            if sentence.startswith(form, point):
                spans.append((point, point + len(form)))
                point += len(form)
                break
        else:
            return None
    return None if sentence[point:].strip() else spans


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Half-open character ranges of the sentences; each runs up to the next, so that they cover the whole
    text."""
    splitter, _, _ = nltk_models()
    starts = [start for start, _ in splitter.span_tokenize(text)]
    return list(itertools.pairwise([0, *starts[1:], len(text)]))


def tag_text(text: str) -> list[Word]:
    """Every word of a text with its Penn tag, in order.

    Every character that is not whitespace is in exactly one word. The ranges are half-open byte offsets into
    `text.encode("utf-8")`. In a sentence whose tokens cannot be placed, the words are its runs of characters
    that are not whitespace.

    Raises InputError if NLTK's data is missing. About 38,000 words per second on one core.
    """
    _, tokenizer, tagger = nltk_models()
    words = []
    byte, char = 0, 0  # the byte offset of character `char`
    for sentence_start, sentence_end in sentence_spans(text):
        sentence = text[sentence_start:sentence_end]
        tokens = tokenizer.tokenize(sentence)
        spans = align_tokens(tokens, sentence)
        if spans is None:
            spans = [match.span() for match in re.finditer(r"\S+", sentence)]
            tokens = [sentence[start:end] for start, end in spans]
        for (start, end), (_, tag) in zip(spans, tagger.tag(tokens), strict=True):
            start, end = sentence_start + start, sentence_start + end
            word_start = byte + len(text[char:start].encode())
            byte, char = word_start + len(text[start:end].encode()), end
            words.append(Word(word_start, byte, tag))
    return words
