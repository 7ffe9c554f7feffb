"""SViT."""
