"""Which documents repeat each other, which repeat an evaluation set, and which must share a split? No jax, no tensorflow.

Stages, each from files to files, in the order in which preparation calls them; docs/dedup.md has the rules and an example:

    signatures.SignatureWriter   texts of a shard -> shard.docs, shard.keys, shard.bands, shard.lines
    exact.find_exact             -> which documents hold the same text as another one
    near.find_candidates, near.write_sets, near.verify -> pairs of near-duplicates with their exact Jaccard similarity
    clusters.drop_clusters, clusters.read_fates        -> which document each document repeats
    names.name_clusters, deal.split_of_cluster         -> which split a document belongs to
    lines.find_repeated, lines.RepeatedLines           -> lines that stand in many documents
    decontaminate.EvaluationIndex                      -> which documents hold a piece of an evaluation set
    leakage.find_leaks                                 -> do two splits share near-duplicates? Computed another way
"""
