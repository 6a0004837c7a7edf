"""The LLM worker: supervises a model's engine server and puts it behind the mesh's own typed wire. Torch-free."""

import os

# The engine is spawned by fork and exec at once, which needs none of gRPC's fork handlers; left on, they write warnings
# into the log at every start. gRPC reads this when it is first imported, which is after this line.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
# Prompts are counted one at a time: the tokenizer needs no pool of threads, which would make forks a danger.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
