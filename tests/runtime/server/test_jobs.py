"""A server's requests as edits, without a server: arrays in, rows and batches, what each listener is told."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kontext.errors import ComputationError, KontextError
from kontext.runtime import Pipeline
from kontext.runtime.backends.protocol import ForwardingBackend, SamplerStep
from kontext.runtime.images import read_picture
from kontext.runtime.server import contract, jobs, pictures
from kontext.runtime.server.contract import Limits
from kontext.runtime.server.jobs import Job, Refused

Arrays = dict[str, np.ndarray[Any, Any]]


class Recorder:
    """Remembers what it is told; `leaves_at` is the step at which nobody waits any more."""

    def __init__(self, leaves_at: int | None = None) -> None:
        self.leaves_at = leaves_at
        self.steps: list[tuple[int, int]] = []
        self.picture: Image.Image | None = None
        self.faults: list[BaseException | None] = []

    def cancelled(self) -> bool:
        return self.leaves_at is not None and len(self.steps) >= self.leaves_at

    def progress(self, step: int, total: int) -> None:
        self.steps.append((step, total))

    def finish(self, picture: Image.Image) -> None:
        assert self.picture is None
        self.picture = picture

    def fail(self, fault: BaseException | None) -> None:
        self.faults.append(fault)


@pytest.fixture
def pipe(tiny_bundle: Path) -> Pipeline:
    return Pipeline.load(tiny_bundle, device="cpu")


def strings(*values: bytes) -> np.ndarray[Any, Any]:
    array = np.empty((1, len(values)), dtype=object)
    array[0, :] = values
    return array


def arrays(prompt: str = "make it blue", steps: int = 2, **more: Any) -> Arrays:
    return {"PROMPT": strings(prompt.encode()), "STEPS": np.array([[steps]], np.int32), **more}


def picture(width: int = 128, height: int = 128) -> Image.Image:
    return Image.effect_mandelbrot((width, height), (-2, -1.5, 1, 1.5), 50).convert("RGB")


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def job(pipe: Pipeline, leaves_at: int | None = None, **asked: Any) -> Job:
    return Job(jobs.read_request(pipe, Limits(), arrays(**asked))[0], Recorder(leaves_at))


def run(pipe: Pipeline, *batch: Job) -> int:
    """Runs a batch; returns the rows that were stepped."""
    rows: list[int] = []
    jobs.run_jobs(pipe, batch, rows.append)
    return sum(rows)


def same(one: Image.Image | None, other: Image.Image) -> bool:
    return one is not None and np.array_equal(np.asarray(one), np.asarray(other))


def test_a_batch_is_its_edits_bit_for_bit(pipe: Pipeline) -> None:
    images, prompts = (
        [picture(), picture(200, 190), picture(64, 64)],
        ["make it blue", "add a star", "make it blue"],
    )
    batch = [
        job(pipe, prompt=prompt, IMAGES=strings(png(image)), SEED=np.array([[seed]], np.uint64))
        for seed, (prompt, image) in enumerate(zip(prompts, images, strict=True))
    ]
    assert len({each.kind for each in batch}) == 1
    assert run(pipe, *batch) == 3 * 2
    for seed, each in enumerate(batch):
        assert each.listener.steps == [(1, 2), (2, 2)]
        assert same(each.listener.picture, pipe.edit(images[seed], prompts[seed], steps=2, seed=seed))


def test_a_kind_is_what_can_run_together(pipe: Pipeline) -> None:
    wide, two = np.array([[96, 64]], np.int32), strings(png(picture()), png(picture()))
    batch = [
        job(pipe),
        job(pipe, SIZE=wide),
        job(pipe, prompt="add a star"),
        job(pipe, steps=3),
        job(pipe, GUIDANCE=np.array([[3.5]], np.float32)),
        job(pipe, IMAGES=two),
        job(pipe, SEED=np.array([[9]], np.uint64)),
        job(pipe, IMAGES=two, REFERENCE_METHOD=strings(b"offset")),
    ]
    kinds = [each.kind for each in batch]
    assert [kinds.index(kind) for kind in kinds] == [0, 1, 0, 3, 4, 5, 0, 7]


@pytest.mark.parametrize(
    ("limit", "asked", "message"),
    [
        ({"max_output_megapixels": 0}, {}, "SIZE 128x128 is 0.0164 million pixels; at most 0 million"),
        (
            {"max_megapixel_steps": 1},
            {"steps": 62},
            "62 steps of 0.0164 million pixels, references included, are 1 million; at most 1 million",
        ),
    ],
)
def test_work_is_limited(pipe: Pipeline, limit: dict[str, int], asked: dict[str, Any], message: str) -> None:
    with pytest.raises(KontextError, match=message):
        jobs.read_request(pipe, Limits(**limit), arrays(**asked))


def test_references_are_work(pipe: Pipeline) -> None:
    alone, edit = job(pipe), job(pipe, IMAGES=strings(png(picture())))
    assert edit.work == 2 * alone.work == 2 * 2 * 128 * 128


def test_the_clock_stops_an_edit_between_steps(pipe: Pipeline) -> None:
    late = job(pipe, steps=3)
    jobs.run_jobs(pipe, [late], lambda rows: None, max_seconds=0)
    assert late.listener.steps == [(1, 3)]
    (fault,) = late.listener.faults
    assert str(fault) == "the edit took more than 0 s: 1 of 3 steps were done"


def test_the_last_to_leave_stops_the_sampler(pipe: Pipeline) -> None:
    batch = [job(pipe, leaves_at=1, steps=50), job(pipe, leaves_at=3, steps=50)]
    assert run(pipe, *batch) == 2 * 4
    assert [each.listener.faults for each in batch] == [[None], [None]]
    assert [len(each.listener.steps) for each in batch] == [1, 3]
    assert batch[0].listener.picture is None


def test_those_who_stay_get_their_picture(pipe: Pipeline) -> None:
    batch = [job(pipe, leaves_at=1, steps=3), job(pipe, steps=3)]
    run(pipe, *batch)
    assert batch[0].listener.faults == [None]
    assert same(batch[1].listener.picture, pipe.edit(None, "make it blue", steps=3))


def test_who_left_before_the_start_costs_nothing(pipe: Pipeline) -> None:
    waiting = job(pipe, leaves_at=0)
    assert run(pipe, waiting) == 0
    assert waiting.listener.faults == [None]


def test_one_fault_in_a_batch_is_one_fault(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    make = pipe.make

    def fragile(request: Any, callback: Any, progress: bool) -> Any:
        if any(row.prompt == "break" for row in request.rows):
            raise MemoryError
        return make(request, callback, progress)

    monkeypatch.setattr(pipe, "make", fragile)
    batch = [job(pipe), job(pipe, prompt="break")]
    run(pipe, *batch)
    assert same(batch[0].listener.picture, pipe.edit(None, "make it blue", steps=2))
    assert [type(fault) for fault in batch[1].listener.faults] == [MemoryError]


def test_filters(pipe: Pipeline) -> None:
    seen: list[tuple[int, str]] = []

    def input_filter(references: Any, prompt: str) -> None:
        seen.append((len(references), prompt))
        if prompt == "forbidden":
            raise KontextError("not here")

    def output_filter(made: Image.Image) -> Image.Image:
        if made.width != made.height:
            raise KontextError("squares only")
        return Image.new("RGB", made.size, "white")

    pipe.input_filter, pipe.output_filter = input_filter, output_filter
    with pytest.raises(Refused, match="not here"):
        job(pipe, prompt="forbidden")
    shown, wide = job(pipe, IMAGES=strings(png(picture()))), job(pipe, SIZE=np.array([[96, 64]], np.int32))
    run(pipe, shown)
    run(pipe, wide)
    assert seen == [(0, "forbidden"), (1, "make it blue"), (0, "make it blue")]
    assert shown.listener.picture is not None
    assert shown.listener.picture.getpixel((0, 0)) == (255, 255, 255)
    assert [str(fault) for fault in wide.listener.faults] == ["squares only"]
    assert isinstance(wide.listener.faults[0], Refused)


def test_warnings_are_of_the_prompt(pipe: Pipeline) -> None:
    assert jobs.read_request(pipe, Limits(), arrays())[1] == []
    warned = jobs.read_request(pipe, Limits(), arrays(prompt="make it blue " * 40))[1]
    assert [text.startswith("the prompt is longer than") for text in warned] == [True, True]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"PROMPT": np.array([["x", "y"]], object)}, r"PROMPT must have the shape \[1, 1\], not \[1, 2\]"),
        ({"PROMPT": np.array([["x"], ["y"]], object)}, "PROMPT has a batch of 2: send one request for each"),
        ({"PROMPT": np.array(["x"], object)}, r"PROMPT must have the shape \[1, 1\], not \[1\]"),
        ({"PROMPT": np.array([[1]], np.int32)}, "PROMPT must be BYTES, not int32"),
        ({"STEPS": np.array([[2]], np.int64)}, "STEPS must be INT32, not int64"),
        ({"STEPS": np.zeros((1, 0), np.int32)}, "STEPS must have the shape"),
        ({"GUIDANCE": np.array([[np.nan]], np.float32)}, "guidance must be a number from -1000 to 1000"),
        ({"SIZE": np.array([[64, 64, 64]], np.int32)}, r"SIZE must have the shape \[1, 2\]"),
        ({"IMAGES": strings(b"\x89PNG nothing")}, r"IMAGES\[0\] is not a PNG, JPEG or WebP picture"),
        ({"IMAGES": strings(b"GIF89a")}, r"IMAGES\[0\] is neither"),
        ({"REFERENCE_METHOD": strings(b"\xff")}, "the reference method must be index, offset or stitch"),
        ({"REFERENCE_METHOD": strings(b"a", b"b")}, r"REFERENCE_METHOD must have the shape \[1, 1\]"),
        ({"REFERENCE_SIZE": strings(b"100x100")}, "reference size 100x100: both sides .* nearest is 96x96"),
        (
            {"IMAGES": strings(*[png(picture(16, 16))] * 8), "REFERENCE_SIZE": strings(b"512x512")},
            "encoded at 2.1 million pixels together; at most 2 million",
        ),
    ],
)
def test_arrays_that_are_no_edit(pipe: Pipeline, more: Arrays, message: str) -> None:
    with pytest.raises(KontextError, match=message):
        jobs.read_request(pipe, Limits(max_megapixels=2), arrays(**more))


def test_references_of_a_request(pipe: Pipeline) -> None:
    """Their method and size are the caller's, else the bundle's; what the runtime warns of is the answer's."""
    given = {"IMAGES": strings(png(picture(96, 48)), png(picture())), "SIZE": np.array([[64, 64]], np.int32)}
    request, warned = jobs.read_request(pipe, Limits(), arrays(**given, REFERENCE_METHOD=strings(b"offset")))
    assert [each.place.image for each in request.rows[0].references] == [1, 1]
    assert warned[0].startswith("the output of 64x64 has another aspect than the picture of 96x48")
    given["REFERENCE_SIZE"] = strings(b"output")
    request, warned = jobs.read_request(pipe, Limits(), arrays(**given))
    assert [(each.size, each.place.image) for each in request.rows[0].references] == [
        ((64, 64), 1),
        ((64, 64), 2),
    ]
    assert warned == []


def one(value: Any, kind: Any) -> np.ndarray[Any, Any]:
    return np.array([[value]], kind)


def repainting(**more: Any) -> Arrays:
    """A request that uses everything that repaints and guides."""
    return {
        "IMAGES": strings(png(picture())),
        "INIT_IMAGE": strings(png(picture(96, 176))),
        "MASK": strings(base64.b64encode(png(half(96, 176)))),
        "MASK_BLUR": one(3, np.int32),
        "STRENGTH": one(0.6, np.float64),
        "PASTE_BACK": one(True, np.bool_),
        "NEGATIVE_PROMPT": strings(b"a star"),
        "TRUE_CFG": one(3, np.float32),
        "CFG_UNTIL": one(0.5, np.float64),
        **more,
    }


def half(width: int, height: int) -> Image.Image:
    mask = Image.new("L", (width, height))
    mask.paste(255, (0, 0, width // 2, height))
    return mask


def test_repainting_and_negative_prompts_in_a_batch_are_the_pipelines(pipe: Pipeline) -> None:
    """Each row has its own mask, picture and negative prompt."""
    other = {"MASK": strings(png(half(48, 90).rotate(180))), "NEGATIVE_PROMPT": strings(b"")}
    batch = [job(pipe, steps=5, **repainting()), job(pipe, steps=5, **repainting(**other))]
    assert len({each.kind for each in batch}) == 1
    assert [each.width for each in batch] == [2, 2]
    assert run(pipe, *batch) == 2 * 3
    masks, negatives = [half(96, 176), half(48, 90).rotate(180)], ["a star", ""]
    for each, mask, negative in zip(batch, masks, negatives, strict=True):
        expected = pipe.edit(
            picture(),
            "make it blue",
            steps=5,
            init_image=picture(96, 176),
            mask=mask,
            mask_blur=3,
            strength=0.6,
            paste_back=True,
            negative_prompt=negative,
            true_cfg=3,
            cfg_until=0.5,
        )
        assert same(each.listener.picture, expected)


def test_what_repaints_is_another_kind(pipe: Pipeline) -> None:
    image = {"IMAGES": strings(png(picture()))}
    batch = [
        job(pipe, **image),
        job(pipe, **image, MASK=strings(png(half(128, 128)))),
        job(pipe, **image, MASK=strings(png(half(64, 64)))),
        job(pipe, **image, STRENGTH=one(0.5, np.float64)),
        job(pipe, **image, NEGATIVE_PROMPT=strings(b"x"), TRUE_CFG=one(2, np.float32)),
        job(pipe, **image, NEGATIVE_PROMPT=strings(b"y"), TRUE_CFG=one(2, np.float32)),
        job(pipe, **image, NEGATIVE_PROMPT=strings(b"y"), TRUE_CFG=one(3, np.float32)),
    ]
    kinds = [each.kind for each in batch]
    assert [kinds.index(kind) for kind in kinds] == [0, 1, 1, 3, 4, 4, 6]


def test_true_cfg_is_twice_the_work_and_strength_less(pipe: Pipeline) -> None:
    guided = {"NEGATIVE_PROMPT": strings(b"x"), "TRUE_CFG": one(4, np.float32)}
    alone, twice = job(pipe, steps=10), job(pipe, steps=10, **guided)
    assert twice.work == 2 * alone.work
    assert job(pipe, steps=10, CFG_UNTIL=one(0.3, np.float64), **guided).work == 1.3 * alone.work
    shown = {"IMAGES": strings(png(picture()))}
    less = job(pipe, steps=10, STRENGTH=one(0.4, np.float64), **shown)
    assert less.work == 0.4 * job(pipe, steps=10, **shown).work
    with pytest.raises(
        KontextError, match=r"31 steps, 31 of them twice, of 0\.0164 million pixels.* at most 1 mill"
    ):
        jobs.read_request(pipe, Limits(max_megapixel_steps=1), arrays(steps=31, **guided))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"MASK": strings(b"nothing")}, "MASK is neither a PNG, JPEG or WebP file nor base64 of one"),
        ({"MASK": strings(b"\x89PNG nothing")}, "MASK is not a PNG, JPEG or WebP picture"),
        ({"MASK": strings(b"a", b"b")}, r"MASK must have the shape \[1, 1\]"),
        ({"MASK": strings(png(half(2000, 1001)))}, "MASK has more than 1.97 million pixels"),
        ({"INIT_IMAGE": strings(png(picture(2000, 1001)))}, "INIT_IMAGE has more than 1.98 million pixels"),
        (
            {"MASK_BLUR": one(-1, np.int32)},
            "mask_blur must be a whole number of pixels from 0 to 1000, not -1",
        ),
        ({"MASK_BLUR": one(1.0, np.float32)}, "MASK_BLUR must be INT32, not float32"),
        ({"STRENGTH": one(0, np.float64)}, "strength must be above 0 and at most 1, not 0"),
        ({"STRENGTH": one(0.5, np.float32)}, "STRENGTH must be FP64, not float32"),
        ({"PASTE_BACK": one(1, np.int32)}, "PASTE_BACK must be BOOL, not int32"),
        ({"NEGATIVE_PROMPT": strings(b"\xff")}, "NEGATIVE_PROMPT is not UTF-8"),
        ({"NEGATIVE_PROMPT": strings(b"x" * 20_000)}, "NEGATIVE_PROMPT has 20000 bytes; at most 16384"),
        ({"TRUE_CFG": one(np.nan, np.float32)}, "true_cfg must be a number from 1 to 1000, not nan"),
        ({"CFG_UNTIL": one(0, np.float64)}, "cfg_until must be above 0 and at most 1, not 0"),
    ],
)
def test_what_repaints_nothing(pipe: Pipeline, more: Arrays, message: str) -> None:
    with pytest.raises(KontextError, match=message):
        jobs.read_request(pipe, Limits(max_megapixels=2), arrays(**repainting(**more)))


def test_a_mask_without_a_picture_and_what_has_no_effect(pipe: Pipeline) -> None:
    with pytest.raises(KontextError, match="a mask needs a picture to repaint"):
        jobs.read_request(pipe, Limits(), arrays(MASK=strings(png(half(8, 8)))))
    with pytest.raises(KontextError, match="mask_blur needs a mask"):
        jobs.read_request(pipe, Limits(), arrays(MASK_BLUR=one(2, np.int32)))
    given = {"IMAGES": strings(png(picture())), "MASK": strings(png(Image.new("RGBA", (128, 128))))}
    _, warned = jobs.read_request(pipe, Limits(), arrays(**given, TRUE_CFG=one(4, np.float32)))
    assert [text.partition(":")[0] for text in warned] == [
        'true_cfg 4 has no effect without a negative_prompt, which may be empty ("")',
        "the mask is black",
    ]


def test_limits_are_the_servers(pipe: Pipeline) -> None:
    limits = Limits.from_parameters({"max_steps": "3", "max_megapixels": "1", "other": "x"})
    assert limits == Limits(max_steps=3, max_megapixels=1)
    with pytest.raises(KontextError, match="at most 3"):
        jobs.read_request(pipe, limits, arrays(steps=4))
    two = strings(png(picture(800, 800)), png(picture(800, 800)))  # together more than a million pixels
    with pytest.raises(KontextError, match=r"IMAGES\[1\] has more than 0\.36 million pixels"):
        jobs.read_request(pipe, limits, arrays(IMAGES=two))


def test_png_keeps_every_pixel() -> None:
    with Image.open(io.BytesIO(jobs.png(picture()))) as read:
        assert same(read, picture())


def test_the_answer_says_what_made_the_picture(pipe: Pipeline) -> None:
    """Each row of a batch for itself, as a local edit does."""
    first, second = (
        job(pipe, SEED=np.array([[seed]], np.uint64), IMAGES=strings(png(picture()))) for seed in (4, 9)
    )
    run(pipe, first, second)
    for asked, seed in ((first, 4), (second, 9)):
        assert isinstance(asked.listener, Recorder)
        assert asked.listener.picture is not None
        answer = read_picture(io.BytesIO(jobs.png(asked.listener.picture)), "the answer")
        here = pipe.edit(picture(), "make it blue", steps=2, seed=seed)
        assert json.loads(answer.info["kontext"]) == here.info["kontext"]
        assert b"make it blue" not in jobs.png(asked.listener.picture, metadata=False)


def test_previews_are_made_for_those_who_ask(pipe: Pipeline) -> None:
    first, second = job(pipe), job(pipe, SEED=np.array([[1]], np.uint64))
    seen: list[Image.Image] = []
    second.on_preview = seen.append
    run(pipe, first, second)
    here: list[Image.Image] = []
    pipe.edit(None, "make it blue", steps=2, seed=1, callback=lambda *_: here.extend(pipe.previews()))
    assert [each.tobytes() for each in seen] == [each.tobytes() for each in here]
    with Image.open(io.BytesIO(jobs.jpeg(seen[0]))) as picture:
        assert (picture.format, picture.size) == ("JPEG", seen[0].size)


def test_the_plain_model_has_a_part_of_the_streams_outputs() -> None:
    assert set(contract.OUTPUTS[contract.UNARY]) < set(contract.OUTPUTS[contract.STREAM])


def test_what_is_not_finite_fails_the_job(pipe: Pipeline) -> None:
    """The decoder's NaN reaches the caller as an error, not as a picture."""

    class Broken(ForwardingBackend):
        def run(self, graph: str, inputs: Any, step: SamplerStep | None = None) -> dict[str, Any]:
            outputs = super().run(graph, inputs, step)
            return {"image": outputs["image"] * np.nan} if graph == "vae_decoder" else outputs

    pipe.backend = Broken(pipe.backend)
    asked = job(pipe)
    run(pipe, asked)
    assert isinstance(asked.listener, Recorder)
    assert asked.listener.picture is None
    assert isinstance(asked.listener.faults[0], ComputationError)


def test_base64_in_the_forms_that_clients_send() -> None:
    """canvas.toDataURL, `base64`, Python's encodebytes and urlsafe_b64encode, and without padding."""
    file = png(picture(33, 21))
    plain = base64.b64encode(file)
    sent = [
        plain,
        b"data:image/png;base64," + plain,
        b"DATA:image/png;charset=x;Base64," + plain,
        base64.encodebytes(file),
        base64.encodebytes(file).replace(b"\n", b"\r\n"),
        base64.urlsafe_b64encode(file),
        plain.rstrip(b"="),
        plain.decode(),
    ]
    assert b"-" in sent[5] or b"_" in sent[5]
    assert all(pictures.picture_bytes(each, "IMAGES[0]") == file for each in sent)


@pytest.mark.parametrize("value", [b"data:image/png,%89PNG", b"data:image/png;base64", b"?!", b"AAAAA"])
def test_other_forms_are_refused(value: bytes) -> None:
    with pytest.raises(KontextError, match=r"IMAGES\[3\] is .*base64"):
        pictures.picture_bytes(value, "IMAGES[3]")


def test_pictures_come_back_as_their_clients_can_read_them() -> None:
    file = png(picture(16, 16))
    text = base64.b64encode(file)
    assert pictures.answers_in_base64(arrays(), None)
    assert pictures.answers_in_base64(arrays(IMAGES=strings(text)), None)
    assert not pictures.answers_in_base64(arrays(IMAGES=strings(file, text)), None)
    assert pictures.answers_in_base64(arrays(IMAGES=strings(file)), True)
    assert not pictures.answers_in_base64(arrays(IMAGES=strings(text)), False)


def test_a_filter_that_returns_no_picture_is_the_servers_fault(pipe: Pipeline) -> None:
    pipe.output_filter = lambda _picture: None  # type: ignore[assignment,return-value]
    one = job(pipe)
    run(pipe, one)
    (fault,) = one.listener.faults  # type: ignore[attr-defined]
    assert isinstance(fault, ComputationError)


def test_what_was_done_to_a_picture_is_said(pipe: Pipeline) -> None:
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    _, warned = jobs.read_request(pipe, Limits(), arrays(IMAGES=strings(png(clear))))
    assert "transparent parts of the picture become white" in warned
