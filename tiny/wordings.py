"""Other words for the instructions of `phrases`: phrasings, synonyms, politeness, small mistakes.

Training sees `TRAINING` phrasings and everything `loosened` does; `HELD_OUT` phrasings are for tests alone. Their words
all occur in training, their word order and combination do not.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from .phrases import with_articles

TRAINING: dict[str, tuple[str, ...]] = {
    "recolour": (
        "paint the {shape} {new}",
        "colour the {shape} {new}",
        "color the {old} {shape} {new}",
        "change the {shape} to {new}",
        "change the {old} {shape} to {new}",
        "the {shape} should become {new}",
        "the {shape} must be {new}",
        "recolour the {shape} to {new}",
        "set the color of the {shape} to {new}",
        "I want the {shape} {new}",
        "I want a {new} {shape} instead of the {old} one",
        "give the {shape} a {new} colour",
        "{shape}: {new}",
        "replace {old} with {new} on the {shape}",
    ),
    "add": (
        "insert {object} {at}",
        "place {object} {at}",
        "add {object} to the picture, {at}",
        "I want {object} {at}",
        "there should be {object} {at}",
        "{at}, add {object}",
        "{at}, draw {object}",
        "give me {object} {at}",
        "paint {object} {at}",
    ),
    "remove": (
        "get the {shape} out of the picture",
        "get rid of the {colour} {shape}",
        "erase the {shape}",
        "erase the {colour} {shape}",
        "take the {shape} out",
        "take the {colour} {shape} away",
        "delete the {shape}",
        "there should be no {shape}",
        "I do not want the {shape}",
        "without the {shape}",
        "drop the {colour} {shape}",
    ),
    "move": (
        "shift the {shape} {to}",
        "bring the {shape} {to}",
        "place the {shape} {at}",
        "place the {colour} {shape} {at}",
        "put the {colour} {shape} {at}",
        "the {shape} should be {at}",
        "I want the {shape} {at}",
        "move the {shape} so that it is {at}",
        "shift the {colour} {shape} {to}",
    ),
    "background": (
        "make the background {new} instead",
        "paint the background {new}",
        "set the background to {new}",
        "the background should be {new}",
        "I want a {new} background",
        "give it a {new} background",
        "use a {new} background",
        "put everything on a {new} background",
        "replace the background with {new}",
        "color the background {new}",
    ),
    "night": (
        "make it a night picture",
        "it should be night",
        "change day to night",
        "show the picture at night",
    ),
    "negative": (
        "invert the picture",
        "show the negative",
        "invert all colours",
        "invert the colors",
        "I want a negative",
    ),
    "black and white": (
        "remove all colours",
        "make the picture black and white",
        "show it in black and white",
        "take the colours away",
        "it should be black and white",
        "I want it in black and white",
    ),
    "letter": (
        "the letter should be {new}, not {old}",
        "make the letter {old} a {new}",
        "turn the letter {old} into {new}",
        "write the letter {new} instead of {old}",
    ),
    "word": (
        "the word should be {new}, not {old}",
        "the sign should say {new}, not {old}",
        "turn the word {old} into {new}",
        "write the word {new} instead of {old}",
    ),
    "either text": (
        "the sign should say {new}",
        "make the sign say {new}",
        "put {new} on the sign",
        "change the text to {new}",
        "replace the text with {new}",
        "{old} should become {new}",
        "turn {old} into {new}",
        "I want {new} on the sign",
    ),
    "character": (
        "draw the same character {changes}",
        "draw this character {changes}",
        "put this character {changes}",
        "I want the same character {changes}",
        "the character, {changes}",
        "keep the character, but {changes}",
    ),
    "style": (
        "draw {objects} like this",
        "paint {objects} in this style",
        "show {objects} in the same style",
        "I want {objects} in this style",
        "use this style for {objects}",
        "keep the style and draw {objects}",
        "the same style, but {objects}",
    ),
    "draw": (
        "paint {objects} on a {background} background",
        "show {objects}, the background {background}",
        "a {background} background with {objects}",
        "I want {objects} on a {background} background",
    ),
    "draw sign": (
        "draw a sign that says {word} on a {background} background",
        "a {background} background with a sign that says {word}",
        "the word {word} on a sign, {background} background",
    ),
}
"""By the template of `phrases.TEMPLATES` that they say otherwise."""

HELD_OUT: dict[str, tuple[str, ...]] = {
    "recolour": (
        "the {shape} should be {new}",
        "I want the {old} {shape} to be {new}",
        "turn the color of the {shape} into {new}",
    ),
    "add": ("put in {object}, {at}", "show {object} {at}", "there must be {object} {at}"),
    "remove": ("get rid of the {shape}", "take away the {colour} {shape}", "the {shape} should not be there"),
    "move": (
        "bring the {colour} {shape} {to}",
        "the {colour} {shape} should be {at}",
        "set the {shape} {at}",
    ),
    "background": ("change the background so that it is {new}", "the background must be {new}"),
    "night": ("turn it into night", "I want it at night"),
    "negative": ("turn it into a negative", "show a negative of the picture"),
    "black and white": ("turn it black and white", "a black and white picture, please"),
    "letter": ("put the letter {new} instead of {old}", "I want the letter {old} to be {new}"),
    "word": ("put the word {new} instead of {old}", "I want the word {old} to be {new}"),
    "either text": ("the text should be {new} instead of {old}", "{new} instead of {old}"),
    "character": ("show this character {changes}", "keep this character, {changes}"),
    "style": ("{objects} in this style", "draw {objects}, and keep the style"),
    "draw": ("draw {objects}, {background} background",),
    "draw sign": ("{background} background, a sign that says {word}",),
}
"""As `TRAINING`, for tests alone."""

SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("disc", "ball", "round shape"),
    "square": ("box", "block", "quadrangle"),
    "triangle": ("pyramid",),
    "star": ("five-pointed star",),
    "cross": ("plus", "plus sign"),
    "purple": ("violet",),
    "grey": ("gray",),
    "pink": ("rose",),
    "centre": ("middle", "center"),
    "picture": ("image", "photo"),
    "character": ("figure", "creature"),
    "top": ("upper",),
    "background": ("backdrop", "ground"),
}
"""Words that training replaces now and then; never in what a sign says, which is in capitals."""

NOT_VERBS = frozenset(("the", "there", "i", "it", "in", "on", "at", "without", "a", "an", "this"))
"""What an instruction that asks for nothing begins with: `could you` cannot stand before it."""

BEFORE = ("please ", "could you ", "can you ", "now ", "please, ", "I would like you to ")
AFTER = (
    " please",
    ", please",
    "!",
    ".",
    " now",
    " and keep the rest",
    ", nothing else",
    ". Keep everything else.",
)
ARTICLES = re.compile(r"\b(the|a|an) ")
WORD = re.compile(r"[a-z]{4,}")


def phrased(template: str, words: Mapping[str, str], dice: random.Random, held_out: bool) -> str:
    """An instruction in a phrasing of `TRAINING` or of `HELD_OUT`."""
    phrase = dice.choice((HELD_OUT if held_out else TRAINING)[template])
    return with_articles(phrase.format(**words))


def loosened(text: str, dice: random.Random) -> str:
    """As people type: with synonyms, politeness, capitals and full stops, without articles, with a slip of the
    finger; each now and then."""
    for word, others in SYNONYMS.items():
        if dice.random() < 0.2:
            text = re.sub(rf"\b{word}\b", dice.choice(others), text)
    text = with_articles(text)
    if dice.random() < 0.08:
        text = ARTICLES.sub("", text)
    if dice.random() < 0.25 and text.split()[0].lower() not in NOT_VERBS:
        text = dice.choice(BEFORE) + text
    if dice.random() < 0.25:
        text += dice.choice(AFTER)
    if dice.random() < 0.08:
        text = mistyped(text, dice)
    if dice.random() < 0.3:
        text = text[0].upper() + text[1:]
    return text


def mistyped(text: str, dice: random.Random) -> str:
    """Two neighbouring letters swapped, one left out or one doubled, inside a longer word."""
    places = list(WORD.finditer(text))
    if not places:
        return text
    word = dice.choice(places)
    at = dice.randrange(word.start() + 1, word.end() - 1)
    slip = dice.randrange(3)
    if slip == 0:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text[:at] + text[at + 1 :] if slip == 1 else text[: at + 1] + text[at:]
