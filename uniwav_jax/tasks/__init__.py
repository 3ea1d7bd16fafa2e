"""What is done with a pre-trained model."""
