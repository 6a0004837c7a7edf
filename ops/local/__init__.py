"""The mesh on one machine: install, start, watch, stop.

Standard library only, because it runs before anything is installed. Read in this order: `layout` (where things lie),
`topology` (which processes, on which ports), `environments` (installing), `models`, `supervisor` (keeping them alive),
`status` (what the gateway says), and then the commands `start`, `stop`, `health` and `checks`.
"""
