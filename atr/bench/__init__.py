"""How fast the parts are on the machine at hand, beside what people use today: `atr bench`."""
