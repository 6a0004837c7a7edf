"""The services of before: objects in the caller's own process."""
