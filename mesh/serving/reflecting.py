"""gRPC reflection under both of its names, so that old and new tools list and call the services."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
import grpc.aio
from grpc_reflection.v1alpha import reflection, reflection_pb2

V1_NAME = "grpc.reflection.v1.ServerReflection"


def offer_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Let clients ask ``server`` for its services and their messages.

    grpcio-reflection ships ``v1alpha`` only; ``v1`` has the same messages and methods under another package name, so
    the same servicer answers both.
    """
    names = [*services, reflection.SERVICE_NAME, V1_NAME]
    reflection.enable_server_reflection(names, server)
    servicer = reflection.aio.ReflectionServicer(names)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    generic = grpc.method_handlers_generic_handler(V1_NAME, {"ServerReflectionInfo": handler})
    server.add_generic_rpc_handlers((generic,))
