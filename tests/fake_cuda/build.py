"""Build the CUDA driver without a device, and run commands with it; README.md says what it can tell.

    python tests/fake_cuda/build.py FOLDER [COMMAND [ARGUMENT ...]]

Exits with 3, and one sentence on stderr, where the driver cannot be built.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
NAME = "libcuda.so.1"
TRITON_NAMES = (
    *("cuInit", "cuCtxSetCurrent", "cuCtxGetLimit", "cuCtxSetLimit"),
    *("cuFuncSetAttribute", "cuFuncSetCacheConfig", "cuModuleUnload", "cuModuleLoadDataEx"),
    *("cuTensorMapEncodeIm2col", "cuTensorMapEncodeTiled", "cuGetProcAddress_v2"),
    *("cuLaunchKernel", "cuLaunchCooperativeKernel", "cuPointerGetAttributes"),
    *("cuLinkCreate_v2", "cuLinkAddData_v2", "cuLinkComplete"),
)
"""Functions of libcuda that Triton's launcher is linked with, besides those that driver.c defines."""


def missing() -> str | None:
    """Why the driver cannot be built here; None where it can."""
    if shutil.which("gcc") is None or shutil.which("nm") is None:
        return "needs gcc and nm"
    if _torch_libraries() is None:
        return "needs torch's CUDA build for Linux"
    return None if _headers() is not None else "needs CUDA's headers (nvidia-cuda-runtime has them)"


def build(folder: Path) -> Path:
    """Compile the driver into a folder, and return the library's path."""
    libraries, headers, library = _torch_libraries(), _headers(), folder / NAME
    assert libraries is not None
    assert headers is not None
    defined = set(re.findall(r"^[\w* ]+?\**(\w+)\(", (HERE / "driver.c").read_text(), re.MULTILINE))
    names = sorted((set(_imported(libraries)) | set(TRITON_NAMES)) - defined)
    stubs = "void fake_launch(void);\n" + "".join(map(_stub, names))
    (folder / "stubs.c").write_text(stubs)
    sources = [str(HERE / "driver.c"), str(folder / "stubs.c")]
    flags = ["-O1", "-w", "-shared", "-fPIC", f"-Wl,-soname,{NAME}", f"-I{headers}"]
    subprocess.run(["gcc", *flags, "-o", str(library), *sources, "-lpthread", "-ldl"], check=True)
    (folder / "libcuda.so").unlink(missing_ok=True)
    (folder / "libcuda.so").symlink_to(NAME)
    return library


def environment(library: Path) -> dict[str, str]:
    """Variables of a process that runs with the driver."""
    folder = str(library.parent)
    paths = [str(HERE / "layer"), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": folder,
        "TRITON_LIBCUDA_PATH": folder,
        "TRITON_CACHE_DIR": str(library.parent / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(library.parent / "inductor"),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }


def _stub(name: str) -> str:
    launch = "fake_launch(); " if re.search(r"gemm|Matmul$", name) else ""
    return f"int {name}() {{ {launch}return 0; }}\n"


def _imported(libraries: list[Path]) -> Iterator[str]:
    """Names of CUDA's runtime, cuBLAS and driver that torch's libraries import."""
    for library in libraries:
        listed = subprocess.run(
            ["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True
        ).stdout
        names = (line.split()[-1].partition("@")[0] for line in listed.splitlines())
        yield from (name for name in names if re.match(r"(__)?(cuda|cublas)|cu[A-Z]", name))


def _torch_libraries() -> list[Path] | None:
    spec = importlib.util.find_spec("torch")
    folder = Path(str(spec and spec.origin)).parent / "lib"
    return sorted(folder.glob("lib*.so")) if (folder / "libtorch_cuda.so").exists() else None


def _headers() -> Path | None:
    """CUDA's headers, whole: Triton brings them, and so does a toolkit."""
    spec = importlib.util.find_spec("triton")
    packages = [Path(str(spec.origin)).parent / "backends" / "nvidia" / "include"] if spec else []
    folders = [*packages, *Path("/usr/local").glob("cuda*/include")]
    return next((path for path in folders if (path / "crt" / "host_defines.h").exists()), None)


def main(folder: str, *command: str) -> None:
    """Build the driver unless the folder has it; then run the command, if there is one, in this process."""
    target = Path(folder).resolve()
    reason = missing()
    if reason is not None:
        print(reason, file=sys.stderr)
        raise SystemExit(3)
    target.mkdir(parents=True, exist_ok=True)
    library = target / NAME if (target / NAME).exists() else build(target)
    if command:
        os.execvpe(command[0], command, environment(library))


if __name__ == "__main__":
    main(*sys.argv[1:])
