"""Chat with trained runs: an OpenAI-compatible endpoint, a page in the browser, the terminal."""
