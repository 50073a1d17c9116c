"""Preparation: sources become a folder of token ids, in stages that any number of processes share."""
