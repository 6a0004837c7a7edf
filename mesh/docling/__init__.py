"""Cuts docling's documents into chunks: for the chunking worker, and for callers who chunk in their own process.

`chunks` (what comes out) and `tokens` (how long it is) need no docling; `chunker` needs the extra ``docling``. None of
them needs torch or transformers.
"""
