"""The decoder. Letters mean one thing in the whole repository:

B batch, T query length, S key length, D model, F mlp, N query heads, K kv heads, G = N/K, H head dim, V vocabulary,
L layers, X experts, E experts that a token chooses, R (token, choice) rows sorted by expert. Arrays carry them as a suffix (`x_BTD`, `scores_BKGTS`); einsum strings use the same letters.
"""
