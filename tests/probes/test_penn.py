"""The grouping of Penn tags is the one of Carvalho's concept-neuron study."""

from __future__ import annotations

import re

import pytest

from fastlstm_probes.concepts.penn import (
    KEPT_TAGS,
    OTHER,
    PENN_TAGS,
    SPACE,
    TAG_MEANINGS,
    group_tag,
    tag_meaning,
)


def seed_rule(tag: str) -> str:
    """The published rule, written as the study writes it: one pattern per group, first match wins."""
    for pattern, group in (
        ("VB.*$", "VB"),
        ("JJ.*$", "JJ"),
        ("NN$|NNS$", "NN"),
        ("NNP$|NNPS$", "NNP"),
        ("RB.*$", "RB"),
    ):
        if re.match(pattern, tag):
            tag = group
            break
    kept = "( ; ) ; , ; . ; CC ; CD ; DT ; IN ; JJ ; MD ; NN ; NNP ; PRP ; RB ; TO ; VB ; SPACE"
    return tag if tag in kept.split(" ; ") else "OTHER"


@pytest.mark.parametrize("tag", [*PENN_TAGS, SPACE, OTHER, "-NONE-", "-LRB-", "X"])
def test_grouping_is_the_seeds(tag: str) -> None:
    assert group_tag(tag, group=True) == seed_rule(tag)


def test_grouping_in_full() -> None:
    members: dict[str, list[str]] = {}
    for tag in PENN_TAGS:
        members.setdefault(group_tag(tag, group=True), []).append(tag)
    assert members["VB"] == ["VB", "VBD", "VBG", "VBN", "VBP", "VBZ"]
    assert members["JJ"] == ["JJ", "JJR", "JJS"]
    assert members["NN"] == ["NN", "NNS"]
    assert members["NNP"] == ["NNP", "NNPS"]
    assert members["RB"] == ["RB", "RBR", "RBS"]
    assert "RP" in members[OTHER]
    assert "PRP$" in members[OTHER]
    assert set(members) == {*KEPT_TAGS, OTHER}


@pytest.mark.parametrize("tag", [*PENN_TAGS, SPACE])
def test_ungrouped_every_tag_is_its_own_class(tag: str) -> None:
    assert group_tag(tag, group=False) == tag


def test_every_class_has_a_meaning() -> None:
    for group in (True, False):
        for tag in [*PENN_TAGS, SPACE]:
            found = group_tag(tag, group)
            assert tag_meaning(found, group) not in ("", found) or found == "TO"
    assert tag_meaning("VB", group=True) == "verb (VB, VBD, VBG, VBN, VBP, VBZ)"
    assert tag_meaning("VB", group=False) == TAG_MEANINGS["VB"] == "verb, base form"
    assert tag_meaning("HYPH", group=False) == "HYPH"
