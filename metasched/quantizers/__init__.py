"""Level sets, scales, noise families and stair functions; differentiable in the input and in every control."""
