"""Tokens: classes of sound found without text, a level above the frame."""
