"""Mutual TLS on the hops: files that are checked and read anew, credentials, who may call what, and what is wrong.

Nothing here is imported by a process that is told of no certificates, but the settings and the names of the problems.
"""
