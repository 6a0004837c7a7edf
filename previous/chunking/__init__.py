"""Chunking of before."""
