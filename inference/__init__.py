"""What the embedding and the reranking worker share: finding models, tokenizing, batching, engines.

It knows neither gRPC nor protobuf nor any service. Read it in this order: ``models`` (which files), ``card`` (what kind
of model), ``tokenizing``, ``batcher`` (the continuous batch), ``engines`` (who computes), ``loading`` (all of it put
together).
"""
