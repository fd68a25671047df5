"""From folders to a trained model."""
