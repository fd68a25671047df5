"""Figures: metrics, parts, trust, disturbances, and the record that holds them."""
