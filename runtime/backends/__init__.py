"""Backends: what runs a bundle's graphs. `protocol` is the interface, `options` the record that selects each one."""
