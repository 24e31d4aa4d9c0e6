"""What a bundle's folder holds beside graphs and weights, and how it is written atomically."""
