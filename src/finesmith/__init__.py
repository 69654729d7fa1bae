"""finesmith: fine-tune a language model and get the evidence that it is better."""

__version__ = "0.1.0"
