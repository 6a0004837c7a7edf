"""What every process of the Torch Isolation Mesh shares. Torch-free and FastAPI-free."""
