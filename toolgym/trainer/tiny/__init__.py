"""A tiny policy made from nothing: tokenizer, a 150k to 190k-parameter transformers model, and the copy warm-up."""
