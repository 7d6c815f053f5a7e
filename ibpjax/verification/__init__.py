"""Certificates from bounds."""
