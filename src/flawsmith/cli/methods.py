"""``flawsmith methods``."""

from __future__ import annotations

from flawsmith.cli.app import AsJson, error_boundary, print_json, print_out


def methods(json_: AsJson = False) -> None:
    """List the methods: what each is good at, how long it trains on two CPU cores, and its paper.

    Example: flawsmith methods
    """
    with error_boundary(tier="train"):
        from flawsmith.models.registry import find_method, method_names

        rows = [
            {"name": name, "suits": kind.suits, "training_time": kind.training_time, "paper": kind.paper}
            for name, kind in ((name, find_method(name)) for name in method_names())
        ]
    if json_:
        print_json(rows)
        return
    for row in rows:
        print_out(f"{row['name']:<10} {row['suits']}; {row['training_time']}", f"{'':<10} {row['paper']}")
