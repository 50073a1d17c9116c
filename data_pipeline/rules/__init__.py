"""The rules that texts pass, one file a question; `data_pipeline/clean.py` composes them."""
