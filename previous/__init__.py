"""The way back: the architecture of before, in which one process holds torch and every model and calls them directly.

What the mesh replaced, kept small: for a team that returns to it for a while, for the tests that hold the mesh against
it, and as what the benchmark compares with. The modules lie where the migration guide's "before" snippets look for them
below their own package:

    from previous.services.embedding import EmbeddingService
    from previous.services.reranking import RerankingService
    from previous.services.gpu import GPUManager
    from previous.chunking.chunkers.semantic import SemanticSplitterChunker

Models are found and checked by `inference`, as the workers do it, and computed in float32 by sentence-transformers, as
such a process does: nothing of the workers' own engines, batches or queues is in here. It is never installed with the
mesh: it runs from a checkout, in the workers' environment (``python -m previous``).
"""
