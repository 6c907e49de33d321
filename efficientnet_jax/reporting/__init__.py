"""What a person sees of a run: progress, pictures and the page."""
