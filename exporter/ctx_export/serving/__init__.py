"""Packages laid out for servers, one server a module."""
