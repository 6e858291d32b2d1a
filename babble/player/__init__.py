"""Endless playing with settings that change while it plays: sessions, and the local page that controls them."""
