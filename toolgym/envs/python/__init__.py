"""``toolgym/python-v0``: arithmetic and list questions that are answered by running Python in a sandbox."""
