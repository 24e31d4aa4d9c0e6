"""What made a picture: every option is recorded and read back, other programs find theirs, and strangers' JSON is
checked."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import pytest
from PIL import Image, ImageCms

from kontext.errors import KontextError
from kontext.runtime import Pipeline, TorchOptions
from kontext.runtime.backends.options import OnnxRuntimeOptions
from kontext.runtime.edit_metadata import running_with
from kontext.runtime.metadata import (
    KEY,
    PICTURES,
    REQUIRED,
    SETTINGS,
    PictureDigest,
    infotext,
    metadata_json,
    read_metadata,
)

from .given_metadata import GIVEN

# modules/infotext_utils.py of AUTOMATIC1111's stable-diffusion-webui: what it finds in the last line.
A1111 = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def drawn(width: int, height: int) -> Image.Image:
    return Image.effect_mandelbrot((width, height), (-2, -1.5, 1, 1.5), 50).convert("RGB")


def test_every_option_of_an_edit_is_recorded_and_makes_it_again(pipe: Pipeline) -> None:
    """A new one belongs into `SETTINGS` or `PICTURES`, and here."""
    image, other = drawn(176, 96), drawn(128, 128)
    mask = Image.new("RGBA", (30, 20), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (0, 0, 15, 20))
    given: dict[str, Any] = {
        "image": [image, other],
        "prompt": "make it blue",
        "seed": 5,
        "steps": 4,
        "guidance": 3.1,
        "size": (96, 64),
        "reference_method": "offset",
        "reference_size": (64, 96),
        "mask": mask,
        "mask_blur": 1,
        "strength": 0.5,
        "init_image": other,
        "paste_back": True,
        "negative_prompt": "grey",
        "true_cfg": 2.5,
        "cfg_until": 0.5,
    }
    options = set(inspect.signature(Pipeline.edit).parameters) - {
        "self",
        "loras",  # recorded by what `running` says, and given again as files
        "callback",
        "progress",
        "num_images",
    }
    assert options == given.keys()
    picture = pipe.edit(**given)
    made = picture.info[KEY]
    assert {*SETTINGS, *PICTURES} == made.keys() - {"format", "bundle", "running", "version"}
    assert {*SETTINGS, *PICTURES} == (options - {"image"}) | {"references"}
    read = read_metadata(metadata_json(made), "out.png")
    assert dict(read.settings) == {name: value for name, value in given.items() if name in SETTINGS}
    digests = {
        name: [PictureDigest.of(each) for each in found]
        for name, found in (
            ("references", [image, other]),
            ("mask", [mask.getchannel("A")]),
            ("init_image", [other]),
        )
    }
    assert dict(read.pictures) == digests
    again = pipe.edit([image, other], mask=mask, init_image=other, **read.settings)
    assert (again.tobytes(), again.info) == (picture.tobytes(), picture.info)


def test_defaults_are_left_out(pipe: Pipeline) -> None:
    made = pipe.edit(drawn(96, 96), "make it blue", steps=1, true_cfg=1, negative_prompt="x").info[KEY]
    assert made.keys() - {"format", "bundle", "running", "version"} == {
        *REQUIRED,
        "reference_method",
        "reference_size",
    }


def test_what_is_pasted_back_leaves_no_profile(pipe: Pipeline) -> None:
    """The result is sRGB, whatever the reference was."""
    image = drawn(96, 96)
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = pipe.edit(image, "x", steps=1, mask=Image.new("L", (8, 8), 255), paste_back=True)
    assert picture.info.keys() == {KEY}


def test_what_is_recorded_makes_the_picture_again(pipe: Pipeline) -> None:
    first, second = drawn(176, 96), drawn(96, 176)
    several = pipe.edit(
        [[first, second], [first]], ["é: 1", "two"], seed=[5, 2**64 - 1], steps=2, size=(96, 64)
    )
    plain = pipe.edit(first, "three", steps=1)
    for picture, images in zip([*several, plain], ([first, second], [first], [first]), strict=True):
        made = picture.info[KEY]
        read = read_metadata(metadata_json(made), "out.png")
        assert list(read.pictures["references"]) == [PictureDigest.of(image) for image in images]
        assert (read.digest, read.bundle) == (pipe.bundle.digest, pipe.bundle.name)
        assert read.running == pipe.running
        again = pipe.edit(images, **read.settings)
        assert again.tobytes() == picture.tobytes()
        assert again.info[KEY] == made
    assert several[1].info[KEY]["seed"] == 2**64 - 1
    assert plain.info[KEY]["reference_size"] == "preferred"


def test_what_runs_the_networks() -> None:
    class OnCpu:
        device = "cpu"

    options = TorchOptions(compute="bf16", cache=0.1)
    assert vars(running_with(options, "auto", OnCpu())) == {  # type: ignore[arg-type]
        "backend": "torch",
        "device": "cpu",
        "options": {"cache": 0.1, "compute": "bf16"},
        "loras": (),
    }
    assert running_with(OnnxRuntimeOptions(), "webgpu", OnCpu()).device == "webgpu"  # type: ignore[arg-type]


@pytest.mark.parametrize("prompt", ["make it blue", "two\nlines, with: all\nSteps: 3", "", "é 漢"])
def test_others_read_their_own_text(prompt: str) -> None:
    made = GIVEN | {"prompt": prompt, "bundle": {"name": 'a "b", c: d', "digest": "sha256:0123456789abcdef"}}
    *before, last = infotext(made).split("\n")
    assert "\n".join(before) == prompt
    found = {name: json.loads(value) if value[0] == '"' else value for name, value in A1111.findall(last)}
    assert found == {
        "Steps": "2",
        "Sampler": "Euler",
        "CFG scale": "1",
        "Distilled CFG Scale": "2.5",
        "Seed": "3",
        "Size": "96x64",
        "Model hash": "0123456789",
        "Model": 'a "b", c: d',
        "Version": "kontext-export 0.1.0",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "are not JSON"),
        ("[]", "are not a JSON object"),
        ('{"a": "\\ud800"}', "not valid Unicode"),
        ("[" * 100_000, "nested too deeply"),
        (" " * (1 << 20) + "{}", "are larger than 1 MiB"),
        ("{}", "have no format"),
    ],
)
def test_what_is_no_metadata(text: str, message: str) -> None:
    with pytest.raises(KontextError, match=message):
        read_metadata(text, "out.png")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": 2}, "have format 2, which kontext-export 0.1.0 does not know: update it"),
        ({"sharpness": 3}, "have 'sharpness', which kontext-export 0.1.0 does not know"),
        ({"format": "1"}, "say format '1': it must be a whole number from 1"),
        ({"prompt": None}, "say prompt None: it must be a text"),
        ({"seed": -1}, "say seed -1: it must be a whole number from 0"),
        ({"seed": 10**400}, "say seed a number of 1329 bits: it must be"),
        ({"seed": True}, "say seed True: it must be"),
        ({"steps": 2.5}, "say steps 2.5: it must be a whole number from 1 to 1000"),
        ({"guidance": float("nan")}, "say guidance nan: it must be a finite number"),
        ({"guidance": 10**400}, "it must be a finite number"),
        ({"size": [96]}, "say size a list: it must be a width and a height"),
        ({"size": [96, 10**9]}, "it must be a whole number from 1 to 4096"),
        (
            {"reference_method": "\x1b[2J"},
            r"say reference_method '\\x1b\[2J': it must be index, offset or stitch",
        ),
        ({"reference_method": []}, "it must be index, offset or stitch"),
        ({"reference_size": {}}, "it must be auto, preferred, output or a width and a height"),
        ({"references": [{}]}, "a list of at most 1000 pictures"),
        ({"references": [{"sha256": "0" * 64, "size": [1, "x"]}]}, "a list of at most 1000 pictures"),
        ({"references": GIVEN["references"] * 1001}, "a list of at most 1000 pictures"),
        ({"mask": []}, "say mask a list: it must be a picture's sha256 and size"),
        ({"strength": 0}, "say strength 0: it must be a number above 0, and at most 1"),
        ({"paste_back": 1}, "say paste_back 1: it must be true or false"),
        ({"bundle": []}, "say bundle a list: it must be an object"),
        ({"bundle": {"name": "x" * 201, "digest": ""}}, "a text of at most 200 characters"),
        ({"running": {"backend": "torch", "device": "cpu"}}, "have no options"),
    ],
)
def test_values_that_no_edit_takes(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(KontextError, match=message) as error:
        read_metadata(json.dumps(GIVEN | changed), "out.png")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("name", [*REQUIRED, "format", "bundle", "running", "version"])
def test_what_is_missing(name: str) -> None:
    with pytest.raises(KontextError, match=f"^out.png: its metadata have no {name}$"):
        read_metadata(json.dumps({key: value for key, value in GIVEN.items() if key != name}), "out.png")


ODD: list[Any] = [
    None,
    True,
    -1,
    0.5,
    10**400,
    float("inf"),
    "",
    "\x1b[2J",
    [],
    [[]],
    {},
    {"a": [1]},
    [1, 2],
    7,
    "auto",
]


@pytest.mark.parametrize("key", [*GIVEN, *SETTINGS, *PICTURES, *(f"bundle.{key}" for key in GIVEN["bundle"])])
def test_any_other_value_is_read_or_refused(key: str) -> None:
    outer, _, inner = key.partition(".")
    for value in ODD:
        changed = GIVEN | {outer: GIVEN[outer] | {inner: value} if inner else value}
        try:
            read_metadata(json.dumps(changed), "out.png")
        except KontextError as error:
            assert str(error).startswith("out.png: its metadata ")  # noqa: PT017
