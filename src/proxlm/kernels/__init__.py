"""What makes passes fast and small, by hardware: attention, products, gradients in place, int8 weights."""
