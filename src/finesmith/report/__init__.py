"""Report room: turns a run folder, and nothing else, into a page people read and a model card."""
