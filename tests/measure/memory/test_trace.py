"""Traces of storages: the peak, its parts, and the trace of another batch."""

from __future__ import annotations

from longvis_bench.measure.memory.trace import Trace, TraceBuilder


def test_peak_and_its_parts() -> None:
    trace = Trace((10, 5, 7, 100), ("weights", "input", "activations", "activations"), (1, 2, 3, -3, 4, -4))
    assert trace.peak() == 115
    assert trace.parts_at_peak() == {"weights": 10, "input": 5, "activations": 100}
    assert trace.peak(lambda size: 64 * -(-size // 64)) == 64 + 64 + 128


def test_the_peak_of_a_larger_batch_may_lie_at_another_moment() -> None:
    """At batch 1 the temporary of fixed size is the peak, at batch 10 the activations are."""
    parts = ("weights", "activations")
    one, two = Trace((100, 60), parts, (1, -1, 2)), Trace((100, 120), parts, (1, -1, 2))
    assert (one.peak(), two.peak()) == (100, 120)
    ten = one.at(10, two, (1, 2))
    assert ten is not None
    assert ten.peak() == 600


def test_other_operators_say_nothing_about_a_third_batch() -> None:
    one, two = Trace((1, 2), ("a", "a"), (1, 2)), Trace((1, 2), ("a", "a"), (1, -1, 2))
    assert one.at(3, two, (1, 2)) is None


def test_builder_keeps_order_and_final_parts() -> None:
    builder = TraceBuilder()
    builder.take(70, "activations", 3)
    builder.take(71, "activations", 4)
    builder.take(70, "gradients", 3)
    builder.free(71)
    builder.pass_through(9)
    builder.take(71, "input", 5)
    assert builder.build() == Trace(
        (3, 4, 9, 5), ("gradients", "activations", "workspace", "input"), (1, 2, -2, 3, -3, 4)
    )


def test_the_order_in_which_storages_go_together_does_not_count() -> None:
    built = []
    for order in ((1, 2, 3), (3, 1, 2)):
        builder = TraceBuilder()
        for key in (1, 2, 3):
            builder.take(key, "activations", key)
        for key in order:
            builder.free(key)
        builder.take(4, "activations", 4)
        built.append(builder.build())
    assert built[0] == built[1]
    assert built[0].events == (1, 2, 3, -1, -2, -3, 4)
