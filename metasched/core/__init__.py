"""Basics that all other packages use: errors, random streams, and the record of a layer."""
