"""Any model under a named protocol: `atr evaluate`."""
