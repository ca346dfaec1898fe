"""PyTorch: `nn.LSTM` and `nn.Linear`, its fastest ordinary use."""

from importlib import import_module

import numpy as np
from worker import BATCH_SIZE, VOCABULARY, WINDOW

torch = import_module("torch")


class Contender:
    """One-hot inputs, RMSprop, generation under `inference_mode`."""

    def __init__(self, hidden_size: int) -> None:
        self.lstm = torch.nn.LSTM(VOCABULARY, hidden_size, batch_first=True)
        self.head = torch.nn.Linear(hidden_size, VOCABULARY)
        parameters = [*self.lstm.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.RMSprop(parameters, lr=0.01, alpha=0.9)
        random = np.random.default_rng(0)
        self.one_hot = torch.eye(VOCABULARY)
        self.inputs = self.one_hot[torch.tensor(random.integers(0, VOCABULARY, (BATCH_SIZE, WINDOW)))]
        self.targets = torch.tensor(random.integers(0, VOCABULARY, BATCH_SIZE))

    def train(self, count: int) -> None:
        """Take training steps on one batch that is already a tensor."""
        for _ in range(count):
            self.optimizer.zero_grad()
            states, _ = self.lstm(self.inputs)
            loss = torch.nn.functional.cross_entropy(self.head(states[:, -1]), self.targets)
            loss.backward()
            self.optimizer.step()
            loss.item()

    def windowed(self, count: int) -> None:
        """Generate characters, re-reading the last window for each."""
        with torch.inference_mode():
            text = torch.zeros(1, WINDOW, dtype=torch.long)
            for _ in range(count):
                states, _ = self.lstm(self.one_hot[text])
                character = torch.multinomial(torch.softmax(self.head(states[:, -1]), -1), 1)
                text = torch.cat([text[:, 1:], character], 1)

    def stateful(self, count: int) -> None:
        """Generate characters, the state carried on."""
        with torch.inference_mode():
            character, carry = torch.zeros(1, 1, dtype=torch.long), None
            for _ in range(count):
                states, carry = self.lstm(self.one_hot[character], carry)
                character = torch.multinomial(torch.softmax(self.head(states[:, -1]), -1), 1)
