"""``flawsmith info``."""

from __future__ import annotations

from flawsmith.cli.console import emit, emit_json
from flawsmith.cli.options import AsJson, ModelFile
from flawsmith.cli.session import session


def info(model: ModelFile, json_: AsJson = False) -> None:
    """Say what a model is, what it learned from, and what its limits are worth.

    Example: flawsmith info runs/bolt/model.flaw
    """
    with session():
        from flawsmith.pipeline.inspect_model import describe_model, model_in_words

        facts = describe_model(model)
    if json_:
        emit_json(facts)
    else:
        emit(model_in_words(facts))
