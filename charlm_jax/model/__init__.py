"""Ids to logits: the recurrence, the network around it, its initial parameters."""
