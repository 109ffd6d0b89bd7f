"""Energy of iterations from counters that wrap, of several sockets, of GPUs; reasons where there is none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from longvis_bench.errors import Unsupported
from longvis_bench.measure import cell_energy
from longvis_bench.measure.cell_energy import CellEnergy, start_energy
from longvis_bench.measure.latency.energy import (
    NvmlMeter,
    RaplMeter,
    idle_power,
    measure_energy,
    meter_for,
)
from longvis_bench.measure.latency.processes import without_energy
from longvis_bench.measure.row_builder import RowBuilder
from longvis_bench.records import Cell, EnergyRecord, Request, Row
from longvis_bench.report.columns import BY_NAME, null_reason

RANGE = 262_143_328_850


class Tree:
    """A folder like /sys/class/powercap, whose counters a test moves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def zone(self, name: str, what: str, energy_uj: int = 0, range_uj: int | None = RANGE) -> None:
        path = self.folder / name
        path.mkdir(parents=True)
        (path / "name").write_text(f"{what}\n")
        if range_uj is not None:
            (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
        self.set(name, energy_uj)

    def set(self, name: str, energy_uj: int) -> None:
        (self.folder / name / "energy_uj").write_text(f"{energy_uj}\n")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Two sockets, with zones that lie inside of them and one that counts them again."""
    tree = Tree(tmp_path / "powercap")
    tree.zone("intel-rapl:0", "package-0", 1_000_000)
    tree.zone("intel-rapl:0:0", "core", 500_000)
    tree.zone("intel-rapl:1", "package-1", RANGE - 1_000_000)
    tree.zone("intel-rapl:2", "psys", 9_000_000)
    tree.zone("intel-rapl-mmio:0", "package-0", 1_000_000)
    return tree


def test_packages_are_added_and_a_counter_that_wraps_goes_on(tree: Tree) -> None:
    meter = RaplMeter(tree.folder)
    assert meter.source == "RAPL, 2 packages"
    assert meter.joules() == 0
    tree.set("intel-rapl:0", 4_000_000)
    tree.set("intel-rapl:1", 2_000_000)  # 1 J to the end of the range, and 2 J after it
    for zone in ("intel-rapl:0:0", "intel-rapl:2", "intel-rapl-mmio:0"):
        tree.set(zone, 77_000_000)
    assert meter.joules() == pytest.approx(3 + 3)
    tree.set("intel-rapl:1", 1_000_000)
    assert meter.joules() == pytest.approx(3 + 3 + RANGE * 1e-6 - 1)


def test_a_wrap_without_a_known_range_is_no_number(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.zone("intel-rapl:0", "package-0", 5_000_000, range_uj=None)
    meter = RaplMeter(tmp_path)
    tree.set("intel-rapl:0", 1)
    with pytest.raises(Unsupported, match="its range is not known"):
        meter.joules()


def test_machines_without_a_readable_counter_have_a_reason(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unsupported, match="shows no RAPL packages"):
        RaplMeter(tmp_path / "gone")
    (tree.folder / "intel-rapl:0" / "energy_uj").write_text("much\n")
    with pytest.raises(Unsupported, match="RAPL cannot be read"):
        RaplMeter(tree.folder)
    read = Path.read_text

    def forbidden(path: Path, *more: Any) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(path, *more)

    monkeypatch.setattr(Path, "read_text", forbidden)
    with pytest.raises(Unsupported, match="only root may read"):
        RaplMeter(tree.folder)


class Clock:
    """A clock whose iterations take half a second and use 5 J."""

    def __init__(self, tree: Tree, start: int = 1_000_000) -> None:
        self._tree, self._energy = tree, start

    def time(self, iteration: Any) -> float:
        iteration()
        self._energy += 5_000_000
        self._tree.set("intel-rapl:0", self._energy)
        return 0.5

    def now(self) -> float:
        return 0.0


def test_energy_per_image_and_power(tree: Tree, row: Row) -> None:
    done: list[int] = []
    found = measure_energy(lambda: done.append(1), Clock(tree), RaplMeter(tree.folder), batch=8, idle_w=4.0)
    assert found.joules == pytest.approx(20.0)
    assert (found.seconds, found.images, found.source, found.idle_w) == (2.0, 32, "RAPL, 2 packages", 4.0)
    assert len(done) == 4
    measured = row.model_copy(update={"energy": found})
    values = {name: BY_NAME[name].value(measured) for name in ("energy_j_img", "power_w", "idle_power_w")}
    assert values == {"energy_j_img": pytest.approx(0.625), "power_w": pytest.approx(10.0), "idle_power_w": 4}
    assert Row.model_validate_json(measured.to_json()).energy == found


def test_a_counter_that_stands_still_is_no_zero(tree: Tree) -> None:
    still = SimpleNamespace(time=lambda iteration: 1.0, now=lambda: 0.0)
    with pytest.raises(Unsupported, match="did not move in 2"):
        measure_energy(lambda: None, still, RaplMeter(tree.folder), batch=1, idle_w=None)


def test_idle_power(tree: Tree) -> None:
    def sleep(seconds: float) -> None:
        import time

        tree.set("intel-rapl:0", 1_000_000 + 2_000_000)
        time.sleep(0.2)

    assert idle_power(RaplMeter(tree.folder), sleep=sleep) == pytest.approx(10, rel=0.2)


class Nvml:
    """A GPU that has used 12.5 kJ since its driver started, and 40 J more by each reading."""

    def __init__(self, *, mig: bool = False, counts: bool = True) -> None:
        self.mig, self.counts, self.millijoules = mig, counts, 12_500_000

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid == "GPU-none" or uuid == "MIG-none":
            raise LookupError
        return uuid

    def nvmlDeviceIsMigDeviceHandle(self, handle: str) -> bool:  # noqa: N802
        return self.mig

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: str) -> str:  # noqa: N802
        return "GPU-whole"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        if not self.counts:
            raise NotImplementedError
        self.millijoules += 40_000
        return self.millijoules


def test_a_gpu_counts_its_own_energy() -> None:
    meter = NvmlMeter("a", Nvml())
    assert [meter.joules(), meter.joules()] == [40.0, 80.0]


@pytest.mark.parametrize(
    ("uuid", "nvml", "words"),
    [
        ("a", None, "NVML does not answer"),
        ("none", Nvml(), "knows no such GPU"),
        ("a", Nvml(mig=True), "slice of a GPU"),
        ("a", Nvml(counts=False), "GPUs before Volta"),
    ],
)
def test_a_gpu_without_a_counter_has_a_reason(uuid: str, nvml: Any, words: str) -> None:
    with pytest.raises(Unsupported, match=words):
        NvmlMeter(uuid, nvml)


def test_other_devices_have_a_reason(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="no energy counter of mps"):
        meter_for(torch.device("mps"))
    with pytest.raises(Unsupported, match="shows no RAPL packages"):
        meter_for(torch.device("cpu"), tmp_path)


@pytest.fixture
def builder(cell: Cell) -> RowBuilder:
    return RowBuilder(Request(cell=cell))


def test_a_cell_without_a_meter_says_why(builder: RowBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(device: torch.device) -> Any:
        raise Unsupported("this machine has none")

    monkeypatch.setattr(cell_energy, "meter_for", none)
    assert start_energy(builder) is None
    row = builder.end("ok")
    assert row.energy is None
    for name in ("energy_j_img", "power_w", "idle_power_w"):
        assert null_reason(BY_NAME[name], row) == "this machine has none"


def test_a_counter_that_fails_later_is_a_reason_too(builder: RowBuilder) -> None:
    def fails() -> float:
        raise OSError("gone")

    meter = SimpleNamespace(source="RAPL, 1 package", joules=fails)
    CellEnergy(meter, 1.0, builder).measure(lambda: None, SimpleNamespace())
    assert builder.end("ok").null_reasons["energy_j_img"] == "gone"


def test_rows_of_cells_side_by_side_have_none(row: Row) -> None:
    found = EnergyRecord(joules=1.0, seconds=1.0, images=1, source="RAPL, 1 package")
    bare = without_energy(row.model_copy(update={"energy": found}))
    assert bare.energy is None
    assert "side by side" in (null_reason(BY_NAME["energy_j_img"], bare) or "")
