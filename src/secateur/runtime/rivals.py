"""A model in every runtime at hand that computes it dense: what a faster one has to be compared with."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.measure.turns import Run

Server = Callable[[Sequence[Tensor]], Sequence[Any]]
"""Inputs to arrays, one for each output."""


@dataclass(frozen=True, eq=False)
class Dense:
    """What a runtime is given: the model in evaluation mode, positional inputs, threads, and a folder for its files."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    threads: int
    folder: Path

    def converted(self, dtype: torch.dtype = torch.float32) -> Run:
        """The model and images channels last, floating point in `dtype`."""
        model = copy.deepcopy(self.model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model = model if dtype == torch.float32 else model.to(dtype)
        inputs = [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in self.inputs]
        inputs = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
        return lambda: model(*inputs)

    def exported(self) -> Path:
        """The ONNX file, written once."""
        path = self.folder / "model.onnx"
        if not path.exists():
            torch.onnx.export(self.model, self.inputs, str(path), dynamo=True, verbose=False, external_data=False)
        return path


def rivals(given: Dense, names: Sequence[str] | None = None) -> tuple[dict[str, Run], dict[str, str]]:
    """Runs by name of runtime (all of `RIVALS`, or those in `names`), and why others are missing.

    A run returns what its runtime returns. Each has run once.
    """
    runs: dict[str, Run] = {}
    absent: dict[str, str] = {}
    with torch.inference_mode(), without_remarks():
        for name in RIVALS if names is None else names:
            try:
                run = RIVALS[name](given)
                run()
            except Exception as error:  # a runtime that is not installed, or does not take the model
                words = str(error).strip().splitlines() or [""]
                absent[name] = f"{type(error).__name__}: {words[0][:100]}"
            else:
                runs[name] = run
    return runs, absent


@contextmanager
def without_remarks() -> Iterator[None]:
    """Exporters and quantisers warn of things nobody here can change."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _eager(given: Dense) -> Run:
    return lambda: given.model(*given.inputs)


def _compiled(given: Dense) -> Run:
    import torch._inductor.config as inductor

    settings = cast(Any, inductor)
    with settings.patch(freezing=True, compile_threads=1):
        fast = torch.compile(copy.deepcopy(given.model))
        fast(*given.inputs)
    return lambda: fast(*given.inputs)


def _session(given: Dense, path: Path) -> Server:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = given.threads, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [place.name for place in session.get_inputs()]
    return lambda inputs: session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})


def _onnx_int8(given: Dense) -> Run:
    from onnxruntime import InferenceSession, quantization

    source = str(given.exported())
    names = [place.name for place in InferenceSession(source, providers=["CPUExecutionProvider"]).get_inputs()]

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[Any] = iter([{name: x[:1].numpy() for name, x in zip(names, given.inputs, strict=True)}])

        def get_next(self) -> Any:
            return next(self.left, None)

    thin = given.folder / "int8.onnx"
    quantization.quantize_static(source, str(thin), Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True)
    return _bound(_session(given, thin), given)


def _openvino(given: Dense) -> Server:
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": given.threads, "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
    request = core.compile_model(core.read_model(str(given.exported())), "CPU", options).create_infer_request()
    return lambda inputs: list(request.infer([x.numpy() for x in inputs], share_inputs=True).values())


def _bound(serve: Server, given: Dense) -> Run:
    return lambda: serve(given.inputs)


SERVERS: dict[str, Callable[[Dense], Server]] = {
    "ONNX Runtime": lambda given: _session(given, given.exported()),
    "OpenVINO": _openvino,
}
"""Runtimes that read the exported model, as functions of inputs of the same sizes."""


RIVALS: dict[str, Callable[[Dense], Run]] = {
    "PyTorch eager": _eager,
    "PyTorch eager, channels_last": lambda given: given.converted(),
    "torch.compile": _compiled,
    "ONNX Runtime": lambda given: _bound(SERVERS["ONNX Runtime"](given), given),
    "OpenVINO": lambda given: _bound(SERVERS["OpenVINO"](given), given),
    "PyTorch bf16": lambda given: given.converted(torch.bfloat16),
    "ONNX Runtime int8": _onnx_int8,
}
LOWER_PRECISION = ("PyTorch bf16", "ONNX Runtime int8")
