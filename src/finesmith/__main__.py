"""`python -m finesmith` is the command `finesmith`."""

from finesmith.cli import main

main()
