"""A bundle's folder: manifest, tokenizers, and writing all of it atomically."""
