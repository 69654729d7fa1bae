"""Guards: what watches a run and acts."""
