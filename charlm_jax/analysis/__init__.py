"""Text and losses to numbers and pictures."""
