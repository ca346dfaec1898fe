#!/usr/bin/env python3
"""Write text with NumPy and a model's FILE.safetensors and FILE.safetensors.json; TEMPERATURE is 0 if not given.

scripts/sample_numpy.py FILE.safetensors PROMPT [TEMPERATURE [LENGTH [SEED]]]
"""

import json
import sys
from pathlib import Path

import numpy as np

path, prompt, *numbers = sys.argv[1:]
temperature, length, seed = map(float, numbers + ["0", "400", "0"][len(numbers) :])
said, content = json.loads(Path(f"{path}.json").read_text()), Path(path).read_bytes()
start = 8 + int.from_bytes(content[:8], "little")
arrays = {
    name: np.frombuffer(content[start:][slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"])
    for name, entry in json.loads(content[8:start]).items()
    if name != "__metadata__"
}
characters, hard, zero = said["vocabulary"], said["gate_activation"] == "hard_sigmoid", np.zeros(said["hidden_size"])
table = arrays.get("embedding.weight", np.eye(len(characters)))
gate = (lambda x: np.clip(0.2 * x + 0.5, 0, 1)) if hard else (lambda x: 0.5 + 0.5 * np.tanh(x / 2))
random, text, unread, carry = np.random.default_rng(int(seed)), prompt, prompt, []
for _ in range(int(length)):
    if said["sampler"] == "windowed":
        unread, carry = text[-said["window"] :], []
    carry = carry or [(zero, zero)] * said["layers"]
    for character in unread:
        below = table[characters.index(character)]
        for layer, (cell, hidden) in enumerate(carry := list(carry)):
            x, h, b, c = (arrays[f"lstm.{name}_l{layer}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            i, f, g, o = np.split(x @ below + h @ hidden + b + c, 4)
            cell = gate(f) * cell + gate(i) * np.tanh(g)
            carry[layer] = cell, (below := gate(o) * np.tanh(cell))
    logits = arrays["head.weight"] @ carry[-1][1] + arrays["head.bias"]
    unread = characters[np.argmax(logits + temperature * random.gumbel(size=len(logits)))]  # the Gumbel-max trick
    text += unread
print(text)
