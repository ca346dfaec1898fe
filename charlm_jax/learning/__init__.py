"""Logits to loss to new state: objective, optimizer, training steps, evaluation."""
