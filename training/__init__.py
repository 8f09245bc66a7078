"""Makes a GPT-2 checkpoint out of one user's tweets: read, clean, lay out in epochs, train, describe.

Run it with `python -m training --help`. It writes an ordinary Hugging Face folder; sampling from it lives in
`hgt_infer`, which this package never imports.
"""
