"""Step caching and kept reference tokens: exact where they must be, diffusers' own first-block cache beside ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from kontext.decibels import psnr  # noqa: E402
from kontext.runtime import Pipeline, TorchOptions  # noqa: E402
from kontext.runtime.backends.protocol import SamplerStep  # noqa: E402
from kontext.runtime.backends.torch import approximations, memory  # noqa: E402
from kontext.runtime.backends.torch.backend import TorchBackend  # noqa: E402
from kontext.runtime.bundle import Bundle  # noqa: E402
from kontext.runtime.cli import main  # noqa: E402
from kontext.runtime.tokens import positions, rope_tables  # noqa: E402

TEXT = "make the circle red"
BOTH = {"cache": 0.2, "reuse_reference": 3}


def photograph() -> Image.Image:
    return Image.effect_mandelbrot((128, 128), (-2, -1.5, 1, 1.5), 50).convert("RGB")


def pipeline(folder: Path, **options: Any) -> Pipeline:
    bundle = Bundle.open(folder)
    return Pipeline(bundle, TorchBackend(bundle, "cpu", TorchOptions(**options)))


def report(pipe: Pipeline) -> approximations.StepCounts:
    assert isinstance(pipe.backend, TorchBackend)
    return pipe.backend.step_counts


class Run:
    """The transformer of a bundle, step by step, with text and references that all steps hold in common."""

    def __init__(self, folder: Path, batch: int, references: int, **options: Any) -> None:
        bundle = Bundle.open(folder)
        self.backend = TorchBackend(bundle, "cpu", TorchOptions(**options))
        self.batch, self.config = batch, bundle.transformer
        self.steps = 0
        model = bundle.manifest["model"]["transformer"]
        generator = np.random.default_rng(0)
        self.text = generator.standard_normal((batch, 24, model["text_dim"]), np.float32)
        self.pooled = generator.standard_normal((batch, model["pooled_dim"]), np.float32)
        reference = generator.standard_normal((batch, 16 * references, 64), np.float32)
        self.positions = positions(24, [(4, 4)] * (1 + references))
        cos, sin = rope_tables(self.positions, self.config.axes_dim, self.config.theta)
        self.shared = self.backend.hold(
            {"text": self.text, "reference": reference, "rope_cos": cos, "rope_sin": sin}
        )

    def velocity(self, target: Any, time: float) -> Any:
        times, guidance = np.full(self.batch, time, np.float32), np.full(self.batch, 2.5, np.float32)
        inputs = {"timestep": times, "guidance": guidance, "pooled": self.pooled}
        modulations = self.backend.run("modulation", inputs)
        step, self.steps = SamplerStep(self.steps, 100), self.steps + 1
        inputs = {"target": target, **self.shared, **modulations}
        return self.backend.run("transformer", inputs, step)["velocity"]


def targets(steps: int, batch: int = 1) -> list[Any]:
    """Latents that change less and less."""
    generator = np.random.default_rng(1)
    x = generator.standard_normal((batch, 16, 64), np.float32)
    change = generator.standard_normal((steps, batch, 16, 64), np.float32)
    return [x + change[step] * 0.3**step for step in range(steps)]


# -- exact where nothing is left out --


def test_a_cache_that_is_never_used_changes_nothing(tiny_bundle: Path) -> None:
    exact, cached = pipeline(tiny_bundle), pipeline(tiny_bundle, cache=1e-9)
    pictures = [pipe.edit(photograph(), TEXT, steps=4) for pipe in (exact, cached)]
    assert np.array_equal(*map(np.asarray, pictures))
    assert report(cached) == approximations.StepCounts(4, 4, 4)
    assert report(exact) == approximations.StepCounts()


def test_both_passes_of_true_cfg_and_what_follows_them(tiny_bundle: Path) -> None:
    """The batch becomes smaller after the first steps: nothing is reused there, and all is right as long as nothing may
    be skipped. With a reference that is kept, all steps are as many as they were."""
    given: dict[str, Any] = {"negative_prompt": "a star", "true_cfg": 3.0, "cfg_until": 0.5}
    given |= {"mask": Image.linear_gradient("L"), "strength": 0.8}
    exact, cached = pipeline(tiny_bundle), pipeline(tiny_bundle, cache=1e-9)
    pictures = [pipe.edit(photograph(), TEXT, steps=5, **given) for pipe in (exact, cached)]
    assert np.array_equal(*map(np.asarray, pictures))
    assert report(cached) == approximations.StepCounts(4, 4, 4)
    kept = pipeline(tiny_bundle, reuse_reference=2)
    assert psnr(kept.edit(photograph(), TEXT, steps=5, **given), pictures[0]) > 15
    assert report(kept) == approximations.StepCounts(4, 4, 2)


def test_without_a_reference_there_is_nothing_to_keep(tiny_bundle: Path) -> None:
    pictures = [
        pipe.edit(None, TEXT, steps=3)
        for pipe in (pipeline(tiny_bundle), pipeline(tiny_bundle, reuse_reference=2))
    ]
    assert np.array_equal(*map(np.asarray, pictures))


@pytest.mark.parametrize("attention", ["16-bit", "fp8", "int8"])
@pytest.mark.parametrize("offload", [False, True])
def test_kept_keys_and_values_are_those_of_the_reference(
    attention: str, offload: bool, tiny_bundle: Path
) -> None:
    """The same step again: what was kept is what would be computed, in every format of attention."""
    run = Run(tiny_bundle, 2, 2, reuse_reference=2, attention=attention, offload=offload)
    exact = Run(tiny_bundle, 2, 2, attention=attention)
    target = targets(1, 2)[0]
    wanted = exact.velocity(target, 0.7)
    computed, kept, again = (run.velocity(target, 0.7) for _ in range(3))
    assert run.backend.step_counts == approximations.StepCounts(3, 3, 2)
    for found in (computed, kept, again):
        assert np.allclose(found, wanted, atol=1e-5)
    # And it is an approximation as soon as the target has changed.
    other = targets(1, 2)[0] * 0.5
    error = np.abs(run.velocity(other, 0.3) - exact.velocity(other, 0.3)).max()
    assert error > 1e-4


@pytest.mark.parametrize("options", [{"cache": 0.2}, {"reuse_reference": 2}, BOTH], ids=str)
def test_offloaded_blocks_give_the_same(options: dict[str, Any], tiny_bundle: Path) -> None:
    pictures = [
        pipeline(tiny_bundle, offload=offload, **options).edit(photograph(), TEXT, steps=6)
        for offload in (False, True)
    ]
    assert np.array_equal(*map(np.asarray, pictures))


# -- the cache's decision --


@pytest.fixture
def peer(tiny_checkpoint: Path) -> Any:
    pytest.importorskip("diffusers")
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel.from_pretrained(tiny_checkpoint / "transformer").eval()


@pytest.mark.parametrize("threshold", [0.25, 0.35, 0.5])
def test_the_same_as_the_first_block_cache_of_diffusers(
    threshold: float, peer: Any, tiny_bundle: Path
) -> None:
    """Without a reference, whose tokens diffusers counts too: the same steps are skipped, to the same velocities."""
    from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

    apply_first_block_cache(peer, FirstBlockCacheConfig(threshold))
    calls: list[None] = []
    peer.single_transformer_blocks[0].norm.register_forward_hook(lambda *_: calls.append(None))
    run = Run(tiny_bundle, 1, 0, cache=threshold)
    for step, target in enumerate(targets(8)):
        time = 0.9 - 0.001 * step
        with torch.inference_mode(), peer.cache_context("cond"):
            wanted = peer(
                hidden_states=torch.from_numpy(target),
                encoder_hidden_states=torch.from_numpy(run.text),
                pooled_projections=torch.from_numpy(run.pooled),
                timestep=torch.tensor([time]),
                guidance=torch.tensor([2.5]),
                img_ids=torch.from_numpy(run.positions[24:]).float(),
                txt_ids=torch.from_numpy(run.positions[:24]).float(),
            ).sample.numpy()
        found = run.velocity(target, time)
        assert run.backend.step_counts.computed == len(calls)
        assert np.allclose(found, wanted, atol=2e-5)
    assert 1 < len(calls) < 8


def test_the_row_that_changed_most_decides(tiny_bundle: Path) -> None:
    first, second = targets(2, 2)
    for rows, computed in (([0, 1], 2), ([0], 2), ([], 1)):
        run = Run(tiny_bundle, 2, 1, cache=0.05)
        run.velocity(first, 0.7)
        changed = first.copy()
        changed[rows] = second[rows] * 3
        run.velocity(changed, 0.7)
        assert run.backend.step_counts.computed == computed


# -- runs --


@pytest.mark.parametrize("options", [{"cache": 0.5}, {"reuse_reference": 9}, BOTH], ids=str)
def test_nothing_of_an_edit_is_in_the_next(options: dict[str, Any], tiny_bundle: Path) -> None:
    """An edit gives the same alone as after others: of the same shape, of another, and of one that was given up."""
    wanted = pipeline(tiny_bundle, **options).edit(photograph(), "x", steps=5)
    pipe = pipeline(tiny_bundle, **options)

    def stop(step: int, *_: object) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe.edit(photograph(), "make it blue", steps=5, callback=stop)
    assert np.array_equal(np.asarray(pipe.edit(photograph(), "x", steps=5)), np.asarray(wanted))
    pipe.edit([photograph()] * 2, ["a", "b"], steps=3)
    pipe.edit(None, "x", steps=3)
    assert np.array_equal(np.asarray(pipe.edit(photograph(), "x", steps=5)), np.asarray(wanted))


def test_the_first_step_of_an_edit_reuses_nothing(tiny_bundle: Path) -> None:
    run = Run(tiny_bundle, 1, 1, cache=0.5)
    for _ in range(2):
        run.steps = 0
        run.velocity(targets(1)[0], 0.7)
    assert run.backend.step_counts == approximations.StepCounts(2, 2, 2)


@pytest.mark.parametrize("options", [{"cache": 0.3}, {"reuse_reference": 2}, BOTH], ids=str)
def test_pieces_may_run_twice_as_before_a_capture(
    options: dict[str, Any], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CUDA graph's capture runs a piece for nothing first; its state must be the same after that."""
    wanted = pipeline(tiny_bundle, **options).edit(photograph(), TEXT, steps=6)

    class Warmed(memory.GraphedStep):
        def __call__(self, inputs: dict[str, Any]) -> Any:
            for _ in range(memory.WARMUPS):
                self.step(**inputs)
            return super().__call__(inputs)

    monkeypatch.setattr(approximations, "GraphedStep", Warmed)
    assert np.array_equal(
        np.asarray(pipeline(tiny_bundle, **options).edit(photograph(), TEXT, steps=6)), np.asarray(wanted)
    )


def test_the_embedded_model_stays_close(embedded: dict[str, Path]) -> None:
    wanted = pipeline(embedded["fp32"]).edit(photograph(), TEXT, steps=12)
    for options, bound, counts in (
        ({"cache": 0.1}, 40, (6, 11)),
        ({"reuse_reference": 2}, 35, (12, 12)),
        ({"cache": 0.1, "reuse_reference": 2}, 30, (6, 11)),
    ):
        pipe = pipeline(embedded["fp32"], **options)
        assert psnr(pipe.edit(photograph(), TEXT, steps=12), wanted) >= bound, options
        assert counts[0] <= report(pipe).computed <= counts[1]


# -- what it says and refuses --


@pytest.fixture
def words(tiny_bundle: Path, tmp_path: Path) -> list[str]:
    photograph().save(tmp_path / "in.png")
    flags = ["-i", str(tmp_path / "in.png"), "-p", "x", "-o", str(tmp_path / "out.png"), "--steps", "3"]
    return [str(tiny_bundle), *flags]


def test_the_command_line_declares_it(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--backend", "torch", "--device", "cpu", "--cache", "1e-9", "--reuse-reference", "2"]
    assert main([*words, *flags]) == 0
    said = "approximated: cache 1e-09: 3 of 3 steps computed in full; reuse_reference 2: reference computed at 2\n"
    assert capsys.readouterr().out.startswith(said)
    assert main([*words, *flags, "--quiet"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cache", "0.1"], "--cache needs --backend torch"),
        (["--reuse-reference", "4"], "--reuse-reference needs --backend torch"),
        (["--compile"], "--compile needs --backend torch"),
        (
            ["--backend", "torch", "--cache", "0"],
            "cache must be a relative change above 0, such as 0.1, not 0:",
        ),
        (
            ["--backend", "torch", "--cache", "nan"],
            "cache must be a relative change above 0, such as 0.1, not nan:",
        ),
        (["--backend", "torch", "--reuse-reference", "1"], "reuse_reference must be 2 steps or more, not 1:"),
        (["--backend", "torch", "--cache", "much"], "argument --cache: invalid float value: 'much'"),
    ],
)
def test_one_line_where_it_cannot_be(
    flags: list[str], message: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_they_have_no_effect_with_a_server(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for flags in (["--cache", "0.1"], ["--reuse-reference", "2"], ["--compile"]):
        words = ["--server", "http://localhost:1", "-p", "x", "-o", str(tmp_path / "out.png"), *flags]
        assert main(words) == 2
        assert capsys.readouterr().err.startswith(f"error: {flags[0]} has no effect with --server")


def test_from_python(tiny_bundle: Path) -> None:
    pipe = Pipeline.load(tiny_bundle, device="cpu", backend=TorchOptions(cache=1e-9, reuse_reference=2))
    pipe.edit(photograph(), "x", steps=2)
    assert report(pipe) == approximations.StepCounts(2, 2, 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("graphs", [True, False])
def test_on_a_gpu(graphs: bool, embedded: dict[str, Path]) -> None:
    """The pieces as CUDA graphs, twice, so that the second run replays what the first captured."""
    bundle = Bundle.open(embedded["fp32"])
    wanted = pipeline(embedded["fp32"], **BOTH).edit(photograph(), TEXT, steps=8)
    backend = TorchBackend(bundle, "cuda", TorchOptions(graphs=graphs, attention="16-bit", **BOTH))
    pipe = Pipeline(bundle, backend)
    for _ in range(2):
        assert psnr(pipe.edit(photograph(), TEXT, steps=8), wanted) >= 30
