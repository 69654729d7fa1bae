"""Read, inspect, clean, split and tokenise the texts of a run."""
