"""Models: find, load, verify, run ragged, adapt, extend and save them."""
