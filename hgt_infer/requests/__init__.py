"""From a call's prompts to sequences, and from ended sequences to what the caller gets."""
