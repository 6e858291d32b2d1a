"""Preprocessing of one recording, from its file to packets and facts. No Ray, no torch."""
