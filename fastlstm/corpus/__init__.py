"""Text for byte-level models: raw reviews, WikiText or a grammar become folders of verified shards."""

from fastlstm.corpus.shards import Corpus, CorpusWriter, Document, Manifest, Shard, ShardEntry, Source, Word

__all__ = ["Corpus", "CorpusWriter", "Document", "Manifest", "Shard", "ShardEntry", "Source", "Word"]
