"""What the fuzzer has found worth keeping goes through its targets, which see a defect when there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import gradcore
from gradcore import data, spectral

pytest.importorskip("safetensors")
pytest.importorskip("typer")
fuzz_targets = pytest.importorskip("fuzz_targets")

pytestmark = pytest.mark.kernels

CORPUS: list[Any] = sorted((Path(__file__).parents[1] / "corpus").glob("*/*"))
if not CORPUS:
    CORPUS = [pytest.param(Path("none"), marks=pytest.mark.skip(reason="the sdist leaves the corpus out"))]


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: f"{path.parent.name}-{path.name[:8]}")
def test_the_corpus_finds_nothing(path: Path) -> None:
    fuzz_targets.TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("target", fuzz_targets.TARGETS)
def test_the_seeds_find_nothing(target: str) -> None:
    for seed in fuzz_targets.seeds(target).values():
        fuzz_targets.TARGETS[target](seed)


def test_a_half_restored_object_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(path: Path, **parts: Any) -> None:
        parts["model"].flat_params[-1] += 1
        raise ValueError(f"{path}: not a gradcore checkpoint")

    monkeypatch.setattr(gradcore, "load_checkpoint", half)
    with pytest.raises(fuzz_targets.Finding, match="half restored"):
        fuzz_targets.checkpoint(b"")


def test_an_undocumented_error_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr(data, "load", fail)
    with pytest.raises(IndexError):
        fuzz_targets.text(b"csv 3\n1\n2\n")


def test_a_result_that_depends_on_the_layout_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectral, "spectral_norm", lambda W: float(W.strides[0]))
    # Of 3 x 3 normal numbers in float32, every second entry.
    every_second = fuzz_targets.Source(bytes([3, 1, 0, 0, 0, 0, 1]))
    with pytest.raises(fuzz_targets.Finding, match="spectral_norm"):
        fuzz_targets.matrices(every_second)
