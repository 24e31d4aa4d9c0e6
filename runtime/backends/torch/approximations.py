"""Two approximations of the denoising loop, both off by default: what changes little from step to step is reused.

`cache`: if the first block's effect on the target is nearly that at the last step computed in full, the other blocks
are skipped, and what they added then is added again. The first steps of an edit and large changes are computed. This
is First Block Cache (ParaAttention, github.com/chengzeyi/ParaAttention; `FirstBlockCacheConfig` in diffusers), which
decides as TeaCache does (Liu et al. 2024, arXiv:2411.19108) but needs no fitted polynomial.

`reuse`: the reference's tokens go through the network at every `reuse`-th step only, when each block stores their keys
and values. The steps in between compute text and target alone, which attend to the stored ones. This is an
approximation, since reference tokens attend to the target too and are modulated by the timestep (conditional feature
reuse in OminiControl2, Tan et al. 2025, arXiv:2503.08280, is exact because it is trained without that attention).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .memory import GraphedStep
from .transformer import SharedInputs, Step

TABLES = ("rope_cos", "rope_sin")
MODULATIONS = ("double_modulation", "single_modulation")


@dataclass
class StepCounts:
    """Steps since the backend was created: all, those that ran every block, and those that ran every block with the
    reference's tokens."""

    steps: int = 0
    computed: int = 0
    with_reference: int = 0


@dataclass(frozen=True)
class StepShape:
    """The sizes of a step: rows of the batch, and tokens of each kind."""

    batch: int
    text: int
    target: int
    reference: int

    @classmethod
    def of(cls, inputs: dict[str, Tensor]) -> StepShape:
        text, target, reference = (inputs[name].shape[1] for name in ("text", "target", "reference"))
        return cls(inputs["target"].shape[0], text, target, reference)


@dataclass(frozen=True)
class State:
    """What is kept between steps, and between the pieces of a step. CUDA graphs contain these addresses.

    Args:
        x: [batch, tokens, hidden], the residual stream after the first block.
        residual: [batch, targets, hidden], what the first block added to the target at this step.
        first: the same at the last step that was computed in full.
        rest: [batch, targets, hidden], what all other blocks added at that step.
        kept: for each block the reference's keys and values, [batch, reference tokens, 2 * hidden].
    """

    shape: StepShape
    x: Tensor
    residual: Tensor
    first: Tensor
    rest: Tensor
    kept: tuple[Tensor, ...] | None


class ApproximateStep:
    """Velocities of one step after another; the first step of an edit reuses nothing.

    In a batch the row that changed most decides for all. With CUDA graphs the step is cut into pieces, each with its
    own graph (first block; other blocks; neither), since the host decides what comes next: it waits for one number a
    step, while a step without graphs waits for the launch of every kernel.

    Args:
        step: the exact step.
        device: where it runs.
        graphs: capture the pieces as CUDA graphs.
        cache: skip the other blocks if the first one's residual changed by at most this share; None: never skip.
        reuse: compute the reference's tokens at every this many steps; None: at every step.
        step_counts: counts every step.
    """

    def __init__(
        self,
        step: Step,
        device: torch.device,
        graphs: bool,
        cache: float | None,
        reuse: int | None,
        step_counts: StepCounts,
    ) -> None:
        self.step, self.device, self.cache, self.reuse, self.step_counts = (
            step,
            device,
            cache,
            reuse,
            step_counts,
        )
        self.graphs = graphs and device.type == "cuda"
        self.pool: Any = None
        self.state: State | None = None
        self.pieces: dict[tuple[str, bool], GraphedStep] = {}
        self.known = False
        """Whether a step of this edit was computed in full."""
        self.since: int | None = None
        """Steps since the reference's tokens were last computed in every block, that step included; None: never."""

    def __call__(self, inputs: dict[str, Tensor], first: bool) -> Tensor:
        """The velocity [batch, targets, channels].

        Args:
            inputs: as `Step` takes them.
            first: whether this is the first step of an edit.
        """
        if first:
            self.known, self.since = False, None
        self.make_state(inputs)
        reusing = self.reuse is not None and inputs["reference"].shape[1] > 0
        # Without reuse, and without a reference, every step computes all tokens.
        every = not reusing or self.since is None or (self.reuse is not None and self.since >= self.reuse)
        given = inputs if every else {**inputs, "reference": inputs["reference"][:, :0]}
        full = True
        if self.cache is None:
            velocity = self.piece("whole", every)(given)
        else:
            change = self.piece("first", every)(
                {name: tensor for name, tensor in given.items() if name != "final_modulation"}
            )
            full = not (self.known and float(change.max()) <= self.cache)  # NaN: computed in full
            if full:
                names = (*TABLES, *MODULATIONS, "final_modulation")
                velocity = self.piece("others", every)({name: given[name] for name in names})
            else:
                velocity = self.piece("none")({"final_modulation": given["final_modulation"]})
        self.count(full, every)
        return velocity

    def make_state(self, inputs: dict[str, Tensor]) -> None:
        """Allocates the state for inputs of these shapes, unless it has them."""
        shape = StepShape.of(inputs)
        if self.state is None or self.state.shape != shape:
            self.pieces.clear()  # their graphs contain the old state's addresses
            # All graphs share a memory pool: none reads what another left there, and what they return is copied.
            self.pool = torch.cuda.graph_pool_handle() if self.graphs else None
            self.state = None  # before the next is allocated
            self.state, self.known, self.since = self.allocate(shape, inputs["target"]), False, None

    def drop_graphs(self) -> None:
        """As `GraphedStep.drop_graphs`; the state is kept."""
        for piece in self.pieces.values():
            piece.drop_graphs()

    def count(self, full: bool, every: bool) -> None:
        self.step_counts.steps += 1
        self.step_counts.computed += full
        self.step_counts.with_reference += full and every
        self.known = self.known or full
        if full and every:
            self.since = 1
        elif self.since is not None:
            self.since += 1

    def allocate(self, shape: StepShape, like: Tensor) -> State:
        """A state of zeros for steps of this shape; its tensors are empty if the option that needs them is off."""
        hidden = self.step.config.hidden_size

        def room(tokens: int) -> Tensor:
            return like.new_zeros((shape.batch, tokens if self.cache is not None else 0, hidden))

        kept = None
        if self.reuse is not None and shape.reference:
            size = (shape.batch, shape.reference, 2 * hidden)
            kept = tuple(like.new_zeros(size) for _ in range(self.step.depth))
        x = room(shape.text + shape.target + shape.reference)
        return State(shape, x, room(shape.target), room(shape.target), room(shape.target), kept)

    def piece(self, name: str, every: bool = True) -> GraphedStep:
        """A piece of the step, for all tokens or, if not `every`, for those of text and target only."""
        if (name, every) not in self.pieces:
            parts: dict[str, Callable[..., Tensor]] = {
                "whole": self.whole,
                "first": self.first_block,
                "others": self.other_blocks_all if every else self.other_blocks,
                "none": self.no_blocks,
            }
            self.pieces[name, every] = GraphedStep(parts[name], self.device, self.graphs, self.pool)
        return self.pieces[name, every]

    # -- the pieces: each gives the same result when it runs again with the same inputs, as it does before a capture --

    @property
    def now(self) -> State:
        assert self.state is not None
        return self.state

    @property
    def target(self) -> slice:
        """The target's tokens in the residual stream."""
        return slice(self.now.shape.text, self.now.shape.text + self.now.shape.target)

    def shared_inputs(
        self, rope_cos: Tensor, rope_sin: Tensor, double_modulation: Tensor, single_modulation: Tensor
    ) -> SharedInputs:
        return SharedInputs(self.now.shape.text, rope_cos, rope_sin, double_modulation, single_modulation)

    def whole(
        self, target: Tensor, reference: Tensor, text: Tensor, final_modulation: Tensor, **shared: Tensor
    ) -> Tensor:
        x = self.step.embed(target, reference, text)
        self.step.run(x, self.shared_inputs(**shared), 0, self.step.depth, self.now.kept)
        return self.step.velocity(x[:, self.target], final_modulation)

    def first_block(self, target: Tensor, reference: Tensor, text: Tensor, **shared: Tensor) -> Tensor:
        """Runs the first block and returns its change, fp32 [batch]: mean |residual - first| / mean |first|.

        The means are over the target, as in diffusers; the reference's tokens change little from step to step and
        would hide the target's change.
        """
        state = self.now
        x = self.step.embed(target, reference, text)
        before = x[:, self.target].clone()
        self.step.run(x, self.shared_inputs(**shared), 0, 1, state.kept)
        state.x[:, : x.shape[1]] = x
        torch.sub(x[:, self.target], before, out=state.residual)
        apart = (state.residual.float() - state.first.float()).abs().mean((1, 2))
        return apart / state.first.float().abs().mean((1, 2))

    def other_blocks_all(self, **shared: Tensor) -> Tensor:
        return self.from_second(self.now.x, **shared)

    def other_blocks(self, **shared: Tensor) -> Tensor:
        return self.from_second(self.now.x[:, : self.target.stop], **shared)

    def from_second(self, after_first: Tensor, final_modulation: Tensor, **shared: Tensor) -> Tensor:
        state, x = self.now, after_first.clone()
        self.step.run(x, self.shared_inputs(**shared), 1, self.step.depth, state.kept)
        state.first.copy_(state.residual)
        torch.sub(x[:, self.target], after_first[:, self.target], out=state.rest)
        return self.step.velocity(x[:, self.target], final_modulation)

    def no_blocks(self, final_modulation: Tensor) -> Tensor:
        return self.step.velocity(self.now.x[:, self.target] + self.now.rest, final_modulation)


def describe(cache: float | None, reuse: int | None, step_counts: StepCounts) -> str:
    """What was approximated, in words; "" for nothing."""
    parts = []
    if cache is not None:
        parts.append(f"cache {cache:g}: {step_counts.computed} of {step_counts.steps} steps computed in full")
    if reuse is not None:
        parts.append(f"reuse_reference {reuse}: reference computed at {step_counts.with_reference}")
    return "; ".join(parts)
