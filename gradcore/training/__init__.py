"""The training loop, its record, the monitor that watches it, and checkpoints."""
