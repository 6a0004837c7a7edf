"""Documents into chunks.

A request's way: `servicer` (wire) → `service` (rules, spool, admission) → `pool` and `child_process` (a sandboxed
process each) → `child` (inside it) → `kinds`, `archive` (is it what it says, is it safe) → `conversion`,
`pdf_structure` (docling) → `mesh.docling.chunker` (chunks, window by window). The worker's own process never parses a
document and never imports docling.
"""
