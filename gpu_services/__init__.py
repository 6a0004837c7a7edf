"""Chunking of documents and the state of the GPUs: two capabilities in one process."""
