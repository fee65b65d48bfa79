"""The encoders of miniature.py, as an extension."""

import miniature

from atr import register


@register.encoder("narrow6")
def narrow6(augment=None, dropout=None, frequency="mean"):
    return miniature.narrow("narrow6", augment, dropout, frequency)


@register.encoder("narrow10")
def narrow10(augment=None, dropout=None, frequency="mean"):
    return miniature.narrow("narrow10", augment, dropout, frequency)
