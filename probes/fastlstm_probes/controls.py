"""The statistics that say what a part-of-speech fit's numbers are worth, by the names that switch them on.

ngram: a baseline of the last bytes (`baselines.py`). random: classifiers on cells drawn at random (`baselines.py`).
selectivity: a control task of random labels (`selectivity.py`). mdl: the online code of the labels
(`description_length.py`). stability: of the largest weights (`stability.py`). positions: accuracy at the first and last
byte of words and of their means (`positions.py`). chance: whether a tag's best cell is chance (`chance.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from fastlstm.errors import InputError

CONTROLS = ("ngram", "random", "selectivity", "mdl", "stability", "positions", "chance")


def check_controls(names: Iterable[str]) -> tuple[str, ...]:
    """The names, each once, in the order of `CONTROLS`.

    Raises:
        InputError: a name that is not in `CONTROLS`.
    """
    wanted = list(names)
    for name in wanted:
        if name not in CONTROLS:
            raise InputError(f"controls: expected names of {', '.join(CONTROLS)}, got {name!r}")
    return tuple(name for name in CONTROLS if name in wanted)


def parse_controls(text: str) -> tuple[str, ...]:
    """Names separated by commas or spaces; "all" or "none" alone for all or none of them.

    Raises:
        InputError: an unknown name, or no name.
    """
    names = [name for name in re.split(r"[,\s]+", text) if name]
    if names == ["all"]:
        return CONTROLS
    if names == ["none"]:
        return ()
    if not names:
        raise InputError(f"controls: expected 'all', 'none', or names of {', '.join(CONTROLS)}, got {text!r}")
    return check_controls(names)
