"""Tweets cleaned, counted, stored, split, and laid out as blocks of token ids."""
