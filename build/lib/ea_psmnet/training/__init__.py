"""Training: settings, data order, the loop and its checkpoints."""
