"""The mesh's version: read by the package's metadata, every Info RPC and the gateway."""

VERSION = "0.1.0"
