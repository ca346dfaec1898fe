#!/usr/bin/env python3
"""Write text with NumPy and a model's FILE.safetensors and FILE.safetensors.json."""

import argparse
import json
from pathlib import Path

import numpy as np

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("file", help="FILE.safetensors")
parser.add_argument("prompt", help="text to continue")
for name, kind, default in (("temperature", float, 0), ("length", int, 400), ("seed", int, 0)):
    parser.add_argument(name, type=kind, nargs="?", default=default, help=f"{default} if not given")
given = parser.parse_args()
try:
    said, content = json.loads(Path(f"{given.file}.json").read_text()), Path(given.file).read_bytes()
except OSError as error:
    parser.error(f"{error.filename!r}: {error.strerror}; name a file that scripts/run convert has written")
start = 8 + int.from_bytes(content[:8], "little")
arrays = {
    name: np.frombuffer(content[start:][slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"])
    for name, entry in json.loads(content[8:start]).items()
    if name != "__metadata__"
}
characters, hard, zero = said["vocabulary"], said["gate_activation"] == "hard_sigmoid", np.zeros(said["hidden_size"])
if unknown := "".join(sorted(set(given.prompt) - set(characters))):
    parser.error(f"the model does not know the prompt's {unknown!r}, only {characters!r}")
table = arrays.get("embedding.weight", np.eye(len(characters)))
gate = (lambda x: np.clip(0.2 * x + 0.5, 0, 1)) if hard else (lambda x: 0.5 + 0.5 * np.tanh(x / 2))
random, text, unread, carry = np.random.default_rng(given.seed), given.prompt, given.prompt, []
for _ in range(given.length):
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
    unread = characters[np.argmax(logits + given.temperature * random.gumbel(size=len(logits)))]  # the Gumbel-max trick
    text += unread
print(text)
