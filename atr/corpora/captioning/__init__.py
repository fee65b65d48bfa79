"""New captions of training clips, by rules or by a language model."""
