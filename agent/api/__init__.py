"""The HTTP face: the OpenAI API and our own endpoints."""
