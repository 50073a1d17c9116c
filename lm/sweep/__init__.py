"""An extra: cross-validated search over a config's keys, `python -m lm.sweep` (docs/sweep.md).

__main__ -> space (what is searched), journal (what is known), ask (what to try next), race (what to give up)
         -> work (who computes what) -> program (trials side by side) ; folds (which data) ; winner, report
"""
