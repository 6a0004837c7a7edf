"""Chunking of documents and the state of the GPUs: two capabilities in one process."""

import os

# gRPC reads this when it is imported. Its handlers are for a fork that goes on in Python; ours executes another program
# at once, and each would write a warning.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
