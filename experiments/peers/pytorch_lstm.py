"""PyTorch: the fastest ordinary use of `nn.LSTM`, which is cuDNN's on a GPU, and `nn.Linear`."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from charlm_jax.analysis.benchmark import BATCH_SIZE, VOCABULARY, WINDOW

torch = import_module("torch")


class Contender:
    """One-hot inputs, RMSprop, generation under `inference_mode`; bfloat16 by `autocast`, the parameters float32."""

    def __init__(self, hidden_size: int, precision: str, way: str, platform: str) -> None:
        in_float32 = "tf32" if precision == "tf32" else "ieee"
        torch.backends.cudnn.rnn.fp32_precision = torch.backends.cuda.matmul.fp32_precision = in_float32
        self.rounded = torch.autocast(platform, torch.bfloat16, enabled=precision == "bfloat16")
        self.place = {"device": platform}
        self.lstm = torch.nn.LSTM(VOCABULARY, hidden_size, batch_first=True, **self.place)
        self.head = torch.nn.Linear(hidden_size, VOCABULARY, **self.place)
        parameters = [*self.lstm.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.RMSprop(parameters, lr=0.01, alpha=0.9, capturable=way == "graph")
        random = np.random.default_rng(0)
        self.one_hot = torch.eye(VOCABULARY, **self.place)
        self.inputs = self.one_hot[torch.tensor(random.integers(0, VOCABULARY, (BATCH_SIZE, WINDOW)), **self.place)]
        self.targets = torch.tensor(random.integers(0, VOCABULARY, BATCH_SIZE), **self.place)
        self.step = self._capture() if way == "graph" else self._step

    def _step(self) -> Any:
        self.optimizer.zero_grad()
        with self.rounded:
            states, _ = self.lstm(self.inputs)
            loss = torch.nn.functional.cross_entropy(self.head(states[:, -1]), self.targets)
        loss.backward()
        self.optimizer.step()
        return loss

    def _capture(self) -> Callable[[], Any]:
        """Return a step that is one CUDA graph, captured after a few steps on the same stream, as PyTorch asks."""
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, stream=stream):
            loss = self._step()

        def replay() -> Any:
            graph.replay()
            return loss

        return replay

    def train(self, count: int) -> None:
        """Take training steps on one batch that is already a tensor."""
        losses = [self.step() for _ in range(count)]
        losses[-1].item()  # waits for the GPU

    def windowed(self, count: int) -> None:
        """Generate characters, re-reading the last window for each."""
        with torch.inference_mode(), self.rounded:
            text = torch.zeros(1, WINDOW, dtype=torch.long, **self.place)
            for _ in range(count):
                states, _ = self.lstm(self.one_hot[text])
                character = torch.multinomial(torch.softmax(self.head(states[:, -1]), -1), 1)
                text = torch.cat([text[:, 1:], character], 1)
            text.cpu()

    def stateful(self, count: int) -> None:
        """Generate characters, carrying the state on."""
        with torch.inference_mode(), self.rounded:
            character, carry = torch.zeros(1, 1, dtype=torch.long, **self.place), None
            for _ in range(count):
                states, carry = self.lstm(self.one_hot[character], carry)
                character = torch.multinomial(torch.softmax(self.head(states[:, -1]), -1), 1)
            character.cpu()
