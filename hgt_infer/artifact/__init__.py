"""The exported folder: its files, its configuration, its tokenizer."""
