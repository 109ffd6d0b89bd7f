"""What an exception says about its cell: by type and by the words of torch and its libraries."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import longvis_bench
from longvis_bench.errors import IllegalSize, InvalidOutput, LongvisError, MissingDependency, Unsupported
from longvis_bench.measure.exception_status import cause, classify, is_ours, text_of, users_frame


class OutOfResources(Exception):
    """Stands for triton.runtime.errors.OutOfResources, which is no RuntimeError."""


def seen(where: str, error: Exception, status: str) -> Any:
    """A message word for word, with the project whose source or public thread has it."""
    return pytest.param(error, status, id=where)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (IllegalSize(7, "why"), "illegal_size"),
        (MissingDependency("p", "it", "pip install p"), "missing_dependency"),
        (ModuleNotFoundError("No module named 'p'", name="p"), "missing_dependency"),
        (Unsupported("no"), "unsupported"),
        (InvalidOutput("NaN"), "invalid"),
        (LongvisError("other"), "error"),
        # out of memory on the device, as torch and the libraries below it say it
        seen("torch", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "oom"),
        seen(
            "torch",
            RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"),
            "oom",
        ),
        seen(
            "torch",
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "oom",
        ),
        seen("KupynOrest/DeblurGAN issue 128", RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "oom"),
        seen(
            "names of cuDNN 9",
            RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
            "oom",
        ),
        seen("prefix of triton 3.9", RuntimeError("Triton Error [CUDA]: out of memory"), "oom"),
        seen("unslothai/unsloth issue 2401", RuntimeError("CUDA driver error: out of memory"), "oom"),
        seen(
            "ggml-org/llama.cpp",
            RuntimeError("allocating 1533.14 MiB on device 0: cudaMalloc failed: out of memory"),
            "oom",
        ),
        seen(
            "torch",
            RuntimeError(
                "MPS backend out of memory (MPS allocated: 14.29 GiB, other allocations: 3.65 GiB, max "
                "allowed: 20.13 GiB). Tried to allocate 2.67 GiB on shared pool."
            ),
            "oom",
        ),
        # out of memory on the host
        (MemoryError(), "host_oom"),
        seen(
            "torch",
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: "
                "you tried to allocate 2359296 bytes. Error code 12 (Cannot allocate memory)"
            ),
            "host_oom",
        ),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "host_oom"),
        seen("libstdc++", RuntimeError("std::bad_alloc"), "host_oom"),
        seen(
            "names of cuDNN 9",
            RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
            "host_oom",
        ),
        # limits of kernels
        seen(
            "pytorch/pytorch issue 80020",
            RuntimeError(
                "Expected canUse32BitIndexMath(input) && canUse32BitIndexMath(output) to be true, but got "
                "false.  (Could this error message be improved?"
            ),
            "unsupported",
        ),
        seen(
            "torch, reflection_pad2d",
            RuntimeError("input tensor must fit into 32-bit index math"),
            "unsupported",
        ),
        seen(
            "pytorch/pytorch issue 144855",
            RuntimeError(
                "upsample_nearest3d only supports output tensors with less than INT_MAX elements, "
                "but got [1, 1, 1178, 1367, 1367]"
            ),
            "unsupported",
        ),
        # one value per channel in train mode
        seen(
            "torch",
            ValueError(
                "Expected more than 1 value per channel when training, "
                "got input size torch.Size([1, 96, 1, 1])"
            ),
            "unsupported",
        ),
        # operators and dtypes without a kernel
        (NotImplementedError("no kernel"), "unsupported"),
        (NotImplementedError(), "unsupported"),
        seen(
            "xinntao/Real-ESRGAN, FAQ",
            RuntimeError("\"slow_conv2d_cpu\" not implemented for 'Half'"),
            "unsupported",
        ),
        seen(
            "torch",
            NotImplementedError(
                "The operator 'aten::upsample_bicubic2d.out' is not currently implemented for the MPS device."
            ),
            "unsupported",
        ),
        seen(
            "torch",
            TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. "
                "Please use float32 instead."
            ),
            "unsupported",
        ),
        seen(
            "CUDA runtime",
            RuntimeError("CUDA error: no kernel image is available for execution on the device"),
            "unsupported",
        ),
        seen(
            "BlackHC/toma",
            RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED."),
            "unsupported",
        ),
        seen(
            "triton 3.9",
            OutOfResources(
                "out of resource: shared memory, Required: 262144, Hardware limit: 232448. "
                "Reducing block sizes or `num_stages` may help."
            ),
            "unsupported",
        ),
        seen(
            "triton 3.9",
            OutOfResources("out of resource: threads, Required: 384, Hardware limit: 256."),
            "unsupported",
        ),
        seen(
            "vllm-project/vllm issue 6713",
            RuntimeError("GET was unable to find an engine to execute this computation"),
            "unsupported",
        ),
        seen(
            "huggingface/diffusers issue 9704",
            RuntimeError(
                "cuDNN Frontend error: [cudnn_frontend] Error: No execution plans support the graph."
            ),
            "unsupported",
        ),
        seen(
            "cudnn_frontend in torch 2.15",
            RuntimeError("cuDNN Frontend error: [cudnn_frontend] Error: No valid execution plans built."),
            "unsupported",
        ),
        seen(
            "NVIDIA/cudnn-frontend issue 75",
            RuntimeError("[cudnn_frontend] Error: No execution plans built successfully."),
            "unsupported",
        ),
        seen(
            "Comfy-Org/ComfyUI issue 9947",
            RuntimeError(
                "cuDNN Frontend error: No valid engine configs for "
                "Matmul_MUL_Reduction_SUB_EXP_Reduction_LOG_ADD_DIV_Matmul_"
            ),
            "unsupported",
        ),
        seen("torch, sdp_utils", RuntimeError("No available kernel. Aborting execution."), "unsupported"),
        # the library failed, and memory is not known to be short
        seen(
            "torch",
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling "
                "`cublasSgemm( handle, opa, opb, m, n, k, &alpha, a, lda, b, ldb, &beta, c, ldc)`"
            ),
            "error",
        ),
        seen(
            "askforalfred/alfred issue 23",
            RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
            "error",
        ),
        # anything else
        (ValueError("first line\nsecond line"), "error"),
        seen("torch", RuntimeError("expected scalar type Half but found Float"), "error"),
        seen(  # of a number that a dtype cannot hold, not of a tensor's size
            "WZMIAOMIAO/deep-learning-for-image-processing issue 834",
            RuntimeError("value cannot be converted to type int without overflow"),
            "error",
        ),
        seen("CUDA runtime", RuntimeError("CUDA error: device-side assert triggered"), "error"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "error"),
        (RuntimeError(""), "error"),
    ],
)
def test_errors_become_statuses_with_one_line(error: Exception, status: str) -> None:
    got, reason = classify(error)
    assert got == status, reason
    assert reason
    assert "\n" not in reason
    if type(error) not in (LongvisError, Unsupported, InvalidOutput, IllegalSize) and status != "error":
        assert any(word in reason for word in ("try ", "install ", "use ")), reason


def test_torch_itself_says_the_words_we_look_for() -> None:
    with pytest.raises(RuntimeError) as no_memory:
        torch.empty(1 << 50)
    assert classify(no_memory.value)[0] == "host_oom"
    with pytest.raises((RuntimeError, NotImplementedError)) as no_kernel:
        torch.zeros(2, dtype=torch.bool).softmax(0)
    assert classify(no_kernel.value)[0] == "unsupported"
    with pytest.raises(RuntimeError, match="without overflow") as too_large_a_number:
        torch.full((2,), 2**40, dtype=torch.int32)
    assert classify(too_large_a_number.value)[0] == "error"


def test_what_a_compiler_wraps_is_seen_through() -> None:
    wrapped = RuntimeError("backend='inductor' raised:")
    wrapped.__cause__ = torch.OutOfMemoryError("CUDA out of memory")
    assert classify(wrapped)[0] == "oom"
    wrapped.__cause__ = wrapped
    assert classify(wrapped)[0] == "error"


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(`",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "GET was unable to find an engine to execute this computation",
    ],
)
@pytest.mark.parametrize("is_initialized", [True, False])
def test_a_library_that_fails_on_a_full_device_is_out_of_memory(
    message: str, is_initialized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: is_initialized)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (100 << 20, 80 << 30))
    assert (classify(RuntimeError(message))[0] == "oom") is is_initialized
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60 << 30, 80 << 30))
    assert classify(RuntimeError(message))[0] != "oom"


class _Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


def test_an_exception_without_a_readable_message() -> None:
    assert "cannot be read" in text_of(_Unreadable())
    assert classify(_Unreadable()) == ("error", "_Unreadable: (its message cannot be read: RuntimeError)")


def _raised(source: str, file: Path, **names: Any) -> BaseException:
    """The exception of a piece of code that stands in a file."""
    file.write_text(source)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        exec(compile(source, str(file), "exec"), names)
    return _without_first_frames(caught.value)


def _without_first_frames(error: BaseException) -> BaseException:
    """The traceback as the worker sees it, that is without the frames of the test."""
    assert error.__traceback__ is not None
    return error.with_traceback(error.__traceback__.tb_next)


def test_the_users_frame_is_named(tmp_path: Path) -> None:
    source = "import torch\ndef forward(x):\n    return x @ torch.zeros(3, 2)\nforward(torch.ones(1, 4))\n"
    error = _raised(source, tmp_path / "net.py")
    frame = users_frame(error)
    assert frame is not None
    assert (Path(frame.filename).name, frame.lineno) == ("net.py", 3)
    status, reason = classify(error)
    assert status == "error"
    assert reason.startswith("RuntimeError: ")
    assert reason.endswith("(net.py:3, in forward)")


def test_a_model_that_fails_in_a_library_is_still_the_models(tmp_path: Path) -> None:
    error = _raised("import json\njson.loads('{')\n", tmp_path / "net.py")
    assert not is_ours(error)
    assert classify(error)[1].endswith("(net.py:2, in <module>)")


def test_a_fault_of_our_own_is_ours() -> None:
    from longvis_bench.measure.latency.clock import clock_for

    with pytest.raises(AttributeError) as caught:
        clock_for(None)  # type: ignore[arg-type]
    assert is_ours(_without_first_frames(caught.value))


def test_a_fault_of_a_tool_that_we_called_is_ours() -> None:
    from longvis_bench.runs.directory import parse_document

    with pytest.raises(json.JSONDecodeError) as caught:
        parse_document("{")
    assert is_ours(_without_first_frames(caught.value))


def test_what_torch_refuses_and_what_is_raised_on_purpose_is_not_ours() -> None:
    from longvis_bench.registry.registry import Registry

    with pytest.raises(LongvisError) as on_purpose:
        Registry().find("atlas-q")
    assert not is_ours(_without_first_frames(on_purpose.value))
    with pytest.raises(RuntimeError) as by_torch:
        torch.zeros(1, 4) @ torch.zeros(3, 2)
    assert not is_ours(by_torch.value)


@pytest.mark.parametrize(
    ("folder", "ours"), [("backbones", False), ("ops", False), ("measure", True), ("data", True)]
)
def test_our_backbones_are_models_and_the_rest_is_the_harness(folder: str, ours: bool) -> None:
    file = Path(longvis_bench.__file__).parent / folder / "new.py"
    with pytest.raises(ZeroDivisionError) as caught:
        exec(compile("1 / 0", str(file), "exec"), {})
    assert is_ours(_without_first_frames(caught.value)) is ours


@pytest.mark.parametrize(
    ("layer", "size", "advice"),
    [
        (torch.nn.BatchNorm1d(3), (1, 3), "use --batch 2."),
        (torch.nn.BatchNorm2d(3), (1, 3, 1, 1), "use --batch 2."),
        (torch.nn.InstanceNorm2d(3), (1, 3, 1, 1), "use a larger --res."),
        (torch.nn.InstanceNorm2d(3), (2, 3, 1, 1), "use a larger --res."),
    ],
)
def test_a_normalisation_of_one_value_says_what_helps(
    layer: torch.nn.Module, size: tuple[int, ...], advice: str
) -> None:
    with pytest.raises(ValueError, match="Expected more than 1") as caught:
        layer.train()(torch.zeros(size))
    status, reason = classify(caught.value)
    assert status == "unsupported"
    assert reason.endswith(advice)


def test_a_message_of_torch_ends_before_its_list_of_backends() -> None:
    with pytest.raises(NotImplementedError) as caught:
        torch.zeros(2, 2, device="meta").to_sparse() @ torch.zeros(2, 2, device="meta")
    assert len(cause(caught.value)) < 250
