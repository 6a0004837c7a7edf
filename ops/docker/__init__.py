"""The mesh in containers: the images' own build steps, and starting and stopping them through Compose.

Standard library only, like `ops.local`: it runs on the host's Python before anything is installed.
"""
