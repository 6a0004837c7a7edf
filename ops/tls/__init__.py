"""Certificates for development: an authority, and one certificate for each process that it signs."""
