"""Eight Gaussians: a deep Wasserstein critic with a gradient penalty, with clipped weights, and with neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import gradcore
from experiments.common import side_by_side, spread, table
from gradcore.optim import Adam

MODES, RADIUS, DEVIATION = 8, 1.0, 0.05
LATENT, WIDTH, GENERATOR_LAYERS, CRITIC_LAYERS = 2, 64, 3, 8
BATCH, CRITIC_STEPS, LR, BETAS = 256, 5, 1e-3, (0.0, 0.9)
SAMPLES = 10_000
ARMS: dict[str, dict[str, float]] = {
    "gradient penalty, weight 10": {"penalty": 10.0},
    "weights clipped at 0.01": {"clip": 0.01},
    "weights clipped at 0.1": {"clip": 0.1},
    "neither": {},
}

Array = np.ndarray[Any, Any]
_ANGLES = 2 * np.pi * np.arange(MODES) / MODES
CENTERS = (RADIUS * np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)).astype(np.float32)


def real(rng: np.random.Generator, n: int) -> Array:
    """Draw from the mixture, (n, 2)."""
    return CENTERS[rng.integers(MODES, size=n)] + np.float32(DEVIATION) * rng.standard_normal((n, 2), np.float32)


def quality(samples: Array) -> tuple[int, float]:
    """Return the number of modes that have at least a quarter of their share, and the share of good samples.

    A sample is good within three standard deviations of the nearest mode; of the mixture itself 98.9 % are.
    """
    distance = np.linalg.norm(samples[:, None] - CENTERS, axis=2)
    good = distance.min(axis=1) < 3 * DEVIATION
    counts = np.bincount(distance.argmin(axis=1)[good], minlength=MODES)
    return int((counts >= len(samples) / MODES / 4).sum()), float(good.mean())


def train(arm: str, seed: int, steps: int) -> dict[str, Any]:
    """Train generator and critic, and look at the samples eight times."""
    rng = np.random.default_rng(seed)
    generator = gradcore.MLP([LATENT, *[WIDTH] * GENERATOR_LAYERS, 2], rng=rng)
    critic = gradcore.MLP([2, *[WIDTH] * CRITIC_LAYERS, 1], rng=rng)
    optimizers = [Adam(model, lr=LR, betas=BETAS) for model in (generator, critic)]
    mean = np.full((BATCH, 1), 1 / BATCH, np.float32)
    penalty, clip = ARMS[arm].get("penalty"), ARMS[arm].get("clip")
    seen: list[dict[str, Any]] = []

    def noise(n: int) -> Array:
        return rng.standard_normal((n, LATENT), np.float32)

    def between(n: int) -> Array:
        share = rng.random((n, 1), np.float32)
        return share * real(rng, n) + (1 - share) * generator(noise(n))

    for step in range(1, steps + 1):
        for _ in range(CRITIC_STEPS):
            critic.zero_grad()
            _, tape = critic.forward(np.concatenate([generator(noise(BATCH)), real(rng, BATCH)]))
            critic.backward(tape, np.concatenate([mean, -mean]))
            if penalty is not None:
                gradcore.gradient_penalty(critic, between(BATCH), weight=penalty)
            optimizers[1].step()
            if clip is not None:
                np.clip(critic.flat_params, -clip, clip, out=critic.flat_params)
        generator.zero_grad()
        samples, its_tape = generator.forward(noise(BATCH))
        _, tape = critic.forward(samples)
        generator.backward(its_tape, critic.backward(tape, -mean))
        optimizers[0].step()
        for optimizer in optimizers:
            optimizer.lr = LR * (1 - step / steps)
        if step % max(steps // 8, 1) == 0:
            seen.append({"step": step, **look(generator, critic, noise(SAMPLES), between(1000))})
    return {"seen": seen, "samples": np.round(generator(noise(500)).astype(float), 3).tolist()}


def look(generator: Any, critic: Any, z: Array, x: Array) -> dict[str, Any]:
    """Return the quality of samples, the mean norm of df/dx, and the norm of the gradient at the critic's layers."""
    modes, good = quality(generator(z))
    kept = critic.flat_grads.copy()
    y, tape = critic.forward(x)
    norms = np.linalg.norm(critic.backward(tape, np.ones_like(y)).astype(np.float64), axis=1)
    critic.flat_grads = kept
    at_layers = [norm / np.sqrt(len(x)) for norm in tape.norms[::2]]
    return {"modes": modes, "good": good, "norm": float(norms.mean()), "at_layers": at_layers}


def measure(quick: bool) -> dict[str, Any]:
    steps, seeds = (16, 1) if quick else (1200, 3)
    runs = side_by_side(train, [(arm, seed, steps) for arm in ARMS for seed in range(seeds)])
    arms = [{"arm": arm, "runs": runs[i * seeds : (i + 1) * seeds]} for i, arm in enumerate(ARMS)]
    return {"steps": steps, "seeds": seeds, "arms": arms}


def page(results: dict[str, Any]) -> str:
    rows = []
    for arm in results["arms"]:
        ends = [run["seen"][-1] for run in arm["runs"]]
        columns = [[end[name] for end in ends] for name in ("modes", "good", "norm")]
        columns.append([end["at_layers"][0] / max(end["at_layers"][-1], 1e-300) for end in ends])
        rows.append((arm["arm"], *map(spread, columns)))
    header = ("critic", "modes", "good samples", "norm of df/dx", "gradient, first layer over last")
    steps, seeds = results["steps"], results["seeds"]
    return f"""# A critic of {CRITIC_LAYERS} layers, with a gradient penalty and without

A generator learns a mixture of {MODES} Gaussians of deviation {DEVIATION:g} on a circle of radius {RADIUS:g}, from a
Wasserstein critic f [1]. Both are ReLU networks of {WIDTH} units, with {GENERATOR_LAYERS} and {CRITIC_LAYERS} hidden
layers. As in [2] there are {CRITIC_STEPS} steps of the critic for each of {steps:,} of the generator, batches of
{BATCH}, and Adam with betas {BETAS}; its rate is {LR:g} and falls to 0. The penalty lies on random points between real
and generated ones. Of {SAMPLES:,} samples those are good that lie within three deviations of a mode; a mode counts
that has at least a quarter of its share of them. Of the mixture itself 98.9 % are good. The norm of df/dx is the mean
over 1,000 points between real and generated ones. Median of {seeds} seeds, and the extremes.

{table(header, rows)}

With the penalty the gradient of f is 1, with respect to x and at every layer of the critic. Weights clipped at 0.01
make it vanish on the way down, and the generator does not learn. With neither it explodes; the generator learns all
the same, because the steps of Adam do not depend on the size of a gradient, and ends with fewer good samples.

![samples, and the gradient at the layers of the critic](wgan_gp.png)

- [1] Arjovsky, Chintala and Bottou, "Wasserstein GAN", arXiv 1701.07875, 2017.
- [2] Gulrajani et al., "Improved training of Wasserstein GANs", arXiv 1704.00028, 2017.

[How to use the penalty](../gradient-penalty.md).
"""


def figure(results: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    arms = results["arms"]
    fig, axes = plt.subplots(1, len(arms) + 1, figsize=(3 * len(arms) + 3, 3.2), layout="constrained")
    for axis, arm in zip(axes, arms, strict=False):
        samples = np.array(arm["runs"][0]["samples"])
        axis.plot(*CENTERS.T, "o", color="0.8", markersize=14)
        axis.plot(*samples.T, ".", markersize=2)
        axis.set(title=arm["arm"], xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal")
        axes[-1].plot(arm["runs"][0]["seen"][-1]["at_layers"], "o-", label=arm["arm"], markersize=3)
    axes[-1].set(title="gradient of f", xlabel="layer of the critic", yscale="log")
    axes[-1].legend(fontsize="small")
    fig.savefig(path, dpi=100)
    plt.close(fig)
