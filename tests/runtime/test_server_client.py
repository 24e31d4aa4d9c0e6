"""`kontext-edit --server`: what is sent, what comes back, and one line for each thing that can go wrong on the way."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from kontext.errors import KontextError
from kontext.installation import install_command
from kontext.runtime import cli, server_client
from kontext.runtime.sent_pictures import SMALLER_PIXELS, picture_file
from kontext.runtime.server import contract
from kontext.runtime.server_client import Edit, connect, edit_all

from .given_metadata import GIVEN


def png(colour: str = "red", kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 16), colour).save(file, kind)
    return file.getvalue()


class Fake(BaseHTTPRequestHandler):
    """Answers with `answers`, one after another, and remembers what it was asked."""

    answers: ClassVar[list[tuple[int, list[Any]]]] = []
    asked: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    hold: ClassVar[threading.Event] = threading.Event()
    metadata: ClassVar[tuple[int, bytes]] = (404, b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append((self.path, json.loads(body)))
        status, events = self.answers.pop(0)
        self.send_response(status)
        self.end_headers()
        for event in events:
            if event == "wait":
                self.wfile.flush()
                self.hold.wait(60)
            else:
                self.wfile.write(
                    event if isinstance(event, bytes) else b"data: %s\n\n" % json.dumps(event).encode()
                )

    def do_GET(self) -> None:
        """The model's metadata."""
        self.asked.append((self.path, {}))
        self.send_response(self.metadata[0])
        self.end_headers()
        self.wfile.write(self.metadata[1])

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    Fake.answers, Fake.asked, Fake.hold = [], [], threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Fake)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    Fake.hold.set()
    server.shutdown()
    thread.join()
    server.server_close()


def done(colour: str = "red", warnings: Any = ()) -> dict[str, Any]:
    return {"IMAGE": base64.b64encode(png(colour)).decode(), "WARNINGS": warnings}


def test_one_picture_is_sent_as_a_text(url: str) -> None:
    Fake.answers = [(200, [done()])]
    connect(url).edit(Edit("x", [png("blue")]))
    ((_, sent),) = Fake.asked
    assert sent["IMAGES"] == base64.b64encode(png("blue")).decode()


def test_what_is_sent_is_what_was_given(url: str) -> None:
    Fake.answers = [(200, [done()]), (200, [done()])]
    client = connect(url + "/behind/a/proxy/")
    client.edit(
        Edit("ä circle", [png("blue"), png("green")], 5, 3.5, 2**64 - 1, (64, 32), "offset", "output")
    )
    client.edit(Edit("x"))
    (path, full), (_, least) = Fake.asked
    assert path == "/behind/a/proxy/v2/models/kontext_stream/generate_stream"
    images = [base64.b64encode(png(colour)).decode() for colour in ("blue", "green")]
    settings = {
        "STEPS": 5,
        "GUIDANCE": 3.5,
        "SEED": 2**64 - 1,
        "SIZE": [64, 32],
        "REFERENCE_METHOD": "offset",
        "REFERENCE_SIZE": "output",
        "parameters": {"base64": True},
    }
    assert full == {"PROMPT": "ä circle", "IMAGES": images, **settings}
    assert least == {"PROMPT": "x", "SEED": 0, "parameters": {"base64": True}}


REPAINT: dict[str, Any] = {
    "mask": png("white"),
    "mask_blur": 2,
    "strength": 0.5,
    "init_image": png("blue"),
    "paste_back": True,
    "negative_prompt": "",
    "true_cfg": 4.0,
    "cfg_until": 0.5,
}


def inputs_of(*names: str) -> bytes:
    return json.dumps({"name": "kontext_stream", "inputs": [{"name": name} for name in names]}).encode()


def test_what_is_repainted_is_sent(url: str) -> None:
    Fake.answers = [(200, [done()])]
    Fake.metadata = (200, inputs_of(*(each.name for each in contract.INPUTS)))
    connect(url).edit(Edit("x", **REPAINT))
    (question, _), (_, sent) = Fake.asked
    assert question == "/v2/models/kontext_stream"
    assert sent == {
        "PROMPT": "x",
        "SEED": 0,
        "MASK": base64.b64encode(png("white")).decode(),
        "MASK_BLUR": 2,
        "STRENGTH": 0.5,
        "INIT_IMAGE": base64.b64encode(png("blue")).decode(),
        "PASTE_BACK": True,
        "NEGATIVE_PROMPT": "",
        "TRUE_CFG": 4.0,
        "CFG_UNTIL": 0.5,
        "parameters": {"base64": True},
    }


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            (200, inputs_of("PROMPT", "IMAGES", "STEPS", "STRENGTH")),
            "does not take MASK, PASTE_BACK: its repository was written by an older kontext-export",
        ),
        ((200, b"<html>"), "does not say which inputs it takes: 200 OK"),
        ((200, b"[]"), "does not say which inputs it takes: 200 OK"),
        ((403, b'{"error": "not here"}'), "does not say which inputs it takes: 403 Forbidden: not here"),
    ],
)
def test_servers_that_would_ignore_a_mask_are_not_asked(
    url: str, metadata: tuple[int, bytes], message: str
) -> None:
    """Over HTTP, a server takes names that it does not know for parameters, and repaints everything."""
    Fake.metadata = metadata
    with pytest.raises(KontextError, match=message):
        connect(url).edit(Edit("x", [png()], mask=png("white"), strength=0.5, paste_back=True))
    assert [path for path, _ in Fake.asked] == ["/v2/models/kontext_stream"]


def test_large_masks_are_sent_as_grey(url: str) -> None:
    """What a front does not take is sent smaller: a mask in all of its pixels, since its blur counts them."""
    mask = Image.effect_noise((600, 400), 90).convert("RGBA")
    mask.putalpha(Image.radial_gradient("L").resize((600, 400)))
    file = io.BytesIO()
    mask.save(file, "PNG")
    Fake.metadata = (200, inputs_of(*(each.name for each in contract.INPUTS)))
    Fake.answers = [(413, [b"{}"]), (200, [done()])]
    with pytest.warns(UserWarning, match="the mask is taken from its transparency"):
        answer = connect(url).edit(Edit("x", mask=file.getvalue(), init_image=png()))
    assert "they are sent as smaller JPEG files" in answer.warnings[0]
    with Image.open(io.BytesIO(base64.b64decode(Fake.asked[-1][1]["MASK"]))) as sent:
        assert sent.mode == "L"
        assert np.array_equal(np.asarray(sent), np.asarray(mask.getchannel("A")))


def test_steps_and_warnings_come_through(url: str) -> None:
    Fake.answers = [(200, [{"STEP": 1, "TOTAL": 2}, {"STEP": 2, "TOTAL": 2}, done("blue", ["one", "two"])])]
    seen: list[tuple[int, int]] = []
    answer = connect(url).edit(Edit("x"), lambda step, total: seen.append((step, total)))
    assert seen == [(1, 2), (2, 2)]
    assert answer.picture.convert("RGB").getpixel((0, 0)) == (0, 0, 255)
    assert answer.warnings == ("one", "two")


def test_what_made_a_picture_comes_with_it(url: str) -> None:
    """Only if it is what this version writes: it goes into the user's files."""

    def answer(text: str | None) -> Any:
        chunks = PngImagePlugin.PngInfo()
        if text is not None:
            chunks.add_text("kontext", text)
        file = io.BytesIO()
        Image.new("RGB", (32, 16)).save(file, "PNG", pnginfo=chunks)
        Fake.answers = [(200, [{"IMAGE": base64.b64encode(file.getvalue()).decode(), "WARNINGS": []}])]
        return connect(url).edit(Edit("x"))

    assert answer(json.dumps(GIVEN)).picture.info == {"kontext": GIVEN}
    for text in (json.dumps(GIVEN | {"later": 1}), "{", "[1]"):
        strange = answer(text)
        assert strange.picture.info == {}
        assert re.fullmatch("the server's answer: its metadata .*: they are not kept", strange.warnings[0])
    assert answer(None).warnings == ()


def test_previews_come_with_the_steps(url: str) -> None:
    preview = base64.b64encode(png("green", "JPEG")).decode()
    Fake.answers = [(200, [{"STEP": 1, "TOTAL": 2, "PREVIEW": preview}, {"STEP": 2, "TOTAL": 2}, done()])]
    seen: list[Any] = []
    connect(url).edit(Edit("x", on_preview=seen.append), lambda step, _: seen.append(step))
    assert [each if isinstance(each, int) else each.size for each in seen] == [(32, 16), 1, 2]
    ((_, sent),) = Fake.asked
    assert sent["parameters"] == {"base64": True, "preview": True}
    Fake.answers = [(200, [{"STEP": 1, "TOTAL": 2, "PREVIEW": base64.b64encode(b"BM").decode()}])]
    with pytest.raises(KontextError, match="the server's preview is a BMP picture, not a JPEG picture"):
        connect(url).edit(Edit("x", on_preview=seen.append))


def test_several_pictures_are_asked_for_at_once(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Fake.answers = [(200, [done(warnings="cut")])] * 3
    output = tmp_path / "out.png"
    assert cli.main(["--server", url, "-p", "x", "--seed", "7", "--num-images", "3", "-o", str(output)]) == 0
    assert sorted(asked["SEED"] for _, asked in Fake.asked) == [7, 8, 9]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-0.png", "out-1.png", "out-2.png"]
    assert capsys.readouterr().err == "warning: cut\n"


@pytest.mark.parametrize(
    ("status", "events", "message"),
    [
        (400, [{"error": "SIZE is odd"}], "^SIZE is odd$"),
        (200, [{"STEP": 1, "TOTAL": 2}, {"error": "broken"}], "^broken$"),
        (503, [{"error": "the queue is full"}], "503 Service Unavailable: the queue is full"),
        (
            413,
            [{"error": "it is too large"}],
            "does not take a prompt and pictures of 0.0 MB in base64: it",
        ),
        (404, [{"error": "unknown model"}], "404 Not Found: unknown model"),
        (200, [b"<html>hello</html>\n"], "is not an inference server: 200 OK"),
        (200, [b"[]\n"], "is not an inference server"),
        (502, [], "says 502 Bad Gateway"),
        (200, [], "ended its answer without a picture"),
        (200, [{"STEP": 1, "TOTAL": 2}], "ended its answer without a picture"),
        (200, [{"IMAGE": "?"}], "sent a picture that is not base64"),
        (
            200,
            [{"IMAGE": base64.b64encode(b"no picture").decode()}],
            "the server's answer is not a PNG picture",
        ),
    ],
)
def test_what_a_server_may_say(
    url: str, status: int, events: list[Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_client, "RETRY_SECONDS", 0)
    Fake.answers = [(status, events)]
    with pytest.raises(KontextError, match=message):
        connect(url).edit(Edit("x"))


def test_pictures_that_are_too_large_are_sent_smaller(url: str) -> None:
    """Once, and only if that makes them smaller; the answer's warnings say so."""
    file = io.BytesIO()
    photo = Image.effect_noise((2400, 1800), 60).convert("RGB")
    photo.save(file, "PNG")
    Fake.answers = [(413, [{"error": "too large"}]), (200, [done(warnings="cut")])]
    answer = connect(url).edit(Edit("x", [file.getvalue(), png()]))
    assert answer.warnings[0].endswith("MB in base64: too large: they are sent as smaller JPEG files")
    assert answer.warnings[1] == "cut"
    large, small = (base64.b64decode(text) for text in Fake.asked[1][1]["IMAGES"])
    assert small == png()
    sent = Image.open(io.BytesIO(large))
    assert sent.format == "JPEG"
    assert sent.width * sent.height <= SMALLER_PIXELS / 2
    assert abs(sent.width / sent.height - 4 / 3) < 0.01
    ours, whole = (np.asarray(each.resize((240, 180), Image.Resampling.BOX), float) for each in (sent, photo))
    assert np.abs(ours - whole).mean() < 3
    Fake.answers = [(413, [{"error": "too large"}])] * 2
    with pytest.raises(KontextError, match="does not take"):
        connect(url).edit(Edit("x", [file.getvalue()]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--server", "http://127.0.0.1:9"], "127.0.0.1:9: connection refused"),
        (["--server", "localhost:8000"], "is not a server's URL"),
        (["--server", "http://"], "is not a server's URL"),
        (["--server", "http://host:port"], "is not a URL"),
        (["--server", "ftp://host"], "is not a server's URL, such as http://HOST:8000 or grpc://HOST:8001"),
        (["--server", "http://127.0.0.1:9", "--device", "cpu"], "--device has no effect with --server"),
        (["--server", "http://127.0.0.1:9", "--backend", "torch"], "--backend has no effect with --server"),
        (["--server", "http://127.0.0.1:9", "--offload"], "--offload has no effect with --server"),
        (["--server", "http://127.0.0.1:9", "--verify"], "--verify has no effect with --server"),
        (
            ["--server", "http://127.0.0.1:9", "--weight-budget", "8GB"],
            "--weight-budget has no effect with --server",
        ),
        (["--server", "http://127.0.0.1:9", "some-bundle"], "name either a BUNDLE or a --server"),
        ([], "name either a BUNDLE or a --server"),
        (["--server", "http://127.0.0.1:9", "--steps", str(2**31)], f"steps {2**31} is out of range"),
        (["--server", "http://127.0.0.1:9", "--seed", "-1"], "a seed is a whole number"),
        (
            ["--server", "http://127.0.0.1:9", "--guidance", "inf"],
            "guidance must be a finite number",
        ),
        (["--server", "http://127.0.0.1:9", "-i", "nowhere.png"], "nowhere.png does not exist"),
        (
            ["--server", "http://127.0.0.1:9", "-i", __file__],
            "is not a PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF or HEIC picture",
        ),
        (["--server", "http://127.0.0.1:9", "-p", "\udcff"], "the prompt is not valid Unicode text"),
    ],
)
def test_what_can_go_wrong_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["-p", "x", "-o", "out.png", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


DEAD = {"error": "Stub process 'kontext_stream_0_0' is not healthy."}
FULL = {"error": "in queue of model 'kontext_stream': Exceeds maximum queue size"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_client, "PAUSES", (0.01, 0.02))


@pytest.mark.usefixtures("quick")
def test_an_edit_that_the_server_could_not_finish_is_sent_again(url: str) -> None:
    """Each step is told once, although the second try begins anew."""
    Fake.answers = [
        (200, [{"STEP": 1, "TOTAL": 2}]),
        (503, [FULL]),
        (502, [b"<html>a proxy</html>"]),
        (400, [DEAD]),
        (400, [FULL]),
        (200, [{"STEP": 1, "TOTAL": 2}, {"STEP": 2, "TOTAL": 2}, done("blue")]),
    ]
    seen: list[tuple[int, int]] = []
    answer = connect(url).edit(Edit("x"), lambda step, total: seen.append((step, total)))
    assert answer.picture.convert("RGB").getpixel((0, 0)) == (0, 0, 255)
    assert seen == [(1, 2), (2, 2)]
    assert len({json.dumps(asked) for _, asked in Fake.asked}) == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("status", [400, 500])
def test_what_was_refused_is_not_sent_again(url: str, status: int) -> None:
    Fake.answers = [(status, [{"error": "no"}]), (200, [done()])]
    with pytest.raises(KontextError, match=r"no$"):
        connect(url).edit(Edit("x"))
    assert len(Fake.asked) == 1


@pytest.mark.usefixtures("quick")
def test_an_edit_that_breaks_the_server_is_not_sent_for_ever(url: str) -> None:
    Fake.answers = [(400, [DEAD])] * 9
    with pytest.raises(KontextError, match="is not healthy"):
        connect(url).edit(Edit("x"))
    assert len(Fake.asked) == server_client.MOST_BROKEN


@pytest.mark.usefixtures("quick")
def test_trying_again_ends(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_client, "RETRY_SECONDS", 0.1)
    Fake.answers = [(503, [FULL])] * 99
    with pytest.raises(KontextError, match="503 Service Unavailable: in queue"):
        connect(url).edit(Edit("x"))
    assert 1 < len(Fake.asked) < 99


def test_grpc_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tritonclient.grpc", None)
    with pytest.raises(
        KontextError, match=re.escape(f"grpc:// needs tritonclient: {install_command('serve')}")
    ):
        connect("grpc://127.0.0.1:8001")


def test_the_first_fault_is_not_waited_for(url: str) -> None:
    Fake.answers = [(200, ["wait"]), (400, [{"error": "no"}])]
    with pytest.raises(KontextError, match=r"^no$"):
        edit_all(connect(url), [Edit("x"), Edit("y")])


def test_one_fault_ends_the_others(url: str) -> None:
    """No thread stays behind with a request that nobody wants any more."""
    Fake.answers = [(200, [{"STEP": 1, "TOTAL": 2}, "wait"]), (400, [{"error": "no"}])]
    client = connect(url)
    waits = threading.Event()
    threads = threading.active_count()
    held = threading.Thread(target=lambda: quietly(client, waits), daemon=True)
    held.start()
    assert waits.wait(30)
    with pytest.raises(KontextError, match=r"^no$"):
        edit_all(client, [Edit("x")])
    held.join(30)
    assert not held.is_alive()
    Fake.hold.set()
    assert threading.active_count() <= threads + 2  # the fake server's own


def quietly(client: Any, waits: threading.Event) -> None:
    with contextlib.suppress(KontextError):
        client.edit(Edit("x"), lambda step, total: waits.set())


def test_pictures_go_as_they_are_or_as_png(tmp_path: Path) -> None:
    for kind, same in (("PNG", True), ("JPEG", True), ("WEBP", True), ("TIFF", False), ("BMP", False)):
        path = tmp_path / f"picture.{kind.lower()}"
        path.write_bytes(png(kind=kind))
        sent = picture_file(path)
        assert (sent == path.read_bytes()) is same
        if not same:
            assert sent.startswith(b"\x89PNG")
