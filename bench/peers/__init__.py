"""Other servers of embeddings, measured as the mesh is: the same model, texts and load, in the same run.

Each has an environment of its own, made from PyPI by ``./scripts/bench.sh --install-peers``, with its versions pinned
in ``ops/constraints/peer-*.txt``. `catalog` says how each is started and asked; `litserve_app` and `bentoml_app` are
what a user of those frameworks writes, with their batching on.
"""
