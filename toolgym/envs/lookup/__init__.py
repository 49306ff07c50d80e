"""``toolgym/lookup-v0``: questions over several hops in a fictional encyclopaedia."""
