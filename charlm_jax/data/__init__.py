"""Text to ids to batches of windows."""
