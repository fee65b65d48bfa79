"""Commands of `atr`, each in a module of its own."""
