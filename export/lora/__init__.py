"""LoRAs that are chosen when a bundle runs: where graphs take them, and files made ready for that."""
