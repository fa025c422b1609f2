"""Tensors in, tensors out: ids, trie, decoder, losses, artifact. Knows nothing of events, logs or clocks."""
