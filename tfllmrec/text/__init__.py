"""Text encoding: item templates, encoders (bundled ones and any TF Hub BERT), tuning, and the vector store."""
