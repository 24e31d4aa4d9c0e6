"""Edits of the tiny world: an instruction, the scene before, and the one correct scene after.

`sample_edit(rng)` draws a random edit. What an instruction is about is named in `Edit.keys`; a checksum of the keys
splits all combinations into train and test once and for all. About 10 % appear in test edits only. Every single word,
colour, shape and place occurs in training.

| kind | combination that is split |
|---|---|
| recolour | shape, old colour, new colour |
| add, remove | shape, colour, place |
| move | shape, old place, new place |
| background | old background, new background, main colour |
| effect | effect, background, main colour |
| text | old word, new word |
| character | the whole identity |
| style | style, shape, colour of each drawn object |
| draw | shape, colour, place of each object; or word and background |
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from .draw import BELLIES, BODIES, HEADS, POSES, SHAPES
from .phrases import ALL_TEXTS, AT, LETTERS, POSE_WORDS, TEMPLATES, TO, WORDS, with_articles
from .scenes import (
    BACKGROUNDS,
    CHARACTER_PLACES,
    COLOURS,
    EFFECTS,
    HUGE,
    INKS,
    LARGE,
    PLACES,
    STYLES,
    Character,
    Identity,
    Scene,
    SceneObject,
    Sign,
)

GROUPS: dict[str, str] = {
    "recolour": "local",
    "add": "local",
    "remove": "local",
    "move": "local",
    "background": "global",
    "effect": "global",
    "text": "text",
    "character": "character",
    "style": "style",
}
KINDS = tuple(GROUPS)
# How often each kind is drawn for training; the harder ones more often. The test split draws all KINDS equally often.
TRAINING_SHARES: dict[str, float] = {
    "recolour": 0.14,
    "add": 0.05,
    "remove": 0.1,
    "move": 0.14,
    "background": 0.04,
    "effect": 0.06,
    "text": 0.08,
    "character": 0.14,
    "style": 0.24,
    "draw": 0.01,
}
HELD_OUT_SHARE = 10  # one combination in 10 is held out for tests

CHARACTER_COLOURS = tuple(name for name in COLOURS if name != "white")  # bellies are white
STYLE_COLOURS = CHARACTER_COLOURS  # white lines do not show on paper


@dataclass(frozen=True)
class Instruction:
    """A sentence, and what it was made of: the name of a group of phrases, and the words put into one of them."""

    text: str
    template: str = ""
    words: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Edit:
    """An instruction with the scene before (None for text-to-image) and after; `keys` decide its split."""

    kind: str
    instruction: Instruction
    source: Scene | None
    target: Scene
    keys: tuple[tuple[str, ...], ...]

    @property
    def prompt(self) -> str:
        return self.instruction.text

    @property
    def group(self) -> str:
        """One of Kontext's five kinds of edit: local, global, text, character, style."""
        return GROUPS[self.kind]


T = TypeVar("T")


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.integers(len(choices)))]


def pick_several(rng: np.random.Generator, choices: Sequence[T], count: int) -> list[T]:
    """`count` different choices, in random order."""
    return [choices[int(i)] for i in rng.permutation(len(choices))[:count]]


def is_held_out(key: tuple[str, ...]) -> bool:
    """Whether a combination belongs to the test split; a checksum decides, so it is the same on every machine."""
    return zlib.crc32("/".join(key).encode()) % HELD_OUT_SHARE == 3


def in_split(keys: tuple[tuple[str, ...], ...], split: str) -> bool:
    return any(is_held_out(key) for key in keys) == (split == "test")


def sentence(rng: np.random.Generator, template: str, **words: str) -> Instruction:
    text = pick(rng, TEMPLATES[template]).format(**words)
    return Instruction(with_articles(text), template, tuple(words.items()))


def sample_objects(rng: np.random.Generator, low: int = 1, high: int = 3) -> tuple[SceneObject, ...]:
    """`low` to `high` objects of different shapes and colours at different places."""
    count = int(rng.integers(low, high + 1))
    shapes = pick_several(rng, SHAPES, count)
    colours = pick_several(rng, tuple(COLOURS), count)
    places = pick_several(rng, tuple(PLACES), count)
    return tuple(SceneObject(*which) for which in zip(shapes, colours, places, strict=True))


def sample_background(rng: np.random.Generator, *taken: str) -> str:
    return pick(rng, [name for name in BACKGROUNDS if name not in taken])


def object_scene(rng: np.random.Generator, low: int = 1, high: int = 3) -> Scene:
    items = sample_objects(rng, low, high)
    return Scene(sample_background(rng, *(item.colour for item in items)), items)


def sign_scene(rng: np.random.Generator, word: str) -> Scene:
    """A sign in one row, and sometimes an object in another row."""
    row = int(rng.integers(3))
    items = sample_objects(rng, 1, 1) if rng.random() < 0.5 else ()
    items = tuple(item for item in items if PLACES[item.place][0] != row)
    background = sample_background(rng, *(item.colour for item in items))
    return Scene(background, items, Sign(word, pick(rng, tuple(INKS)), row))


def sample_identity(rng: np.random.Generator) -> Identity:
    return Identity(
        pick(rng, CHARACTER_COLOURS),
        pick(rng, BODIES),
        pick(rng, HEADS),
        int(rng.integers(1, 4)),
        pick(rng, BELLIES),
    )


def character_scene(rng: np.random.Generator) -> Scene:
    who = Character(sample_identity(rng), pick(rng, POSES), pick(rng, tuple(CHARACTER_PLACES)))
    return Scene(sample_background(rng, who.identity.colour), character=who)


def any_scene(rng: np.random.Generator) -> tuple[Scene, str]:
    """A scene for a global edit, and its main colour: of its first object, its sign's ink or its character."""
    chance = rng.random()
    if chance < 0.7:
        scene = object_scene(rng)
        return scene, scene.objects[0].colour
    if chance < 0.85:
        scene = sign_scene(rng, pick(rng, ALL_TEXTS))
        return scene, scene.sign.ink if scene.sign else ""
    scene = character_scene(rng)
    return scene, scene.character.identity.colour if scene.character else ""


def is_colourful(scene: Scene) -> bool:
    """Whether the scene has any colour that black and white would remove."""
    shown = [scene.background, *(item.colour for item in scene.objects)]
    shown += [scene.sign.ink] if scene.sign else []
    return scene.character is not None or any(name not in ("white", "grey", "black") for name in shown)


def recolour(rng: np.random.Generator) -> Edit:
    return recolour_in(rng, object_scene(rng))


def recolour_in(rng: np.random.Generator, scene: Scene) -> Edit:
    """A new colour for one of the scene's objects."""
    which = int(rng.integers(len(scene.objects)))
    item = scene.objects[which]
    taken = {scene.background, *(other.colour for other in scene.objects)}
    new = pick(rng, [name for name in COLOURS if name not in taken])
    items = tuple(replace(x, colour=new) if x is item else x for x in scene.objects)
    said = sentence(rng, "recolour", shape=item.shape, old=item.colour, new=new)
    key = ("recolour", item.shape, item.colour, new)
    return Edit("recolour", said, scene, replace(scene, objects=items), (key,))


def add(rng: np.random.Generator) -> Edit:
    return add_last(rng, object_scene(rng, 2, 3))


def add_to(rng: np.random.Generator, scene: Scene) -> Edit:
    """Another object, of another shape and colour and at another place than the scene's."""
    shapes, colours, places = (
        {getattr(item, field) for item in scene.objects} for field in ("shape", "colour", "place")
    )
    new = SceneObject(
        pick(rng, [name for name in SHAPES if name not in shapes]),
        pick(rng, [name for name in COLOURS if name not in colours | {scene.background}]),
        pick(rng, [name for name in PLACES if name not in places]),
    )
    return add_last(rng, replace(scene, objects=(*scene.objects, new)))


def add_last(rng: np.random.Generator, full: Scene) -> Edit:
    """The edit that adds the last object of a scene."""
    new = full.objects[-1]
    said = sentence(rng, "add", object=f"a {new.colour} {new.shape}", at=AT[new.place])
    key = ("add", new.shape, new.colour, new.place)
    return Edit("add", said, replace(full, objects=full.objects[:-1]), full, (key,))


def remove(rng: np.random.Generator) -> Edit:
    return remove_from(rng, object_scene(rng))


def remove_from(rng: np.random.Generator, scene: Scene) -> Edit:
    """The scene without one of its objects."""
    gone = pick(rng, scene.objects)
    items = tuple(item for item in scene.objects if item is not gone)
    said = sentence(rng, "remove", shape=gone.shape, colour=gone.colour)
    key = ("remove", gone.shape, gone.colour, gone.place)
    return Edit("remove", said, scene, replace(scene, objects=items), (key,))


def move(rng: np.random.Generator) -> Edit:
    return move_in(rng, object_scene(rng))


def move_in(rng: np.random.Generator, scene: Scene) -> Edit:
    """A new place for one of the scene's objects."""
    item = pick(rng, scene.objects)
    taken = {other.place for other in scene.objects}
    place = pick(rng, [name for name in PLACES if name not in taken])
    items = tuple(replace(x, place=place) if x is item else x for x in scene.objects)
    said = sentence(rng, "move", shape=item.shape, colour=item.colour, to=TO[place], at=AT[place])
    key = ("move", item.shape, item.place, place)
    return Edit("move", said, scene, replace(scene, objects=items), (key,))


def background(rng: np.random.Generator) -> Edit:
    scene, colour = any_scene(rng)
    taken = [colour, scene.background, *(item.colour for item in scene.objects)]
    new = sample_background(rng, *taken)
    key = ("background", scene.background, new, colour)
    return Edit(
        "background", sentence(rng, "background", new=new), scene, replace(scene, background=new), (key,)
    )


def effect(rng: np.random.Generator) -> Edit:
    name = pick(rng, EFFECTS)
    scene, colour = any_scene(rng)
    while name == "black and white" and not is_colourful(scene):
        scene, colour = any_scene(rng)
    key = ("effect", name, scene.background, colour)
    return Edit("effect", sentence(rng, name), scene, replace(scene, effect=name), (key,))


def text(rng: np.random.Generator) -> Edit:
    letter = rng.random() < 0.4
    old, new = pick_several(rng, LETTERS if letter else WORDS, 2)
    scene = sign_scene(rng, old)
    assert scene.sign is not None
    template = "either text" if rng.random() < 0.5 else "letter" if letter else "word"
    target = replace(scene, sign=replace(scene.sign, word=new))
    return Edit("text", sentence(rng, template, old=old, new=new), scene, target, (("text", old, new),))


def character(rng: np.random.Generator) -> Edit:
    """Changes at least one of background, pose and place; whatever the instruction does not name stays."""
    scene = character_scene(rng)
    who = scene.character
    assert who is not None
    changed = pick(rng, (1, 2, 3, 3, 5, 6, 7, 4))  # bits: background, pose, place
    ground, pose, place = scene.background, who.pose, who.place
    changes = []
    if changed & 1:
        ground = sample_background(rng, ground, who.identity.colour)
        changes.append(f"on a {ground} background")
    if changed & 4:
        place = pick(rng, [name for name in CHARACTER_PLACES if name != place])
        changes.append(AT[place])
    if changed & 2:
        pose = pick(rng, [name for name in POSES if name != pose])
        changes.append(POSE_WORDS[pose])
    said = sentence(rng, "character", changes=", ".join(changes))
    target = Scene(ground, character=Character(who.identity, pose, place))
    identity = who.identity
    key = ("character", identity.colour, identity.body, identity.head, str(identity.eyes), identity.belly)
    return Edit("character", said, scene, target, (key,))


def sample_layout(rng: np.random.Generator, colours: Sequence[str]) -> tuple[SceneObject, ...]:
    """One huge object in the centre, or two large ones: first on the left, second on the right."""
    count = int(rng.integers(1, 3))
    shapes, shades = pick_several(rng, SHAPES, count), pick_several(rng, colours, count)
    if count == 1:
        return (SceneObject(shapes[0], shades[0], "centre", HUGE),)
    return tuple(SceneObject(shapes[i], shades[i], ("left", "right")[i], LARGE) for i in range(2))


def describe(items: Sequence[SceneObject]) -> str:
    return " and ".join(f"a {item.colour} {item.shape}" for item in items)


def style(rng: np.random.Generator) -> Edit:
    """Style and paper come from the source; the objects and their order from the instruction."""
    name = pick(rng, STYLES)
    before = sample_layout(rng, STYLE_COLOURS)
    after = before
    while after == before:
        after = sample_layout(rng, STYLE_COLOURS)
    ground = sample_background(rng, *(item.colour for item in (*before, *after)))
    keys = tuple(("style", name, item.shape, item.colour) for item in after)
    said = sentence(rng, "style", objects=describe(after))
    return Edit("style", said, Scene(ground, before, style=name), Scene(ground, after, style=name), keys)


def text_to_image(rng: np.random.Generator) -> Edit:
    """Kind "draw": no source."""
    if rng.random() < 0.3:
        word, ground = pick(rng, ALL_TEXTS), sample_background(rng)
        said = sentence(rng, "draw sign", word=word, background=ground)
        return Edit("draw", said, None, Scene(ground, sign=Sign(word)), (("draw", word, ground),))
    if rng.random() < 0.5:
        items = sample_layout(rng, tuple(COLOURS))
        what = describe(items)
    else:
        items = sample_objects(rng, 1, 1)
        what = f"{describe(items)} {AT[items[0].place]}"
    ground = sample_background(rng, *(item.colour for item in items))
    keys = tuple(("draw", item.shape, item.colour, item.place) for item in items)
    said = sentence(rng, "draw", objects=what, background=ground)
    return Edit("draw", said, None, Scene(ground, items), keys)


SAMPLERS = {
    "recolour": recolour,
    "add": add,
    "remove": remove,
    "move": move,
    "background": background,
    "effect": effect,
    "text": text,
    "character": character,
    "style": style,
    "draw": text_to_image,
}


def sample_edit(rng: np.random.Generator, split: str = "train", kind: str | None = None) -> Edit:
    """A random edit of a split ("train" or "test") and kind (one of KINDS, or "draw").

    With no kind given, train draws from TRAINING_SHARES (text-to-image included), test from all KINDS equally often.
    """
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", not {split!r}')
    if kind is None:
        if split == "test":
            kind = pick(rng, KINDS)
        else:
            shares = np.array(list(TRAINING_SHARES.values()))
            kind = tuple(TRAINING_SHARES)[int(rng.choice(len(shares), p=shares / shares.sum()))]
    while True:
        edit = SAMPLERS[kind](rng)
        if in_split(edit.keys, split):
            return edit


def all_prompts_corpus(count: int = 20_000, seed: int = 0) -> Iterator[str]:
    """`count` prompts distributed as in training, for the tokenizers to train on; the same ones for the same seed."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield sample_edit(rng).prompt
