"""Classify an exception inside a cell: its status, and one sentence with advice.

The exception's type decides where torch has one for the cause, else the words that torch, CUDA and their
libraries print.  An exception raised by this package's measuring code is no result: `is_ours` recognises
it, and the sweep reports an internal error.
"""

from __future__ import annotations

import errno
import signal
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from traceback import FrameSummary

from longvis_bench.errors import (
    IllegalSize,
    InvalidOutput,
    LongvisError,
    MissingDependency,
    Unsupported,
)
from longvis_bench.files import PACKAGE
from longvis_bench.records import Status
from longvis_bench.text import first_line

DEVICE_OOM = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "cudaMalloc failed",
    "cudaErrorMemoryAllocation",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "Failed to allocate memory on the device",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUSPARSE_STATUS_INSUFFICIENT_RESOURCES",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "MPS backend out of memory",
    "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",
)
HOST_OOM = (
    "can't allocate memory",
    "not enough memory: you tried to allocate",
    "std::bad_alloc",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "UR_RESULT_ERROR_OUT_OF_HOST_MEMORY",
)
"""Messages of a failed allocation that has no exception type of its own."""
INDEX_LIMIT = (
    "canUse32BitIndexMath",
    "32-bit index math",
    "32bit index",
    "INT_MAX",
    "2**31",
    "int32_t::max",
    "integer out of range",
)
"""Messages about a tensor with more elements than 32-bit indices can address."""
NOT_SUPPORTED = (
    "not implemented for",
    "is not currently implemented for the",
    "is not currently supported on the",
    "doesn't support float64",
    "CUDNN_STATUS_NOT_SUPPORTED",
    "CUBLAS_STATUS_NOT_SUPPORTED",
    "CUBLAS_STATUS_ARCH_MISMATCH",
    "no kernel image is available",
    "only supports Ampere GPUs or newer",
    "out of resource:",
    "unable to find an engine to execute this computation",
    "No valid execution plans built",
    "No execution plans built successfully",
    "No execution plans support the graph",
    "No valid engine configs for",
    "No available kernel. Aborting execution",
    "No viable backend for scaled_dot_product_attention",
)
"""Messages about an operator, dtype or size for which a backend has no kernel."""
NO_MEMORY_OR_FAULT = (
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "unable to find an engine to execute this computation",
)
"""Messages of cuBLAS and cuDNN for lack of memory and for other causes: free memory decides which."""
SHORT_BYTES, SHORT_SHARE = 256 << 20, 0.01
"""Free device memory below which memory is short: the larger of bytes and share of the device's."""
ONE_VALUE = (
    "Expected more than 1 value per channel when training",
    "Expected more than 1 spatial element when training",
)
"""Messages of a normalisation that would compute mean and deviation of a single value."""
EXIT_TEXT = 500
"""Characters that a row keeps of the text given to `sys.exit`."""
LIMIT_COUNTS = (
    "--memory-limit also counts the 0.4 GiB or so of Python and torch, which peak memory leaves out."
)
"""What a user needs to know to choose another memory limit."""
_MODELS = ("backbones", "ops")
"""Packages of this project that are the models' code: what they raise is a result of the cell."""
_TOOLS = ("pydantic", "numpy", "psutil")
_LIBRARIES = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib"))


def classify(error: BaseException) -> tuple[Status, str]:
    """Status, and one sentence with advice, of an exception that ended a cell."""
    if isinstance(error, LongvisError):
        return _own_status(error), text_of(error)
    for link in _chain(error):
        found = _by_evidence(link)
        if found is not None:
            return found
    return "error", _described(error)


def _own_status(error: LongvisError) -> Status:
    for kind, status in _OWN.items():
        if isinstance(error, kind):
            return status
    return "error"


_OWN: dict[type[LongvisError], Status] = {
    IllegalSize: "illegal_size",
    MissingDependency: "missing_dependency",
    Unsupported: "unsupported",
    InvalidOutput: "invalid",
}


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and its causes: compilers wrap the exceptions of their kernels."""
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        yield link
        seen.add(id(link))
        link = link.__cause__


def _by_evidence(error: BaseException) -> tuple[Status, str] | None:
    message = text_of(error)
    first = first_line(message)
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        sentence = str(MissingDependency(package, "the model", f"python -m pip install {package}"))
        return "missing_dependency", sentence
    short = _says(message, NO_MEMORY_OR_FAULT) and _is_memory_short()
    if short or _is_torch_oom(error) or _says(message, DEVICE_OOM):
        return "oom", f"the device ran out of memory: {first}; try a smaller batch or bf16."
    if isinstance(error, MemoryError) or _is_enomem(error) or _says(message, HOST_OOM):
        detail = f": {first}" if first else ""
        return "host_oom", f"this machine ran out of memory{detail}; try a smaller batch or resolution."
    is_tritons = type(error).__name__ == "OutOfResources"  # triton need not be installed
    if not (is_tritons or isinstance(error, RuntimeError | TypeError | ValueError)):
        return None
    if _says(message, ONE_VALUE):
        return "unsupported", _one_value(first)
    if _says(message, INDEX_LIMIT):
        return "unsupported", (
            f"a tensor is too large for 32-bit indices: {first}; try a smaller batch or resolution."
        )
    if isinstance(error, NotImplementedError) or _says(message, NOT_SUPPORTED):
        return "unsupported", f"{first or type(error).__name__}; try another dtype, device or torch."
    return None


def _one_value(message: str) -> str:
    """Advice where a normalisation in train mode has one value per channel, or one pixel per image."""
    if "spatial" in message:
        return f"a normalisation cannot train on a feature map of one pixel: {message}; use a larger --res."
    return f"batch norm cannot train with one value per channel: {message}; use --batch 2."


def _is_torch_oom(error: BaseException) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def _is_memory_short() -> bool:
    """Whether the current CUDA device has next to no free memory; False where that cannot be queried."""
    import torch

    try:
        if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            return False
        free, total = torch.cuda.mem_get_info()
    except RuntimeError:  # after some errors every further call to the device fails
        return False
    return free < max(SHORT_BYTES, SHORT_SHARE * total)


def _is_enomem(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno == errno.ENOMEM


def _says(message: str, words: tuple[str, ...]) -> bool:
    return any(word in message for word in words)


def text_of(error: BaseException) -> str:
    """The exception's message, also where its `__str__` raises."""
    try:
        return str(error)
    except Exception as inner:
        return f"(its message cannot be read: {type(inner).__name__})"


def first_sentence(message: str) -> str:
    """The part of torch's message before its lists of backends and advice; without the full stop."""
    return first_line(message).partition(". ")[0].rstrip(".")


def cause(error: BaseException) -> str:
    """Why a value that the cell does not depend on is unknown: without status and advice."""
    if isinstance(error, LongvisError):
        return text_of(error)
    return _described(error)


def _described(error: BaseException) -> str:
    """Type, message and the user's frame: `ValueError: no such mode (net.py:12, in forward)`."""
    frame = users_frame(error)
    source = f" ({Path(frame.filename).name}:{frame.lineno}, in {frame.name})" if frame else ""
    if isinstance(error, SystemExit):
        return f"the model's code ended the process by {_exit_call(error)}{source}"
    message = first_sentence(text_of(error))
    return f"{type(error).__name__}{': ' if message else ''}{message}{source}"


def _exit_call(error: SystemExit) -> str:
    """`sys.exit(1)`, or its text on one line."""
    if error.code is None or isinstance(error.code, int):
        return f"sys.exit({'' if error.code is None else error.code})"
    try:
        text = " ".join(str(error.code).split())
    except Exception as inner:
        text = f"(its message cannot be read: {type(inner).__name__})"
    return f"sys.exit: {text[:EXIT_TEXT].rstrip('.;')}"


def is_interrupt(error: BaseException) -> bool:
    """Whether the user pressed Ctrl-C, as opposed to a model that raises KeyboardInterrupt itself.

    In a cell's process SIGINT has its default action, so that the keyboard causes no KeyboardInterrupt there.
    """
    return (
        isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )


def users_frame(error: BaseException) -> FrameSummary | None:
    """The innermost frame of the model's own file, else the innermost that is not torch's."""
    frames = list(traceback.extract_tb(error.__traceback__))
    own = [frame for frame in frames if not _is_library(frame)]
    outside = [frame for frame in frames if "torch" not in Path(frame.filename).parts]
    return next(reversed(own or outside or frames), None)


def _is_library(frame: FrameSummary) -> bool:
    path = Path(frame.filename).resolve()
    return frame.filename.startswith("<") or any(path.is_relative_to(root) for root in (PACKAGE, *_LIBRARIES))


def is_ours(error: BaseException) -> bool:
    """Whether this package's measuring code raised the exception: a fault of it, never a cell's status.

    True where no frame belongs to a model, the innermost frame is in this package or in a general tool that
    it called, and the exception is neither raised on purpose nor evidence of a limit of the machine.  A
    RuntimeError never counts: torch raises its own from native code that leaves no frame, and this package
    raises none.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, LongvisError | RuntimeError) or any(map(_is_models, frames)):
        return False
    if classify(error)[0] != "error":
        return False
    while frames and _is_tool(frames[-1]):
        frames.pop()
    return bool(frames) and Path(frames[-1].filename).resolve().is_relative_to(PACKAGE)


def _is_tool(frame: FrameSummary) -> bool:
    """Whether a frame is in the standard library or in a general tool that runs no models."""
    path = Path(frame.filename).resolve()
    in_packages = next((root for root in _LIBRARIES[1:] if path.is_relative_to(root)), None)
    if in_packages is not None:
        return path.relative_to(in_packages).parts[0] in _TOOLS
    return frame.filename.startswith("<frozen ") or path.is_relative_to(_LIBRARIES[0])


def _is_models(frame: FrameSummary) -> bool:
    """Whether a frame is in a model's code: the user's, or this package's under backbones and ops."""
    path = Path(frame.filename).resolve()
    if path.is_relative_to(PACKAGE):
        return path.relative_to(PACKAGE).parts[0] in _MODELS
    return not _is_library(frame)
