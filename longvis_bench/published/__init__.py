"""Published numbers beside counted and measured ones: each is reproduced, contradicted, or not comparable."""
