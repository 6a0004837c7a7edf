"""The torch-free front door: HTTP dialects that clients already speak, answered by workers over gRPC."""
