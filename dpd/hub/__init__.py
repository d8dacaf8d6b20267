"""`dpd push` and `dpd pull`: policies on the Hugging Face hub."""
