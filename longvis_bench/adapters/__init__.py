"""What a new adapter passes (`conformance`) and starts from (`scaffold`)."""
