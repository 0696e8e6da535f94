"""Words are byte ranges of the untouched text, whatever NLTK's tokenizer rewrites."""

from __future__ import annotations

import random
import time
from pathlib import Path

import nltk
import pytest
from nltk.tokenize import NLTKWordTokenizer

from fastlstm.corpus.shards import Word
from fastlstm.errors import InputError
from fastlstm_probes.concepts import tagging
from fastlstm_probes.concepts.penn import PENN_TAGS
from fastlstm_probes.concepts.tagging import align_tokens, nltk_models, tag_text

SPACES = [" ", "\n", "\t", "\u00a0", "\u2003", "\x85", "\x1c"]
QUOTES = ['"', "'", "''", "``", "`", "“", "”", "‘", "’", "«"]
MARKS = [*".-()[]$%,:;?!*&", "..", "...", "--", "…", "—", "\u200b", "\ufeff"]
WORDS = ["a", "B", "can't", "n't", "'s", "gonna", "d'ye", "<unk>", "@-@", "é", "1,2", "3.5", "ſ", "İ", "日本", "😀"]
PIECES = [*SPACES, *QUOTES, *MARKS, *WORDS, " Hello. ", "Mr. ", "U.S. "]


def random_texts(count: int, pieces: int) -> list[str]:
    choose = random.Random(0)
    return ["".join(choose.choices(PIECES, k=choose.randint(1, pieces))) for _ in range(count)]


def covered(text: str, words: list[Word]) -> list[str]:
    """The words of a text, after checking that they are in order, disjoint and all but its whitespace."""
    data = text.encode()
    end = 0
    for word in words:
        assert end <= word.start < word.end <= len(data)
        assert data[end : word.start].decode().strip() == ""
        end = word.end
    assert data[end:].decode().strip() == ""
    return [data[word.start : word.end].decode() for word in words]


def test_alignment_agrees_with_nltks_spans_on_random_text() -> None:
    tokenizer = NLTKWordTokenizer()
    quotes = 0
    for text in random_texts(3000, 12):
        tokens = tokenizer.tokenize(text)
        spans = align_tokens(tokens, text)
        assert spans == list(tokenizer.span_tokenize(text)), text
        for token, (start, end) in zip(tokens, spans, strict=True):
            if text[start:end] != token:
                quotes += 1
                assert token in ("``", "''")
                assert text[start:end] in ('"', "``", "''")
    assert quotes > 300


@pytest.mark.usefixtures("nltk_data")
def test_words_cover_random_text() -> None:
    for text in random_texts(400, 40):
        for word in covered(text, tag_text(text)):
            assert len(word.split()) == 1


@pytest.mark.usefixtures("nltk_data")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('\n "Stop," he said.  ', ['"', "Stop", ",", '"', "he", "said", "."]),
        ("''Twice'' ``over''", ["''", "Twice", "''", "``", "over", "''"]),
        ("I can't, won't... OK?", ["I", "ca", "n't", ",", "wo", "n't", "...", "OK", "?"]),
        ("Jürgen’s crème — 5 €", ["Jürgen", "’", "s", "crème", "—", "5", "€"]),
        (" 日本語 😀\u00a0is\u2003ok .\n", ["日本語", "😀", "is", "ok", "."]),
        (" a well @-@ known <unk> , born 1 @,@ 990 ", ["awell@-@known<unk>,born1@,@990"]),
        (
            "One ends. Two begins! Mr. Gray agrees.",
            ["One", "ends", ".", "Two", "begins", "!", "Mr.", "Gray", "agrees", "."],
        ),
        ("", []),
        (" \n ", []),
    ],
)
def test_words_of_hard_texts(text: str, expected: list[str]) -> None:
    found = covered(text, tag_text(text))
    # Where NLTK cuts "@-@" is its own affair; that no byte is left out is ours.
    assert (["".join(found)] if "@-@" in text else found) == expected


@pytest.mark.usefixtures("nltk_data")
def test_tags() -> None:
    tags = [word.tag for word in tag_text('\n "The old dogs never barked," she said (twice). ')]
    assert tags == ["``", "DT", "JJ", "NNS", "RB", "VBD", ",", "''", "PRP", "VBD", "(", "RB", ")", "."]
    assert nltk_models()[2].classes <= set(PENN_TAGS)


class Forgetful:
    """A tokenizer that loses the letter z, as no version of NLTK should."""

    def tokenize(self, text: str) -> list[str]:
        return NLTKWordTokenizer().tokenize(text.replace("z", ""))


@pytest.mark.usefixtures("nltk_data")
def test_a_sentence_that_cannot_be_aligned_is_cut_at_whitespace(monkeypatch: pytest.MonkeyPatch) -> None:
    splitter, _, tagger = nltk_models()
    monkeypatch.setattr(tagging, "nltk_models", lambda: (splitter, Forgetful(), tagger))
    text = "Good cats, é. The zebra's here, é! Bye, now."
    words = ["Good", "cats", ",", "é", ".", "The", "zebra's", "here,", "é!", "Bye", ",", "now", "."]
    assert covered(text, tag_text(text)) == words


def test_alignment_refuses_what_it_would_have_to_skip() -> None:
    assert align_tokens(["a", "c"], "a b c") is None
    assert align_tokens(["a", "b"], "a b c") is None
    assert align_tokens(["a", "b", "c"], "a b") is None
    assert align_tokens(["''"], "'") is None
    assert align_tokens([], " \n") == []


def test_missing_nltk_data_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    nltk_models.cache_clear()
    with pytest.raises(InputError) as caught:
        tag_text("Hello.")
    message = str(caught.value)
    assert "\n" not in message
    assert "punkt_tab not found" in message
    assert "NLTK_DATA" in message
    assert "python -m nltk.downloader averaged_perceptron_tagger_eng punkt_tab treebank" in message


@pytest.mark.slow
@pytest.mark.usefixtures("nltk_data")
def test_words_cover_wikitext_at_speed(data_folder: Path) -> None:
    path = data_folder / "wikitext/wikitext.valid.raw.noheadings.txt"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in the data folder")
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()][:600]
    start = time.process_time()
    tagged = [tag_text(line) for line in lines]
    seconds = time.process_time() - start
    words = sum(len(covered(line, found)) for line, found in zip(lines, tagged, strict=True))
    # About 38,000 words/s were measured; a tenth of it means that models load or texts are copied per word.
    assert words / seconds > 3800
