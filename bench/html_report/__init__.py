"""Results as one HTML page that needs nothing else: pictures, plots, tables and where they come from."""
