"""``outrider demo``: what the product is for, told by a real daemon in about a minute."""
