"""How does an open-weight model come in, and go out again? `python -m lm.hf import | export | verify`."""
