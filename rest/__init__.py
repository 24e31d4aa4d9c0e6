"""`kontext-serve`: a bundle behind an endpoint of OpenAI's shape, and a page to try it (FastAPI and uvicorn)."""
