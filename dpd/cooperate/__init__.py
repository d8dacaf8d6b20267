"""Saved policies that teach each other where one is really better: competence, lessons, rounds."""
