"""Rules that clean text: each file answers one question about what may stay in a document."""
