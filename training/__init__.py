"""Makes a GPT-2 checkpoint out of one user's tweets: read, clean, lay out in epochs, train, describe.

Run it with `python -m training --help`. It writes an ordinary Hugging Face folder. `hgt_infer` samples from
it: here only `card`, `evaluate` and `publish` import that, by public names.
"""
