"""Hugging Face folders in and out: `python -m lm.hf import | export | verify`, and `init.source="hf:FOLDER"`."""
