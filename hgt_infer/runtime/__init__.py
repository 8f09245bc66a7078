"""A CPU: its device, the model's session, the cache, the runner."""
