"""``python -m bench``: what the mesh costs and gives, measured beside what it replaces, in one run on one machine.

Most figures are ratios to a baseline, because the seconds of one machine say little about another. The two sides of a
ratio take turns, round by round, and never run at once. Read in this order: `measure` (what a round is), `load` (the
load generator), `ways` (how texts get embedded), then one module a part: `gateway`, `footprint`, `embedding`, `single`,
`engines`, `cached`, `rerank`, `crossencoder`, `curve`, `memory`, `llm`, and `peers` for other servers; `report` holds
the table, the bars and the JSON, `chart` throughput over latency. The baselines are `bare` (a gateway with nothing in
it), `previous` (what the mesh replaced: as an API process that holds torch, and called directly by `inprocess`, in a
process of its own that `aside` makes) and, for language models, the engine itself. Workers that a part needs for itself
are started by `workers`.
"""
