"""What is measured: the suite of all peers, the service, prompts in bulk, scaling, quality, the demo."""
