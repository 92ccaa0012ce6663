"""Which words of a caption tell most: nouns, adjectives, verbs, the rest."""

import functools
import importlib.util
from pathlib import Path

from clipjax.ranges import FieldError

# Classes of a word, the one that is kept longest first.
NOUN, ADJECTIVE, VERB, OTHER = range(4)
_BY_TAG = {"NN": NOUN, "JJ": ADJECTIVE, "VB": VERB}  # the Penn Treebank's, by how they begin
# Of words that no lexicon has; what has none of these endings is a noun, as most new words are.
_BY_ENDING = (("ly", OTHER), ("ing", VERB), ("ed", VERB))


def class_of(word: str) -> int:
    """Gives a word's class by itself, without its sentence: NOUN, ADJECTIVE, VERB or OTHER.

    English only: other words count as nouns.

    Raises:
        ValueError: the lexicon is not installed.
    """
    lexicon, small = load_lexicon(), word.lower()
    for form in (small, word):
        if form in lexicon:
            return lexicon[form]
    if not any(character.isalpha() for character in word):
        return OTHER
    return next((kind for ending, kind in _BY_ENDING if small.endswith(ending)), NOUN)


@functools.cache
def load_lexicon() -> dict[str, int]:
    """Reads the classes of 93,000 English words from the lexicon that TextBlob ships, Brill's.

    Raises:
        ValueError: TextBlob is not installed.
    """
    found = importlib.util.find_spec("textblob")  # not imported: that would load NLTK for nothing
    folders = [] if found is None else found.submodule_search_locations or []
    files = [Path(folder, "en", "en-lexicon.txt") for folder in folders]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FieldError(
            "kind = 'syntax' needs the lexicon of TextBlob: pip install 'clipjax[text]', or choose "
            "another kind"
        )
    lexicon: dict[str, int] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        word, _, tag = line.partition(" ")
        if word and not word.startswith(";;;"):
            lexicon[word] = _BY_TAG.get(tag[:2], OTHER)
    return lexicon
