"""Collects what a report shows about a run. The run directory is treated as untrusted input."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from charlm_jax.analysis.reader import Reading, Text, unknown_words
from charlm_jax.analysis.report import Epoch, Picture, Run
from charlm_jax.analysis.text_statistics import distinct_words
from charlm_jax.choices import Sampler
from charlm_jax.errors import InputError
from charlm_jax.generation.surprisal import surprisal
from charlm_jax.model.initializers import parameter_count
from charlm_jax.runs.devices import keep_compiled_programs
from charlm_jax.runs.directory import RunDirectory
from charlm_jax.runs.records import read_records
from charlm_jax.runs.trained import LoadedRun, load_text, read_run, snapshot_shapes

_LONGEST = 4000  # characters kept of a text, and of a prompt
_PIECE = 1 << 22  # characters of the training text decoded at a time
_LIKELIEST = 3  # likeliest characters named at each place in a text


def gather(run: RunDirectory, name: str, *, characters: int, picture_bytes: int) -> Run:
    """Collect what a report shows about a run; its notes say which texts and pictures are missing, and why.

    Args:
        run: the run's directory.
        name: what the report calls it.
        characters: budget for texts and prompts; the texts of one prompt per file are always kept.
        picture_bytes: budget for pictures.

    Raises:
        InputError: the configuration, the provenance or the records cannot be read.
    """
    notes: list[str] = []
    texts = _texts(run, characters, notes)
    step = None
    if texts:
        try:
            known = _known_words(run)
            texts = [dataclasses.replace(text, unknown=unknown_words(text.prompt, text.text, known)) for text in texts]
        except InputError as error:
            notes.append(f"Unknown words are not marked, as the training text is unavailable: {error}.")
        try:
            loaded = read_run(run)
            texts, step = _read(loaded, texts), loaded.step
        except InputError as error:
            notes.append(f"The texts are not shaded, as the model is unavailable: {error}.")
    chosen = run.configuration().to_json()
    chosen |= {name: _base(chosen[name]) for name in ("corpus", "init_from")}
    return Run(
        name=name,
        configuration={name.replace("_", " "): value for name, value in chosen.items()},
        provenance=_provenance(run.provenance()),
        parameters=parameter_count(snapshot_shapes(run).model),
        epochs=_epochs(run),
        pictures=pictures_of(run.figures.glob("*.svg"), picture_bytes, notes),
        texts=texts,
        step=step,
        notes=notes,
    )


def _provenance(record: dict[str, Any]) -> dict[str, object]:
    corpus, source = record["corpus"], record.get("init_from")
    command = record.get("command")
    facts = {
        "commit": record.get("commit"),
        "command": re.sub(r"(?<!\S)/\S*/", "", command) if isinstance(command, str) else command,
        **{f"{library} version": version for library, version in record["versions"].items()},
        "device": record.get("device_kind"),
        "processor": record.get("processor"),
        "devices": record.get("device_count"),
        "corpus": _base(corpus.get("name")),
        "characters": corpus.get("characters"),
        "distinct characters": len(corpus["vocabulary"]),
        "sha256": corpus["sha256"],
        "started from": _base(source.get("run")) if isinstance(source, dict) else None,
    }
    return {name: fact if isinstance(fact, str | int | float | None) else "unreadable" for name, fact in facts.items()}


def _base(place: object) -> object:
    """Return the last part of a path: the readers of a page need not know where it lies."""
    return Path(place).name if isinstance(place, str) else place


def _epochs(run: RunDirectory) -> list[Epoch]:
    window, epochs = run.configuration().window, dict[int, Epoch]()
    held_out = {record["epoch"]: float(record["held_out_loss"]) for record in read_records(run.metrics, "evaluation")}
    for record in read_records(run.metrics, "epoch"):
        epoch, seconds, windows = record["epoch"], record["seconds"], record.get("windows")
        if not (0 < epoch < 2**31 and (seconds is None or 0 <= seconds < 2**31)):
            raise InputError(f"{str(run.metrics)!r} has an epoch {epoch} of {seconds} seconds; remove its line")
        epochs[epoch] = Epoch(
            epoch,
            training_loss=float(record["training_loss"]),
            held_out_loss=held_out.get(epoch),
            seconds=None if seconds is None else float(seconds),
            characters=window * windows if isinstance(windows, int) and 0 <= windows < 2**31 else 0,
        )
    return [epochs[epoch] for epoch in sorted(epochs)]


def _texts(run: RunDirectory, characters: int, notes: list[str]) -> list[Text]:
    """Return as many texts as fit, an equal share per file, preferring the newest epochs and the first prompts."""
    paths = [path for path in (run.samples, run.figures / "temperature_samples.jsonl") if path.is_file()]
    kept = []
    for path in paths:
        if path.is_symlink():
            notes.append(f"The texts of {path.name} are left out, because it is a link.")
            continue
        records = read_records(path)
        if any(max(len(record["prompt"]), len(record["text"])) > _LONGEST for record in records):
            notes.append(f"Of prompts only the last, of texts only the first {_LONGEST:,} characters are shown.")
        # The texts after one prompt in one epoch are kept or left out together.
        groups: dict[tuple[int, str], list[Text]] = {}
        for record in sorted(records, key=lambda record: -record["epoch"]):
            text = _text(path.name, record, run.configuration().sampler)
            groups.setdefault((text.epoch, text.prompt), []).append(text)
        lengths = np.cumsum([sum(len(text.prompt) + len(text.text) for text in group) for group in groups.values()])
        fitting = max(1, int(np.searchsorted(lengths, characters // len(paths), side="right")))
        here = [text for group in list(groups.values())[:fitting] for text in group]
        if len(here) < len(records):
            left = "the newest epochs and first prompts"
            notes.append(f"{len(here):,} of {len(records):,} texts in {path.name} are shown, those of {left}.")
        kept += here
    return kept


def _text(source: str, record: dict[str, Any], sampler: Sampler) -> Text:
    said: Sampler | None = record.get("sampler")
    return Text(
        source=source,
        epoch=record["epoch"],
        temperature=float(record["temperature"]),
        prompt=record["prompt"][-_LONGEST:],
        text=record["text"][:_LONGEST],
        sampler=said if said is not None and said in get_args(Sampler) else sampler,
        reading=None,
        unknown=None,
    )


def _known_words(run: RunDirectory) -> frozenset[str]:
    (training, _), vocabulary = load_text(run), run.vocabulary()
    return distinct_words(
        vocabulary.decode(training[start : start + _PIECE]) for start in range(0, len(training), _PIECE)
    )


def _read(run: LoadedRun, texts: Sequence[Text]) -> list[Text]:
    """Return the texts, each with the model's reading of it unless it has a character that the model does not know."""
    keep_compiled_programs()
    known, done = set(run.vocabulary.characters), list(texts)
    alike: dict[tuple[Sampler, int], list[int]] = {}  # the places of the texts that are read together
    for place, text in enumerate(texts):
        if text.text and known.issuperset(text.prompt + text.text):
            alike.setdefault((text.sampler, len(text.text)), []).append(place)
    for (sampler, _), places in alike.items():
        found = surprisal(
            run.model,
            [run.vocabulary.encode(texts[place].prompt) for place in places],
            np.stack([run.vocabulary.encode(texts[place].text) for place in places]),
            sampler=sampler,
            window=run.configuration.window,
            top=_LIKELIEST,
        )
        for place, nats, likeliest, probabilities in zip(places, *found, strict=True):
            reading = Reading(nats, run.vocabulary.decode(likeliest.ravel()), probabilities)
            done[place] = dataclasses.replace(texts[place], reading=reading)
    return done


def pictures_of(paths: Iterable[Path], room: int, notes: list[str]) -> list[Picture]:
    """Return the SVG files that fit into `room` bytes, ordered by path; note what is left out."""
    pictures = []
    for path in sorted(paths):
        if path.is_symlink() or not path.is_file():
            notes.append(f"The figure {path.name} is left out: it is a link or not a file.")
        elif (size := path.stat().st_size) > room:
            notes.append(f"The figure {path.name} is left out: its {size:,} bytes exceed the {room:,} left.")
        else:
            pictures.append(Picture(path.name, path.read_bytes()))
            room -= size
    return pictures
