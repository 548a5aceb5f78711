"""Strings to vectors: item templates, any TF Hub BERT, the bundled one, the vector store."""
