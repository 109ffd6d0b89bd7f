"""The checks of `scripts/gpu_check.py`, by name, in the order in which they run."""

from gpu_checks import cells, failures, kernels, machine
from gpu_checks.check import Check

CHECKS = {
    one.name: one
    for module in (machine, kernels, cells, failures)
    for one in vars(module).values()
    if isinstance(one, Check)
}
