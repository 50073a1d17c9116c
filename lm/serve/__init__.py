"""An extra: a run's model behind an OpenAI-compatible HTTP interface (docs/serving.md).

__main__ -> app (HTTP) -> wire (JSON) -> engine (who has a slot, in a thread of its own) -> slots (on the device), answer (text)
"""
