"""The cleaning rules, one file a question; `data_pipeline/clean.py` composes them."""
