"""What every process of the Torch Isolation Mesh shares. Torch-free and FastAPI-free."""

import os

# gRPC's core reads this once, when it is imported. At its default it writes lines of its own form between a process's
# JSON lines: one for every failed handshake, by however rude a peer, and one for every peer that goes away.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
