"""Lower case, a block of a text at a time."""

from collections.abc import Iterable, Iterator

_SIGMA = "\u03a3"


def lowercase_blocks(blocks: Iterable[str]) -> Iterator[str]:
    """Lower-case a text; together the blocks are what `str.lower` makes of the whole.

    One character depends on others: a capital sigma becomes a final one where a word ends with it (The Unicode
    Standard, section 3.13, Final_Sigma). So a sigma waits for what decides that, and a block knows whether it begins
    inside a word.
    """
    before, waiting = "", ""
    for block in blocks:
        text = waiting + block
        end = _decided(text)
        text, waiting = text[:end], text[end:]
        if text:
            # What comes next is a sigma, which a letter stands for here, or has no say.
            yield (before + text + "a").lower()[len(before) : -1]
            # Characters before white space have no say in what comes after it.
            word = (before + text).rpartition("\n")[2].rpartition(" ")[2]
            before = "a" if (word + _SIGMA).lower().endswith("\u03c2") else ""
    if waiting:
        yield (before + waiting).lower()[len(before) :]


def _decided(text: str) -> int:
    """Return up to where the lower case of a text does not depend on what comes after it."""
    last = text.rfind(_SIGMA)
    if last < 0:
        return len(text)
    after = text[last + 1 :]
    is_open = f"a{_SIGMA}{after}".lower()[1] != f"a{_SIGMA}{after}a".lower()[1]
    return last if is_open else len(text)
