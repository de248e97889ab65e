"""The page: a Gradio form, and a viewer that follows tasks by itself."""
