"""What a model is worth on this very device: measured, kept with it, and acted upon."""
