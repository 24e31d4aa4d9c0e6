"""The words of instructions: texts on signs, names of places, and several phrasings for each kind of edit."""

from __future__ import annotations

import re

from .draw import SHAPES
from .scenes import BACKGROUNDS, COLOURS, PLACES

LETTERS = tuple("ABCEFHKLMNORSTXZ")
WORDS = (
    *("GO", "HI", "NO", "OK"),
    *("CAT", "DOG", "SUN", "SKY", "BUS", "CAR", "TEA", "HAT"),
    *("FISH", "BIRD", "MOON", "TREE", "BOOK", "LOVE"),
)
ALL_TEXTS = (*LETTERS, *WORDS)

AT = {
    "top left": "in the top left",
    "top": "at the top",
    "top right": "in the top right",
    "left": "on the left",
    "centre": "in the centre",
    "right": "on the right",
    "bottom left": "in the bottom left",
    "bottom": "at the bottom",
    "bottom right": "in the bottom right",
}
TO = {name: f"to the {name}" for name in PLACES}
POSE_WORDS = {"up": "arms up", "down": "arms down", "waving": "waving"}

TEMPLATES: dict[str, tuple[str, ...]] = {
    "recolour": (
        "make the {shape} {new}",
        "change the colour of the {shape} to {new}",
        "turn the {shape} {new}",
        "make the {old} {shape} {new}",
        "turn the {old} {shape} {new}",
    ),
    "add": ("add {object} {at}", "put {object} {at}", "draw {object} {at}"),
    "remove": (
        "remove the {shape}",
        "remove the {colour} {shape}",
        "take away the {shape}",
        "delete the {colour} {shape}",
    ),
    "move": ("move the {shape} {to}", "move the {colour} {shape} {to}", "put the {shape} {at}"),
    "background": (
        "make the background {new}",
        "change the background to {new}",
        "turn the background {new}",
        "change the colour of the background to {new}",
    ),
    "night": ("make it night", "turn day into night", "show it at night"),
    "negative": ("turn the picture into a negative", "make it a negative", "invert the colours"),
    "black and white": ("make it black and white", "turn the picture black and white"),
    "letter": ("replace the letter {old} with {new}", "change the letter {old} to {new}"),
    "word": ("replace the word {old} with {new}", "change the word {old} to {new}"),
    "either text": ("replace {old} with {new}", "change {old} to {new}", "write {new} instead of {old}"),
    "character": (
        "the same character {changes}",
        "show the same character {changes}",
        "this character {changes}",
    ),
    "style": (
        "in this style, draw {objects}",
        "draw {objects} in this style",
        "draw {objects} in the same style",
    ),
    "draw": ("{objects} on a {background} background", "draw {objects} on a {background} background"),
    "draw sign": ("a sign that says {word} on a {background} background",),
}


def with_articles(text: str) -> str:
    """`a` becomes `an` before the words of the instructions that begin with a vowel."""
    return re.sub(r"\ba (?=(orange|upper|image)\b)", "an ", text)


def vocabulary() -> list[str]:
    """Every word that can occur in a prompt, sorted, without commas."""
    phrases = [phrase for group in TEMPLATES.values() for phrase in group]
    phrases += [*COLOURS, *BACKGROUNDS, *SHAPES, *AT.values(), *TO.values(), *POSE_WORDS.values(), *ALL_TEXTS]
    phrases += ["and", "an", "on a background"]
    words = {word.strip(",") for phrase in phrases for word in phrase.split()}
    return sorted(word for word in words if "{" not in word)
