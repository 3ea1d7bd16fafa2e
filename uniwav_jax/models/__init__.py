"""Networks: parameter containers and pure forward passes."""
