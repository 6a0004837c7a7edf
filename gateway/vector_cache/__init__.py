"""Vectors that were computed before, in front of the embedding worker.

::

    request ─▶ served ─▶ keys ─▶ store ─▶ flights ─▶ worker
               which     model,   memory   one
               model     options, or       computation
               now       text     Redis    per text

`embedder.CachedEmbedder` is an `Embedder` like the client that it wraps, and the only one who knows the others.
"""
