"""The Penn Treebank tags (Marcus et al. 1993) and how Carvalho's concept-neuron study (2018) groups them.

Stored texts keep the raw tags; grouping is applied when a probe is fitted, so that one dump serves both.
"""

from __future__ import annotations

SPACE = "SPACE"
"""The class of every byte that no word covers."""
OTHER = "OTHER"
"""The class of every tag outside KEPT_TAGS, when tags are grouped."""

KEPT_TAGS: tuple[str, ...] = (
    "(", ")", ",", ".", "CC", "CD", "DT", "IN", "JJ", "MD", "NN", "NNP", "PRP", "RB", "TO", "VB",
)  # fmt: skip
"""The tags that have a class of their own when tags are grouped, in the order of Carvalho's tables."""

TAG_MEANINGS: dict[str, str] = {
    "#": "pound sign",
    "$": "dollar sign",
    "''": "closing quotation mark",
    "(": "opening bracket",
    ")": "closing bracket",
    ",": "comma",
    ".": "sentence end",
    ":": "colon, semicolon, dash or ellipsis",
    "CC": "coordinating conjunction",
    "CD": "cardinal number",
    "DT": "determiner",
    "EX": "existential there",
    "FW": "foreign word",
    "IN": "preposition or subordinating conjunction",
    "JJ": "adjective",
    "JJR": "adjective, comparative",
    "JJS": "adjective, superlative",
    "LS": "list item marker",
    "MD": "modal verb",
    "NN": "noun, singular or mass",
    "NNP": "proper noun, singular",
    "NNPS": "proper noun, plural",
    "NNS": "noun, plural",
    "PDT": "predeterminer",
    "POS": "possessive ending",
    "PRP": "personal pronoun",
    "PRP$": "possessive pronoun",
    "RB": "adverb",
    "RBR": "adverb, comparative",
    "RBS": "adverb, superlative",
    "RP": "particle",
    "SYM": "symbol",
    "TO": "to",
    "UH": "interjection",
    "VB": "verb, base form",
    "VBD": "verb, past tense",
    "VBG": "verb, gerund or present participle",
    "VBN": "verb, past participle",
    "VBP": "verb, present, not third person singular",
    "VBZ": "verb, present, third person singular",
    "WDT": "wh-determiner",
    "WP": "wh-pronoun",
    "WP$": "possessive wh-pronoun",
    "WRB": "wh-adverb",
    "``": "opening quotation mark",
}
"""Every tag that NLTK's tagger and its treebank sample know, with its meaning."""

PENN_TAGS: tuple[str, ...] = tuple(TAG_MEANINGS)
"""The tagset of a text that is tagged here: word_tag holds indices into this order."""

GROUP_MEANINGS: dict[str, str] = {
    "JJ": "adjective (JJ, JJR, JJS)",
    "NN": "noun (NN, NNS)",
    "NNP": "proper noun (NNP, NNPS)",
    "RB": "adverb (RB, RBR, RBS)",
    "VB": "verb (VB, VBD, VBG, VBN, VBP, VBZ)",
    OTHER: "any other tag",
    SPACE: "between words",
}
"""What a class means where grouping makes it wider than the tag it is named after."""


def group_tag(tag: str, group: bool) -> str:
    """The class of a raw Penn tag.

    With `group`, as in Carvalho's `concept_neuron.py` (2018): every VB* is VB, JJ* is JJ, RB* is RB, NNS is
    NN, NNPS is NNP, and what is then not in KEPT_TAGS is OTHER. Without `group` every tag is its own class.
    SPACE stays SPACE in both.
    """
    if not group or tag == SPACE:
        return tag
    if tag[:2] in ("VB", "JJ", "RB"):
        tag = tag[:2]
    elif tag == "NNS":
        tag = "NN"
    elif tag == "NNPS":
        tag = "NNP"
    return tag if tag in KEPT_TAGS else OTHER


def tag_meaning(tag: str, group: bool) -> str:
    """A few words on a class, for a legend; a tag outside the Penn set stands for itself."""
    if tag in (SPACE, OTHER) or (group and tag in GROUP_MEANINGS):
        return GROUP_MEANINGS[tag]
    return TAG_MEANINGS.get(tag, tag)
