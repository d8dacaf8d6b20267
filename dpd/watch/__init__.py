"""`dpd watch`: a view of running and finished runs in the terminal."""
