"""`dpd tune`: search settings of `dpd train`."""
