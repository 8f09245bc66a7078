"""What is written about a trained model: records, card, pictures."""
