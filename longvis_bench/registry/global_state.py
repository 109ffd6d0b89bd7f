"""Save the global settings of the process before a user's code runs, and restore them afterwards.

A factory may call `torch.set_num_threads(1)`, or change the default dtype, the working directory, the
environment or the seed, and so silently change later measurements.  `preserved` restores the settings after a
call; `Snapshot.restore` restores them later and names those that cannot be restored.

`_settings` lists the settings.  A setting that this torch or system lacks is left out.
"""

from __future__ import annotations

import contextlib
import gc
import locale
import logging
import os
import random
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

_ABSENT = object()
_inference_guards: list[Any] = []
"""Contexts entered to restore inference mode; they must stay alive."""


class _Setting(NamedTuple):
    """A setting and the functions that read and write it."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]


class Snapshot:
    """The values of all global settings at the time of construction.

    Arguments:
        seeds: also save the states of the random number generators of torch, numpy and Python.
    """

    def __init__(self, *, seeds: bool = False) -> None:
        self._settings = _settings()
        self._values = {setting.name: _read(setting) for setting in self._settings}
        self._filters = list(warnings.filters)
        self._show_warning = warnings.showwarning
        self._seeds = _read_seeds() if seeds else None

    def restore(self) -> tuple[str, ...]:
        """Restore all settings.

        Returns:
            Settings that could not be restored, e.g. "inter-op threads (2, now 5)"; empty if all were.
        """
        for setting in self._changed():
            with contextlib.suppress(Exception):
                setting.write(self._values[setting.name])
        self._restore_warnings()
        if self._seeds is not None:
            _write_seeds(self._seeds)
        return self.changes()

    def changes(self) -> tuple[str, ...]:
        """Settings with another value now, e.g. "threads (2, now 1)", except seeds and warning filters."""
        return tuple(
            f"{setting.name} ({_shown(self._values[setting.name])}, now {_shown(_read(setting))})"
            for setting in self._changed()
        )

    def _changed(self) -> list[_Setting]:
        now = ((setting, _read(setting)) for setting in self._settings)
        return [setting for setting, value in now if _differs(self._values[setting.name], value)]

    def _restore_warnings(self) -> None:
        if list(warnings.filters) != self._filters:
            warnings.resetwarnings()  # invalidates the interpreter's cache of filters
            warnings.filters[:] = self._filters  # type: ignore[index]
        warnings.showwarning = self._show_warning


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Restore the global settings on leaving the context, also after an exception; seeds are not restored."""
    before = Snapshot()
    try:
        yield
    finally:
        before.restore()


def _read(setting: _Setting) -> Any:
    try:
        return setting.read()
    except Exception:  # this torch or system lacks the setting
        return _ABSENT


def _differs(before: Any, now: Any) -> bool:
    return before is not _ABSENT and now is not before and before != now


def _shown(value: Any) -> str:
    return str(value)[:40]


def _settings() -> list[_Setting]:
    """Settings of the interpreter and the system, and of torch and numpy if they are imported."""
    return [
        *_interpreter(),
        *_system(),
        *([*_torch(), *_autograd(), *_autocast(), *_backends(), *_cuda()] if "torch" in sys.modules else ()),
        *(_numpy() if "numpy" in sys.modules else ()),
    ]


def _attribute(name: str, holder: object, attribute: str) -> _Setting:
    return _Setting(name, partial(getattr, holder, attribute), partial(setattr, holder, attribute))


def _interpreter() -> Iterator[_Setting]:
    yield _attribute("standard output", sys, "stdout")
    yield _attribute("standard error", sys, "stderr")
    yield _attribute("exception hook", sys, "excepthook")
    yield _attribute("program arguments", sys, "argv")
    yield _Setting("recursion limit", sys.getrecursionlimit, sys.setrecursionlimit)
    yield _Setting("thread switch interval", sys.getswitchinterval, sys.setswitchinterval)
    yield _Setting("garbage collection", gc.isenabled, lambda on: gc.enable() if on else gc.disable())
    yield _Setting(
        "garbage collection thresholds", gc.get_threshold, lambda values: gc.set_threshold(*values)
    )
    yield _Setting("logging level", lambda: logging.getLogger().level, logging.getLogger().setLevel)
    yield _Setting("disabled logging", lambda: logging.getLogger().manager.disable, logging.disable)
    yield _Setting("trace function", sys.gettrace, sys.settrace)
    yield _Setting("profile function", sys.getprofile, sys.setprofile)


def _system() -> Iterator[_Setting]:
    yield _Setting("working directory", os.getcwd, os.chdir)
    yield _Setting("environment variables", lambda: dict(os.environ), _write_environment)
    yield _Setting("file mode mask", _read_umask, os.umask)
    yield _Setting(
        "locale", partial(locale.setlocale, locale.LC_ALL), partial(locale.setlocale, locale.LC_ALL)
    )
    yield _Setting("socket timeout", socket.getdefaulttimeout, socket.setdefaulttimeout)
    if hasattr(os, "sched_setaffinity"):
        yield _Setting(
            "processor affinity", partial(os.sched_getaffinity, 0), partial(os.sched_setaffinity, 0)
        )
    if hasattr(os, "setpriority"):
        own = os.PRIO_PROCESS, 0
        yield _Setting("process priority", partial(os.getpriority, *own), partial(os.setpriority, *own))
    for name in ("SIGINT", "SIGTERM", "SIGALRM"):
        if hasattr(signal, name):
            number = getattr(signal, name)
            yield _Setting(
                f"{name} handler", partial(signal.getsignal, number), partial(signal.signal, number)
            )
    yield from _limits()


def _limits() -> Iterator[_Setting]:
    try:
        import resource
    except ImportError:  # Windows
        return
    for name in ("RLIMIT_AS", "RLIMIT_DATA", "RLIMIT_STACK", "RLIMIT_CPU", "RLIMIT_NOFILE", "RLIMIT_MEMLOCK"):
        number = getattr(resource, name)
        yield _Setting(name, partial(resource.getrlimit, number), partial(resource.setrlimit, number))


def _torch() -> Iterator[_Setting]:
    import torch

    yield _Setting("threads", torch.get_num_threads, torch.set_num_threads)
    yield _Setting("inter-op threads", torch.get_num_interop_threads, torch.set_num_interop_threads)
    yield _Setting("default device", torch.get_default_device, _write_default_device)
    yield _Setting("default dtype", torch.get_default_dtype, torch.set_default_dtype)
    yield _Setting(
        "deterministic algorithms", torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode
    )
    yield _attribute("filling of new memory", torch.utils.deterministic, "fill_uninitialized_memory")
    yield _Setting(
        "float32 matmul precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    )
    yield _Setting("flushing of denormals", _flushes_denormals, torch.set_flush_denormal)
    yield _Setting("repeated warnings", torch.is_warn_always_enabled, torch.set_warn_always)
    future = torch.__future__
    yield _Setting(
        "parameter conversion by new tensors",
        future.get_overwrite_module_params_on_conversion,
        future.set_overwrite_module_params_on_conversion,
    )
    yield _Setting(
        "parameter conversion by swapping",
        future.get_swap_module_params_on_conversion,
        future.set_swap_module_params_on_conversion,
    )


def _autograd() -> Iterator[_Setting]:
    import torch

    yield _Setting("gradient mode", torch.is_grad_enabled, torch.set_grad_enabled)
    yield _Setting("inference mode", torch.is_inference_mode_enabled, _write_inference_mode)
    yield _Setting(
        "anomaly detection",
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda values: torch.set_anomaly_enabled(*values),
    )
    yield _Setting(
        "autograd threads", torch._C._is_multithreading_enabled, torch.autograd.set_multithreading_enabled
    )
    checks: Any = torch.sparse.check_sparse_tensor_invariants
    yield _Setting(
        "sparse tensor checks", checks.is_enabled, lambda on: checks.enable() if on else checks.disable()
    )


def _autocast() -> Iterator[_Setting]:
    import torch

    for device in ("cpu", "cuda"):
        yield _Setting(
            f"autocast on {device}",
            partial(torch.is_autocast_enabled, device),
            partial(torch.set_autocast_enabled, device),
        )
        yield _Setting(
            f"autocast dtype on {device}",
            partial(torch.get_autocast_dtype, device),
            partial(torch.set_autocast_dtype, device),
        )
    yield _Setting("autocast cache", torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled)


_FLAGS = {
    "cudnn": ("enabled", "benchmark", "benchmark_limit", "deterministic", "allow_tf32", "fp32_precision"),
    "mkldnn": ("enabled", "deterministic", "allow_tf32", "fp32_precision"),
    "opt_einsum": ("enabled", "strategy"),
    "quantized": ("engine",),
    "cuda.matmul": (
        "allow_tf32",
        "allow_fp16_reduced_precision_reduction",
        "allow_bf16_reduced_precision_reduction",
        "allow_fp16_accumulation",
        "fp32_precision",
    ),
    "cudnn.conv": ("fp32_precision",),
    "cudnn.rnn": ("fp32_precision",),
    "mkldnn.matmul": ("fp32_precision",),
    "mkldnn.conv": ("fp32_precision",),
    "mkldnn.rnn": ("fp32_precision",),
}
"""Module below `torch.backends` -> flags that are plain attributes of it."""


def _backends() -> Iterator[_Setting]:
    import torch

    backends = torch.backends
    yield _attribute("torch.backends.fp32_precision", backends, "fp32_precision")
    for path, names in _FLAGS.items():
        holder: object = backends
        for part in path.split("."):
            holder = getattr(holder, part, None)
        for name in names:
            yield _attribute(f"torch.backends.{path}.{name}", holder, name)
    mha = backends.mha
    yield _Setting("encoder fast path", mha.get_fastpath_enabled, mha.set_fastpath_enabled)
    for kernel in ("flash", "mem_efficient", "math", "cudnn"):
        yield _Setting(
            f"{kernel} attention",
            getattr(backends.cuda, f"{kernel}_sdp_enabled"),
            getattr(backends.cuda, f"enable_{kernel}_sdp"),
        )


def _has_cuda() -> bool:
    import torch

    initialized: Callable[[], bool] = torch.cuda.is_initialized
    return initialized()


def _cuda() -> Iterator[_Setting]:
    import torch

    if not _has_cuda():
        return
    yield _Setting("CUDA device", torch.cuda.current_device, torch.cuda.set_device)
    if hasattr(torch.cuda, "get_per_process_memory_fraction"):
        yield _Setting(
            "CUDA memory fraction",
            torch.cuda.get_per_process_memory_fraction,
            torch.cuda.set_per_process_memory_fraction,
        )


def _numpy() -> Iterator[_Setting]:
    import numpy

    yield _Setting("numpy's floating-point errors", numpy.geterr, lambda values: numpy.seterr(**values))


def _write_environment(values: dict[str, str]) -> None:
    for name in set(os.environ) - set(values):
        del os.environ[name]
    os.environ.update(values)


def _read_umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _write_default_device(device: Any) -> None:
    """Reset the default device, and set it again only if that does not restore it."""
    import torch

    torch.set_default_device(None)
    if torch.get_default_device() != device:
        torch.set_default_device(device)


def _write_inference_mode(on: bool) -> None:
    """Set the mode by entering a context that is never left, because the mode has no setter."""
    import torch

    guard: Any = torch.inference_mode(on)
    guard.__enter__()
    _inference_guards.append(guard)


def _flushes_denormals() -> bool:
    import torch

    return (torch.full((1,), 1e-39, dtype=torch.float32, device="cpu") * 1.0).item() == 0.0


def _read_seeds() -> dict[str, Any]:
    import numpy
    import torch

    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if _has_cuda():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def _write_seeds(states: dict[str, Any]) -> None:
    import numpy
    import torch

    random.setstate(states["python"])
    numpy.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
