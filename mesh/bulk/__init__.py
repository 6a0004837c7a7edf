"""Whole files of texts to vectors: ``python -m mesh.bulk embed --in docs.jsonl --out vectors.parquet``.

=============  =====================================================================================================
`reading`      the input, line by line, and how far it has been read
`batching`     lines into requests that the worker takes
`sending`      requests over several streams side by side, on the bulk lane
`waiting`      as long as a worker asks for that cannot answer now
`writing`      answers into parts
`parts`        what has been done, on disk: a run that was killed goes on from there
`job`          puts these together
=============  =====================================================================================================

Parquet and the progress bar need the extra ``bulk``.
"""
