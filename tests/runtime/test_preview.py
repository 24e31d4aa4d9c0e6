"""Previews of edits: in a callback, what the step leads to, with masks too; on the command line, a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kontext.errors import KontextError
from kontext.runtime import Pipeline, cli
from kontext.runtime.images import open_picture
from kontext.runtime.preview import draw_latents


def drawn() -> Image.Image:
    return Image.effect_mandelbrot((176, 96), (-2, -1.5, 1, 1.5), 50).convert("RGB")


def test_colours_are_pytorch_s(pipe: Pipeline) -> None:
    """The linear layer that ComfyUI's previews are."""
    torch = pytest.importorskip("torch")
    latents = np.random.default_rng(0).normal(size=(2, 16, 6, 4)).astype(np.float32)
    entry = pipe.bundle.preview
    assert entry is not None
    made = torch.nn.functional.linear(
        torch.from_numpy(latents).movedim(1, -1), torch.tensor(entry.factors).T, torch.tensor(entry.bias)
    )
    expected = ((made + 1) / 2).clamp(0, 1).mul(255).round().byte().numpy()
    found = np.stack([np.asarray(each) for each in draw_latents(pipe.bundle, latents)])
    assert found.shape == (2, 6, 4, 3)
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("more", [{}, {"mask": Image.linear_gradient("L"), "strength": 0.7}])
def test_a_preview_is_where_the_step_leads_to(pipe: Pipeline, more: dict[str, Any]) -> None:
    """With Euler's method: if no later step turned, the last latents would be those of the first preview."""
    seen: list[tuple[np.ndarray[Any, Any], list[Image.Image]]] = []
    pipe.edit(
        drawn(),
        ["make it blue"] * 2,
        steps=4,
        callback=lambda *step: seen.append((step[2], pipe.previews())),
        **more,
    )
    latents, last = seen[-1]
    assert [each.tobytes() for each in last] == [
        each.tobytes() for each in draw_latents(pipe.bundle, latents)
    ]
    assert [len(each) for _, each in seen] == [2] * len(seen)
    assert {each.size for _, pictures in seen for each in pictures} == {(22, 12)}
    assert seen[0][1][0].tobytes() != draw_latents(pipe.bundle, seen[0][0])[0].tobytes()  # those have noise


def test_one_step_is_the_last_preview(pipe: Pipeline) -> None:
    """The first of two steps previews what a single step makes."""
    first: list[Image.Image] = []
    pipe.edit(drawn(), "x", steps=2, callback=lambda *_: first.extend(pipe.previews()))
    alone: list[np.ndarray[Any, Any]] = []
    pipe.edit(drawn(), "x", steps=1, callback=lambda *step: alone.append(step[2]))
    only = np.asarray(draw_latents(pipe.bundle, alone[0])[0]).astype(int)
    assert np.abs(np.asarray(first[0]).astype(int) - only).max() <= 1


def test_outside_of_an_edit_and_of_older_bundles(pipe: Pipeline, tiny_bundle: Path) -> None:
    with pytest.raises(KontextError, match="there is a preview only while an edit runs"):
        pipe.previews()
    older = Pipeline.load(replace(pipe.bundle, preview=None), device="cpu")
    with pytest.raises(
        KontextError, match="has no colours for previews: it was exported by an earlier version"
    ):
        older.edit(drawn(), "x", steps=1, callback=lambda *_: older.previews())
    older.edit(drawn(), "x", steps=1)


def test_the_command_writes_each_step_s(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    drawn().save("in.png")
    seen: list[bytes] = []
    show = cli.show_preview

    def watched(preview: Image.Image, path: Path) -> None:
        show(preview, path)
        seen.append(path.read_bytes())

    monkeypatch.setattr(cli, "show_preview", watched)
    words = [str(tiny_bundle), "-i", "in.png", "-p", "secret", "--steps", "3", "--quiet", "--device", "cpu"]
    assert cli.main([*words, "-o", "out.png", "--preview", "now.png"]) == 0
    assert len(set(seen)) == 3
    assert open_picture("now.png").size == open_picture("out.png").size == (176, 96)
    assert open_picture("now.png").info == {}
    assert cli.main([*words, "-o", "out.png", "--preview", "out.png"]) == 2
    assert "--preview and -o both name out.png" in capsys.readouterr().err
    assert cli.main([*words, "-o", "out.png", "--preview", "nowhere/now.png"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "now.png", "out.png"]
