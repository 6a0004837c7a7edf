"""The reranking worker: scores documents by how well they answer a query."""
