"""Lower-casing a text block by block."""

from collections.abc import Iterable, Iterator

_SIGMA = "\u03a3"


def lowercase_blocks(blocks: Iterable[str]) -> Iterator[str]:
    """Lower-case a text block by block; joined, the blocks equal `str.lower` of the whole text.

    One character depends on its neighbours: a capital sigma becomes a final sigma at the end of a word (The Unicode
    Standard, section 3.13, Final_Sigma). A sigma is therefore held back until the text that decides its form has
    arrived, and each block knows whether it begins inside a word.
    """
    before, waiting = "", ""
    for block in blocks:
        text = waiting + block
        end = _decided(text)
        text, waiting = text[:end], text[end:]
        if text:
            # What follows is a waiting sigma, for which the letter "a" stands in, or makes no difference.
            yield (before + text + "a").lower()[len(before) : -1]
            # Characters before white space do not affect those after it.
            word = (before + text).rpartition("\n")[2].rpartition(" ")[2]
            before = "a" if (word + _SIGMA).lower().endswith("\u03c2") else ""
    if waiting:
        yield (before + waiting).lower()[len(before) :]


def _decided(text: str) -> int:
    """Return the length of the prefix whose lower case does not depend on what follows the text."""
    last = text.rfind(_SIGMA)
    if last < 0:
        return len(text)
    after = text[last + 1 :]
    is_open = f"a{_SIGMA}{after}".lower()[1] != f"a{_SIGMA}{after}a".lower()[1]
    return last if is_open else len(text)
