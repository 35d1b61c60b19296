"""Level sets, scales, noise families and stair functions, differentiable in their input and in every control."""
