"""How is a training row changed, the same way on any host, in any packing, at any thread count, prepared or streamed?

A pure function of (seed, epoch, document, place). `select` says which documents change. `reader` reads the chunks of a row, `rewrite` changes their text (`text`) or
their order (`spans`), `mask` hides inputs of a whole batch. docs/augmentation.md has a table of all kinds.
"""
