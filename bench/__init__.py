"""``python -m bench``: what the mesh costs and gives, measured beside what it replaces, in one run on one machine.

Most figures are ratios to a baseline, because the seconds of one machine say little about another. The two sides of a
ratio take turns, round by round, and never run at once. Read in this order: `measure` (what a round is),
`load` (the load generator), then one module a part: `gateway`, `footprint`, `embedding`, `rerank`, `llm`; `report`
holds the table, the picture and the JSON. The baselines are `bare` (a gateway with nothing in it), `monolith` (an API
process that holds torch), `inprocess` (the model called directly) and, for language models, the engine itself.
"""
