"""One file per dialect. A route translates a request, asks a peer, and translates the answer."""
