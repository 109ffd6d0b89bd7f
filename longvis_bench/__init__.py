"""What a vision backbone really costs and really achieves on 1024-4096 px images."""

__version__ = "0.1.0"
