"""The concepts that are looked for in the cells: sentiment and part of speech.

The functions below write a labelled text as a corpus folder (`fastlstm.corpus.shards`), which `fastlstm dump`
reads like any other text.
"""

from __future__ import annotations

from fastlstm_probes.concepts.labelling import LabelSummary
from fastlstm_probes.concepts.reviews import label_reviews
from fastlstm_probes.concepts.sst import label_sst
from fastlstm_probes.concepts.tagged_text import label_lines, label_treebank

__all__ = ["LabelSummary", "label_lines", "label_reviews", "label_sst", "label_treebank"]
