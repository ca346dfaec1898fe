"""Character-level LSTM language models in JAX: train one, sample from it at any temperature, ablate."""

__version__ = "0.1.0"
