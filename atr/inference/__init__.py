"""A run or a checkpoint at work: embedding, ensembles, DCASE files, an index of a folder of sounds."""
