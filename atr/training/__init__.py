"""A run: its address, its inputs, the model, the loop, and the folder that it is kept in."""
