"""Weights as other people save them: what a file is, which of its tensors are the network's, what ours are called."""
