"""The model to start from, its hyper-parameters, fine-tuning, the sweep, the checkpoint, its measure."""
