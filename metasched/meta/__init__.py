"""The outer loop: learns a schedule network from hypergradients of inner runs."""
