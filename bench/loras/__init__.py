"""What LoRAs at run time cost: steps with and without them, and changing them."""
