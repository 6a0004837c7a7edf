"""The state of the machine's GPUs: `servicer` (wire) → `reader` (off the event loop) → `nvml` (the driver)."""
