"""Logits and a key to text."""
