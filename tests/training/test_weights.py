"""Weights from files of others: everything fits, or nothing is loaded and the error says what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_checkpoint import same

import gradcore
from gradcore import load_weights

safetensors = pytest.importorskip("safetensors.numpy")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def new(seed: int = 0, dtype: Any = np.float32) -> Any:
    return gradcore.Sequential(
        gradcore.LSTM(3, 4, 2, bidirectional=True, dtype=dtype, rng=seed), gradcore.Linear(8, 2, dtype=dtype, rng=seed)
    )


def save(path: Path, arrays: Any) -> None:
    safetensors.save_file(dict(arrays), path, {"format": "pt"})


def test_names_that_fit_need_no_renaming(path: Path) -> None:
    theirs, model = new(1), new()
    save(path, theirs.state_dict())
    load_weights(path, model)
    assert same(model.state_dict(), theirs.state_dict())


def test_renaming_by_a_dict_and_by_a_function(path: Path) -> None:
    theirs, state = new(1), new(1).state_dict()
    prefixed = {name.replace("0.", "rnn.").replace("1.", "head."): array for name, array in state.items()}
    save(path, prefixed | {"optimizer.step": np.zeros(3)})

    def rename(name: str) -> str | None:
        return None if name.startswith("optimizer") else name.replace("rnn.", "0.").replace("head.", "1.")

    for by in (rename, {name: rename(name) for name in [*prefixed, "optimizer.step"]}):
        model = new()
        load_weights(path, model, rename=by)
        assert same(model.state_dict(), theirs.state_dict())


@pytest.mark.parametrize(
    ("stored", "dtype"), [(np.float16, np.float32), (np.float16, np.float64), (np.float32, np.float64)]
)
def test_lower_precision_is_converted_exactly(path: Path, stored: Any, dtype: Any) -> None:
    arrays = {name: array.astype(stored) for name, array in new(1).state_dict().items()}
    save(path, arrays)
    model = new(0, dtype)
    load_weights(path, model)
    assert all((model.params[name] == array).all() for name, array in arrays.items())


def test_bfloat16(path: Path) -> None:
    layer, header = gradcore.Linear(2, 1, bias=False), b'{"weight":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\xc0\x3f\x00\xc1")  # 1.5, -8
    load_weights(path, layer)
    assert layer.params["weight"].tolist() == [[1.5, -8.0]]


def changed(**changes: Any) -> dict[str, Any]:
    state = {"weight": np.ones((2, 3), np.float32), "bias": np.ones(2, np.float32)} | changes
    return {name: array for name, array in state.items() if array is not None}


@pytest.mark.parametrize(
    ("state", "rename", "error", "message"),
    [
        (changed(bias=None), None, KeyError, r"model.safetensors: has no bias; use rename"),
        (changed(more=np.ones(1)), None, KeyError, r"has more, which the model has not"),
        (changed(bias=None, b=np.ones(2)), None, KeyError, r"has no bias and has b, which the model has not"),
        (changed(), {"bias": "b"}, KeyError, r"has no bias and has b \(bias in the file\), which the model has not"),
        (changed(), {"biass": "b"}, KeyError, r"rename: the file has no biass; it has"),
        (changed(), {"bias": "weight"}, ValueError, r"rename: 'bias' and 'weight' both become 'weight'"),
        (changed(), lambda name: 3, TypeError, r"rename: expected text or None for 'bias', got 3"),
        (changed(), 3, TypeError, "rename: expected a dict or a callable, got int"),
        (changed(weight=np.ones((3, 2), np.float32), bias=np.ones(3, np.float32)), None, ValueError,
         r"weight has shape \(3, 2\) instead of \(2, 3\), bias has shape \(3,\) instead of \(2,\)"),
        (changed(weight=None, w=np.ones((2, 1))), {"w": "weight"}, ValueError,
         r"weight \(w in the file\) has shape \(2, 1\)"),
        (changed(weight=np.ones((2, 3))), None, TypeError,
         r"weight is float64, and the model float32; build the model with dtype=numpy.float64, or convert the file"),
        (changed(weight=np.ones((2, 3), np.int64)), None, TypeError, "weight is int64, and the model float32"),
        ({f"n{i}": np.ones(1) for i in range(30)}, None, KeyError, "n0, n1, .*and 20 more, which"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_and_changes_nothing(
    path: Path, state: Any, rename: Any, error: Any, message: str
) -> None:
    save(path, state)
    layer = gradcore.Linear(3, 2, rng=0)
    before = layer.state_dict()
    with pytest.raises(error, match=message):
        load_weights(path, layer, rename=rename)
    assert same(layer.state_dict(), before)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a pickle of PyTorch", b"\x05\x00\x00\x00\x00\x00\x00\x00{}   "])
def test_other_files(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises((ValueError, KeyError), match=r"not a safetensors file|has no weight, bias"):
        load_weights(path, gradcore.Linear(3, 2))


def test_a_kind_of_number_without_a_dtype(path: Path) -> None:
    header = b'{"weight":{"dtype":"F8_E4M3","shape":[1,2],"data_offsets":[0,2]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\x00\x00")
    with pytest.raises(ValueError, match="not a safetensors file: numbers of kind F8_E4M3 are not supported"):
        load_weights(path, gradcore.Linear(2, 1, bias=False))


def test_no_file(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_weights(path, gradcore.Linear(3, 2))


def test_the_model_of_a_checkpoint(path: Path) -> None:
    theirs, model = gradcore.Linear(3, 2, rng=1), gradcore.Linear(3, 2)
    gradcore.save_checkpoint(path, model=theirs, step=3)
    load_weights(path, model, rename=lambda name: name.removeprefix("model/"))
    assert same(model.state_dict(), theirs.state_dict())


@pytest.mark.peers
def test_the_state_dict_of_a_torch_model(path: Path) -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Sequential(torch.nn.LSTM(3, 4, 2, bidirectional=True), torch.nn.Linear(8, 2))
    pytest.importorskip("safetensors.torch").save_file(theirs.state_dict(), path)
    model = new()
    load_weights(path, model)
    assert all((model.params[name] == p.detach().numpy()).all() for name, p in theirs.named_parameters())
