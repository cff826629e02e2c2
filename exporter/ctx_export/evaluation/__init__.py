"""What a package is worth on text: perplexity, needles in a haystack, the smallest factor."""
