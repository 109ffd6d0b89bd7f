"""Adapters of users' models: conformance checks (`conformance`) and a template (`scaffold`)."""
